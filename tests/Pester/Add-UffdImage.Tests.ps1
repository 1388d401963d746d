BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Add-UffdImage, <Where>' -ForEach @(
    @{ Where = 'in this shell'; InProcess = $true }
    @{ Where = 'in a process of its own'; InProcess = $false }
) {
    BeforeEach {
        Skip-UnlessSupported $userfaultfd
        $web = Write-RandomFile "$TestDrive/web.mem" 64KB
        $db = Write-RandomFile "$TestDrive/db.mem" 64KB
        $handler = Start-UffdHandler "$TestDrive/web.sock" "$TestDrive/web.mem" -Strategy OnDemand -InProcess:$InProcess
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'serves one more image beside the first' {
        $handler | Add-UffdImage db "$TestDrive/db.mem" | Should -BeNullOrEmpty
        (Get-UffdImage).Name | Should -Be 'web', 'db'
        $regions = 1..2 | ForEach-Object { New-MmapRegion 64KiB ($_ * 0x100000000) }
        $regions[0] | Connect-UffdHandler "$TestDrive/db.sock"
        $regions[1] | Connect-UffdHandler "$TestDrive/web.sock"
        [Convert]::ToHexString(($regions[0] | Read-GuestMemory 0x100000000 64KiB -Raw)) | Should -Be ([Convert]::ToHexString([IO.File]::ReadAllBytes("$TestDrive/db.mem")))
        [Convert]::ToHexString(($regions[1] | Read-GuestMemory 0x200000000 64KiB -Raw)) | Should -Be ([Convert]::ToHexString([IO.File]::ReadAllBytes("$TestDrive/web.mem")))
        Wait-Until { $handler.ConnectionCount -eq 2 }
        (Get-UffdVm | Sort-Object Id).Image | Sort-Object | Should -Be 'db', 'web'
    }

    It 'emits the image, at a socket of its own, with -PassThru' {
        $image = $handler | Add-UffdImage db "$TestDrive/db.mem" -SocketPath "$TestDrive/other.sock" -PassThru
        $image | Should -BeOfType GuestMemory.Core.Userfault.UffdImage
        ($image.Name, $image.SocketPath, $image.MemoryPath, $image.State, $image.ConnectionCount) | Should -Be 'db', "$TestDrive/other.sock", "$TestDrive/db.mem", 'Serving', 0
        "$image" | Should -Be 'db'
        Test-Path "$TestDrive/other.sock" | Should -BeTrue
    }

    It 'changes nothing with -WhatIf' {
        $handler | Add-UffdImage db "$TestDrive/db.mem" -WhatIf
        (Get-UffdImage).Name | Should -Be 'web'
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'a name that is taken'; Id = 'NameInUse'; Make = { $handler | Add-UffdImage Web "$TestDrive/db.mem" -SocketPath "$TestDrive/o.sock" -ErrorAction Stop } }
        @{ What = 'a name that is none'; Id = 'ValueNotSupported'; Make = { $handler | Add-UffdImage 7 "$TestDrive/db.mem" -ErrorAction Stop } }
        @{ What = 'a file that is not there'; Id = 'ImageNotFound'; Make = { $handler | Add-UffdImage db "$TestDrive/none.mem" -ErrorAction Stop } }
        @{ What = 'a record that does not go with the strategy'; Id = 'ValueNotSupported'; Make = { $handler | Add-UffdImage db "$TestDrive/db.mem" -ReplayPath "$TestDrive/web.mem" -ErrorAction Stop } }
        @{ What = 'a handler that has ended'; Id = 'HandlerGone'; Make = { $handler | Stop-UffdHandler; $handler | Add-UffdImage db "$TestDrive/db.mem" -ErrorAction Stop } }
    ) {
        $Make | Should -Throw -ErrorId "$Id,*"
        Test-Path "$TestDrive/db.sock" | Should -BeFalse
    }
}
