BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $kvm = Test-GuestMemorySupport Kvm
}

Describe 'Get-GuestVm' {
    BeforeEach {
        if ($kvm.Supported) {
            $first = New-MmapRegion 64KiB | New-GuestVm first
            $second = New-MmapRegion 64KiB | New-GuestVm second
        }
    }

    AfterEach {
        Clear-TestState
    }

    It 'lists the VMs of the shell, the very objects' {
        Skip-UnlessSupported $kvm
        Get-GuestVm | Should -Be $first, $second
    }

    It 'finds them by name and wildcards' {
        Skip-UnlessSupported $kvm
        Get-GuestVm SECOND | Should -Be $second
        Get-GuestVm f*, s* | Should -Be $first, $second
        'first' | Get-GuestVm | Should -Be $first
        Get-GuestVm none* | Should -BeNullOrEmpty
        { Get-GuestVm none -ErrorAction Stop } | Should -Throw -ErrorId 'VmNotFound,*'
    }

    It 'completes names' {
        Skip-UnlessSupported $kvm
        Get-Completion 'Get-GuestVm s' | Should -Be second
    }

    It 'says what it gives' {
        (Get-Command Get-GuestVm).OutputType.Type | Should -Be ([GuestMemory.Core.VmControl.GuestVm])
    }
}
