BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Set-UffdVm, <Where>' -ForEach @(
    @{ Where = 'in this shell'; InProcess = $true }
    @{ Where = 'in a process of its own'; InProcess = $false }
) {
    BeforeEach {
        Skip-UnlessSupported $userfaultfd
        $null = Write-RandomFile "$TestDrive/vm.mem" 64KB
        $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -Strategy OnDemand -InProcess:$InProcess
        1..2 | ForEach-Object { New-MmapRegion 64KiB ($_ * 0x100000000) } | ForEach-Object { $_ | Connect-UffdHandler "$TestDrive/vm.sock" }
        Wait-Until { $handler.ConnectionCount -eq 2 }
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'names a VM' {
        Set-UffdVm vm-1 web | Should -BeNullOrEmpty
        (Get-UffdVm).Name | Should -Be web, 'vm-2'
        (Get-UffdVm vm-2 | Set-UffdVm -Name db -PassThru).Name | Should -Be db
        Set-UffdVm 2 -Name db2
        Set-UffdVm -UffdVm (Get-UffdVm web) -Name web2
        (Get-UffdVm).Name | Should -Be web2, db2
    }

    It 'sets what follows on an error' {
        Get-UffdVm | Set-UffdVm -OnError Kill
        (Get-UffdVm).OnError | Should -Be Kill, Kill
        (Set-UffdVm vm-1 web -OnError Poison -PassThru).OnError | Should -Be Poison
        (Get-UffdVm).OnError | Should -Be Poison, Kill
    }

    It 'changes nothing with -WhatIf' {
        Set-UffdVm vm-1 web -OnError Kill -WhatIf
        (Get-UffdVm).Name | Should -Be 'vm-1', 'vm-2'
        (Get-UffdVm).OnError | Should -Be Poison, Poison
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'a name that another VM has'; Id = 'NameInUse'; Make = { Set-UffdVm vm-1 VM-2 -ErrorAction Stop } }
        @{ What = 'a name with a blank'; Id = 'ValueNotSupported'; Make = { Set-UffdVm vm-1 'w b' -ErrorAction Stop } }
        @{ What = 'a number as a name'; Id = 'ValueNotSupported'; Make = { Set-UffdVm vm-1 17 -ErrorAction Stop } }
        @{ What = 'nothing to do'; Id = 'ValueNotSupported'; Make = { Set-UffdVm vm-1 -ErrorAction Stop } }
        @{ What = 'a VM that is not there'; Id = 'ParameterArgumentTransformationError'; Make = { Set-UffdVm web a } }
    ) {
        $Make | Should -Throw -ErrorId "$Id,*"
        (Get-UffdVm).Name | Should -Be 'vm-1', 'vm-2'
    }
}
