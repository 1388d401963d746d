# The memory of a QEMU that knows nothing of it: found by its process, and compared with what QEMU itself says of it.

BeforeDiscovery {
    $script:machines = @(
        @{ Name = 'pc with anonymous memory'; Program = 'x86_64'; Machine = 'pc'; Memory = 'Anonymous'; Size = 256; Layout = '0+256' }
        @{ Name = 'pc with a shared memfd'; Program = 'x86_64'; Machine = 'pc'; Memory = 'Memfd'; Size = 256; Layout = '0+256' }
        @{ Name = 'pc with a shared file'; Program = 'x86_64'; Machine = 'pc'; Memory = 'File'; Size = 256; Layout = '0+256' }
        @{ Name = 'pc, split'; Program = 'x86_64'; Machine = 'pc'; Memory = 'Anonymous'; Size = 4096; Layout = '0+3072', '4096+1024' }
        @{ Name = 'pc, split, a shared memfd'; Program = 'x86_64'; Machine = 'pc'; Memory = 'Memfd'; Size = 3584; Layout = '0+3072', '4096+512' }
        @{ Name = 'q35'; Program = 'x86_64'; Machine = 'q35'; Memory = 'Anonymous'; Size = 256; Layout = '0+256' }
        @{ Name = 'q35, split'; Program = 'x86_64'; Machine = 'q35'; Memory = 'Anonymous'; Size = 3072; Layout = '0+2048', '4096+1024' }
        @{ Name = 'q35, split, a shared file'; Program = 'x86_64'; Machine = 'q35'; Memory = 'File'; Size = 3072; Layout = '0+2048', '4096+1024' }
        @{ Name = 'virt of arm64 with anonymous memory'; Program = 'aarch64'; Machine = 'virt'; Memory = 'Anonymous'; Size = 256; Layout = , '1024+256' }
        @{ Name = 'virt of arm64 with a shared memfd'; Program = 'aarch64'; Machine = 'virt'; Memory = 'Memfd'; Size = 256; Layout = , '1024+256' }
    )
}

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    Import-Module (Join-Path $root tests Pester TestHelpers.psm1) -Force
    Import-Module (Join-Path $PSScriptRoot Qmp.psm1) -Force

    function Open-Vm([string] $Folder, [string] $Program, [string] $Machine, [string] $Memory, [int] $Size, [string[]] $Argument = @()) {
        # Starts a VM without a disk. The test has its monitor, qmp.sock; another one, free.sock, nobody uses.
        $options = @{ Directory = $Folder; Program = "qemu-system-$Program"; Machine = $Machine; MemorySize = "${Size}M" }
        $arguments = @('-qmp', "unix:$Folder/free.sock,server=on,wait=off") + $Argument
        if ($Program -eq 'aarch64') { $arguments += '-cpu', 'cortex-a72' }
        switch ($Memory) {
            Anonymous { $options.Anonymous = $true }
            File { $options.MemoryPath = "$Folder/vm.mem" }
        }
        Start-Qemu @options -Argument $arguments
    }

    function Get-Layout([object] $Memory) {
        $Memory.Regions.ForEach{ '{0}+{1}' -f ($_.GuestAddress / 1MB), ($_.Size / 1MB) }
    }

    function Assert-Same([object] $Memory, [object] $Qmp, [string] $Folder, [ulong] $Address, [ulong] $Size) {
        # What is read is what QEMU saves.
        $saved, $read = "$Folder/saved.mem", "$Folder/read.mem"
        $null = Invoke-Qmp $Qmp pmemsave @{ val = $Address; size = $Size; filename = $saved }
        $Memory | Read-GuestMemory $Address $Size -OutFile $read
        (Get-FileHash $read).Hash | Should -Be (Get-FileHash $saved).Hash -Because ('the {0} bytes at 0x{1:x} are the same' -f $Size, $Address)
        Remove-Item $saved, $read
    }
}

Describe 'The memory of a QEMU, <Name>' -ForEach $machines {
    BeforeAll {
        $lacking = if (-not (Get-Command "qemu-system-$Program" -CommandType Application -ErrorAction Ignore)) {
            "needs qemu-system-${Program}: apt-get install qemu-system-$($Program -eq 'x86_64' ? 'x86' : 'arm')"
        }
        if ($lacking) { return }
        $folder = [IO.Directory]::CreateTempSubdirectory('gm-').FullName
        $qemu = Open-Vm $folder $Program $Machine $Memory $Size
        $id = $qemu.Process.Id
        if ($Program -eq 'x86_64') {
            # The firmware has copied itself into memory.
            $live = Get-GuestMemory -ProcessId $id
            Wait-Until { $live | Search-GuestMemory -Text SeaBIOS -Address 0xE0000 -Size 128KiB }
        }
        $null = Invoke-Qmp $qemu.Qmp stop
    }

    AfterAll {
        if ($lacking) { return }
        Clear-TestState
        Stop-Qemu $qemu
        Remove-Item $folder -Recurse -Force
    }

    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It 'lies where a free monitor says, and where the machine has it' {
        $asked = Get-Process -Id $id | Get-GuestMemory -Verbose 4>&1
        $asked[0] | Should -BeLike '*free.sock said where the memory lies.'
        Get-Layout $asked[1] | Should -Be $Layout
        $asked[1].ProcessId | Should -Be $id
        $connection = Connect-Qmp "$folder/free.sock"
        try {
            $known = Get-GuestMemory -ProcessId $id -Verbose 4>&1
            $known[0] | Should -BeLike "The addresses are those of machine '$Machine' of ${Program}.*another client*"
            Get-Layout $known[1] | Should -Be $Layout
            $known[1].Regions.ProcessAddress | Should -Be $asked[1].Regions.ProcessAddress
            $known[1].Regions.ForEach{ [bool] $_.GetFileOffset() } | Should -Be @($Layout.ForEach{ $Memory -ne 'Anonymous' })
            { Get-GuestMemory -ProcessId $id -Monitor "$folder/free.sock" -ErrorAction Stop } | Should -Throw -ErrorId 'MonitorFailed,*'
        }
        finally {
            $connection.Reader.Dispose()
        }
    }

    It 'is what QEMU saves of it, byte for byte' {
        # What is compared is not zero alone: each range gets some of its own.
        $writable = Get-GuestMemory -ProcessId $id -Writable
        $bytes = [byte[]]::new(100KB)
        foreach ($region in $writable.Regions) {
            foreach ($at in ($region.GuestAddress + 16MB), ($region.LastAddress - 1MB)) {
                [Random]::new([int] ($at / 1MB)).NextBytes($bytes)
                $writable | Write-GuestMemory ($at + 5) -Bytes $bytes
            }
        }
        $vm = Get-GuestMemory -ProcessId $id -Pause
        foreach ($region in $vm.Regions) {
            # Below 1 MiB a PC has more than memory.
            $first = [Math]::Max($region.GuestAddress, $Program -eq 'x86_64' ? 1MB : 0)
            if ($region.Size -le 256MB) {
                Assert-Same $vm $qemu.Qmp $folder $first ($region.LastAddress + 1 - $first)
                continue
            }
            Assert-Same $vm $qemu.Qmp $folder $first 32MB
            Assert-Same $vm $qemu.Qmp $folder ($region.LastAddress + 1 - 32MB) 32MB
        }
        # It has held QEMU for the length of each read only.
        (Get-Content "/proc/$id/status") | Should -Contain "TracerPid:`t0"
    }

    It 'is searched, compared and listed' {
        $other = Get-GuestMemory -ProcessId $id -Pause
        $vm = Get-GuestMemory -ProcessId $id
        if ($Size -gt 1024) {
            # The rest was never touched.
            $vm | Search-GuestMemory -Text 'nowhere in it' -Address $vm.Regions[0].GuestAddress -Size 64MiB | Should -BeNullOrEmpty
        }
        else {
            ($vm | Compare-GuestMemory -With $other -Summary).DifferentBytes | Should -Be 0
        }
        (Get-MmapRegion "qemu$id-*").GuestAddress | Should -Be $vm.Regions.GuestAddress
        (Get-MmapRegion | Out-String) | Should -Match 'process '
        $vm | Remove-MmapRegion
        Get-MmapRegion | Should -BeNullOrEmpty
        { $vm | Read-GuestMemory $vm.LastAddress 1 -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
    }
}

Describe 'A QEMU' {
    BeforeAll {
        $lacking = if (-not (Get-Command qemu-system-x86_64 -CommandType Application -ErrorAction Ignore)) { 'needs qemu-system-x86_64: apt-get install qemu-system-x86' }
        if ($lacking) { return }
        $folder = [IO.Directory]::CreateTempSubdirectory('gm-').FullName
        chmod 755 $folder
        $qemu = Open-Vm $folder x86_64 pc Anonymous 128
        $id = $qemu.Process.Id
    }

    AfterAll {
        if ($lacking) { return }
        Clear-TestState
        Stop-Qemu $qemu
        Remove-Item $folder -Recurse -Force
    }

    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It 'is exported in one line, at one instant' {
        Get-Process qemu-system-x86* | Where-Object Id -eq $id | Get-GuestMemory -Pause | Export-GuestMemory "$folder/vm.mem"
        (Get-Item "$folder/vm.mem").Length | Should -Be 128MB
        (Invoke-Qmp $qemu.Qmp query-status).running | Should -BeTrue
    }

    It 'is written to, and QEMU sees it' {
        Get-GuestMemory -ProcessId $id -Writable | Write-GuestMemory 64MiB 0xfeedface -As UInt32
        Invoke-Qmp $qemu.Qmp human-monitor-command @{ 'command-line' = 'xp /1xw 0x4000000' } | Should -BeLike '*: 0xfeedface*'
        { Get-GuestMemory -ProcessId $id | Write-GuestMemory 64MiB 1 -As UInt32 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
    }

    It 'is not taken for another whose monitor was given' {
        $second = [IO.Directory]::CreateTempSubdirectory('gm-').FullName
        $other = Open-Vm $second x86_64 pc Anonymous 64
        try {
            { Get-GuestMemory -ProcessId $other.Process.Id -Monitor "$folder/free.sock" -ErrorAction Stop } | Should -Throw "*process $id, another VMM*" -ErrorId 'MonitorFailed,*'
        }
        finally {
            Stop-Qemu $other
            Remove-Item $second -Recurse -Force
        }
    }

    It 'is out of reach of another user, who learns what is missing' {
        $shell = @(Get-OtherUserShell $folder)
        $command = "Import-Module '$folder/module/GuestMemory.psd1'; try { Get-GuestMemory -ProcessId $id -ErrorAction Stop } catch { `$_.FullyQualifiedErrorId; `$_.CategoryInfo.Category; `$_.Exception.Message }"
        $text = & $shell[0] $shell[1..99] -Command $command
        $text[0] | Should -BeLike 'ProcessDenied,*'
        $text[1] | Should -Be PermissionDenied
        $text[2] | Should -BeLike '*CAP_SYS_PTRACE*'
    }

    It 'has memory no more when it has ended' {
        $vm = Get-GuestMemory -ProcessId $id
        $vm | Read-GuestMemory 0 16 | Should -Not -BeNullOrEmpty
        $qemu.Process.Kill()
        $qemu.Process.WaitForExit()
        { $vm | Read-GuestMemory 0 16 -ErrorAction Stop } | Should -Throw -ErrorId 'ProcessEnded,*'
        Get-MmapRegion | Should -BeNullOrEmpty
    }
}
