BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Test-GuestMemoryImage' {
    BeforeEach {
        $store = "$TestDrive/store"
        $region = New-MmapRegion 1MiB -Name ram
        foreach ($at in 0, 0x40000, 0x80000) { $region | Write-GuestMemory $at $at.ToString() }
        $null = $region | Publish-GuestMemoryImage "$store/web" -ChunkSize 64KiB
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'finds an image whole' {
        $check = Get-GuestMemoryImage $store | Test-GuestMemoryImage
        $check.IsWhole | Should -BeTrue
        $check.ChunkCount | Should -Be 3
        $check.Errors | Should -BeNullOrEmpty
    }

    It 'names each chunk that is damaged' {
        $pack = Get-ChildItem "$store/packs" -Recurse -File
        $bytes = [IO.File]::ReadAllBytes($pack)
        $bytes[20] = $bytes[20] -bxor 1
        [IO.File]::WriteAllBytes($pack, $bytes)
        $check = Test-GuestMemoryImage "$store/web"
        $check.IsWhole | Should -BeFalse
        $check.Errors | Should -HaveCount 1
        $check.Errors | Should -Match 'the chunk of 65536 bytes at 16 in packs/'
    }

    It 'names all that are gone' {
        Get-ChildItem "$store/packs" -Recurse -File | Remove-Item
        (Test-GuestMemoryImage "$store/web").Errors | Should -HaveCount 3
    }

    It 'reports a damaged manifest as an error' {
        $manifest = "$store/images/web/0000000001.gmi"
        $bytes = [IO.File]::ReadAllBytes($manifest)
        $bytes[300] = $bytes[300] -bxor 1
        [IO.File]::WriteAllBytes($manifest, $bytes)
        { Test-GuestMemoryImage "$store/web" -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidImage,*'
    }
}
