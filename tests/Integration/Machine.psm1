# What the tests need that run the handler in a machine of QEMU's: its parts, a VMM, an image, and what was said on the console.
Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'

$root = Split-Path (Split-Path $PSScriptRoot)

function Get-Lack([Collections.IDictionary] $Packages, [string] $Program) {
    # Why such a test cannot run here; nothing where it can. The packages by the commands that come with them.
    $missing = @($Packages.Keys).Where{ -not (Get-Command $_ -CommandType Application -ErrorAction Ignore) }.ForEach{ $Packages[$_] } | Sort-Object
    if ($missing) {
        "needs $($missing -join ', '): apt-get install $($missing -join ' ')"
    }
    elseif ((id -u) -ne '0') {
        'needs root, to put the machine together'
    }
    elseif ($Program -and -not (Test-Path $Program)) {
        "needs the handler's program compiled ahead, which the tests before these do where gcc is: $([IO.Path]::GetRelativePath($root, $Program))"
    }
}

function Build-Client([string] $Path, [string] $Compiler) {
    # A VMM that has its memory from the handler and compares every byte with the image.
    & $Compiler -O2 -static -o $Path (Join-Path $root bench baseline uffd-client.c) -lpthread
    if ($LASTEXITCODE -ne 0) { throw "$Compiler ended with exit code $LASTEXITCODE." }
}

function Write-Image([string] $Path, [int] $Size) {
    # Every page is another, and none is empty.
    $bytes = [byte[]]::new($Size)
    [Random]::new(1).NextBytes($bytes)
    [IO.File]::WriteAllBytes($Path, $bytes)
}

function Initialize-Machine([string] $Kind) {
    # Has what a machine consists of put together; says why where this machine's package source does not have it.
    Write-Host "watch: 900 s: a machine ($Kind) is put together"
    $lines = @(& (Join-Path $PSScriptRoot machine.sh) $Kind (Join-Path $root artifacts machines $Kind) 2>&1)
    $lines | Out-Host
    if ($LASTEXITCODE -eq 3) { return $lines[-1] }
    if ($LASTEXITCODE -ne 0) { throw "machine.sh ended with exit code $LASTEXITCODE." }
}

function Build-XenOverlay {
    # What is laid over the root of domain 0: the init, the runtime and the PowerShell that this runs on, the module, and the other side of the tests.
    $overlay = [IO.Directory]::CreateTempSubdirectory('guestmemory-xen-').FullName
    $null = New-Item -ItemType Directory "$overlay/opt/check", "$overlay/opt/guestmemory", "$overlay/opt/dotnet/shared/Microsoft.NETCore.App"
    Copy-Item (Join-Path $PSScriptRoot Xen init) $overlay
    $runtime = [Runtime.InteropServices.RuntimeEnvironment]::GetRuntimeDirectory().TrimEnd('/')
    $dotnet = Split-Path (Split-Path (Split-Path $runtime))
    Copy-Item "$dotnet/dotnet", "$dotnet/host" "$overlay/opt/dotnet" -Recurse
    Copy-Item $runtime "$overlay/opt/dotnet/shared/Microsoft.NETCore.App" -Recurse
    Copy-Item $PSHOME "$overlay/opt/pwsh" -Recurse
    Copy-Item (Join-Path $root GuestMemory.psd1), (Join-Path $root bin) "$overlay/opt/guestmemory" -Recurse
    # The toolstack's own headers and libraries, of the very version.
    $toolstack = Join-Path $root artifacts machines xen dev
    $libraries = ('ctrl', 'foreignmemory', 'gnttab', 'evtchn', 'devicemodel', 'call', 'toollog', 'toolcore').ForEach{ "-l:libxen$_.a" }
    gcc -O2 -o "$overlay/opt/check/peer" (Join-Path $PSScriptRoot Xen peer.c) -I "$toolstack/include" -L "$toolstack/lib/x86_64-linux-gnu" @libraries
    if ($LASTEXITCODE -ne 0) { throw "gcc ended with exit code $LASTEXITCODE." }
    $overlay
}

function Invoke-Machine([string] $Kind, [string] $Overlay, [int] $Seconds = 400, [string] $Hide = '(?!)') {
    # Boots a machine with what is laid over its root, and gives the lines of its console and how it ended. Lines that match $Hide are not
    # shown but one in five seconds, for the watch.
    Write-Host "watch: 900 s: a machine ($Kind) is put together, and boots"
    $clock = [Diagnostics.Stopwatch]::StartNew()
    $lines = & (Join-Path $PSScriptRoot machine.sh) $Kind (Join-Path $root artifacts machines $Kind) $Overlay $Seconds 2>&1 | ForEach-Object {
        $line = "$_".TrimEnd("`r")
        if ($line -cnotmatch $Hide -or $clock.Elapsed.TotalSeconds -ge 5) {
            Write-Host $line
            $clock.Restart()
        }
        $line
    }
    @{ Lines = @($lines); ExitCode = $LASTEXITCODE }
}

function Get-Verdict([Collections.IDictionary] $Machine, [string] $Name) {
    # What the machine said of a test.
    $Machine.Lines.Where{ $_ -ceq "check: ok $Name" -or $_.StartsWith("check: not ok ${Name}:", [StringComparison]::Ordinal) }
}

function Read-TestRun([string[]] $Lines) {
    # What the library's tests said on the console (the verbose reporter of xunit), by class: how many ended, what each that failed or was
    # skipped said, and which began last and did not end.
    $run = @{}
    $said = $test = $null
    foreach ($line in $Lines) {
        if ($line -cmatch '^    GuestMemory\.Core\.Tests\.(?<class>\w+)\.(?<test>.+?) \[(?<state>STARTING|FINISHED|FAIL|SKIP)\]') {
            $class = $run[$Matches.class] ??= @{ Ended = 0; Failed = [ordered] @{}; Skipped = [ordered] @{}; Running = $null }
            $said, $test = $null, $Matches.test
            switch ($Matches.state) {
                STARTING { $class.Running = $test }
                FINISHED { $class.Running = $null; $class.Ended++ }
                FAIL { $said = $class.Failed }
                SKIP { $said = $class.Skipped }
            }
            if ($null -ne $said) { $said[$test] = '' }
        }
        elseif ($null -ne $said -and $line -match '^      +(.*)') {
            $said[$test] = "$($said[$test]) $($Matches[1])".Trim()
        }
        else {
            $said = $null
        }
    }
    $run
}
