# The handler's program for arm64, and the library's tests, on an arm64 kernel in QEMU.

BeforeDiscovery {
    # What the script in the machine tells of itself.
    $names = (Get-Content (Join-Path $PSScriptRoot Arm64 init)).ForEach{ if ($_ -match "^test_that '(.+?)'") { $Matches[1] } }
    $tests = Import-PowerShellDataFile (Join-Path $PSScriptRoot Arm64 library.psd1)
    $folders = $tests.Classes.Keys | Sort-Object | ForEach-Object { @{ Folder = $_; Classes = $tests.Classes.$_ } }
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
    $lackingLibrary = $lacking
    if ($lacking) { return }

    $overlay = [IO.Directory]::CreateTempSubdirectory('guestmemory-arm64-').FullName
    $null = New-Item -ItemType Directory "$overlay/opt/compiled", "$overlay/srv", "$overlay/bin", "$overlay/usr/include/asm-generic"
    Copy-Item $program "$overlay/opt"
    Copy-Item (Join-Path $PSScriptRoot Arm64 init) $overlay
    Build-Client "$overlay/opt/uffd-client" aarch64-linux-gnu-gcc
    Write-Image "$overlay/srv/vm.mem" 16MB

    # ReadyToRun: what is not compiled ahead is compiled by an emulated processor.
    Write-Host "watch: 600 s: the library's tests are compiled for arm64"
    $library = "$overlay/opt/library"
    $project = Join-Path $root tests GuestMemory.Core.Tests
    $options = '--runtime', 'linux-arm64', '--verbosity', 'quiet', '-p:PublishReadyToRun=true', '-p:SelfContained=true'
    $said = dotnet restore $project @options 2>&1
    if ($LASTEXITCODE -ne 0) {
        $lackingLibrary = "needs the runtime for arm64, which dotnet cannot restore: $(@($said) -match 'error' | Select-Object -First 1)"
    }
    else {
        dotnet publish $project @options --configuration Release --no-restore --nologo -p:RunAnalyzers=false --output $library | Out-Host
        if ($LASTEXITCODE -ne 0) { throw "dotnet publish ended with exit code $LASTEXITCODE." }
        # There is no C compiler in the machine: the programs that the tests compile are compiled here.
        Copy-Item (Join-Path $PSScriptRoot Arm64 cc) "$overlay/bin"
        foreach ($source in Get-ChildItem $library -Recurse -Filter *.c) {
            aarch64-linux-gnu-gcc -O2 -pthread -static -I (Join-Path $library Interop) -o "$overlay/opt/compiled/$($source.BaseName)" $source.FullName
            if ($LASTEXITCODE -ne 0) { throw "aarch64-linux-gnu-gcc ended with exit code $LASTEXITCODE." }
        }
        Copy-Item /usr/aarch64-linux-gnu/include/asm-generic/unistd.h "$overlay/usr/include/asm-generic"
        # No dotnet either: a handler in a process of its own is the program.
        $null = New-Item -ItemType Directory "$library/uffdhost/linux-arm64"
        Copy-Item $program "$library/uffdhost/linux-arm64"
        $tests = Import-PowerShellDataFile (Join-Path $PSScriptRoot Arm64 library.psd1)
        @($tests.Classes.Values.ForEach{ $_ }.ForEach{ "-class *.$_" }) + $tests.LeftOut.Keys.ForEach{ "-method- *.$_" } | Set-Content "$overlay/opt/filters"
        ($tests.LeftOut.Keys | Sort-Object).ForEach{ Write-Host "Left out: ${_}: $($tests.LeftOut.$_)" }
    }

    $machine = Invoke-Machine arm64 $overlay 900 -Hide '^    GuestMemory\.Core\.Tests\..+ \[(STARTING|FINISHED)\]'
    $run = Read-TestRun $machine.Lines
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

Describe "The library's tests on arm64" {
    BeforeEach {
        if ($lackingLibrary) { Set-ItResult -Skipped -Because $lackingLibrary }
    }

    It 'pass: <Folder>' -ForEach $folders {
        $ended = $failed = $skipped = 0
        $wrong = foreach ($class in $Classes) {
            $result = $run[$class]
            if (-not $result) {
                "${class}: no test of it ran; the machine ended with exit code $($machine.ExitCode)"
                continue
            }
            $ended += $result.Ended
            $failed += $result.Failed.Count
            $skipped += $result.Skipped.Count
            $result.Skipped.Keys.ForEach{ Write-Host "Skipped: $class.${_}: $($result.Skipped[$_])" }
            $result.Failed.Keys.ForEach{ "$class.${_}: $($result.Failed[$_])" }
            if ($result.Running) { "$class.$($result.Running): did not end; the machine ended with exit code $($machine.ExitCode)" }
        }
        Write-Host "$Folder on arm64: $($ended - $skipped - $failed) passed, $failed failed, $skipped skipped"
        $wrong | Should -BeNullOrEmpty
    }
}
