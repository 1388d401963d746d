BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force

    function Get-MappingCount {
        @([IO.File]::ReadLines("/proc/$PID/maps")).Where{ $_ -match 'guest_mem|\.img' }.Count
    }
}

Describe 'New-MmapRegion' {
    AfterEach {
        Clear-TestState
    }

    Context 'Anonymous memory' {
        It 'maps zeroed memory at a guest address and shows where' {
            $region = New-MmapRegion -Size 4MiB -GuestAddress 0x100000000 -Name ram
            $region | Should -BeOfType GuestMemory.Core.GuestRegionMmap
            $region.Name | Should -Be ram
            $region.GuestAddress | Should -BeExactly ([ulong] 0x100000000)
            $region.GuestAddress | Should -BeOfType ulong
            $region.LastAddress | Should -Be 0x1003FFFFF
            $region.Size | Should -Be 4MB
            $region.HostAddress | Should -BeGreaterThan 0
            $region.HostAddress | Should -BeOfType ulong
            $region.Protection | Should -Be ReadWrite
            $region.MapFlags | Should -Be 'Private, Anonymous, NoReserve'
            $region.BackingPath | Should -BeNullOrEmpty
            $region.FileOffset | Should -BeNullOrEmpty
            $region.DirtyTracking | Should -BeFalse
            $content = $region | Read-GuestMemory 0x100000000 4096 -Raw
            $content | Sort-Object -Unique | Should -Be 0
        }

        It 'starts at guest address 0 and numbers its regions where nothing else is said' {
            $first, $second = (New-MmapRegion 4KiB), (New-MmapRegion 4KiB 0x1000)
            $first.GuestAddress | Should -Be 0
            $first.Name | Should -Match '^mem\d+$'
            $second.Name | Should -Match '^mem\d+$'
            $second.Name | Should -Not -Be $first.Name
        }

        It 'takes <Text> as <Bytes> bytes' -ForEach @(
            @{ Text = '4096'; Bytes = 4096 }
            @{ Text = '0x3000'; Bytes = 12288 }
            @{ Text = '64KiB'; Bytes = 64KB }
            @{ Text = '1.5 MiB'; Bytes = 1.5MB }
            @{ Text = '2MB'; Bytes = 2MB }
        ) {
            (New-MmapRegion $Text).Size | Should -Be $Bytes
            (New-MmapRegion -Count $Text).Size | Should -Be $Bytes
            (New-MmapRegion -Length $Text).Size | Should -Be $Bytes
        }

        It 'keeps a size that is not whole pages' {
            $region = New-MmapRegion 5000
            $region.Size | Should -Be 5000
            $region.LastAddress | Should -Be 4999
        }

        It 'tracks writes with -DirtyTracking' {
            (New-MmapRegion 4KiB -DirtyTracking).DirtyTracking | Should -BeTrue
        }

        It 'takes protection and flags of its own' {
            $region = New-MmapRegion 4KiB -Protection Read -MapFlags Shared, Anonymous
            $region.Protection | Should -Be Read
            $region.MapFlags | Should -Be 'Shared, Anonymous'
        }

        It 'makes one region for each object of the pipeline' {
            $rows = @'
Name,GuestAddress,Size
low,0,64KiB
high,0x100000000,128KiB
'@ | ConvertFrom-Csv
            $regions = $rows | New-MmapRegion
            $regions.Name | Should -Be low, high
            $regions.GuestAddress | Should -Be 0, 0x100000000
            $regions.Size | Should -Be 64KB, 128KB
        }
    }

    Context 'Literals' {
        It 'means what the literal <Literal> says' -ForEach @(
            @{ Literal = '0x80000000'; Address = 2147483648ul }
            @{ Literal = '0xFFFFFFFF'; Address = 4294967295ul }
            @{ Literal = '0xFFFFFFFFFFFFE000'; Address = 18446744073709543424ul }
            @{ Literal = '"0xC0000000"'; Address = 3221225472ul }
            @{ Literal = '4294967296'; Address = 4294967296ul }
            @{ Literal = '3GiB'; Address = 3221225472ul }
        ) {
            # As typed: an expression would lose the text of the literal.
            $region = & ([scriptblock]::Create("New-MmapRegion 4KiB -GuestAddress $Literal"))
            $region.GuestAddress | Should -BeExactly $Address
            (& ([scriptblock]::Create("New-MmapRegion 4KiB $Literal"))).GuestAddress | Should -BeExactly $Address
        }

        It 'refuses a computed negative address and says what to write instead' {
            $computed = 0x80000000
            $failure = { New-MmapRegion 4KiB -GuestAddress $computed } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidData
            $failure.Exception.Message | Should -Match 'negative.*literal'
            { New-MmapRegion 4KiB -GuestAddress (0 - 4096) } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*'
            { New-MmapRegion (-1) } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*'
            Get-MmapRegion | Should -BeNullOrEmpty
        }

        It 'refuses <_> as a size' -ForEach 'plenty', '1.0001KiB', '17EiB', '', '18446744073709551616' {
            { New-MmapRegion $_ } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*'
            Get-MmapRegion | Should -BeNullOrEmpty
        }
    }

    Context 'Files' {
        BeforeEach {
            $path = "$TestDrive/vm.img"
            $bytes = Write-RandomFile $path 8192
        }

        It 'maps a file, and writes reach it' {
            $region = New-MmapRegion 8KiB -BackingPath $path
            $region.BackingPath | Should -Be $path
            $region.FileOffset | Should -Be 0
            $region.MapFlags | Should -Be 'Shared, NoReserve'
            $content = $region | Read-GuestMemory 0 8192 -Raw
            $content | Should -Be $bytes
            $region | Write-GuestMemory 0x10 'GuestMemory'
            [Text.Encoding]::ASCII.GetString([IO.File]::ReadAllBytes($path), 16, 11) | Should -Be 'GuestMemory'
        }

        It 'maps a file from an offset' {
            $region = New-MmapRegion 4KiB -BackingPath $path -FileOffset 4KiB
            $region.FileOffset | Should -Be 4096
            $content = $region | Read-GuestMemory 0 4096 -Raw
            $content | Should -Be $bytes[4096..8191]
        }

        It 'keeps writes out of the file with private flags' {
            $region = New-MmapRegion 8KiB -BackingPath $path -MapFlags Private
            $region | Write-GuestMemory 0 'GuestMemory'
            $region | Read-GuestMemory 0 11 -Encoding ascii | Should -Be 'GuestMemory'
            [IO.File]::ReadAllBytes($path) | Should -Be $bytes
        }

        It 'resolves a relative path by the location of the session' {
            Push-Location $TestDrive
            try {
                (New-MmapRegion 8KiB -BackingPath vm.img).BackingPath | Should -Be $path
                (New-MmapRegion 8KiB -BackingPath ./vm.img).BackingPath | Should -Be $path
            }
            finally {
                Pop-Location
            }
        }

        It 'maps whole files that come from Get-Item' {
            $region = Get-Item $path | New-MmapRegion -GuestAddress 0x1000
            $region.Size | Should -Be 8192
            $region.Name | Should -Be vm.img
            $region.BackingPath | Should -Be $path
        }

        It 'keeps one descriptor of the file, and none once it is removed' {
            $region = New-MmapRegion 8KiB -BackingPath $path
            @(Get-ChildItem "/proc/$PID/fd").Where{ $_.Target -eq $path } | Should -HaveCount 1
            $region | Remove-MmapRegion
            @(Get-ChildItem "/proc/$PID/fd").Where{ $_.Target -eq $path } | Should -BeNullOrEmpty
        }
    }

    Context 'memfd and huge pages' {
        It 'backs memory by a memfd' {
            $region = New-MmapRegion 1MiB -Memfd
            $region.BackingPath | Should -Be 'memfd:guest_mem'
            $region.MapFlags | Should -Be 'Shared, NoReserve'
            $region | Write-GuestMemory 0xFF000 'here'
            $region | Read-GuestMemory 0xFF000 4 -Encoding ascii | Should -Be here
        }

        It 'maps 2 MiB huge pages<Kind>' -ForEach @(@{ Kind = ''; Memfd = $false }, @{ Kind = ' of a memfd'; Memfd = $true }) {
            Invoke-WithHugePage 1 {
                $region = New-MmapRegion 2MiB -HugePageSize 2MiB -Memfd:$Memfd
                $region.IsHugetlbfs | Should -BeTrue
                $region.PageSize | Should -Be 2MB
                $region | Write-GuestMemory 0x1FFFF8 0x1122334455667788
                $region | Read-GuestMemory 0x1FFFF8 -As UInt64 | Should -Be 0x1122334455667788
                $region | Remove-MmapRegion
            }
        }
    }

    It 'gives an error, not the end of the shell, where the pool has no page for flags that ask for huge pages' {
        if (-not (Test-Path /sys/kernel/mm/hugepages/hugepages-2048kB)) {
            Set-ItResult -Skipped -Because 'this host has no huge pages of 2 MiB'
        }
        $free, $reserved, $overcommit = ('free', 'resv', 'nr_overcommit').ForEach{ [int] (Get-Content "/sys/kernel/mm/hugepages/hugepages-2048kB/${_}_hugepages") }
        if ($overcommit) {
            Set-ItResult -Skipped -Because 'the kernel makes 2 MiB pages on demand (nr_overcommit_hugepages)'
        }
        # Pages that are free are set aside for a region that is not touched: there is none for the other one.
        $others = $free -gt $reserved ? (New-MmapRegion "$(2 * ($free - $reserved))MiB" -HugePageSize 2MiB) : $null
        # In a shell of its own, since a signal would end it.
        $command = "Import-Module '$PSScriptRoot/../../GuestMemory.psd1'
            `$region = New-MmapRegion -Size 2MiB -MapFlags Private, Anonymous, NoReserve, HugeTlb, Huge2MB
            `$region.PageSize
            `$region | Write-GuestMemory 0 1 -ErrorAction SilentlyContinue -ErrorVariable failure
            `$failure.FullyQualifiedErrorId"
        $program, $arguments = Get-PowerShellCommand
        $output = & $program $arguments -NoProfile -NonInteractive -Command $command
        if ($others) { $others | Remove-MmapRegion }
        $output | Should -HaveCount 2
        $output[0] | Should -Be 2MB
        $output[1] | Should -BeLike 'PageNotAccessible,*'
    }

    Context 'Memory of another Xen domain' {
        It 'says that a host without Xen has none, and maps nothing: <Name>' -ForEach @(
            @{ Name = 'foreign'; Arguments = @{ XenForeign = $true; DomainId = 5; GuestAddress = 0x40000000; Size = '16MiB' } }
            @{ Name = 'granted'; Arguments = @{ XenGrant = $true; DomainId = 5; GrantReference = 8, 9, 10; Size = 12288 } }
            @{ Name = 'granted, by its address, on demand'; Arguments = @{ XenGrant = $true; DomainId = 5; GuestAddress = '0x8000000000005000'; Size = 8192; OnDemand = $true } }
        ) {
            if ((Test-GuestMemorySupport Xen).Supported) { Set-ItResult -Skipped -Because 'this host is a Xen domain' }
            $failure = { New-MmapRegion @Arguments -ErrorAction Stop } | Should -Throw -ErrorId 'XenUnsupported,*' -PassThru
            "$failure" | Should -BeLike '*This host is not a Xen domain: there is no /proc/xen and no /dev/xen, and /sys/hypervisor/type *'
            $failure.CategoryInfo.Category | Should -Be NotImplemented
            $failure.ErrorDetails.RecommendedAction | Should -BeLike '*Test-GuestMemorySupport*'
            Get-MmapRegion | Should -BeNullOrEmpty
        }

        It 'needs the domain, and mixes no kinds' {
            { New-MmapRegion 4KiB -XenForeign -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*' -ExpectedMessage '*needs -DomainId*'
            { New-MmapRegion 4KiB -XenGrant -GrantReference 8 -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*' -ExpectedMessage '*needs -DomainId*'
            { New-MmapRegion 4KiB -XenForeign -DomainId 5 -OnDemand } | Should -Throw -ErrorId 'AmbiguousParameterSet,*'
            { New-MmapRegion 4KiB -XenForeign -DomainId 5 -Memfd } | Should -Throw -ErrorId 'AmbiguousParameterSet,*'
        }

        It 'says what it would do with -WhatIf, on any host' {
            New-MmapRegion 12KiB -XenGrant -DomainId 5 -GrantReference 8, 9, 10 -WhatIf | Should -BeNullOrEmpty
            Get-MmapRegion | Should -BeNullOrEmpty
        }
    }

    Context 'Bad input' {
        BeforeAll {
            [IO.File]::WriteAllBytes("$TestDrive/short.img", [byte[]]::new(8192))
        }

        It 'refuses <What> with <Id>, and maps nothing' -ForEach @(
            @{ What = 'size 0'; Id = 'ZeroSize'; Category = 'InvalidArgument'; Arguments = @{ Size = 0 } }
            @{ What = 'size 0 of a memfd'; Id = 'ZeroSize'; Category = 'InvalidArgument'; Arguments = @{ Size = 0; Memfd = $true } }
            @{ What = 'size 0 of a file'; Id = 'ZeroSize'; Category = 'InvalidArgument'; Arguments = @{ Size = 0; BackingPath = 'short.img' } }
            @{ What = 'an offset within a page'; Id = 'UnalignedOffset'; Category = 'InvalidArgument'; Arguments = @{ Size = 4096; BackingPath = 'short.img'; FileOffset = 100 } }
            @{ What = 'a region that passes 2^64'; Id = 'InvalidGuestRegion'; Category = 'InvalidArgument'; Arguments = @{ Size = 8192; GuestAddress = '0xFFFFFFFFFFFFF000' } }
            @{ What = 'a file shorter than the mapping'; Id = 'MappingPastEof'; Category = 'InvalidData'; Arguments = @{ Size = 8193; BackingPath = 'short.img' } }
            @{ What = 'a mapping that its offset pushes past the end'; Id = 'MappingPastEof'; Category = 'InvalidData'; Arguments = @{ Size = 8192; BackingPath = 'short.img'; FileOffset = 4096 } }
            @{ What = 'an offset far past the end'; Id = 'MappingPastEof'; Category = 'InvalidData'; Arguments = @{ Size = 4096; BackingPath = 'short.img'; FileOffset = '8EiB' } }
            @{ What = 'a file that is not there'; Id = 'FileNotFound'; Category = 'ObjectNotFound'; Arguments = @{ Size = 4096; BackingPath = 'none.img' } }
            @{ What = 'a folder'; Id = 'NotAFile'; Category = 'InvalidArgument'; Arguments = @{ Size = 4096; BackingPath = '.' } }
            @{ What = 'a path of another provider'; Id = 'NotAFilePath'; Category = 'InvalidArgument'; Arguments = @{ Size = 4096; BackingPath = 'Env:/HOME' } }
            @{ What = 'MAP_FIXED'; Id = 'MapFixed'; Category = 'InvalidArgument'; Arguments = @{ Size = 4096; MapFlags = 'Private, Anonymous, Fixed' } }
            @{ What = 'a huge page size that no host has'; Id = 'HugePageSizeUnsupported'; Category = 'NotImplemented'; Arguments = @{ Size = '3MiB'; HugePageSize = '3MiB' } }
            @{ What = 'a size of huge pages without HugeTlb'; Id = 'ValueNotSupported'; Category = 'InvalidArgument'; Arguments = @{ Size = '2MiB'; MapFlags = 'Private, Huge2MB' } }
            @{ What = 'more than any address space holds'; Id = 'OutOfMemory'; Category = 'LimitsExceeded'; Arguments = @{ Size = '0x8000000000000000' } }
            @{ What = 'more than this address space holds'; Id = 'OutOfMemory'; Category = 'LimitsExceeded'; Arguments = @{ Size = '1EiB' } }
        ) {
            Push-Location $TestDrive
            try {
                $null = { New-MmapRegion @Arguments -ErrorAction Stop } | Should -Throw -PassThru
                $descriptors, $mappings = (Get-DescriptorCount), (Get-MappingCount)
                $failure = { New-MmapRegion @Arguments -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*" -PassThru
            }
            finally {
                Pop-Location
            }
            $failure.CategoryInfo.Category | Should -Be $Category
            $failure.Exception.Message | Should -Not -BeNullOrEmpty
            Get-MmapRegion | Should -BeNullOrEmpty
            Get-DescriptorCount | Should -BeLessOrEqual $descriptors
            Get-MappingCount | Should -BeLessOrEqual $mappings
        }

        It 'says how long the file is, and what helps' {
            $failure = { New-MmapRegion 16KiB -BackingPath "$TestDrive/short.img" -ErrorAction Stop } | Should -Throw -ErrorId 'MappingPastEof,*' -PassThru
            $failure.Exception.Message | Should -Match '8192 bytes.*truncate'
        }

        It 'says how to enlarge a pool of huge pages that is too small<Kind>' -ForEach @(@{ Kind = ''; Memfd = $false }, @{ Kind = ', of a memfd too'; Memfd = $true }) {
            if (-not (Test-Path /sys/kernel/mm/hugepages/hugepages-2048kB)) {
                Set-ItResult -Skipped -Because 'this host has no huge pages of 2 MiB'
            }
            $failure = { New-MmapRegion 1TiB -HugePageSize 2MiB -Memfd:$Memfd -ErrorAction Stop } | Should -Throw -ErrorId 'HugePagesExhausted,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be LimitsExceeded
            $failure.Exception.Message | Should -Match 'nr_hugepages'
            Get-MmapRegion | Should -BeNullOrEmpty
        }

        It 'refuses a name that is taken, whatever its case' {
            $first = New-MmapRegion 4KiB -Name ram
            $failure = { New-MmapRegion 4KiB -Name RAM -ErrorAction Stop } | Should -Throw -ErrorId 'NameInUse,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be ResourceExists
            Get-MmapRegion | Should -Be $first
        }

        It 'goes on after a bad row of the pipeline' {
            $rows = @{ Name = 'a'; Size = 4096 }, @{ Name = 'b'; Size = 0 }, @{ Name = 'c'; Size = 4096 } | ForEach-Object { [pscustomobject] $_ }
            $regions = $rows | New-MmapRegion -ErrorAction SilentlyContinue -ErrorVariable failures
            $regions.Name | Should -Be a, c
            $failures.FullyQualifiedErrorId | Should -BeLike 'ZeroSize,*'
        }

        It 'offers -BackingPath or -Memfd, not both' {
            { New-MmapRegion 4KiB -BackingPath x -Memfd } | Should -Throw -ErrorId 'AmbiguousParameterSet,*'
        }
    }

    It 'maps nothing with -WhatIf' {
        New-MmapRegion 4KiB -Name ram -WhatIf | Should -BeNullOrEmpty
        Get-MmapRegion | Should -BeNullOrEmpty
    }

    It 'shows addresses in hexadecimal, sizes with their unit and what is behind' {
        $view = New-MmapRegion 256MiB 0x100000000 -Name ram -DirtyTracking | Out-String -Width 200
        $view | Should -Match 'Name\s+GuestAddress\s+LastAddress\s+Size\s+Tracked\s+Backing'
        $view | Should -Match 'ram\s+0x100000000\s+0x10fffffff\s+256 MiB\s+Private\s+anonymous'
        New-MmapRegion 4KiB -Memfd | Out-String -Width 200 | Should -Match '0x00000000\s+0x00000fff\s+4 KiB\s+No\s+memfd:guest_mem'
    }

    It 'completes protections, flags and the huge page sizes of this host' {
        Get-Completion 'New-MmapRegion 4KiB -Protection Rea' | Should -Contain ReadWrite
        Get-Completion 'New-MmapRegion 4KiB -MapFlags Sha' | Should -Contain Shared
        if (Test-Path /sys/kernel/mm/hugepages/hugepages-2048kB) {
            Get-Completion 'New-MmapRegion 4KiB -HugePageSize ' | Should -Contain 2MiB
        }
    }

    It 'takes an empty name for none' {
        $regions = @{ Name = ''; Size = 4096 }, @{ Name = $null; Size = 4096 } | ForEach-Object { [pscustomobject] $_ } | New-MmapRegion
        $regions.Name | Should -Match '^mem\d+$'
    }

    It 'says that it gives regions' {
        (Get-Command New-MmapRegion).OutputType.Type | Should -Be @([GuestMemory.Core.GuestRegionMmap], [GuestMemory.Core.Xen.GuestRegionXen])
    }
}
