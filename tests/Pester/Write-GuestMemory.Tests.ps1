BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Write-GuestMemory' {
    BeforeEach {
        $low = New-MmapRegion 8KiB -Name low -DirtyTracking
        $next = New-MmapRegion 8KiB 0x2000 -Name next -DirtyTracking
        $high = New-MmapRegion 8KiB 0x100000000 -Name high -DirtyTracking
    }

    AfterEach {
        Clear-TestState
    }

    Context 'What is written' {
        It 'writes bytes' {
            $low | Write-GuestMemory -Address 0x10 -Bytes 222, 173, 190, 239 | Should -BeNullOrEmpty
            ($low | Read-GuestMemory 0x10 4).Bytes | Should -Be 222, 173, 190, 239
        }

        It 'writes <What>' -ForEach @(
            @{ What = 'an Int32 as it is'; Line = '258'; Expected = '02010000' }
            @{ What = 'a long as it is'; Line = '0x1122334455'; Expected = '5544332211000000' }
            @{ What = 'a byte as it is'; Line = '([byte] 7)'; Expected = '07' }
            @{ What = 'a double as it is'; Line = '1.0'; Expected = '000000000000F03F' }
            @{ What = 'a hexadecimal literal above 2^31'; Line = '0xDEADBEEF'; Expected = 'EFBEADDE' }
            @{ What = 'a hexadecimal literal above 2^63'; Line = '0xFFFFFFFFFFFFFFFE'; Expected = 'FEFFFFFFFFFFFFFF' }
            @{ What = 'numbers of a type'; Line = '1, 2 -As UInt16'; Expected = '01000200' }
            @{ What = 'numbers in big-endian order'; Line = '1, 2 -As UInt16 -Endian Big'; Expected = '00010002' }
            @{ What = 'hexadecimal literals in a list'; Line = '0xDEADBEEF, 0x1 -As UInt32 -Endian Big'; Expected = 'DEADBEEF00000001' }
            @{ What = 'negative numbers'; Line = '-2 -As Int16'; Expected = 'FEFF' }
            @{ What = 'a negative number of 128 bits'; Line = '-2 -As Int128'; Expected = 'FEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF' }
            @{ What = 'hexadecimal text of 128 bits'; Line = "'0xF0000000000000000000000000000001' -As UInt128 -Endian Big"; Expected = 'F0000000000000000000000000000001' }
            @{ What = 'a UInt128 as it is'; Line = '([uint128] 7)'; Expected = '07000000000000000000000000000000' }
            @{ What = 'a half'; Line = '1.5 -As Half'; Expected = '003E' }
            @{ What = 'hexadecimal text of a signed type'; Line = "'0x7f' -As Int16"; Expected = '7F00' }
            @{ What = 'sizes as text'; Line = '4KiB -As UInt32'; Expected = '00100000' }
            @{ What = 'a float'; Line = '-0.5 -As Single -Endian Big'; Expected = 'BF000000' }
            @{ What = 'text in UTF-8'; Line = '"a`u{fc}"'; Expected = '61C3BC' }
            @{ What = 'text in another encoding'; Line = '"a`u{fc}" -Encoding unicode'; Expected = '6100FC00' }
            @{ What = 'text and numbers one behind the other'; Line = '"VM", 1'; Expected = '564D01000000' }
        ) {
            # As typed: a variable would lose the text of a literal.
            & ([scriptblock]::Create("`$low | Write-GuestMemory 0x20 $Line"))
            $written = $low | Read-GuestMemory 0x20 ($Expected.Length / 2) -Raw
            [Convert]::ToHexString($written) | Should -BeExactly $Expected
            $low | Read-GuestMemory (0x20 + $Expected.Length / 2) -As UInt64 | Should -Be 0
        }

        It 'writes a file, from any folder' {
            $bytes = Write-RandomFile "$TestDrive/part.bin" 5000
            Push-Location $TestDrive
            try {
                $low, $next | Write-GuestMemory 0x1000 -InFile part.bin
            }
            finally {
                Pop-Location
            }
            $content = $low, $next | Read-GuestMemory 0x1000 5000 -Raw
            [Convert]::ToHexString($content) | Should -BeExactly ([Convert]::ToHexString($bytes))
        }

        It 'crosses from one region into the next' {
            $next, $low | Write-GuestMemory 0x1FFE -Bytes 1, 2, 3, 4
            ($low | Read-GuestMemory 0x1FFE 2).Bytes | Should -Be 1, 2
            ($next | Read-GuestMemory 0x2000 2).Bytes | Should -Be 3, 4
        }

        It 'marks the pages that it touches' {
            $low, $next | Write-GuestMemory 0x1FFE -Bytes 1, 2, 3, 4
            ($low | Get-DirtyBitmap -AsRange).Address | Should -Be 0x1000
            ($next | Get-DirtyBitmap -AsRange).Address | Should -Be 0x2000
        }

        It 'gives the memory with -PassThru, as one address space' {
            $memory = Get-MmapRegion | Write-GuestMemory 0 1 -PassThru
            $memory | Should -BeOfType GuestMemory.Core.GuestMemoryMmap
            $memory.Regions.Name | Should -Be low, next, high
            $memory.Size | Should -Be 24KB
            $memory | Out-String -Width 200 | Should -Match '3\s+0x00000000\s+0x100001fff\s+24 KiB'
        }

        It 'can be chained' {
            $memory = Get-MmapRegion | Write-GuestMemory 0 'one' -PassThru | Write-GuestMemory 0x100000000 'two' -PassThru
            $memory | Read-GuestMemory 0 16 -Encoding ascii | Should -Be one
            $memory | Read-GuestMemory 0x100000000 16 -Encoding ascii | Should -Be two
        }
    }

    Context 'Bad input' {
        It 'refuses <What> with <Id>, and changes nothing' -ForEach @(
            @{ What = 'an address that is not mapped'; Id = 'InvalidGuestAddress'; Category = 'ObjectNotFound'; Arguments = @{ Address = 0x8000; Value = 1 } }
            @{ What = 'a range that runs into a hole'; Id = 'InvalidGuestAddress'; Category = 'ObjectNotFound'; Arguments = @{ Address = 0x3FFE; Value = 1 } }
            @{ What = 'text that runs into a hole'; Id = 'InvalidGuestAddress'; Category = 'ObjectNotFound'; Arguments = @{ Address = 0x3FFE; Value = 'text' } }
            @{ What = 'a file that runs into a hole'; Id = 'InvalidGuestAddress'; Category = 'ObjectNotFound'; Arguments = @{ Address = 0x3F00; InFile = 'big.bin' } }
            @{ What = 'a file that is not there'; Id = 'FileNotFound'; Category = 'ObjectNotFound'; Arguments = @{ Address = 0; InFile = 'none.bin' } }
            @{ What = 'a folder'; Id = 'NotAFile'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; InFile = '.' } }
            @{ What = 'a device, which has no length'; Id = 'NotAFile'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; InFile = '/dev/zero' } }
            @{ What = 'a pipe, which nobody writes'; Id = 'NotAFile'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; InFile = 'pipe' } }
            @{ What = 'a path of another provider'; Id = 'NotAFilePath'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; InFile = 'Variable:/x' } }
            @{ What = 'a value that does not fit'; Id = 'ValueNotSupported'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; Value = 1, 256; As = 'Byte' } }
            @{ What = 'a negative value of an unsigned type'; Id = 'ValueNotSupported'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; Value = -1; As = 'UInt16' } }
            @{ What = 'a number past 128 bits'; Id = 'ValueNotSupported'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; Value = '0x100000000000000000000000000000000'; As = 'UInt128' } }
            @{ What = 'a fraction of an integer type'; Id = 'ValueNotSupported'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; Value = 1.5; As = 'Int32' } }
            @{ What = 'a number that would be infinite'; Id = 'ValueNotSupported'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; Value = 1, 65536; As = 'Half' } }
            @{ What = 'text that is not a number'; Id = 'ValueNotSupported'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; Value = 'many'; As = 'UInt32' } }
            @{ What = 'an object that is no value'; Id = 'ValueNotSupported'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; Value = [guid]::Empty } }
        ) {
            [IO.File]::WriteAllBytes("$TestDrive/big.bin", [byte[]](, 255 * 4096))
            if (-not (Test-Path "$TestDrive/pipe")) {
                mkfifo "$TestDrive/pipe"
            }
            Push-Location $TestDrive
            try {
                $failure = { Get-MmapRegion | Write-GuestMemory @Arguments -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*" -PassThru
            }
            finally {
                Pop-Location
            }
            $failure.CategoryInfo.Category | Should -Be $Category
            (Get-MmapRegion | Get-DirtyBitmap).DirtyCount | Should -Be 0, 0, 0
            foreach ($region in Get-MmapRegion) {
                $content = $region | Read-GuestMemory $region.GuestAddress $region.Size -Raw
                $content | Sort-Object -Unique | Should -Be 0
            }
        }

        It 'refuses a computed negative address' {
            $computed = 0x80000000
            { $low | Write-GuestMemory $computed 1 } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*'
        }

        It 'writes at the literal 0x80000000' {
            $region = New-MmapRegion 4KiB 0x80000000
            $region | Write-GuestMemory 0x80000000 0x80000000
            $region | Read-GuestMemory 0x80000000 -As UInt32 | Should -BeExactly 0x80000000u
        }

        It 'gives an error for memory that nobody may write, and pwsh lives' {
            $region = New-MmapRegion 4KiB 0x200000000 -Protection Read -Name rom -DirtyTracking
            $failure = { $region | Write-GuestMemory 0x200000000 1 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*' -PassThru
            $failure.Exception.Message | Should -Match '0x200000000.*rom.*cannot be written.*protection is Read'
            ($region | Get-DirtyBitmap).DirtyCount | Should -Be 0
        }

        It 'says that the protection, not the file, forbids to write a file that is mapped to be read' {
            [IO.File]::WriteAllBytes("$TestDrive/rom.img", [byte[]]::new(4096))
            $region = New-MmapRegion 4KiB 0x200000000 -BackingPath "$TestDrive/rom.img" -Protection Read
            $failure = { $region | Write-GuestMemory 0x200000000 1 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*' -PassThru
            $failure.Exception.Message | Should -Match 'protection is Read'
        }

        It 'writes nothing at all where a part of the range may not be written' {
            $rom = New-MmapRegion 4KiB 0x4000 -Protection Read -Name rom
            { $next, $rom | Write-GuestMemory 0x3FFE -Bytes 1, 2, 3, 4 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
            ($next | Read-GuestMemory 0x3FFE 2).Bytes | Should -Be 0, 0
            ($next | Get-DirtyBitmap).DirtyCount | Should -Be 0
        }

        It 'gives an error where the file was truncated under the mapping, and pwsh lives' {
            $path = "$TestDrive/shrinks.img"
            [IO.File]::WriteAllBytes($path, [byte[]]::new(8192))
            $region = New-MmapRegion 8KiB 0x200000000 -BackingPath $path
            Resize-File $path 4096
            $failure = { $region | Write-GuestMemory 0x200001000 1 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*' -PassThru
            $failure.Exception.Message | Should -Match 'truncated'
            (Get-Item $path).Length | Should -Be 4096
        }

        It 'refuses regions that overlap' {
            $other = New-MmapRegion 8KiB 0x1000
            $failure = { $low, $other | Write-GuestMemory 0 1 -ErrorAction Stop } | Should -Throw -ErrorId 'MemoryRegionOverlap,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidArgument
            $low | Read-GuestMemory 0 -As UInt64 | Should -Be 0
        }

        It 'says so where no region came' {
            { Get-MmapRegion nothing* | Write-GuestMemory 0 1 -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
        }
    }

    It 'writes nothing with -WhatIf' {
        [IO.File]::WriteAllBytes("$TestDrive/some.bin", (1..16))
        $low | Write-GuestMemory 0 1 -WhatIf
        $low | Write-GuestMemory 0 -Bytes 1 -WhatIf
        $low | Write-GuestMemory 0 -InFile "$TestDrive/some.bin" -WhatIf
        $low | Read-GuestMemory 0 -As UInt64 | Should -Be 0
        ($low | Get-DirtyBitmap).DirtyCount | Should -Be 0
    }

    It 'completes types and encodings' {
        Get-Completion 'Write-GuestMemory 0 1 -As Si' | Should -Be Single
        Get-Completion 'Write-GuestMemory 0 x -Encoding b' | Should -Be bigendianunicode
    }

    It 'says that it gives an address space' {
        (Get-Command Write-GuestMemory).OutputType.Type | Should -Be ([GuestMemory.Core.GuestMemoryMmap])
    }
}
