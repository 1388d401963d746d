BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $kvm = Test-GuestMemorySupport Kvm
}

Describe 'New-GuestVm' {
    BeforeEach {
        $low = New-MmapRegion 64KiB -Name low
        $high = New-MmapRegion 1MiB 0x100000000 -Name high
    }

    AfterEach {
        Clear-TestState
    }

    It 'makes a VM of the regions that are piped to it' {
        Skip-UnlessSupported $kvm
        $vm = $high, $low | New-GuestVm
        $vm | Should -BeOfType GuestMemory.Core.VmControl.GuestVm
        $vm.Name | Should -BeLike 'vm*'
        $vm.Memory.Size | Should -Be (64KB + 1MB)
        $vm.Slots.Slot | Should -Be 0, 1
        $vm.Slots.GuestAddress | Should -Be 0, 0x100000000
        $vm.Slots.Size | Should -Be 64KB, 1MB
        $vm.Slots.IsBase | Should -Be $true, $true
        $vm.Slots.LogDirtyPages | Should -Be $false, $false
    }

    It 'makes a VM of an address space' {
        Skip-UnlessSupported $kvm
        $memory = $low, $high | Get-GuestMemory
        ($memory | New-GuestVm).Memory | Should -Be $memory
    }

    It 'gives names, and takes each once' {
        Skip-UnlessSupported $kvm
        ($low | New-GuestVm first).Name | Should -Be first
        { $high | New-GuestVm -Name FIRST -ErrorAction Stop } | Should -Throw -ErrorId 'NameInUse,*'
        @(Get-GuestVm).Count | Should -Be 1
    }

    It 'keeps its regions from being removed' {
        Skip-UnlessSupported $kvm
        $vm = $low | New-GuestVm
        $failure = { $low | Remove-MmapRegion -ErrorAction Stop } | Should -Throw -ErrorId 'RegionInUse,*' -PassThru
        $failure.Exception.Message | Should -Match "VM $($vm.Name)"
        $low | Write-GuestMemory 0x1000 1
        $low | Remove-MmapRegion -Force
        $vm.Slots.Count | Should -Be 0
    }

    It 'logs what the guest writes with -DirtyTracking, by <_>' -ForEach ManualProtect, InitiallySet, Plain, Ring {
        Skip-UnlessSupported $kvm
        if ($_ -eq 'Ring') { Skip-UnlessSupported (Test-GuestMemorySupport Kvm:DirtyRing) }
        if ($_ -in 'ManualProtect', 'InitiallySet') { Skip-UnlessSupported (Test-GuestMemorySupport Kvm:ManualDirtyLogProtect) }
        $vm = $low, $high | New-GuestVm -DirtyTracking -DirtyLog $_
        $vm.DirtyLog | Should -Be $_
        $vm.Slots.LogDirtyPages | Should -Be $true, $true
    }

    It 'refuses <What> with <Id>, and holds nothing' -ForEach @(
        @{ What = 'a region of parts of pages'; Id = 'UnalignedSize'; Make = { New-MmapRegion 5000 0x200000000 } }
        @{ What = 'an address inside a page'; Id = 'NotPageAligned'; Make = { New-MmapRegion 4096 0x200000800 } }
        @{ What = 'regions that overlap'; Id = 'MemoryRegionOverlap'; Make = { New-MmapRegion 4096 0x8000 } }
    ) {
        Skip-UnlessSupported $kvm
        $low, $high, (& $Make) | New-GuestVm -ErrorAction SilentlyContinue -ErrorVariable failure
        $failure[0].FullyQualifiedErrorId | Should -BeLike "$Id,*"
        $failure[0].CategoryInfo.Category | Should -Be InvalidArgument
        Get-GuestVm | Should -BeNullOrEmpty
        Get-MmapRegion | Remove-MmapRegion -ErrorAction Stop
    }

    It 'refuses a ring of an impossible size' {
        Skip-UnlessSupported $kvm
        { $low | New-GuestVm -DirtyLog Ring -DirtyRingEntries 1000 -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        { $low | New-GuestVm -DirtyLog Ring -DirtyRingEntries 0 -ErrorAction Stop } | Should -Throw -ErrorId 'ParameterArgumentValidationError,*'
    }

    It 'says so where no region came' {
        { Get-MmapRegion nothing* | New-GuestVm -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }

    It 'makes nothing with -WhatIf' {
        $low | New-GuestVm -WhatIf | Should -BeNullOrEmpty
        Get-GuestVm | Should -BeNullOrEmpty
    }

    It 'shows the VM and its slots' {
        Skip-UnlessSupported $kvm
        $vm = $low, $high | New-GuestVm shown -DirtyTracking
        $vm | Out-String | Should -Match 'Name\s+Memory\s+Slots\s+Logged[\s-]+shown\s+1\.1 MiB\s+2 ManualProtect'
        $vm.Slots | Out-String | Should -Match '1\s+0x100000000\s+0x1000fffff\s+1 MiB\s+False\s+True\s+base'
    }

    It 'says what it gives' {
        (Get-Command New-GuestVm).OutputType.Type | Should -Be ([GuestMemory.Core.VmControl.GuestVm])
    }
}
