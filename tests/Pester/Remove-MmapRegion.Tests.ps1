BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Remove-MmapRegion' {
    AfterEach {
        Clear-TestState
    }

    Context 'Regions' {
        BeforeEach {
            $low, $high, $rom = (New-MmapRegion 4KiB -Name low), (New-MmapRegion 4KiB 0x100000000 -Name high), (New-MmapRegion 4KiB 0xF0000 -Name rom)
        }

        It 'unmaps a region' {
            Remove-MmapRegion $low | Should -BeNullOrEmpty
            (Get-MmapRegion).Name | Should -Be rom, high
            $low.IsDisposed | Should -BeTrue
        }

        It 'takes regions from the pipeline' {
            Get-MmapRegion | Remove-MmapRegion
            Get-MmapRegion | Should -BeNullOrEmpty
        }

        It 'takes a whole address space' {
            $memory = $low, $high | Write-GuestMemory 0 1 -PassThru
            $memory | Remove-MmapRegion
            (Get-MmapRegion).Name | Should -Be rom
        }

        It 'takes names and wildcards' {
            Remove-MmapRegion -Name HIGH
            Remove-MmapRegion -Name *o*
            Get-MmapRegion | Should -BeNullOrEmpty
        }

        It 'removes nothing with -WhatIf' {
            Get-MmapRegion | Remove-MmapRegion -WhatIf
            Remove-MmapRegion -Name * -WhatIf
            @(Get-MmapRegion).Count | Should -Be 3
            $low.IsDisposed | Should -BeFalse
        }

        It 'has nothing to do for a region that is gone' {
            $low | Remove-MmapRegion
            { $low | Remove-MmapRegion -ErrorAction Stop } | Should -Not -Throw
        }

        It 'lets nobody read what was removed' {
            $low | Remove-MmapRegion
            $failure = { $low | Read-GuestMemory 0 16 -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidOperation
            { $low | Write-GuestMemory 0 1 -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
        }

        It 'says so where an address space has lost a region' {
            $memory = $low, $high | Write-GuestMemory 0 1 -PassThru
            $low | Remove-MmapRegion
            $failure = { $memory | Read-GuestMemory 0 16 -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidOperation
        }

        It 'lets a name be used again' {
            $low | Remove-MmapRegion
            (New-MmapRegion 8KiB -Name low).Size | Should -Be 8192
        }

        It 'says that a name is unknown, and goes on' {
            Remove-MmapRegion -Name none, low -ErrorAction SilentlyContinue -ErrorVariable failure
            $failure.FullyQualifiedErrorId | Should -BeLike 'RegionNotFound,*'
            $failure.CategoryInfo.Category | Should -Be ObjectNotFound
            (Get-MmapRegion).Name | Should -Be rom, high
        }

        It 'completes names' {
            Get-Completion 'Remove-MmapRegion -Name r' | Should -Be rom
        }
    }

    Context 'A region that a handler serves' {
        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            $image = "$TestDrive/vm.mem"
            [IO.File]::WriteAllBytes($image, [byte[]]::new(64KB))
            $handler = Start-UffdHandler "$TestDrive/vm.sock" $image
            $region = New-MmapRegion 64KiB -Name ram
            $region | Connect-UffdHandler $handler.SocketPath
            Wait-Until { $handler.ConnectionCount -eq 1 }
        }

        It 'is not removed' {
            $failure = { $region | Remove-MmapRegion -ErrorAction Stop } | Should -Throw -ErrorId 'RegionInUse,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be ResourceBusy
            $failure.TargetObject | Should -Be $region
            $failure.Exception.Message | Should -Match 'vm\.sock'
            $failure.ErrorDetails.RecommendedAction | Should -Match '-Force'
            (Get-MmapRegion).Name | Should -Be ram
            $region | Read-GuestMemory 0x8000 -As UInt64 | Should -Be 0
            $handler.State | Should -Be Serving
        }

        It 'is removed with -Force, and the handler waits for the next VM' {
            $region | Remove-MmapRegion -Force
            Get-MmapRegion | Should -BeNullOrEmpty
            Wait-Until { $handler.State -eq 'Listening' }
            $handler.ConnectionCount | Should -Be 0
        }

        It 'is removed once the handler has stopped' {
            $handler | Stop-UffdHandler -WarningAction Ignore
            { $region | Remove-MmapRegion -ErrorAction Stop } | Should -Not -Throw
            Get-MmapRegion | Should -BeNullOrEmpty
        }

        It 'leaves no descriptor' {
            $region | Remove-MmapRegion -Force
            Wait-Until { $handler.ConnectionCount -eq 0 }
            $before = Get-DescriptorCount
            $again = New-MmapRegion 64KiB
            $again | Connect-UffdHandler $handler.SocketPath
            Wait-Until { $handler.ConnectionCount -eq 1 }
            $again | Remove-MmapRegion -Force
            Wait-Until { (Get-DescriptorCount) -le $before }
        }

        It 'goes on being served until the last region of its VM is gone' {
            $pair = (New-MmapRegion 16KiB 0x0), (New-MmapRegion 16KiB 0x100000000)
            $pair | Connect-UffdHandler $handler.SocketPath
            Wait-Until { $handler.ConnectionCount -eq 2 }
            $pair[0] | Remove-MmapRegion -Force
            $pair[1] | Read-GuestMemory 0x100002000 -As UInt64 | Should -Be 0
            $handler.ConnectionCount | Should -Be 2
            $pair[1] | Remove-MmapRegion -Force
            Wait-Until { $handler.ConnectionCount -eq 1 }
        }
    }

    It 'says that it gives nothing' {
        (Get-Command Remove-MmapRegion).OutputType.Type | Should -Be ([void])
    }
}
