BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Measure-DirtyRate' {
    BeforeEach {
        $region = New-MmapRegion 4MiB -Name ram -DirtyTracking
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'says that nothing is written' {
        $rate = $region | Measure-DirtyRate -Duration 0.05 -Interval 0.01
        $rate | Should -BeOfType GuestMemory.PowerShell.DirtyRate
        $rate.Rate | Should -Be 0
        $rate.WorkingSet | Should -BeExactly 0ul
        $rate.ByteSize | Should -Be 4MB
        $rate.SampleCount | Should -BeGreaterThan 0
        $rate.Duration.TotalSeconds | Should -BeGreaterOrEqual 0.05
        $rate.Source | Should -Be 'region ram'
        $rate.Forecast | Should -BeNullOrEmpty
    }

    It 'counts what another thread writes' {
        # 16 pages, again and again, until it is measured.
        $state = [hashtable]::Synchronized(@{ Region = $region; IsDone = $false; Rounds = 0 })
        $job = Start-ThreadJob {
            $state = $using:state
            while (-not $state.IsDone) {
                for ($page = 0; $page -lt 16; $page++) { $state.Region.WriteObject([ulong] ($page * 4096), [byte] 1) }
                $state.Rounds++
            }
        }
        try {
            Wait-Until { $state.Rounds -gt 0 }
            $rate = $region | Measure-DirtyRate -Duration 1 -Interval 0.5 -Bandwidth 64KiB -DowntimeLimit 0.5
        }
        finally {
            $state.IsDone = $true
            $null = $job | Wait-Job | Receive-Job
            $job | Remove-Job
        }
        $rate.WorkingSet | Should -Be 64KB
        $rate.Rate | Should -BeGreaterThan 0
        # 64 KiB again and again at 64 KiB a second never fit into half a second.
        $rate.Forecast.Converges | Should -BeFalse
        "$($rate.Forecast)" | Should -BeLike 'does not converge: *'
    }

    It 'counts what a process wrote that is compared' {
        $folder = (New-Item -ItemType Directory -Force "$TestDrive/program").FullName
        $process = Open-TrackedProcess $folder
        $tracking = Start-DirtyTracking $process.Id $process.Address $process.Size -Source Compare
        # 8 pages, again and again, until it is measured.
        $state = [hashtable]::Synchronized(@{ Process = $process; IsDone = $false; Rounds = 0 })
        $job = Start-ThreadJob {
            $state = $using:state
            while (-not $state.IsDone) {
                $state.Process.StandardInput.WriteLine('w 0 1 2 3 4 5 6 7')
                $state.Process.StandardInput.Flush()
                $null = $state.Process.StandardOutput.ReadLine()
                $state.Rounds++
            }
        }
        try {
            Wait-Until { $state.Rounds -gt 0 }
            $rate = $tracking | Measure-DirtyRate -Duration 1 -Interval 0.25 -Bandwidth 1GiB
        }
        finally {
            $state.IsDone = $true
            $null = $job | Wait-Job | Receive-Job
            $job | Remove-Job
            $process.Kill()
        }
        $rate.WorkingSet | Should -Be (8 * $process.PageSize)
        $rate.Source | Should -Be "process $($process.Id), Compare"
        $rate.Forecast.Converges | Should -BeTrue
    }

    It 'forecasts a migration with -Bandwidth' {
        $forecast = ($region | Measure-DirtyRate -Duration 0.05 -Interval 0.01 -Bandwidth 1MiB).Forecast
        $forecast | Should -BeOfType GuestMemory.Core.MigrationForecast
        $forecast.Converges | Should -BeTrue
        $forecast.Duration | Should -Be ([timespan]::FromSeconds(4))
        $forecast.Downtime | Should -Be ([timespan]::FromSeconds(0.3))
        $forecast.TransferredBytes | Should -Be 4MB
        $forecast.Rounds | Should -Be 2
        ($region | Measure-DirtyRate -Duration 0.05 -Interval 0.01 -Bandwidth 1MiB -FirstRound 1MiB).Forecast.Duration | Should -Be ([timespan]::FromSeconds(1))
    }

    It 'shows it as a list' {
        $text = $region | Measure-DirtyRate -Duration 0.05 -Interval 0.01 -Bandwidth 1MiB | Out-String
        $text | Should -BeLike '*Source     : region ram*WorkingSet : 0 B*Forecast   : 2 rounds, 4.0 s, of which 300 ms down*'
    }

    It 'refuses memory that is not tracked' {
        $plain = New-MmapRegion 1MiB 0x200000000 -Name plain
        $plain | Measure-DirtyRate -ErrorAction SilentlyContinue -ErrorVariable failure | Should -BeNullOrEmpty
        $failure.FullyQualifiedErrorId | Should -Be 'DirtyTrackingOff,GuestMemory.PowerShell.Commands.MeasureDirtyRateCommand'
    }

    It 'refuses a bandwidth of 0' {
        { $region | Measure-DirtyRate -Bandwidth 0 } | Should -Throw -ErrorId 'ParameterArgumentValidationError,*'
    }
}
