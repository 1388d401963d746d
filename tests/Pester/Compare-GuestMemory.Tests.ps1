BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Compare-GuestMemory' {
    BeforeEach {
        $image = Join-Path $TestDrive "$([guid]::NewGuid()).mem"
        $vm = New-MmapRegion 1MiB -Name vm
        $vm | Write-GuestMemory 0x1000 'as it was'
        $vm | Export-GuestMemory $image
        $then = New-MmapRegion 1MiB -BackingPath $image -Protection Read -Name then
    }

    AfterEach {
        Clear-TestState
    }

    It 'gives nothing where nothing differs' {
        $vm | Compare-GuestMemory -With $then | Should -BeNullOrEmpty
        ($vm | Compare-GuestMemory -With $then -Summary).AreEqual | Should -BeTrue
    }

    It 'gives the pages that differ, as ranges' {
        $vm | Write-GuestMemory 0x1005 'X'
        $vm | Write-GuestMemory 0x8FFF 'XY'
        $found = @($vm | Compare-GuestMemory $then)
        $found | Should -BeOfType GuestMemory.Core.MemoryDifference
        $found | ForEach-Object Address | Should -Be 0x1000, 0x8000
        $found.Size | Should -Be 0x1000, 0x2000
        $found.DifferentBytes | Should -Be 1, 2
        $found.Kind | Should -Be Content, Content
    }

    It 'gives the very bytes with -Granularity 1' {
        $vm | Write-GuestMemory 0x8FFF 'XYZ'
        $found = $vm | Compare-GuestMemory $then -Granularity 1
        $found.Address | Should -BeExactly 0x8FFFul
        $found.LastAddress | Should -BeExactly 0x9001ul
        $found.DifferentBytes | Should -BeExactly 3ul
    }

    It 'gives the sums with -Summary' {
        $vm | Write-GuestMemory 0x1005 'X'
        $more = New-MmapRegion 4KiB 0x100000000 -Name more
        $sum = $vm, $more | Compare-GuestMemory $then -Summary
        $sum | Should -BeOfType GuestMemory.Core.MemoryComparisonSummary
        $sum.AreEqual | Should -BeFalse
        $sum.ComparedSize | Should -BeExactly 1048576ul
        $sum.DifferentBytes | Should -BeExactly 1ul
        $sum.DifferentSize | Should -BeExactly 4096ul
        $sum.RangeCount | Should -Be 1
        $sum.OnlyInFirst | Should -BeExactly 4096ul
        $sum.OnlyInSecond | Should -BeExactly 0ul
    }

    It 'compares whole address spaces too' {
        $memory = $vm | Write-GuestMemory 0x1005 'X' -PassThru
        ($memory | Compare-GuestMemory -With ($then | Get-GuestMemory)).Address | Should -BeExactly 0x1000ul
    }

    It 'shows addresses, sizes and how many bytes differ' {
        $vm | Write-GuestMemory 0x1005 'X'
        $lines = ($vm | Compare-GuestMemory $then | Out-String -Width 120).Trim() -split "`n"
        $lines[0] | Should -Match '^ *Address +LastAddress +Size +Different +Kind'
        $lines[2] | Should -Match '^ *0x00001000 +0x00001fff +4 KiB +1 B +Content'
    }

    It 'refuses a granularity that is no power of two, and what is not memory' {
        { $vm | Compare-GuestMemory $then -Granularity 3 -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        { $vm | Compare-GuestMemory -With then -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        { Compare-GuestMemory -With $then -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }
}
