# What memory without a kernel says; tests/Integration/Kernel.Tests.ps1 has the kernels of guests that run.
BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Get-GuestKernel' {
    BeforeEach {
        $region = New-MmapRegion 4MiB -Name vm
    }

    AfterEach {
        Clear-TestState
    }

    It 'says that there is no kernel, and what may be wrong' {
        $failure = { $region | Get-GuestKernel -ErrorAction Stop } | Should -Throw -ErrorId 'KernelNotFound,*' -PassThru
        "$failure" | Should -BeLike 'No Linux kernel was found in the memory (vm `[0x0-0x3fffff`])*VMCOREINFO*'
        $failure.CategoryInfo.Category | Should -Be ObjectNotFound
        $failure.ErrorDetails.RecommendedAction | Should -BeLike '*New-MmapRegion -GuestAddress*'
    }

    It 'says why what looks like a kernel is none: <What>' -ForEach @(
        @{ What = 'another architecture'; Lines = 'SYMBOL(swapper_pg_dir)=c0000000', 'SYMBOL(init_uts_ns)=c0000000', 'SYMBOL(_stext)=c0000000'; Text = '*neither for x86-64 nor for aarch64*' }
        @{ What = 'a page table outside the memory'; Lines = 'SYMBOL(swapper_pg_dir)=ffffffff92c10000', 'SYMBOL(init_uts_ns)=ffffffff92df9b60', 'SYMBOL(_stext)=ffffffff91200000', 'NUMBER(phys_base)=0'; Text = '*PML4*lies outside the memory*' }
        @{ What = 'an empty page table'; Lines = 'SYMBOL(swapper_pg_dir)=ffffffff80010000', 'SYMBOL(init_uts_ns)=ffffffff92df9b60', 'SYMBOL(_stext)=ffffffff91200000', 'NUMBER(phys_base)=0'; Text = '*entry 511 of the PML4 at guest address 0x10000 is not present*' }
        @{ What = 'a number that is none'; Lines = 'SYMBOL(swapper_pg_dir)=zz', 'SYMBOL(init_uts_ns)=1', 'SYMBOL(_stext)=1', 'NUMBER(phys_base)=0'; Text = '*neither VMCOREINFO nor*' }
        @{ What = 'the last addresses'; Lines = 'SYMBOL(swapper_pg_dir)=ffffffffffffffff', 'SYMBOL(init_uts_ns)=ffffffffffffffff', 'SYMBOL(_stext)=ffffffffffffffff', 'NUMBER(kimage_voffset)=0x0', 'NUMBER(TCR_EL1_T1SZ)=0x10'; Text = '*lies outside the memory*' }
        @{ What = 'page sizes that there are not'; Lines = 'SYMBOL(swapper_pg_dir)=1', 'SYMBOL(init_uts_ns)=1', 'SYMBOL(_stext)=1', 'NUMBER(kimage_voffset)=0x0', 'PAGESIZE=12345'; Text = '*neither VMCOREINFO nor*' }
        @{ What = 'no line of its own'; Lines = , 'SYMBOL(swapper_pg_dir)'; Text = '*neither VMCOREINFO nor*' }
    ) {
        $region | Write-GuestMemory 0x3000 (('OSRELEASE=6.1', 'BUILD-ID=00' + $Lines) -join "`n")
        # The same, so that it reaches into the end of the memory.
        $region | Write-GuestMemory 0x3ffff0 'OSRELEASE=6.1'
        { $region | Get-GuestKernel -ErrorAction Stop } | Should -Throw $Text -ErrorId 'KernelNotFound,*'
    }

    It 'refuses what is no memory, and the like' {
        { 'text' | Get-GuestKernel -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        { Get-GuestKernel -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }

    It 'completes its parameters, and says what it gives' {
        Get-Completion 'Get-GuestKernel -Memory ' | Should -BeLike '*vm*'
        (Get-Command Get-GuestKernel).OutputType.Name | Should -Be GuestMemory.Core.Linux.GuestKernel, GuestMemory.Core.Linux.GuestSymbol
    }
}
