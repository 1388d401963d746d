BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force

    function Get-LimeHeader([uint64] $First, [uint64] $Last) {
        # As LiME writes it, version 1.
        [byte[]] ([Text.Encoding]::ASCII.GetBytes('EMiL') + [BitConverter]::GetBytes([uint] 1) + [BitConverter]::GetBytes($First) + [BitConverter]::GetBytes($Last) + [byte[]]::new(8))
    }

    function Test-Same([byte[]] $Bytes, [byte[]] $Expected) {
        [Linq.Enumerable]::SequenceEqual($Bytes, $Expected) | Should -BeTrue -Because 'these are the bytes of the image'
    }

    function Write-Lime([string] $Path, [byte[]] $Low, [byte[]] $High) {
        # A range from 4 KiB on, and one from 4 GiB on.
        $bytes = (Get-LimeHeader 0x1000 (0x1000 + $Low.Length - 1)) + $Low + (Get-LimeHeader 0x100000000 (0x100000000 + $High.Length - 1)) + $High
        [IO.File]::WriteAllBytes($Path, [byte[]] $bytes)
    }
}

Describe 'Import-GuestMemory' {
    BeforeEach {
        $low, $high = [byte[]]::new(8192), [byte[]]::new(65536)
        [Random]::new(1).NextBytes($low)
        [Random]::new(2).NextBytes($high)
        [Text.Encoding]::ASCII.GetBytes('needle').CopyTo($high, 4094)
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'opens an image with its guest addresses, as regions of the shell' {
        Write-Lime "$TestDrive/vm.lime" $low $high
        $memory = Import-GuestMemory "$TestDrive/vm.lime"
        $memory | Should -BeOfType GuestMemory.Core.GuestMemoryMmap
        $memory.Regions.GuestAddress | Should -Be 0x1000, 0x100000000
        (Get-MmapRegion).Name | Should -Be 'vm-0', 'vm-1'
        Get-MmapRegion | Out-String -Width 200 | Should -Match 'vm-1\s+0x100000000\s+0x10000ffff\s+64 KiB\s+No\s+/.*vm\.lime'
        Test-Same (Read-GuestMemory -Memory $memory 0x1000 8192 -Raw) $low
        $memory | Remove-MmapRegion
        Get-MmapRegion | Should -BeNullOrEmpty
        { Read-GuestMemory -Memory $memory 0x1000 1 -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
    }

    It 'gives memory that can be searched and compared, and not written' {
        Write-Lime "$TestDrive/a.lime" $low $high
        $high[5000] = $high[5000] -bxor 1
        Write-Lime "$TestDrive/b.lime" $low $high
        $memory = Import-GuestMemory "$TestDrive/a.lime"
        ($memory | Search-GuestMemory -Text needle).Address | Should -Be (0x100000000 + 4094)
        $difference = Compare-GuestMemory -Memory $memory -With (Import-GuestMemory "$TestDrive/b.lime")
        $difference.Address | Should -Be 0x100001000
        $failure = { Write-GuestMemory -Memory $memory 0x1000 1 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*' -PassThru
        $failure.Exception.Message | Should -Match 'protection is Read'
    }

    It 'converts, piped to Export-GuestMemory: LiME to <_>' -ForEach 'Raw', 'Chunked' {
        Write-Lime "$TestDrive/vm.lime" $low $high
        Import-GuestMemory "$TestDrive/vm.lime" | Export-GuestMemory "$TestDrive/vm.other" -Format $_
        $again = Import-GuestMemory "$TestDrive/vm.other" -Layout '0x1000+8KiB', @{ Address = 0x100000000; Size = 64KB }
        Compare-GuestMemory -Memory (Get-MmapRegion vm-0, vm-1 | Get-GuestMemory) -With $again | Should -BeNullOrEmpty
        $again.Size | Should -Be 73728
    }

    It 'opens plain memory where a microVM has it' {
        $file = [IO.File]::Create("$TestDrive/vm.mem")
        $file.SetLength(3GB + 1MB)
        $null = $file.Seek(3GB, 'Begin')
        $file.WriteByte(7)
        $file.Dispose()
        $memory = Import-GuestMemory "$TestDrive/vm.mem" -Layout x64
        $memory.Regions | ForEach-Object { '0x{0:x}+0x{1:x}' -f $_.GuestAddress, $_.Size } | Should -Be '0x0+0xc0000000', '0x100000000+0x100000'
        $memory.Regions[0] | Should -BeOfType GuestMemory.Core.GuestRegionMmap
        Read-GuestMemory -Memory $memory 0x100000000 1 -Raw | Should -Be 7
        (Import-GuestMemory "$TestDrive/vm.mem" -Layout Arm64).Regions.GuestAddress | Should -Be 2GB
        (Import-GuestMemory "$TestDrive/vm.mem" -Layout flat).Regions.Size | Should -Be (3GB + 1MB)
    }

    It 'takes ranges: <What>' -ForEach @(
        @{ What = 'first to behind the last'; Layout = { '0-8KiB', '4GiB-0x100010000' } }
        @{ What = 'address and size'; Layout = { '0+8192', '4GiB+64KiB' } }
        @{ What = 'hashtables'; Layout = { @{ Address = 0; Size = 8KB }, @{ GuestAddress = 4GB; Size = '64KiB'; FileOffset = 8192 } } }
        @{ What = 'objects'; Layout = { [pscustomobject] @{ Address = 4GB; Size = 64KB; FileOffset = 8KB }, [pscustomobject] @{ Address = 0; Size = 8KB; FileOffset = 0 } } }
    ) {
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", [byte[]] ($low + $high))
        $memory = Import-GuestMemory "$TestDrive/vm.mem" -Layout (& $Layout)
        $memory.Regions.GuestAddress | Should -Be 0, 0x100000000
        Test-Same (Read-GuestMemory -Memory $memory 0x100000000 65536 -Raw) $high
    }

    It 'refuses a layout that is none: <_>' -ForEach '8KiB', '3-1', '0-x', 'none' {
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", $low)
        { Import-GuestMemory "$TestDrive/vm.mem" -Layout $_ } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*'
        { Import-GuestMemory "$TestDrive/vm.mem" -Layout @{ Address = 0; Size = 8KB; Length = 1 } } | Should -Throw '*no Length*'
        $failure = { Import-GuestMemory "$TestDrive/vm.mem" -Layout 0-4KiB -ErrorAction Stop } | Should -Throw -ErrorId 'LayoutMismatch,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be InvalidArgument
        $failure.ErrorDetails.RecommendedAction | Should -Match '-Layout'
    }

    It 'checks the digest that sha256sum wrote with -Verify' {
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", $low)
        $failure = { Import-GuestMemory "$TestDrive/vm.mem" -Verify -ErrorAction Stop } | Should -Throw -ErrorId 'DigestNotFound,*' -PassThru
        $failure.ErrorDetails.RecommendedAction | Should -Match 'sha256sum'
        Push-Location $TestDrive
        try { sha256sum vm.mem > vm.mem.sha256 } finally { Pop-Location }
        Import-GuestMemory "$TestDrive/vm.mem" -Verify | Remove-MmapRegion
        $low[0] = $low[0] -bxor 1
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", $low)
        $failure = { Import-GuestMemory "$TestDrive/vm.mem" -Verify -ErrorAction Stop } | Should -Throw -ErrorId 'DigestMismatch,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be InvalidData
        Get-MmapRegion | Should -BeNullOrEmpty
        (Import-GuestMemory "$TestDrive/vm.mem").Size | Should -Be 8192
    }

    It 'refuses by name what it does not read, and opens it with -Format Raw' {
        [IO.File]::WriteAllBytes("$TestDrive/vm.state", [byte[]] ([Text.Encoding]::ASCII.GetBytes('QEVM') + [byte[]]::new(4092)))
        $failure = { Import-GuestMemory "$TestDrive/vm.state" -ErrorAction Stop } | Should -Throw -ErrorId 'ImageUnsupported,*' -PassThru
        $failure.Exception.Message | Should -Match 'migration stream of QEMU'
        $failure.CategoryInfo.Category | Should -Be NotImplemented
        $failure.ErrorDetails.RecommendedAction | Should -Match '-Format Raw'
        Import-GuestMemory "$TestDrive/vm.state" -Format Raw -Layout Flat | Read-GuestMemory 0 4 -Encoding ascii | Should -Be QEVM
    }

    It 'takes files from the pipeline, each with its own result' {
        Write-Lime "$TestDrive/a.lime" $low $high
        [IO.File]::WriteAllBytes("$TestDrive/b.lime", [byte[]] [IO.File]::ReadAllBytes("$TestDrive/a.lime")[0..50])
        Write-Lime "$TestDrive/c.lime" $low $high
        $memory = Get-ChildItem "$TestDrive/*.lime" | Import-GuestMemory -ErrorAction SilentlyContinue -ErrorVariable failure
        @($memory).Count | Should -Be 2
        $failure.FullyQualifiedErrorId | Should -Be 'InvalidImage,GuestMemory.PowerShell.Commands.ImportGuestMemoryCommand'
        (Get-MmapRegion).Name | Sort-Object | Should -Be 'a-0', 'a-1', 'c-0', 'c-1'
    }

    It 'gives names that are free, and refuses one that is taken' {
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", $low)
        1..2 | ForEach-Object { $null = Import-GuestMemory "$TestDrive/vm.mem" }
        (Get-MmapRegion).Name | Should -Be 'vm', 'vm_2'
        $null = Import-GuestMemory "$TestDrive/vm.mem" -Name mine
        { Import-GuestMemory "$TestDrive/vm.mem" -Name mine -ErrorAction Stop } | Should -Throw -ErrorId 'NameInUse,*'
        (Get-MmapRegion).Count | Should -Be 3
    }

    It 'keeps the image from being written while it is open' {
        $region = New-MmapRegion 8KiB -Name live -DirtyTracking
        $region | Export-GuestMemory "$TestDrive/vm.mem"
        $memory = Import-GuestMemory "$TestDrive/vm.mem"
        $region | Write-GuestMemory 0 1
        { $region | Export-GuestMemory "$TestDrive/vm.mem" -Format Diff -ErrorAction Stop } | Should -Throw -ErrorId 'ImageInUse,*'
        $memory | Remove-MmapRegion
        $region | Export-GuestMemory "$TestDrive/vm.mem" -Format Diff
    }

    It 'says that the image was cut off, and goes on' {
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", $high)
        $memory = Import-GuestMemory "$TestDrive/vm.mem" -Layout Flat
        truncate -s 4096 "$TestDrive/vm.mem"
        Test-Same (Read-GuestMemory -Memory $memory 0 4096 -Raw) $high[0..4095]
        { Read-GuestMemory -Memory $memory 0 8192 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
        { $memory | Export-GuestMemory "$TestDrive/copy.mem" -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
        "$TestDrive/copy.mem" | Should -Not -Exist
    }

    It 'resolves a relative path by the location of the session' {
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", $low)
        Push-Location $TestDrive
        try { (Import-GuestMemory vm.mem).Size | Should -Be 8192 } finally { Pop-Location }
        { Import-GuestMemory "$TestDrive/missing" -ErrorAction Stop } | Should -Throw -ErrorId 'ImageNotFound,*'
        { Import-GuestMemory $TestDrive -ErrorAction Stop } | Should -Throw -ErrorId 'NotAFile,*'
    }

    It 'completes formats and layouts' {
        $line = 'Import-GuestMemory vm.mem -Format K'
        (TabExpansion2 $line $line.Length).CompletionMatches.CompletionText | Should -Be Kdump
        $line = 'Import-GuestMemory vm.mem -Layout '
        (TabExpansion2 $line $line.Length).CompletionMatches.CompletionText | Should -Be x64, Arm64, Flat, 0-3GiB
    }
}

Describe 'Export-GuestMemory' {
    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'refuses a format that is only read: <_>' -ForEach 'Kdump', 'MemoryRanges' {
        { New-MmapRegion 4KiB | Export-GuestMemory "$TestDrive/vm.out" -Format $_ } | Should -Throw -ErrorId 'ParameterArgumentValidationError,*'
        "$TestDrive/vm.out" | Should -Not -Exist
    }
}

Describe 'Import-GuestMemory from a store' {
    BeforeEach {
        $low = New-MmapRegion 1MiB -Name low
        $high = New-MmapRegion 512KiB 0x100000000 -Name high
        $low | Write-GuestMemory 0x1234 'the first region'
        $high | Write-GuestMemory 0x100000010 'the second region'
        $store = "$TestDrive/store"
        $null = $low, $high | Publish-GuestMemoryImage "$store/web" -ChunkSize 64KiB
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'opens an image with its addresses, to be read' {
        $image = Import-GuestMemory "$store/web" -Verify
        $image.Regions.Name | Should -Be 'web-0', 'web-1'
        $image.Regions.BackingPath | Should -Be "$store/web@1", "$store/web@1"
        $image | Read-GuestMemory 0x1234 16 -Encoding ascii | Should -Be 'the first region'
        $image | Compare-GuestMemory -With $low, $high | Should -BeNullOrEmpty
        { $image | Write-GuestMemory 0 1 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
        (Get-GuestMemoryImage $store | Import-GuestMemory -Name again).Size | Should -Be 1.5MB
    }

    It 'reads what a region of a chunk has that is damaged as an error' {
        $pack = Get-ChildItem "$store/packs" -Recurse -File
        $bytes = [IO.File]::ReadAllBytes($pack)
        $bytes[20] = $bytes[20] -bxor 1
        [IO.File]::WriteAllBytes($pack, $bytes)
        { Import-GuestMemory "$store/web" -Verify -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidImage,*'
        $image = Import-GuestMemory "$store/web"
        { $image | Read-GuestMemory 0x1234 16 -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidImage,*'
        $image | Read-GuestMemory 0x100000010 17 -Encoding ascii | Should -Be 'the second region'
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'an image that is not there'; Id = 'ImageNotFound'; Given = @{ Path = 'store/none' } }
        @{ What = 'a layout'; Id = 'ValueNotSupported'; Given = @{ Path = 'store/web'; Layout = '0-2MiB' } }
        @{ What = 'an image that is not signed'; Id = 'ImageUntrusted'; Given = @{ Path = 'store/web'; TrustedKey = 'a.pub' } }
    ) {
        Set-Content "$TestDrive/a.pub" ([Security.Cryptography.ECDsa]::Create([Security.Cryptography.ECCurve]::CreateFromFriendlyName('nistP256')).ExportSubjectPublicKeyInfoPem())
        Push-Location $TestDrive
        try { { Import-GuestMemory @Given -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*" } finally { Pop-Location }
    }
}
