# The memory of a real VM: QEMU's, as its firmware leaves it.

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    Import-Module (Join-Path $root tests Pester TestHelpers.psm1) -Force
    Import-Module (Join-Path $PSScriptRoot Qmp.psm1) -Force

    $size = 256MB
    $pageSize = [Environment]::SystemPageSize
    # Where the firmware of a PC lies below 1 MiB, and what it says there.
    $firmware = @{ Address = 0xE0000; Size = 128KB }
    $text = 'SeaBIOS'
    # The firmware works below 1 MiB and at the end of memory; nobody else writes here.
    $mark = @{ Address = 128MB; Value = [uint] 0xfeedfaceu }

    $lacking = if (-not (Get-Command qemu-system-x86_64 -CommandType Application -ErrorAction Ignore)) {
        'needs qemu-system-x86_64: apt-get install qemu-system-x86'
    }
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
    $lackingForFaults = $lacking ? $lacking : $userfaultfd.Supported ? $null : "this host lacks userfaultfd: $($userfaultfd.Detail) $($userfaultfd.Remedy)"

    function Find-Text([byte[]] $Bytes) {
        # Where the firmware's text stands; -1 where it does not.
        [Text.Encoding]::Latin1.GetString($Bytes).IndexOf($text, [StringComparison]::Ordinal)
    }

    function Read-File([string] $Path, [long] $Offset, [int] $Count) {
        $file = [IO.FileStream]::new($Path, 'Open', 'Read', 'ReadWrite')
        try {
            $bytes = [byte[]]::new($Count)
            $null = $file.Seek($Offset, 'Begin')
            $file.ReadExactly($bytes, 0, $Count)
            , $bytes
        }
        finally {
            $file.Dispose()
        }
    }

    function Copy-Part([string] $From, [string] $To, [long] $Offset, [long] $Count) {
        # A part of a file as a file of its own.
        $bytes = [byte[]]::new(1MB)
        $source = [IO.File]::OpenRead($From)
        $target = [IO.File]::Create($To)
        try {
            $null = $source.Seek($Offset, 'Begin')
            while ($Count -gt 0) {
                $part = [int] [Math]::Min($Count, $bytes.Length)
                $source.ReadExactly($bytes, 0, $part)
                $target.Write($bytes, 0, $part)
                $Count -= $part
            }
        }
        finally {
            $source.Dispose()
            $target.Dispose()
        }
    }

    function Get-CoreSegment([string] $Path) {
        # The segments PT_LOAD of a core file: their guest addresses and sizes, and where they lie in the file.
        $bytes = Read-File $Path 0 4KB
        for ($i = 0; $i -lt [BitConverter]::ToUInt16($bytes, 56); $i++) {
            $at = [BitConverter]::ToUInt64($bytes, 32) + $i * 56
            if ([BitConverter]::ToUInt32($bytes, $at) -eq 1) {
                [pscustomobject] @{ Address = [BitConverter]::ToUInt64($bytes, $at + 24); Size = [BitConverter]::ToUInt64($bytes, $at + 32); Offset = [BitConverter]::ToUInt64($bytes, $at + 8) }
            }
        }
    }

    function Expand-Avml([string] $Path, [string] $To, [long] $Size) {
        # The memory from address 0 on that an AVML image has.
        $source = [IO.File]::OpenRead($Path)
        $target = [IO.File]::Create($To)
        try {
            $target.SetLength($Size)
            $header = [byte[]]::new(32)
            while ($source.Position -lt $source.Length) {
                $source.ReadExactly($header, 0, 32)
                $count = [BitConverter]::ToUInt64($header, 16) + 1 - [BitConverter]::ToUInt64($header, 8)
                $begin = $source.Position
                $block = [byte[]]::new($count)
                $frames = [Snappier.SnappyStream]::new($source, 'Decompress', $true)
                $frames.ReadExactly($block, 0, $count)
                $frames.Dispose()
                $null = $target.Seek([BitConverter]::ToUInt64($header, 8), 'Begin')
                $target.Write($block, 0, $count)
                # The stream reads ahead: the frames say themselves where they end.
                $null = $source.Seek($begin, 'Begin')
                $mark = [byte[]]::new(4)
                for ($left = $count; $left -gt 0;) {
                    $source.ReadExactly($mark, 0, 4)
                    $length = $mark[1] + 256 * $mark[2] + 65536 * $mark[3]
                    $null = $source.Seek($length, 'Current')
                    if ($mark[0] -ne 255) { $left -= [Math]::Min($left, 64KB) }
                }
                $trailer = [byte[]]::new(8)
                $end = $source.Position
                $source.ReadExactly($trailer, 0, 8)
                [BitConverter]::ToUInt64($trailer, 0) | Should -Be ($end - $begin)
            }
        }
        finally {
            $source.Dispose()
            $target.Dispose()
        }
    }

    function Get-FirstDifference([object] $Memory, [string] $Path) {
        # The guest address of the first page that is not as in the file, in hexadecimal; nothing where all are.
        for ($at = 0; $at -lt $size; $at += 1MB) {
            $read = Read-GuestMemory -Memory $Memory -Address $at -Size 1MB -Raw
            $file = Read-File $Path $at 1MB
            if ([Linq.Enumerable]::SequenceEqual($read, $file)) { continue }
            for ($page = 0; $page -lt 1MB; $page += $pageSize) {
                $end = $page + $pageSize - 1
                if (-not [Linq.Enumerable]::SequenceEqual([byte[]] $read[$page..$end], [byte[]] $file[$page..$end])) {
                    return '0x{0:x}' -f ($at + $page)
                }
            }
        }
    }
}

Describe 'The memory of a VM that QEMU runs' {
    BeforeAll {
        if ($lacking) { return }
        $directory = [IO.Directory]::CreateTempSubdirectory('guestmemory-qemu-').FullName
        $memoryPath = Join-Path $directory vm.mem
        $qemu = Start-Qemu -Directory $directory -MemoryPath $memoryPath -MemorySize 256M
        # One of the first things that the firmware does is to copy itself into memory.
        Wait-Until -Seconds 60 { (Find-Text (Read-File $memoryPath $firmware.Address $firmware.Size)) -ge 0 }
        $live = New-MmapRegion -Size $size -GuestAddress 0 -BackingPath $memoryPath
    }

    AfterAll {
        if ($lacking) { return }
        if ($live) { Remove-MmapRegion $live }
        Stop-Qemu $qemu
        Remove-Item $directory -Recurse -Force
    }

    Context 'while it runs' {
        BeforeEach {
            if ($lacking) { Set-ItResult -Skipped -Because $lacking }
        }

        It 'shows the firmware in a region that is mapped over it' {
            (Invoke-Qmp $qemu.Qmp query-status).running | Should -BeTrue
            $at = Find-Text (Read-GuestMemory -Memory $live @firmware -Raw)
            $at | Should -BeGreaterOrEqual 0
            Read-GuestMemory -Memory $live -Address ($firmware.Address + $at) -Size $text.Length -Encoding ASCII | Should -Be $text
        }

        It 'gets what is written to the region' {
            Write-GuestMemory -Memory $live -Address $mark.Address -Value $mark.Value -As UInt32
            $dump = Invoke-Qmp $qemu.Qmp human-monitor-command @{ 'command-line' = "xp /1xw $($mark.Address)" }
            $dump.Trim() | Should -BeLike ('*: 0x{0:x8}' -f $mark.Value)
        }
    }

    Context 'while it is stopped' {
        BeforeAll {
            if ($lacking) { return }
            $null = Invoke-Qmp $qemu.Qmp stop
        }

        BeforeEach {
            if ($lacking) { Set-ItResult -Skipped -Because $lacking }
        }

        It 'is in the region what it is to QEMU' {
            (Invoke-Qmp $qemu.Qmp query-status).status | Should -Be paused
            # From 1 MiB on QEMU has nothing but memory at these addresses.
            $range = @{ Address = 1MB; Size = $size - 1MB }
            $saved = Join-Path $directory saved.mem
            $null = Invoke-Qmp $qemu.Qmp pmemsave @{ val = $range.Address; size = $range.Size; filename = $saved }
            $read = Read-GuestMemory -Memory $live @range -OutFile (Join-Path $directory read.mem) -PassThru
            (Get-FileHash $read).Hash | Should -Be (Get-FileHash $saved).Hash
        }

        It 'is exported as it is' {
            $exported = Join-Path $directory exported.mem
            Export-GuestMemory -Memory $live -Path $exported
            (Get-FileHash $exported).Hash | Should -Be (Get-FileHash $memoryPath).Hash
        }

        It 'is exported as <_>: the bytes that QEMU saves' -ForEach 'ElfCore', 'LiME', 'Avml' {
            $saved = Join-Path $directory saved.mem
            $null = Invoke-Qmp $qemu.Qmp pmemsave @{ val = 1MB; size = $size - 1MB; filename = $saved }
            $exported = Join-Path $directory "exported.$_"
            Export-GuestMemory -Memory $live -Path $exported -Format $_
            $content = Join-Path $directory content.mem
            switch ($_) {
                ElfCore { Copy-Part $exported $content (Get-CoreSegment $exported).Offset $size }
                LiME { Copy-Part $exported $content 32 $size }
                Avml { Expand-Avml $exported $content $size }
            }
            Copy-Part $content "$content.part" 1MB ($size - 1MB)
            (Get-FileHash "$content.part").Hash | Should -Be (Get-FileHash $saved).Hash
        }

        It 'is in a core file what it is in the one that QEMU dumps' {
            $dumped = Join-Path $directory dumped.core
            $null = Invoke-Qmp $qemu.Qmp dump-guest-memory @{ paging = $false; protocol = "file:$dumped" }
            $exported = Join-Path $directory exported.core
            Export-GuestMemory -Memory $live -Path $exported -Format ElfCore
            $ours = Get-CoreSegment $exported
            # The last one is the firmware below 4 GiB, which is none of the machine's memory.
            $segments = @(Get-CoreSegment $dumped).Where{ $_.Address + $_.Size -le $size }
            ($segments.Size | Measure-Object -Sum).Sum | Should -Be $size
            foreach ($segment in $segments) {
                Copy-Part $dumped "$dumped.part" $segment.Offset $segment.Size
                Copy-Part $exported "$exported.part" ($ours.Offset + $segment.Address) $segment.Size
                (Get-FileHash "$exported.part").Hash | Should -Be (Get-FileHash "$dumped.part").Hash
            }
        }
    }

    Context 'restored from the file that it left' {
        BeforeAll {
            if ($lackingForFaults) { return }
            $null = Invoke-Qmp $qemu.Qmp quit
            $qemu.Process.WaitForExit(30000) | Should -BeTrue -Because 'QEMU was told to quit'
            $handler = Start-UffdHandler -SocketPath (Join-Path $directory uffd.sock) -MemoryPath $memoryPath -Strategy OnDemand
            $restored = New-MmapRegion -Size $size -GuestAddress 0
            Connect-UffdHandler -Memory $restored -SocketPath $handler.SocketPath
        }

        AfterAll {
            if ($lackingForFaults) { return }
            if ($restored) { Remove-MmapRegion $restored -Force }
            if ($handler) { Stop-UffdHandler $handler }
        }

        BeforeEach {
            if ($lackingForFaults) { Set-ItResult -Skipped -Because $lackingForFaults }
        }

        It 'has the firmware where it was' {
            $at = Find-Text (Read-GuestMemory -Memory $restored @firmware -Raw)
            $at | Should -BeGreaterOrEqual 0
            Read-GuestMemory -Memory $restored -Address ($firmware.Address + $at) -Size $text.Length -Encoding ASCII | Should -Be $text
        }

        It 'has what was written while the VM ran' {
            Read-GuestMemory -Memory $restored -Address $mark.Address -As UInt32 | Should -Be $mark.Value
        }

        It 'is the file, page for page' {
            Get-FirstDifference $restored $memoryPath | Should -BeNullOrEmpty -Because 'this is the first page that differs'
        }

        It 'has the SHA-256 of the file' {
            $read = Read-GuestMemory -Memory $restored -Address 0 -Size $size -OutFile (Join-Path $directory restored.mem) -PassThru
            (Get-FileHash $read).Hash | Should -Be (Get-FileHash $memoryPath).Hash
        }

        It 'came by one fault a page' {
            Remove-MmapRegion $restored -Force
            $figures = Stop-UffdHandler $handler -PassThru
            $figures.Error | Should -BeNullOrEmpty
            $figures.TotalConnectionCount | Should -Be 1
            $figures.FaultCount | Should -Be ($size / $pageSize)
            # Holes of the file are zeros that nobody reads.
            $counted = $figures.GetFigures()
            $counted.CopiedCount + $counted.ZeroCount | Should -Be ($size / $pageSize)
            $figures.ByteCount | Should -Be ($counted.CopiedCount * $pageSize)
        }
    }
}

Describe 'The dumps that QEMU writes of a VM' {
    BeforeAll {
        if ($lacking) { return }
        $directory = [IO.Directory]::CreateTempSubdirectory('guestmemory-qemu-').FullName
        $memoryPath = Join-Path $directory vm.mem
        $dumpSize = 64MB
        $qemu = Start-Qemu -Directory $directory -MemoryPath $memoryPath -MemorySize 64M
        Wait-Until -Seconds 60 { (Find-Text (Read-File $memoryPath $firmware.Address $firmware.Size)) -ge 0 }
        $null = Invoke-Qmp $qemu.Qmp stop
        # What the firmware leaves is nearly all zeros: this is not, and a part of it cannot be compressed.
        $pattern = [byte[]]::new(3MB)
        [Random]::new(1).NextBytes($pattern)
        for ($at = 0; $at -lt 1MB; $at++) { $pattern[$at] = $at -shr 12 }
        $live = New-MmapRegion -Size $dumpSize -GuestAddress 0 -BackingPath $memoryPath
        Write-GuestMemory -Memory $live -Address 33MB -Bytes $pattern
        Remove-MmapRegion $live
        $saved = Join-Path $directory saved.mem
        $null = Invoke-Qmp $qemu.Qmp pmemsave @{ val = 0; size = $dumpSize; filename = $saved }

        function Test-Dump([string] $Path, [string] $Format) {
            # Every byte is that of pmemsave.
            $memory = Import-GuestMemory $Path -Name dump
            try {
                $regions = @($memory.Regions).Where{ $_.GuestAddress -lt $dumpSize }
                if ($regions[0] -is [GuestMemory.Core.Images.GuestRegionImage]) { $regions[0].Format | Should -Be $Format }
                ($regions | Measure-Object Size -Sum).Sum | Should -Be $dumpSize
                $other = Import-GuestMemory $saved -Layout Flat -Name saved
                $compared = $regions | Get-GuestMemory
                Compare-GuestMemory -Memory $compared -With $other | Should -BeNullOrEmpty
                # Converted it is the file of pmemsave itself.
                $compared | Export-GuestMemory (Join-Path $directory converted.mem) -Force
                (Get-FileHash (Join-Path $directory converted.mem)).Hash | Should -Be (Get-FileHash $saved).Hash
            }
            finally {
                $memory, $other | Where-Object { $_ } | Remove-MmapRegion
            }
        }
    }

    AfterAll {
        if ($lacking) { return }
        Get-MmapRegion | Remove-MmapRegion -Force
        Stop-Qemu $qemu
        Remove-Item $directory -Recurse -Force
    }

    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It 'are the memory that pmemsave writes, byte for byte: <Format>' -ForEach @(
        @{ Format = 'elf'; Kind = 'ElfCore' }
        @{ Format = 'kdump-zlib'; Kind = 'Kdump' }
        @{ Format = 'kdump-snappy'; Kind = 'Kdump' }
    ) {
        $formats = (Invoke-Qmp $qemu.Qmp query-dump-guest-memory-capability).formats
        if ($Format -notin $formats) {
            Set-ItResult -Skipped -Because "this QEMU was built without $Format; it has $($formats -join ', ')"
            return
        }
        $dump = Join-Path $directory $Format
        $null = Invoke-Qmp $qemu.Qmp dump-guest-memory @{ paging = $false; protocol = "file:$dump"; format = $Format }
        Test-Dump $dump $Kind
    }

    It 'are read with the paging of the guest, too' {
        $dump = Join-Path $directory paging
        $null = Invoke-Qmp $qemu.Qmp dump-guest-memory @{ paging = $true; protocol = "file:$dump" }
        # Without an operating system the guest has mapped only a part of its memory.
        $memory = Import-GuestMemory $dump
        $memory.Regions.Count | Should -BeGreaterThan 0
        $memory | Remove-MmapRegion
    }

    It 'are read when makedumpfile has put them in order' {
        if (-not (Get-Command makedumpfile -CommandType Application -ErrorAction Ignore)) {
            Set-ItResult -Skipped -Because 'needs makedumpfile: apt-get install makedumpfile'
            return
        }
        $flat, $dump = (Join-Path $directory flat), (Join-Path $directory ordered)
        $null = Invoke-Qmp $qemu.Qmp dump-guest-memory @{ paging = $false; protocol = "file:$flat"; format = 'kdump-zlib' }
        sh -c 'makedumpfile -R "$1" < "$0" > /dev/null 2>&1' $flat $dump
        $LASTEXITCODE | Should -Be 0
        [Text.Encoding]::ASCII.GetString((Read-File $dump 0 8)) | Should -Be 'KDUMP   '
        Test-Dump $dump Kdump
        # zlib checks every page.
        Import-GuestMemory $dump -Verify | Remove-MmapRegion
    }

    It 'are no migration streams, which are refused by name' {
        $stream = Join-Path $directory stream
        $null = Invoke-Qmp $qemu.Qmp migrate @{ uri = "exec:cat > $stream" }
        Wait-Until -Seconds 60 { (Invoke-Qmp $qemu.Qmp query-migrate).status -eq 'completed' }
        { Import-GuestMemory $stream -ErrorAction Stop } | Should -Throw -ErrorId 'ImageUnsupported,*'
    }
}

Describe 'A sandboxed QEMU whose memory is tracked' {
    BeforeAll {
        $scan = Test-GuestMemorySupport PagemapScan
        $lackingForTracking = $lacking ? $lacking : -not $scan.Supported ? "$($scan.Detail) $($scan.Remedy)" : (id -u) -ne '0' ? 'needs root, to suspend the sandbox for a moment' : $null
        if ($lackingForTracking) { return }
        $directory = [IO.Directory]::CreateTempSubdirectory('guestmemory-qemu-').FullName
        # The guest does not run: the test writes its memory through QEMU, as a debugger does.
        $qemu = Start-Qemu -Directory $directory -MemoryPath (Join-Path $directory vm.mem) -MemorySize 64M -Argument @(
            '-S', '-gdb', "unix:$directory/gdb.sock,server=on,wait=off"
            '-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'
        )
        $socket = [Net.Sockets.Socket]::new('Unix', 'Stream', 'Unspecified')
        $socket.Connect([Net.Sockets.UnixDomainSocketEndPoint]::new("$directory/gdb.sock"))
        $socket.ReceiveTimeout = 30000

        function Invoke-Gdb([string] $Packet) {
            # Sends a packet of the gdb remote protocol and gives the answer.
            $sum = ([Text.Encoding]::ASCII.GetBytes($Packet) | Measure-Object -Sum).Sum % 256
            $null = $socket.Send([Text.Encoding]::ASCII.GetBytes(('+${0}#{1:x2}' -f $Packet, [int] $sum)))
            $answer, $buffer = '', [byte[]]::new(256)
            while ($answer -notmatch '\$([^#]*)#..') {
                $count = $socket.Receive($buffer)
                if (-not $count) { throw "QEMU ended before it answered $Packet." }
                $answer += [Text.Encoding]::ASCII.GetString($buffer, 0, $count)
            }
            $Matches[1]
        }
    }

    AfterAll {
        if ($lackingForTracking) { return }
        Get-DirtyTracking | Stop-DirtyTracking
        ${socket}?.Dispose()
        Stop-Qemu $qemu
        Remove-Item $directory -Recurse -Force
    }

    It 'shows the pages that QEMU wrote, and QEMU goes on' {
        if ($lackingForTracking) { Set-ItResult -Skipped -Because $lackingForTracking }
        Get-Content "/proc/$($qemu.Process.Id)/status" | Should -Contain "Seccomp:`t2"
        $answer = Invoke-Qmp $qemu.Qmp human-monitor-command @{ 'command-line' = 'gpa2hva 0' }
        $address = [regex]::Match($answer, ' is (0x[0-9a-f]+)').Groups[1].Value
        $tracking = Start-DirtyTracking $qemu.Process.Id $address 64MiB
        (Invoke-Qmp $qemu.Qmp query-status).status | Should -Not -BeNullOrEmpty
        foreach ($round in 1..20) {
            # From 1 MiB on there is nothing but memory.
            $pages = 256..16383 | Get-Random -Count 30 | Sort-Object
            foreach ($page in $pages) {
                Invoke-Gdb ('M{0:x},1:{1:x2}' -f ($page * 4096), $round) | Should -Be OK
            }
            $bitmap = $tracking | Get-DirtyBitmap -Clear
            (0..16383).Where{ $bitmap.IsDirty($_) } | Should -Be $pages
        }
        $tracking | Stop-DirtyTracking
        (Invoke-Qmp $qemu.Qmp query-status).status | Should -Not -BeNullOrEmpty
        "$($tracking.Standstill)" | Should -Not -Be '00:00:00'
    }
}
