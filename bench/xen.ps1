# Boots a Xen in QEMU, and measures in its domain 0 what mapping memory of other domains costs: xen.ps1 [--pairs N] [--attempts N] [--write FILE]
Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'
$root = Split-Path $PSScriptRoot
Import-Module (Join-Path $root tests Integration Machine.psm1)
$options = [Collections.Generic.List[string]] $args
$write = $null
if (($at = $options.IndexOf('--write')) -ge 0) {
    $write = $options[$at + 1]
    $options.RemoveRange($at, 2)
}

$lacking = (Get-Lack @{ 'qemu-system-x86_64' = 'qemu-system-x86'; cpio = 'cpio'; gcc = 'gcc' }) ?? (Initialize-Machine xen)
if ($lacking) { throw "This $lacking." }
$overlay = Build-XenOverlay
try {
    Copy-Item (Join-Path $PSScriptRoot GuestMemory.Bench bin Release net10.0) "$overlay/opt/bench" -Recurse
    Copy-Item (Join-Path $PSScriptRoot xen.sh) "$overlay/opt/check/bench"
    "$options" | Set-Content "$overlay/opt/bench/options"
    gcc -O2 -static -o "$overlay/opt/bench/xen-map" (Join-Path $PSScriptRoot baseline xen-map.c)
    if ($LASTEXITCODE -ne 0) { throw "gcc ended with exit code $LASTEXITCODE." }
    $machine = Invoke-Machine xen $overlay 1200
}
finally {
    Remove-Item $overlay -Recurse -Force
}

$table = $machine.Lines.Where{ $_ -match '^\|' }
$measured = $machine.Lines.Where{ $_ -match '^measured: ' } -replace '^measured: '
if ($machine.Lines -notcontains 'bench: done with 0' -or -not $table) { throw 'Nothing was measured; the console above says why.' }
if ($write) {
    $measured, '', ($table -join "`n"), '' -join "`n" | dotnet (Join-Path $PSScriptRoot GuestMemory.Bench bin Release net10.0 GuestMemory.Bench.dll) section $write xen
    if ($LASTEXITCODE -ne 0) { throw "$write was not written." }
}
