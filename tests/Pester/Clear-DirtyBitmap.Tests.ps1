BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Clear-DirtyBitmap' {
    BeforeEach {
        $low = New-MmapRegion 40KiB -Name low -DirtyTracking
        $high = New-MmapRegion 40KiB 0x100000000 -Name high -DirtyTracking
        $low, $high | Write-GuestMemory 0x1FFF -Bytes 1, 2
        $low, $high | Write-GuestMemory 0x100000000 3
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'makes every page of a region clean, and leaves the memory as it is' {
        Clear-DirtyBitmap -Memory $low | Should -BeNullOrEmpty
        ($low, $high | Get-DirtyBitmap).DirtyCount | Should -Be 0, 1
        ($low | Read-GuestMemory 0x1FFF 2).Bytes | Should -Be 1, 2
    }

    It 'takes every region of the pipeline' {
        Get-MmapRegion | Clear-DirtyBitmap
        (Get-MmapRegion | Get-DirtyBitmap).DirtyCount | Should -Be 0, 0
    }

    It 'takes an address space' {
        $low, $high | Write-GuestMemory 0 1 -PassThru | Clear-DirtyBitmap
        ($low, $high | Get-DirtyBitmap).DirtyCount | Should -Be 0, 0
    }

    It 'lets pages become dirty again' {
        $low | Clear-DirtyBitmap
        $low | Write-GuestMemory 0x3000 1
        ($low | Get-DirtyBitmap -AsRange).Address | Should -Be 0x3000
    }

    It 'clears a region''s part of a shared log, and no other' {
        $low, $high | Set-DirtyBitmap "$TestDrive/vm.log"
        $low | Clear-DirtyBitmap
        ($low, $high | Get-DirtyBitmap).DirtyCount | Should -Be 0, 1
        (Get-DirtyBitmap -LogPath "$TestDrive/vm.log" -AsRange).Address | Should -Be 0x100000000
        $high | Clear-DirtyBitmap
        (Get-DirtyBitmap -LogPath "$TestDrive/vm.log").DirtyCount | Should -Be 0
    }

    It 'clears nothing with -WhatIf' {
        Get-MmapRegion | Clear-DirtyBitmap -WhatIf
        (Get-MmapRegion | Get-DirtyBitmap).DirtyCount | Should -Be 2, 1
    }

    It 'says where a region has no bitmap, and clears the others' {
        $plain = New-MmapRegion 4KiB 0x80000000
        $low, $plain, $high | Clear-DirtyBitmap -ErrorAction SilentlyContinue -ErrorVariable failure
        $failure.FullyQualifiedErrorId | Should -BeLike 'DirtyTrackingOff,*'
        $failure.CategoryInfo.Category | Should -Be InvalidOperation
        $failure.TargetObject | Should -Be $plain
        ($low, $high | Get-DirtyBitmap).DirtyCount | Should -Be 0, 0
    }

    It 'refuses a region that was removed' {
        $low | Remove-MmapRegion
        { $low | Clear-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
    }

    It 'refuses a region of an address space that was removed, and clears the others' {
        $memory = $low, $high | Get-GuestMemory
        $low | Remove-MmapRegion
        $memory | Clear-DirtyBitmap -ErrorAction SilentlyContinue -ErrorVariable failure
        $failure.FullyQualifiedErrorId | Should -BeLike 'RegionDisposed,*'
        ($high | Get-DirtyBitmap).DirtyCount | Should -Be 0
    }

    It 'says so where no region came' {
        { Get-MmapRegion nothing* | Clear-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }

    It 'says that it gives nothing' {
        (Get-Command Clear-DirtyBitmap).OutputType.Type | Should -Be ([void])
    }
}
