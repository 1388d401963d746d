# What memory without a kernel says; tests/Integration/Kernel.Tests.ps1 has the processes of guests that run.
BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Get-GuestProcess' {
    BeforeEach {
        $region = New-MmapRegion 1MiB -Name vm
    }

    AfterEach {
        Clear-TestState
    }

    It 'says that there is no kernel' {
        $failure = { $region | Get-GuestProcess -ErrorAction Stop } | Should -Throw 'No Linux kernel was found in the memory (vm `[0x0-0xfffff`])*' -ErrorId 'KernelNotFound,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be ObjectNotFound
        $failure.ErrorDetails.RecommendedAction | Should -BeLike '*New-MmapRegion -GuestAddress*'
        { $region | Get-GuestProcess -Id 1 -ErrorAction Stop } | Should -Throw -ErrorId 'KernelNotFound,*'
    }

    It 'refuses what is no memory, and the like' {
        { 'text' | Get-GuestProcess -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        { Get-GuestProcess -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }

    It 'completes its parameters, and says what it gives' {
        Get-Completion 'Get-GuestProcess -Memory ' | Should -BeLike '*vm*'
        (Get-Command Get-GuestProcess).OutputType.Name | Should -Be GuestMemory.Core.Linux.GuestProcess
    }
}
