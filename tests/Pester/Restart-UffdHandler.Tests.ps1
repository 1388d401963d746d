BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Restart-UffdHandler' {
    BeforeEach {
        $path = "$TestDrive/vm.sock"
        $content = Write-RandomFile "$TestDrive/vm.mem" 256KB
        $handler = Start-UffdHandler $path "$TestDrive/vm.mem" -InProcess:$false -Strategy OnDemand
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'has a new process serve the VMs, and figures go on' {
        Skip-UnlessSupported $userfaultfd
        $region = New-MmapRegion 256KiB
        $region | Connect-UffdHandler $path
        $null = $region | Read-GuestMemory 0 4KiB
        Wait-Until { $handler.FaultCount -eq 1 }
        $before = $handler.ProcessId
        Restart-UffdHandler $handler | Should -BeNullOrEmpty
        $handler.ProcessId | Should -Not -Be $before
        $handler.Id | Should -Be $handler.ProcessId
        $handler.FaultCount | Should -Be 1
        $handler.ConnectionCount | Should -Be 1
        $handler.WorkerCount | Should -Be 2
        [Convert]::ToHexString(($region | Read-GuestMemory 0 256KiB -Raw)) | Should -Be ([Convert]::ToHexString($content))
        Wait-Until { $handler.FaultCount -eq 64 }
        $handler.Error | Should -BeNullOrEmpty
        [object]::ReferenceEquals((Get-UffdHandler), $handler) | Should -BeTrue
        Get-UffdHandler -Id $handler.Id | Should -Be $handler
        Wait-Until { -not (Get-Process -Id $before -ErrorAction Ignore) }
    }

    It 'takes handlers from the pipeline, socket paths and wildcards' {
        $second = Start-UffdHandler "$TestDrive/second.sock" "$TestDrive/vm.mem" -InProcess:$false
        $before = $handler.Id, $second.Id
        $restarted = Get-UffdHandler | Restart-UffdHandler -PassThru
        $restarted | Should -HaveCount 2
        $restarted | Should -Contain $second
        $handler.Id, $second.Id | Should -Not -BeIn $before
        $before = $handler.Id, $second.Id
        Restart-UffdHandler -SocketPath "$TestDrive/sec*"
        $handler.Id | Should -Be $before[0]
        $second.Id | Should -Not -Be $before[1]
        $handler.State, $second.State | Should -Be Listening, Listening
    }

    It 'restarts nothing with -WhatIf' {
        $before = $handler.Id
        $handler | Restart-UffdHandler -WhatIf
        $handler.Id | Should -Be $before
    }

    It 'leaves the old process where there is too little time for the new one' {
        $before = $handler.Id
        $failure = { $handler | Restart-UffdHandler -Timeout 0.001 -ErrorAction Stop } | Should -Throw -ErrorId 'UpgradeFailed,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be InvalidOperation
        $failure.TargetObject | Should -Be $handler
        $handler.Id | Should -Be $before
        $handler.State | Should -Be Listening
    }

    It 'says that a handler is unknown, or has ended, or ends with its shell' {
        { Restart-UffdHandler -SocketPath "$TestDrive/none.sock" -ErrorAction Stop } | Should -Throw -ErrorId 'HandlerNotFound,*'
        $own = Start-UffdHandler "$TestDrive/own.sock" "$TestDrive/vm.mem" -InProcess
        { $own | Restart-UffdHandler -ErrorAction Stop } | Should -Throw -ErrorId 'UpgradeFailed,*'
        $own.State | Should -Be Listening
        $handler | Stop-UffdHandler
        { $handler | Restart-UffdHandler -ErrorAction Stop } | Should -Throw -ErrorId 'HandlerGone,*'
    }

    It 'completes socket paths' {
        Get-Completion 'Restart-UffdHandler -SocketPath ' | Should -Be $path
        Get-Completion 'Restart-UffdHandler ' | Should -Be $path
    }

    It 'says what it gives' {
        (Get-Command Restart-UffdHandler).OutputType.Type | Should -Be ([GuestMemory.Core.Userfault.UffdHandler])
    }
}
