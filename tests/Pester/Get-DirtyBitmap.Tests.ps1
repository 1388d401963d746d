BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Get-DirtyBitmap' {
    BeforeEach {
        $low = New-MmapRegion 40KiB -Name low -DirtyTracking
        $high = New-MmapRegion 1MiB 0x100000000 -Name high -DirtyTracking
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'is clean for memory that nobody wrote' {
        $bitmap = $low | Get-DirtyBitmap
        $bitmap | Should -BeOfType GuestMemory.Core.DirtyBitmap
        $bitmap.StartAddress | Should -BeExactly 0ul
        $bitmap.PageSize | Should -Be ([Environment]::SystemPageSize)
        $bitmap.PageCount | Should -Be (40KB / [Environment]::SystemPageSize)
        $bitmap.DirtyCount | Should -Be 0
        $bitmap.Source | Should -Be 'region low'
        $low | Get-DirtyBitmap -AsRange | Should -BeNullOrEmpty
    }

    It 'shows the pages that writes touched, and stays as it is' {
        $low | Write-GuestMemory 0x1FFF -Bytes 1, 2
        $low | Write-GuestMemory 0x9000 1
        foreach ($round in 1, 2) {
            $bitmap = $low | Get-DirtyBitmap
            $bitmap.DirtyCount | Should -Be 3
            (0..9).Where{ $bitmap.IsDirty($_) } | Should -Be 1, 2, 9
        }
    }

    It 'is not changed by reads' {
        $null = $low | Read-GuestMemory 0 40960
        ($low | Get-DirtyBitmap).DirtyCount | Should -Be 0
    }

    It 'is a picture of its moment' {
        $before = $low | Get-DirtyBitmap
        $low | Write-GuestMemory 0 1
        $before.DirtyCount | Should -Be 0
    }

    It 'gives runs of pages with -AsRange' {
        $high | Write-GuestMemory 0x100001000 -Bytes ([byte[]]::new(0x3000))
        $high | Write-GuestMemory 0x1000FF000 1
        $ranges = $high | Get-DirtyBitmap -AsRange
        # Not $ranges.Address: an array has a method of that name.
        $ranges | ForEach-Object Address | Should -Be 0x100001000, 0x1000FF000
        $ranges.Size | Should -Be 0x3000, 0x1000
        $ranges.PageCount | Should -Be 3, 1
        $ranges.LastAddress | Should -Be 0x100003FFF, 0x1000FFFFF
        $ranges[0] | Should -BeOfType GuestMemory.Core.AddressRange
        $ranges[0].Address | Should -BeOfType ulong
    }

    It 'ends a range with the memory where the last page is a part' {
        $odd = New-MmapRegion 5000 0x200000000 -DirtyTracking
        $odd | Write-GuestMemory 0x200001000 1
        ($odd | Get-DirtyBitmap -AsRange).Size | Should -Be 904
    }

    It 'gives one bitmap for each region of the pipeline, by guest address' {
        $high | Write-GuestMemory 0x100000000 1
        $bitmaps = $high, $low | Get-DirtyBitmap
        $bitmaps.StartAddress | Should -Be 0, 0x100000000
        $bitmaps.DirtyCount | Should -Be 0, 1
    }

    It 'takes an address space' {
        $memory = $low, $high | Write-GuestMemory 0 1 -PassThru
        (Get-DirtyBitmap -Memory $memory).DirtyCount | Should -Be 1, 0
    }

    It 'takes the marks with -Clear' {
        $low | Write-GuestMemory 0x1FFF -Bytes 1, 2
        ($low | Get-DirtyBitmap -Clear).DirtyCount | Should -Be 2
        ($low | Get-DirtyBitmap).DirtyCount | Should -Be 0
        $low | Write-GuestMemory 0 1
        ($low | Get-DirtyBitmap -Clear -AsRange).Address | Should -Be 0
        $low | Get-DirtyBitmap -AsRange | Should -BeNullOrEmpty
    }

    It 'says where a region has no bitmap, and still gives the others' {
        $plain = New-MmapRegion 4KiB 0x80000000 -Name plain
        $bitmaps = $low, $plain, $high | Get-DirtyBitmap -ErrorAction SilentlyContinue -ErrorVariable failure
        $bitmaps.Source | Should -Be 'region low', 'region high'
        $failure.FullyQualifiedErrorId | Should -BeLike 'DirtyTrackingOff,*'
        $failure.CategoryInfo.Category | Should -Be InvalidOperation
        $failure.TargetObject | Should -Be $plain
        $failure.ErrorDetails.RecommendedAction | Should -Match 'New-MmapRegion -DirtyTracking'
    }

    It 'refuses a region that was removed' {
        $low | Remove-MmapRegion
        { $low | Get-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
    }

    It 'says so where no region came' {
        { Get-MmapRegion nothing* | Get-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }

    It 'refuses regions that overlap' {
        $other = New-MmapRegion 4KiB -DirtyTracking
        { $low, $other | Get-DirtyBitmap -Clear -ErrorAction Stop } | Should -Throw -ErrorId 'MemoryRegionOverlap,*'
    }

    It 'shows addresses in hexadecimal and how much is dirty' {
        $high | Write-GuestMemory 0x100001000 -Bytes ([byte[]]::new(0x3000))
        $high | Get-DirtyBitmap | Out-String -Width 200 | Should -Match '0x100000000\s+4 KiB\s+256\s+3\s+12 KiB\s+region high'
        $high | Get-DirtyBitmap -AsRange | Out-String -Width 200 | Should -Match '0x100001000\s+0x100003fff\s+12 KiB\s+3'
    }

    Context 'A log' {
        BeforeEach {
            $log = "$TestDrive/vm.log"
            [IO.File]::WriteAllBytes($log, [byte[]] (0x81, 0x01, 0, 0xC0, 0x03))
        }

        It 'is read from a file, from guest address 0 on' {
            $bitmap = Get-DirtyBitmap -LogPath $log
            $bitmap | Should -BeOfType GuestMemory.Core.DirtyBitmap
            $bitmap.StartAddress | Should -BeExactly 0ul
            $bitmap.PageSize | Should -Be 4096
            $bitmap.PageCount | Should -Be 40
            $bitmap.DirtyCount | Should -Be 7
            $bitmap.Source | Should -Be "log $log"
            $ranges = Get-DirtyBitmap -LogPath $log -AsRange
            $ranges | ForEach-Object Address | Should -Be 0, 0x7000, 0x1E000
            $ranges.PageCount | Should -Be 1, 2, 4
            [IO.File]::ReadAllBytes($log) | Should -Be 0x81, 0x01, 0, 0xC0, 0x03
        }

        It 'is emptied with -Clear' {
            (Get-DirtyBitmap -LogPath $log -Clear).DirtyCount | Should -Be 7
            [IO.File]::ReadAllBytes($log) | Should -Be 0, 0, 0, 0, 0
            Get-DirtyBitmap -LogPath $log -Clear -AsRange | Should -BeNullOrEmpty
        }

        It 'may be a part of the file' {
            [IO.File]::WriteAllBytes($log, [byte[]]::new(8192) + [byte[]] (0, 0x10, 0xFF))
            (Get-DirtyBitmap -LogPath $log -Offset 8KiB -Size 2 -AsRange).Address | Should -Be 0xC000
            (Get-DirtyBitmap -LogPath $log -Offset 8KiB).DirtyCount | Should -Be 9
            (Get-DirtyBitmap -LogPath $log -Offset 8KiB -Size 2 -Clear).DirtyCount | Should -Be 1
            [IO.File]::ReadAllBytes($log)[8192..8194] | Should -Be 0, 0, 0xFF
        }

        It 'needs no right to write the file, nor a regular path, unless -Clear' {
            $null = New-Item -ItemType SymbolicLink "$TestDrive/link.log" -Target $log
            (Get-DirtyBitmap -LogPath "$TestDrive/link.log").DirtyCount | Should -Be 7
            { Get-DirtyBitmap -LogPath "$TestDrive/link.log" -Clear -ErrorAction Stop } | Should -Throw -ErrorId 'NotAFile,*'
        }

        It 'loses no mark and gives none twice, while another thread marks' {
            $null = $high | Set-DirtyBitmap "$TestDrive/busy.log"
            $shell = [powershell]::Create()
            try {
                $null = $shell.AddScript({
                    param($Manifest, $Region)
                    Import-Module $Manifest
                    foreach ($page in 0..255) { $Region | Write-GuestMemory (0x100000000 + $page * 4KB) 1 }
                }).AddArgument("$PSScriptRoot/../../GuestMemory.psd1").AddArgument($high)
                $writing = $shell.BeginInvoke()
                $count = 0
                do {
                    $last = $writing.IsCompleted
                    $count += (Get-DirtyBitmap -LogPath "$TestDrive/busy.log" -Clear).DirtyCount
                } until ($last)
                $shell.HadErrors | Should -BeFalse
                $count | Should -Be 256
            }
            finally {
                $shell.Dispose()
            }
        }

        It 'can be sliced, combined, saved and loaded' {
            $low | Set-DirtyBitmap "$TestDrive/low.log"
            $low | Write-GuestMemory 0x7000 -Bytes 1
            $bitmap = $low | Get-DirtyBitmap
            $part = (Get-DirtyBitmap -LogPath $log).Slice(0, 40KB)
            $part.And($bitmap).DirtyCount | Should -Be 1
            $part.Or($bitmap).DirtyCount | Should -Be 3
            $part.Except($bitmap).GetRanges() | ForEach-Object Address | Should -Be 0, 0x8000
            $part.Save("$TestDrive/saved.log")
            Get-DirtyBitmap -LogPath "$TestDrive/saved.log" -AsRange | ForEach-Object Address | Should -Be 0, 0x7000
            { $part.And(($high | Get-DirtyBitmap)) } | Should -Throw -ExpectedMessage '*do not cover the same memory*'
        }

        It 'refuses <What> with <Id>' -ForEach @(
            @{ What = 'a file that is not there'; Id = 'FileNotFound'; Category = 'ObjectNotFound'; Arguments = @{ LogPath = 'none.log' } }
            @{ What = 'a folder'; Id = 'NotAFile'; Category = 'InvalidArgument'; Arguments = @{ LogPath = '.' } }
            @{ What = 'a device'; Id = 'NotAFile'; Category = 'InvalidArgument'; Arguments = @{ LogPath = '/dev/zero' } }
            @{ What = 'a path of another provider'; Id = 'NotAFilePath'; Category = 'InvalidArgument'; Arguments = @{ LogPath = 'Env:/PATH' } }
            @{ What = 'an empty file'; Id = 'InvalidLog'; Category = 'InvalidData'; Arguments = @{ LogPath = 'empty.log' } }
            @{ What = 'a size past the end'; Id = 'InvalidLog'; Category = 'InvalidData'; Arguments = @{ LogPath = 'vm.log'; Size = 6 } }
            @{ What = 'an offset past the end'; Id = 'InvalidLog'; Category = 'InvalidData'; Arguments = @{ LogPath = 'vm.log'; Offset = 4096 } }
            @{ What = 'an offset inside a page'; Id = 'UnalignedOffset'; Category = 'InvalidArgument'; Arguments = @{ LogPath = 'vm.log'; Offset = 1 } }
            @{ What = 'a size of 0'; Id = 'ZeroSize'; Category = 'InvalidArgument'; Arguments = @{ LogPath = 'vm.log'; Size = 0 } }
            @{ What = 'a file larger than any log'; Id = 'InvalidLog'; Category = 'InvalidData'; Arguments = @{ LogPath = 'image.mem' } }
        ) {
            [IO.File]::WriteAllBytes("$TestDrive/empty.log", @())
            truncate -s 2G "$TestDrive/image.mem"
            Push-Location $TestDrive
            try {
                foreach ($clear in $false, $true) {
                    $failure = { Get-DirtyBitmap @Arguments -Clear:$clear -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*" -PassThru
                    $failure.CategoryInfo.Category | Should -Be $Category
                }
            }
            finally {
                Pop-Location
            }
            [IO.File]::ReadAllBytes($log) | Should -Be 0x81, 0x01, 0, 0xC0, 0x03
        }
    }

    It 'refuses a region of an address space that was removed, and still gives the others' {
        $memory = $low, $high | Get-GuestMemory
        $low | Remove-MmapRegion
        ($memory | Get-DirtyBitmap -ErrorAction SilentlyContinue -ErrorVariable failure).Source | Should -Be 'region high'
        $failure.FullyQualifiedErrorId | Should -BeLike 'RegionDisposed,*'
    }

    Context 'Of a VM' {
        BeforeAll {
            $kvm = Test-GuestMemorySupport Kvm
            # A guest that writes to three pages: mov byte [0x2000], 1; mov byte [0x3000], 1; mov byte [0x5000], 1; hlt
            $code = 0xC6, 0x06, 0x00, 0x20, 0x01, 0xC6, 0x06, 0x00, 0x30, 0x01, 0xC6, 0x06, 0x00, 0x50, 0x01, 0xF4

            function Invoke-Guest([object] $Vm) {
                $vcpu = $Vm.GetKvmVm().CreateVcpu()
                $vcpu.SetRealMode(0x1000ul)
                $vcpu.Run().Reason | Should -Be Hlt
            }
        }

        It 'shows the pages that the guest wrote, and takes the marks with -Clear, by <_>' -ForEach ManualProtect, Plain, Ring {
            Skip-UnlessSupported $kvm
            if ([Runtime.InteropServices.RuntimeInformation]::ProcessArchitecture -ne 'X64') {
                Set-ItResult -Skipped -Because 'the guest is one of x86-64'
            }
            $low | Write-GuestMemory 0x1000 -Bytes $code
            $vm = $low, $high | New-GuestVm -DirtyTracking -DirtyLog $_
            Invoke-Guest $vm
            $vm | Get-DirtyBitmap -Slot 0 -AsRange | ForEach-Object { $_.Address, $_.Size } | Should -Be 0x2000, 0x2000, 0x5000, 0x1000
            $bitmaps = Get-DirtyBitmap -Vm $vm -Clear
            $bitmaps.DirtyCount | Should -Be 3, 0
            (Get-DirtyBitmap -Vm $vm.Name).Count | Should -Be 2
            (Get-DirtyBitmap -Vm "$($vm.Name[0])*", $vm).Count | Should -Be 4
            (Get-DirtyBitmap -Vm $vm, $vm.Name).Count | Should -Be 4
            { Get-DirtyBitmap -Vm nosuch } | Should -Throw "*no VM 'nosuch'*"
            Get-Completion 'Get-DirtyBitmap -Vm ' | Should -Be $vm.Name
            $bitmaps.StartAddress | Should -Be 0, 0x100000000
            $bitmaps[0].Source | Should -Be "VM $($vm.Name) slot 0"
            ($vm | Get-DirtyBitmap).DirtyCount | Should -Be 0, 0
        }

        It 'refuses what is not logged, and a slot that is not there' {
            Skip-UnlessSupported $kvm
            $vm = $low | New-GuestVm
            { $vm | Get-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*'
            { $vm | Get-DirtyBitmap -Slot 0 -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*'
            { $vm | Get-DirtyBitmap -Slot 7 -ErrorAction Stop } | Should -Throw -ErrorId 'SlotNotFound,*'
            $vm | Remove-GuestVm
            { $vm | Get-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'VmDisposed,*'
        }
    }

    Context 'A VM of a handler' {
        It 'says what it wrote, and -Clear takes no mark of another, <Where>' -ForEach @(
            @{ Where = 'in this shell'; InProcess = $true }
            @{ Where = 'in a process of its own'; InProcess = $false }
        ) {
            Skip-UnlessSupported (Test-GuestMemorySupport Userfaultfd)
            $null = Write-RandomFile "$TestDrive/vm.mem" 64KB
            $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -TrackDirty -InProcess:$InProcess
            $regions = 1..2 | ForEach-Object { New-MmapRegion 64KiB ($_ * 0x100000000) }
            foreach ($region in $regions) {
                $region | Connect-UffdHandler "$TestDrive/vm.sock"
                $region | Write-GuestMemory ($region.GuestAddress + 0x3000) 1
            }
            Wait-Until { $handler.ConnectionCount -eq 2 }
            (Get-UffdVm vm-1 | Get-DirtyBitmap -Clear -AsRange).Address | Should -Be 0x3000
            (Get-DirtyBitmap -UffdVm vm-1).DirtyCount | Should -Be 0
            (Get-DirtyBitmap -UffdVm 2).DirtyCount | Should -Be 1
            (Get-DirtyBitmap -UffdVm vm-*).DirtyCount | Should -Be 0, 1
            (Get-DirtyBitmap -UffdVm (Get-UffdVm vm-2), 1 -Clear).DirtyCount | Should -Be 1, 0
            (Get-UffdVm | Get-DirtyBitmap).DirtyCount | Should -Be 0, 0
            { Get-DirtyBitmap -UffdVm web } | Should -Throw "*no*VM 'web'*"
        }

        It 'says so where its handler does not track' {
            Skip-UnlessSupported (Test-GuestMemorySupport Userfaultfd)
            $null = Write-RandomFile "$TestDrive/vm.mem" 64KB
            $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem"
            New-MmapRegion 64KiB 0x200000000 | Connect-UffdHandler "$TestDrive/vm.sock"
            Wait-Until { $handler.ConnectionCount -eq 1 }
            $failure = { Get-UffdVm | Get-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*' -PassThru
            $failure.ErrorDetails.RecommendedAction | Should -Match 'Start-UffdHandler -TrackDirty'
        }
    }

    Context 'A handler' {
        It 'says what its VMs wrote, <Where>' -ForEach @(
            @{ Where = 'in this shell'; InProcess = $true }
            @{ Where = 'in a process of its own'; InProcess = $false }
        ) {
            Skip-UnlessSupported (Test-GuestMemorySupport Userfaultfd)
            $null = Write-RandomFile "$TestDrive/vm.mem" 256KB
            $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -TrackDirty -InProcess:$InProcess
            $vm = New-MmapRegion 256KiB 0x100000000
            $vm | Connect-UffdHandler "$TestDrive/vm.sock"
            $null = $vm | Read-GuestMemory 0x100000000 256KiB
            $vm | Write-GuestMemory 0x100003FFF 1, 2
            $bitmap = Get-DirtyBitmap -Handler $handler
            $bitmap.PageCount | Should -Be 64
            $bitmap.Source | Should -Be "process $PID, offsets in the image"
            ($handler | Get-DirtyBitmap).DirtyCount | Should -Be 2
            $range = Get-DirtyBitmap -Handler $handler -AsRange
            $range | ForEach-Object Address | Should -Be 0x3000
            $range.PageCount | Should -Be 2
            (Get-DirtyBitmap -Handler $handler -Clear).DirtyCount | Should -Be 2
            (Get-DirtyBitmap -Handler $handler).DirtyCount | Should -Be 0
            $vm | Write-GuestMemory 0x100003FFF 3
            (Get-DirtyBitmap -Handler $handler -Clear -AsRange).Address | Should -Be 0x3000
            Get-DirtyBitmap -Handler $handler -Clear -AsRange | Should -BeNullOrEmpty
        }

        It 'says so where it does not track, <Where>' -ForEach @(
            @{ Where = 'in this shell'; InProcess = $true }
            @{ Where = 'in a process of its own'; InProcess = $false }
        ) {
            $null = Write-RandomFile "$TestDrive/vm.mem" 4KB
            $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -InProcess:$InProcess
            $null = Get-DirtyBitmap -Handler $handler -ErrorAction SilentlyContinue -ErrorVariable failure
            $failure.FullyQualifiedErrorId | Should -BeLike 'DirtyTrackingOff,*'
            $failure.ErrorDetails.RecommendedAction | Should -Match '-TrackDirty'
            "$($failure.TargetObject)" | Should -Be "$TestDrive/vm.sock"
            $handler.State | Should -Be Listening
        }
    }

    Context 'Another process' {
        BeforeEach {
            $process = Open-TrackedProcess (New-Item -Force -ItemType Directory "$TestDrive/program").FullName
            $trackings = foreach ($page in 0, 32) {
                Start-DirtyTracking $process.Id ($process.Address + $page * $process.PageSize) 16KiB
            }
        }

        AfterEach {
            ${process}?.Kill()
        }

        It 'says what it wrote, and -Clear takes the marks' {
            (Get-DirtyBitmap -ProcessId $process.Id).DirtyCount | Should -Be 0, 0
            Invoke-TrackedProcess $process 'w 1 2 33 40'
            $bitmaps = Get-DirtyBitmap -ProcessId $process.Id
            $bitmaps.StartAddress | Should -Be ($trackings | ForEach-Object Address)
            $bitmaps.DirtyCount | Should -Be 2, 1
            $bitmaps.Source | Should -Be "process $($process.Id)", "process $($process.Id)"
            (Get-DirtyBitmap -ProcessId $process.Id -Address $trackings[0].Address -Clear).DirtyCount | Should -Be 2
            ($trackings | Get-DirtyBitmap).DirtyCount | Should -Be 0, 1
            (Get-DirtyTracking | Get-DirtyBitmap -Clear -AsRange).Address | Should -Be ($trackings[1].Address + $process.PageSize)
            Get-DirtyBitmap -Tracking $trackings -AsRange | Should -BeNullOrEmpty
        }

        It 'says so where it is not tracked' {
            $failure = { Get-DirtyBitmap -ProcessId $PID -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*' -PassThru
            $failure.ErrorDetails.RecommendedAction | Should -BeLike "*'Start-DirtyTracking *"
            { Get-DirtyBitmap -ProcessId $process.Id -Address 1 -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*'
        }

        It 'completes processes and addresses' {
            Get-Completion 'Get-DirtyBitmap -ProcessId ' | Should -Be "$($process.Id)"
            Get-Completion "Get-DirtyBitmap -ProcessId $($process.Id) -Address " | Should -Be ($trackings.ForEach{ '0x{0:x8}' -f $_.Address })
        }
    }

    It 'says what it gives' {
        (Get-Command Get-DirtyBitmap).OutputType.Type | Should -Be ([GuestMemory.Core.DirtyBitmap], [GuestMemory.Core.AddressRange])
    }
}
