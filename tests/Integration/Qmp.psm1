# A QEMU that a test starts, and its control socket: the QEMU Machine Protocol, one JSON document a line.
Set-StrictMode -Version 3.0
Import-Module (Join-Path $PSScriptRoot .. Pester TestHelpers.psm1)

function Start-Qemu {
    # Starts a machine without disk or display, its memory in a file, a memfd or QEMU's own, and connects to its control socket. Further arguments are QEMU's own.
    [CmdletBinding(SupportsShouldProcess)]
    param(
        [Parameter(Mandatory)] [string] $Directory,
        [string] $MemoryPath,
        [Parameter(Mandatory)] [string] $MemorySize,
        [switch] $Anonymous,
        [string] $Program = 'qemu-system-x86_64',
        [string] $Machine = 'pc',
        [string[]] $Argument = @()
    )
    $socketPath = Join-Path $Directory qmp.sock
    $backend = $Anonymous ? @() : ('-object', "$($MemoryPath ? "memory-backend-file,mem-path=$MemoryPath" : 'memory-backend-memfd'),id=m,size=$MemorySize,share=on")
    $arguments = @(
        '-machine', "$Machine,accel=tcg$($Anonymous ? '' : ',memory-backend=m')", '-m', $MemorySize
        $backend
        '-nodefaults', '-no-user-config', '-display', 'none'
        '-qmp', "unix:$socketPath,server=on,wait=off"
    ) + $Argument
    if (-not $PSCmdlet.ShouldProcess($Directory, 'Start QEMU')) { return }
    $log = Join-Path $Directory qemu.log
    $process = Start-Process $Program $arguments -PassThru -RedirectStandardError $log
    try {
        $connected = Wait-Until -Seconds 30 -PassThru {
            if ($process.HasExited) { throw "QEMU ended with exit code $($process.ExitCode): $(Get-Content -Raw $log)" }
            try { Connect-Qmp $socketPath } catch [Net.Sockets.SocketException] { $null = $_ }
        }
        [pscustomobject] @{ Process = $process; Qmp = $connected }
    }
    catch {
        $process.Kill()
        throw
    }
}

function Stop-Qemu {
    # Ends the QEMU that was started, whatever state it is in.
    [CmdletBinding(SupportsShouldProcess)]
    param([object] $Qemu)
    if (-not $Qemu -or -not $PSCmdlet.ShouldProcess("process $($Qemu.Process.Id)", 'Stop QEMU')) { return }
    $Qemu.Qmp.Reader.Dispose()
    if (-not $Qemu.Process.HasExited) {
        $Qemu.Process.Kill()
        # Not for ever: a command that it migrates to may outlive it, and has its standard error.
        $null = $Qemu.Process.WaitForExit(30000)
    }
    $Qemu.Process.Dispose()
}

function Connect-Qmp([string] $SocketPath) {
    $socket = [Net.Sockets.Socket]::new('Unix', 'Stream', 'Unspecified')
    try {
        $socket.Connect([Net.Sockets.UnixDomainSocketEndPoint]::new($SocketPath))
        $socket.ReceiveTimeout = $socket.SendTimeout = 30000
        $stream = [Net.Sockets.NetworkStream]::new($socket, $true)
        $connection = [pscustomobject] @{
            Reader = [IO.StreamReader]::new($stream)
            Writer = [IO.StreamWriter]::new($stream)
        }
        $greeting = $connection.Reader.ReadLine() | ConvertFrom-Json -AsHashtable
        if (-not $greeting.ContainsKey('QMP')) { throw "$SocketPath is no QMP socket." }
        $null = Invoke-Qmp $connection qmp_capabilities
        $connection
    }
    catch {
        $socket.Dispose()
        throw
    }
}

function Invoke-Qmp([object] $Connection, [string] $Command, [hashtable] $Arguments = @{}) {
    # Gives the command's answer; events that come before it are passed over.
    $Connection.Writer.WriteLine((@{ execute = $Command; arguments = $Arguments } | ConvertTo-Json -Compress -Depth 8))
    $Connection.Writer.Flush()
    while ($null -ne ($line = $Connection.Reader.ReadLine())) {
        $answer = $line | ConvertFrom-Json -AsHashtable
        if ($answer.ContainsKey('error')) { throw "QEMU refused ${Command}: $($answer.error.desc)" }
        if ($answer.ContainsKey('return')) { return $answer.return }
    }
    throw "QEMU ended before it answered $Command."
}

Export-ModuleMember Start-Qemu, Stop-Qemu, Connect-Qmp, Invoke-Qmp
