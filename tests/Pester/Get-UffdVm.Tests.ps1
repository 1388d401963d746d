BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Get-UffdVm' {
    BeforeEach {
        Skip-UnlessSupported $userfaultfd
        $null = Write-RandomFile "$TestDrive/vm.mem" 64KB
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'lists the VMs of a handler <Where>' -ForEach @(
        @{ Where = 'in this shell'; InProcess = $true }
        @{ Where = 'in a process of its own'; InProcess = $false }
    ) {
        $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -Strategy OnDemand -OnError Kill -InProcess:$InProcess
        Get-UffdVm | Should -BeNullOrEmpty
        $regions = 1..2 | ForEach-Object { New-MmapRegion 64KiB ($_ * 0x100000000) -Memfd:($_ -eq 2) }
        $regions[0] | Connect-UffdHandler "$TestDrive/vm.sock"
        Wait-Until { $handler.ConnectionCount -eq 1 }
        $regions[1] | Connect-UffdHandler "$TestDrive/vm.sock" -ShareMemory
        Wait-Until { $handler.ConnectionCount -eq 2 }
        $null = $regions[0] | Read-GuestMemory 0x100000000 16KiB
        Wait-Until { $handler.FaultCount -eq 4 }

        $vms = Get-UffdVm
        $vms | Should -BeOfType GuestMemory.Core.Userfault.UffdServedVm
        $vms.Id | Should -Be 1, 2
        $vms.Name | Should -Be 'vm-1', 'vm-2'
        $vms.Handler | Should -Be $handler, $handler
        $vms.SocketPath | Should -Be $handler.SocketPath, $handler.SocketPath
        $vms.ProcessId | Should -Be $PID, $PID
        $vms.MemorySize | Should -Be 64KB, 64KB
        $vms.Strategy | Should -Be OnDemand, OnDemand
        $vms.OnError | Should -Be Kill, Kill
        $vms.PercentPresent | Should -Be 25, 0
        $vms.FaultCount | Should -Be 4, 0
        $vms.CanReadMemory | Should -Be $false, $true
        $vms.State | Should -Be Serving, Serving
        "$($vms[0])" | Should -Be 'vm-1'

        (Get-UffdVm vm-2).Id | Should -Be 2
        (Get-UffdVm VM-*).Id | Should -Be 1, 2
        (Get-UffdVm -Id 2).Name | Should -Be 'vm-2'
        (Get-UffdVm -Id 2, 1).Id | Should -Be 2, 1
        ($handler | Get-UffdVm vm-1).Id | Should -Be 1
        (Get-UffdVm -SocketPath "$TestDrive/v*.sock").Id | Should -Be 1, 2
        Get-UffdVm -SocketPath "$TestDrive/x*.sock" | Should -BeNullOrEmpty
        Get-UffdVm none* | Should -BeNullOrEmpty
        (Get-UffdHandler -Figures).Vms.VmName | Should -Be 'vm-1', 'vm-2'
        $text = Get-UffdVm | Out-String -Width 120
        $text | Should -Match "Id Name\s+VMM State\s+Memory Present Image\s+SocketPath"
        $text | Should -Match "1 vm-1\s+$PID Serving\s+64 KiB\s+25.0 % "
        $null = $regions[1] | Read-GuestMemory 0x200000000 64KiB
        Wait-Until { (Get-UffdVm vm-2).State -eq 'Restored' }
        $regions[0] | Remove-MmapRegion -Force
        Wait-Until { $handler.ConnectionCount -eq 1 }
        (Get-UffdVm).Name | Should -Be 'vm-2'
    }

    It 'says that <What> is not there' -ForEach @(
        @{ What = 'a name'; Id = 'VmNotFound'; Make = { Get-UffdVm web -ErrorAction Stop } }
        @{ What = 'a number'; Id = 'VmNotFound'; Make = { Get-UffdVm -Id 7 -ErrorAction Stop } }
        @{ What = 'a handler'; Id = 'HandlerNotFound'; Make = { Get-UffdVm -SocketPath "$TestDrive/none.sock" -ErrorAction Stop } }
    ) {
        $null = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem"
        $failure = $Make | Should -Throw -ErrorId "$Id,*" -PassThru
        $failure.CategoryInfo.Category | Should -Be ObjectNotFound
    }

    It 'completes names, numbers and socket paths' {
        $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem"
        New-MmapRegion 64KiB | Connect-UffdHandler "$TestDrive/vm.sock"
        Wait-Until { $handler.ConnectionCount -eq 1 }
        Get-Completion 'Get-UffdVm ' | Should -Be 'vm-1'
        Get-Completion 'Get-UffdVm v' | Should -Be 'vm-1'
        Get-Completion 'Get-UffdVm -Id ' | Should -Be 1
        Get-Completion 'Get-UffdVm -SocketPath ' | Should -Be "$TestDrive/vm.sock"
        foreach ($cmdlet in 'Stop-UffdVm', 'Set-UffdVm', 'Get-DirtyBitmap -UffdVm', 'Read-GuestMemory 0 -UffdVm', 'Export-GuestMemory a.mem -UffdVm') {
            Get-Completion "$cmdlet " | Should -Be 'vm-1' -Because $cmdlet
        }
    }

    It 'says what it gives' {
        (Get-Command Get-UffdVm).OutputType.Type | Should -Be ([GuestMemory.Core.Userfault.UffdServedVm])
    }
}
