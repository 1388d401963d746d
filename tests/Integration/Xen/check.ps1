# The cmdlets on a real Xen, in domain 0. What is on the other side, peer.c does.
$ErrorActionPreference = 'Stop'
# A bar of progress asks the terminal where its cursor is, and here none answers.
$ProgressPreference = 'SilentlyContinue'
Import-Module /opt/guestmemory/GuestMemory.psd1
$peers = [Collections.Generic.List[Diagnostics.Process]]::new()

function Open-Peer([string[]] $Arguments) {
    # The other side, its domain, and the references or frames that it has.
    $start = [Diagnostics.ProcessStartInfo]::new('/opt/check/peer', $Arguments)
    $start.RedirectStandardInput = $start.RedirectStandardOutput = $true
    $process = [Diagnostics.Process]::Start($start)
    $peers.Add($process)
    $ready, $domain, $numbers = "$($process.StandardOutput.ReadLine())" -split ' '
    if ($ready -ne 'ready') { throw "the peer $Arguments does not get ready" }
    @{ Process = $process; Domain = [uint] $domain; Numbers = [ulong[]] $numbers }
}

function Invoke-Peer([Collections.IDictionary] $Peer, [string] $Line) {
    $Peer.Process.StandardInput.WriteLine($Line)
    $Peer.Process.StandardOutput.ReadLine()
}

function Close-Peer([Collections.IDictionary] $Peer) {
    # Its end, after it has taken back what it made.
    $Peer.Process.StandardInput.Close()
    $Peer.Process.WaitForExit()
    $Peer.Process.ExitCode
}

function Assert-Equal($Actual, $Expected) {
    if ("$Actual" -cne "$Expected") { throw "it is '$Actual', not '$Expected'" }
}

function Assert-Failure([string] $Id, [scriptblock] $Work) {
    try {
        $null = & $Work
    }
    catch {
        if ($_.FullyQualifiedErrorId -notlike "$Id,*") { throw "it failed with $($_.FullyQualifiedErrorId), not ${Id}: $_" }
        return $_
    }
    throw "it did not fail with $Id"
}

function Test-That([string] $Name, [scriptblock] $Work) {
    $watch = [Diagnostics.Stopwatch]::StartNew()
    try {
        $null = & $Work
        Write-Host "check: ok $Name"
    }
    catch {
        Write-Host "check: not ok ${Name}: $("$_" -replace '\s+', ' ') ($($_.InvocationInfo.ScriptLineNumber))"
    }
    finally {
        Write-Host "took $($watch.Elapsed.TotalSeconds) s"
        Get-MmapRegion | Remove-MmapRegion
        $peers.Where{ -not $_.HasExited }.ForEach{
            $_.StandardInput.Close()
            $_.WaitForExit()
        }
        $peers.Clear()
    }
}

function Get-FrameAddress([ulong] $Frame) { $Frame * 4096ul }

Test-That 'every device is there' {
    $rows = Test-GuestMemorySupport Xen*
    Assert-Equal $rows.Feature 'Xen Xen:Privcmd Xen:Gntdev Xen:Control'
    Assert-Equal $rows.Where{ -not $_.Supported }.Feature ''
}

Test-That 'domain 0 has its name of xenstore' {
    $domain = Get-XenDomain -Id 0
    Assert-Equal $domain.Name Domain-0
    Assert-Equal (Get-XenDomain domain-*).Id 0
    Assert-Equal $domain.State Running
    Assert-Equal ($domain.MemorySize -gt 1GB) True
    Assert-Failure DomainNotFound { Get-XenDomain none }
    Assert-Failure ValueNotSupported { $domain | Get-GuestMemory }
}

Test-That 'what is granted is read and written, both ways' {
    $peer = Open-Peer grant, 4
    $region = New-MmapRegion (4096 * $peer.Numbers.Count) -XenGrant -DomainId 0 -GrantReference $peer.Numbers -GuestAddress 0x10000 -Name granted
    Assert-Equal $region.Size 16384
    Assert-Equal (0..3).ForEach{ $region | Read-GuestMemory (0x10000 + $_ * 4096) -As UInt64 } '0 1 2 3'
    $region | Write-GuestMemory 0x12008 0x1122334455667788
    Assert-Equal (Invoke-Peer $peer 'read 2 8') 1122334455667788
    Assert-Equal $region.XenFlags Grant
    Remove-MmapRegion $region
    Assert-Equal (Close-Peer $peer) 0
}

Test-That 'a grant has an address' {
    $peer = Open-Peer grant, 1
    $address = [ulong] 0x8000000000000000ul + $peer.Numbers[0] * 4096ul
    $region = New-MmapRegion 4096 $address -XenGrant -DomainId 0
    $region | Write-GuestMemory ($address + 16) 77
    Assert-Equal (Invoke-Peer $peer 'read 0 16') '4d'
}

Test-That 'a grant for reading is not written' {
    $peer = Open-Peer grant, 1, ro
    Assert-Failure GrantNotMapped { New-MmapRegion (4096 * $peer.Numbers.Count) -XenGrant -DomainId 0 -GrantReference $peer.Numbers }
    $region = New-MmapRegion (4096 * $peer.Numbers.Count) -XenGrant -DomainId 0 -GrantReference $peer.Numbers -Protection Read
    Assert-Equal ($region | Read-GuestMemory 0 -As UInt64) 0
    Assert-Failure PageNotAccessible { $region | Write-GuestMemory 0 1 }
    $onDemand = New-MmapRegion (4096 * $peer.Numbers.Count) -XenGrant -DomainId 0 -GrantReference $peer.Numbers -OnDemand
    Assert-Equal ($onDemand | Read-GuestMemory 0 -As UInt64) 0
    Assert-Failure PageNotAccessible { $onDemand | Write-GuestMemory 0 1 }
}

Test-That 'a reference that is not granted is refused' {
    Assert-Failure GrantNotMapped { New-MmapRegion 4096 -XenGrant -DomainId 0 -GrantReference 60000 }
    Assert-Failure GrantNotMapped { New-MmapRegion 4096 -XenGrant -DomainId 77 -GrantReference 8 }
    $region = New-MmapRegion 4096 -XenGrant -DomainId 0 -GrantReference 60000 -OnDemand
    Assert-Failure PageNotAccessible { $region | Read-GuestMemory 0 8 }
}

Test-That 'pages on demand are mapped for each access only' {
    $peer = Open-Peer grant, 4
    $region = New-MmapRegion (4096 * $peer.Numbers.Count) -XenGrant -DomainId 0 -GrantReference $peer.Numbers -OnDemand -DirtyTracking
    Assert-Equal $region.HostAddress ''
    Assert-Equal ($region | Read-GuestMemory 0x3000 -As UInt64) 3
    $region | Write-GuestMemory 0x1ffe 0x11223344 -As UInt32
    Assert-Equal (Invoke-Peer $peer 'read 1 4088') 3344000000000000
    Assert-Equal (Invoke-Peer $peer 'read 2 0') 1122
    Assert-Equal ($region | Get-DirtyBitmap).DirtyCount 2
    Assert-Equal @([IO.File]::ReadLines('/proc/self/maps').Where{ $_ -match 'gntdev' }).Count 0
    # The domain takes its pages back, which it could not while they were mapped.
    Assert-Equal (Close-Peer $peer) 0
    Assert-Failure PageNotAccessible { $region | Read-GuestMemory 0 8 }
}

Test-That 'a thousand grants leave nothing' {
    $peer = Open-Peer grant, 2
    foreach ($i in 1..1000) {
        New-MmapRegion (4096 * $peer.Numbers.Count) -XenGrant -DomainId 0 -GrantReference $peer.Numbers | Remove-MmapRegion
    }
    Assert-Equal @([IO.File]::ReadLines('/proc/self/maps').Where{ $_ -match 'gntdev' }).Count 0
    Assert-Equal @((Get-ChildItem /proc/self/fd).Where{ $_.Target -match 'gntdev' }).Count 0
    Assert-Equal (Close-Peer $peer) 0
    # The hypervisor would still know a mapping that was left.
    Assert-Failure GrantNotMapped { New-MmapRegion (4096 * $peer.Numbers.Count) -XenGrant -DomainId 0 -GrantReference $peer.Numbers }
}

Test-That 'frames of a paused domain are read and written' {
    $peer = Open-Peer domain, pv, 16
    $domain = Get-XenDomain -Id $peer.Domain
    Assert-Equal $domain.State Paused
    Assert-Equal $domain.IsHvm False
    Assert-Equal $domain.Uuid 01020304-0506-0708-090a-0b0c0d0e0f10
    Assert-Equal $domain.MemorySize 65536
    $address = Get-FrameAddress $peer.Numbers[3]
    # Twice: a region does not take the name of the domain.
    $first, $region = (1..2).ForEach{ $domain | New-MmapRegion 4096 $address -XenForeign }
    Assert-Equal ($first.Name -ne $region.Name) True
    $region | Write-GuestMemory $address 0x1122334455667788
    Assert-Equal (New-MmapRegion 4096 $address -XenForeign -DomainId $peer.Domain -Protection Read | Read-GuestMemory $address -As UInt64) 0x1122334455667788
    Assert-Failure ValueNotSupported { $domain | Get-GuestMemory }
}

Test-That 'a bad frame among good ones is named' {
    $peer = Open-Peer domain, pv, 16
    $last = $peer.Numbers.Where{ ($_ + 1) -notin $peer.Numbers }[0]
    $failure = Assert-Failure FrameNotMapped { New-MmapRegion 8192 (Get-FrameAddress $last) -XenForeign -DomainId $peer.Domain }
    Assert-Equal ("$failure" -match ('frame 0x{0:x} ' -f ($last + 1))) True
    Assert-Equal @([IO.File]::ReadLines('/proc/self/maps').Where{ $_ -match 'privcmd' }).Count 0
}

Test-That 'a domain that is missing is named' {
    Assert-Failure DomainNotFound { New-MmapRegion 4096 0x1000000 -XenForeign -DomainId 999 }
}

Test-That 'the end of a domain under a mapping ends nothing else' {
    $peer = Open-Peer domain, pv, 16
    $address = Get-FrameAddress $peer.Numbers[0]
    $region = New-MmapRegion 4096 $address -XenForeign -DomainId $peer.Domain
    $region | Write-GuestMemory $address 0x1122334455667788
    Assert-Equal (Invoke-Peer $peer destroy) destroyed
    Assert-Equal ($region | Read-GuestMemory $address -As UInt64) 0x1122334455667788
    $region | Write-GuestMemory $address 5
    Assert-Equal (Get-XenDomain -Id $peer.Domain).State Dying
    Remove-MmapRegion $region
    Assert-Failure DomainNotFound { New-MmapRegion 4096 $address -XenForeign -DomainId $peer.Domain }
}

Test-That 'a domain with addresses of its own is read as a whole' {
    $peer = Open-Peer domain, hvm, 64
    $domain = Get-XenDomain -Id $peer.Domain
    Assert-Equal $domain.IsHvm True
    $memory = $domain | Get-GuestMemory
    Assert-Equal $memory.Regions.GuestAddress 0
    Assert-Equal $memory.Regions.Size (16MB + 131072)
    Assert-Equal ($memory | Read-GuestMemory 0x20000 -As UInt64) 0
    Assert-Failure PageNotAccessible { $memory | Write-GuestMemory 0x20000 1 }
    $memory | Write-GuestMemory 0x1000ff8 0x1122334455667788
    $region = New-MmapRegion 8192 0x1000000 -XenForeign -DomainId $peer.Domain
    Assert-Equal ($region | Read-GuestMemory 0x1000ff8 -As UInt64) 0x1122334455667788
    $memory | Export-GuestMemory /tmp/web.mem
    Assert-Equal (Get-Item /tmp/web.mem).Length (16MB + 131072)
    Assert-Equal ([BitConverter]::ToUInt64([IO.File]::ReadAllBytes('/tmp/web.mem'), 0x1000ff8)) 0x1122334455667788
    # What the domain does not have is a hole of the file.
    Assert-Equal ([int] (stat -c %b /tmp/web.mem) -le 512) True
    $memory | Remove-MmapRegion
}
