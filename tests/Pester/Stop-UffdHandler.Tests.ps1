BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Stop-UffdHandler' {
    BeforeEach {
        $path = "$TestDrive/vm.sock"
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", [byte[]]::new(64KB))
        $handler = Start-UffdHandler $path "$TestDrive/vm.mem" -Strategy OnDemand
    }

    AfterEach {
        Clear-TestState
    }

    It 'stops a handler and takes its socket away' {
        Stop-UffdHandler $handler -WarningVariable warning | Should -BeNullOrEmpty
        $warning | Should -BeNullOrEmpty
        $handler.State | Should -Be Stopped
        $path | Should -Not -Exist
        Get-UffdHandler | Should -BeNullOrEmpty
    }

    It 'takes handlers from the pipeline' {
        $second = Start-UffdHandler "$TestDrive/second.sock" "$TestDrive/vm.mem"
        Get-UffdHandler | Stop-UffdHandler
        $handler.State, $second.State | Should -Be Stopped, Stopped
    }

    It 'takes socket paths and wildcards' {
        $null = Start-UffdHandler "$TestDrive/second.sock" "$TestDrive/vm.mem"
        Stop-UffdHandler -SocketPath "$TestDrive/sec*"
        Get-UffdHandler | Should -Be $handler
        Push-Location $TestDrive
        try {
            Get-UffdHandler v*.sock | Should -Be $handler
            Get-UffdHandler ./v*.sock | Should -Be $handler
            Get-UffdHandler x* | Should -BeNullOrEmpty
            Stop-UffdHandler -SocketPath vm.sock
        }
        finally {
            Pop-Location
        }
        Get-UffdHandler | Should -BeNullOrEmpty
    }

    It 'gives the handler with -PassThru, its figures kept' {
        $stopped = $handler | Stop-UffdHandler -PassThru
        $stopped | Should -Be $handler
        $stopped.State | Should -Be Stopped
        $stopped.FaultCount | Should -Be 0
        $stopped | Out-String -Width 250 | Should -Match 'Stopped'
    }

    It 'stops nothing with -WhatIf' {
        $handler | Stop-UffdHandler -WhatIf
        $handler.State | Should -Be Listening
        $path | Should -Exist
    }

    It 'has nothing to do for a handler that was stopped' {
        $handler | Stop-UffdHandler
        { $handler | Stop-UffdHandler -ErrorAction Stop } | Should -Not -Throw
        $handler.State | Should -Be Stopped
    }

    It 'says that a handler is unknown' {
        $failure = { Stop-UffdHandler -SocketPath "$TestDrive/none.sock" -ErrorAction Stop } | Should -Throw -ErrorId 'HandlerNotFound,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be ObjectNotFound
        $handler.State | Should -Be Listening
    }

    It 'leaves a socket alone that somebody else put in its place' {
        Remove-Item $path
        $other = Open-Socket $path
        try {
            $handler | Stop-UffdHandler
            $path | Should -Exist
        }
        finally {
            $other.Dispose()
        }
    }

    It 'leaves no descriptor and no thread' {
        $handler | Stop-UffdHandler
        $before = Get-DescriptorCount
        1..20 | ForEach-Object { Start-UffdHandler $path "$TestDrive/vm.mem" } | Stop-UffdHandler
        Wait-Until { (Get-DescriptorCount) -le $before }
        Wait-Until { -not (Get-NamedThread uffd-*) }
    }

    It 'lets the same path be used again at once' {
        $handler | Stop-UffdHandler
        (Start-UffdHandler $path "$TestDrive/vm.mem").State | Should -Be Listening
    }

    Context 'A handler that serves' {
        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            $region = New-MmapRegion 64KiB -Name ram
            $region | Connect-UffdHandler $path
            $null = $region | Read-GuestMemory 0 4KiB
            Wait-Until { $handler.FaultCount -eq 1 }
        }

        It 'warns of the VMs that it leaves, and stops' {
            $stopped = $handler | Stop-UffdHandler -PassThru -WarningVariable warning -WarningAction SilentlyContinue
            $warning | Should -Match 'still served 1 VM'
            $stopped.State | Should -Be Stopped
            $stopped.ConnectionCount | Should -Be 0
            $stopped.FaultCount | Should -Be 1
            $stopped.ByteCount | Should -Be 4KB
            $stopped | Stop-UffdHandler -WarningVariable warning
            $warning | Should -BeNullOrEmpty -Because 'it was said when the handler was stopped'
        }

        It 'leaves what is there readable' {
            $handler | Stop-UffdHandler -WarningAction Ignore
            $region | Read-GuestMemory 0xFF8 -As UInt64 | Should -Be 0
        }

        It 'does not warn where the VM has gone' {
            $region | Remove-MmapRegion -Force
            Wait-Until { $handler.ConnectionCount -eq 0 }
            $handler | Stop-UffdHandler -WarningVariable warning
            $warning | Should -BeNullOrEmpty
        }
    }

    It 'completes socket paths' {
        Get-Completion 'Stop-UffdHandler -SocketPath ' | Should -Be $path
        Get-Completion 'Stop-UffdHandler ' | Should -Be $path
    }

    It 'says what it gives' {
        (Get-Command Stop-UffdHandler).OutputType.Type | Should -Be ([GuestMemory.Core.Userfault.UffdHandler])
    }
}
