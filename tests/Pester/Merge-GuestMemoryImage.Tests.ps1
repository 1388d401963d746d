BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Merge-GuestMemoryImage' {
    BeforeEach {
        # A base, and two diffs of what was written later.
        $region = New-MmapRegion 1MiB -Name ram -DirtyTracking
        $region | Write-GuestMemory 0x1000 'base'
        $region | Export-GuestMemory "$TestDrive/vm.mem"
        $region | Clear-DirtyBitmap
        $region | Write-GuestMemory 0x1000 'first'
        $region | Write-GuestMemory 0x5000 'five'
        $region | Export-GuestMemory "$TestDrive/1.diff" -Format Diff
        $region | Write-GuestMemory 0x1000 ([byte[]]::new(16))
        $region | Export-GuestMemory "$TestDrive/2.diff" -Format Diff
        $region | Export-GuestMemory "$TestDrive/now.mem"
        $now = (Get-FileHash "$TestDrive/now.mem").Hash
        $before = (Get-FileHash "$TestDrive/vm.mem").Hash
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'writes diffs into their base, in their order' {
        Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/1.diff", "$TestDrive/2.diff" | Should -BeNullOrEmpty
        (Get-FileHash "$TestDrive/vm.mem").Hash | Should -Be $now
    }

    It 'writes a new file with -OutPath, and leaves the base as it is' {
        $info = Get-ChildItem "$TestDrive/?.diff" | Merge-GuestMemoryImage "$TestDrive/vm.mem" -OutPath "$TestDrive/new.mem" -PassThru
        $info | Should -BeOfType GuestMemory.Core.Images.ImageInfo
        $info.Path | Should -Be "$TestDrive/new.mem"
        $info.PageCount | Should -Be 3
        (Get-FileHash "$TestDrive/new.mem").Hash | Should -Be $now
        (Get-FileHash "$TestDrive/vm.mem").Hash | Should -Be $before
        stat -c %a "$TestDrive/new.mem" | Should -Be 600
        Import-GuestMemory "$TestDrive/new.mem" -Layout Flat | Read-GuestMemory 0x5000 4 -Encoding ascii | Should -Be five
    }

    It 'replaces a file only with -Force' {
        Set-Content "$TestDrive/new.mem" mine -NoNewline
        $failure = { Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/1.diff" -OutPath "$TestDrive/new.mem" -ErrorAction Stop } | Should -Throw -ErrorId 'FileExists,*' -PassThru
        $failure.ErrorDetails.RecommendedAction | Should -Match '-Force'
        Get-Content "$TestDrive/new.mem" | Should -Be mine
        Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/1.diff", "$TestDrive/2.diff" -OutPath "$TestDrive/new.mem" -Force
        (Get-FileHash "$TestDrive/new.mem").Hash | Should -Be $now
    }

    It 'changes nothing with -WhatIf' {
        Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/1.diff" -WhatIf
        Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/1.diff" -OutPath "$TestDrive/new.mem" -WhatIf
        (Get-FileHash "$TestDrive/vm.mem").Hash | Should -Be $before
        "$TestDrive/new.mem" | Should -Not -Exist
    }

    It 'refuses a diff of another memory' {
        New-MmapRegion 64KiB 0x10000000 -DirtyTracking | Write-GuestMemory 0x10000000 1 -PassThru | Export-GuestMemory "$TestDrive/other.diff" -Format Diff
        $failure = { Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/1.diff", "$TestDrive/other.diff" -ErrorAction Stop } | Should -Throw -ErrorId 'BaseSizeMismatch,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be InvalidData
        (Get-FileHash "$TestDrive/vm.mem").Hash | Should -Be $before
    }

    It 'refuses a diff whose pages cannot be told, but for -Force' {
        Remove-Item "$TestDrive/1.diff.dirty"
        cp --sparse=never "$TestDrive/1.diff" "$TestDrive/dense.diff"
        $failure = { Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/dense.diff" -ErrorAction Stop } | Should -Throw -ErrorId 'LayerUntrusted,*' -PassThru
        $failure.ErrorDetails.RecommendedAction | Should -Match 'FILE.dirty'
        (Get-FileHash "$TestDrive/vm.mem").Hash | Should -Be $before
        # Its holes tell.
        Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/1.diff", "$TestDrive/2.diff"
        (Get-FileHash "$TestDrive/vm.mem").Hash | Should -Be $now
        Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/dense.diff" -Force
        (Get-FileHash "$TestDrive/vm.mem").Hash | Should -Be (Get-FileHash "$TestDrive/dense.diff").Hash
    }

    It 'does not write a base that a handler serves' {
        Skip-UnlessSupported (Test-GuestMemorySupport Userfaultfd)
        $null = Start-UffdHandler "$TestDrive/base.sock" "$TestDrive/vm.mem"
        $failure = { Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/1.diff" -ErrorAction Stop } | Should -Throw -ErrorId 'ImageInUse,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be ResourceBusy
        (Get-FileHash "$TestDrive/vm.mem").Hash | Should -Be $before
        Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/1.diff", "$TestDrive/2.diff" -OutPath "$TestDrive/new.mem"
        (Get-FileHash "$TestDrive/new.mem").Hash | Should -Be $now
    }

    It 'does not write a base that is imported' {
        $null = Import-GuestMemory "$TestDrive/vm.mem"
        { Merge-GuestMemoryImage "$TestDrive/vm.mem" "$TestDrive/1.diff" -ErrorAction Stop } | Should -Throw -ErrorId 'ImageInUse,*'
    }

    It 'merges nothing where one of the paths is none' {
        { 'env:HOME', "$TestDrive/1.diff" | Merge-GuestMemoryImage "$TestDrive/vm.mem" -ErrorAction Stop } | Should -Throw -ErrorId 'NotAFilePath,*'
        'env:HOME', "$TestDrive/1.diff" | Merge-GuestMemoryImage "$TestDrive/vm.mem" -ErrorAction SilentlyContinue
        (Get-FileHash "$TestDrive/vm.mem").Hash | Should -Be $before
    }
}
