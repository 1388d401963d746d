BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Get-MmapRegion' {
    BeforeEach {
        $high = New-MmapRegion 4KiB 0x100000000 -Name high
        $low = New-MmapRegion 4KiB -Name low
        $rom = New-MmapRegion 4KiB 0xFFFC0000 -Name 'boot rom'
    }

    AfterEach {
        Clear-TestState
    }

    It 'lists every region of the shell by guest address' {
        (Get-MmapRegion).Name | Should -Be low, 'boot rom', high
    }

    It 'gives the very objects that New-MmapRegion gave' {
        [object]::ReferenceEquals((Get-MmapRegion high), $high) | Should -BeTrue
    }

    It 'finds regions by name, whatever the case' {
        (Get-MmapRegion -Name LOW).Name | Should -Be low
        (Get-MmapRegion low, high).Name | Should -Be low, high
    }

    It 'finds regions by wildcards' {
        (Get-MmapRegion *o*).Name | Should -Be low, 'boot rom'
        Get-MmapRegion none* | Should -BeNullOrEmpty
    }

    It 'takes names from the pipeline' {
        ('high', 'low' | Get-MmapRegion).Name | Should -Be high, low
        ([pscustomobject] @{ Name = 'low' } | Get-MmapRegion).Name | Should -Be low
    }

    It 'says that a name is unknown, and goes on' {
        $found = Get-MmapRegion none, low -ErrorAction SilentlyContinue -ErrorVariable failure
        $found.Name | Should -Be low
        $failure.FullyQualifiedErrorId | Should -BeLike 'RegionNotFound,*'
        $failure.CategoryInfo.Category | Should -Be ObjectNotFound
        $failure.TargetObject | Should -Be none
    }

    It 'forgets what was removed' {
        $low | Remove-MmapRegion
        (Get-MmapRegion).Name | Should -Be 'boot rom', high
        $low.IsDisposed | Should -BeTrue
    }

    It 'completes names and quotes them where that is needed' {
        Get-Completion 'Get-MmapRegion -Name ' | Should -Be low, "'boot rom'", high
        Get-Completion 'Get-MmapRegion hi' | Should -Be high
    }

    It 'shows a table with hexadecimal addresses' {
        $view = Get-MmapRegion | Out-String -Width 200
        $view | Should -Match 'boot rom\s+0xfffc0000\s+0xfffc0fff\s+4 KiB\s+No\s+anonymous'
        $view | Should -Match 'high\s+0x100000000\s+0x100000fff'
    }

    It 'says that it gives regions' {
        (Get-Command Get-MmapRegion).OutputType.Type | Should -Be @([GuestMemory.Core.GuestRegionMmap], [GuestMemory.Core.Xen.GuestRegionXen], [GuestMemory.Core.Images.GuestRegionImage], [GuestMemory.Core.Processes.GuestRegionProcess])
    }
}
