BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Remove-GuestMemoryImage' {
    BeforeEach {
        $store = "$TestDrive/store"
        $region = New-MmapRegion 64KiB -Name ram
        foreach ($text in 'first', 'second') {
            $region | Write-GuestMemory 0 $text
            $null = $region | Publish-GuestMemoryImage "$store/web"
        }
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'removes a generation, and the chunks that no other has' {
        $result = Remove-GuestMemoryImage "$store/web@1" -Confirm:$false -PassThru
        $result.Removed | Should -Be 1
        $result.Kept | Should -Be 1
        Get-GuestMemoryImage $store -AllGenerations | ForEach-Object Generation | Should -Be 2
        (Test-GuestMemoryImage "$store/web").IsWhole | Should -BeTrue
    }

    It 'removes an image with all its generations' {
        Get-GuestMemoryImage $store | Remove-GuestMemoryImage -WhatIf
        Get-GuestMemoryImage $store -AllGenerations | Should -HaveCount 2
        Remove-GuestMemoryImage "$store/web" -Confirm:$false
        Get-GuestMemoryImage $store -AllGenerations | Should -BeNullOrEmpty
        Get-ChildItem "$store/packs" -Recurse -File | Should -BeNullOrEmpty
    }

    It 'removes what an upload has left that was ended' {
        Remove-Item "$store/images/web/0000000001.gmi"
        $result = Remove-GuestMemoryImage -Unused $store -Confirm:$false -PassThru
        $result.Removed | Should -Be 1
        $result.Kept | Should -Be 1
    }

    It 'refuses a directory that is no store, and makes none' {
        { Remove-GuestMemoryImage -Unused "$TestDrive/stroe" -Confirm:$false -ErrorAction Stop } | Should -Throw -ErrorId 'FileNotFound,*'
        "$TestDrive/stroe" | Should -Not -Exist
        { Remove-GuestMemoryImage -Unused $TestDrive -Confirm:$false -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
    }

    It 'refuses an image that is not there' {
        { Remove-GuestMemoryImage "$store/none" -Confirm:$false -ErrorAction Stop } | Should -Throw -ErrorId 'ImageNotFound,*'
    }
}
