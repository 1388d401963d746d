BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Stop-VhostUserBackend' {
    BeforeEach {
        $socket = "$TestDrive/disk.sock"
        $image = "$TestDrive/disk.img"
        $null = Write-RandomFile $image 64KB
        $backend = Start-VhostUserBackend $socket $image
    }

    AfterEach {
        if ($frontEnd) { $frontEnd.Dispose() }
        $frontEnd = $null
        Clear-TestState $TestDrive
    }

    It 'stops a back end and takes its socket away' {
        $backend | Stop-VhostUserBackend | Should -BeNullOrEmpty
        $backend.State | Should -Be Stopped
        $socket | Should -Not -Exist
        Get-VhostUserBackend | Should -BeNullOrEmpty
        (Start-VhostUserBackend $socket $image -ErrorAction Stop).State | Should -Be Listening
    }

    It 'finds back ends by name and wildcards' {
        Stop-VhostUserBackend n*
        Get-VhostUserBackend | Should -Be $backend
        Stop-VhostUserBackend DISK
        Get-VhostUserBackend | Should -BeNullOrEmpty
        { Stop-VhostUserBackend disk -ErrorAction Stop } | Should -Throw -ErrorId 'BackendNotFound,*'
    }

    It 'ends the connection, and warns that a VM loses its disk' {
        $frontEnd = Connect-FrontEnd $socket
        Wait-Until { $backend.State -eq 'Connected' }
        Stop-VhostUserBackend disk -WarningVariable warning -WarningAction SilentlyContinue
        "$warning" | Should -BeLike "Process $PID is connected*no disk*"
        $frontEnd.Receive([byte[]]::new(1)) | Should -Be 0
        { $backend | Read-GuestMemory 0 1 -ErrorAction Stop } | Should -Throw "*'disk', which was stopped*" -ErrorId 'VmNotFound,*'
    }

    It 'gives the back end with -PassThru, and has nothing to do for one that was stopped' {
        $backend | Stop-VhostUserBackend -PassThru | Should -Be $backend
        ($backend | Stop-VhostUserBackend -PassThru -ErrorAction Stop).State | Should -Be Stopped
    }

    It 'stops nothing with -WhatIf' {
        $backend | Stop-VhostUserBackend -WhatIf
        $backend.State | Should -Be Listening
    }

    It 'leaves no descriptor and no thread' {
        $backend | Stop-VhostUserBackend
        $before = Get-DescriptorCount
        1..10 | ForEach-Object {
            $backend = Start-VhostUserBackend $socket $image
            $frontEnd = Connect-FrontEnd $socket
            Wait-Until { $backend.State -eq 'Connected' }
            $backend | Stop-VhostUserBackend -WarningAction Ignore
            $frontEnd.Dispose()
        }
        Get-DescriptorCount | Should -Be $before
        Wait-Until { -not (Get-NamedThread 'vhost-*') }
    }

    It 'completes names' {
        Get-Completion 'Stop-VhostUserBackend ' | Should -Be disk
        Get-Completion 'Stop-VhostUserBackend d' | Should -Be disk
        Get-Completion 'Stop-VhostUserBackend -Name ' | Should -Be disk
    }
}
