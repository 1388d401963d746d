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

    $lacking = Initialize-Machine xen
    if ($lacking) { return }
    $overlay = Build-XenOverlay
    Copy-Item (Join-Path $PSScriptRoot Xen check.ps1) "$overlay/opt/check"
    $machine = Invoke-Machine xen $overlay 800
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
