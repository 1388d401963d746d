BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Start-GuestMemoryExport' {
    # What clients read is in tests/Integration/Nbd.Tests.ps1.
    BeforeEach {
        $socket = "$TestDrive/vm.sock"
        $low = New-MmapRegion 64KiB 0x1000 -Name low
        $high = New-MmapRegion 64KiB 0x100000000 -Name high
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'exports regions as one address space, at a socket that only this user may use' {
        $export = $low, $high | Start-GuestMemoryExport $socket
        $export | Should -BeOfType GuestMemory.Core.Nbd.MemoryExport
        $export.Name | Should -Be vm
        $export.Size | Should -Be 0x100010000
        $export.MemorySize | Should -Be 128KB
        $export.State | Should -Be Listening
        $export.Uri | Should -Be "nbd+unix:///?socket=$socket"
        [IO.File]::GetUnixFileMode($socket) | Should -Be ([IO.UnixFileMode] 'UserRead, UserWrite')
        $client = Connect-FrontEnd $socket
        try {
            $greeting = [byte[]]::new(18)
            $client.Receive($greeting) | Should -Be 18
            [Text.Encoding]::ASCII.GetString($greeting, 0, 16) | Should -Be NBDMAGICIHAVEOPT
            Wait-Until { $export.ConnectionCount -eq 1 }
        }
        finally {
            $client.Dispose()
        }
    }

    It 'listens at a port of this host' {
        $export = $low | Start-GuestMemoryExport -Port 0 -Name first
        $export.Port | Should -BeGreaterThan 0
        $export.SocketPath | Should -BeNullOrEmpty
        ($high | Start-GuestMemoryExport -Port 0).Name | Should -Be memory
        { $high | Start-GuestMemoryExport -Port $export.Port -ErrorAction Stop } | Should -Throw -ErrorId 'PortInUse,*'
        (Get-Content /proc/net/tcp) -match (' 0100007F:{0:X4} 00000000:0000 0A' -f $export.Port) | Should -Not -BeNullOrEmpty
    }

    It 'lays regions one behind the other with -Packed' {
        ($low, $high | Start-GuestMemoryExport $socket -Packed).Size | Should -Be 128KB
    }

    It 'exports each address space by itself' {
        ($low | Get-GuestMemory), ($high | Get-GuestMemory) | Start-GuestMemoryExport -Port 0 | ForEach-Object Name | Should -Be memory, memory-2
        { ($low | Get-GuestMemory), ($high | Get-GuestMemory) | Start-GuestMemoryExport $socket -ErrorAction Stop } | Should -Throw -ErrorId 'SocketInUse,*'
    }

    It 'refuses what cannot be' {
        $null = $low | Start-GuestMemoryExport $socket
        { $high | Start-GuestMemoryExport "$TestDrive/other.sock" -Name VM -ErrorAction Stop } | Should -Throw "*'Stop-GuestMemoryExport -Name VM'*" -ErrorId 'NameInUse,*'
        { $high | Start-GuestMemoryExport "$TestDrive/none/other.sock" -ErrorAction Stop } | Should -Throw -ErrorId 'SocketNotFound,*'
        { $high | Start-GuestMemoryExport -Port 0 -AllowUser nobody-of-that-name -ErrorAction Stop } | Should -Throw -ErrorId 'UserNotFound,*'
        { Get-MmapRegion none* | Start-GuestMemoryExport -Port 0 -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
        { $low | Start-GuestMemoryExport -SocketPath $socket -Port 0 -ErrorAction Stop } | Should -Throw -ErrorId 'AmbiguousParameterSet,*'
        $top = New-MmapRegion 64KiB 0xfffffffffff00000 -Name top
        $top | Start-GuestMemoryExport -Port 0 -ErrorAction SilentlyContinue -ErrorVariable failure
        $failure.FullyQualifiedErrorId | Should -BeLike 'ValueNotSupported,*'
        $failure.ErrorDetails.RecommendedAction | Should -BeLike '-Packed*'
        (Get-GuestMemoryExport).Name | Should -Be vm
    }

    It 'does nothing with -WhatIf' {
        $low | Start-GuestMemoryExport $socket -WhatIf
        $socket | Should -Not -Exist
        Get-GuestMemoryExport | Should -BeNullOrEmpty
    }

    It 'leaves no descriptor and no thread' {
        $low | Start-GuestMemoryExport $socket | Stop-GuestMemoryExport
        $before = Get-DescriptorCount
        1..10 | ForEach-Object {
            $export = $low | Start-GuestMemoryExport $socket
            $client = Connect-FrontEnd $socket
            Wait-Until { $export.ConnectionCount -eq 1 }
            $export | Stop-GuestMemoryExport
            $client.Dispose()
        }
        Wait-Until { (Get-DescriptorCount) -le $before }
        Wait-Until { -not (Get-NamedThread 'nbd-*') }
        $socket | Should -Not -Exist
    }
}
