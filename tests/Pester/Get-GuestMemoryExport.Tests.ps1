BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Get-GuestMemoryExport' {
    BeforeEach {
        $region = New-MmapRegion 64KiB
        $one = $region | Start-GuestMemoryExport "$TestDrive/one.sock"
        $two = $region | Start-GuestMemoryExport -Port 0 -Name two
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'lists all exports, and finds them by name and wildcards' {
        Get-GuestMemoryExport | Should -Be $one, $two
        Get-GuestMemoryExport ONE | Should -Be $one
        't*' | Get-GuestMemoryExport | Should -Be $two
        $two | Get-GuestMemoryExport | Should -Be $two
        Get-GuestMemoryExport none* | Should -BeNullOrEmpty
        { Get-GuestMemoryExport three -ErrorAction Stop } | Should -Throw -ErrorId 'ExportNotFound,*'
    }

    It 'offers their names' {
        Get-Completion 'Get-GuestMemoryExport ' | Should -Be one, two
        Get-Completion 'Stop-GuestMemoryExport t' | Should -Be two
    }

    It 'shows where they are and what they sent' {
        $text = Get-GuestMemoryExport two | Out-String -Width 120
        $text | Should -Match 'Name\s+State\s+Size\s+Clients\s+Sent\s+Uri'
        $text | Should -Match "two\s+Listening\s+64 KiB\s+0\s+0 B\s+nbd://127.0.0.1:$($two.Port)/"
    }
}
