BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Export-DirtyBitmap' {
    BeforeEach {
        $region = New-MmapRegion 1MiB 0x7f0000000000 -Name high -DirtyTracking
        $region | Write-GuestMemory 0x7f0000005000 1
        $bitmap = $region | Get-DirtyBitmap
    }

    AfterEach {
        Set-Location $PSScriptRoot
        Clear-TestState $TestDrive
    }

    It 'writes a file that Import-DirtyBitmap reads' {
        $bitmap | Export-DirtyBitmap "$TestDrive/a.dirty" | Should -BeNullOrEmpty
        $again = Import-DirtyBitmap "$TestDrive/a.dirty"
        $again.StartAddress | Should -BeExactly 0x7f0000000000ul
        $again.ByteSize | Should -Be 1MB
        $again.GetRanges() | ForEach-Object Address | Should -Be 0x7f0000005000
        (Get-ChildItem $TestDrive -Force).Name | Should -Be a.dirty
    }

    It 'emits the bitmap with -PassThru' {
        Export-DirtyBitmap "$TestDrive/a.dirty" -Bitmap $bitmap -PassThru | Should -Be $bitmap
    }

    It 'takes a path that is relative to the location' {
        $null = New-Item -ItemType Directory "$TestDrive/folder"
        Set-Location "$TestDrive/folder"
        $bitmap | Export-DirtyBitmap a.dirty
        "$TestDrive/folder/a.dirty" | Should -Exist
        (Import-DirtyBitmap a.dirty).DirtyCount | Should -Be 1
    }

    It 'does nothing with -WhatIf' {
        $bitmap | Export-DirtyBitmap "$TestDrive/a.dirty" -WhatIf
        "$TestDrive/a.dirty" | Should -Not -Exist
    }

    It 'replaces a file only with -Force' {
        $bitmap | Export-DirtyBitmap "$TestDrive/a.dirty"
        $region | Write-GuestMemory 0x7f0000008000 1
        $failure = { $region | Get-DirtyBitmap | Export-DirtyBitmap "$TestDrive/a.dirty" -ErrorAction Stop } | Should -Throw -ErrorId 'FileExists,*' -PassThru
        $failure.ErrorDetails.RecommendedAction | Should -Match '-Force'
        (Import-DirtyBitmap "$TestDrive/a.dirty").DirtyCount | Should -Be 1
        $region | Get-DirtyBitmap | Export-DirtyBitmap "$TestDrive/a.dirty" -Force
        (Import-DirtyBitmap "$TestDrive/a.dirty").DirtyCount | Should -Be 2
    }

    It 'writes one bitmap' {
        $bitmap, $bitmap | Export-DirtyBitmap "$TestDrive/a.dirty" -Force -ErrorAction SilentlyContinue -ErrorVariable failure
        $failure.FullyQualifiedErrorId | Should -Be 'ValueNotSupported,GuestMemory.PowerShell.Commands.ExportDirtyBitmapCommand'
        (Import-DirtyBitmap "$TestDrive/a.dirty").DirtyCount | Should -Be 1
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'a folder that does not exist'; Id = 'FileNotFound'; Path = 'nowhere/a.dirty' }
        @{ What = 'a folder'; Id = 'NotAFile'; Path = '' }
    ) {
        { $bitmap | Export-DirtyBitmap "$TestDrive/$Path" -Force -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*"
        Get-ChildItem $TestDrive -Force | Should -BeNullOrEmpty
    }

    It 'refuses a path of another provider' {
        { $bitmap | Export-DirtyBitmap env:a -ErrorAction Stop } | Should -Throw -ErrorId 'NotAFilePath,*'
    }
}
