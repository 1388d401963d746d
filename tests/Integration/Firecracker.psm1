# A Firecracker that a test starts, the API of its socket, and the guest in it, which checks its own memory (Firecracker/guest.c).
Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'
Import-Module (Join-Path $PSScriptRoot .. Pester TestHelpers.psm1)

function Find-Firecracker {
    # The program that the environment names, or the one on the path; nothing where there is none.
    $name = $env:FIRECRACKER ? $env:FIRECRACKER : 'firecracker'
    Get-Command $name -CommandType Application -ErrorAction Ignore | Select-Object -First 1 -ExpandProperty Source
}

function Build-Guest([string] $Path, [long] $MemorySize) {
    $options = @(
        '-O2', '-ffreestanding', '-nostdlib', '-static', '-no-pie', '-fno-pic', '-fno-stack-protector', '-fcf-protection=none'
        '-mgeneral-regs-only', '-mno-red-zone', "-DMEMORY=$MemorySize"
        '-Wl,-Ttext-segment=0x200000', '-Wl,-z,noseparate-code', '-Wl,--build-id=none', '-Wl,-e,start'
    )
    gcc @options -o $Path (Join-Path $PSScriptRoot Firecracker guest.c)
    if ($LASTEXITCODE -ne 0) { throw "gcc ended with exit code $LASTEXITCODE." }
}

function Start-Firecracker {
    # Starts one that has no VM yet. Its standard output is the guest's serial console.
    [CmdletBinding(SupportsShouldProcess)]
    param([Parameter(Mandatory)] [string] $Program, [Parameter(Mandatory)] [string] $Directory)
    $name = [Guid]::NewGuid().ToString('n').Substring(0, 8)
    $socketPath = Join-Path $Directory "$name.api"
    if (-not $PSCmdlet.ShouldProcess($socketPath, 'Start Firecracker')) { return }
    $output = @{
        RedirectStandardInput  = '/dev/null'
        RedirectStandardOutput = Join-Path $Directory "$name.console"
        RedirectStandardError  = Join-Path $Directory "$name.errors"
    }
    $firecracker = [pscustomobject] @{
        Process    = Start-Process $Program '--api-sock', $socketPath, '--level', 'Error' -PassThru @output
        SocketPath = $socketPath
        Console    = $output.RedirectStandardOutput
        Errors     = $output.RedirectStandardError
    }
    Wait-Until {
        if ($firecracker.Process.HasExited) { throw "Firecracker ended: $(Get-Said $firecracker)" }
        Test-Path $socketPath
    }
    $firecracker
}

function Stop-Firecracker {
    # Ends those that were started, whatever state they are in.
    [CmdletBinding(SupportsShouldProcess)]
    param([object[]] $Firecracker)
    foreach ($one in $Firecracker) {
        if (-not $PSCmdlet.ShouldProcess("process $($one.Process.Id)", 'Stop Firecracker')) { continue }
        if (-not $one.Process.HasExited) { $one.Process.Kill() }
        $one.Process.WaitForExit()
        $one.Process.Dispose()
    }
}

function Invoke-Firecracker([object] $Firecracker, [string] $Method, [string] $Resource, [Collections.IDictionary] $Body) {
    # Sends a request of its API. The VMM answers one that cannot be done with a reason.
    $request = @{
        UnixSocket = $Firecracker.SocketPath
        Uri        = "http://localhost/$Resource"
        Method     = $Method
        Body       = ConvertTo-Json $Body
        TimeoutSec = 60
    }
    try {
        $null = Invoke-RestMethod @request -ContentType application/json
    }
    catch {
        throw "Firecracker did not do $Method /${Resource}: $_ $(Get-Said $Firecracker)"
    }
}

function Get-Said([object] $Firecracker) {
    "$(Get-Content -Raw $Firecracker.Console)$(Get-Content -Raw $Firecracker.Errors)"
}

function Get-GuestRound([object] $Firecracker) {
    # The number of pages in the balloon of each round in which the guest found every page right. One that it found wrong is an error.
    $said = Get-Said $Firecracker
    if ($Firecracker.Process.HasExited -or $said -match '(?m)^(wrong|no device).*') {
        throw "The guest or its Firecracker failed: $(($said -split "`n" -notmatch '^round') -join "`n")"
    }
    [regex]::Matches($said, '(?m)^round \d+ balloon (\d+) ok').ForEach{ [int] $_.Groups[1].Value }
}

function Wait-GuestRound([object] $Firecracker, [int] $Balloon) {
    # Until the guest has checked all pages again, with so many in the balloon: the round that is under way does not count.
    $before = @(Get-GuestRound $Firecracker).Count
    Wait-Until -Seconds 100 {
        $rounds = @(Get-GuestRound $Firecracker)
        $rounds.Count -ge $before + 2 -and -not ($rounds[-2..-1] -ne $Balloon)
    }
}

Export-ModuleMember Find-Firecracker, Build-Guest, Start-Firecracker, Stop-Firecracker, Invoke-Firecracker, Wait-GuestRound
