# What Measure-DirtyRate forecasts, and what a live migration of a real QEMU then takes.

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    Import-Module (Join-Path $root tests Pester TestHelpers.psm1) -Force
    Import-Module (Join-Path $PSScriptRoot Qmp.psm1) -Force

    $lacking = if (-not (Get-Command qemu-system-x86_64 -CommandType Application -ErrorAction Ignore)) { 'needs qemu-system-x86_64: apt-get install qemu-system-x86' }
    elseif (-not (Get-Command perl -CommandType Application -ErrorAction Ignore)) { 'needs perl: apt-get install perl' }
    elseif (($feature = Test-GuestMemorySupport PagemapScan) -and -not $feature.Supported) { "this host cannot track what another process writes: $($feature.Detail)" }

    # A boot sector: writes every page from 16 MiB to 128 MiB once, says "R" on the serial port, and then writes 8 pages, chosen at random of
    # 32 MiB from 16 MiB on, at every 4 million ticks of the time-stamp counter.
    $program = (@'
        fa                           # cli
        31 c0                        # xor  ax, ax
        8e d8                        # mov  ds, ax
        e4 92                        # in   al, 0x92
        0c 02                        # or   al, 2                  the A20 line
        e6 92                        # out  0x92, al
        66 0f 01 16 a0 7c            # lgdt [0x7ca0]
        0f 20 c0                     # mov  eax, cr0
        0c 01                        # or   al, 1                  protected mode
        0f 22 c0                     # mov  cr0, eax
        66 ea 21 7c 00 00 08 00      # jmp  8:0x7c21
        66 b8 10 00                  # mov  ax, 16
        8e d8                        # mov  ds, ax
        8e c0                        # mov  es, ax
        8e d0                        # mov  ss, ax
        bf 00 00 00 01               # mov  edi, 16 MiB
        89 3f                        # mov  [edi], edi             fill
        81 c7 00 10 00 00            # add  edi, 4096
        81 ff 00 00 00 08            # cmp  edi, 128 MiB
        72 f0                        # jb   fill
        66 ba f8 03                  # mov  dx, 0x3f8
        b0 52                        # mov  al, 'R'
        ee                           # out  dx, al
        bb 01 00 00 00               # mov  ebx, 1
        0f 31                        # rdtsc
        89 c6                        # mov  esi, eax
        b9 08 00 00 00               # mov  ecx, 8                 again
        69 db 0d 66 19 00            # imul ebx, ebx, 1664525      page
        81 c3 5f f3 6e 3c            # add  ebx, 1013904223
        89 d8                        # mov  eax, ebx
        f7 25 a6 7c 00 00            # mul  dword [0x7ca6]
        c1 e2 0c                     # shl  edx, 12
        ff 82 00 00 00 01            # inc  dword [edx + 16 MiB]
        e2 e1                        # loop page
        81 c6 00 09 3d 00            # add  esi, 4000000
        0f 31                        # rdtsc                       wait
        29 f0                        # sub  eax, esi
        78 fa                        # js   wait
        eb ce                        # jmp  again
'@ -replace '#.*' -split '\s+').Where{ $_ }.ForEach{ [Convert]::ToByte($_, 16) }
    $tables = (@'
        00 00 00 00 00 00 00 00      # 0x7c88: the descriptors: none,
        ff ff 00 00 00 9a cf 00      #         code,
        ff ff 00 00 00 92 cf 00      #         data
        17 00 88 7c 00 00            # 0x7ca0: where they are
        00 20 00 00                  # 0x7ca6: the pages of 32 MiB
'@ -replace '#.*' -split '\s+').Where{ $_ }.ForEach{ [Convert]::ToByte($_, 16) }

    function Get-Ratio([double] $Forecast, [double] $Measured) {
        [Math]::Round($Forecast / $Measured, 2)
    }
}

Describe 'A live migration that was forecast' {
    BeforeAll {
        if ($lacking) { return }
        $directory = [IO.Directory]::CreateTempSubdirectory('guestmemory-rate-').FullName
        $disk = [byte[]]::new(512)
        ([byte[]] $program).CopyTo($disk, 0)
        ([byte[]] $tables).CopyTo($disk, 0x88)
        $disk[510], $disk[511] = 0x55, 0xaa
        [IO.File]::WriteAllBytes("$directory/disk.img", $disk)
        $qemu = Start-Qemu -Directory $directory -MemorySize 128M -Argument '-serial', "file:$directory/serial", '-drive', "file=$directory/disk.img,format=raw,if=ide"
        Wait-Until { "$(Get-Content -Raw "$directory/serial" -ErrorAction Ignore)" -like '*R*' }
        $map = (Get-Content "/proc/$($qemu.Process.Id)/maps") -match '/memfd:' | Select-Object -First 1
        $address, $end = ($map -split '[- ]')[0, 1].ForEach{ [Convert]::ToUInt64($_, 16) }
        $tracking = Start-DirtyTracking -ProcessId $qemu.Process.Id -Address $address -Size ($end - $address)
    }

    AfterAll {
        if ($lacking) { return }
        if ($tracking) { $tracking | Stop-DirtyTracking }
        Stop-Qemu $qemu
        Remove-Item $directory -Recurse -Force
    }

    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It 'takes the time and the bytes of the forecast, within a quarter' {
        # What fits the machine's time-stamp counter: half as much again as the guest writes.
        $rate = ($tracking | Measure-DirtyRate -Duration 2 -Interval 0.5).Rate
        $rate | Should -BeGreaterThan 1MB
        $bandwidth = [ulong] ($rate * 1.5)
        $measured = $tracking | Measure-DirtyRate -Duration 6.4 -Bandwidth $bandwidth -FirstRound 112MiB
        $forecast = $measured.Forecast
        $forecast.Converges | Should -BeTrue

        # A link of this bandwidth.
        $link = '$rate = {0}; $start = time; while (($got = sysread(STDIN, $bytes, 65536)) > 0) {{ $sum += $got; $early = $start + $sum / $rate - time; sleep($early) if $early > 0 }}' -f $bandwidth
        Set-Content "$directory/link.pl" "use Time::HiRes qw(time sleep); $link"
        $null = Invoke-Qmp $qemu.Qmp migrate-set-parameters @{ 'downtime-limit' = 300; 'max-bandwidth' = 1GB }
        $null = Invoke-Qmp $qemu.Qmp migrate @{ uri = "exec:perl $directory/link.pl" }
        Wait-Until -Seconds 120 { ($script:migration = Invoke-Qmp $qemu.Qmp query-migrate).status -in 'completed', 'failed', 'cancelled' }
        $migration.status | Should -Be completed
        $took = "forecast $($measured.Forecast); QEMU: $($migration.ram.'dirty-sync-count') rounds, $($migration.'total-time' / 1000) s, of which $($migration.downtime) ms down, $($migration.ram.transferred) bytes beside $($forecast.TransferredBytes)"
        Write-Host $took
        Get-Ratio $forecast.Duration.TotalMilliseconds $migration.'total-time' | Should -BeGreaterOrEqual 0.75 -Because $took
        Get-Ratio $forecast.Duration.TotalMilliseconds $migration.'total-time' | Should -BeLessOrEqual 1.25 -Because $took
        Get-Ratio $forecast.TransferredBytes $migration.ram.transferred | Should -BeGreaterOrEqual 0.75 -Because $took
        Get-Ratio $forecast.TransferredBytes $migration.ram.transferred | Should -BeLessOrEqual 1.25 -Because $took
    }
}
