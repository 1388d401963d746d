BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Remove-UffdImage, <Where>' -ForEach @(
    @{ Where = 'in this shell'; InProcess = $true }
    @{ Where = 'in a process of its own'; InProcess = $false }
) {
    BeforeEach {
        Skip-UnlessSupported $userfaultfd
        $null = Write-RandomFile "$TestDrive/web.mem" 64KB
        $null = Write-RandomFile "$TestDrive/db.mem" 64KB
        $handler = Start-UffdHandler -Image @{ web = "$TestDrive/web.mem"; db = "$TestDrive/db.mem" } -SocketDirectory $TestDrive -Strategy OnDemand -InProcess:$InProcess
        $region = New-MmapRegion 64KiB
        $region | Connect-UffdHandler "$TestDrive/db.sock"
        Wait-Until { $handler.ConnectionCount -eq 1 }
        $null = $region | Read-GuestMemory 0 4KiB
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'takes an image away that no VM is served from' {
        Remove-UffdImage web | Should -BeNullOrEmpty
        (Get-UffdImage).Name | Should -Be 'db'
        Test-Path "$TestDrive/web.sock" | Should -BeFalse
        ($region | Read-GuestMemory 0 64KiB).Size | Should -Be 64KB
        $handler.SocketPath | Should -Be "$TestDrive/db.sock"
    }

    It 'gives VMs up with -Force alone' {
        $failure = { Get-UffdImage db | Remove-UffdImage -ErrorAction Stop } | Should -Throw -ErrorId 'VmsInService,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be ResourceBusy
        $failure.ErrorDetails.RecommendedAction | Should -Match '-Force'
        (Get-UffdVm).Name | Should -Be 'db-1'
        Get-UffdImage db | Remove-UffdImage -Force
        Get-UffdVm | Should -BeNullOrEmpty
        (Get-UffdImage).Name | Should -Be 'web'
        ($region | Read-GuestMemory 0 4KiB).Size | Should -Be 4KB
        { $region | Read-GuestMemory 32KiB 16 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
    }

    It 'changes nothing with -WhatIf' {
        Remove-UffdImage web, db -Force -WhatIf
        (Get-UffdImage).Name | Should -Be 'db', 'web'
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'a name that is none'; Id = 'UffdImageNotFound'; Make = { Remove-UffdImage none -ErrorAction Stop } }
        @{ What = 'an image that is gone'; Id = 'UffdImageNotFound'; Make = { $image = Get-UffdImage web; Remove-UffdImage web; $image | Remove-UffdImage -ErrorAction Stop } }
        @{ What = 'the last image'; Id = 'ValueNotSupported'; Make = { Remove-UffdImage web; Remove-UffdImage db -Force -ErrorAction Stop } }
    ) {
        $Make | Should -Throw -ErrorId "$Id,*"
        (Get-UffdImage).Name | Should -Contain 'db'
    }
}
