BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $kvm = Test-GuestMemorySupport Kvm
}

Describe 'Remove-GuestVm' {
    AfterEach {
        Clear-TestState
    }

    It 'ends a VM and gives its memory back' {
        Skip-UnlessSupported $kvm
        $region = New-MmapRegion 64KiB
        $vm = $region | New-GuestVm
        $vm | Remove-GuestVm
        Get-GuestVm | Should -BeNullOrEmpty
        $vm.IsDisposed | Should -BeTrue
        $vm | Out-String | Should -Match 'removed'
        $region | Write-GuestMemory 0 1
        $region | Remove-MmapRegion -ErrorAction Stop
    }

    It 'finds VMs by name and wildcards' {
        Skip-UnlessSupported $kvm
        'one', 'two', 'three' | ForEach-Object { $null = New-MmapRegion 64KiB | New-GuestVm $_ }
        Remove-GuestVm t*
        (Get-GuestVm).Name | Should -Be one
        Remove-GuestVm -Name one
        { Remove-GuestVm -Name one -ErrorAction Stop } | Should -Throw -ErrorId 'VmNotFound,*'
    }

    It 'does no harm to one that was removed' {
        Skip-UnlessSupported $kvm
        $vm = New-MmapRegion 64KiB | New-GuestVm
        $vm | Remove-GuestVm
        $vm | Remove-GuestVm -ErrorAction Stop
    }

    It 'removes nothing with -WhatIf' {
        Skip-UnlessSupported $kvm
        $vm = New-MmapRegion 64KiB | New-GuestVm
        $vm | Remove-GuestVm -WhatIf
        Get-GuestVm | Should -Be $vm
        $vm.IsDisposed | Should -BeFalse
    }

    It 'leaves no descriptor of KVM' {
        Skip-UnlessSupported $kvm
        $region = New-MmapRegion 64KiB
        $region | New-GuestVm | Remove-GuestVm
        $before = Get-DescriptorCount
        1..10 | ForEach-Object { $region | New-GuestVm | Remove-GuestVm }
        Get-DescriptorCount | Should -Be $before
    }

    It 'says that it gives nothing' {
        (Get-Command Remove-GuestVm).OutputType.Type | Should -Be ([void])
    }

    It 'completes names' {
        Skip-UnlessSupported $kvm
        $null = New-MmapRegion 64KiB | New-GuestVm web
        Get-Completion 'Remove-GuestVm ' | Should -Be web
        Get-Completion 'Remove-GuestVm -Name ' | Should -Be web
    }
}
