BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Get-GuestMemoryImage' {
    BeforeAll {
        $store = "$TestDrive/store"
        $region = New-MmapRegion 64KiB -Name ram
        foreach ($text in 'first', 'second') {
            $region | Write-GuestMemory 0 $text
            $null = $region | Publish-GuestMemoryImage "$store/web"
        }
        $null = $region | Publish-GuestMemoryImage "$store/db"
        $region | Remove-MmapRegion
    }

    It 'lists the latest generation of each image' {
        Get-GuestMemoryImage $store | ForEach-Object Location | Should -Be "$store/db@1", "$store/web@2"
    }

    It 'lists every generation with -AllGenerations' {
        $images = Get-GuestMemoryImage $store w* -AllGenerations
        $images.Generation | Should -Be 1, 2
        $images.IsLatest | Should -Be $false, $true
        $images[0].UploadedSize | Should -BeNullOrEmpty
    }

    It 'tells of a name that is not there, and not of a pattern' {
        Get-GuestMemoryImage $store no* | Should -BeNullOrEmpty
        { Get-GuestMemoryImage $store none -ErrorAction Stop } | Should -Throw -ErrorId 'ImageNotFound,*'
    }

    It 'tells of a store that is not there' {
        { Get-GuestMemoryImage "$TestDrive/nowhere" -ErrorAction Stop } | Should -Throw -ErrorId 'FileNotFound,*'
    }

    It 'completes the names of images' {
        $text = "Save-GuestMemoryImage $store/w"
        [Management.Automation.CommandCompletion]::CompleteInput($text, $text.Length, $null).CompletionMatches.CompletionText | Should -Be "$store/web"
    }
}
