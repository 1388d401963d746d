# The measuring shell of ShellScenario: a line in, a line of figures out.
param([string] $Manifest, [string] $Source, [long] $Size)

$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Import-Module $Manifest

function Read-Status([string] $Field) {
    [long] (Select-String "^${Field}:\s+(\d+) kB" /proc/self/status).Matches[0].Groups[1].Value
}

function New-Source([string] $Kind) {
    # All at guest address 0.
    switch ($Kind) {
        'file' { New-MmapRegion $Size -BackingPath $Source -Protection Read }
        'anonymous' { New-MmapRegion $Size }
        'memfd' { New-MmapRegion $Size -Memfd }
    }
}

function Measure-Copy([string] $Path) {
    # The peak of what is resident, without the pages of the memory itself and of mapped files, which are shared.
    [IO.File]::WriteAllText('/proc/self/clear_refs', '5')
    $before = (Read-Status VmRSS) - (Read-Status RssShmem) - (Read-Status RssFile)
    $watch = [Diagnostics.Stopwatch]::StartNew()
    $memory | Read-GuestMemory 0 $Size -OutFile $Path
    $elapsed = $watch.Elapsed.TotalMilliseconds
    $after = (Read-Status VmHWM) - (Read-Status RssShmem) - (Read-Status RssFile)
    "$elapsed $(($after - $before) / 1024)"
}

function Measure-Call([int] $Count) {
    $watch = [Diagnostics.Stopwatch]::StartNew()
    for ($i = 0; $i -lt $Count; $i++) {
        $null = Read-GuestMemory -Memory $memory -Address 0x1000 -As UInt64
    }
    "$($watch.Elapsed.TotalMicroseconds / $Count)"
}

function Measure-Other([int] $Count) {
    $watch = [Diagnostics.Stopwatch]::StartNew()
    for ($i = 0; $i -lt $Count; $i++) {
        $null = Get-Random -Minimum 1 -Maximum 9
    }
    "$($watch.Elapsed.TotalMicroseconds / $Count)"
}

while ($line = [Console]::In.ReadLine()) {
    $command, $argument = $line -split ' ', 2
    $answer = switch ($command) {
        'map' {
            $memory = New-Source $argument
            'ready'
        }
        'fill' {
            $memory | Write-GuestMemory 0 -InFile $Source
            'ready'
        }
        'space' {
            $memory = $memory | Get-GuestMemory
            'ready'
        }
        'copy' { Measure-Copy $argument }
        'call' { Measure-Call $argument }
        'other' { Measure-Other $argument }
    }
    [Console]::Out.WriteLine($answer)
}
