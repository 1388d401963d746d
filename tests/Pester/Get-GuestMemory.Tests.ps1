BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Get-GuestMemory' {
    BeforeEach {
        $high = New-MmapRegion 64KiB 0x100000000 -Name high -DirtyTracking
        $low = New-MmapRegion 64KiB 0x1000 -Name low -DirtyTracking
        $next = New-MmapRegion 64KiB 0x11000 -Name next -DirtyTracking
    }

    AfterEach {
        Clear-TestState
    }

    It 'gathers regions, whatever order they come in' {
        $memory = $high, $low, $next | Get-GuestMemory
        $memory | Should -BeOfType GuestMemory.Core.GuestMemoryMmap
        @($memory).Count | Should -Be 1
        $memory.Regions.Name | Should -Be low, next, high
        $memory.Size | Should -Be 192KB
        $memory.LastAddress | Should -Be 0x10000FFFF
    }

    It 'takes regions as an argument' {
        (Get-GuestMemory -Memory $low, $high).Regions.Count | Should -Be 2
    }

    It 'gives memory that is read and written across regions' {
        $memory = Get-MmapRegion | Get-GuestMemory
        $memory | Write-GuestMemory 0x10FFE -Bytes 1, 2, 3, 4
        ($memory | Read-GuestMemory 0x10FFE 4).Bytes | Should -Be 1, 2, 3, 4
        ($memory | Get-DirtyBitmap -AsRange | ForEach-Object Address) | Should -Be 0x10000, 0x11000
        ($memory | Read-GuestMemory -Address 0x1000 -Size 128KiB -Raw).Length | Should -Be 128KB
    }

    It 'emits every address space by itself' {
        $first = $low, $next | Get-GuestMemory
        $second = $high | Get-GuestMemory
        $both = $first, $second | Get-GuestMemory
        $both.Count | Should -Be 2
        $both[1].Regions.Name | Should -Be high
    }

    It 'shows regions, first and last address and size' {
        $text = Get-MmapRegion | Get-GuestMemory | Out-String
        $text | Should -Match 'Regions\s+FirstAddress\s+LastAddress\s+Size'
        $text | Should -Match '3\s+0x00001000\s+0x10000ffff\s+192 KiB'
    }

    It 'is removed as a whole' {
        Get-MmapRegion | Get-GuestMemory | Remove-MmapRegion
        Get-MmapRegion | Should -BeNullOrEmpty
    }

    It 'refuses regions that overlap, and leaves them as they are' {
        $other = New-MmapRegion 4KiB 0x2000 -Name other
        $low, $other | Get-GuestMemory -ErrorAction SilentlyContinue -ErrorVariable failure | Should -BeNullOrEmpty
        $failure.FullyQualifiedErrorId | Should -BeLike 'MemoryRegionOverlap,*'
        $failure.CategoryInfo.Category | Should -Be InvalidArgument
        (Get-MmapRegion).Count | Should -Be 4
    }

    It 'refuses a region that was removed' {
        $low | Remove-MmapRegion
        { $low | Get-GuestMemory -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
    }

    It 'says so where no region came' {
        { Get-MmapRegion nothing* | Get-GuestMemory -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }
}
