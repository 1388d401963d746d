BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Import-DirtyBitmap' {
    BeforeEach {
        $region = New-MmapRegion 64KiB 0x100000000 -Name ram -DirtyTracking
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'gives bitmaps that combine with later ones' {
        $region | Write-GuestMemory 0x100001000 1
        $region | Get-DirtyBitmap | Export-DirtyBitmap "$TestDrive/before.dirty"
        $region | Write-GuestMemory 0x100003000 1
        $before = Import-DirtyBitmap "$TestDrive/before.dirty"
        $after = $region | Get-DirtyBitmap
        $before.Source | Should -Be "file $TestDrive/before.dirty"
        $after.Except($before).GetRanges() | ForEach-Object Address | Should -Be 0x100003000
        $after.And($before).DirtyCount | Should -Be 1
        $after.Or($before).DirtyCount | Should -Be 2
        $before.Shift(-0x100000000).GetRanges() | ForEach-Object Address | Should -Be 0x1000
        $before.Density | Should -Be (1 / 16)
    }

    It 'takes files from the pipeline, each with its own result' {
        foreach ($name in 'a', 'b') { $region | Get-DirtyBitmap | Export-DirtyBitmap "$TestDrive/$name.dirty" }
        Set-Content "$TestDrive/c.dirty" 'something else'
        $bitmaps = Get-ChildItem "$TestDrive/*.dirty" | Import-DirtyBitmap -ErrorAction SilentlyContinue -ErrorVariable failure
        $bitmaps.Count | Should -Be 2
        $failure.FullyQualifiedErrorId | Should -Be 'InvalidLog,GuestMemory.PowerShell.Commands.ImportDirtyBitmapCommand'
        $failure.CategoryInfo.Category | Should -Be InvalidData
        $failure.ErrorDetails.RecommendedAction | Should -Match 'Get-DirtyBitmap -LogPath'
    }

    It 'reads which pages a diff has' {
        $region | Write-GuestMemory 0x100002000 1
        $region | Export-GuestMemory "$TestDrive/vm.diff" -Format Diff
        (Import-DirtyBitmap "$TestDrive/vm.diff.dirty").GetRanges() | ForEach-Object Address | Should -Be 0x2000
    }

    It 'keeps what a process wrote at its high addresses' {
        $folder = (New-Item -ItemType Directory -Force "$TestDrive/program").FullName
        $process = Open-TrackedProcess $folder
        try {
            $tracking = Start-DirtyTracking $process.Id $process.Address $process.Size
            Invoke-TrackedProcess $process 'w 5'
            $tracking | Get-DirtyBitmap -Clear | Export-DirtyBitmap "$TestDrive/a.dirty"
            Invoke-TrackedProcess $process 'w 7'
            $both = (Import-DirtyBitmap "$TestDrive/a.dirty").Or(($tracking | Get-DirtyBitmap))
            $both.GetRanges().ForEach{ ($_.Address - $process.Address) / $process.PageSize } | Should -Be 5, 7
        }
        finally {
            $process.Kill()
        }
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'a file that does not exist'; Id = 'FileNotFound'; Path = '/nowhere/a.dirty' }
        @{ What = 'a device'; Id = 'NotAFile'; Path = '/dev/null' }
        @{ What = 'a path of another provider'; Id = 'NotAFilePath'; Path = 'env:a' }
    ) {
        { Import-DirtyBitmap $Path -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*"
    }
}
