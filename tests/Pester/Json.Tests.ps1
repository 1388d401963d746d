# What ConvertTo-Json, Export-Csv and Format-List * make of the objects that the cmdlets emit: plain values, no page of internals.
BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $kvm = Test-GuestMemorySupport Kvm

    function Get-Internal([object] $Json, [string] $Path = '') {
        # The places in an object of ConvertFrom-Json where the name of a .NET type stands for a value.
        foreach ($property in $Json.PSObject.Properties) {
            foreach ($value in $property.Value) {
                if ($value -is [string] -and $value -match '^(GuestMemory|System)\.\w') { "$Path$($property.Name)=$value" }
                elseif ($value -is [pscustomobject]) { Get-Internal $value "$Path$($property.Name)." }
            }
        }
    }
}

Describe 'The JSON' {
    AfterEach {
        Clear-TestState
    }

    It 'of a VM has its name, memory and slots alone' {
        Skip-UnlessSupported $kvm
        $vm = New-MmapRegion 64KiB -Name low | New-GuestVm web
        $null = New-MmapRegion 64KiB 0x100000000 -Memfd | Invoke-VmMemoryRequest -RegisterMemory -Vm web
        $text = $vm | ConvertTo-Json -Depth 3 -WarningVariable warning
        $warning | Should -BeNullOrEmpty -Because 'nothing is nested deeper'
        $json = $text | ConvertFrom-Json
        $json.PSObject.Properties.Name | Should -Be Name, Id, Memory, Slots, DirtyLog, IsDisposed
        $json.Memory.PSObject.Properties.Name | Should -Be Regions, Size, LastAddress, ProcessId
        $json.Memory.Regions[0].Name | Should -Be low
        $json.Slots[1].PSObject.Properties.Name | Should -Be Slot, GuestAddress, Size, LastAddress, ReadOnly, LogDirtyPages, IsBase
        Get-Internal $json | Should -BeNullOrEmpty
        ($vm | Format-List * | Out-String) | Should -Not -Match 'Context|Services'
    }

    It 'of a service has plain values alone' {
        Skip-UnlessSupported $kvm
        $service = New-MmapRegion 64KiB | New-GuestVm web | Start-VmMemoryService "$TestDrive/web.sock"
        $json = $service | ConvertTo-Json -Depth 3 | ConvertFrom-Json
        $json.PSObject.Properties.Name | Should -Be Id, SocketPath, VmName, State, ConnectionCount, RequestCount, ErrorCount, Error
        $json.VmName | Should -Be web
        @($json.PSObject.Properties.Value).Where{ $_ -is [pscustomobject] } | Should -BeNullOrEmpty
    }

    It 'of <Name> has no internals' -ForEach @(
        @{ Name = 'a region'; Make = { $region } }
        @{ Name = 'a memory'; Make = { $region | Get-GuestMemory } }
        @{ Name = 'a block'; Make = { $region | Read-GuestMemory 0 16 } }
        @{ Name = 'a bitmap'; Make = { $region | Get-DirtyBitmap } }
        @{ Name = 'a range'; Make = { $region | Get-DirtyBitmap -AsRange } }
        @{ Name = 'a mapping'; Make = { $region | Get-GuestRegionUffdMapping } }
        @{ Name = 'an image'; Make = { $region | Export-GuestMemory "$TestDrive/vm.mem" -Force -PassThru } }
        @{ Name = 'a feature'; Make = { Test-GuestMemorySupport Xen } }
        @{ Name = 'a handler'; Make = { $region | Export-GuestMemory "$TestDrive/vm.mem" -Force; Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" } }
        @{ Name = 'figures'; Make = { $region | Export-GuestMemory "$TestDrive/vm.mem" -Force; Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" | ForEach-Object { Get-UffdHandler -Id $_.Id -Figures } } }
        @{ Name = 'a request'; Make = { New-VmMemoryRequest -DynamicallyFreeMemoryRanges -Range 0x1000+4KiB } }
    ) {
        $region = New-MmapRegion 64KiB -DirtyTracking
        $region | Write-GuestMemory 0x1000 1
        $text = & $Make | ConvertTo-Json -Depth 4 -WarningVariable warning
        $warning | Should -BeNullOrEmpty -Because 'nothing is nested deeper'
        $json = $text | ConvertFrom-Json
        @($json.PSObject.Properties).Count | Should -BeGreaterThan 0
        Get-Internal $json | Should -BeNullOrEmpty
    }
}
