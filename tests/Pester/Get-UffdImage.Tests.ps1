BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Get-UffdImage' {
    BeforeEach {
        Skip-UnlessSupported $userfaultfd
        $null = Write-RandomFile "$TestDrive/web.mem" 64KB
        $null = Write-RandomFile "$TestDrive/db.mem" 64KB
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'lists the images of a handler <Where>' -ForEach @(
        @{ Where = 'in this shell'; InProcess = $true }
        @{ Where = 'in a process of its own'; InProcess = $false }
    ) {
        Get-UffdImage | Should -BeNullOrEmpty
        $handler = Start-UffdHandler -Image @{ web = "$TestDrive/web.mem"; db = "$TestDrive/db.mem" } -SocketDirectory $TestDrive -Strategy OnDemand -InProcess:$InProcess
        $handler.SocketPath | Should -BeNullOrEmpty
        $handler.MemoryPath | Should -BeNullOrEmpty
        $handler.Images.Name | Should -Be 'db', 'web'
        New-MmapRegion 64KiB | Connect-UffdHandler "$TestDrive/web.sock"
        Wait-Until { $handler.ConnectionCount -eq 1 }
        $images = Get-UffdImage
        $images | Should -BeOfType GuestMemory.Core.Userfault.UffdImage
        $images.Name | Should -Be 'db', 'web'
        $images.SocketPath | Should -Be "$TestDrive/db.sock", "$TestDrive/web.sock"
        $images.MemoryPath | Should -Be "$TestDrive/db.mem", "$TestDrive/web.mem"
        $images.ConnectionCount | Should -Be 0, 1
        (Get-UffdImage W*).Name | Should -Be 'web'
        ($handler | Get-UffdImage db).Name | Should -Be 'db'
        Get-UffdImage x* | Should -BeNullOrEmpty
        { Get-UffdImage none -ErrorAction Stop } | Should -Throw -ErrorId 'UffdImageNotFound,*'
        Get-Completion 'Get-UffdImage ' | Should -Be 'db', 'web'
        $text = Get-UffdImage | Out-String -Width 160
        $text | Should -Match 'Name\s+State\s+VMs MemoryPath\s+SocketPath'
        $text | Should -Match "web\s+Serving\s+1 $([regex]::Escape("$TestDrive/web.mem"))"
        Get-UffdHandler | Out-String -Width 160 | Should -Match '2 images'
        (Get-UffdVm).Image | Should -Be 'web'
        (Get-UffdVm).Name | Should -Be 'web-1'
        (Get-UffdHandler "$TestDrive/db.sock").Id | Should -Be $handler.Id
        (Get-UffdHandler "$TestDrive/w*.sock").Id | Should -Be $handler.Id
        Stop-UffdHandler -SocketPath "$TestDrive/db.sock" -WarningAction SilentlyContinue
        Get-UffdImage | Should -BeNullOrEmpty
        Test-Path "$TestDrive/*.sock" | Should -BeFalse
    }

    It 'takes images with what is their own' {
        $record = "$TestDrive/web.rec"
        $handler = Start-UffdHandler -Image ([ordered]@{ web = @{ MemoryPath = Get-Item "$TestDrive/web.mem"; SocketPath = "$TestDrive/a.sock"; RecordPath = $record }; db = "$TestDrive/db.mem" }) -SocketDirectory $TestDrive
        $handler.Strategy | Should -Be OnDemand
        ($handler.Images | ForEach-Object { $_.Name, $_.SocketPath, $_.RecordPath }) | Should -Be 'web', "$TestDrive/a.sock", $record, 'db', "$TestDrive/db.sock", $null
    }

    It 'refuses <What>' -ForEach @(
        @{ What = 'an image without a socket'; Make = { Start-UffdHandler -Image @{ web = "$TestDrive/web.mem" } -ErrorAction Stop } }
        @{ What = 'an image without a file'; Make = { Start-UffdHandler -Image @{ web = @{ Layer = "$TestDrive/web.mem" } } -SocketDirectory $TestDrive -ErrorAction Stop } }
        @{ What = 'what no image has'; Make = { Start-UffdHandler -Image @{ web = @{ MemoryPath = "$TestDrive/web.mem"; Color = 'red' } } -SocketDirectory $TestDrive -ErrorAction Stop } }
        @{ What = 'a record of all images'; Make = { Start-UffdHandler -Image @{ web = "$TestDrive/web.mem" } -SocketDirectory $TestDrive -RecordPath "$TestDrive/r" -ErrorAction Stop } }
    ) {
        $Make | Should -Throw -ErrorId 'ValueNotSupported,*'
        Get-UffdHandler | Should -BeNullOrEmpty
        Test-Path "$TestDrive/*.sock" | Should -BeFalse
    }
}
