<#
.SYNOPSIS
    Restores the memory of a VM from a snapshot, page by page as it is touched, and shows what changed since.
.DESCRIPTION
    Plays the whole life of a restored VM on this host: a page-fault handler serves a memory image, fresh memory is handed over
    to it as a VMM hands over its guest's, every byte is read through real page faults and compared with the image by SHA-256,
    some pages are written, and only those are exported as a diff, which must give the memory again when it is laid over the image.

    Without -MemoryPath an image is made for it: pseudorandom, always the same, a quarter of it zeros. Everything that the script
    makes is in a temporary directory and is removed at the end.

    The exit code is 0 when every byte was right, else 1.
.PARAMETER MemoryPath
    A memory image of your own: the VM's regions one behind the other, as Firecracker or Export-GuestMemory write them. Its size
    must be a multiple of the page size. It is only read. The VM needs as much free memory as the image is long.
.PARAMETER Size
    The size of the image that is made, in bytes.
.EXAMPLE
    ./Restore-Snapshot.ps1

    Makes an image of 64 MiB and restores a VM of two regions from it.
.EXAMPLE
    ./Restore-Snapshot.ps1 -MemoryPath ./vm.mem

    Restores a VM from an image of your own.
#>
#Requires -Version 7.6
[CmdletBinding(DefaultParameterSetName = 'Made')]
param(
    [Parameter(Mandatory, Position = 0, ParameterSetName = 'Own')]
    [string] $MemoryPath,

    [Parameter(ParameterSetName = 'Made')]
    [ulong] $Size = 64MB
)

Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'
Import-Module (Join-Path $PSScriptRoot .. GuestMemory.psd1)

function Write-Step([string] $Name, [string] $Text) {
    Write-Host $Name.PadRight(9) -ForegroundColor Cyan -NoNewline
    Write-Host $Text
}

function Format-Size([ulong] $Bytes) {
    [GuestMemory.PowerShell.Formatting]::Size($Bytes)
}

function Format-Time([timespan] $Time) {
    [GuestMemory.PowerShell.Formatting]::Time($Time)
}

function Get-ImageSize([string] $Path) {
    $file = Get-Item -LiteralPath $Path -Force
    if ($file -isnot [IO.FileInfo]) { throw "$Path is not a file." }
    ($file.ResolveLinkTarget($true) ?? $file).Length
}

function Add-GuestRegion([ulong] $Bytes, [ulong] $Below, [hashtable] $Option) {
    # The memory of a PC: from 0 up to the hole for its devices, the rest from 4 GiB on. Behind each other they are the image.
    $low = [Math]::Min($Bytes, $Below)
    New-MmapRegion -Size $low -GuestAddress 0 @Option | Tee-Object -Variable region
    $regions.Add($region)
    if ($low -lt $Bytes) {
        if ($Option.ContainsKey('BackingPath')) { $Option.FileOffset = $low }
        New-MmapRegion -Size ($Bytes - $low) -GuestAddress 0x100000000 @Option | Tee-Object -Variable region
        $regions.Add($region)
    }
}

function Write-TestPattern([object[]] $Memory) {
    # Three quarters of every MiB are random, the same in every run; the rest stays zero.
    $random = [Random]::new(1)
    foreach ($region in $Memory) {
        for ([ulong] $offset = 0; $offset -lt $region.Size; $offset += 1MB) {
            $bytes = [byte[]]::new([Math]::Min(768KB, $region.Size - $offset))
            $random.NextBytes($bytes)
            Write-GuestMemory -Memory $region -Address ($region.GuestAddress + $offset) -Bytes $bytes
        }
    }
}

function Write-GuestChange([object[]] $Memory) {
    # What a guest does: a little text in one page, and a longer write across several.
    $random = [Random]::new(2)
    foreach ($region in $Memory) {
        Write-GuestMemory -Memory $region -Address ($region.GuestAddress + 16) -Value "This page of $($region.Name) changed after the restore."
        $half = $region.Size / 2
        $bytes = [byte[]]::new([Math]::Min(10000, $half))
        $random.NextBytes($bytes)
        Write-GuestMemory -Memory $region -Address ($region.GuestAddress + $half) -Bytes $bytes
    }
}

function Get-MemoryHash([object[]] $Memory, [string] $Activity) {
    $hash = [Security.Cryptography.IncrementalHash]::CreateHash('SHA256')
    try {
        foreach ($region in $Memory) {
            for ([ulong] $offset = 0; $offset -lt $region.Size; $offset += 4MB) {
                Write-Progress $Activity "$region" -PercentComplete (100 * $offset / $region.Size)
                $piece = [Math]::Min(4MB, $region.Size - $offset)
                $hash.AppendData((Read-GuestMemory -Memory $region -Address ($region.GuestAddress + $offset) -Size $piece -Raw))
            }
        }
        [Convert]::ToHexString($hash.GetHashAndReset())
    }
    finally {
        Write-Progress $Activity -Completed
        $hash.Dispose()
    }
}

$directory = [IO.Directory]::CreateTempSubdirectory('restore-snapshot-').FullName
$regions = [Collections.Generic.List[object]]::new()
$handler = $null
$wrong = [Collections.Generic.List[string]]::new()
try {
    # An image, and what it holds.
    $below = 3GB
    if ($MemoryPath) {
        $image = Convert-Path -LiteralPath $MemoryPath
        $Size = Get-ImageSize $image
    }
    else {
        $image = Join-Path $directory vm.mem
        $below = 48MB
    }
    if ($Size -eq 0 -or $Size % [Environment]::SystemPageSize) {
        throw "$image cannot be a memory image: $Size bytes are not a number of whole pages of $([Environment]::SystemPageSize) bytes"
    }
    if (-not $MemoryPath) {
        $source = @(Add-GuestRegion $Size $below @{})
        Write-TestPattern $source
        Export-GuestMemory -Memory $source -Path $image
        Remove-MmapRegion $source
    }
    $expected = (Get-FileHash -LiteralPath $image -Algorithm SHA256).Hash
    Write-Step Image "$image, $(Format-Size $Size), SHA-256 $($expected.Substring(0, 16).ToLowerInvariant())..."

    # The handler listens; Firecracker could be pointed at this socket just as well.
    $socket = Join-Path $directory uffd.sock
    # On demand, so that every page comes by a fault of its own; unless told so it would bring the rest in beside them.
    $handler = Start-UffdHandler -SocketPath $socket -MemoryPath $image -Strategy OnDemand
    Write-Step Handler "listens at $socket"

    # The VMM's part: fresh memory, none of it present, handed over to the handler.
    $guest = @(Add-GuestRegion $Size $below @{ DirtyTracking = $true })
    Connect-UffdHandler -Memory $guest -SocketPath $socket
    Write-Step Connect "fresh memory: $($guest -join ', ')"

    # Every page is missing, so every page comes from the handler.
    if ((Get-MemoryHash $guest 'Restoring the memory') -eq $expected) {
        Write-Step Restore 'every byte read through page faults, SHA-256 as in the image'
    }
    else {
        $wrong.Add('the restored memory is not what is in the image')
    }

    # The guest runs.
    Write-GuestChange $guest
    $dirty = @(Get-DirtyBitmap -Memory $guest -AsRange)
    Write-Step Write 'these ranges are dirty now:'
    ($dirty | Out-String).Trim("`n") -replace '(?m)^', '         ' | Write-Host

    # The diff is as long as the image, but holds only what changed.
    $diff = Join-Path $directory diff.mem
    $written = Export-GuestMemory -Memory $guest -Path $diff -Format Diff -PassThru
    Write-Step Diff "$(Format-Size $written.BytesWritten) of $(Format-Size $written.Size) written to $diff"

    # The diff laid over a private mapping of the image, which leaves the file alone, must be the memory.
    $base = @(Add-GuestRegion $Size $below @{ BackingPath = $image; MapFlags = 'Private' })
    $change = @(Add-GuestRegion $Size $below @{ BackingPath = $diff; Protection = 'Read' })
    foreach ($range in $dirty) {
        $bytes = Read-GuestMemory -Memory $change -Address $range.Address -Size $range.Size -Raw
        Write-GuestMemory -Memory $base -Address $range.Address -Bytes $bytes
    }
    if ((Get-MemoryHash $base 'Checking the diff') -eq (Get-MemoryHash $guest 'Checking the memory')) {
        Write-Step Check 'image and diff together are the memory, byte for byte'
    }
    else {
        $wrong.Add('image and diff together are not the memory')
    }
    if ((Get-FileHash -LiteralPath $image -Algorithm SHA256).Hash -ne $expected) {
        $wrong.Add('the image was changed')
    }

    # The VM ends, then the handler; these are its last figures.
    Remove-MmapRegion $guest -Force
    $handler = Stop-UffdHandler $handler -PassThru
    Write-Step Figures ('{0} faults served, {1} copied; latency p50 {2}, p99 {3}' -f $handler.FaultCount, (Format-Size $handler.ByteCount),
        (Format-Time $handler.LatencyP50), (Format-Time $handler.LatencyP99))
    if ($handler.Error) {
        $wrong.Add("the handler reports: $($handler.Error)")
    }
    $pages = $Size / [Environment]::SystemPageSize
    if ($handler.FaultCount -ne $pages) {
        $wrong.Add("the handler served $($handler.FaultCount) faults and not one for each of the $pages pages")
    }
}
catch {
    $wrong.Add($_.Exception.Message.TrimEnd('.'))
}
finally {
    $regions | Remove-MmapRegion -Force
    if ($handler) { Stop-UffdHandler $handler }
    Remove-Item -LiteralPath $directory -Recurse -Force
}

if ($wrong) {
    $Host.UI.WriteErrorLine("FAILED: $($wrong -join '; ').")
    exit 1
}
Write-Host "OK: $(Format-Size $Size) restored through page faults, byte for byte." -ForegroundColor Green
exit 0
