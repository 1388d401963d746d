# The handler as a service of a real systemd, which runs as the init of a Debian in QEMU.

BeforeDiscovery {
    # What the script in the machine tells of itself.
    $script = Get-Content (Join-Path $PSScriptRoot Systemd check.sh)
    $names = $script.ForEach{ if ($_ -match "^test_that '(.+?)'") { $Matches[1] } }
}

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    # That of the kernel that is booted.
    $architecture = 'x64'
    $program = Join-Path $root artifacts test-results native "linux-$architecture"

    $commands = [ordered] @{
        'qemu-system-x86_64' = 'qemu-system-x86'
        debootstrap          = 'debootstrap'
        cpio                 = 'cpio'
        gcc                  = 'gcc'
    }
    $packages = $commands.Keys.Where{ -not (Get-Command $_ -CommandType Application -ErrorAction Ignore) }.ForEach{ $commands[$_] }
    $lacking = if ($packages) {
        "needs $($packages -join ', '): apt-get install $($packages -join ' ')"
    }
    elseif ((id -u) -ne '0') {
        'needs root, which debootstrap needs'
    }
    elseif (-not (Test-Path $program)) {
        "needs the handler's program compiled ahead for $architecture, which the library's tests do where gcc is"
    }

    function New-Overlay([string] $Path) {
        # What is laid over the machine's root: the program, its unit, an image, a VMM, and the script that uses them.
        $null = New-Item -ItemType Directory (Join-Path $Path opt uffd), (Join-Path $Path opt check), (Join-Path $Path srv vm), (Join-Path $Path etc systemd system)
        $bin = Join-Path opt uffd bin uffdhost "linux-$architecture"
        $null = New-Item -ItemType Directory (Join-Path $Path $bin)
        Copy-Item (Join-Path $program GuestMemory.UffdHost) (Join-Path $Path $bin)
        Copy-Item (Join-Path $PSScriptRoot Systemd check.sh) (Join-Path $Path opt check)
        $client = Join-Path $root bench baseline uffd-client.c
        gcc -O2 -static -o (Join-Path $Path opt check uffd-client) $client -lpthread
        $LASTEXITCODE | Should -Be 0

        # As the guide has it, but for a watchdog that does not take half a minute.
        $guide = Get-Content -Raw (Join-Path $root docs operations.md)
        $guide -match '(?s)`/etc/systemd/system/uffd@\.service`.*?```ini\n(.*?)```' | Should -BeTrue
        $Matches[1].Replace('PATH/', '/opt/uffd/').Replace('ARCH', $architecture).Replace('WatchdogSec=30', 'WatchdogSec=5') |
            Set-Content (Join-Path $Path etc systemd system 'uffd@.service')
        @'
[Unit]
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/opt/check/check.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console

[Install]
WantedBy=multi-user.target
'@ | Set-Content (Join-Path $Path etc systemd system check.service)
        $wants = Join-Path $Path etc systemd system multi-user.target.wants
        $null = New-Item -ItemType Directory $wants
        $null = New-Item -ItemType SymbolicLink (Join-Path $wants check.service) -Target /etc/systemd/system/check.service

        # Every page is another, and none is empty.
        $bytes = [byte[]]::new(16MB)
        [Random]::new(1).NextBytes($bytes)
        [IO.File]::WriteAllBytes((Join-Path $Path srv vm web.mem), $bytes)
    }

    if (-not $lacking) {
        $overlay = [IO.Directory]::CreateTempSubdirectory('guestmemory-systemd-').FullName
        New-Overlay $overlay
        Write-Host 'watch: 600 s: a Debian is put together, and boots'
        $output = & (Join-Path $PSScriptRoot Systemd machine.sh) (Join-Path $root artifacts systemd) $overlay 400 2>&1 | ForEach-Object {
            Write-Host ($line = "$_".TrimEnd("`r"))
            $line
        }
        $exitCode = $LASTEXITCODE
    }
}

AfterAll {
    if (-not $lacking) { Remove-Item $overlay -Recurse -Force }
}

Describe 'The handler as a service of systemd' {
    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It '<_>' -ForEach $names {
        $name = $_
        $lines = $output.Where{ $_ -ceq "check: ok $name" -or $_.StartsWith("check: not ok ${name}:", [StringComparison]::Ordinal) }
        $lines | Should -Be "check: ok $name" -Because "the machine ended with exit code $exitCode"
    }
}
