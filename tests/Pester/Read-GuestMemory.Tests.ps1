BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Read-GuestMemory' {
    BeforeEach {
        $low = New-MmapRegion 8KiB -Name low
        $next = New-MmapRegion 8KiB 0x2000 -Name next
        $high = New-MmapRegion 8KiB 0x100000000 -Name high
    }

    AfterEach {
        Clear-TestState
    }

    Context 'A block' {
        It 'knows its guest address and its bytes' {
            $low | Write-GuestMemory 0x10 -Bytes (1..32)
            $block = $low | Read-GuestMemory -Address 0x10 -Size 32
            $block | Should -BeOfType GuestMemory.Core.MemoryBlock
            $block.Address | Should -BeExactly 16ul
            $block.Size | Should -BeExactly 32ul
            $block.Bytes | Should -Be (1..32)
        }

        It 'has 256 bytes where no size is said' {
            (Read-GuestMemory 0x1000 -Memory $low).Size | Should -Be 256
        }

        It 'looks like a hex dump with guest addresses' {
            $low | Write-GuestMemory 0x100 'Booting from Hard Disk...'
            $view = $low | Read-GuestMemory 0x100 40 | Out-String -Width 200
            $lines = $view.Trim() -split "`n"
            $lines[0] | Should -BeExactly '00000100  42 6f 6f 74 69 6e 67 20  66 72 6f 6d 20 48 61 72  Booting from Har'
            $lines[1] | Should -BeExactly '00000110  64 20 44 69 73 6b 2e 2e  2e 00 00 00 00 00 00 00  d Disk..........'
            $lines[2] | Should -Match '^00000120  00 00 00 00 00 00 00 00 +\.{8}$'
        }

        It 'shows addresses above 4 GiB in full, and folds rows that repeat' {
            $lines = ($high | Read-GuestMemory 0x100000000 0x100 | Out-String -Width 200).Trim() -split "`n"
            $lines.Count | Should -Be 3
            $lines[0] | Should -Match '^0000000100000000  00'
            $lines[1] | Should -BeExactly '*'
            $lines[2] | Should -Match '^00000001000000f0  00'
        }

        It 'crosses from one region into the next' {
            $low, $next | Write-GuestMemory 0x1FFE -Bytes 1, 2, 3, 4
            ($next, $low | Read-GuestMemory 0x1FFE 4).Bytes | Should -Be 1, 2, 3, 4
        }

        It 'gathers the regions of the pipeline, and takes each address space by itself' {
            @(Get-MmapRegion | Read-GuestMemory 0 16).Count | Should -Be 1
            $first = $low | Write-GuestMemory 0 1 -PassThru
            $second = $next | Write-GuestMemory 0x2000 2 -PassThru
            @($first, $first | Read-GuestMemory 0 16).Count | Should -Be 2
            ($second | Read-GuestMemory 0x2000 1).Bytes | Should -Be 2
        }

        It 'may be empty' {
            ($low | Read-GuestMemory 0 0).Size | Should -Be 0
        }
    }

    Context 'Other forms' {
        It 'gives one byte array with -Raw' {
            $low | Write-GuestMemory 0 -Bytes 222, 173, 190, 239
            $result = @($low | Read-GuestMemory 0 4 -Raw)
            $result.Count | Should -Be 1
            $result[0].GetType() | Should -Be ([byte[]])
            $result[0] | Should -Be 222, 173, 190, 239
        }

        It 'gives <Type> values of <Width> bytes in both byte orders' -ForEach @(
            @{ Type = 'Byte'; Width = 1; Little = [byte] 0xF1; Big = [byte] 0xF1 }
            @{ Type = 'SByte'; Width = 1; Little = [sbyte] -15; Big = [sbyte] -15 }
            @{ Type = 'UInt16'; Width = 2; Little = [uint16] 0xF2F1; Big = [uint16] 0xF1F2 }
            @{ Type = 'Int16'; Width = 2; Little = [int16] -3343; Big = [int16] -3598 }
            @{ Type = 'UInt32'; Width = 4; Little = [uint32] 0xF4F3F2F1u; Big = [uint32] 0xF1F2F3F4u }
            @{ Type = 'Int32'; Width = 4; Little = 0xF4F3F2F1; Big = 0xF1F2F3F4 }
            @{ Type = 'UInt64'; Width = 8; Little = 0xF8F7F6F5F4F3F2F1ul; Big = 0xF1F2F3F4F5F6F7F8ul }
            @{ Type = 'Int64'; Width = 8; Little = 0xF8F7F6F5F4F3F2F1; Big = 0xF1F2F3F4F5F6F7F8 }
            @{ Type = 'UInt128'; Width = 16; Little = [uint128]::new(0xFFFEFDFCFBFAF9ul, 0xF8F7F6F5F4F3F2F1ul); Big = [uint128]::new(0xF1F2F3F4F5F6F7F8ul, 0xF9FAFBFCFDFEFF00ul) }
            @{ Type = 'Int128'; Width = 16; Little = [int128]::new(0xFFFEFDFCFBFAF9ul, 0xF8F7F6F5F4F3F2F1ul); Big = [int128]::new(0xF1F2F3F4F5F6F7F8ul, 0xF9FAFBFCFDFEFF00ul) }
        ) {
            $low | Write-GuestMemory 0 -Bytes (0xF1..0xFF)
            $value = $low | Read-GuestMemory 0 -As $Type
            $value | Should -BeExactly $Little
            $value.GetType().Name | Should -Be $Type
            $low | Read-GuestMemory 0 -As $Type -Endian Big | Should -BeExactly $Big
            @($low | Read-GuestMemory 0 -As $Type -Count 3).Count | Should -Be 3
        }

        It 'gives floating-point numbers' {
            $low | Write-GuestMemory 0 1.5, -0.25 -As Double
            $low | Read-GuestMemory 0 -As Double -Count 2 | Should -Be 1.5, -0.25
            $low | Write-GuestMemory 0 2.5 -As Single -Endian Big
            $low | Read-GuestMemory 0 -As Single -Endian Big | Should -Be 2.5
            $low | Write-GuestMemory 0 -1.5, 65504 -As Half
            ($low | Read-GuestMemory 0 4).Bytes | Should -Be 0x00, 0xBE, 0xFF, 0x7B
            $values = $low | Read-GuestMemory 0 -As Half -Count 2
            $values | Should -BeOfType Half
            [double[]] $values | Should -Be -1.5, 65504
        }

        It 'gives text up to the first NUL' {
            $low | Write-GuestMemory 0 "Gr`u{fc}`u{df}e"
            $low | Read-GuestMemory 0 64 -Encoding utf8 | Should -BeExactly "Gr`u{fc}`u{df}e"
            $low | Write-GuestMemory 0x100 "Gr`u{fc}`u{df}e" -Encoding unicode
            $low | Read-GuestMemory 0x100 10 -Encoding unicode | Should -BeExactly "Gr`u{fc}`u{df}e"
            $low | Read-GuestMemory 0x100 64 -Encoding ([Text.Encoding]::Unicode) | Should -BeExactly "Gr`u{fc}`u{df}e"
            $low | Read-GuestMemory 0x800 64 -Encoding latin1 | Should -BeExactly ''
        }

        It 'writes a file from any folder, without anything in the pipeline' {
            $low, $next | Write-GuestMemory 0x1FFE -Bytes 1, 2, 3, 4
            Push-Location $TestDrive
            try {
                $low, $next | Read-GuestMemory 0x1000 8192 -OutFile part.bin | Should -BeNullOrEmpty
            }
            finally {
                Pop-Location
            }
            $bytes = [IO.File]::ReadAllBytes("$TestDrive/part.bin")
            $bytes.Length | Should -Be 8192
            $bytes[0xFFE..0x1001] | Should -Be 1, 2, 3, 4
        }

        It 'writes what is larger than a buffer, of <Kind> memory, with holes for pages of zeros' -ForEach @(
            @{ Kind = 'anonymous'; Arguments = @{} }
            @{ Kind = 'a file''s'; Arguments = @{ BackingPath = 'large.img' } }
        ) {
            $bytes = Write-RandomFile "$TestDrive/large.img" 13MB
            [Array]::Clear($bytes, 3MB, 6MB)
            [IO.File]::WriteAllBytes("$TestDrive/large.img", $bytes)
            if ($Arguments.BackingPath) {
                $Arguments = @{ BackingPath = "$TestDrive/large.img" }
            }
            $region = New-MmapRegion 13MiB 0x200000000 @Arguments
            if (-not $Arguments.BackingPath) {
                $region | Write-GuestMemory 0x200000000 -InFile "$TestDrive/large.img"
            }

            $region | Read-GuestMemory 0x200000000 (13MB - 5) -OutFile "$TestDrive/large.bin"
            $blocks, $size = (stat -c '%b %B' "$TestDrive/large.bin") -split ' '
            [long] $blocks * [long] $size | Should -BeLessThan 8MB
            Resize-File "$TestDrive/large.img" (13MB - 5)
            (Get-FileHash "$TestDrive/large.bin").Hash | Should -BeExactly (Get-FileHash "$TestDrive/large.img").Hash
            Remove-Item "$TestDrive/large.*"
        }

        It 'gives the file with -PassThru' {
            $file = $low | Read-GuestMemory 0 100 -OutFile "$TestDrive/passed.bin" -PassThru
            $file | Should -BeOfType IO.FileInfo
            $file.Length | Should -Be 100
        }

        It 'replaces a file only with -Force' {
            Set-Content "$TestDrive/kept.bin" 'mine' -NoNewline
            $failure = { $low | Read-GuestMemory 0 100 -OutFile "$TestDrive/kept.bin" -ErrorAction Stop } | Should -Throw -ErrorId 'FileExists,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be ResourceExists
            Get-Content "$TestDrive/kept.bin" | Should -Be mine
            $low | Read-GuestMemory 0 100 -OutFile "$TestDrive/kept.bin" -Force
            (Get-Item "$TestDrive/kept.bin").Length | Should -Be 100
            Get-ChildItem -Force $TestDrive -Filter *.part | Should -BeNullOrEmpty
        }
    }

    Context 'Addresses' {
        It 'means what the literal <Literal> says' -ForEach @(
            @{ Literal = '0x80000000' }
            @{ Literal = '0xFFFFFFFFFFFFE000' }
        ) {
            $region = & ([scriptblock]::Create("New-MmapRegion 4KiB $Literal"))
            (& ([scriptblock]::Create("`$region | Read-GuestMemory $Literal 16"))).Address | Should -BeExactly $region.GuestAddress
        }

        It 'refuses a computed negative address' {
            $computed = 0x80000000
            $failure = { $low | Read-GuestMemory $computed 16 } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidData
        }

        It 'refuses <What> with <Id>' -ForEach @(
            @{ What = 'an address that is not mapped'; Id = 'InvalidGuestAddress'; Category = 'ObjectNotFound'; Arguments = @{ Address = 0x8000 } }
            @{ What = 'the address behind the last one'; Id = 'InvalidGuestAddress'; Category = 'ObjectNotFound'; Arguments = @{ Address = 0x100002000; Size = 1 } }
            @{ What = 'a range that runs into a hole'; Id = 'InvalidGuestAddress'; Category = 'ObjectNotFound'; Arguments = @{ Address = 0x3FF0; Size = 32 } }
            @{ What = 'a size of which no array can be made'; Id = 'InvalidGuestAddress'; Category = 'ObjectNotFound'; Arguments = @{ Address = 0; Size = '16EiB'.Replace('16', '15'); Raw = $true } }
            @{ What = 'values that run into a hole'; Id = 'InvalidGuestAddress'; Category = 'ObjectNotFound'; Arguments = @{ Address = 0x3FFC; As = 'UInt64' } }
            @{ What = 'more values than addresses'; Id = 'GuestAddressOverflow'; Category = 'InvalidArgument'; Arguments = @{ Address = 0; As = 'UInt64'; Count = '0x2000000000000001' } }
        ) {
            $failure = { Get-MmapRegion | Read-GuestMemory @Arguments -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*" -PassThru
            $failure.CategoryInfo.Category | Should -Be $Category
        }

        It 'says which address is not mapped and which ones are' {
            $failure = { Get-MmapRegion | Read-GuestMemory 0x3FF0 32 -ErrorAction Stop } | Should -Throw -PassThru
            $failure.Exception.Message | Should -Match '0x4000 is not mapped.*high \[0x100000000-0x100001fff\]'
        }

        It 'refuses a range that passes 2^64' {
            $top = New-MmapRegion 4KiB 0xFFFFFFFFFFFFE000
            { $top | Read-GuestMemory 0xFFFFFFFFFFFFEFF0 0x2000 -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidGuestAddress,*'
        }

        It 'leaves no file of a range that is not mapped' {
            { $low | Read-GuestMemory 0 64KiB -OutFile "$TestDrive/none.bin" -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidGuestAddress,*'
            Get-ChildItem -Force $TestDrive -Filter *none* | Should -BeNullOrEmpty
        }

        It 'says what is wrong with the file to write, with and without -Force' {
            foreach ($force in $false, $true) {
                $failure = { $low | Read-GuestMemory 0 16 -OutFile $TestDrive -Force:$force -ErrorAction Stop } | Should -Throw -ErrorId ($force ? 'NotAFile,*' : 'FileExists,*') -PassThru
                $failure.Exception.Message | Should -Match 'is a directory'
                $failure = { $low | Read-GuestMemory 0 16 -OutFile "$TestDrive/none/x.bin" -Force:$force -ErrorAction Stop } | Should -Throw -ErrorId 'FileNotFound,*' -PassThru
                $failure.Exception.Message | Should -Match 'The folder .*/none for x.bin does not exist'
            }
        }

        It 'refuses regions that overlap' {
            $other = New-MmapRegion 8KiB 0x1000
            $failure = { $low, $other | Read-GuestMemory 0 16 -ErrorAction Stop } | Should -Throw -ErrorId 'MemoryRegionOverlap,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidArgument
            $failure.Exception.Message | Should -Match 'low \[0x0-0x1fff\]'
        }

        It 'says so where no region came' {
            $failure = { Get-MmapRegion nothing* | Read-GuestMemory 0 16 -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidArgument
        }
    }

    Context 'Virtual addresses' {
        BeforeEach {
            # Tables from 0x2000 on: 0xffffffff81000000 is 0x100000000, and the page behind it 0x0; of five levels at 0x100001000.
            $tables = New-MmapRegion 32KiB 0x10000 -Name tables
            $all = $low, $next, $high, $tables
            $entries = @{ 0x10ff8 = 0x11007; 0x11ff0 = 0x12007; 0x12040 = 0x13007; 0x13000 = 0x100000007; 0x13008 = 0x7; 0x13010 = 0x40000007; 0x14ff8 = 0x10007 }
            foreach ($entry in $entries.GetEnumerator()) { $tables | Write-GuestMemory $entry.Key -As UInt64 -Value $entry.Value }
            $high | Write-GuestMemory 0x100000ffc -Bytes 1, 2, 3, 4
            $low | Write-GuestMemory 0 -Bytes 5, 6, 7, 8
        }

        It 'reads across pages in every form' {
            $block = $all | Read-GuestMemory -Virtual 0xffffffff81000ffc -Cr3 0x10000 -Size 8
            $block.Address | Should -BeExactly 0xffffffff81000ffcul
            $block.Bytes | Should -Be (1..8)
            ($block | Out-String).Trim() | Should -BeExactly 'ffffffff81000ffc  01 02 03 04 05 06 07 08                           ........'
            $all | Read-GuestMemory 0xffffffff81000ffe -Virtual -PageTable 0x10000 -As UInt32 | Should -Be 0x06050403
            ($all | Read-GuestMemory 0xffffffff81000ffc 8 -Virtual -PageTable 0x10000 -Levels 4 -Raw) | Should -Be (1..8)
            $all | Read-GuestMemory 0xffffffff81000ffc 0x1004 -Virtual -PageTable 0x10000 -OutFile "$TestDrive/virtual.bin"
            [IO.File]::ReadAllBytes("$TestDrive/virtual.bin")[0..7] | Should -Be (1..8)
            (Get-Item "$TestDrive/virtual.bin").Length | Should -Be 0x1004
        }

        It 'finds how many levels there are, or is told' {
            ($all | Read-GuestMemory 0xffffffff81000ffc 8 -Virtual -Cr3 0x14000).Bytes | Should -Be (1..8)
            ($all | Read-GuestMemory 0xffffffff81000ffc 8 -Virtual -Cr3 0x14000 -Levels 5).Bytes | Should -Be (1..8)
            { $all | Read-GuestMemory 0xffffffff81000ffc 8 -Virtual -Cr3 0x14000 -Levels 4 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotPresent,*'
            { $all | Read-GuestMemory 0 8 -Virtual -Cr3 0x14000 -Levels 3 -ErrorAction Stop } | Should -Throw '*4 or 5 levels*' -ErrorId 'ValueNotSupported,*'
        }

        It 'says what is wrong with <What>' -ForEach @(
            @{ What = 'an address that is not mapped'; Address = '0xffffffff81003000'; Cr3 = 0x10000; Id = 'PageNotPresent'; Category = 'ObjectNotFound'; Text = '*entry 3 of the PT at guest address 0x13000 is not present (0x0)*' }
            @{ What = 'a range that ends behind what is mapped'; Address = '0xffffffff81001ff9'; Cr3 = 0x10000; Id = 'InvalidGuestAddress'; Category = 'ObjectNotFound'; Text = '*0xffffffff81002000 is mapped to guest address 0x40000000*' }
            @{ What = 'an address that is not canonical'; Address = '0x0100000000000000'; Cr3 = 0x10000; Id = 'AddressNotCanonical'; Category = 'InvalidArgument'; Text = '*57 bits*' }
            @{ What = 'a page table outside the memory'; Address = '0'; Cr3 = 0x80000; Id = 'PageTableNotMapped'; Category = 'InvalidData'; Text = '*PML4 at guest address 0x80000 lies outside*' }
        ) {
            $failure = { $all | Read-GuestMemory $Address 8 -Virtual -Cr3 $Cr3 -ErrorAction Stop } | Should -Throw $Text -ErrorId "$Id,*" -PassThru
            $failure.CategoryInfo.Category | Should -Be $Category
            { $all | Read-GuestMemory $Address 8 -Virtual -Cr3 $Cr3 -OutFile "$TestDrive/none.bin" -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*"
            "$TestDrive/none.bin" | Should -Not -Exist
        }

        It 'needs to know the page table, and only for virtual addresses' {
            { $all | Read-GuestMemory 0 8 -Virtual -ErrorAction Stop } | Should -Throw '*Get-GuestKernel*' -ErrorId 'ValueNotSupported,*'
            { $all | Read-GuestMemory 0 8 -Cr3 0x10000 -ErrorAction Stop } | Should -Throw '*give -Virtual*' -ErrorId 'ValueNotSupported,*'
            $tables | Write-GuestMemory 0x10000 -As UInt64 -Value 0x10007
            $failure = { $all | Read-GuestMemory 0 8 -Virtual -Cr3 0x10000 -ErrorAction Stop } | Should -Throw -ErrorId 'PageTableAmbiguous,*' -PassThru
            $failure.ErrorDetails.RecommendedAction | Should -BeLike '-Levels*'
        }
    }

    Context 'Pages that cannot be had' {
        It 'gives an error, not a crash, where the file was truncated under the mapping' {
            $path = "$TestDrive/shrinks.img"
            [IO.File]::WriteAllBytes($path, [byte[]]::new(16KB))
            $region = New-MmapRegion 16KiB 0x200000000 -BackingPath $path -Name shrinks
            Resize-File $path 4KB

            ($region | Read-GuestMemory 0x200000000 16).Bytes.Count | Should -Be 16
            foreach ($form in @{}, @{ Raw = $true }, @{ OutFile = "$TestDrive/shrunk.bin" }, @{ Encoding = 'utf8' }) {
                $failure = { $region | Read-GuestMemory 0x200002000 4096 @form -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*' -PassThru
                $failure.CategoryInfo.Category | Should -Be ReadError
                $failure.Exception.Message | Should -Match '0x200002000.*shrinks.*truncated'
            }
            { $region | Read-GuestMemory 0x200002000 -As UInt32 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
            Get-ChildItem -Force $TestDrive -Filter *shrunk* | Should -BeNullOrEmpty
        }

        It 'gives an error for memory that nobody may read' {
            $region = New-MmapRegion 4KiB 0x200000000 -Protection None
            $failure = { $region | Read-GuestMemory 0x200000000 16 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*' -PassThru
            $failure.Exception.Message | Should -Match 'protection is None'
        }
    }

    Context 'Ctrl+C' {
        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            # Somebody who takes the memory over and never answers.
            $path = "$TestDrive/silent.sock"
            $listener = Open-Socket $path -Listen
            $region = New-MmapRegion 64KiB 0x40000000 -Name waiting
            $region | Connect-UffdHandler $path
            $peer = $listener.Accept()
        }

        AfterEach {
            ${peer}?.Dispose()
            ${listener}?.Dispose()
            Remove-Item "$TestDrive/silent.sock" -ErrorAction Ignore
        }

        It 'ends a read<Kind> that waits for a page nobody serves' -ForEach @(
            @{ Kind = ''; Arguments = @{} }
            @{ Kind = ' into a file'; Arguments = @{ OutFile = 'waits.bin' } }
            @{ Kind = ' of values'; Arguments = @{ As = 'UInt32' } }
        ) {
            if ($Arguments.OutFile) {
                $Arguments = @{ OutFile = "$TestDrive/$($Arguments.OutFile)" }
            }
            $shell = [powershell]::Create()
            try {
                $null = $shell.AddScript({
                    param($Manifest, $Region, $Arguments)
                    Import-Module $Manifest
                    $Region | Read-GuestMemory 0x40001000 @Arguments
                }).AddArgument($manifest).AddArgument($region).AddArgument($Arguments)
                $reading = $shell.BeginInvoke()
                # A read waits for its page on a thread of its own.
                Wait-Until { Get-NamedThread guest-memory-ac }
                $reading.IsCompleted | Should -BeFalse

                $stopping = $shell.BeginStop($null, $null)
                $stopping.AsyncWaitHandle.WaitOne([timespan]::FromSeconds(60)) | Should -BeTrue
                $shell.InvocationStateInfo.State | Should -Be Stopped
            }
            finally {
                # Frees the read if it was not stopped, so that the shell can be disposed.
                $region | Remove-MmapRegion -Force
                $shell.Dispose()
            }

            Wait-Until { -not (Get-NamedThread guest-memory-ac) }
            Get-ChildItem -Force $TestDrive -Filter *waits* | Should -BeNullOrEmpty
        }

        It 'leaves no descriptor once the region is gone' {
            $region | Remove-MmapRegion -Force
            $before = Get-DescriptorCount
            $again = New-MmapRegion 64KiB 0x40000000
            $again | Connect-UffdHandler $path
            $accepted = $listener.Accept()
            $again | Remove-MmapRegion -Force
            $accepted.Dispose()
            Wait-Until { (Get-DescriptorCount) -le $before }
        }
    }

    Context 'A VM of a handler, <Where>' -ForEach @(
        @{ Where = 'in this shell'; InProcess = $true }
        @{ Where = 'in a process of its own'; InProcess = $false }
    ) {
        BeforeEach {
            Skip-UnlessSupported (Test-GuestMemorySupport Userfaultfd)
            $content = Write-RandomFile "$TestDrive/image.mem" 64KB
            $handler = Start-UffdHandler "$TestDrive/uffd.sock" "$TestDrive/image.mem" -Strategy OnDemand -InProcess:$InProcess
        }

        It 'is read as it is, and what has not come from its image' {
            $guest = New-MmapRegion 64KiB 0x100000000 -Memfd
            $guest | Connect-UffdHandler "$TestDrive/uffd.sock" -ShareMemory
            $guest | Write-GuestMemory 0x100003000 'hello'
            Wait-Until { $handler.ConnectionCount -eq 1 }
            Read-GuestMemory 0x3000 5 -UffdVm uffd-1 -Encoding ascii | Should -Be hello
            Get-UffdVm | Read-GuestMemory 0x3000 5 -Encoding ascii | Should -Be hello
            [Convert]::ToHexString((Read-GuestMemory 0x8000 4096 -UffdVm 1 -Raw)) | Should -Be ([Convert]::ToHexString($content[0x8000..0x8FFF]))
            (Read-GuestMemory 0xFFF0 -UffdVm (Get-UffdVm) 16).Size | Should -Be 16
            Read-GuestMemory 0 64KiB -UffdVm uffd-1 -OutFile "$TestDrive/out.bin"
            (Get-Item "$TestDrive/out.bin").Length | Should -Be 64KB
            (Get-UffdVm).PercentPresent | Should -Be 6.25 -Because 'one page of 16 has come to the VM'
            { Read-GuestMemory 0x10000 1 -UffdVm uffd-1 -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidGuestAddress,*'
            { Get-UffdVm | Write-GuestMemory 0 1 -ErrorAction Stop } | Should -Throw '*can be read (Read-GuestMemory)*' -ErrorId 'ValueNotSupported,*'
            { $guest | Read-GuestMemory 0 1 -UffdVm uffd-1 -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        }

        It 'cannot be read where its VMM did not share it' {
            New-MmapRegion 64KiB 0x100000000 | Connect-UffdHandler "$TestDrive/uffd.sock"
            Wait-Until { $handler.ConnectionCount -eq 1 }
            $failure = { Get-UffdVm | Read-GuestMemory 0 1 -ErrorAction Stop } | Should -Throw -ErrorId 'MemoryNotShared,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidOperation
            "$failure" | Should -Match "VM 'uffd-1'"
            $failure.ErrorDetails.RecommendedAction | Should -Match 'Connect-UffdHandler -ShareMemory'
            { Read-GuestMemory 0 1 -UffdVm web } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*'
        }
    }

    It 'says so where no memory was given' {
        { Read-GuestMemory 0 16 -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }

    It 'completes types, byte orders and encodings' {
        Get-Completion 'Read-GuestMemory 0 -As UIn' | Should -Be UInt128, UInt16, UInt32, UInt64
        Get-Completion 'Read-GuestMemory 0 -As UInt32 -Endian ' | Should -Be Big, Little
        Get-Completion 'Read-GuestMemory 0 16 -Encoding u' | Should -Be utf8, unicode, utf32
    }

    It 'refuses an encoding that nobody knows' {
        { $low | Read-GuestMemory 0 16 -Encoding klingon } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*'
    }

    It 'takes one form at a time' {
        { $low | Read-GuestMemory 0 16 -Raw -OutFile x } | Should -Throw -ErrorId 'AmbiguousParameterSet,*'
        { $low | Read-GuestMemory 0 -As UInt32 -Encoding utf8 } | Should -Throw -ErrorId 'AmbiguousParameterSet,*'
    }

    It 'says what it gives' {
        (Get-Command Read-GuestMemory).OutputType.Type | Should -Be @(
            [GuestMemory.Core.MemoryBlock], [byte[]], [ulong], [long], [uint], [int], [ushort], [short], [byte], [sbyte], [int128], [uint128], [Half], [float], [double], [string], [IO.FileInfo])
    }
}
