BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $pwsh = @(Get-PowerShellCommand)
    # Requests of vhost-user, and features of virtio-blk.
    $getFeatures, $setProtocolFeatures, $getQueueNum = 1, 16, 17
    $mq, $isReadOnly = 1, 0x20ul
}

Describe 'Start-VhostUserBackend' {
    BeforeEach {
        $socket = "$TestDrive/disk.sock"
        $image = "$TestDrive/disk.img"
        $null = Write-RandomFile $image 1MB
    }

    AfterEach {
        if ($frontEnd) { $frontEnd.Dispose() }
        $frontEnd = $null
        Clear-TestState $TestDrive
    }

    It 'listens, for this user alone, and says what it provides' {
        $backend = Start-VhostUserBackend $socket $image
        $backend | Should -BeOfType GuestMemory.Core.VhostUser.VhostUserDisk
        [IO.File]::GetUnixFileMode($socket) | Should -Be 'UserWrite, UserRead'
        $backend.Name | Should -Be disk
        $backend.State | Should -Be Listening
        $backend.SocketPath | Should -Be $socket
        $backend.ImagePath | Should -Be $image
        $backend.Size | Should -Be 1MB
        $backend.IsReadOnly | Should -BeFalse
        $backend.QueueCount | Should -Be 16
        $backend.ProcessId | Should -BeNullOrEmpty
        $backend.Error | Should -BeNullOrEmpty
        $backend.MemorySize, $backend.ConnectionCount | Should -Be 0, 0
        $backend.IsLogging | Should -BeFalse
        (Get-Command Start-VhostUserBackend).OutputType.Type | Should -Be $backend.GetType()
    }

    It 'takes paths of the session, also from the pipeline' {
        Push-Location $TestDrive
        try {
            $backend = Get-Item disk.img | Start-VhostUserBackend disk.sock
        }
        finally {
            Pop-Location
        }
        $backend.SocketPath, $backend.ImagePath | Should -Be $socket, $image
    }

    It 'provides <Queues> virtqueues, and a disk that is <Kind>' -ForEach @(
        @{ Queues = 16; Kind = 'written'; Given = @{}; Feature = 0 }
        @{ Queues = 1; Kind = 'written'; Given = @{ QueueCount = 1 }; Feature = 0 }
        @{ Queues = 256; Kind = 'read'; Given = @{ QueueCount = 256; ReadOnly = $true }; Feature = 0x20 }
    ) {
        $backend = Start-VhostUserBackend $socket $image @Given
        $backend.QueueCount | Should -Be $Queues
        $frontEnd = Connect-FrontEnd $socket
        (Send-VhostUser $frontEnd $getFeatures -HasReply) -band $isReadOnly | Should -Be $Feature
        Send-VhostUser $frontEnd $setProtocolFeatures $mq
        Send-VhostUser $frontEnd $getQueueNum -HasReply | Should -Be $Queues
    }

    It 'opens the image for <Access>' -ForEach @{ Access = 'reading alone'; ReadOnly = $true; Mode = 0 }, @{ Access = 'reading and writing'; ReadOnly = $false; Mode = 2 } {
        $null = Start-VhostUserBackend $socket $image -ReadOnly:$ReadOnly
        $descriptor = @([IO.Directory]::GetFileSystemEntries("/proc/$PID/fd")).Where{ [IO.FileInfo]::new($_).LinkTarget -eq $image }
        $descriptor.Count | Should -Be 1
        $flags = (Get-Content "/proc/$PID/fdinfo/$(Split-Path -Leaf $descriptor[0])") -match '^flags:' -replace '\D'
        [Convert]::ToInt32($flags, 8) -band 3 | Should -Be $Mode
    }

    It 'is connected to one front end at a time, and refuses a second one' {
        $backend = Start-VhostUserBackend $socket $image
        $frontEnd = Connect-FrontEnd $socket
        Wait-Until { $backend.State -eq 'Connected' }
        $backend.ProcessId | Should -Be $PID
        $second = Connect-FrontEnd $socket
        $second.Receive([byte[]]::new(1)) | Should -Be 0 -Because 'the back end closes it'
        $second.Dispose()
        Wait-Until { $backend.Error }
        $backend.Error | Should -BeLike "*$PID*refused*$PID is connected*"
        Send-VhostUser $frontEnd $getFeatures -HasReply | Should -BeGreaterThan 0 -Because 'the first one goes on'
        $backend.ConnectionCount | Should -Be 1
        $frontEnd.Dispose()
        Wait-Until { $backend.State -eq 'Listening' }
        $frontEnd = Connect-FrontEnd $socket
        Send-VhostUser $frontEnd $getFeatures -HasReply | Should -BeGreaterThan 0
        $backend.ConnectionCount | Should -Be 2
    }

    It 'outlives a front end that sends nonsense, and says so' {
        $backend = Start-VhostUserBackend $socket $image
        $frontEnd = Connect-FrontEnd $socket
        $null = $frontEnd.Send([byte[]] (, 255 * 12))
        Wait-Until { $backend.Error }
        Wait-Until { $backend.State -eq 'Listening' }
        $frontEnd.Dispose()
        $frontEnd = Connect-FrontEnd $socket
        Send-VhostUser $frontEnd $getFeatures -HasReply | Should -BeGreaterThan 0
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'a path where one listens'; Id = 'SocketInUse'; Make = { $null = Start-VhostUserBackend $socket $image; Start-VhostUserBackend $socket $image -ErrorAction Stop } }
        @{ What = 'a path that is a file'; Id = 'NotASocket'; Make = { Start-VhostUserBackend $image $image -ErrorAction Stop } }
        @{ What = 'a folder that is not there'; Id = 'SocketNotFound'; Make = { Start-VhostUserBackend "$TestDrive/none/disk.sock" $image -ErrorAction Stop } }
        @{ What = 'a path that is too long'; Id = 'SocketPathTooLong'; Make = { Start-VhostUserBackend ('/tmp/' + 'x' * 200) $image -ErrorAction Stop } }
        @{ What = 'a folder of everyone'; Id = 'InsecureDirectory'; Make = { $null = New-Item -ItemType Directory "$TestDrive/open"; chmod 777 "$TestDrive/open"; Start-VhostUserBackend "$TestDrive/open/disk.sock" $image -ErrorAction Stop } }
        @{ What = 'a user that is none'; Id = 'UserNotFound'; Make = { Start-VhostUserBackend $socket $image -AllowUser no-such-user -ErrorAction Stop } }
        @{ What = 'an image that is not there'; Id = 'ImageNotFound'; Make = { Start-VhostUserBackend $socket "$TestDrive/none.img" -ErrorAction Stop } }
        @{ What = 'a folder in place of an image'; Id = 'ImageUnreadable'; Make = { Start-VhostUserBackend $socket $TestDrive -ErrorAction Stop } }
        @{ What = 'a pipe in place of an image'; Id = 'ImageUnreadable'; Make = { mkfifo "$TestDrive/pipe"; Start-VhostUserBackend $socket "$TestDrive/pipe" -ReadOnly -ErrorAction Stop } }
        @{ What = 'an empty image'; Id = 'ImageUnreadable'; Make = { Resize-File $image 0; Start-VhostUserBackend $socket $image -ErrorAction Stop } }
        @{ What = 'an image with half a sector'; Id = 'InvalidImage'; Make = { Resize-File $image 1000; Start-VhostUserBackend $socket $image -ErrorAction Stop } }
        @{ What = 'an image of another provider'; Id = 'NotAFilePath'; Make = { Start-VhostUserBackend $socket env:HOME -ErrorAction Stop } }
        @{ What = 'a name that is taken'; Id = 'NameInUse'; Make = { $null = Start-VhostUserBackend $socket $image -Name WEB; Start-VhostUserBackend "$TestDrive/b.sock" $image -Name web -ErrorAction Stop } }
        @{ What = 'no virtqueue'; Id = 'ParameterArgumentValidationError'; Make = { Start-VhostUserBackend $socket $image -QueueCount 0 } }
        @{ What = '300 virtqueues'; Id = 'ParameterArgumentValidationError'; Make = { Start-VhostUserBackend $socket $image -QueueCount 300 } }
    ) {
        $before = Get-DescriptorCount
        $Make | Should -Throw -ErrorId "$Id,*"
        Get-VhostUserBackend | Stop-VhostUserBackend
        Get-DescriptorCount | Should -Be $before
        Get-ChildItem $TestDrive -Recurse -Filter *.sock | Should -BeNullOrEmpty
    }

    It 'says what length an image needs' {
        Resize-File $image 1000
        { Start-VhostUserBackend $socket $image -ErrorAction Stop } | Should -Throw '*has 1000 bytes*truncate -s %512*'
    }

    It 'names back ends after their sockets, each another' {
        $null = New-Item -ItemType Directory "$TestDrive/b"
        (Start-VhostUserBackend $socket $image).Name | Should -Be disk
        (Start-VhostUserBackend "$TestDrive/b/disk.sock" $image).Name | Should -Be disk-2
        (Start-VhostUserBackend "$TestDrive/b/data.sock" $image -Name web).Name | Should -Be web
    }

    It 'starts nothing with -WhatIf' {
        Start-VhostUserBackend $socket $image -WhatIf | Should -BeNullOrEmpty
        $socket | Should -Not -Exist
        Get-VhostUserBackend | Should -BeNullOrEmpty
    }

    It 'ends with the module, and says so' {
        $text = "Import-Module '$manifest'; `$backend = Start-VhostUserBackend '$socket' '$image'; Remove-Module GuestMemory; " +
            "`"state=`$(`$backend.State) socket=`$(Test-Path '$socket')`""
        $output = & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command $text 2>&1 | Out-String
        $output | Should -Match 'WARNING: GuestMemory: 1 vhost-user back end\(s\)'
        $output | Should -Match 'state=Stopped socket=False'
    }

    It 'ends with the shell' {
        $text = "Import-Module '$manifest'; `$null = Start-VhostUserBackend '$socket' '$image'; Test-Path '$socket'; exit 7"
        & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command $text 2>&1 | Should -Be True
        $LASTEXITCODE | Should -Be 7
        $socket | Should -Not -Exist
    }

    It 'waits with -Wait until it is stopped' {
        $shell = [powershell]::Create()
        try {
            $null = $shell.AddScript('param($Manifest, $Socket, $Image) Import-Module $Manifest; Start-VhostUserBackend $Socket $Image -Wait').AddArgument($manifest).AddArgument($socket).AddArgument($image)
            $running = $shell.BeginInvoke()
            $backend = Wait-Until { Get-VhostUserBackend } -PassThru
            $running.IsCompleted | Should -BeFalse
            $backend | Stop-VhostUserBackend
            $shell.EndInvoke($running).State | Should -Be Stopped
        }
        finally {
            $shell.Dispose()
        }
    }

    It 'stops with Ctrl+C where it waits' {
        $shell = [powershell]::Create()
        try {
            $null = $shell.AddScript('param($Manifest, $Socket, $Image) Import-Module $Manifest; Start-VhostUserBackend $Socket $Image -Wait').AddArgument($manifest).AddArgument($socket).AddArgument($image)
            $null = $shell.BeginInvoke()
            $null = Wait-Until { Get-VhostUserBackend } -PassThru
            $shell.Stop()
            Get-VhostUserBackend | Should -BeNullOrEmpty
            $socket | Should -Not -Exist
        }
        finally {
            $shell.Dispose()
        }
    }
}
