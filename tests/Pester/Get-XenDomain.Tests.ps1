# What this host without Xen says; tests/Integration/Xen.Tests.ps1 has the domains of a real one.
BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $xen = Test-GuestMemorySupport Xen
}

Describe 'Get-XenDomain' {
    It 'says that <Command> needs a Xen domain, and what was looked for' -ForEach @(
        @{ Command = 'Get-XenDomain'; Arguments = @{} }
        @{ Command = 'Get-XenDomain web'; Arguments = @{ Name = 'web' } }
        @{ Command = 'Get-XenDomain -Id 0'; Arguments = @{ Id = 0 } }
    ) {
        if ($xen.Supported) { Set-ItResult -Skipped -Because 'this host is a Xen domain' }
        $failure = { Get-XenDomain @Arguments -ErrorAction Stop } | Should -Throw -ErrorId 'XenUnsupported,*' -PassThru
        "$failure" | Should -BeLike '*This host is not a Xen domain: there is no /proc/xen and no /dev/xen, and /sys/hypervisor/type *'
        $failure.CategoryInfo.Category | Should -Be NotImplemented
    }

    It 'offers nothing where there is nothing, and fails at nothing' {
        if ($xen.Supported) { Set-ItResult -Skipped -Because 'this host is a Xen domain' }
        Get-Completion 'Get-XenDomain -Name ' | Should -BeNullOrEmpty
        Get-Completion 'Get-XenDomain -Id ' | Should -BeNullOrEmpty
    }

    It 'says what it gives' {
        (Get-Command Get-XenDomain).OutputType.Type | Should -Be ([GuestMemory.Core.Xen.XenDomain])
    }
}
