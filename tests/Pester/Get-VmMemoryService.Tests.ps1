BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $kvm = Test-GuestMemorySupport Kvm
}

Describe 'Get-VmMemoryService' {
    BeforeEach {
        if ($kvm.Supported) {
            $web = New-MmapRegion 64KiB | New-GuestVm web
            $db = New-MmapRegion 64KiB | New-GuestVm db
            $first = $web | Start-VmMemoryService "$TestDrive/web.sock"
            $second = $db | Start-VmMemoryService "$TestDrive/db.sock"
        }
    }

    AfterEach {
        Clear-TestState
    }

    It 'lists the services, the very objects' {
        Skip-UnlessSupported $kvm
        Get-VmMemoryService | Should -Be $first, $second
    }

    It 'finds them by socket, wildcards, number and VM' {
        Skip-UnlessSupported $kvm
        Get-VmMemoryService "$TestDrive/db.sock" | Should -Be $second
        Get-VmMemoryService "$TestDrive/*.sock" | Should -Be $first, $second
        Get-VmMemoryService none* | Should -BeNullOrEmpty
        Get-VmMemoryService -Id $first.Id | Should -Be $first
        $db | Get-VmMemoryService | Should -Be $second
        Get-VmMemoryService -Vm web | Should -Be $first
        { Get-VmMemoryService "$TestDrive/none.sock" -ErrorAction Stop } | Should -Throw -ErrorId 'ServiceNotFound,*'
        $failure = { Get-VmMemoryService -Id 0 -ErrorAction Stop } | Should -Throw -ErrorId 'ServiceNotFound,*' -PassThru
        $failure.CategoryInfo.Category | Should -Be ObjectNotFound
    }

    It 'completes sockets and numbers' {
        Skip-UnlessSupported $kvm
        Get-Completion 'Get-VmMemoryService ' | Should -Be "$TestDrive/web.sock", "$TestDrive/db.sock"
        Get-Completion 'Get-VmMemoryService -Id ' | Should -Be $first.Id, $second.Id
        Get-Completion 'Invoke-VmMemoryRequest -SocketPath ' | Should -Be "$TestDrive/web.sock", "$TestDrive/db.sock"
    }

    It 'shows the VM and the figures' {
        Skip-UnlessSupported $kvm
        $null = $first | Invoke-VmMemoryRequest -UnregisterMemory -RegionId 1 -ErrorAction SilentlyContinue
        Wait-Until { $first.ConnectionCount -eq 0 }
        $first | Out-String -Width 250 | Should -Match "Id\s+State\s+VM\s+Connections\s+Requests\s+Failed\s+SocketPath[\s-]+$($first.Id)\s+Running\s+web\s+0\s+1\s+1\s+$([regex]::Escape("$TestDrive/web.sock"))"
    }
}
