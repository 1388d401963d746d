BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Stop-GuestMemoryExport' {
    BeforeEach {
        $socket = "$TestDrive/vm.sock"
        $region = New-MmapRegion 64KiB
        $export = $region | Start-GuestMemoryExport $socket
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'ends an export and its clients, takes its socket away and leaves the memory' {
        $client = Connect-FrontEnd $socket
        try {
            $null = $client.Receive([byte[]]::new(18))
            $export | Stop-GuestMemoryExport | Should -BeNullOrEmpty
            $client.Receive([byte[]]::new(1)) | Should -Be 0
        }
        finally {
            $client.Dispose()
        }
        $socket | Should -Not -Exist
        Get-GuestMemoryExport | Should -BeNullOrEmpty
        ($region | Read-GuestMemory 0 4).Bytes | Should -Be 0, 0, 0, 0
        ($region | Start-GuestMemoryExport $socket -ErrorAction Stop).State | Should -Be Listening
    }

    It 'finds exports by name and wildcards' {
        Stop-GuestMemoryExport n*
        Get-GuestMemoryExport | Should -Be $export
        Stop-GuestMemoryExport VM
        Get-GuestMemoryExport | Should -BeNullOrEmpty
        { Stop-GuestMemoryExport vm -ErrorAction Stop } | Should -Throw -ErrorId 'ExportNotFound,*'
    }

    It 'gives the export with -PassThru, and stops nothing with -WhatIf' {
        $export | Stop-GuestMemoryExport -WhatIf
        $export.State | Should -Be Listening
        ($export | Stop-GuestMemoryExport -PassThru).State | Should -Be Stopped
        ($export | Stop-GuestMemoryExport -PassThru -ErrorAction Stop).State | Should -Be Stopped
    }
}
