BeforeAll {
    # As in an admin's shell; the build stops at errors.
    $ErrorActionPreference = 'Continue'
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Get-VhostUserBackend' {
    BeforeEach {
        $null = Write-RandomFile "$TestDrive/disk.img" 64KB
        $web = Start-VhostUserBackend "$TestDrive/web.sock" "$TestDrive/disk.img"
        $db = Start-VhostUserBackend "$TestDrive/db.sock" "$TestDrive/disk.img" -ReadOnly
    }

    AfterEach {
        if ($frontEnd) { $frontEnd.Dispose() }
        $frontEnd = $null
        Clear-TestState $TestDrive
    }

    It 'lists the back ends, the very objects' {
        Get-VhostUserBackend | Should -Be $db, $web
        (Get-Command Get-VhostUserBackend).OutputType.Type | Should -Be $web.GetType()
    }

    It 'finds them by name and wildcards' {
        Get-VhostUserBackend WEB | Should -Be $web
        Get-VhostUserBackend w*, db | Should -Be $web, $db
        'web' | Get-VhostUserBackend | Should -Be $web
        Get-VhostUserBackend none* | Should -BeNullOrEmpty
        $failure = { Get-VhostUserBackend none -ErrorAction Stop } | Should -Throw -ErrorId 'BackendNotFound,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be ObjectNotFound
    }

    It 'completes names' {
        Get-Completion 'Get-VhostUserBackend ' | Should -Be db, web
        Get-Completion 'Get-VhostUserBackend w' | Should -Be web
    }

    It 'shows what is provided, and who is connected' {
        $frontEnd = Connect-FrontEnd $web.SocketPath
        Wait-Until { $web.State -eq 'Connected' }
        $shown = Get-VhostUserBackend | Out-String -Width 250
        $shown | Should -Match "Name\s+State\s+Size\s+Process\s+Memory\s+Log\s+SocketPath"
        $shown | Should -Match "(?m)^db\s+Listening\s+64 KiB\s+$([regex]::Escape($db.SocketPath))"
        $shown | Should -Match "(?m)^web\s+Connected\s+64 KiB\s+$PID\s+$([regex]::Escape($web.SocketPath))"
        $shown | Should -Match 'disk\.img \(read-only\)'
    }

    It 'is no memory while no VM is connected: <_>' -ForEach 'Read-GuestMemory 0 16', 'Write-GuestMemory 0 1', "Export-GuestMemory '/nowhere/vm.mem'", 'Get-GuestMemory', 'Clear-DirtyBitmap', 'Set-DirtyBitmap -Private',
        'Get-DirtyBitmap -Clear', 'Watch-DirtyBitmap -SampleCount 1', 'Measure-DirtyRate -Duration 0.1' {
        $failures = & ([scriptblock]::Create("Get-VhostUserBackend web | $_")) 2>&1
        @($failures).Count | Should -Be 1
        $failures.FullyQualifiedErrorId | Should -BeLike 'VmNotFound,*'
        "$failures" | Should -BeLike "No VM is connected to the back end 'web'*"
        $frontEnd = Connect-FrontEnd $web.SocketPath
        Wait-Until { $web.State -eq 'Connected' }
        $failures = & ([scriptblock]::Create("Get-VhostUserBackend web | $_")) 2>&1
        $failures.FullyQualifiedErrorId | Should -BeLike 'VmNotFound,*'
        "$failures" | Should -BeLike "Process $PID, which is connected*has not shared*"
    }

    It 'is refused where its memory must stay the front end''s: <_>' -ForEach @(
        'Remove-MmapRegion -Force', 'New-GuestVm', 'Get-GuestRegionUffdMapping'
    ) {
        $failures = & ([scriptblock]::Create("Get-VhostUserBackend web | $_")) 2>&1
        @($failures).Count | Should -Be 1
        $failures.FullyQualifiedErrorId | Should -BeLike 'ValueNotSupported,*'
        "$failures" | Should -BeLike "*back end 'web' can be read (Read-GuestMemory)*"
    }
}
