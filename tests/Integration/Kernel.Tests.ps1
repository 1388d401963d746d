# The kernel and the processes of a Debian that a QEMU boots, read from its memory while it runs and from an image, beside what the guest and
# QEMU say themselves.

BeforeDiscovery {
    $processors = @{ Cpu = 'qemu64'; Levels = 4 }, @{ Cpu = 'max'; Levels = 5 }
    # The kernel of the backports has addresses of 52 bits where the processor does; the first of these does not.
    $arm = @{ Cpu = 'cortex-a57'; Levels = 4 }, @{ Cpu = 'max'; Levels = 5 }
}

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    Import-Module (Join-Path $root tests Pester TestHelpers.psm1) -Force
    Import-Module (Join-Path $PSScriptRoot Machine.psm1) -Force
    Import-Module (Join-Path $PSScriptRoot Qmp.psm1) -Force
    Import-Module (Join-Path $PSScriptRoot LinuxGuest.psm1) -Force
    $lacking = Get-LinuxGuestLack
    if ($lacking) { return }

    $machine = Join-Path $root artifacts machines linux
    $directory = [IO.Directory]::CreateTempSubdirectory('guestmemory-kernel-').FullName
    $overlay = (New-Item -ItemType Directory "$directory/overlay").FullName
    Copy-Item (Join-Path $PSScriptRoot Kernel init) $overlay
    gcc -O2 -static -o "$overlay/guest" (Join-Path $PSScriptRoot Kernel guest.c) -lpthread
    if ($LASTEXITCODE -ne 0) { throw "gcc ended with exit code $LASTEXITCODE." }
    & (Join-Path $PSScriptRoot machine.sh) linux $machine $overlay
    if ($LASTEXITCODE -ne 0) { throw "machine.sh ended with exit code $LASTEXITCODE." }
    Move-Item "$machine/initrd" "$directory/initrd"

    function Start-KernelGuest([string] $Cpu) {
        # A PC with 1 GiB in a file, which does what is written to its second serial port.
        $folder = (New-Item -ItemType Directory "$directory/$Cpu").FullName
        $qemu = Start-Qemu -Directory $folder -MemoryPath "$folder/memory" -MemorySize 1G -Argument @(
            '-cpu', $Cpu, '-smp', '2', '-kernel', "$machine/vmlinuz", '-initrd', "$directory/initrd", '-append', '"console=ttyS0 panic=-1 quiet"'
            '-serial', "file:$folder/console", '-serial', "unix:$folder/commands,server=on,wait=off"
        )
        try {
            $socket = [Net.Sockets.Socket]::new('Unix', 'Stream', 'Unspecified')
            $socket.Connect([Net.Sockets.UnixDomainSocketEndPoint]::new("$folder/commands"))
            $socket.ReceiveTimeout = 240000
            $stream = [Net.Sockets.NetworkStream]::new($socket, $true)
            $guest = $qemu | Add-Member -PassThru -NotePropertyMembers @{
                Folder = $folder; Console = "$folder/console"; Reader = [IO.StreamReader]::new($stream); Writer = [IO.StreamWriter]::new($stream)
            }
            $null = Read-Guest $guest boot
            $guest
        }
        catch {
            Stop-Qemu $qemu
            throw
        }
    }

    function Get-Register([object] $Guest, [string] $Name) {
        # A register of the first processor.
        (Invoke-Qmp $Guest.Qmp human-monitor-command @{ 'command-line' = 'info registers' }) -match "$Name=([0-9a-f]+)" | Should -BeTrue
        "0x$($Matches[1])"
    }

    function Get-Saved([object] $Guest, [ulong] $Address, [int] $Size) {
        # What QEMU reads at a virtual address.
        $path = "$($Guest.Folder)/saved"
        $null = Invoke-Qmp $Guest.Qmp memsave @{ val = [BitConverter]::ToInt64([BitConverter]::GetBytes($Address), 0); size = $Size; filename = $path }
        [Convert]::ToHexString([IO.File]::ReadAllBytes($path))
    }

    function ConvertTo-Line([object] $Process) {
        # As ps -o pid,ppid,user,stat,comm has it, with the letter of the state alone.
        $letter = @{ Running = 'R'; Sleeping = 'S'; Uninterruptible = 'D'; Idle = 'I'; Stopped = 'T'; Traced = 't'; Parked = 'P'; Zombie = 'Z'; Dead = 'X' }["$($Process.State)"]
        "$($Process.ProcessId) $($Process.ParentId) $($Process.UserId) $letter $($Process.Name)"
    }
}

AfterAll {
    if ($lacking) { return }
    Remove-Item $directory -Recurse -Force
}

Describe 'A guest with page tables of <Levels> levels' -ForEach $processors {
    BeforeAll {
        if ($lacking) { return }
        $guest = Start-KernelGuest $Cpu
        # One that runs, one that is stopped; the program is of another user, and has a child that has ended.
        $null = Invoke-Guest $guest 'sleep 100000 & sleep 100001 & until grep -q sleep /proc/$!/comm; do :; done; kill -STOP $!; /guest >/tmp/said & until grep -q ready /tmp/said; do usleep 10000; done'
        $release, $version = (Invoke-Guest $guest 'uname -r; uname -v').Trim()
        $symbols = (Invoke-Guest $guest "grep -v '\[' /proc/kallsyms | sha256sum").Split(' ')[0]
        $places = Invoke-Guest $guest "grep -E ' (_text|init_task)$' /proc/kallsyms; grep 'Kernel code' /proc/iomem"
        $live = New-MmapRegion -Size 1GiB -BackingPath "$($guest.Folder)/memory" -Protection Read -Name "live-$Cpu"
        # It runs while this is read, and is stopped for all that is compared with it.
        $running = $live | Get-GuestProcess -WarningAction SilentlyContinue
        $said = Invoke-Guest $guest 'for p in /proc/[0-9]*; do while read -r key value rest; do case $key in Name:|PPid:|Uid:|State:|Pid:|Threads:) echo "$key $value";; esac; done <$p/status; done 2>/dev/null; ps -o pid,ppid,stat,comm'
        $null = Invoke-Qmp $guest.Qmp stop
        $null = Invoke-Qmp $guest.Qmp pmemsave @{ val = 0; size = 1GB; filename = "$($guest.Folder)/image" }
        $image = New-MmapRegion -Size 1GiB -BackingPath "$($guest.Folder)/image" -Protection Read -Name "image-$Cpu"
        $watch = [Diagnostics.Stopwatch]::StartNew()
        $kernel = $live | Get-GuestKernel
        $found = $watch.Elapsed
        $processes = $kernel | Get-GuestProcess
        Write-Host "kernel of 1 GiB in $($found.TotalSeconds) s, its processes in $(($watch.Elapsed - $found).TotalSeconds) s"
    }

    AfterAll {
        if ($lacking) { return }
        Get-MmapRegion "*-$Cpu" | Remove-MmapRegion
        # Where it did not boot it was stopped.
        if (-not $guest) { return }
        $guest.Reader.Dispose()
        Stop-Qemu $guest
    }

    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It 'has the kernel that uname, /proc/kallsyms and /proc/iomem say' {
        $kernel.Release | Should -BeExactly $release
        $kernel.Version | Should -BeExactly $version
        $kernel.NodeName | Should -BeExactly a-guest
        $kernel.Banner | Should -BeLike "Linux version $release (*"
        "$($kernel.Architecture)" | Should -Be X64
        $kernel.Levels | Should -Be $Levels
        '{0:x16} T _text' -f $kernel.Address | Should -BeIn $places
        $places[-1] | Should -Match ('^\s*0*{0:x}-' -f $kernel.PhysicalAddress)
        $kernel.KaslrOffset | Should -Be ($kernel.Address - 0xffffffff81000000ul)
        $kernel.PhysicalKaslrOffset | Should -Be ($kernel.PhysicalAddress - 0x1000000ul)
        $kernel.VmcoreInfo | Should -BeLike "OSRELEASE=$release*"
        $kernel.BtfSize | Should -BeGreaterThan 1MB
    }

    It 'has every symbol that the guest has' {
        $lines = foreach ($symbol in $kernel.GetSymbols()) { '{0:x16} {1} {2}' -f $symbol.Address, $symbol.Type, $symbol.Name }
        @($lines).Count | Should -Be $kernel.SymbolCount
        [Convert]::ToHexStringLower([Security.Cryptography.SHA256]::HashData([Text.Encoding]::ASCII.GetBytes(($lines -join "`n") + "`n"))) | Should -Be $symbols
        '{0:x16} D init_task' -f ($kernel | Get-GuestKernel -Symbol init_task).Address | Should -BeIn $places
        ($live | Get-GuestKernel -Symbol linux_b*, init_task).Name | Should -Contain linux_banner
        { $kernel | Get-GuestKernel -Symbol no_such_symbol -ErrorAction Stop } | Should -Throw -ErrorId 'SymbolNotFound,*'
    }

    It 'has the processes that ps and /proc list' {
        # Each has six lines, in the kernel's order.
        $status = @{}
        foreach ($line in $said -match '^[A-Z]\w+: ') {
            $key, $value = $line -split ': ', 2
            if ($key -eq 'Name') { $one = @{} }
            $one.$key = $value.Trim()
            if ($key -eq 'Pid') { $status[[int] $value] = $one }
        }
        $status.Count | Should -BeGreaterThan 40
        $here = @{}
        $processes.ForEach{ $here[$_.ProcessId] = $_ }
        # What comes and goes: ps itself, and the kernel's workers.
        foreach ($id in $status.Keys) {
            $there = $status.$id
            if ($there.Name -like 'kworker/*' -or (-not $here.ContainsKey($id) -and $there.Name -in 'init', 'ps')) { continue }
            $one = $here.$id
            $one | Should -Not -BeNullOrEmpty -Because "the guest has $id ($($there.Name))"
            # The kernel keeps longer names of its threads elsewhere.
            $one.Name | Should -BeExactly $there.Name.Substring(0, [Math]::Min(15, $there.Name.Length))
            $one.ParentId | Should -Be $there.PPid
            $one.UserId | Should -Be $there.Uid
            $one.ThreadCount | Should -Be $there.Threads
            $one.KernelThread | Should -Be ($id -eq 2 -or $there.PPid -eq '2')
        }
        $listed = foreach ($line in $said -match '^ *\d+ +\d+ +\S+ ') { ($line.Trim() -split '\s+', 4)[3] }
        foreach ($one in $processes) {
            if ($one.Name -notlike 'kworker/*') { $one.Name | Should -BeIn $listed }
        }
        $program = @($processes.Where{ $_.Name -eq 'guest' })
        $program.Count | Should -Be 2
        $parent, $child = $program
        ConvertTo-Line $parent | Should -Be "$($parent.ProcessId) 1 1234 S guest"
        $parent.ThreadCount | Should -Be 3
        ConvertTo-Line $child | Should -Be "$($child.ProcessId) $($parent.ProcessId) 0 Z guest"
        $child.PageTable | Should -BeNullOrEmpty
        @($processes.Where{ $_.Name -eq 'sleep' }.State) | Should -Be Sleeping, Stopped
        $parent.StartTime | Should -BeGreaterThan $processes[0].StartTime
    }

    It 'has them live as well, and in an image' {
        $image | Get-GuestProcess | ForEach-Object { ConvertTo-Line $_ } | Should -Be ($processes | ForEach-Object { ConvertTo-Line $_ })
        ($image | Get-GuestKernel).Address | Should -Be $kernel.Address
        ($running | Where-Object Name -NotLike 'kworker/*').Name | Should -Be ($processes | Where-Object Name -NotLike 'kworker/*').Name
        ($image | Get-GuestProcess -Name gue*, SLEEP).Name | Should -Be sleep, sleep, guest, guest
        ($image | Get-GuestProcess -Id 1, 2).Name | Should -Be init, kthreadd
        { $kernel | Get-GuestProcess -Id 4194304 -ErrorAction Stop } | Should -Throw -ErrorId 'GuestProcessNotFound,*'
        { $kernel | Get-GuestProcess nothing-of-that-name -ErrorAction Stop } | Should -Throw -ErrorId 'GuestProcessNotFound,*'
    }

    It 'is read at virtual addresses as QEMU reads it' {
        $cr3 = Get-Register $guest CR3
        $task = ($kernel | Get-GuestKernel -Symbol init_task).Address
        foreach ($range in @(@($kernel.Address, 300001), @(($task + 3), 8192))) {
            $address, $size = $range
            $saved = Get-Saved $guest $address $size
            [Convert]::ToHexString(($live | Read-GuestMemory $address $size -Virtual -Cr3 $cr3 -Raw)) | Should -Be $saved
            [Convert]::ToHexString(($live | Read-GuestMemory $address $size -Virtual -PageTable $kernel.PageTable -Levels $Levels -Raw)) | Should -Be $saved
            [Convert]::ToHexString(($kernel | Read-GuestMemory $address $size -Virtual -Raw)) | Should -Be $saved
        }
        $kernel.Translate($kernel.Address).Address | Should -Be $kernel.PhysicalAddress
        # Modules, the direct map: what the page tables do not have in one piece.
        $all = $kernel | Read-GuestMemory $processes[0].TaskAddress 4096 -Virtual -Raw
        [Convert]::ToHexString($all) | Should -Be (Get-Saved $guest $processes[0].TaskAddress 4096)
    }

    It 'has the memory of a process' {
        $process = $processes.Where{ $_.Name -eq 'guest' }[0]
        $values = $process | Read-GuestMemory 0x10000000 -Virtual -As UInt32 -Count (3MB / 4 + 25)
        $wrong = for ($i = 0; $i -lt $values.Count; $i++) { if ($values[$i] -ne 0x10000000 + 4 * $i) { $i } }
        @($values).Count | Should -Be (3MB / 4 + 25)
        $wrong | Should -BeNullOrEmpty
        $live | Read-GuestMemory 0x10000ffc -Virtual -Cr3 $process.PageTable -As UInt32 -Count 2 | Should -Be 0x10000ffc, 0x10001000
        $process | Read-GuestMemory 0x10000ffd 300000 -Virtual -OutFile "$($guest.Folder)/part"
        [BitConverter]::ToUInt32([IO.File]::ReadAllBytes("$($guest.Folder)/part"), 299999 - 3 - (299999 - 3 + 0xffd) % 4) -shr 28 | Should -Be 1
        (Get-Item "$($guest.Folder)/part").Length | Should -Be 300000
        { $process | Read-GuestMemory 0x1000 -Virtual -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotPresent,*'
        { $processes.Where{ $_.ProcessId -eq 2 } | Read-GuestMemory 0x1000 -Virtual -ErrorAction Stop } | Should -Throw '*is a thread of the kernel*' -ErrorId 'PageNotPresent,*'
    }

    It 'is found without VMCOREINFO, and says what it lacks' {
        Copy-Item "$($guest.Folder)/image" "$($guest.Folder)/broken"
        $broken = New-MmapRegion -Size 1GiB -BackingPath "$($guest.Folder)/broken" -Name "broken-$Cpu"
        $broken | Search-GuestMemory -Text 'OSRELEASE=' -All | ForEach-Object { $broken | Write-GuestMemory $_.Address -Value 'XX' }
        $other = $broken | Get-GuestKernel
        $other.VmcoreInfo | Should -BeNullOrEmpty
        foreach ($property in 'Release', 'Version', 'Banner', 'Address', 'PhysicalAddress', 'KaslrOffset', 'PhysicalKaslrOffset', 'PageTable', 'Levels', 'SymbolCount', 'BtfAddress', 'BtfSize') {
            $other.$property | Should -Be $kernel.$property -Because $property
        }
        $other | Get-GuestProcess | ForEach-Object { ConvertTo-Line $_ } | Should -Be ($processes | ForEach-Object { ConvertTo-Line $_ })

        # The list of tasks comes back to where it was, and leads nowhere: the field of the first task that leads to the second is found first.
        $first, $second, $third = $processes[0..2].TaskAddress
        $values = $kernel | Read-GuestMemory $first -Virtual -As UInt64 -Count 1024
        $field = (0..1023).Where({ $values[$_] -eq $second + 8 * $_ }, 'First')[0] * 8
        $next = $kernel.Translate($second + $field).Address
        $broken | Write-GuestMemory $next -As UInt64 -Value ($first + $field)
        $list = $other | Get-GuestProcess -WarningVariable warnings -WarningAction SilentlyContinue
        $list.ProcessId | Should -Be $processes[0..1].ProcessId
        "$warnings" | Should -BeLike '*comes back to the task*'
        $broken | Write-GuestMemory $next -As UInt64 -Value 0xdead000000000100
        $list = $other | Get-GuestProcess -WarningVariable warnings -WarningAction SilentlyContinue
        $list.ProcessId | Should -Be $processes[0..1].ProcessId
        "$warnings" | Should -BeLike '*cannot be followed after 2 tasks*not canonical*'
        $third | Should -Not -BeNullOrEmpty

        # No types; then no name.
        $broken | Write-GuestMemory $kernel.BtfAddress -As UInt32 -Value 0
        { $broken | Get-GuestProcess -ErrorAction Stop } | Should -Throw '*carries no BTF*' -ErrorId 'KernelTypesNotFound,*'
        $uts = $kernel.Translate(($kernel | Get-GuestKernel -Symbol init_uts_ns).Address).Address
        $broken | Write-GuestMemory $uts -Value ('-' * 16)
        { $broken | Get-GuestKernel -ErrorAction Stop } | Should -Throw '*do not lead to*' -ErrorId 'KernelNotFound,*'
    }

    It 'is the one that runs, after a restart' {
        # Each start has another place. What the one before has left in the memory is a whole kernel, more often than not.
        $null = Invoke-Qmp $guest.Qmp cont
        foreach ($i in 1..3) {
            $null = Invoke-Qmp $guest.Qmp system_reset
            $null = Read-Guest $guest boot
            $address = (Invoke-Guest $guest "grep ' _text$' /proc/kallsyms").Split(' ')[0]
            '{0:x16}' -f ($live | Get-GuestKernel).Address | Should -Be $address
            # By the symbols too, which stay longer than VMCOREINFO.
            $null = Invoke-Qmp $guest.Qmp stop
            $path = "$($guest.Folder)/restarted$i"
            $null = Invoke-Qmp $guest.Qmp pmemsave @{ val = 0; size = 1GB; filename = $path }
            $null = Invoke-Qmp $guest.Qmp cont
            $saved = New-MmapRegion -Size 1GiB -BackingPath $path -Name "restarted$i-$Cpu"
            $saved | Search-GuestMemory -Text 'OSRELEASE=' -All | ForEach-Object { $saved | Write-GuestMemory $_.Address -Value 'XX' }
            '{0:x16}' -f ($saved | Get-GuestKernel).Address | Should -Be $address
        }
    }
}

Describe 'A guest of aarch64 on <Cpu>' -ForEach $arm {
    BeforeAll {
        $armLacking = $lacking ? $lacking : (Get-Lack @{ 'qemu-system-aarch64' = 'qemu-system-arm'; 'aarch64-linux-gnu-gcc' = 'gcc-aarch64-linux-gnu' })
        if (-not $armLacking) { $armLacking = Initialize-Machine arm64 }
        if ($armLacking) { return }
        $armMachine = Join-Path $root artifacts machines arm64
        $folder = (New-Item -ItemType Directory "$directory/arm64-$Cpu").FullName
        Copy-Item "$directory/overlay" "$folder/overlay" -Recurse
        aarch64-linux-gnu-gcc -O2 -static -o "$folder/overlay/guest" (Join-Path $PSScriptRoot Kernel guest.c) -lpthread
        if ($LASTEXITCODE -ne 0) { throw "aarch64-linux-gnu-gcc ended with exit code $LASTEXITCODE." }
        & (Join-Path $PSScriptRoot machine.sh) arm64 $armMachine "$folder/overlay"
        if ($LASTEXITCODE -ne 0) { throw "machine.sh ended with exit code $LASTEXITCODE." }
        Move-Item "$armMachine/initrd" "$folder/initrd"
        $process = Start-Process qemu-system-aarch64 -PassThru -RedirectStandardError "$folder/qemu.log" -ArgumentList @(
            '-machine', 'virt,accel=tcg,memory-backend=m,gic-version=3', '-cpu', $Cpu, '-smp', '2', '-m', '1G'
            '-object', "memory-backend-file,mem-path=$folder/memory,id=m,size=1G,share=on", '-nodefaults', '-no-user-config', '-display', 'none'
            '-kernel', "$armMachine/vmlinuz", '-initrd', "$folder/initrd", '-append', '"console=ttyAMA0 panic=-1 quiet"', '-serial', "file:$folder/console"
            '-device', 'virtio-serial-pci', '-chardev', "socket,id=c,path=$folder/commands,server=on,wait=off", '-device', 'virtconsole,chardev=c'
        )
        $socket = [Net.Sockets.Socket]::new('Unix', 'Stream', 'Unspecified')
        Wait-Until -Seconds 30 {
            if ($process.HasExited) { throw "QEMU ended with exit code $($process.ExitCode): $(Get-Content -Raw "$folder/qemu.log")" }
            try { $socket.Connect([Net.Sockets.UnixDomainSocketEndPoint]::new("$folder/commands")); $true } catch [Net.Sockets.SocketException] { $false }
        }
        $socket.ReceiveTimeout = 240000
        $stream = [Net.Sockets.NetworkStream]::new($socket, $true)
        $guest = @{ Console = "$folder/console"; Reader = [IO.StreamReader]::new($stream); Writer = [IO.StreamWriter]::new($stream) }
        $null = Read-Guest $guest boot
        # It is its console too: what is said there comes back with the first answer.
        $null = Invoke-Guest $guest '/guest >/tmp/said & until grep -q ready /tmp/said; do usleep 10000; done'
        $release = (Invoke-Guest $guest 'uname -r')[-1].Trim()
        $symbols = (Invoke-Guest $guest "grep -v '\[' /proc/kallsyms | sha256sum")[-1].Split(' ')[0]
        $names = Invoke-Guest $guest 'for p in /proc/[0-9]*; do read -r name <$p/comm && echo "${p#/proc/} $name"; done 2>/dev/null'
        $live = New-MmapRegion -Size 1GiB -GuestAddress 1GiB -BackingPath "$folder/memory" -Protection Read -Name "arm64-$Cpu"
        $kernel = $live | Get-GuestKernel
        $processes = $kernel | Get-GuestProcess
    }

    AfterAll {
        if ($armLacking) { return }
        Get-MmapRegion "arm64-$Cpu" | Remove-MmapRegion
        if ($process) {
            $process.Kill()
            $process.WaitForExit()
            $process.Dispose()
        }
        if ($guest) { $guest.Reader.Dispose() }
    }

    BeforeEach {
        if ($armLacking) { Set-ItResult -Skipped -Because $armLacking }
    }

    It 'has its kernel, symbols and processes' {
        $kernel.Release | Should -BeExactly $release
        $kernel.Levels | Should -Be $Levels
        "$($kernel.Architecture)" | Should -Be Arm64
        $kernel.Banner | Should -BeLike "Linux version $release (*"
        $lines = foreach ($symbol in $kernel.GetSymbols()) { '{0:x16} {1} {2}' -f $symbol.Address, $symbol.Type, $symbol.Name }
        [Convert]::ToHexStringLower([Security.Cryptography.SHA256]::HashData([Text.Encoding]::ASCII.GetBytes(($lines -join "`n") + "`n"))) | Should -Be $symbols
        $kernel.Translate($kernel.Address).Address | Should -Be $kernel.PhysicalAddress
        foreach ($line in $names) {
            if ($line -notmatch '^(\d+) (.*\S)' -or $Matches[2] -like 'kworker/*') { continue }
            $id, $name = [int] $Matches[1], $Matches[2]
            $processes.Where{ $_.ProcessId -eq $id }.Name | Should -BeExactly $name.Substring(0, [Math]::Min(15, $name.Length))
        }
        $processes.Count | Should -BeGreaterThan 40
    }

    It 'is read by the addresses of a process, and of its kernel' {
        $parent, $child = $processes.Where{ $_.Name -eq 'guest' }
        $parent.ThreadCount | Should -Be 3
        $parent.UserId | Should -Be 1234
        "$($child.State)" | Should -Be Zombie
        $parent | Read-GuestMemory 0x10000ffc -Virtual -As UInt32 -Count 1000 | Should -Be (0..999).ForEach{ 0x10000ffc + 4 * $_ }
        $live | Read-GuestMemory 0x10000ffc -Virtual -PageTable $parent.PageTable -Architecture Arm64 -As UInt32 -Count 2 | Should -Be 0x10000ffc, 0x10001000
        # Where the process has a table of its own, the kernel's addresses are in the other.
        $banner = $kernel.FindSymbol('linux_banner').Address
        foreach ($source in $kernel, $parent) { $source | Read-GuestMemory $banner -Virtual -Encoding ascii | Should -BeLike "Linux version $release*" }
        $live | Read-GuestMemory $banner -Virtual -PageTable $kernel.PageTable -Architecture Arm64 -Encoding ascii | Should -BeLike "Linux version $release*"
        { $parent | Read-GuestMemory 0x1000 -Virtual -ErrorAction Stop } | Should -Throw '*of the table of level *' -ErrorId 'PageNotPresent,*'
    }
}
