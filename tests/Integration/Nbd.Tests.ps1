# Exported memory, read by the programs that admins have: those of libnbd and of QEMU.

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    Import-Module (Join-Path $root tests Pester TestHelpers.psm1) -Force
    Import-Module (Join-Path $PSScriptRoot Qmp.psm1) -Force

    $programs = @{ nbdinfo = 'libnbd-bin'; nbdcopy = 'libnbd-bin'; 'qemu-img' = 'qemu-utils'; 'qemu-io' = 'qemu-utils'; 'qemu-nbd' = 'qemu-utils' }
    $missing = $programs.Keys.Where{ -not (Get-Command $_ -CommandType Application -ErrorAction Ignore) }.ForEach{ $programs[$_] } | Sort-Object -Unique
    $lacking = if ($missing) { "needs $($missing -join ', '): apt-get install $($missing -join ' ')" }

    function Get-RangeHash([string] $Path, [long] $Offset, [int] $Size) {
        $file = [IO.File]::OpenRead($Path)
        try {
            $bytes = [byte[]]::new($Size)
            $file.Position = $Offset
            $file.ReadExactly($bytes, 0, $Size)
            [Convert]::ToHexString([Security.Cryptography.SHA256]::HashData($bytes))
        }
        finally {
            $file.Dispose()
        }
    }

    function Get-Part([byte[]] $Bytes, [int] $Offset, [int] $Size) {
        $part = [byte[]]::new($Size)
        [Array]::Copy($Bytes, $Offset, $part, 0, $Size)
        , $part
    }

    function Get-MemoryHash([object] $Memory, [ulong] $Address, [int] $Size) {
        [Convert]::ToHexString([Security.Cryptography.SHA256]::HashData([byte[]] ($Memory | Read-GuestMemory $Address $Size -Raw)))
    }
}

Describe 'Exported memory' {
    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
        $folder = [IO.Directory]::CreateTempSubdirectory('gm-').FullName
        $content = Write-RandomFile "$folder/content" 8MB
        $memory = (New-MmapRegion 6MiB 0x100000 -Name low), (New-MmapRegion 2MiB 0x10000000 -Name high) | Get-GuestMemory
        $memory | Write-GuestMemory 0x100000 -Bytes (Get-Part $content 0 6MB)
        $memory | Write-GuestMemory 0x10000000 -Bytes (Get-Part $content 6MB 2MB)
        $export = $memory | Start-GuestMemoryExport "$folder/vm.sock"
    }

    AfterEach {
        Clear-TestState
        Remove-Item -Recurse -Force $folder -ErrorAction Ignore
    }

    It 'is described by nbdinfo' {
        $info = nbdinfo --json $export.Uri | ConvertFrom-Json
        $LASTEXITCODE | Should -Be 0
        $info.protocol | Should -Be newstyle-fixed
        $info.structured | Should -BeTrue
        $info.exports[0].'export-size' | Should -Be 0x10200000
        $info.exports[0].is_read_only | Should -BeTrue
        $info.exports[0].can_multi_conn | Should -BeTrue
        $info.exports[0].contexts | Should -Be base:allocation
        (nbdinfo --list --json $export.Uri | ConvertFrom-Json).exports[0].'export-name' | Should -Be vm
        $map = @(nbdinfo --map --json $export.Uri | ConvertFrom-Json).ForEach{ $_ }
        $map.ForEach('length') | Should -Be 0x100000, 6MB, (0x10000000 - 0x700000), 2MB
        $map.ForEach('type') | Should -Be 3, 0, 3, 0
    }

    It 'is copied by nbdcopy, holes and all' {
        nbdcopy $export.Uri "$folder/copy.img"
        $LASTEXITCODE | Should -Be 0
        (Get-Item "$folder/copy.img").Length | Should -Be 0x10200000
        Get-RangeHash "$folder/copy.img" 0x100000 6MB | Should -Be (Get-MemoryHash $memory 0x100000 6MB)
        Get-RangeHash "$folder/copy.img" 0x10000000 2MB | Should -Be (Get-MemoryHash $memory 0x10000000 2MB)
        Get-RangeHash "$folder/copy.img" 0x700000 64MB | Should -Be ([Convert]::ToHexString([Security.Cryptography.SHA256]::HashData([byte[]]::new(64MB))))
        [long] (du --block-size=1 "$folder/copy.img" | ForEach-Object { ($_ -split '\s')[0] }) | Should -BeLessThan 16MB
        # At a port, by name, with one connection that answers simply.
        $port = $memory | Start-GuestMemoryExport -Port 0 -Name packed -Packed
        nbdcopy --connections=1 --requests=1 "$($port.Uri)packed" "$folder/packed.img"
        (Get-FileHash "$folder/packed.img").Hash | Should -Be (Get-FileHash "$folder/content").Hash
    }

    It 'is read by qemu-img and qemu-io, and not written' {
        qemu-img convert -O raw $export.Uri "$folder/converted.img"
        $LASTEXITCODE | Should -Be 0
        Get-RangeHash "$folder/converted.img" 0x100000 6MB | Should -Be (Get-MemoryHash $memory 0x100000 6MB)
        Get-RangeHash "$folder/converted.img" 0x10000000 2MB | Should -Be (Get-MemoryHash $memory 0x10000000 2MB)
        qemu-img compare -f raw -F raw $export.Uri "$folder/converted.img"
        $LASTEXITCODE | Should -Be 0
        $memory | Write-GuestMemory 0x200000 -Bytes (, 0xab * 4096)
        qemu-io -r -f raw -c 'read -P 0xab 0x200000 4096' -c 'read -P 0 0 1M' $export.Uri | Should -Not -Match 'verification failed'
        $LASTEXITCODE | Should -Be 0
        qemu-io -f raw -c 'write -P 0xcd 0x200000 4096' $export.Uri 2>&1 | Should -Match 'read.only|not permitted|Permission'
        ($memory | Read-GuestMemory 0x200000 1).Bytes | Should -Be 0xab
    }

    It 'passes through qemu-nbd' {
        $proxy = Start-Process qemu-nbd '--read-only', '--persistent', '--format=raw', "--socket=$folder/proxy.sock", $export.Uri -PassThru
        try {
            Wait-Until { Test-Path "$folder/proxy.sock" }
            nbdcopy "nbd+unix:///?socket=$folder/proxy.sock" "$folder/proxied.img"
            $LASTEXITCODE | Should -Be 0
            Get-RangeHash "$folder/proxied.img" 0x100000 6MB | Should -Be (Get-MemoryHash $memory 0x100000 6MB)
        }
        finally {
            $proxy.Kill()
            $proxy.WaitForExit()
        }
    }

    It 'is an I/O error where the memory is gone' {
        Get-MmapRegion high | Remove-MmapRegion
        qemu-io -r -f raw -c 'read 0x10000000 4096' $export.Uri 2>&1 | Should -Match 'Input/output error'
        qemu-io -r -f raw -c 'read 0x100000 4096' $export.Uri | Should -Not -Match 'error'
        $export.Error | Should -BeLike '*removed*'
    }

    It 'is that of a QEMU that runs, and an error when that has ended' {
        if (-not (Get-Command qemu-system-x86_64 -CommandType Application -ErrorAction Ignore)) { Set-ItResult -Skipped -Because 'needs qemu-system-x86_64: apt-get install qemu-system-x86' }
        $qemu = Start-Qemu -Directory $folder -MemorySize 64M -Anonymous -Argument '-S'
        try {
            $vm = Get-GuestMemory -ProcessId $qemu.Process.Id -Pause -Writable
            $vm | Write-GuestMemory 0x200000 -Bytes (Get-Part $content 0 1MB)
            Wait-Until { (Get-Content "/proc/$($qemu.Process.Id)/status") -contains "TracerPid:`t0" }
            # As long as nobody is connected it runs, also while the cmdlets that give the memory on do so.
            $vm | Get-GuestMemory | ForEach-Object { Get-Content "/proc/$($qemu.Process.Id)/status" } | Should -Contain "TracerPid:`t0"
            $vm | Start-GuestMemoryExport -Port 0 -Name idle | ForEach-Object { Get-Content "/proc/$($qemu.Process.Id)/status" } | Should -Contain "TracerPid:`t0"
            Stop-GuestMemoryExport -Name idle
            $live = $vm | Start-GuestMemoryExport -Port 0 -Name live
            nbdcopy $live.Uri "$folder/live.img"
            $LASTEXITCODE | Should -Be 0
            $null = Invoke-Qmp $qemu.Qmp pmemsave @{ val = 1MB; size = 63MB; filename = "$folder/saved.mem" }
            Get-RangeHash "$folder/live.img" 1MB 63MB | Should -Be (Get-FileHash "$folder/saved.mem").Hash
            Wait-Until { (Get-Content "/proc/$($qemu.Process.Id)/status") -contains "TracerPid:`t0" }
            $free = Get-GuestMemory -ProcessId $qemu.Process.Id | Start-GuestMemoryExport -Port 0 -Name free
            $qemu.Process.Kill()
            $qemu.Process.WaitForExit()
            qemu-io -r -f raw -c 'read 1M 4096' $free.Uri 2>&1 | Should -Match 'Input/output error'
            $free.Error | Should -BeLike '*has ended*'
        }
        finally {
            Stop-Qemu $qemu
        }
    }
}
