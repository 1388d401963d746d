BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $folder = (New-Item -ItemType Directory "$TestDrive/program").FullName
}

Describe 'Stop-DirtyTracking' {
    BeforeEach {
        $process = Open-TrackedProcess $folder
        $trackings = foreach ($page in 0, 32) {
            Start-DirtyTracking $process.Id ($process.Address + $page * $process.PageSize) 16KiB
        }
    }

    AfterEach {
        Clear-TestState
        ${process}?.Kill()
    }

    It 'ends one from the pipeline, and the process goes on' {
        $trackings[0] | Stop-DirtyTracking | Should -BeNullOrEmpty
        $trackings.State | Should -Be Stopped, Tracking
        (Get-DirtyTracking).Address | Should -Be $trackings[1].Address
        Invoke-TrackedProcess $process 'w 1 33'
        (Get-DirtyBitmap -ProcessId $process.Id).DirtyCount | Should -Be 1
        { $trackings[0] | Get-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*'
    }

    It 'ends all of a process, and one by its address' {
        Stop-DirtyTracking $process.Id $trackings[1].Address
        $trackings.State | Should -Be Tracking, Stopped
        Stop-DirtyTracking -ProcessId $process.Id
        Get-DirtyTracking | Should -BeNullOrEmpty
        Select-String -Path "/proc/$($process.Id)/smaps" -Pattern '^VmFlags:.* uw' | Should -BeNullOrEmpty
        Invoke-TrackedProcess $process 'w 1'
    }

    It 'does nothing with -WhatIf' {
        Get-DirtyTracking | Stop-DirtyTracking -WhatIf
        $trackings.State | Should -Be Tracking, Tracking
    }

    It 'ends what is left of a process that has ended' {
        $process.Kill()
        $process.WaitForExit()
        Get-DirtyTracking | Stop-DirtyTracking
        Get-DirtyTracking | Should -BeNullOrEmpty
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'a process that is not tracked'; Id = 'DirtyTrackingOff'; Make = { Stop-DirtyTracking -ProcessId $PID -ErrorAction Stop } }
        @{ What = 'an address that is not tracked'; Id = 'DirtyTrackingOff'; Make = { Stop-DirtyTracking $process.Id 1 -ErrorAction Stop } }
    ) {
        $Make | Should -Throw -ErrorId "$Id,*"
        $trackings.State | Should -Be Tracking, Tracking
    }

    It 'completes processes that are tracked' {
        Get-Completion 'Stop-DirtyTracking ' | Should -Be "$($process.Id)"
        Get-Completion "Stop-DirtyTracking -ProcessId $($process.Id) -Address " | Should -Be ($trackings.ForEach{ '0x{0:x8}' -f $_.Address })
    }
}
