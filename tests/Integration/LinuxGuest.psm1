# The Linux that a QEMU of a test boots (the machine "linux" of machine.sh): its parts, its disk, what it is told to do (VhostUser/init), and a
# back end that can be killed.
Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'
Import-Module (Join-Path $PSScriptRoot .. Pester TestHelpers.psm1)
Import-Module (Join-Path $PSScriptRoot Qmp.psm1)
Import-Module (Join-Path $PSScriptRoot Machine.psm1)

$root = Split-Path (Split-Path $PSScriptRoot)
$machine = Join-Path $root artifacts machines linux

function Get-LinuxGuestLack {
    # Why such a guest cannot run here; nothing where it can. Puts its parts together.
    if ([Runtime.InteropServices.RuntimeInformation]::OSArchitecture -ne 'X64') { return 'needs a host that is x86-64, as the guest is' }
    $packages = @{ 'qemu-system-x86_64' = 'qemu-system-x86'; cpio = 'cpio'; gcc = 'gcc'; 'mkfs.ext4' = 'e2fsprogs' }
    $lack = Get-Lack $packages
    $lack ? $lack : (Initialize-Machine linux)
}

function Build-LinuxGuest([string] $Directory) {
    # The archive that is unpacked, with the init and the program of this guest.
    $overlay = (New-Item -ItemType Directory (Join-Path $Directory overlay)).FullName
    Copy-Item (Join-Path $PSScriptRoot VhostUser init) $overlay
    gcc -O2 -static -o "$overlay/guest" (Join-Path $PSScriptRoot VhostUser guest.c) -lpthread
    if ($LASTEXITCODE -ne 0) { throw "gcc ended with exit code $LASTEXITCODE." }
    & (Join-Path $PSScriptRoot machine.sh) linux $machine $overlay
    if ($LASTEXITCODE -ne 0) { throw "machine.sh ended with exit code $LASTEXITCODE." }
    Move-Item (Join-Path $machine initrd) (Join-Path $Directory initrd)
}

function Write-LinuxDisk([string] $Path, [string] $Directory) {
    # An ext4 with a file data, its SHA-256 in a file sums, and a file load, which has all of its blocks.
    $files = (New-Item -ItemType Directory (Join-Path $Directory files)).FullName
    Write-Image "$files/data" 8MB
    Write-Image "$files/load" 4MB
    "$((Get-FileHash "$files/data").Hash.ToLowerInvariant())  /mnt/data" | Set-Content "$files/sums"
    mkfs.ext4 -q -b 4096 -d $files $Path 64M
    if ($LASTEXITCODE -ne 0) { throw "mkfs.ext4 ended with exit code $LASTEXITCODE." }
}

function Get-DiskHash([string] $ImagePath, [string] $Name) {
    # The SHA-256 of a file of the disk, read without the guest.
    $copy = "$ImagePath.$Name"
    debugfs -R "dump /$Name $copy" $ImagePath 2>$null
    (Get-FileHash $copy).Hash.ToLowerInvariant()
    Remove-Item $copy
}

function Start-LinuxGuest {
    # A PC with two processors and a back end's disk, of two virtqueues. With -Incoming it waits for the state of another.
    [CmdletBinding(SupportsShouldProcess)]
    param([Parameter(Mandatory)] [string] $Name, [Parameter(Mandatory)] [string] $Directory, [Parameter(Mandatory)] [string] $SocketPath, [switch] $Incoming)
    if (-not $PSCmdlet.ShouldProcess($Name, 'Start a guest')) { return }
    $folder = (New-Item -ItemType Directory (Join-Path $Directory $Name)).FullName
    $arguments = @(
        '-smp', '2'
        '-kernel', (Join-Path $machine vmlinuz), '-initrd', (Join-Path $Directory initrd)
        '-append', '"console=ttyS0 panic=-1 quiet"'
        '-serial', "file:$folder/console", '-serial', "unix:$folder/commands,server=on,wait=off"
        '-chardev', "socket,id=c,path=$SocketPath,reconnect=1"
        '-device', 'vhost-user-blk-pci,id=disk,chardev=c,num-queues=2'
    )
    if ($Incoming) { $arguments += '-S', '-incoming', 'defer' }
    $qemu = Start-Qemu -Directory $folder -MemorySize 256M -Argument $arguments
    $socket = [Net.Sockets.Socket]::new('Unix', 'Stream', 'Unspecified')
    $socket.Connect([Net.Sockets.UnixDomainSocketEndPoint]::new("$folder/commands"))
    $socket.ReceiveTimeout = 90000
    $stream = [Net.Sockets.NetworkStream]::new($socket, $true)
    $guest = $qemu | Add-Member -PassThru -NotePropertyMembers @{
        Console = "$folder/console"
        Reader  = [IO.StreamReader]::new($stream)
        Writer  = [IO.StreamWriter]::new($stream)
    }
    if (-not $Incoming) { $null = Read-Guest $guest boot }
    $guest
}

function Read-Guest([object] $Guest, [string] $Command) {
    # The lines of its answer.
    $lines = [Collections.Generic.List[string]]::new()
    while ($true) {
        try { $line = $Guest.Reader.ReadLine() }
        catch [IO.IOException] { throw "The guest does not answer to '$Command': $_ It said: $($lines -join ' / ') Its console: $(Get-Content -Tail 5 $Guest.Console)" }
        if ($null -eq $line) { throw "QEMU has ended: $Command" }
        if ($line -cmatch '^= (\d+)$') {
            if ($Matches[1] -ne '0') { throw "The guest: '$Command' ended with exit code $($Matches[1]): $($lines -join ' / ')" }
            return $lines
        }
        $lines.Add($line)
    }
}

function Invoke-Guest([object] $Guest, [string] $Command) {
    # Runs a line of shell in the guest, and gives what it says; an error where it fails.
    $Guest.Writer.Write("$Command`n")
    $Guest.Writer.Flush()
    Read-Guest $Guest $Command
}

function Get-RequestCount([object] $Guest) {
    # How many requests of the guest's the disk has answered: reads, writes and flushes. An error where its load has ended.
    $fields = (Invoke-Guest $Guest 'kill -0 $load && cat /sys/block/vda/stat || { cat /tmp/load.log; false; }').Trim() -split '\s+'
    [long] $fields[0] + [long] $fields[4] + [long] $fields[15]
}

function Wait-Request([object] $Guest, [int] $Count) {
    # Until the disk has answered so many more.
    $until = (Get-RequestCount $Guest) + $Count
    Wait-Until { (Get-RequestCount $Guest) -ge $until }
}

function Start-GuestLoad {
    # Has the guest write its disk at full speed.
    [CmdletBinding(SupportsShouldProcess)]
    param([object] $Guest)
    if (-not $PSCmdlet.ShouldProcess('guest', 'Start the load')) { return }
    $null = Invoke-Guest $Guest '/guest load /mnt/load 8 /tmp/expected >/tmp/load.log 2>&1 & load=$!'
    Wait-Request $Guest 200
}

function Complete-GuestLoad([object] $Guest) {
    # Ends the load, which then reads all once more. Gives the SHA-256 of what the file must hold, and how the load says that it ended.
    $said = Invoke-Guest $Guest 'kill -TERM $load; wait $load; s=$?; cat /tmp/load.log; [ $s = 0 ] && sha256sum </tmp/expected && sha256sum </mnt/load'
    @{ Said = $said[0]; Expected = $said[1].Split(' ')[0]; Read = $said[2].Split(' ')[0] }
}

function Get-SharedFile([object] $Qemu, [string] $Name) {
    # The path of a memfd of QEMU's.
    foreach ($file in Get-ChildItem "/proc/$($Qemu.Process.Id)/fd") {
        if ($file.LinkTarget -like "/memfd:$Name*") { return $file.FullName }
    }
}

function Get-InFlightCount([object] $Qemu) {
    # The requests that the inflight region of two virtqueues of 128 descriptors names as taken and not returned (QueueRegionSplit, in units of 64 bytes).
    $bytes = [IO.File]::ReadAllBytes((Get-SharedFile $Qemu vhost-inflight))
    $count = 0
    foreach ($queue in 0, 2112) {
        for ($i = 0; $i -lt 128; $i++) { $count += $bytes[$queue + 16 + 16 * $i] }
    }
    $count
}

function Get-MarkedPage([object] $Qemu) {
    # The pages that are marked in QEMU's own dirty log, as a set of guest addresses.
    $bytes = [IO.File]::ReadAllBytes((Get-SharedFile $Qemu vhost-log))
    $pages = [Collections.Generic.HashSet[ulong]]::new()
    for ($i = 0; $i -lt $bytes.Length; $i++) {
        for ($bit = 0; $bytes[$i] -shr $bit; $bit++) {
            if ($bytes[$i] -shr $bit -band 1) { $null = $pages.Add(([ulong] $i * 8 + $bit) * 4096) }
        }
    }
    , $pages
}

function New-StandbyBackend {
    # A PowerShell of its own with the module, which waits to be told to provide a disk.
    [CmdletBinding(SupportsShouldProcess)]
    param([Parameter(Mandatory)] [string] $SocketPath, [Parameter(Mandatory)] [string] $ImagePath)
    if (-not $PSCmdlet.ShouldProcess($SocketPath, 'Prepare a back end')) { return }
    $script = {
        $ErrorActionPreference = 'Stop'
        Import-Module '<module>'
        'ready'
        $null = [Console]::In.ReadLine()
        $null = Start-VhostUserBackend '<socket>' '<image>' -QueueCount 2
        'listens'
        # With the test it ends.
        $null = [Console]::In.ReadLine()
    }.ToString().Replace('<module>', (Join-Path $root GuestMemory.psd1)).Replace('<socket>', $SocketPath).Replace('<image>', $ImagePath)
    $program, $library = @(Get-PowerShellCommand)
    $start = [Diagnostics.ProcessStartInfo]::new($program, [string[]] (@($library).Where{ $_ } + '-NoProfile' + '-NonInteractive' + '-Command' + $script))
    $start.RedirectStandardInput = $start.RedirectStandardOutput = $true
    [Diagnostics.Process]::Start($start)
}

function Start-StandbyBackend {
    # Returns when it listens.
    [CmdletBinding(SupportsShouldProcess)]
    param([Diagnostics.Process] $Process)
    if (-not $PSCmdlet.ShouldProcess("process $($Process.Id)", 'Start the back end')) { return }
    if ($Process.StandardOutput.ReadLine() -ne 'ready') { throw "Process $($Process.Id) ended before it was ready." }
    $Process.StandardInput.WriteLine()
    $Process.StandardInput.Flush()
    $said = $Process.StandardOutput.ReadLine()
    if ($said -ne 'listens') { throw "The back end in process $($Process.Id) says '$said'." }
}

function Suspend-Backend {
    # Stops a process while requests of the guest's are taken and not returned; says how many are.
    [CmdletBinding(SupportsShouldProcess)]
    param([Parameter(Mandatory)] [Diagnostics.Process] $Process, [Parameter(Mandatory)] [object] $Guest)
    if (-not $PSCmdlet.ShouldProcess("process $($Process.Id)", 'Suspend')) { return }
    Wait-Until -PassThru {
        sh -c "kill -STOP $($Process.Id)"
        Wait-Until { Test-Suspended $Process }
        # The guest goes on until each thread of its load waits for the disk. All that they ask for is taken at once then, and the process stopped at
        # some moment of that.
        Wait-Until { (Invoke-Guest $Guest "cat /proc/`$load/task/*/stat | grep -c ') D '; true") -eq '8' }
        sh -c "kill -CONT $($Process.Id); i=0; while [ `$i -lt $(Get-Random 3000) ]; do i=`$(( i + 1 )); done; kill -STOP $($Process.Id)"
        Wait-Until { Test-Suspended $Process }
        Get-InFlightCount $Guest
    }
}

function Test-Suspended([Diagnostics.Process] $Process) {
    # Whether all threads of a process stand still; those of io_uring (iou-*) are the kernel's own.
    foreach ($task in [IO.Directory]::GetDirectories("/proc/$($Process.Id)/task")) {
        try { $stat = [IO.File]::ReadAllText("$task/stat") } catch [IO.IOException] { continue }
        if ($stat -cnotmatch '\((?<name>.*)\) (?<state>\w) ') { throw "/proc does not say how thread $task is: $stat" }
        if ($Matches.state -ne 'T' -and $Matches.name -notlike 'iou-*') { return $false }
    }
    $true
}

function Stop-Backend {
    # Kills it.
    [CmdletBinding(SupportsShouldProcess)]
    param([Diagnostics.Process] $Process)
    if (-not $Process -or -not $PSCmdlet.ShouldProcess("process $($Process.Id)", 'Kill')) { return }
    $Process.Kill()
    $Process.WaitForExit()
    $Process.Dispose()
}

function Stop-LinuxGuest {
    # Ends it.
    [CmdletBinding(SupportsShouldProcess)]
    param([object] $Guest)
    if (-not $Guest -or -not $PSCmdlet.ShouldProcess($Guest.Console, 'Stop the guest')) { return }
    $Guest.Reader.Dispose()
    Stop-Qemu $Guest
}

Export-ModuleMember *-LinuxGuest, *-LinuxDisk, Get-LinuxGuestLack, Get-DiskHash, *-Guest, *-Request, Get-RequestCount, *-GuestLoad, Get-SharedFile, Get-InFlightCount,
    Get-MarkedPage, *-StandbyBackend, *-Backend
