BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Get-UffdHandler' {
    BeforeEach {
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", [byte[]]::new(64KB))
        $first = Start-UffdHandler "$TestDrive/first.sock" "$TestDrive/vm.mem" -Strategy OnDemand
        $second = Start-UffdHandler "$TestDrive/second.sock" "$TestDrive/vm.mem"
    }

    AfterEach {
        Clear-TestState
    }

    It 'lists the handlers of the shell' {
        (Get-UffdHandler).Id | Should -Be $first.Id, $second.Id
    }

    It 'gives the very objects that Start-UffdHandler gave' {
        [object]::ReferenceEquals((Get-UffdHandler -Id $second.Id), $second) | Should -BeTrue
    }

    It 'finds handlers by socket path, number and wildcards' {
        Get-UffdHandler "$TestDrive/first.sock" | Should -Be $first
        Get-UffdHandler -SocketPath "$TestDrive/*.sock" | Should -Be $first, $second
        Get-UffdHandler -Id $first.Id, $second.Id | Should -Be $first, $second
        Get-UffdHandler /none/* | Should -BeNullOrEmpty
    }

    It 'finds a handler by a relative path' {
        Push-Location $TestDrive
        try {
            Get-UffdHandler second.sock | Should -Be $second
        }
        finally {
            Pop-Location
        }
    }

    It 'says that a handler is unknown, and goes on' {
        $found = Get-UffdHandler "$TestDrive/none.sock", "$TestDrive/first.sock" -ErrorAction SilentlyContinue -ErrorVariable failure
        $found | Should -Be $first
        $failure.FullyQualifiedErrorId | Should -BeLike 'HandlerNotFound,*'
        $failure.CategoryInfo.Category | Should -Be ObjectNotFound
        { Get-UffdHandler -Id 99999 -ErrorAction Stop } | Should -Throw -ErrorId 'HandlerNotFound,*'
    }

    It 'forgets a handler that was stopped' {
        $first | Stop-UffdHandler
        Get-UffdHandler | Should -Be $second
    }

    It 'gives figures as an object and as JSON' {
        $figures = Get-UffdHandler $first.SocketPath -Figures
        $figures | Should -BeOfType GuestMemory.Core.Userfault.UffdFigures
        $figures.FaultCount | Should -Be 0
        $json = @(Get-UffdHandler -AsJson)
        $json.Count | Should -Be 2
        ($json[0] | ConvertFrom-Json).faults.all | Should -Be 0
        ($json | ConvertFrom-Json).socket_path | Should -Be (Get-UffdHandler).SocketPath
        (Get-UffdHandler -Figures).SocketPath | Should -Be (Get-UffdHandler).SocketPath
    }

    It 'counts what is served' {
        Skip-UnlessSupported $userfaultfd
        $region = New-MmapRegion 64KiB
        $region | Connect-UffdHandler $first.SocketPath
        $null = $region | Read-GuestMemory 0 64KiB
        Wait-Until { $first.FaultCount -eq 16 }
        $first.State | Should -Be Serving
        $first.ConnectionCount | Should -Be 1
        $first.TotalConnectionCount | Should -Be 1
        $first.ByteCount | Should -Be 64KB
        $first.LatencyP50 | Should -BeOfType timespan
        $first.LatencyP50 | Should -BeGreaterThan ([timespan]::Zero)
        $first.LatencyP99 | Should -BeGreaterOrEqual $first.LatencyP50
        $first.LatencyMax | Should -BeGreaterOrEqual $first.LatencyP99
        $first.Error | Should -BeNullOrEmpty
        $second.FaultCount | Should -Be 0
        Get-UffdHandler -Id $first.Id | Out-String -Width 250 | Should -Match 'Serving\s+1\s+16\s+64 KiB\s+\d+\.\d (us|ms|s)\s+\d+\.\d (us|ms|s)\s+/'

        $region | Remove-MmapRegion -Force
        Wait-Until { $first.ConnectionCount -eq 0 }
        $first.FaultCount | Should -Be 16
        $first.ByteCount | Should -Be 64KB
        $first.LatencyMax | Should -BeGreaterThan ([timespan]::Zero)
    }

    It 'completes socket paths and numbers' {
        Get-Completion "Get-UffdHandler -SocketPath $TestDrive/s" | Should -Be "$TestDrive/second.sock"
        Get-Completion 'Get-UffdHandler -Id ' | Should -Be "$($first.Id)", "$($second.Id)"
    }

    It 'shows one row a handler' {
        $view = Get-UffdHandler | Out-String -Width 250
        $view | Should -Match 'Id\s+State\s+VMs\s+Faults\s+Bytes\s+P50\s+P99\s+SocketPath'
        $view | Should -Match 'first\.sock'
        $view | Should -Match 'second\.sock'
    }

    It 'shows figures as rows, times with their unit' {
        Skip-UnlessSupported (Test-GuestMemorySupport Userfaultfd)
        $region = New-MmapRegion 4KiB
        $region | Connect-UffdHandler $first.SocketPath
        $null = $region | Read-GuestMemory 0 1
        Wait-Until { $first.GetFigures().PresentPageCount -eq 1 }
        $text = Get-UffdHandler $first.SocketPath -Figures | Out-String -Width 200
        $text | Should -Match 'VM\s+Present\s+Faults\s+Bytes\s+P50\s+P99\s+Max\s+Error'
        $text | Should -Match '(?m)^ *all +100\.0 % +\d+ +4 KiB'
        (Get-UffdHandler $first.SocketPath -Figures).Vms | Out-String -Width 200 | Should -Match '(?m)^ *first-1 +100\.0 % +1 .* \d+\.\d [um]s'
    }

    It 'says what it gives' {
        (Get-Command Get-UffdHandler).OutputType.Type | Should -Be ([GuestMemory.Core.Userfault.UffdHandler]), ([GuestMemory.Core.Userfault.UffdFigures]), ([string])
    }
}
