BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Watch-DirtyBitmap' {
    BeforeEach {
        $low = New-MmapRegion 1MiB -Name low -DirtyTracking
        $high = New-MmapRegion 1MiB 0x100000000 -Name high -DirtyTracking
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'emits what was written in each interval' {
        $low | Write-GuestMemory 0x5000 1
        $round = 0
        $samples = $low | Watch-DirtyBitmap -SampleCount 3 -Interval 0.01 | ForEach-Object {
            $_
            # The next interval has one page more.
            foreach ($page in 0..$round) { $low | Write-GuestMemory ($page * 0x1000) 1 }
            $round++
        }
        # What was written before does not count.
        $samples.DirtyCount | Should -Be 0, 1, 2
        $samples[2] | Should -BeOfType GuestMemory.Core.DirtySample
        $samples[2].DirtySize | Should -BeExactly 8192ul
        $samples[2].ByteSize | Should -Be 1MB
        $samples[2].Source | Should -Be 'region low'
        $samples[2].Interval | Should -BeGreaterOrEqual ([timespan]::FromMilliseconds(5))
        $samples[2].Rate | Should -Be (8192 / $samples[2].Interval.TotalSeconds)
        $samples[2].HottestRanges | ForEach-Object Address | Should -Be 0
        $samples[2].HottestRanges[0].Size | Should -Be 256KB
    }

    It 'takes the regions of the pipeline for one memory' {
        $sample = $high, $low | Watch-DirtyBitmap -SampleCount 2 -Interval 0.01 | ForEach-Object {
            $_
            $low | Write-GuestMemory 0 1
            $high | Write-GuestMemory 0x100010000 -Bytes ([byte[]]::new(8192))
        } | Select-Object -Last 1
        $sample.DirtyCount | Should -Be 3
        $sample.ByteSize | Should -Be 2MB
        $sample.Source | Should -Be 'region low and 1 more'
        @($sample.HottestRanges).Count | Should -Be 2
        $sample.HottestRanges[0].Address | Should -Be 0x100000000
    }

    It 'lists as many ranges as -Hottest says' {
        $low | Watch-DirtyBitmap -SampleCount 2 -Interval 0.01 -Hottest 1 | ForEach-Object {
            @($_.HottestRanges).Count
            foreach ($at in 0, 0x80000) { $low | Write-GuestMemory $at 1 }
        } | Should -Be 0, 1
    }

    It 'watches several address spaces side by side, each by itself' {
        $one = Get-GuestMemory -Memory $low
        $two = Get-GuestMemory -Memory $high
        $samples = $one, $two | Watch-DirtyBitmap -SampleCount 1 -Interval 0.01
        $samples.Source | Should -Be 'region low', 'region high'
    }

    It 'goes on with the others where one ends' {
        $one = Get-GuestMemory -Memory $low
        $two = Get-GuestMemory -Memory $high
        $samples = $one, $two | Watch-DirtyBitmap -SampleCount 3 -Interval 0.01 -ErrorAction SilentlyContinue -ErrorVariable failure | ForEach-Object {
            $_.Source
            if ($low) { Remove-MmapRegion $low; $low = $null }
        }
        $failure.FullyQualifiedErrorId | Should -Be 'RegionDisposed,GuestMemory.PowerShell.Commands.WatchDirtyBitmapCommand'
        @($samples).Where{ $_ -eq 'region high' }.Count | Should -Be 3
        @($samples).Where{ $_ -eq 'region low' }.Count | Should -BeLessThan 3
    }

    It 'ends where nothing is left to watch' {
        $plain = New-MmapRegion 1MiB 0x200000000 -Name plain
        $plain | Watch-DirtyBitmap -ErrorAction SilentlyContinue -ErrorVariable failure | Should -BeNullOrEmpty
        $failure.FullyQualifiedErrorId | Should -Be 'DirtyTrackingOff,GuestMemory.PowerShell.Commands.WatchDirtyBitmapCommand'
    }

    It 'ends at once by Select-Object -First' {
        ($low | Watch-DirtyBitmap -Interval 0.01 | Select-Object -First 2).Count | Should -Be 2
    }

    It 'ends by Ctrl+C in the middle of an interval' {
        $shell = [powershell]::Create()
        try {
            $null = $shell.AddScript("Import-Module '$PSScriptRoot/../../GuestMemory.psd1'").Invoke()
            $shell.Commands.Clear()
            $null = $shell.AddScript('param($region) $region | Watch-DirtyBitmap -Interval 3600').AddArgument($low)
            $running = $shell.BeginInvoke()
            Wait-Until { $shell.InvocationStateInfo.State -eq 'Running' }
            $shell.Stop()
            $running.IsCompleted | Should -BeTrue
            $shell.InvocationStateInfo.State | Should -Be Stopped
        }
        finally {
            $shell.Dispose()
        }
    }

    It 'samples a process that is compared' {
        $folder = (New-Item -ItemType Directory -Force "$TestDrive/program").FullName
        $process = Open-TrackedProcess $folder
        try {
            $round = 0
            $samples = Start-DirtyTracking $process.Id $process.Address $process.Size -Source Compare | Watch-DirtyBitmap -SampleCount 3 -Interval 0.01 | ForEach-Object {
                $_
                Invoke-TrackedProcess $process "w $(0..$round)"
                $round++
            }
            $samples.DirtyCount | Should -Be 0, 1, 2
            $samples[2].Source | Should -Be "process $($process.Id), Compare"
        }
        finally {
            $process.Kill()
        }
    }

    It 'refuses <Parameter> <Value>' -ForEach @(
        @{ Parameter = 'Interval'; Value = 0 }
        @{ Parameter = 'SampleCount'; Value = 0 }
        @{ Parameter = 'Hottest'; Value = -1 }
    ) {
        $arguments = @{ $Parameter = $Value }
        { Watch-DirtyBitmap -Memory $low @arguments } | Should -Throw -ErrorId 'ParameterArgumentValidationError,*'
    }
}
