BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
    $pwsh = @(Get-PowerShellCommand)

    function Invoke-Shell([string] $Script) {
        # Another shell of the same user.
        & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command "Import-Module '$manifest'; $Script" 2>&1 | Out-String
    }
}

Describe 'A handler in a process of its own' {
    BeforeEach {
        $path = "$TestDrive/vm.sock"
        $image = "$TestDrive/vm.mem"
        $content = Write-RandomFile $image 256KB
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'is what Start-UffdHandler starts, unless told otherwise' {
        $handler = Start-UffdHandler $path $image -InProcess:$false
        $handler.ProcessId | Should -Not -Be $PID
        $handler.WorkerProcessId | Should -Not -Be $handler.ProcessId
        $handler.Id | Should -Be $handler.ProcessId
        $handler.State | Should -Be Listening
        $handler.SocketPath | Should -Be $path
        $handler.MemoryPath | Should -Be $image
        $handler.WorkerCount | Should -Be 1
        stat -c %A $path | Should -Be 'srw-------'
        [object]::ReferenceEquals((Get-UffdHandler $path), $handler) | Should -BeTrue
        $stopped = $handler | Stop-UffdHandler -PassThru
        $stopped.State | Should -Be Stopped
        $path | Should -Not -Exist
        Get-UffdHandler | Should -BeNullOrEmpty
        # What a handler that failed has left, its log, is not this one's.
        Wait-Until { -not (Get-ChildItem -Force $env:GUESTMEMORY_RUNTIME_DIR -Filter "$($handler.Id).*") }
    }

    It 'outlives the shell that started it, and is found from any other' {
        Skip-UnlessSupported $userfaultfd
        $started = Invoke-Shell "(Start-UffdHandler '$path' '$image' -Strategy OnDemand).Id"
        $handler = Get-UffdHandler
        $handler.Id | Should -Be $started.Trim()
        $region = New-MmapRegion 256KiB
        $region | Connect-UffdHandler $path
        [Convert]::ToHexString(($region | Read-GuestMemory 0 256KiB -Raw)) | Should -Be ([Convert]::ToHexString($content))
        Wait-Until { $handler.FaultCount -eq 64 }
        $handler.ByteCount | Should -Be 256KB
        $handler.LatencyP50 | Should -BeGreaterThan ([timespan]::Zero)
        Invoke-Shell "(Get-UffdHandler -SocketPath '$path').FaultCount" | Should -Match '^64\s*$'
        Invoke-Shell "Stop-UffdHandler -SocketPath '$path'" | Should -Match 'WARNING: .*still served 1 VM'
        Wait-Until { $handler.State -eq 'Stopped' }
        $handler.FaultCount | Should -Be 64
        $handler.AbandonedCount | Should -Be 1
    }

    It 'goes on when its worker is killed' {
        Skip-UnlessSupported $userfaultfd
        $handler = Start-UffdHandler $path $image -InProcess:$false -Strategy OnDemand
        $region = New-MmapRegion 256KiB
        $region | Connect-UffdHandler $path
        $null = $region | Read-GuestMemory 0 4KiB
        # A page is there before it is counted.
        Wait-Until { $handler.FaultCount -eq 1 }
        $first = $handler.WorkerProcessId
        Stop-Process -Id $first -Force
        [Convert]::ToHexString(($region | Read-GuestMemory 0 256KiB -Raw)) | Should -Be ([Convert]::ToHexString($content))
        Wait-Until { $handler.FaultCount -eq 64 }
        $handler.WorkerProcessId | Should -Not -Be $first
        $handler.WorkerCount | Should -Be 2
        $handler.Error | Should -Match "worker $first ended \(signal 9\)"
    }

    It 'says what is wrong as an error record of Start-UffdHandler' {
        { Start-UffdHandler $path "$TestDrive/none.mem" -InProcess:$false -ErrorAction Stop } | Should -Throw -ErrorId 'ImageNotFound,*'
        { Start-UffdHandler "$TestDrive/none/vm.sock" $image -InProcess:$false -ErrorAction Stop } | Should -Throw -ErrorId 'SocketNotFound,*'
        { Start-UffdHandler $path $image -InProcess:$false -AllowUser nobody-of-that-name -ErrorAction Stop } | Should -Throw -ErrorId 'UserNotFound,*'
        { Start-UffdHandler $path $image -InProcess:$false -User nobody-of-that-name -ErrorAction Stop } | Should -Throw -ErrorId 'UserNotFound,*'
        $null = Start-UffdHandler $path $image -InProcess:$false
        { Start-UffdHandler $path $image -InProcess:$false -ErrorAction Stop } | Should -Throw -ErrorId 'SocketInUse,*'
        @(Get-UffdHandler).Count | Should -Be 1
    }

    It 'waits with -Wait until all memory has come, and goes on' {
        Skip-UnlessSupported $userfaultfd
        $shell = [powershell]::Create()
        try {
            $null = $shell.AddScript({
                param($Manifest, $SocketPath, $MemoryPath)
                Import-Module $Manifest
                Start-UffdHandler $SocketPath $MemoryPath -Wait
            }).AddArgument($manifest).AddArgument($path).AddArgument($image)
            $running = $shell.BeginInvoke()
            $handler = Wait-Until { Get-UffdHandler } -PassThru
            New-MmapRegion 256KiB | Connect-UffdHandler $path
            $running.AsyncWaitHandle.WaitOne([timespan]::FromSeconds(60)) | Should -BeTrue
            $shell.EndInvoke($running).SocketPath | Should -Be $path
            $handler.State | Should -Be Serving
            $handler.GetFigures().IsRestored | Should -BeTrue
        }
        finally {
            $shell.Stop()
            $shell.Dispose()
        }
    }

    It 'goes on when -Wait is left with Ctrl+C' {
        $shell = [powershell]::Create()
        try {
            $null = $shell.AddScript({
                param($Manifest, $SocketPath, $MemoryPath)
                Import-Module $Manifest
                Start-UffdHandler $SocketPath $MemoryPath -Wait
            }).AddArgument($manifest).AddArgument($path).AddArgument($image)
            $null = $shell.BeginInvoke()
            $handler = Wait-Until { Get-UffdHandler } -PassThru
            $shell.Stop()
            $handler.State | Should -Be Listening
        }
        finally {
            $shell.Dispose()
        }
    }
}
