BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Save-GuestMemoryImage' {
    BeforeEach {
        $store = "$TestDrive/store"
        $region = New-MmapRegion 1MiB -Name ram
        foreach ($text in 'first', 'second') {
            $region | Write-GuestMemory 0x80000 $text
            $null = $region | Publish-GuestMemoryImage "$store/web" -ChunkSize 64KiB
        }
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'saves a generation, with holes for zeros' {
        $info = Save-GuestMemoryImage "$store/web@1" "$TestDrive/a.mem" -PassThru
        $info.PageCount | Should -Be 1
        $bytes = [IO.File]::ReadAllBytes("$TestDrive/a.mem")
        $bytes.Length | Should -Be 1MB
        [Text.Encoding]::ASCII.GetString($bytes, 0x80000, 6) | Should -Be "first`0"
        stat -c %a "$TestDrive/a.mem" | Should -Be 600
    }

    It 'saves what a listing emits' {
        Get-GuestMemoryImage $store | Save-GuestMemoryImage -Path "$TestDrive/a.mem"
        [Text.Encoding]::ASCII.GetString([IO.File]::ReadAllBytes("$TestDrive/a.mem"), 0x80000, 6) | Should -Be second
    }

    It 'keeps a file that is there, unless forced' {
        Set-Content "$TestDrive/a.mem" mine
        { Save-GuestMemoryImage "$store/web" "$TestDrive/a.mem" -ErrorAction Stop } | Should -Throw -ErrorId 'FileExists,*'
        Get-Content "$TestDrive/a.mem" | Should -Be mine
        Save-GuestMemoryImage "$store/web" "$TestDrive/a.mem" -Force
        (Get-Item "$TestDrive/a.mem").Length | Should -Be 1MB
    }

    It 'leaves nothing of an image that is damaged' {
        $pack = Get-ChildItem "$store/packs" -Recurse -File | Select-Object -First 1
        $bytes = [IO.File]::ReadAllBytes($pack)
        $bytes[20] = $bytes[20] -bxor 1
        [IO.File]::WriteAllBytes($pack, $bytes)
        $failure = foreach ($generation in 1, 2) {
            try { Save-GuestMemoryImage "$store/web@$generation" "$TestDrive/a.mem" -Force -ErrorAction Stop } catch { $_ }
        }
        $failure.FullyQualifiedErrorId | Should -Be 'InvalidImage,GuestMemory.PowerShell.Commands.SaveGuestMemoryImageCommand'
        Get-ChildItem -Force $TestDrive -Filter *.part | Should -BeNullOrEmpty
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'an image that is not there'; Id = 'ImageNotFound'; Image = 'store/none' }
        @{ What = 'a generation that is not there'; Id = 'ImageNotFound'; Image = 'store/web@3' }
        @{ What = 'a store that is not there'; Id = 'ImageNotFound'; Image = 'nowhere/web' }
        @{ What = 'what is no place'; Id = 'ValueNotSupported'; Image = 'web' }
    ) {
        Push-Location $TestDrive
        try {
            { Save-GuestMemoryImage $Image "$TestDrive/b.mem" -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*"
        }
        finally {
            Pop-Location
        }
    }
}
