BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Search-GuestMemory' {
    BeforeEach {
        $low = New-MmapRegion 1MiB -Name low
        $high = New-MmapRegion 1MiB 0x100000000 -Name high
        $low | Write-GuestMemory 0x1000 'BOOT_IMAGE=/vmlinuz root=/dev/vda1'
        $low | Write-GuestMemory 0x2003 'password' -Encoding unicode
        $high | Write-GuestMemory 0x100000100 -Bytes 0x55, 0x8b, 0xec, 0x5d
    }

    AfterEach {
        Clear-TestState
    }

    Context 'Bytes' {
        It 'gives the first place, its region and what stands around it' {
            $match = $low, $high | Search-GuestMemory '55 8b ?? 5d'
            $match | Should -BeOfType GuestMemory.Core.MemoryMatch
            $match.Address | Should -BeExactly 0x100000100ul
            $match.Size | Should -BeExactly 4ul
            $match.Bytes | Should -Be 0x55, 0x8b, 0xec, 0x5d
            $match.Region | Should -BeExactly high
            $match.Context.Address | Should -BeExactly 0x1000000F0ul
            $match.Context.Size | Should -BeExactly 36ul
        }

        It 'takes numbers, one array for one pattern' {
            ($high | Search-GuestMemory 0x8b, 0xec).Address | Should -BeExactly 0x100000101ul
            ($high | Search-GuestMemory 0xec).Address | Should -BeExactly 0x100000102ul
            ($high | Search-GuestMemory ([byte[]] (0x5d))).Address | Should -BeExactly 0x100000103ul
        }

        It 'takes several texts as several patterns' {
            ($high | Search-GuestMemory '5d', '8b' -All).Pattern | Should -Be '8b', '5d'
        }

        It 'gives every place with -All, at multiples of -Alignment' {
            $low | Write-GuestMemory 0x5000 -Bytes (@(7) * 10)
            ($low | Search-GuestMemory '07' -All).Count | Should -Be 10
            $low | Search-GuestMemory '07' -All -Alignment 4 | ForEach-Object Address | Should -Be 0x5000, 0x5004, 0x5008
            @($low | Search-GuestMemory '07 07' -All).Count | Should -Be 9
            @($low | Search-GuestMemory '07').Count | Should -Be 1
        }

        It 'searches a part of the memory' {
            $low | Write-GuestMemory 0x5000 -Bytes 7, 0, 7
            ($low | Search-GuestMemory '07' -Address 0x5001).Address | Should -BeExactly 0x5002ul
            $low | Search-GuestMemory '07' -Address 0x5001 -Size 1 | Should -BeNullOrEmpty
            $low | Search-GuestMemory '07' -Size 0x5000 | Should -BeNullOrEmpty
        }

        It 'streams: who takes the first ones does not wait for the rest' {
            $low | Search-GuestMemory '00' -All | Select-Object -First 3 | ForEach-Object Address | Should -Be 0, 1, 2
        }
    }

    Context 'Text' {
        It 'finds it in each encoding that is given' {
            ($low | Search-GuestMemory -Text vmlinuz).Address | Should -BeExactly 0x100Cul
            $low | Search-GuestMemory -Text password | Should -BeNullOrEmpty
            ($low | Search-GuestMemory -Text password -Encoding utf8, unicode).Address | Should -BeExactly 0x2003ul
        }

        It 'tells upper case from lower case, unless it is not to' {
            $low | Search-GuestMemory -Text VMLINUZ | Should -BeNullOrEmpty
            ($low | Search-GuestMemory -Text VMLINUZ -IgnoreCase).Address | Should -BeExactly 0x100Cul
        }
    }

    Context 'Regular expressions' {
        It 'match bytes' {
            $match = $low | Search-GuestMemory -Regex 'root=[\x21-\x7e]+'
            [Text.Encoding]::ASCII.GetString($match.Bytes) | Should -BeExactly 'root=/dev/vda1'
            ($high | Search-GuestMemory -Regex '\x55.\xec').Address | Should -BeExactly 0x100000100ul
            ($low | Search-GuestMemory -Regex 'ROOT=' -IgnoreCase).Address | Should -BeExactly 0x1014ul
        }
    }

    Context 'Looks' {
        It 'shows the address, the region and the text around the match' {
            $lines = ($low | Search-GuestMemory -Text vmlinuz | Out-String -Width 120).Trim() -split "`n"
            $lines[0] | Should -Match '^ *Address +Region +Context'
            $lines[2] | Should -Match '^ *0x0000100c low +BOOT_IMAGE=/vmlinuz root=/dev/vda1\.+$'
        }

        It 'has a context as large as is asked for' {
            ($low | Search-GuestMemory -Text vmlinuz -Context 2).Context.Bytes | Should -Be ([Text.Encoding]::ASCII.GetBytes('=/vmlinuz r'))
            ($low | Search-GuestMemory -Text vmlinuz -Context 0).Context.Size | Should -Be 7
        }
    }

    Context 'Mistakes' {
        It 'names the word that is no byte' {
            { $low | Search-GuestMemory '48 8' } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*' -ExpectedMessage "*'8' has an odd number of digits*"
            { $low | Search-GuestMemory 'hello' } | Should -Throw -ExpectedMessage '*neither a hexadecimal digit nor a question mark*-Text*'
            { $low | Search-GuestMemory 0x55, 256 } | Should -Throw -ExpectedMessage '*256 is not a byte*'
        }

        It 'refuses what cannot be searched for' {
            { $low | Search-GuestMemory -Regex '(a' -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidPattern,*'
            { $low | Search-GuestMemory -Regex '(?=a)' -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidPattern,*'
            { $low | Search-GuestMemory -Text "$([char] 0xfc)" -Encoding ascii -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidPattern,*'
        }

        It 'says where nothing is mapped' {
            { $low | Search-GuestMemory '00' -Address 0x80000000 -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidGuestAddress,*'
        }

        It 'refuses what is not memory' {
            { 'low' | Search-GuestMemory '00' -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        }
    }
}
