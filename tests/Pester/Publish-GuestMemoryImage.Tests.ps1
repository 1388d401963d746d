BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Publish-GuestMemoryImage' {
    BeforeEach {
        $low = New-MmapRegion 1MiB -Name low
        $high = New-MmapRegion 512KiB 0x100000000 -Name high
        $low | Write-GuestMemory 0x1234 'the first region'
        $high | Write-GuestMemory 0x100000010 'the second region'
        $store = "$TestDrive/store"
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'publishes an address space as an image, which comes back byte for byte' {
        $image = $low, $high | Publish-GuestMemoryImage "$store/web"
        $image.Location | Should -Be "$store/web@1"
        $image.Size | Should -Be 1.5MB
        $image.IsLatest | Should -BeTrue
        $image.UniqueCount | Should -Be 2
        $image.UploadedSize | Should -BeGreaterThan 0
        Save-GuestMemoryImage "$store/web" "$TestDrive/web.mem"
        $low, $high | Export-GuestMemory "$TestDrive/expected.mem"
        (Get-FileHash "$TestDrive/web.mem").Hash | Should -Be (Get-FileHash "$TestDrive/expected.mem").Hash
    }

    It 'sends only what has changed since, and what no other image has' {
        $null = $low, $high | Publish-GuestMemoryImage "$store/web" -ChunkSize 64KiB
        $low | Write-GuestMemory 0x80000 'new'
        $second = $low, $high | Publish-GuestMemoryImage "$store/web" -ChunkSize 64KiB
        $second.Generation | Should -Be 2
        $second.SharedCount | Should -Be 2
        $second.UniqueCount | Should -Be 3
        ($low, $high | Publish-GuestMemoryImage "$store/copy" -ChunkSize 64KiB).UploadedSize | Should -Be 0
    }

    It 'publishes an image file, compressed with <_>' -ForEach 'LZ4', 'Zstd', 'None' {
        $low | Export-GuestMemory "$TestDrive/low.mem"
        $image = Publish-GuestMemoryImage "$TestDrive/low.mem" "$store/low" -Compression $_
        $image.Size | Should -Be 1MB
        Save-GuestMemoryImage $image.Location "$TestDrive/again.mem"
        (Get-FileHash "$TestDrive/again.mem").Hash | Should -Be (Get-FileHash "$TestDrive/low.mem").Hash
        Get-MmapRegion | ForEach-Object Name | Should -Be low, high
    }

    It 'publishes an image of another format with its addresses' {
        $low, $high | Export-GuestMemory "$TestDrive/vm.lime" -Format LiME
        $image = Publish-GuestMemoryImage "$TestDrive/vm.lime" "$store/vm"
        $low, $high | Publish-GuestMemoryImage "$store/memory" | ForEach-Object StoredSize | Should -Be $image.StoredSize
    }

    It 'signs an image, which others then demand' {
        foreach ($name in 'ours', 'other') {
            $key = [Security.Cryptography.ECDsa]::Create([Security.Cryptography.ECCurve]::CreateFromFriendlyName('nistP256'))
            Set-Content "$TestDrive/$name.key" $key.ExportPkcs8PrivateKeyPem()
            Set-Content "$TestDrive/$name.pub" $key.ExportSubjectPublicKeyInfoPem()
        }
        $low | Publish-GuestMemoryImage "$store/signed" -SigningKey "$TestDrive/ours.key" | ForEach-Object SigningKey | Should -Match '^[0-9a-f]{64}$'
        $null = $low | Publish-GuestMemoryImage "$store/unsigned"
        Save-GuestMemoryImage "$store/signed" "$TestDrive/a.mem" -TrustedKey "$TestDrive/other.pub", "$TestDrive/ours.pub"
        Test-GuestMemoryImage "$store/signed" -TrustedKey "$TestDrive/ours.key" | ForEach-Object IsWhole | Should -BeTrue
        { Save-GuestMemoryImage "$store/signed" "$TestDrive/b.mem" -TrustedKey "$TestDrive/other.pub" -ErrorAction Stop } | Should -Throw -ErrorId 'ImageUntrusted,*'
        { Save-GuestMemoryImage "$store/unsigned" "$TestDrive/b.mem" -TrustedKey "$TestDrive/ours.pub" -ErrorAction Stop } | Should -Throw -ErrorId 'ImageUntrusted,*'
        "$TestDrive/b.mem" | Should -Not -Exist
    }

    It 'takes a file or memory, and needs a place' {
        $low | Export-GuestMemory "$TestDrive/low.mem"
        { $low | Publish-GuestMemoryImage "$TestDrive/low.mem" "$store/low" -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        { $low | Publish-GuestMemoryImage "$store/low" -Layout '0-1MiB' -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        { Publish-GuestMemoryImage -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        { Publish-GuestMemoryImage "$store/low" -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
        { Publish-GuestMemoryImage "$TestDrive/none.mem" "$store/low" -ErrorAction Stop } | Should -Throw -ErrorId 'ImageNotFound,*'
        $store | Should -Not -Exist
    }

    It 'does nothing with -WhatIf' {
        $low | Publish-GuestMemoryImage "$store/web" -WhatIf | Should -BeNullOrEmpty
        $store | Should -Not -Exist
    }

    It 'refuses <What> with <Id>, and leaves no store behind' -ForEach @(
        @{ What = 'a place without a name'; Id = 'ValueNotSupported'; Given = @{ Destination = 'web' } }
        @{ What = 'a generation'; Id = 'ValueNotSupported'; Given = @{ Destination = 'store/web@2' } }
        @{ What = 'a store of an unknown kind'; Id = 'ValueNotSupported'; Given = @{ Destination = 'ftp://host/web' } }
        @{ What = 'a chunk size that is no power of two'; Id = 'ValueNotSupported'; Given = @{ Destination = 'store/web'; ChunkSize = 100KB } }
        @{ What = 'a key that is none'; Id = 'InvalidKey'; Given = @{ Destination = 'store/web'; SigningKey = '/etc/passwd' } }
        @{ What = 'a record that is not there'; Id = 'RecordNotFound'; Given = @{ Destination = 'store/web'; RecordPath = '/nowhere/a.touch' } }
    ) {
        Push-Location $TestDrive
        try {
            { $low | Publish-GuestMemoryImage @Given -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*"
            Get-ChildItem "$store/images", "$store/packs" -ErrorAction Ignore | Should -BeNullOrEmpty
        }
        finally {
            Pop-Location
        }
    }
}
