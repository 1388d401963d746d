BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
    $pwsh = @(Get-PowerShellCommand)
}

Describe 'Stop-UffdVm, <Where>' -ForEach @(
    @{ Where = 'in this shell'; InProcess = $true }
    @{ Where = 'in a process of its own'; InProcess = $false }
) {
    BeforeEach {
        Skip-UnlessSupported $userfaultfd
        $null = Write-RandomFile "$TestDrive/vm.mem" 64KB
        $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -Strategy OnDemand -InProcess:$InProcess
        $regions = 1..2 | ForEach-Object { New-MmapRegion 64KiB ($_ * 0x100000000) }
        foreach ($region in $regions) {
            $region | Connect-UffdHandler "$TestDrive/vm.sock"
        }
        Wait-Until { $handler.ConnectionCount -eq 2 }
        $null = $regions[0] | Read-GuestMemory 0x100000000 4KiB
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'poisons what has not come, and leaves the other VM' {
        Stop-UffdVm vm-1 -Confirm:$false | Should -BeNullOrEmpty
        (Get-UffdVm).Name | Should -Be 'vm-2'
        ($regions[0] | Read-GuestMemory 0x100000000 4KiB).Size | Should -Be 4KB
        { $regions[0] | Read-GuestMemory 0x100008000 16 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
        ($regions[1] | Read-GuestMemory 0x200000000 64KiB).Size | Should -Be 64KB
        $handler.State | Should -Be Serving
        $handler.Error | Should -BeNullOrEmpty
    }

    It 'takes VMs from the pipeline, and numbers' {
        Get-UffdVm | Stop-UffdVm -Confirm:$false
        Get-UffdVm | Should -BeNullOrEmpty
        Wait-Until { $handler.ConnectionCount -eq 0 }
        $region = New-MmapRegion 64KiB 0x300000000
        $region | Connect-UffdHandler "$TestDrive/vm.sock"
        Wait-Until { $handler.ConnectionCount -eq 1 }
        Stop-UffdVm 3 -Confirm:$false
        Get-UffdVm | Should -BeNullOrEmpty
    }

    It 'kills the VMM with -OnError Kill' {
        $script = "Import-Module '$manifest'; `$region = New-MmapRegion 64KiB; `$region | Connect-UffdHandler '$TestDrive/vm.sock'; Start-Sleep 600"
        $vmm = Start-Process $pwsh[0] (@($pwsh[1..9]) + '-NoProfile', '-NonInteractive', '-Command', "`"$script`"").Where{ $_ } -PassThru
        try {
            $vm = Wait-Until { Get-UffdVm | Where-Object ProcessId -EQ $vmm.Id } -PassThru
            $vm | Stop-UffdVm -OnError Kill -Confirm:$false
            $vmm.WaitForExit(30000) | Should -BeTrue
            $vmm.ExitCode | Should -Be (128 + 9)
            (Get-UffdVm).Name | Should -Be 'vm-1', 'vm-2'
        }
        finally {
            $vmm.Kill()
        }
    }

    It 'asks first' {
        Stop-UffdVm vm-1 -WhatIf
        (Get-UffdVm).Name | Should -Be 'vm-1', 'vm-2'
        if ($InProcess) {
            return
        }
        # A shell that cannot ask does nothing.
        $failure = & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command "Import-Module '$manifest'; Get-UffdVm | Stop-UffdVm" 2>&1 | Out-String
        $failure | Should -Match 'NonInteractive' -Because $failure
        (Get-UffdVm).Name | Should -Be 'vm-1', 'vm-2'
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'Stop, which is about the handler'; Id = 'ValueNotSupported'; Make = { Stop-UffdVm vm-1 -OnError Stop -Confirm:$false -ErrorAction Stop } }
        @{ What = 'a name that is none'; Id = 'ParameterArgumentTransformationError'; Make = { Stop-UffdVm web -Confirm:$false } }
        @{ What = 'a VM that has gone'; Id = 'VmNotFound'; Make = { $vm = Get-UffdVm vm-1; $regions[0] | Remove-MmapRegion -Force; Wait-Until { $handler.ConnectionCount -eq 1 }; $vm | Stop-UffdVm -Confirm:$false -ErrorAction Stop } }
    ) {
        $Make | Should -Throw -ErrorId "$Id,*"
        (Get-UffdVm).Name | Should -Contain 'vm-2'
    }
}
