# The handler as a service of a real systemd, which runs as the init of a Debian in QEMU.

BeforeDiscovery {
    # What the script in the machine tells of itself.
    $names = (Get-Content (Join-Path $PSScriptRoot Systemd check.sh)).ForEach{ if ($_ -match "^test_that '(.+?)'") { $Matches[1] } }
}

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $PSScriptRoot Machine.psm1) -Force
    $program = Join-Path $root artifacts test-results native linux-x64 GuestMemory.UffdHost
    $lacking = Get-Lack @{
        'qemu-system-x86_64' = 'qemu-system-x86'
        debootstrap          = 'debootstrap'
        cpio                 = 'cpio'
        gcc                  = 'gcc'
    } $program
    if ($lacking) { return }

    $overlay = [IO.Directory]::CreateTempSubdirectory('guestmemory-systemd-').FullName
    $folders = @{
        Program = "$overlay/opt/uffd/bin/uffdhost/linux-x64"
        Check   = "$overlay/opt/check"
        Image   = "$overlay/srv/vm"
        Units   = "$overlay/etc/systemd/system"
    }
    $null = New-Item -ItemType Directory @($folders.Values)
    Copy-Item $program $folders.Program
    Copy-Item (Join-Path $PSScriptRoot Systemd check.sh) $folders.Check
    Copy-Item (Join-Path $PSScriptRoot Systemd check.service) $folders.Units
    $wants = New-Item -ItemType Directory "$($folders.Units)/multi-user.target.wants"
    $null = New-Item -ItemType SymbolicLink "$wants/check.service" -Target /etc/systemd/system/check.service
    Build-Client "$($folders.Check)/uffd-client" gcc
    Write-Image "$($folders.Image)/web.mem" 16MB

    # As the guide has it, but for a watchdog that does not take half a minute.
    $guide = Get-Content -Raw (Join-Path $root docs operations.md)
    $guide -match '(?s)`/etc/systemd/system/uffd@\.service`.*?```ini\n(.*?)```' | Should -BeTrue
    $Matches[1].Replace('PATH/', '/opt/uffd/').Replace('ARCH', 'x64').Replace('WatchdogSec=30', 'WatchdogSec=5') | Set-Content "$($folders.Units)/uffd@.service"
    $machine = Invoke-Machine systemd $overlay
}

AfterAll {
    if (-not $lacking) { Remove-Item $overlay -Recurse -Force }
}

Describe 'The handler as a service of systemd' {
    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It '<_>' -ForEach $names {
        Get-Verdict $machine $_ | Should -Be "check: ok $_" -Because "the machine ended with exit code $($machine.ExitCode)"
    }
}
