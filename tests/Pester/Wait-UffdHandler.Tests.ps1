BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Wait-UffdHandler' {
    BeforeEach {
        $path = "$TestDrive/vm.sock"
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", [byte[]]::new(64KB))
    }

    AfterEach {
        Clear-TestState
    }

    Context 'A handler <Where>' -ForEach @(
        @{ Where = 'of this shell'; InProcess = $true }
        @{ Where = 'in a process of its own'; InProcess = $false }
    ) {
        BeforeEach {
            $handler = Start-UffdHandler $path "$TestDrive/vm.mem" -InProcess:$InProcess
        }

        It 'is waited for until it has stopped' {
            $stopping = [powershell]::Create()
            try {
                $null = $stopping.AddScript({ param($Handler) Start-Sleep -Milliseconds 300; $Handler.Stop() }).AddArgument($handler)
                $running = $stopping.BeginInvoke()
                ($handler | Wait-UffdHandler -Timeout 60).State | Should -Be Stopped
                $null = $stopping.EndInvoke($running)
            }
            finally {
                $stopping.Dispose()
            }
        }

        It 'is not waited for longer than was said' {
            $failure = { Wait-UffdHandler $handler -Timeout 0.2 -ErrorAction Stop } | Should -Throw -ErrorId 'WaitTimeout,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be OperationTimeout
            $handler.State | Should -Be Listening
        }

        It 'is waited for until a VM is served, has all its memory, and has gone' {
            Skip-UnlessSupported $userfaultfd
            $region = New-MmapRegion 64KiB
            $region | Connect-UffdHandler $path
            (Wait-UffdHandler -SocketPath $path -Until Serving -Timeout 60).ConnectionCount | Should -Be 1
            ($handler | Wait-UffdHandler -Until Restored -Timeout 60).GetFigures().PercentPresent | Should -Be 100
            $region | Remove-MmapRegion -Force
            ($handler | Wait-UffdHandler -Until Idle -Timeout 60).ConnectionCount | Should -Be 0
        }

        It 'that has ended can only be waited for to have ended' {
            $handler | Stop-UffdHandler
            ($handler | Wait-UffdHandler).State | Should -Be Stopped
            { $handler | Wait-UffdHandler -Until Serving -ErrorAction Stop } | Should -Throw -ErrorId 'HandlerFailed,*'
        }

        It 'is left with Ctrl+C' {
            $shell = [powershell]::Create()
            try {
                $null = $shell.AddScript({ param($Manifest, $Handler) Import-Module $Manifest; $Handler | Wait-UffdHandler }).
                    AddArgument((Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path).AddArgument($handler)
                $null = $shell.BeginInvoke()
                Start-Sleep -Milliseconds 500
                $shell.Stop()
                $shell.InvocationStateInfo.State | Should -Be Stopped
                $handler.State | Should -Be Listening
            }
            finally {
                $shell.Dispose()
            }
        }
    }

    It 'says that a handler is unknown' {
        { Wait-UffdHandler -SocketPath "$TestDrive/none.sock" -ErrorAction Stop } | Should -Throw -ErrorId 'HandlerNotFound,*'
    }

    It 'completes what can be waited for' {
        Get-Completion 'Wait-UffdHandler -Until Re' | Should -Be Restored
        $null = Start-UffdHandler $path "$TestDrive/vm.mem"
        Get-Completion 'Wait-UffdHandler ' | Should -Be $path
    }

    It 'says what it gives' {
        (Get-Command Wait-UffdHandler).OutputType.Type | Should -Be ([GuestMemory.Core.Userfault.UffdHandler])
    }
}
