BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Get-GuestRegionUffdMapping' {
    AfterEach {
        Clear-TestState
    }

    Context 'Of regions' {
        BeforeEach {
            $low = New-MmapRegion 64KiB -Name low
            $high = New-MmapRegion 128KiB 0x100000000 -Name high
        }

        It 'lays the regions one behind the other in the image, in the order of guest addresses' {
            $mappings = $high, $low | Get-GuestRegionUffdMapping
            $mappings[0] | Should -BeOfType GuestMemory.Core.Userfault.GuestRegionUffdMapping
            $mappings.BaseHostVirtAddr | Should -Be $low.HostAddress, $high.HostAddress
            $mappings.Size | Should -Be 64KB, 128KB
            $mappings.Offset | Should -Be 0, 64KB
            $mappings.PageSize | Should -Be 4096, 4096
            $mappings.PageSizeKib | Should -Be 4096, 4096
        }

        It 'takes an address space' {
            $memory = $low, $high | Write-GuestMemory 0 1 -PassThru
            @(Get-GuestRegionUffdMapping -Memory $memory).Count | Should -Be 2
        }

        It 'gives the JSON of the hand-over with -AsJson' {
            $json = $low, $high | Get-GuestRegionUffdMapping -AsJson
            $json | Should -BeOfType string
            $json | Should -Be ('[{{"base_host_virt_addr":{0},"size":65536,"offset":0,"page_size":4096,"page_size_kib":4096}},{{"base_host_virt_addr":{1},"size":131072,"offset":65536,"page_size":4096,"page_size_kib":4096}}]' -f $low.HostAddress, $high.HostAddress)
        }

        It 'gives a list also for one region' {
            $low | Get-GuestRegionUffdMapping -AsJson | Should -Match '^\[\{.*\}\]$'
        }

        It 'describes 256 regions' {
            $regions = foreach ($i in 0..255) {
                New-MmapRegion 4KiB ([ulong] (0x200000000 + 0x2000 * $i))
            }
            $json = $regions | Get-GuestRegionUffdMapping -AsJson
            $mappings = Get-GuestRegionUffdMapping -Json $json
            $mappings.BaseHostVirtAddr | Should -Be $regions.HostAddress
            $mappings[255].Offset | Should -Be (255 * 4096)
        }

        It 'shows addresses in hexadecimal' {
            $low, $high | Get-GuestRegionUffdMapping | Out-String -Width 200 | Should -Match ('0x{0:x8}\s+128 KiB\s+0x00010000\s+4 KiB' -f $high.HostAddress)
        }
    }

    Context 'Of JSON' {
        It 'reads what -AsJson gave, up to the largest address' {
            $json = '[{"base_host_virt_addr":18446744073709547520,"size":4096,"offset":9223372036854775808,"page_size":4096,"page_size_kib":4096}]'
            $mapping = Get-GuestRegionUffdMapping -Json $json
            $mapping.BaseHostVirtAddr | Should -BeExactly 18446744073709547520ul
            $mapping.Offset | Should -BeExactly 9223372036854775808ul
            Get-GuestRegionUffdMapping -Json $json -AsJson | Should -BeExactly $json
        }

        It 'takes <What>' -ForEach @(
            @{ What = 'page_size_kib as bytes where page_size is missing'; Json = '[{"base_host_virt_addr":0,"size":2097152,"offset":0,"page_size_kib":2097152}]'; PageSize = 2MB }
            @{ What = 'page_size before page_size_kib'; Json = '[{"base_host_virt_addr":0,"size":4096,"offset":0,"page_size":4096,"page_size_kib":4}]'; PageSize = 4096 }
            @{ What = '4096 where no page size is said'; Json = '[{"base_host_virt_addr":0,"size":4096,"offset":0}]'; PageSize = 4096 }
            @{ What = 'members that it does not know'; Json = '[{"base_host_virt_addr":0,"size":4096,"offset":0,"page_size":4096,"slot":{"id":[1]}}]'; PageSize = 4096 }
        ) {
            (Get-GuestRegionUffdMapping -Json $Json).PageSize | Should -Be $PageSize
        }

        It 'refuses <What> with <Id>' -ForEach @(
            @{ What = 'text that is not JSON'; Id = 'HandoverBadJson'; Json = 'not json' }
            @{ What = 'JSON that breaks off'; Id = 'HandoverBadJson'; Json = '[{"base_host_virt_addr":0' }
            @{ What = 'an object'; Id = 'HandoverBadJson'; Json = '{"base_host_virt_addr":0,"size":4096,"offset":0}' }
            @{ What = 'null'; Id = 'HandoverBadJson'; Json = 'null' }
            @{ What = 'a list with null'; Id = 'HandoverBadJson'; Json = '[null]' }
            @{ What = 'a mapping without its size'; Id = 'HandoverBadJson'; Json = '[{"base_host_virt_addr":0,"offset":0}]' }
            @{ What = 'a negative size'; Id = 'HandoverBadJson'; Json = '[{"base_host_virt_addr":0,"size":-1,"offset":0}]' }
            @{ What = 'a fraction'; Id = 'HandoverBadJson'; Json = '[{"base_host_virt_addr":0,"size":4096.5,"offset":0}]' }
            @{ What = 'a number past 2^64'; Id = 'HandoverBadJson'; Json = '[{"base_host_virt_addr":18446744073709551616,"size":4096,"offset":0}]' }
            @{ What = 'a number as text'; Id = 'HandoverBadJson'; Json = '[{"base_host_virt_addr":"0","size":4096,"offset":0}]' }
            @{ What = 'JSON of 10 MB'; Id = 'HandoverTooLarge'; Json = '[' + ' ' * 10MB + ']' }
            @{ What = 'JSON of a thousand levels'; Id = 'HandoverBadJson'; Json = '[' * 1000 + ']' * 1000 }
        ) {
            $failure = { Get-GuestRegionUffdMapping -Json $Json -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*" -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidData
            $failure.Exception.Message | Should -Not -Match 'GuestMemory\.|WireMapping' -Because 'the sender knows no types of this library'
        }
    }

    It 'refuses a region that is not whole pages' {
        $odd = New-MmapRegion 5000 -Name odd
        $failure = { $odd | Get-GuestRegionUffdMapping -ErrorAction Stop } | Should -Throw -ErrorId 'UnalignedSize,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be InvalidArgument
        $failure.Exception.Message | Should -Match '5000.*4096'
    }

    It 'refuses regions that overlap' {
        { (New-MmapRegion 8KiB), (New-MmapRegion 8KiB 0x1000) | Get-GuestRegionUffdMapping -ErrorAction Stop } | Should -Throw -ErrorId 'MemoryRegionOverlap,*'
    }

    It 'says so where no region came' {
        { Get-MmapRegion nothing* | Get-GuestRegionUffdMapping -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }

    It 'says what it gives' {
        (Get-Command Get-GuestRegionUffdMapping).OutputType.Type | Should -Be ([GuestMemory.Core.Userfault.GuestRegionUffdMapping], [string])
    }
}
