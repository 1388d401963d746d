# What the tests of several cmdlets need: waiting, counting, peers and files, and freeing it all again.
Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'

# Handlers of other shells of this user are none of a test's business, nor are its handlers theirs.
if (-not $env:GUESTMEMORY_RUNTIME_DIR) {
    $env:GUESTMEMORY_RUNTIME_DIR = [IO.Directory]::CreateTempSubdirectory('gm-').FullName
}
# A handler of this shell starts at once and can be looked into. UffdHost.Tests.ps1 is about those in processes of their own.
$global:PSDefaultParameterValues['Start-UffdHandler:InProcess'] = $true

function Wait-Until([scriptblock] $Condition, [int] $Seconds = 60, [switch] $PassThru) {
    # Asks the condition again and again until it is true; -PassThru gives what it gave then.
    $watch = [Diagnostics.Stopwatch]::StartNew()
    while ($watch.Elapsed.TotalSeconds -lt $Seconds) {
        $result = & $Condition
        if ($result) {
            if ($PassThru) {
                $result
            }
            return
        }
        Start-Sleep -Milliseconds 50
    }
    throw "This did not become true within $Seconds s: $Condition"
}

function Skip-UnlessSupported([object] $Feature) {
    # Skips the test where the host lacks a feature, which is a row of Test-GuestMemorySupport.
    if (-not $Feature.Supported) {
        Set-ItResult -Skipped -Because (($Feature.Detail, $Feature.Remedy).Where{ $_ } -join ' ')
    }
}

function Add-HugePage([string] $Pool, [int] $Count) {
    # Adds to the size of a pool. Locked between reading and writing, since suites may run at once; the library's tests do the same.
    Wait-Until {
        try {
            $file = [IO.FileStream]::new($Pool, 'Open', 'ReadWrite', 'None', 0)
        }
        catch [IO.IOException] {
            return $false
        }
        try {
            $text = [byte[]]::new(32)
            $before = [int] [Text.Encoding]::ASCII.GetString($text, 0, $file.Read($text, 0, $text.Length))
            $file.Position = 0
            $text = [Text.Encoding]::ASCII.GetBytes("$([Math]::Max(0, $before + $Count))")
            $file.Write($text, 0, $text.Length)
        }
        finally {
            $file.Dispose()
        }
        $true
    }
}

function Invoke-WithHugePage([int] $Count, [scriptblock] $Script) {
    # Runs a script while so many huge pages of 2 MiB are free, and takes them away again; skips the test where they cannot be had.
    $pool = '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages'
    if (-not (Test-Path $pool)) {
        Set-ItResult -Skipped -Because 'this host has no huge pages of 2 MiB'
    }
    $mayFill = (id -u) -eq '0'
    try {
        if ($mayFill) {
            # One to spare.
            Add-HugePage $pool ($Count + 1)
        }
        $feature = Test-GuestMemorySupport HugePages:2048kB
        if (-not $feature.Supported -or [int] ($feature.Detail -split ' ')[0] -lt $Count) {
            Set-ItResult -Skipped -Because "the pool of 2 MiB pages needs $Count free ($($feature.Detail)) and could not be filled"
        }
        & $Script
    }
    finally {
        if ($mayFill) {
            Add-HugePage $pool (-$Count - 1)
        }
    }
}

function Get-DescriptorCount {
    # Without the assemblies that PowerShell loads as it goes, and the pipes of its children.
    @([IO.Directory]::GetFileSystemEntries("/proc/$PID/fd")).Where{
        ($target = [IO.FileInfo]::new($_).LinkTarget) -and $target -notmatch '\.(dll|pdb)$|^pipe:'
    }.Count
}

function Get-NamedThread([string] $Name) {
    # The threads of this process whose name is like that; the kernel keeps 15 characters of a name.
    foreach ($task in [IO.Directory]::GetDirectories("/proc/$PID/task")) {
        if ((Get-Content "$task/comm" -ErrorAction Ignore) -like $Name) {
            $task
        }
    }
}

function Get-PowerShellCommand {
    # What starts this PowerShell again: it may run as a program of its own or under dotnet.
    $program = (Get-Process -Id $PID).Path
    $program
    if ((Split-Path -Leaf $program) -eq 'dotnet') {
        "$PSHOME/pwsh.dll"
    }
}

function Get-OtherUserCommand([string] $Program) {
    # What starts a program as user 65534, who has no rights; skips the test where that cannot be.
    if ((id -u) -ne '0') {
        Set-ItResult -Skipped -Because 'needs root, to become another user'
    }
    if (-not (Get-Command setpriv -CommandType Application -ErrorAction Ignore)) {
        Set-ItResult -Skipped -Because 'needs setpriv: apt-get install util-linux'
    }
    $command = 'setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'
    & $command[0] $command[1..3] test -x $Program
    if ($LASTEXITCODE) {
        Set-ItResult -Skipped -Because "user 65534 may not run $Program"
    }
    $command + $Program
}

function Get-OtherUserShell([string] $Folder) {
    # What starts this PowerShell as user 65534. The folder gets a home, home/, a copy of the module, module/GuestMemory.psd1, and one of
    # PowerShell where that user may not read it, as when it is a tool in the home of root.
    $module = New-Item -ItemType Directory "$Folder/module"
    $root = Split-Path (Split-Path $PSScriptRoot)
    Copy-Item -Recurse "$root/GuestMemory.psd1", "$root/bin" $module
    $homeFolder = New-Item -ItemType Directory "$Folder/home"
    chmod 1777 $homeFolder
    $program, $library = @(Get-PowerShellCommand)
    $user = Get-OtherUserCommand ($library ? $program : '/usr/bin/env')
    & $user[0] $user[1..3] test -r "$PSHOME/pwsh.dll" -a -x $program
    if ($LASTEXITCODE) {
        Copy-Item -Recurse $PSHOME "$Folder/pwsh"
        # A package may give the right to execute to its owner alone.
        chmod -R a+rX "$Folder/pwsh"
        $program, $library = @($program, $library).ForEach{ $_ -replace "^$([regex]::Escape($PSHOME))/", "$Folder/pwsh/" }
    }
    $user[0..3] + 'env' + '-u' + 'XDG_DATA_HOME' + '-u' + 'XDG_CONFIG_HOME' + '-u' + 'XDG_CACHE_HOME' + "HOME=$homeFolder" + $program + @($library).Where{ $_ } + '-NoProfile' + '-NonInteractive'
}

function Get-Completion([string] $Line) {
    # What the tabulator offers at the end of a line.
    (TabExpansion2 $Line $Line.Length).CompletionMatches | ForEach-Object CompletionText
}

function Open-Socket([string] $Path, [switch] $Listen) {
    # A socket at a path, which nobody listens on without -Listen.
    $socket = [Net.Sockets.Socket]::new('Unix', 'Stream', 'Unspecified')
    try {
        $socket.Bind([Net.Sockets.UnixDomainSocketEndPoint]::new($Path))
        if ($Listen) {
            $socket.Listen(1)
        }
        $socket
    }
    catch {
        $socket.Dispose()
        throw
    }
}

function Connect-FrontEnd([string] $Path) {
    # A process that connects to a back end, as a VMM does.
    $socket = [Net.Sockets.Socket]::new('Unix', 'Stream', 'Unspecified')
    try {
        $socket.Connect([Net.Sockets.UnixDomainSocketEndPoint]::new($Path))
        $socket.ReceiveTimeout = $socket.SendTimeout = 30000
        $socket
    }
    catch {
        $socket.Dispose()
        throw
    }
}

function Send-VhostUser([Net.Sockets.Socket] $Socket, [uint] $Request, [object] $Body, [switch] $HasReply) {
    # Sends a message of vhost-user with a number of 64 bits or none, and gives the number that its reply holds, where it has one.
    [byte[]] $number = @()
    if ($null -ne $Body) { $number = [BitConverter]::GetBytes([ulong] $Body) }
    $message = [byte[]] ([BitConverter]::GetBytes($Request) + [BitConverter]::GetBytes(1u) + [BitConverter]::GetBytes([uint] $number.Length) + $number)
    $null = $Socket.Send($message)
    if ($HasReply) {
        $reply = [byte[]]::new(20)
        $count = 0
        while ($count -lt $reply.Length) {
            $read = $Socket.Receive($reply, $count, $reply.Length - $count, 'None')
            if (-not $read) { throw "The back end closed the connection at request $Request." }
            $count += $read
        }
        [BitConverter]::ToUInt64($reply, 12)
    }
}

function Write-RandomFile([string] $Path, [int] $Size) {
    # Gives the bytes that the file then has; they are the same in every run.
    $bytes = [byte[]]::new($Size)
    [Random]::new(1).NextBytes($bytes)
    [IO.File]::WriteAllBytes($Path, $bytes)
    , $bytes
}

function Resize-File([string] $Path, [long] $Size) {
    # Also while others have the file open.
    $file = [IO.FileStream]::new($Path, 'Open', 'Write', 'ReadWrite, Delete')
    $file.SetLength($Size)
    $file.Dispose()
}

function Open-TrackedProcess([string] $Folder, [int] $Pages = 64) {
    # Starts a process that writes pages when it is told to (tracked.c of the library's tests), as an object with its Id, Address, Size and PageSize; skips the
    # test where it cannot be made, or the kernel cannot track it.
    Skip-UnlessSupported (Test-GuestMemorySupport PagemapScan)
    if (-not (Get-Command cc -CommandType Application -ErrorAction Ignore)) {
        Set-ItResult -Skipped -Because "needs a C compiler ('apt-get install gcc libc6-dev')"
    }
    $program = "$Folder/tracked"
    if (-not (Test-Path $program)) {
        cc -O2 -pthread -o $program "$PSScriptRoot/../GuestMemory.Core.Tests/Processes/tracked.c"
    }
    $start = [Diagnostics.ProcessStartInfo]::new($program, [string[]] ('anon', $Pages))
    $start.RedirectStandardInput = $start.RedirectStandardOutput = $true
    $process = [Diagnostics.Process]::Start($start)
    $address, $size, $pageSize = $process.StandardOutput.ReadLine().Split(' ').ForEach([ulong])
    $process | Add-Member -PassThru -NotePropertyMembers @{ Address = $address; Size = $size; PageSize = $pageSize }
}

function Invoke-TrackedProcess([object] $Process, [string] $Command) {
    # Has such a process do something, 'w 1 2' for example, and waits until it has.
    $Process.StandardInput.WriteLine($Command)
    $Process.StandardInput.Flush()
    $answer = $Process.StandardOutput.ReadLine()
    if ($answer -ne 'ok') {
        throw "tracked: $answer"
    }
}

function Open-LivePeer([string] $Folder, [string] $SocketPath, [int] $Pages = 256) {
    # Starts a VMM that shares its memory with a handler and has two threads write and give back pages when it is told to (live-peer.c of the library's tests).
    if (-not (Get-Command cc -CommandType Application -ErrorAction Ignore)) {
        Set-ItResult -Skipped -Because "needs a C compiler ('apt-get install gcc libc6-dev')"
    }
    $program = "$Folder/live-peer"
    if (-not (Test-Path $program)) {
        cc -O2 -pthread -o $program "$PSScriptRoot/../GuestMemory.Core.Tests/Userfault/live-peer.c"
    }
    $start = [Diagnostics.ProcessStartInfo]::new($program, [string[]] ($SocketPath, $Pages))
    $start.RedirectStandardInput = $start.RedirectStandardOutput = $true
    [Diagnostics.Process]::Start($start)
}

function Invoke-LivePeer([object] $Process, [string] $Command) {
    # Has such a process do something, 'go', 'stop' or 'steps'; the complete steps of its threads.
    $Process.StandardInput.WriteLine($Command)
    $Process.StandardInput.Flush()
    $Process.StandardOutput.ReadLine().Split(' ').ForEach([ulong])
}

function Clear-TestState([string] $Folder) {
    # Frees every export, VM, region, handler, back end and tracking of the shell, and empties the folder where one is named.
    Get-GuestMemoryExport | Stop-GuestMemoryExport
    Get-GuestVm | Remove-GuestVm
    Get-VhostUserBackend | Stop-VhostUserBackend -WarningAction Ignore
    Get-MmapRegion | Remove-MmapRegion -Force
    Get-UffdHandler | Stop-UffdHandler -WarningAction Ignore
    Get-DirtyTracking | Stop-DirtyTracking
    if ($Folder) {
        Get-ChildItem -Force $Folder | Remove-Item -Recurse -Force
    }
}

Export-ModuleMember -Function *-*
