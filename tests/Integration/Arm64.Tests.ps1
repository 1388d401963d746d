# The handler's program for arm64, on an arm64 kernel in QEMU.

BeforeDiscovery {
    # What the script in the machine tells of itself.
    $names = (Get-Content (Join-Path $PSScriptRoot Arm64 init)).ForEach{ if ($_ -match "^test_that '(.+?)'") { $Matches[1] } }
}

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $PSScriptRoot Machine.psm1) -Force
    $program = Join-Path $root artifacts uffdhost arm64 GuestMemory.UffdHost
    $lacking = Get-Lack @{
        'qemu-system-aarch64'   = 'qemu-system-arm'
        cpio                    = 'cpio'
        'aarch64-linux-gnu-gcc' = 'gcc-aarch64-linux-gnu'
    } $program
    if ($lacking) { return }

    $overlay = [IO.Directory]::CreateTempSubdirectory('guestmemory-arm64-').FullName
    $null = New-Item -ItemType Directory "$overlay/opt", "$overlay/srv"
    Copy-Item $program "$overlay/opt"
    Copy-Item (Join-Path $PSScriptRoot Arm64 init) $overlay
    Build-Client "$overlay/opt/uffd-client" aarch64-linux-gnu-gcc
    Write-Image "$overlay/srv/vm.mem" 16MB
    $machine = Invoke-Machine arm64 $overlay
}

AfterAll {
    if (-not $lacking) { Remove-Item $overlay -Recurse -Force }
}

Describe 'The handler on arm64' {
    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It '<_>' -ForEach $names {
        Get-Verdict $machine $_ | Should -Be "check: ok $_" -Because "the machine ended with exit code $($machine.ExitCode)"
    }
}
