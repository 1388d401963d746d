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

$lines = $machine.Lines.Where{ $_ -match '^(\||measured: )' }
if ($machine.Lines -notcontains 'bench: done with 0' -or -not $lines) { throw 'Nothing was measured; the console above says why.' }
if ($write) {
    $begin, $end = '<!-- xen: begin -->', '<!-- xen: end -->'
    $text = ($lines -replace '^measured: (.*)', "`$1`n") -join "`n"
    $page = Get-Content -Raw $write
    $page -replace "(?s)(?<=$begin\n).*(?=$end)", "`n$($text.Replace('$', '$$'))`n`n" | Set-Content -NoNewline $write
}
