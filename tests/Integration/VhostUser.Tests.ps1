# A disk that this module provides to a real QEMU: the firmware boots from it, a program of the boot sector writes it, and the VM migrates
# meanwhile, by pre-copy and by post-copy, without a guest operating system. Then the same with a Linux, which writes the disk at full speed
# also while its back end is killed.

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    Import-Module (Join-Path $root tests Pester TestHelpers.psm1) -Force
    Import-Module (Join-Path $PSScriptRoot Qmp.psm1) -Force
    Import-Module (Join-Path $PSScriptRoot LinuxGuest.psm1) -Force

    $lacking = if (-not (Get-Command qemu-system-x86_64 -CommandType Application -ErrorAction Ignore)) {
        'needs qemu-system-x86_64: apt-get install qemu-system-x86'
    }

    # What the program says on the serial port, from its first sector and from the second one.
    $greeting = "boot sector`r`n", "disk of the back end`r`n"
    # It counts rounds at one address. Round n fills sector 64 + n % 256 with the number n, reads it again into one of 64 pages, and compares;
    # so these pages, which no other program uses, are written by the disk alone. A wrong number, or an error of the disk, is an E on the
    # serial port, and the end; 256 rounds are a full stop.
    $counter = 0x604
    $pages = @{ Address = 0x20000; Size = 64 * 4KB }
    $first, $sectors = 64, 256
    $program = (@'
        31 c0                        # xor  ax, ax
        8e d8                        # mov  ds, ax
        8e c0                        # mov  es, ax
        8e d0                        # mov  ss, ax
        bc 00 70                     # mov  sp, 0x7000
        fc                           # cld
        88 16 00 06                  # mov  [0x600], dl          the disk's number
        66 c7 06 04 06 00 00 00 00   # mov  dword [0x604], 0     the counter
        66 c7 06 10 06 10 00 01 00   # mov  dword [0x610], 0x10010   a request: of 16 bytes, for one sector,
        66 c7 06 14 06 00 80 00 00   # mov  dword [0x614], 0x8000    to 0:8000,
        66 c7 06 18 06 01 00 00 00   # mov  dword [0x618], 1         of sector 1
        66 c7 06 1c 06 00 00 00 00   # mov  dword [0x61c], 0
        be e7 7c                     # mov  si, text
        e8 89 00                     # call print
        b4 42                        # mov  ah, 0x42             read
        e8 6d 00                     # call disk
        be 00 80                     # mov  si, 0x8000
        e8 7e 00                     # call print
                                     # round:
        66 ff 06 04 06               # inc  dword [0x604]
        31 c0                        # xor  ax, ax
        8e c0                        # mov  es, ax
        bf 00 90                     # mov  di, 0x9000
        66 a1 04 06                  # mov  eax, [0x604]
        b9 80 00                     # mov  cx, 128
        66 f3 ab                     # rep  stosd
        66 0f b6 c0                  # movzx eax, al
        66 83 c0 40                  # add  eax, 64
        66 a3 18 06                  # mov  [0x618], eax
        66 c7 06 14 06 00 90 00 00   # mov  dword [0x614], 0x9000
        b4 43                        # mov  ah, 0x43             write
        e8 37 00                     # call disk
        a1 04 06                     # mov  ax, [0x604]
        83 e0 3f                     # and  ax, 63
        c1 e0 08                     # shl  ax, 8
        05 00 20                     # add  ax, 0x2000
        c7 06 14 06 00 00            # mov  word [0x614], 0
        a3 16 06                     # mov  [0x616], ax
        b4 42                        # mov  ah, 0x42             read
        e8 1d 00                     # call disk
        8e 06 16 06                  # mov  es, [0x616]
        31 ff                        # xor  di, di
        66 a1 04 06                  # mov  eax, [0x604]
        b9 80 00                     # mov  cx, 128
        66 f3 af                     # repe scasd
        75 19                        # jne  bad
        84 c0                        # test al, al
        75 a0                        # jne  round
        b0 2e                        # mov  al, '.'
        e8 23 00                     # call put
        eb 99                        # jmp  round
                                     # disk:
        30 c0                        # xor  al, al
        8a 16 00 06                  # mov  dl, [0x600]
        be 10 06                     # mov  si, 0x610
        cd 13                        # int  0x13
        72 01                        # jc   bad
        c3                           # ret
                                     # bad:
        b0 45                        # mov  al, 'E'
        e8 0e 00                     # call put
        fa                           # cli
        f4                           # hlt
        eb fc                        # jmp  -4
                                     # print:
        ac                           # lodsb
        84 c0                        # test al, al
        74 15                        # je   done
        e8 02 00                     # call put
        eb f6                        # jmp  print
                                     # put:
        ba fd 03                     # mov  dx, 0x3fd            until the serial port takes a byte
        88 c4                        # mov  ah, al
        ec                           # in   al, dx
        a8 20                        # test al, 0x20
        74 fb                        # je   -5
        88 e0                        # mov  al, ah
        ba f8 03                     # mov  dx, 0x3f8
        ee                           # out  dx, al
        c3                           # ret                       done
'@ -replace '#.*' -split '\s+').Where{ $_ }.ForEach{ [Convert]::ToByte($_, 16) }

    function Write-Disk([string] $Path) {
        # An image that boots, and gives its first sector.
        $disk = [byte[]]::new(1MB)
        $text = [Text.Encoding]::ASCII.GetBytes($greeting[0])
        [byte[]] $sector = $program + $text + 0
        $sector.CopyTo($disk, 0)
        $disk[510], $disk[511] = 0x55, 0xaa
        [Text.Encoding]::ASCII.GetBytes($greeting[1]).CopyTo($disk, 512)
        [IO.File]::WriteAllBytes($Path, $disk)
        , $disk[0..511]
    }

    function Invoke-Pc([string] $Name, [string] $SocketPath, [string[]] $Argument = @()) {
        # A PC with the back end's disk, whose serial port writes to a file.
        $folder = (New-Item -ItemType Directory (Join-Path $directory $Name)).FullName
        $serial = Join-Path $folder serial
        $qemu = Start-Qemu -Directory $folder -MemorySize 256M -Argument (@(
                '-serial', "file:$serial"
                '-chardev', "socket,id=c,path=$SocketPath"
                '-device', 'vhost-user-blk-pci,chardev=c,bootindex=1'
            ) + $Argument)
        $qemu | Add-Member Serial $serial -PassThru
    }

    function Read-Serial([object] $Pc) {
        "$(Get-Content -Raw $Pc.Serial -ErrorAction Ignore)"
    }

    function Get-Round([object] $Backend) {
        $Backend | Read-GuestMemory $counter -As UInt32 -ErrorAction Stop
    }

    function Wait-Round([object] $Backend, [object] $Pc, [int] $Count = 1) {
        # Until the program has done so many more rounds.
        $until = (Get-Round $Backend) + $Count
        Wait-Until {
            if ((Read-Serial $Pc) -clike '*E') { throw "The guest has read something else than it wrote, or its disk failed: round $(Get-Round $Backend); the back end says '$($Backend.Error)'." }
            (Get-Round $Backend) -ge $until
        }
    }

    function Get-WrongSector([string] $Path, [uint] $Round) {
        # The sectors of an image that do not hold what the program wrote up to a round, which may be half done; in words.
        $bytes = [IO.File]::ReadAllBytes($Path)
        for ($i = 0; $i -lt $sectors; $i++) {
            $words = [uint[]]::new(128)
            [Buffer]::BlockCopy($bytes, ($first + $i) * 512, $words, 0, 512)
            $newest = $Round - ($Round - $i + 4 * $sectors) % $sectors
            $mayBe = $newest -eq $Round ? @($newest, ($newest - $sectors)) : @($newest)
            if (@($words | Sort-Object -Unique).Count -ne 1 -or $words[0] -notin $mayBe) { "sector $($first + $i) holds $($words[0]) in place of $($mayBe -join ' or ')" }
        }
    }

    function Invoke-Migration([object] $Pc, [string] $Path, [long] $Size) {
        # Migrates to a file, and waits until so much of it is written. No more is, until Complete-Migration; the VM runs meanwhile, since what is left
        # takes longer than it may stand still.
        $null = Invoke-Qmp $Pc.Qmp migrate-set-parameters @{ 'max-bandwidth' = 10GB; 'downtime-limit' = 1 }
        $null = Invoke-Qmp $Pc.Qmp migrate @{ uri = "exec:head -c $Size > $Path; until [ -e $Path.go ]; do [ -e $Path ] || exit; sleep 0.1; done; cat >> $Path" }
        Wait-Until { (Test-Path $Path) -and (Get-Item $Path).Length -eq $Size }
    }

    function Complete-Migration([object] $Pc, [string] $Path) {
        # A QEMU before 9.0 can miss what the guest's own processors, when it emulates them, write after it has looked at the dirty pages again.
        $null = Invoke-Qmp $Pc.Qmp stop
        $null = Invoke-Qmp $Pc.Qmp migrate-set-parameters @{ 'downtime-limit' = 2000 }
        $null = New-Item "$Path.go"
        Wait-Migration $Pc completed
    }

    function Assert-SameMemory([object[]] $Regions, [object] $Migrated) {
        # That the memory of the destination is that of the source.
        foreach ($region in $Regions) {
            $hashes = $region, $Migrated | ForEach-Object {
                $bytes = Read-GuestMemory -Memory $_ -Address $region.GuestAddress -Size $region.Size -Raw
                [Convert]::ToHexString([Security.Cryptography.SHA256]::HashData($bytes))
            }
            $hashes[1] | Should -Be $hashes[0] -Because "this is the memory from 0x$($region.GuestAddress.ToString('x')) on"
        }
    }

    function Wait-Migration([object] $Pc, [string] $Status) {
        Wait-Until {
            $now = (Invoke-Qmp $Pc.Qmp query-migrate).status
            if ($now -ne $Status -and $now -in 'completed', 'failed', 'cancelled') { throw "The migration ended as $now." }
            $now -eq $Status
        }
    }
}

Describe 'The disk of a VM that QEMU runs' {
    BeforeAll {
        if ($lacking) { return }
        $directory = [IO.Directory]::CreateTempSubdirectory('guestmemory-vhost-').FullName
        $image = Join-Path $directory disk.img
        $sector = Write-Disk $image
        $ends = @{}
        $pcs = @{}
        $ends.disk = Start-VhostUserBackend (Join-Path $directory disk.sock) $image
        $pcs.source = Invoke-Pc source $ends.disk.SocketPath
        Wait-Until { (Read-Serial $pcs.source) -like '*.' }
    }

    AfterAll {
        if ($lacking) { return }
        $pcs.Values.ForEach{ Stop-Qemu $_ }
        Get-MmapRegion | Remove-MmapRegion -Force
        Get-VhostUserBackend | Stop-VhostUserBackend -WarningAction Ignore
        if ($directory) { Remove-Item $directory -Recurse -Force }
    }

    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    Context 'while it runs' {
        It 'boots it' {
            Read-Serial $pcs.source | Should -BeLike "$($greeting -join '')*"
            $ends.disk.State | Should -Be Connected
            $ends.disk.ProcessId | Should -Be $pcs.source.Process.Id
            $ends.disk.ConnectionCount | Should -Be 1
            $ends.disk.Error | Should -BeNullOrEmpty
            $ends.disk.IsLogging | Should -BeFalse
        }

        It 'shows its memory' {
            # All of it but the addresses of the display and of the adapters.
            $ends.disk.MemorySize | Should -BeGreaterThan 255MB
            $ends.disk.MemorySize | Should -BeLessOrEqual 256MB
            ($ends.disk | Read-GuestMemory 0x7c00 512 -Raw) | Should -Be $sector
            ($ends.disk | Get-GuestMemory).Size | Should -Be $ends.disk.MemorySize
            Get-VhostUserBackend disk | Out-String -Width 250 | Should -Match "disk\s+Connected\s+1 MiB\s+$($pcs.source.Process.Id)\s+25[56](\.\d)? MiB\s"
        }

        It 'gets what is written to its memory' {
            $ends.disk | Write-GuestMemory 128MB -Value 0xfeedfaceu -As UInt32
            $dump = Invoke-Qmp $pcs.source.Qmp human-monitor-command @{ 'command-line' = "xp /1xw $(128MB)" }
            $dump.Trim() | Should -BeLike '*: 0xfeedface'
        }

        It 'writes and reads it' {
            Wait-Round $ends.disk $pcs.source 300
            $null = Invoke-Qmp $pcs.source.Qmp stop
            Get-WrongSector $image (Get-Round $ends.disk) | Should -BeNullOrEmpty
        }

        It 'keeps the memory that the disk uses' {
            { $ends.disk.Memory | Remove-MmapRegion -ErrorAction Stop } | Should -Throw -ErrorId 'RegionInUse,*'
            $null = Invoke-Qmp $pcs.source.Qmp cont
            Wait-Round $ends.disk $pcs.source
        }

        It 'shows which pages the disk has written, also where the bitmap is replaced meanwhile' {
            { $ends.disk | Get-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*'
            $ends.disk | Set-DirtyBitmap -Private
            Wait-Round $ends.disk $pcs.source
            foreach ($i in 1..20) { $ends.disk | Set-DirtyBitmap -Private }
            Wait-Round $ends.disk $pcs.source 300
            $null = Invoke-Qmp $pcs.source.Qmp stop
            $marked = @($ends.disk | Get-DirtyBitmap -Clear -AsRange)
            $marked.Where{ $_.Address -le $pages.Address -and $_.LastAddress -ge $pages.Address + $pages.Size - 1 }.Count | Should -Be 1 -Because 'each of these pages was read from the disk'
            # What the guest's own processor writes is not seen.
            $marked.Where{ $_.Address -le $counter -and $_.LastAddress -ge $counter } | Should -BeNullOrEmpty
            $ends.disk | Get-DirtyBitmap -AsRange | Should -BeNullOrEmpty
        }

        It 'keeps QEMU''s own disks off its image while it runs' {
            $null = Invoke-Qmp $pcs.source.Qmp cont
            $output = & qemu-system-x86_64 -S -display none -drive "file=$image,format=raw,if=virtio" 2>&1 | Out-String
            $LASTEXITCODE | Should -Be 1
            $output | Should -BeLike '*Failed to get "write" lock*'
            Wait-Round $ends.disk $pcs.source 300
            $null = Invoke-Qmp $pcs.source.Qmp stop
        }

        It 'is exported as QEMU has it' {
            (Invoke-Qmp $pcs.source.Qmp query-status).running | Should -BeFalse
            $saved, $read = 'saved.mem', 'read.mem' | ForEach-Object { Join-Path $directory $_ }
            # From 1 MiB on QEMU has nothing but memory at these addresses.
            $null = Invoke-Qmp $pcs.source.Qmp pmemsave @{ val = 1MB; size = 255MB; filename = $saved }
            $ends.disk | Read-GuestMemory 1MB 255MB -OutFile $read
            (Get-FileHash $read).Hash | Should -Be (Get-FileHash $saved).Hash
            $exported = $ends.disk | Export-GuestMemory (Join-Path $directory exported.mem) -PassThru
            $exported.Size | Should -Be $ends.disk.MemorySize
            Remove-Item $saved, $read, $exported.Path
            $null = Invoke-Qmp $pcs.source.Qmp cont
            Wait-Round $ends.disk $pcs.source
        }

        It 'is refused where QEMU''s own disk has the image, and says which process' {
            $taken = Join-Path $directory taken.img
            $null = Write-Disk $taken
            $pcs.holder = Start-Qemu -Directory (New-Item -ItemType Directory (Join-Path $directory holder)).FullName -MemorySize 64M -Argument '-S', '-drive', "file=$taken,format=raw,if=virtio"
            $ends.taken = Start-VhostUserBackend (Join-Path $directory taken.sock) $taken
            $pcs.guest = Invoke-Pc guest $ends.taken.SocketPath
            Wait-Until { $ends.taken.Error }
            $ends.taken.Error | Should -BeLike "*$taken is in use: process $($pcs.holder.Process.Id) (qemu-system-x86) writes it*"
            Stop-Qemu $pcs.guest
            Stop-Qemu $pcs.holder
            $pcs.guest = Invoke-Pc guest-2 $ends.taken.SocketPath
            Wait-Until { (Read-Serial $pcs.guest) -like "$($greeting -join '')*." }
            Stop-Qemu $pcs.guest
            Wait-Until { $ends.taken.State -eq 'Listening' }
            $pcs.holder = Start-Qemu -Directory (New-Item -ItemType Directory (Join-Path $directory holder-2)).FullName -MemorySize 64M -Argument '-S', '-drive', "file=$taken,format=raw,if=virtio,readonly=on"
            $pcs.guest = Invoke-Pc guest-3 $ends.taken.SocketPath
            Wait-Until { $ends.taken.Error -like "*process $($pcs.holder.Process.Id) (qemu-system-x86) lets no other process write it*" }
            Stop-Qemu $pcs.guest
            $ends.taken | Stop-VhostUserBackend -WarningAction Ignore
            $ends.taken = Start-VhostUserBackend (Join-Path $directory taken.sock) $taken -ReadOnly
            $pcs.guest = Invoke-Pc guest-4 $ends.taken.SocketPath
            Wait-Until { (Read-Serial $pcs.guest) -like "$($greeting -join '')*" }
            $ends.taken.Error | Should -BeNullOrEmpty -Because 'both read'
            Stop-Qemu $pcs.guest
            Stop-Qemu $pcs.holder
            $ends.taken | Stop-VhostUserBackend -WarningAction Ignore
            'guest', 'holder' | ForEach-Object { $pcs.Remove($_) }
            $ends.Remove('taken')
        }

        It 'has no second front end' {
            { Invoke-Pc second $ends.disk.SocketPath } | Should -Throw
            $ends.disk.Error | Should -BeLike "*refused*$($pcs.source.Process.Id) is connected*"
            $ends.disk.ProcessId | Should -Be $pcs.source.Process.Id
            $ends.disk.ConnectionCount | Should -Be 1
            Wait-Round $ends.disk $pcs.source 300
        }
    }

    Context 'while it migrates' {
        It 'is not logged any more when the migration was cancelled' {
            $null = Invoke-Qmp $pcs.source.Qmp migrate-set-parameters @{ 'max-bandwidth' = 64KB }
            $null = Invoke-Qmp $pcs.source.Qmp migrate @{ uri = 'exec:cat > /dev/null' }
            Wait-Until { $ends.disk.IsLogging }
            Get-VhostUserBackend disk | Out-String -Width 250 | Should -Match 'MiB\s+on\s'
            Wait-Round $ends.disk $pcs.source 300
            # The marks of the migration are QEMU's; those of the memory's own bitmap are this shell's.
            $ends.disk | Get-DirtyBitmap -Clear | Measure-Object DirtyCount -Sum | ForEach-Object Sum | Should -BeGreaterThan 0
            $null = Invoke-Qmp $pcs.source.Qmp migrate_cancel
            Wait-Migration $pcs.source cancelled
            Wait-Until { -not $ends.disk.IsLogging }
            Wait-Round $ends.disk $pcs.source 300
        }

        It 'is not logged any more when the migration has failed' {
            $null = Invoke-Qmp $pcs.source.Qmp migrate @{ uri = 'exec:exit 1' }
            Wait-Migration $pcs.source failed
            Wait-Until { -not $ends.disk.IsLogging }
            Wait-Round $ends.disk $pcs.source 300
        }

        It 'gives the marks of the migration to nobody but QEMU' {
            $ends.disk.Memory.Regions.ForEach{ $_.GetMemory().SetTracker($null) }
            $null = Invoke-Qmp $pcs.source.Qmp migrate @{ uri = 'exec:cat > /dev/null' }
            Wait-Until { $ends.disk.IsLogging }
            Wait-Round $ends.disk $pcs.source 100
            { $ends.disk | Get-DirtyBitmap -Clear -ErrorAction Stop } | Should -Throw -ErrorId 'LogOfFrontEnd,*'
            { $ends.disk | Clear-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'LogOfFrontEnd,*'
            { $ends.disk | Watch-DirtyBitmap -Interval 0.01 -SampleCount 1 -ErrorAction Stop } | Should -Throw -ErrorId 'LogOfFrontEnd,*'
            { $ends.disk | Measure-DirtyRate -Duration 0.1 -ErrorAction Stop } | Should -Throw -ErrorId 'LogOfFrontEnd,*'
            { $ends.disk | Export-GuestMemory (Join-Path $directory diff.mem) -Format Diff -ErrorAction Stop } | Should -Throw -ErrorId 'LogOfFrontEnd,*'
            $ends.disk | Set-DirtyBitmap -Private
            Wait-Round $ends.disk $pcs.source 100
            @($ends.disk | Watch-DirtyBitmap -Interval 0.01 -SampleCount 1).Count | Should -Be 1
            $null = Invoke-Qmp $pcs.source.Qmp migrate_cancel
            Wait-Migration $pcs.source cancelled
            Wait-Until { -not $ends.disk.IsLogging }
        }

        It 'says that it is logged after a migration, until QEMU lets the VM go on' {
            $null = Invoke-Qmp $pcs.source.Qmp migrate-set-parameters @{ 'max-bandwidth' = 10GB; 'downtime-limit' = 2000 }
            $null = Invoke-Qmp $pcs.source.Qmp migrate @{ uri = 'exec:cat > /dev/null' }
            Wait-Migration $pcs.source completed
            (Invoke-Qmp $pcs.source.Qmp query-status).status | Should -Be postmigrate
            $ends.disk.IsLogging | Should -BeTrue
            $null = Invoke-Qmp $pcs.source.Qmp cont
            Wait-Until { -not $ends.disk.IsLogging }
            Wait-Round $ends.disk $pcs.source 100
        }

        It 'loses nothing: the destination has the memory and the disk that the source had' {
            $state = Join-Path $directory vm.state
            # The first 640 KiB of the guest are sent, and then nothing until the disk has written each of its pages several times.
            Invoke-Migration $pcs.source $state 700000
            $ends.disk.IsLogging | Should -BeTrue
            # A write of this shell is in the log of the migration, too.
            $ends.disk | Write-GuestMemory 0x98000 -Value 0xabad1deau -As UInt32
            Wait-Round $ends.disk $pcs.source 300
            # Whoever looks here takes no mark of QEMU's.
            foreach ($i in 1..20) {
                $null = $ends.disk | Get-DirtyBitmap -Clear
                $ends.disk | Set-DirtyBitmap -Private
                $ends.disk | Clear-DirtyBitmap
            }
            Wait-Round $ends.disk $pcs.source 300
            $ends.disk | Clear-DirtyBitmap
            Complete-Migration $pcs.source $state
            (Invoke-Qmp $pcs.source.Qmp query-status).status | Should -Be postmigrate
            $round = Get-Round $ends.disk
            Get-WrongSector $image $round | Should -BeNullOrEmpty
            $hash = (Get-FileHash $image).Hash

            $ends.other = Start-VhostUserBackend (Join-Path $directory other.sock) $image
            $pcs.destination = Invoke-Pc destination $ends.other.SocketPath -Argument '-S', '-incoming', 'defer'
            $null = Invoke-Qmp $pcs.destination.Qmp migrate-incoming @{ uri = "exec:cat $state" }
            Wait-Until { (Invoke-Qmp $pcs.destination.Qmp query-status).status -eq 'paused' }
            # It has not run yet, and so not shared its memory; that is its memfd.
            $migrated = New-MmapRegion 256MB 0 -BackingPath (Get-SharedFile $pcs.destination memory-backend-memfd)
            Read-GuestMemory -Memory $migrated -Address $counter -As UInt32 | Should -Be $round
            Read-GuestMemory -Memory $migrated -Address 0x98000 -As UInt32 | Should -Be 0xabad1deau
            $number = Read-GuestMemory -Memory $migrated -Address $pages.Address -As UInt32
            $number | Should -BeGreaterThan ($round - 65) -Because 'the page that the disk wrote has its newest content'
            Assert-SameMemory $ends.disk.Memory.Regions $migrated
            $migrated | Remove-MmapRegion
            (Get-FileHash $image).Hash | Should -Be $hash -Because 'the destination has not run yet'
        }

        It 'goes on at the destination, where the source left it' {
            Stop-Qemu $pcs.source
            $pcs.Remove('source')
            Wait-Until { $ends.disk.State -eq 'Listening' }
            $null = Invoke-Qmp $pcs.destination.Qmp cont
            Wait-Until { $ends.other.MemorySize }
            Wait-Round $ends.other $pcs.destination 600
            $null = Invoke-Qmp $pcs.destination.Qmp stop
            Get-WrongSector $image (Get-Round $ends.other) | Should -BeNullOrEmpty
            Read-Serial $pcs.destination | Should -Match '^\.+$'
            $ends.other.Error | Should -BeNullOrEmpty
            $null = Invoke-Qmp $pcs.destination.Qmp cont
        }
    }

    Context 'when its QEMU is killed' {
        It 'serves the next one' {
            Wait-Round $ends.other $pcs.destination
            $pcs.destination.Process.Kill()
            $pcs.destination.Process.WaitForExit()
            Wait-Until { $ends.other.State -eq 'Listening' }
            $pcs.next = Invoke-Pc next $ends.other.SocketPath
            Wait-Until { (Read-Serial $pcs.next) -like "$($greeting -join '')*." }
            $ends.other.ProcessId | Should -Be $pcs.next.Process.Id
            $ends.other.ConnectionCount | Should -Be 2
            Wait-Round $ends.other $pcs.next 300
            $null = Invoke-Qmp $pcs.next.Qmp stop
            Get-WrongSector $image (Get-Round $ends.other) | Should -BeNullOrEmpty
        }

        It 'stops, and leaves no descriptor and no thread' {
            Stop-Qemu $pcs.next
            $pcs.Remove('next')
            Get-VhostUserBackend | Stop-VhostUserBackend
            Get-VhostUserBackend | Should -BeNullOrEmpty
            Wait-Until { -not (Get-NamedThread 'vhost-*') }
            Get-ChildItem $directory -Filter *.sock | Should -BeNullOrEmpty
        }
    }
}

Describe 'The disk of a VM that arrives by post-copy' {
    BeforeAll {
        if ($lacking) { return }
        $directory = [IO.Directory]::CreateTempSubdirectory('gm-post-').FullName
        $image = Join-Path $directory disk.img
        $null = Write-Disk $image
        $pcs = @{}
        $source = Start-VhostUserBackend (Join-Path $directory source.sock) $image
        $disk = Start-VhostUserBackend (Join-Path $directory disk.sock) $image
        $pcs.source = Invoke-Pc source $source.SocketPath
        Wait-Until { (Read-Serial $pcs.source) -like '*.' }
        # The destination's QEMU says which pages that the back end misses have not come, and are asked for.
        $pcs.destination = Invoke-Pc destination $disk.SocketPath -Argument '-incoming', 'defer', '-trace', 'postcopy_request_shared_page', '-trace', 'vhost_user_postcopy_end_exit'
        foreach ($pc in $pcs.source, $pcs.destination) {
            $null = Invoke-Qmp $pc.Qmp migrate-set-capabilities @{ capabilities = @(@{ capability = 'postcopy-ram'; state = $true }) }
        }
        $stream = "unix:$(Join-Path $directory stream.sock)"
        $null = Invoke-Qmp $pcs.destination.Qmp migrate-incoming @{ uri = $stream }
        $trace = Join-Path $directory destination qemu.log
    }

    AfterAll {
        if ($lacking) { return }
        $pcs.Values.ForEach{ Stop-Qemu $_ }
        Get-VhostUserBackend | Stop-VhostUserBackend -WarningAction Ignore
        if ($directory) { Remove-Item $directory -Recurse -Force }
    }

    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It 'runs at the destination while its memory is at the source' {
        # So slow that hardly a page comes that is not asked for.
        $null = Invoke-Qmp $pcs.source.Qmp migrate-set-parameters @{ 'max-bandwidth' = 16KB; 'max-postcopy-bandwidth' = 16KB }
        $null = Invoke-Qmp $pcs.source.Qmp migrate @{ uri = $stream }
        Wait-Migration $pcs.source active
        # The disk writes each of its pages once more: what was sent of them is of no use.
        Wait-Round $source $pcs.source 100
        $null = Invoke-Qmp $pcs.source.Qmp migrate-start-postcopy
        Wait-Migration $pcs.source postcopy-active
        Wait-Until { $disk.MemorySize }
        $round = Get-Round $source
        Wait-Until { (Get-Round $disk) -ge $round + 100 }
        Wait-Round $disk $pcs.destination
        (Invoke-Qmp $pcs.source.Qmp query-migrate).status | Should -Be postcopy-active
        $disk.IsPostcopy | Should -BeTrue
        Get-VhostUserBackend disk | Out-String -Width 250 | Should -Match 'arrives by post-copy'
        $disk.Error | Should -BeNullOrEmpty
    }

    It 'gets the pages that the disk misses from the source' {
        # Each round of the program reads sectors of the disk into a page that the guest looks at afterwards: the disk misses it first.
        $asked = @(Get-Content $trace).ForEach{ if ($_ -cmatch 'postcopy_request_shared_page for vhost-user in m offset (0x[0-9a-f]+)$') { [long] $Matches[1] } }
        $asked.Where{ $_ -ge $pages.Address -and $_ -lt $pages.Address + $pages.Size }.Count | Should -BeGreaterThan 0
    }

    It 'goes on when all has come' {
        $null = Invoke-Qmp $pcs.source.Qmp migrate-set-parameters @{ 'max-postcopy-bandwidth' = 0 }
        Wait-Migration $pcs.source completed
        Wait-Until { -not $disk.IsPostcopy }
        Wait-Until { @(Get-Content $trace) -clike '*vhost_user_postcopy_end_exit*' }
        Stop-Qemu $pcs.source
        $pcs.Remove('source')
        Wait-Round $disk $pcs.destination 100
        $null = Invoke-Qmp $pcs.destination.Qmp stop
        Get-WrongSector $image (Get-Round $disk) | Should -BeNullOrEmpty
        Read-Serial $pcs.destination | Should -Match '^\.+$'
        $disk.Error | Should -BeNullOrEmpty
        $disk.ProcessId | Should -Be $pcs.destination.Process.Id
    }

    It 'ends with its QEMU, and leaves no thread' {
        $pcs.destination.Process.Kill()
        Wait-Until { $disk.State -eq 'Listening' }
        Get-VhostUserBackend | Stop-VhostUserBackend
        Wait-Until { -not (Get-NamedThread 'vhost-*') }
    }
}

Describe 'The disk of a Linux that QEMU runs' {
    BeforeAll {
        $linuxLacking = $lacking ? $lacking : (Get-LinuxGuestLack)
        if ($linuxLacking) { return }
        # A release is tried with a hundred.
        $kills = [int] ($env:GUESTMEMORY_KILL_ROUNDS ? $env:GUESTMEMORY_KILL_ROUNDS : 10)
        $directory = [IO.Directory]::CreateTempSubdirectory('guestmemory-vhost-').FullName
        Build-LinuxGuest $directory
        $image = Join-Path $directory disk.img
        Write-LinuxDisk $image $directory
        $socket = Join-Path $directory other.sock
        $guests = @{}
        $disk = Start-VhostUserBackend (Join-Path $directory disk.sock) $image -QueueCount 2
        $guests.source = Start-LinuxGuest source $directory $disk.SocketPath
        $ends = @{ disk = $disk; backend = New-StandbyBackend $socket $image }
    }

    AfterAll {
        if ($linuxLacking) { return }
        $guests.Values.ForEach{ Stop-LinuxGuest $_ }
        Stop-Backend $ends.backend
        Stop-Backend $ends.standby
        Get-MmapRegion | Remove-MmapRegion -Force
        Get-VhostUserBackend | Stop-VhostUserBackend -WarningAction Ignore
        if ($directory) { Remove-Item $directory -Recurse -Force }
    }

    BeforeEach {
        if ($linuxLacking) { Set-ItResult -Skipped -Because $linuxLacking }
    }

    It 'is mounted, and has the files that were put there' {
        Invoke-Guest $guests.source 'mount -t ext4 -o noatime /dev/vda /mnt && sha256sum -c /mnt/sums' | Should -Be '/mnt/data: OK'
        $disk.Error | Should -BeNullOrEmpty
    }

    It 'holds what the guest wrote at full speed' {
        Start-GuestLoad $guests.source
        Wait-Request $guests.source 2000
        $end = Complete-GuestLoad $guests.source
        $end.Read | Should -Be $end.Expected
        Get-DiskHash $image load | Should -Be $end.Expected
    }

    It 'has each page that it wrote while the guest migrates marked in the log of QEMU, and in the migrated image' {
        $state = Join-Path $directory vm.state
        # What is below this address has been sent when the migration stands still: each page takes a little more than its size. Half of the pages below
        # that the guest names are written by the disk alone from then on, and the other half by nobody.
        $below = 96MB
        $null = Invoke-Guest $guests.source "/guest pages /mnt/data 512 $below >/tmp/pages.log 2>&1 & pages=`$!"
        $null = Invoke-Guest $guests.source 'until grep -e ready -e wrong /tmp/pages.log; do usleep 100000; done; grep -q ready /tmp/pages.log || { cat /tmp/pages.log; false; }'
        $said = Invoke-Guest $guests.source 'grep page /tmp/pages.log'
        $written, $others = ('disk', '-').ForEach{ $kind = $_; , @($said.Where{ $_.EndsWith(" $kind") }.ForEach{ [ulong] $_.Split(' ')[1] }) }
        $written.Count | Should -BeGreaterThan 200
        $others.Count | Should -BeGreaterThan 200
        Start-GuestLoad $guests.source

        Invoke-Migration $guests.source $state 100MB
        $disk.IsLogging | Should -BeTrue
        (Get-MarkedPage $guests.source).Overlaps([ulong[]] $written) | Should -BeFalse
        Wait-Request $guests.source 500
        $null = Invoke-Guest $guests.source 'kill -USR1 $pages; until grep -e filled -e wrong /tmp/pages.log; do usleep 100000; done; grep -q filled /tmp/pages.log'
        $marked = Get-MarkedPage $guests.source
        $written.Where{ -not $marked.Contains($_) } | Should -BeNullOrEmpty
        $others.Where{ $marked.Contains($_) } | Should -BeNullOrEmpty
        foreach ($queue in 0, 1) {
            $ring = (Invoke-Qmp $guests.source.Qmp x-query-virtio-queue-status @{ path = '/machine/peripheral/disk/virtio-backend'; queue = $queue }).'vring-used'
            $marked.Contains([ulong] $ring -band -bnot 4095ul) | Should -BeTrue -Because "the used ring of virtqueue $queue is at $ring"
        }

        Complete-Migration $guests.source $state
        (Invoke-Qmp $guests.source.Qmp query-status).status | Should -Be postmigrate
        $hash = (Get-FileHash $image).Hash
        Start-StandbyBackend $ends.backend
        $guests.destination = Start-LinuxGuest destination $directory $socket -Incoming
        $null = Invoke-Qmp $guests.destination.Qmp migrate-incoming @{ uri = "exec:cat $state" }
        Wait-Until { (Invoke-Qmp $guests.destination.Qmp query-status).status -eq 'paused' }
        $migrated = New-MmapRegion 256MB 0 -BackingPath (Get-SharedFile $guests.destination memory-backend-memfd)
        $data = [IO.File]::ReadAllBytes((Join-Path $directory files data))
        for ($i = 0; $i -lt $written.Count; $i++) {
            $page = [byte[]] (Read-GuestMemory -Memory $migrated -Address $written[$i] -Size 4096 -Raw)
            [Linq.Enumerable]::SequenceEqual($page, [byte[]] $data[($i * 4096)..($i * 4096 + 4095)]) | Should -BeTrue -Because "the disk wrote the page at 0x$($written[$i].ToString('x'))"
        }
        Assert-SameMemory $disk.Memory.Regions $migrated
        $migrated | Remove-MmapRegion
        Remove-Item $state
        (Get-FileHash $image).Hash | Should -Be $hash -Because 'the destination has not run yet'
    }

    It 'has lost nothing when the guest goes on at the destination' {
        $guests.Contains('destination') | Should -BeTrue -Because 'the test before this one starts it'
        Stop-LinuxGuest $guests.source
        $guests.Remove('source')
        $disk | Stop-VhostUserBackend
        $null = Invoke-Qmp $guests.destination.Qmp cont
        Wait-Request $guests.destination 1000
        Invoke-Guest $guests.destination 'kill -USR2 $pages; wait $pages; tail -n 1 /tmp/pages.log' | Should -BeLike '512 pages are right*'
        $end = Complete-GuestLoad $guests.destination
        $end.Read | Should -Be $end.Expected
        Get-DiskHash $image load | Should -Be $end.Expected
        Invoke-Guest $guests.destination 'echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /mnt/sums' | Should -Be '/mnt/data: OK'
    }

    It 'loses no request, and does none twice, when the back end is killed under load' {
        $guests.Contains('destination') | Should -BeTrue -Because 'a test before this one starts it'
        Start-GuestLoad $guests.destination
        $inFlight = for ($kill = 1; $kill -le $kills; $kill++) {
            $ends.standby = New-StandbyBackend $socket $image
            Wait-Request $guests.destination 300
            $count = Suspend-Backend $ends.backend $guests.destination
            Stop-Backend $ends.backend
            $ends.backend = $ends.standby
            $ends.Remove('standby')
            Start-StandbyBackend $ends.backend
            Write-Host "      killed $kill of $kills times, with $count requests in flight"
            $count
        }
        Wait-Request $guests.destination 300
        $inFlight.Count | Should -Be $kills
        $end = Complete-GuestLoad $guests.destination
        $end.Read | Should -Be $end.Expected
        Get-DiskHash $image load | Should -Be $end.Expected
        Invoke-Guest $guests.destination 'cat /sys/block/vda/inflight' | Should -Match '^\s*0\s+0\s*$'
        Get-Content $guests.destination.Console | Should -BeNullOrEmpty
    }

    It 'loses no request and no mark when the back end is killed under load while the guest migrates' {
        $guests.Contains('destination') | Should -BeTrue -Because 'a test before this one starts it'
        $state = Join-Path $directory killed.state
        Start-GuestLoad $guests.destination
        Invoke-Migration $guests.destination $state 100MB
        for ($kill = 1; $kill -le [Math]::Max(1, $kills / 3); $kill++) {
            $ends.standby = New-StandbyBackend $socket $image
            Wait-Request $guests.destination 300
            $count = Suspend-Backend $ends.backend $guests.destination
            Stop-Backend $ends.backend
            $ends.backend = $ends.standby
            $ends.Remove('standby')
            Start-StandbyBackend $ends.backend
            Write-Host "      killed $kill times while it migrates, with $count requests in flight"
        }
        Wait-Request $guests.destination 300
        # QEMU has told the new one of its log.
        $used = (Invoke-Qmp $guests.destination.Qmp x-query-virtio-queue-status @{ path = '/machine/peripheral/disk/virtio-backend'; queue = 0 }).'vring-used'
        (Get-MarkedPage $guests.destination).Contains([ulong] $used -band -bnot 4095ul) | Should -BeTrue
        Complete-Migration $guests.destination $state

        $last = Start-VhostUserBackend (Join-Path $directory last.sock) $image -QueueCount 2
        $guests.last = Start-LinuxGuest last $directory $last.SocketPath -Incoming
        $null = Invoke-Qmp $guests.last.Qmp migrate-incoming @{ uri = "exec:cat $state" }
        Wait-Until { (Invoke-Qmp $guests.last.Qmp query-status).status -eq 'paused' }
        $left, $arrived = $guests.destination, $guests.last | ForEach-Object { New-MmapRegion 256MB 0 -BackingPath (Get-SharedFile $_ memory-backend-memfd) }
        Assert-SameMemory $left $arrived
        $left, $arrived | Remove-MmapRegion
        Remove-Item $state
        Stop-LinuxGuest $guests.destination
        $guests.Remove('destination')
        $null = Invoke-Qmp $guests.last.Qmp cont
        Wait-Request $guests.last 300
        $end = Complete-GuestLoad $guests.last
        $end.Read | Should -Be $end.Expected
        Get-DiskHash $image load | Should -Be $end.Expected
        Invoke-Guest $guests.last 'cat /sys/block/vda/inflight' | Should -Match '^\s*0\s+0\s*$'
        Invoke-Guest $guests.last 'umount /mnt' | Should -BeNullOrEmpty
        e2fsck -fn $image 2>&1 | Out-Host
        $LASTEXITCODE | Should -Be 0
        Get-Content $guests.last.Console | Should -BeNullOrEmpty
    }
}
