BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $kvm = Test-GuestMemorySupport Kvm
}

Describe 'Stop-VmMemoryService' {
    BeforeEach {
        $socket = "$TestDrive/vm.sock"
        if ($kvm.Supported) {
            $vm = New-MmapRegion 64KiB | New-GuestVm web
            $service = $vm | Start-VmMemoryService $socket
        }
    }

    AfterEach {
        Clear-TestState
    }

    It 'stops a service, takes its socket away, and leaves what is registered' {
        Skip-UnlessSupported $kvm
        $null = New-MmapRegion 64KiB 4GiB -Memfd | Invoke-VmMemoryRequest -RegisterMemory -SocketPath $socket
        $service | Stop-VmMemoryService | Should -BeNullOrEmpty
        $service.State | Should -Be Stopped
        $socket | Should -Not -Exist
        Get-VmMemoryService | Should -BeNullOrEmpty
        $vm.Slots.Count | Should -Be 2
        $null = Invoke-VmMemoryRequest -UnregisterMemory -RegionId 4GiB -Vm $vm -ErrorAction Stop
    }

    It 'finds services by socket and wildcards' {
        Skip-UnlessSupported $kvm
        Stop-VmMemoryService -SocketPath "$TestDrive/n*"
        Get-VmMemoryService | Should -Be $service
        Stop-VmMemoryService -SocketPath $socket
        Get-VmMemoryService | Should -BeNullOrEmpty
        { Stop-VmMemoryService -SocketPath $socket -ErrorAction Stop } | Should -Throw -ErrorId 'ServiceNotFound,*'
    }

    It 'gives the service with -PassThru, its figures kept' {
        Skip-UnlessSupported $kvm
        $null = $service | Invoke-VmMemoryRequest -BalloonTargetReached -Size 1
        $stopped = $service | Stop-VmMemoryService -PassThru
        $stopped | Should -Be $service
        $stopped.RequestCount | Should -Be 1
    }

    It 'has nothing to do for a service that was stopped' {
        Skip-UnlessSupported $kvm
        $service | Stop-VmMemoryService
        $service | Stop-VmMemoryService -ErrorAction Stop
    }

    It 'stops nothing with -WhatIf' {
        Skip-UnlessSupported $kvm
        $service | Stop-VmMemoryService -WhatIf
        $service.State | Should -Be Running
    }

    It 'leaves no descriptor and no thread' {
        Skip-UnlessSupported $kvm
        $service | Stop-VmMemoryService
        $before = Get-DescriptorCount
        1..10 | ForEach-Object { $vm | Start-VmMemoryService $socket | Stop-VmMemoryService }
        Get-DescriptorCount | Should -Be $before
        Wait-Until { -not (Get-NamedThread 'vm-memory-*') }
    }

    It 'completes socket paths' {
        Skip-UnlessSupported $kvm
        Get-Completion 'Stop-VmMemoryService ' | Should -Be $socket
        Get-Completion 'Stop-VmMemoryService -SocketPath ' | Should -Be $socket
    }

    It 'takes wildcards in this directory' {
        Skip-UnlessSupported $kvm
        Push-Location (Split-Path $socket)
        try {
            Stop-VmMemoryService -SocketPath "./$((Split-Path -Leaf $socket)[0])*"
        }
        finally {
            Pop-Location
        }
        $service.State | Should -Be Stopped
    }
}
