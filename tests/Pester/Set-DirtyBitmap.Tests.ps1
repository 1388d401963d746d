BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
    $pwsh = @(Get-PowerShellCommand)

    function Get-DirtyAddress([string] $Path) {
        Get-DirtyBitmap -LogPath $Path -AsRange | ForEach-Object Address
    }
}

Describe 'Set-DirtyBitmap' {
    BeforeEach {
        $low = New-MmapRegion 40KiB -Name low -DirtyTracking
        $high = New-MmapRegion 1MiB 0x100000 -Name high
        $log = "$TestDrive/vm.log"
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    Context 'A log in a file' {
        It 'is made as long as the memory needs, one for all regions' {
            $high, $low | Set-DirtyBitmap $log | Should -BeNullOrEmpty
            (Get-Item $log).Length | Should -Be 64
            ($low, $high).DirtyTracking | Should -Be $true, $true
            ($low, $high).DirtyLog | Should -Be $log, $log
        }

        It 'holds page n of the guest in bit n, whichever region is written' {
            $low, $high | Set-DirtyBitmap $log
            $low, $high | Write-GuestMemory 0x3FFF -Bytes 1, 2
            $low, $high | Write-GuestMemory 0x109000 1
            $bytes = [IO.File]::ReadAllBytes($log)
            $bytes[0] | Should -Be 0x18
            $bytes[0x109 -shr 3] | Should -Be 0x02
            Get-DirtyAddress $log | Should -Be 0x3000, 0x109000
        }

        It 'is where the regions'' marks are read, taken and cleared' {
            $low, $high | Set-DirtyBitmap $log
            $low, $high | Write-GuestMemory 0x3000 1
            $low, $high | Write-GuestMemory 0x101000 1
            ($low, $high | Get-DirtyBitmap -AsRange) | ForEach-Object Address | Should -Be 0x3000, 0x101000
            ($low | Get-DirtyBitmap -Clear).DirtyCount | Should -Be 1
            Get-DirtyAddress $log | Should -Be 0x101000
            $high | Clear-DirtyBitmap
            Get-DirtyAddress $log | Should -BeNullOrEmpty
        }

        It 'brings over what was marked and not taken' {
            $low | Write-GuestMemory 0x2000 1
            $low | Set-DirtyBitmap $log
            Get-DirtyAddress $log | Should -Be 0x2000
            $low | Write-GuestMemory 0x4000 1
            $low | Set-DirtyBitmap "$TestDrive/next.log"
            Get-DirtyAddress "$TestDrive/next.log" | Should -Be 0x2000, 0x4000
            $low | Write-GuestMemory 0x6000 1
            Get-DirtyAddress $log | Should -Be 0x2000, 0x4000
        }

        It 'starts without it with -DiscardDirty' {
            $low | Write-GuestMemory 0x2000 1
            $low | Set-DirtyBitmap $log -DiscardDirty
            Get-DirtyAddress $log | Should -BeNullOrEmpty
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be 0
        }

        It 'keeps the marks that are in the file already' {
            [IO.File]::WriteAllBytes($log, [byte[]] (0x80, 0, 0xFF, 0))
            $low | Set-DirtyBitmap $log
            $low | Write-GuestMemory 0x8000 1
            [IO.File]::ReadAllBytes($log) | Should -Be 0x80, 1, 0xFF, 0
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be 2
        }

        It 'may start at an offset, and have a length' {
            $low | Set-DirtyBitmap $log -Offset 8KiB -Size 16
            (Get-Item $log).Length | Should -Be (8KB + 16)
            $low | Write-GuestMemory 0x9000 1
            (Get-DirtyBitmap -LogPath $log -Offset 8KiB -AsRange).Address | Should -Be 0x9000
            [IO.File]::ReadAllBytes($log)[8KB + 1] | Should -Be 2
        }

        It 'resolves a relative path by the location of the session' {
            Push-Location $TestDrive
            try {
                $low | Set-DirtyBitmap -LogPath relative.log
            }
            finally {
                Pop-Location
            }
            "$TestDrive/relative.log" | Should -Exist
        }

        It 'lives on when the file is deleted' {
            $low | Set-DirtyBitmap $log
            Remove-Item $log
            $low | Write-GuestMemory 0x2000 1
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be 1
        }

        It 'gives Export-GuestMemory its diff' {
            $low, $high | Set-DirtyBitmap $log
            $low, $high | Export-GuestMemory "$TestDrive/vm.mem"
            $low, $high | Write-GuestMemory 0x9FFF -Bytes 7
            $low, $high | Write-GuestMemory 0x180000 8
            $info = $low, $high | Export-GuestMemory "$TestDrive/vm.mem" -Format Diff -PassThru
            $info.PageCount | Should -Be 2
            Get-DirtyAddress $log | Should -BeNullOrEmpty
            $full = $low, $high | Export-GuestMemory "$TestDrive/full.mem" -Digest -PassThru
            (Get-FileHash "$TestDrive/vm.mem").Hash | Should -Be $full.Digest
        }

        It 'gets its marks back where the diff cannot be written' {
            $low | Set-DirtyBitmap $log
            $path = "$TestDrive/shrinks.img"
            [IO.File]::WriteAllBytes($path, [byte[]]::new(16KB))
            $region = New-MmapRegion 16KiB 0x10000 -BackingPath $path
            $region | Set-DirtyBitmap "$TestDrive/shrinks.log"
            $region | Write-GuestMemory 0x12000 1
            Resize-File $path 4KB
            { $region | Export-GuestMemory "$TestDrive/vm.diff" -Format Diff -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
            Get-DirtyAddress "$TestDrive/shrinks.log" | Should -Be 0x12000
        }
    }

    Context 'A log in a memfd' {
        It 'is sealed, and shows how others open it' {
            $low, $high | Set-DirtyBitmap -Memfd
            $path = $low.DirtyLog
            $path | Should -Match "^/proc/$PID/fd/\d+$"
            $high.DirtyLog | Should -Be $path
            $low | Write-GuestMemory 0x3000 1
            Get-DirtyAddress $path | Should -Be 0x3000
            { Resize-File $path 1 } | Should -Throw
        }

        It 'is taken by another process, as a front end does' {
            $low, $high | Set-DirtyBitmap -Memfd
            $low, $high | Write-GuestMemory 0x3000 1
            $low, $high | Write-GuestMemory 0x1FFFFF -Bytes 1
            $command = "Import-Module '$manifest'; Get-DirtyBitmap -LogPath $($low.DirtyLog) -Clear -AsRange | ForEach-Object Address"
            & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command $command | Should -Be 0x3000, 0x1FF000
            ($low, $high | Get-DirtyBitmap).DirtyCount | Should -Be 0, 0
        }

        It 'may be another process''s' {
            Set-Content "$TestDrive/frontend.ps1" @'
param($Manifest)
Import-Module $Manifest
$region = New-MmapRegion 1MiB
$region | Set-DirtyBitmap -Memfd
$region.DirtyLog
[Console]::Out.Flush()
$null = [Console]::In.ReadLine()
($region | Get-DirtyBitmap -AsRange).Address
'@
            $start = [Diagnostics.ProcessStartInfo]::new($pwsh[0], [string[]] (@($pwsh[1..9]) + '-NoProfile', '-NonInteractive', '-File', "$TestDrive/frontend.ps1", $manifest))
            $start.RedirectStandardInput = $start.RedirectStandardOutput = $true
            $frontEnd = [Diagnostics.Process]::Start($start)
            try {
                $low | Set-DirtyBitmap -LogPath $frontEnd.StandardOutput.ReadLine()
                $low | Write-GuestMemory 0x5000 1
                $frontEnd.StandardInput.WriteLine()
                $frontEnd.StandardOutput.ReadLine() | Should -Be 0x5000
            }
            finally {
                $frontEnd.Kill()
                $frontEnd.WaitForExit()
                $frontEnd.Dispose()
            }
            # The mapping outlives the process that made the log.
            $low | Write-GuestMemory 0x6000 1
            ($low | Get-DirtyBitmap -AsRange).PageCount | Should -Be 2
        }
    }

    Context 'A private bitmap' {
        It 'comes back with -Private, with what was marked in the log' {
            $low | Set-DirtyBitmap $log
            $low | Write-GuestMemory 0x3000 1
            $low | Set-DirtyBitmap -Private
            $low.DirtyLog | Should -BeNullOrEmpty
            $low | Write-GuestMemory 0x5000 1
            $low | Get-DirtyBitmap -AsRange | ForEach-Object Address | Should -Be 0x3000, 0x5000
            Get-DirtyAddress $log | Should -Be 0x3000
        }

        It 'starts the tracking of a region that had none' {
            $high | Set-DirtyBitmap -Private
            $high | Write-GuestMemory 0x100000 1
            ($high | Get-DirtyBitmap).DirtyCount | Should -Be 1
        }
    }

    It 'counts every byte to the page that holds it' {
        $odd = New-MmapRegion 0x1800 0x300800
        $odd | Set-DirtyBitmap $log
        $odd | Write-GuestMemory 0x300FFF -Bytes 1
        $odd | Write-GuestMemory 0x301FFF -Bytes 1
        Get-DirtyBitmap -LogPath $log -AsRange | ForEach-Object { $_.Address, $_.PageCount } | Should -Be 0x300000, 2
        $odd | Get-DirtyBitmap -AsRange | ForEach-Object { $_.Address, $_.Size } | Should -Be 0x300800, 0x1800
    }

    It 'counts whole pages from the region''s start with -Strict, and misses the rest' {
        $odd = New-MmapRegion 0x1800 0x300800
        $odd | Set-DirtyBitmap $log -Strict
        $odd | Write-GuestMemory 0x301700 -Bytes 1
        $odd | Write-GuestMemory 0x301FFF -Bytes 1
        Get-DirtyBitmap -LogPath $log -AsRange | ForEach-Object { $_.Address, $_.PageCount } | Should -Be 0x300000, 1
    }

    It 'keeps a region of a live handler working' {
        Skip-UnlessSupported $userfaultfd
        $content = Write-RandomFile "$TestDrive/vm.mem" 1MB
        $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem"
        $high | Connect-UffdHandler $handler.SocketPath
        ($high | Read-GuestMemory 0x100000 4).Bytes | Should -Be $content[0..3]
        $high | Set-DirtyBitmap $log
        ($high | Read-GuestMemory 0x101000 4).Bytes | Should -Be $content[4096..4099]
        $high | Write-GuestMemory 0x102000 1
        Get-DirtyAddress $log | Should -Be 0x102000
        $handler.State | Should -Be Serving
    }

    It 'emits the memory as it came with -PassThru' {
        $regions = $low, $high | Set-DirtyBitmap $log -PassThru
        $regions | Should -Be $low, $high
        $memory = $low, $high | Get-GuestMemory
        $memory | Set-DirtyBitmap -Memfd -PassThru | Should -Be $memory
    }

    It 'shows in the view of the regions' {
        $low, $high | Out-String -Width 200 | Should -Match '(?s)low .*Private.*high .*No'
        $high | Set-DirtyBitmap $log -PassThru | Out-String -Width 200 | Should -Match 'high .*Log'
    }

    It 'changes nothing with -WhatIf' {
        $low, $high | Set-DirtyBitmap $log -WhatIf
        $log | Should -Not -Exist
        $low, $high | Set-DirtyBitmap -Memfd -WhatIf
        ($low.DirtyLog ?? $high.DirtyLog) | Should -BeNullOrEmpty
        $high.DirtyTracking | Should -BeFalse
    }

    It 'takes one address space a file' {
        $first, $second = ($low | Get-GuestMemory), ($high | Get-GuestMemory)
        $first, $second | Set-DirtyBitmap $log -ErrorAction SilentlyContinue -ErrorVariable failure
        $failure.FullyQualifiedErrorId | Should -BeLike 'ValueNotSupported,*'
        ($low.DirtyLog, $high.DirtyLog) | Should -Be $log, $null
        $first, $second | Set-DirtyBitmap -Memfd
        $low.DirtyLog | Should -Not -Be $high.DirtyLog
    }

    Context 'Bad input' {
        It 'refuses <What> with <Id>, and changes nothing' -ForEach @(
            @{ What = 'a folder that is not there'; Id = 'FileNotFound'; Category = 'ObjectNotFound'; Arguments = @{ LogPath = 'none/vm.log' } }
            @{ What = 'a folder'; Id = 'NotAFile'; Category = 'InvalidArgument'; Arguments = @{ LogPath = '.' } }
            @{ What = 'a device'; Id = 'NotAFile'; Category = 'InvalidArgument'; Arguments = @{ LogPath = '/dev/null' } }
            @{ What = 'a symbolic link'; Id = 'NotAFile'; Category = 'InvalidArgument'; Arguments = @{ LogPath = 'link.log' }; Message = 'full.log' }
            @{ What = 'a path of another provider'; Id = 'NotAFilePath'; Category = 'InvalidArgument'; Arguments = @{ LogPath = 'Env:/vm.log' } }
            @{ What = 'a file that is too short'; Id = 'InvalidLog'; Category = 'InvalidData'; Arguments = @{ LogPath = 'short.log' }; Message = 'byte 64.*truncate -s 64' }
            @{ What = 'an offset that leaves too little'; Id = 'InvalidLog'; Category = 'InvalidData'; Arguments = @{ LogPath = 'full.log'; Offset = 8192 }; Message = 'byte 8256' }
            @{ What = 'a size that is too small'; Id = 'InvalidLog'; Category = 'InvalidData'; Arguments = @{ LogPath = 'vm.log'; Size = 63 }; Message = '64 bytes are needed' }
            @{ What = 'a size that passes the end'; Id = 'InvalidLog'; Category = 'InvalidData'; Arguments = @{ LogPath = 'full.log'; Size = 8193 }; Message = 'byte 8193' }
            @{ What = 'a size of 0'; Id = 'ZeroSize'; Category = 'InvalidArgument'; Arguments = @{ LogPath = 'vm.log'; Size = 0 } }
            @{ What = 'an offset inside a page'; Id = 'UnalignedOffset'; Category = 'InvalidArgument'; Arguments = @{ LogPath = 'vm.log'; Offset = 100 } }
            @{ What = 'an offset past every file'; Id = 'InvalidLog'; Category = 'InvalidData'; Arguments = @{ LogPath = 'vm.log'; Offset = '0xFFFFFFFFFFFFF000' } }
        ) {
            [IO.File]::WriteAllBytes("$TestDrive/short.log", [byte[]]::new(63))
            [IO.File]::WriteAllBytes("$TestDrive/full.log", [byte[]]::new(8192))
            $null = New-Item -ItemType SymbolicLink "$TestDrive/link.log" -Target "$TestDrive/full.log"
            $low | Write-GuestMemory 0x2000 1
            Push-Location $TestDrive
            try {
                $failure = { $low, $high | Set-DirtyBitmap @Arguments -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*" -PassThru
            }
            finally {
                Pop-Location
            }
            $failure.CategoryInfo.Category | Should -Be $Category
            $failure.Exception.Message | Should -Match $Message
            $log | Should -Not -Exist
            [IO.File]::ReadAllBytes("$TestDrive/full.log") | Where-Object { $_ } | Should -BeNullOrEmpty
            ($low.DirtyLog ?? $high.DirtyLog) | Should -BeNullOrEmpty
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be 1
            $high.DirtyTracking | Should -BeFalse
        }

        It 'refuses a log on a full disk, where marking would end the process' {
            $small = New-Item -ItemType Directory "$TestDrive/small"
            $null = mount -t tmpfs -o size=8k gm-test $small 2>&1
            if ($LASTEXITCODE) {
                Set-ItResult -Skipped -Because 'needs root, to mount a file system'
            }
            try {
                $big = New-MmapRegion 4GiB 0x100000000
                $failure = { $big | Set-DirtyBitmap "$small/vm.log" -ErrorAction Stop } | Should -Throw -ErrorId 'FileError,*' -PassThru
                "$small/vm.log" | Should -Not -Exist
                truncate -s 1M "$small/vm.log"
                $failure = { $big | Set-DirtyBitmap "$small/vm.log" -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidLog,*' -PassThru
                $failure.Exception.Message | Should -Match 'disk is full'
                { Get-DirtyBitmap -LogPath "$small/vm.log" -Clear -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidLog,*'
                $big.DirtyTracking | Should -BeFalse
            }
            finally {
                umount --lazy $small
            }
        }

        It 'refuses a file on a file system that is read only' {
            $small = New-Item -ItemType Directory "$TestDrive/small"
            $null = mount -t tmpfs -o ro gm-test $small 2>&1
            if ($LASTEXITCODE) {
                Set-ItResult -Skipped -Because 'needs root, to mount a file system'
            }
            try {
                { $low | Set-DirtyBitmap "$small/vm.log" -ErrorAction Stop } | Should -Throw -ErrorId 'FileError,*'
                $low.DirtyLog | Should -BeNullOrEmpty
            }
            finally {
                umount --lazy $small
            }
        }

        It 'refuses a region that was removed, and changes no other' {
            $memory = $low, $high | Get-GuestMemory
            $high | Remove-MmapRegion
            { $memory | Set-DirtyBitmap -Memfd -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
            { $low, $high | Set-DirtyBitmap $log -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
            $low.DirtyLog | Should -BeNullOrEmpty
            $log | Should -Not -Exist
        }

        It 'says so where no region came, and makes no file' {
            { Get-MmapRegion nothing* | Set-DirtyBitmap $log -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
            $log | Should -Not -Exist
        }

        It 'refuses regions that overlap' {
            $other = New-MmapRegion 4KiB
            { $low, $other | Set-DirtyBitmap $log -ErrorAction Stop } | Should -Throw -ErrorId 'MemoryRegionOverlap,*'
            $log | Should -Not -Exist
        }
    }

    It 'leaves no descriptor of a file open' {
        $before = Get-DescriptorCount
        1..10 | ForEach-Object { $low, $high | Set-DirtyBitmap "$TestDrive/$_.log" }
        { $low, $high | Set-DirtyBitmap "$TestDrive/1.log" -Offset 4096 -ErrorAction Stop } | Should -Throw
        Get-DescriptorCount | Should -BeLessOrEqual $before
    }

    It 'says what it gives' {
        (Get-Command Set-DirtyBitmap).OutputType.Type | Should -Be ([GuestMemory.Core.GuestRegionMmap], [GuestMemory.Core.GuestMemoryMmap], [GuestMemory.Core.VhostUser.VhostUserDisk])
    }
}
