# The cmdlets in domain 0 of a real Xen in QEMU.

BeforeDiscovery {
    # What the script in the machine tells of itself.
    $names = (Get-Content (Join-Path $PSScriptRoot Xen check.ps1)).ForEach{ if ($_ -match "^Test-That '(.+?)'") { $Matches[1] } }
}

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $PSScriptRoot Machine.psm1) -Force
    $lacking = Get-Lack @{
        'qemu-system-x86_64' = 'qemu-system-x86'
        cpio                 = 'cpio'
        gcc                  = 'gcc'
    }
    if ($lacking) { return }

    $overlay = [IO.Directory]::CreateTempSubdirectory('guestmemory-xen-').FullName
    $null = New-Item -ItemType Directory "$overlay/opt/check", "$overlay/opt/guestmemory", "$overlay/opt/dotnet/shared/Microsoft.NETCore.App"
    Copy-Item (Join-Path $PSScriptRoot Xen init) $overlay
    Copy-Item (Join-Path $PSScriptRoot Xen check.ps1) "$overlay/opt/check"
    # The runtime and the PowerShell that these tests run on, and the module.
    $runtime = [Runtime.InteropServices.RuntimeEnvironment]::GetRuntimeDirectory().TrimEnd('/')
    $dotnet = Split-Path (Split-Path (Split-Path $runtime))
    Copy-Item "$dotnet/dotnet", "$dotnet/host" "$overlay/opt/dotnet" -Recurse
    Copy-Item $runtime "$overlay/opt/dotnet/shared/Microsoft.NETCore.App" -Recurse
    Copy-Item $PSHOME "$overlay/opt/pwsh" -Recurse
    Copy-Item (Join-Path $root GuestMemory.psd1), (Join-Path $root bin) "$overlay/opt/guestmemory" -Recurse
    # The toolstack's own headers and libraries, of the very version.
    $toolstack = Join-Path (Initialize-Machine xen) dev
    $libraries = ('ctrl', 'foreignmemory', 'gnttab', 'evtchn', 'devicemodel', 'call', 'toollog', 'toolcore').ForEach{ "-l:libxen$_.a" }
    gcc -O2 -o "$overlay/opt/check/peer" (Join-Path $PSScriptRoot Xen peer.c) -I "$toolstack/include" -L "$toolstack/lib/x86_64-linux-gnu" @libraries
    if ($LASTEXITCODE -ne 0) { throw "gcc ended with exit code $LASTEXITCODE." }
    $machine = Invoke-Machine xen $overlay
}

AfterAll {
    if (-not $lacking) { Remove-Item $overlay -Recurse -Force }
}

Describe 'The cmdlets on a real Xen' {
    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It '<_>' -ForEach $names {
        Get-Verdict $machine $_ | Should -Be "check: ok $_" -Because "the machine ended with exit code $($machine.ExitCode)"
    }
}
