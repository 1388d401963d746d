BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'New-VmMemoryRequest' {
    BeforeAll {
        $handles = [System.Collections.Generic.List[System.Runtime.InteropServices.SafeHandle]]
        $uuid = '00010203-0405-0607-0809-0a0b0c0d0eff'
    }

    BeforeEach {
        $memfd = New-MmapRegion 64KiB 0x100000000 -Memfd -Name memfd
        $anonymous = New-MmapRegion 64KiB -Name anonymous
        [IO.File]::WriteAllBytes("$TestDrive/file", [byte[]]::new(12KB))
    }

    AfterEach {
        Clear-TestState
    }

    It 'makes <Json>, and ConvertTo-Json gives exactly that' -ForEach @(
        @{ Make = { New-VmMemoryRequest -PrepareSharedMemoryRegion -Alloc PciBar:00:03.0/2 }; Json = '{"PrepareSharedMemoryRegion":{"alloc":{"PciBar":{"bus":0,"dev":3,"func":0,"bar":2}},"cache":"CacheCoherent"}}' }
        @{ Make = { New-VmMemoryRequest -PrepareSharedMemoryRegion -Alloc Pstore -Cache CacheNonCoherent }; Json = '{"PrepareSharedMemoryRegion":{"alloc":"Pstore","cache":"CacheNonCoherent"}}' }
        @{ Make = { New-VmMemoryRequest -PrepareSharedMemoryRegion -Alloc Anon:18446744073709551615 }; Json = '{"PrepareSharedMemoryRegion":{"alloc":{"Anon":18446744073709551615},"cache":"CacheCoherent"}}' }
        @{ Make = { New-VmMemoryRequest -RegisterMemory -Source $memfd }; Json = '{"RegisterMemory":{"source":{"Descriptor":{"descriptor":0,"offset":0,"size":65536}},"dest":{"GuestPhysicalAddress":4294967296},"prot":{"read":true,"write":true},"cache":"CacheCoherent"}}' }
        @{ Make = { New-VmMemoryRequest -RegisterMemory -Source "$TestDrive/file" -Offset 4KiB -Size 8KiB -Destination PciBar:00:03.0/2 }; Json = '{"RegisterMemory":{"source":{"Descriptor":{"descriptor":0,"offset":4096,"size":8192}},"dest":{"ExistingAllocation":{"allocation":{"PciBar":{"bus":0,"dev":3,"func":0,"bar":2}},"offset":0}},"prot":{"read":true,"write":true},"cache":"CacheCoherent"}}' }
        @{ Make = { New-VmMemoryRequest -RegisterMemory -Source $memfd -SourceType SharedMemory -Protection Read -Cache CacheNonCoherent -Destination PciBar:00:1f.7/5+64KiB }; Json = '{"RegisterMemory":{"source":{"SharedMemory":{"descriptor":0,"size":65536}},"dest":{"ExistingAllocation":{"allocation":{"PciBar":{"bus":0,"dev":31,"func":7,"bar":5}},"offset":65536}},"prot":{"read":true,"write":false},"cache":"CacheNonCoherent"}}' }
        @{ Make = { New-VmMemoryRequest -RegisterMemory -Source 0xFFFFFFFFFFFFF000 -SourceType ExternalMapping -Size 4KiB -Destination 0xFFFFFFFFFFFFF000 -Protection None }; Json = '{"RegisterMemory":{"source":{"ExternalMapping":{"ptr":18446744073709547520,"size":4096}},"dest":{"GuestPhysicalAddress":18446744073709547520},"prot":{"read":false,"write":false},"cache":"CacheCoherent"}}' }
        @{ Make = { New-VmMemoryRequest -RegisterMemory -Source 0 -SourceType Vulkan -HandleType 1 -MemoryIdx 2 -DeviceUuid $uuid -DriverUuid ([byte[]]::new(16)) -Size 4096 -Destination 0 }; Json = '{"RegisterMemory":{"source":{"Vulkan":{"descriptor":0,"handle_type":1,"memory_idx":2,"device_uuid":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,255],"driver_uuid":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],"size":4096}},"dest":{"GuestPhysicalAddress":0},"prot":{"read":true,"write":true},"cache":"CacheCoherent"}}' }
        @{ Make = { New-VmMemoryRequest -MmapAndRegisterMemory -SharedMemory $memfd -Destination 8GiB -FileMapping @{ File = "$TestDrive/file" }, @{ file = $memfd; mem_offset = 16KB; length = '4KiB'; file_offset = '0x1000' } }; Json = '{"MmapAndRegisterMemory":{"shm":{"descriptor":0,"size":65536},"dest":{"GuestPhysicalAddress":8589934592},"num_file_mappings":2}}' }
        @{ Make = { New-VmMemoryRequest -DynamicallyFreeMemoryRanges -Range 0x1000+8KiB, 0x100000+4KiB }; Json = '{"DynamicallyFreeMemoryRanges":{"ranges":[[4096,8192],[1048576,4096]]}}' }
        @{ Make = { New-VmMemoryRequest -DynamicallyReclaimMemoryRanges -Range $anonymous }; Json = '{"DynamicallyReclaimMemoryRanges":{"ranges":[[0,65536]]}}' }
        @{ Make = { New-VmMemoryRequest -DynamicallyReclaimMemoryRanges -Range @() }; Json = '{"DynamicallyReclaimMemoryRanges":{"ranges":[]}}' }
        @{ Make = { New-VmMemoryRequest -BalloonTargetReached -Size 256MiB }; Json = '{"BalloonTargetReached":{"size":268435456}}' }
        @{ Make = { New-VmMemoryRequest -UnregisterMemory -RegionId 0x100000000 }; Json = '{"UnregisterMemory":4294967296}' }
        @{ Make = { New-VmMemoryRequest -IoEventRaw -Event 0 -Address 0x1000 -Datamatch U32:5 }; Json = '{"IoEventRaw":{"event":0,"addr":4096,"datamatch":{"U32":5},"register":true}}' }
        @{ Make = { New-VmMemoryRequest -IoEventRaw -Event 0 -Address 0x1000 -Datamatch U8 -Register:$false }; Json = '{"IoEventRaw":{"event":0,"addr":4096,"datamatch":{"U8":null},"register":false}}' }
        @{ Make = { New-VmMemoryRequest -IoEventRaw -Event 0 -Address 0 }; Json = '{"IoEventRaw":{"event":0,"addr":0,"datamatch":"AnyLength","register":true}}' }
    ) {
        $request = & $Make
        $request.Request | Should -BeOfType GuestMemory.Core.VmControl.VmMemoryRequest
        @($request | ForEach-Object { $_ }).Count | Should -Be 1 -Because 'a request is one object'
        $request | ConvertTo-Json -Depth 10 -Compress | Should -BeExactly $Json
        ConvertTo-Json $request -Depth 10 -Compress | Should -BeExactly $Json
        @{ request = $request } | ConvertTo-Json -Depth 10 -Compress | Should -BeExactly ('{"request":' + $Json + '}')
        $files = $handles::new()
        $request.Request.ToJson($files) | Should -BeExactly $Json
        $Json -match '"(descriptor|event)":' | Should -Be ($files.Count -eq 1)
        # And back.
        $again = [GuestMemory.Core.VmControl.VmMemoryRequest]::FromJson(($request | ConvertTo-Json -Depth 10), $files)
        $again.GetType() | Should -Be $request.Request.GetType()
        $again.ToJson($handles::new()) | Should -BeExactly $Json
    }

    It 'gives the JSON with -AsJson' {
        New-VmMemoryRequest -BalloonTargetReached -Size 1 -AsJson | Should -BeExactly '{"BalloonTargetReached":{"size":1}}'
        $before = Get-DescriptorCount
        New-VmMemoryRequest -RegisterMemory -Source "$TestDrive/file" -Destination 0 -AsJson | Should -BeLike '{"RegisterMemory":*'
        Get-DescriptorCount | Should -Be $before
    }

    It 'takes regions from the pipeline, and their place' {
        $request = $memfd | New-VmMemoryRequest -RegisterMemory
        $request.Request.Destination.Address | Should -Be 0x100000000
        $request.Request.Source.Size | Should -Be 64KB
        ($anonymous | New-VmMemoryRequest -RegisterMemory).Request.Source.Pointer | Should -Be $anonymous.HostAddress
        ($memfd | New-VmMemoryRequest -RegisterMemory -Offset 16KiB).Request.Source.Size | Should -Be 48KB
        ($memfd | New-VmMemoryRequest -RegisterMemory -Offset 16KiB).Request.Source.Offset | Should -Be 16KB
    }

    It 'takes handles, streams and files' {
        $stream = [IO.File]::Open("$TestDrive/file", 'Open', 'ReadWrite', 'ReadWrite')
        try {
            foreach ($source in $stream, $stream.SafeFileHandle, (Get-Item "$TestDrive/file")) {
                (New-VmMemoryRequest -RegisterMemory -Source $source -Destination 0).Request.Source.Size | Should -Be 12KB
            }
        }
        finally {
            $stream.Dispose()
        }
        Push-Location $TestDrive
        try {
            (New-VmMemoryRequest -RegisterMemory -Source file -Destination 0).Request.Source.Size | Should -Be 12KB
        }
        finally {
            Pop-Location
        }
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'a missing file'; Id = 'FileNotFound'; Make = { New-VmMemoryRequest -RegisterMemory -Source "$TestDrive/none" -Destination 0 -ErrorAction Stop } }
        @{ What = 'a folder'; Id = 'NotAFile'; Make = { New-VmMemoryRequest -RegisterMemory -Source "$TestDrive" -Destination 0 -ErrorAction Stop } }
        @{ What = 'a file without a destination'; Id = 'ValueNotSupported'; Make = { New-VmMemoryRequest -RegisterMemory -Source "$TestDrive/file" -ErrorAction Stop } }
        @{ What = 'an offset past the end'; Id = 'ValueNotSupported'; Make = { New-VmMemoryRequest -RegisterMemory -Source "$TestDrive/file" -Offset 16KiB -Destination 0 -ErrorAction Stop } }
        @{ What = 'execution'; Id = 'ValueNotSupported'; Make = { New-VmMemoryRequest -RegisterMemory -Source $memfd -Protection Execute -ErrorAction Stop } }
        @{ What = 'anonymous memory as a file'; Id = 'ValueNotSupported'; Make = { New-VmMemoryRequest -RegisterMemory -Source $anonymous -SourceType Descriptor -ErrorAction Stop } }
        @{ What = 'a region that was removed'; Id = 'RegionDisposed'; Make = { $memfd | Remove-MmapRegion; $memfd | New-VmMemoryRequest -RegisterMemory -ErrorAction Stop } }
        @{ What = 'an address that is none'; Id = 'ParameterArgumentTransformationError'; Make = { New-VmMemoryRequest -UnregisterMemory -RegionId 0x10z } }
        @{ What = 'a negative size'; Id = 'ParameterArgumentTransformationError'; Make = { New-VmMemoryRequest -BalloonTargetReached -Size -1 } }
        @{ What = 'a holder that is none'; Id = 'CannotConvertArgumentNoMessage'; Make = { New-VmMemoryRequest -PrepareSharedMemoryRegion -Alloc PciBar:0 } }
        @{ What = 'a datamatch that does not fit'; Id = 'CannotConvertArgumentNoMessage'; Make = { New-VmMemoryRequest -IoEventRaw -Event 0 -Address 0 -Datamatch U8:256 } }
        @{ What = 'a range without a size'; Id = 'ParameterArgumentTransformationError'; Make = { New-VmMemoryRequest -DynamicallyFreeMemoryRanges -Range 0x1000 } }
        @{ What = 'a file mapping with a typo'; Id = 'ParameterArgumentTransformationError'; Make = { New-VmMemoryRequest -MmapAndRegisterMemory -SharedMemory $memfd -FileMapping @{ File = $memfd; Lenght = 1 } } }
        @{ What = 'two variants'; Id = 'AmbiguousParameterSet'; Make = { New-VmMemoryRequest -UnregisterMemory -RegionId 1 -BalloonTargetReached } }
    ) {
        $Make | Should -Throw -ErrorId "$Id,*"
    }

    It 'is a dictionary that cannot be changed' {
        $request = New-VmMemoryRequest -DynamicallyFreeMemoryRanges -Range 0x1000+8KiB
        $request.Keys | Should -Be DynamicallyFreeMemoryRanges
        $request['DynamicallyFreeMemoryRanges'].ranges[0] | Should -Be 4096, 8192
        $request['other'] | Should -BeNullOrEmpty
        { $request['DynamicallyFreeMemoryRanges'] = 1 } | Should -Throw
        { $request.Add('a', 1) } | Should -Throw
        { $request.Clear() } | Should -Throw
    }

    It 'shows the variant and its content' {
        New-VmMemoryRequest -BalloonTargetReached -Size 1 | Out-String | Should -Match 'Request\s+Content[\s-]+BalloonTargetReached\s+\{"size":1\}'
        New-VmMemoryRequest -UnregisterMemory -RegionId 5 | Format-List | Out-String | Should -Match 'Request : UnregisterMemory\s+Content : 5'
    }

    It 'completes what can be listed' {
        Get-Completion 'New-VmMemoryRequest -PrepareSharedMemoryRegion -Alloc ' | Should -Contain 'PciBar:00:00.0/0'
        Get-Completion 'New-VmMemoryRequest -IoEventRaw -Datamatch U' | Should -Be U8, U16, U32, U64
        Get-Completion 'New-VmMemoryRequest -RegisterMemory -SourceType V' | Should -Be Vulkan
    }
}
