#!/usr/bin/env pwsh

<#
.SYNOPSIS
    Builds, tests, fuzzes, checks, documents, measures, shows and packages GuestMemory.
.DESCRIPTION
    Build    builds everything; the module lands in bin/, so that Import-Module ./GuestMemory.psd1 works; makes the help in en-US/
             anew where a page has changed and PlatyPS is there
    Test     builds, then runs every test; the last line is "N passed, N failed, N skipped"; with -Tag NAME,... only those suites:
             Library, Pester, one of tests/Integration (Arm64, Xen, ...), or Soak: the long rounds that a release is tried with
    Fuzz     fuzzes targets of tests/Fuzz, one after the other: Fuzz TARGET... -Seconds 600 (each), or Fuzz all -Seconds 180 (in all);
             lists them where none is named; ends with an error where something is found, which lies in artifacts/fuzz/TARGET
    Analyze  builds (any analyzer warning is an error), then runs PSScriptAnalyzer over the scripts
    Docs     brings the pages in docs/cmdlets up to the cmdlets' parameters, then makes the help in en-US/ from them
    Bench    runs bench/GuestMemory.Bench; further arguments are its own
    Demo     builds, then runs examples/Restore-Snapshot.ps1; further arguments (-MemoryPath FILE) are its own
    Package  puts the module as it is installed into artifacts/GuestMemory/VERSION/, a tar.gz of it beside, and the NuGet packages
             of the module and of the library into artifacts/packages
    Clean    removes everything that was built

    Pester is a NuGet package, which Test restores. Docs needs the module Microsoft.PowerShell.PlatyPS, and Analyze the module
    PSScriptAnalyzer, both from the module path.
.EXAMPLE
    ./build.ps1 -Task Test
.EXAMPLE
    ./build.ps1 -Task Fuzz mapping-list -Seconds 60
.EXAMPLE
    ./build.ps1 -Task Demo -MemoryPath ./vm.mem
#>
#Requires -Version 7.6
[CmdletBinding()]
param(
    [Parameter(Position = 0)]
    [ValidateSet('Build', 'Test', 'Analyze', 'Docs', 'Bench', 'Fuzz', 'Demo', 'Package', 'Clean')]
    [string] $Task = 'Build',

    [ValidateSet('Release', 'Debug')]
    [string] $Configuration = 'Release',

    # For Fuzz: how long each target runs, or all of them together.
    [ValidateRange(1, 86400)]
    [int] $Seconds = 600,

    # For Test: the suites.
    [string[]] $Tag = @(),

    # For Bench and Demo: handed on. For Fuzz: the targets.
    [Parameter(ValueFromRemainingArguments)]
    [string[]] $RemainingArgument = @()
)

Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$PSNativeCommandUseErrorActionPreference = $false

$root = $PSScriptRoot
$solution = Join-Path $root GuestMemory.slnx
$manifest = Join-Path $root GuestMemory.psd1
$pages = Join-Path $root docs cmdlets
$help = Join-Path $root en-US   # Get-Help looks beside the manifest
$artifacts = Join-Path $root artifacts
$results = Join-Path $artifacts test-results
Import-Module (Join-Path $root build Help.psm1)

# PowerShell as a .NET tool has no executable of its own.
$pwsh = @((Join-Path $PSHOME pwsh), '-NoProfile', '-NonInteractive')
if (-not (Test-Path $pwsh[0])) {
    $pwsh = @('dotnet', (Join-Path $PSHOME pwsh.dll), '-NoProfile', '-NonInteractive')
}

function Invoke-Native {
    # Runs a program and ends the build where it fails.
    $program, $arguments = $args
    & $program @arguments
    if ($LASTEXITCODE -ne 0) {
        throw "$(Split-Path -Leaf $program) $($arguments | Select-Object -First 1) ended with exit code $LASTEXITCODE."
    }
}

function Get-ChildCommand([scriptblock] $Script, [object[]] $ArgumentList) {
    # The command line of a PowerShell of its own: what it loads is not locked in this one, and its end is not ours.
    $quoted = $ArgumentList.ForEach{ "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($_) + "'" }
    $pwsh + @('-Command', "& { $Script } $quoted")
}

function Find-Tool([string] $Name, [version] $Minimum, [version] $Below) {
    # The manifest of a module on the module path; nothing where there is none.
    Get-Module -ListAvailable -Name $Name |
        Where-Object { $_.Version -ge $Minimum -and $_.Version -lt $Below } |
        Sort-Object Version -Descending | Select-Object -First 1 -ExpandProperty Path
}

function Find-PlatyPS {
    Find-Tool Microsoft.PowerShell.PlatyPS 1.0 2.0
}

function Find-Pester {
    # The manifest of the NuGet package that tests/Pester/Pester.proj names; where that cannot be restored, one on the module path.
    $project = Join-Path $root tests Pester Pester.proj
    $output = @(& dotnet msbuild $project -nologo -restore -target:Find -getProperty:PesterManifest)
    if ($LASTEXITCODE -eq 0) {
        return $output[-1]
    }
    $output | Out-Host
    Find-Tool Pester 5.0 7.0
}

function Invoke-Build {
    Invoke-Native dotnet build $solution --configuration $Configuration --nologo --verbosity quiet
    Build-Help
    Write-Host "Built $manifest ($Configuration)."
}

function Build-Help {
    $stale = @(Get-StaleHelp)
    if (-not $stale) {
        return
    }
    $platyPS = Find-PlatyPS
    if ($platyPS) {
        Write-ModuleHelp $platyPS (Join-Path $artifacts help)
    }
    else {
        Write-Host "The help in en-US is not that of $($stale -join ', '); what makes it, Microsoft.PowerShell.PlatyPS, is not on the module path."
    }
}

function Invoke-Documentation {
    $platyPS = Find-PlatyPS
    if (-not $platyPS) {
        throw 'Docs needs the module Microsoft.PowerShell.PlatyPS, which is not on the module path.'
    }
    # Help that is there already would be taken for a second description of each parameter.
    Remove-Item -Recurse -Force $help -ErrorAction Ignore
    $update = {
        param($PlatyPS, $Manifest, $Pages, $New)
        $ErrorActionPreference = 'Stop'
        Import-Module $PlatyPS, $Manifest
        foreach ($command in Get-Command -Module GuestMemory) {
            $page = Join-Path $Pages "$($command.Name).md"
            if (Test-Path $page) {
                Update-MarkdownCommandHelp -LiteralPath $page -NoBackup
            }
            else {
                New-MarkdownCommandHelp -CommandInfo $command -OutputFolder $New -Force | Move-Item -Destination $page
                "New, to be filled in: $page"
            }
            # An update adds a byte order mark, empty lines, and a placeholder where there are no links.
            $text = (Get-Content -Raw $page) -replace '\{\{ Fill in the related links here \}\}' -replace '(\r?\n){3,}', "`n`n"
            Set-Content -LiteralPath $page -Value ($text.TrimEnd() + "`n") -NoNewline
        }
    }
    $command = Get-ChildCommand $update $platyPS, $manifest, $pages, (Join-Path $artifacts help)
    Invoke-Native @command
    Write-ModuleHelp $platyPS (Join-Path $artifacts help)
}

function Invoke-LibraryTest([switch] $Soak) {
    # Every result is a table of what passed, failed and was skipped.
    $filters = @()
    if ($Soak) {
        # What Test does a few times, as often as a release is tried with it.
        foreach ($setting in @{ GUESTMEMORY_CRASH_ROUNDS = 100; GUESTMEMORY_UPGRADE_ROUNDS = 100; GUESTMEMORY_TRACKING_ROUNDS = 1000; GUESTMEMORY_KILL_ROUNDS = 100; GUESTMEMORY_LIVE_ROUNDS = 1000 }.GetEnumerator()) {
            if (-not (Test-Path "env:$($setting.Key)")) { Set-Item "env:$($setting.Key)" $setting.Value }
        }
        $filters = '-showLiveOutput', '-class', '*.SurvivalTests', '-class', '*.ProcessDirtyTrackerTests', '-class', '*.LiveExportTests', '-class', '*.LiveGuestTests'
    }
    if (Get-Command gcc -CommandType Application -ErrorAction Ignore) {
        $own = Get-OwnArchitecture
        Publish-HostProgram $own (Join-Path $results native "linux-$own") | Out-Host
    }
    else {
        Write-Host "Skipped: the tests of the handler's program as it is packaged: gcc, which links it, is not there (apt-get install gcc libc6-dev)."
    }
    & (Join-Path $root tests library.sh) $Configuration $results @filters | Out-Host
    $summary = Join-Path $results library.json
    if (Test-Path $summary) {
        return Get-Content -Raw $summary | ConvertFrom-Json -AsHashtable
    }
    Write-Host "Failed: the library's tests ended with exit code $LASTEXITCODE before they were counted."
    @{ passed = 0; failed = 1; skipped = 0 }
}

function Invoke-PesterSuite([string] $Name, [string] $Path, [string] $Pester) {
    $count = @{ passed = 0; failed = 0; skipped = 0 }
    if (-not $Pester) {
        $count.skipped = @(Get-ChildItem $Path -Filter *.Tests.ps1).Count
        Write-Host "Skipped: ${Path}: $($count.skipped) files: Pester could not be restored, and is not on the module path."
        return $count
    }

    $run = {
        param($Pester, $Path, $Report, $Summary, $Failed)
        $ErrorActionPreference = 'Stop'
        Import-Module $Pester
        $run = Invoke-Pester -Configuration @{
            Run        = @{ Path = $Path; PassThru = $true }
            Output     = @{ Verbosity = 'Detailed'; CIFormat = 'None' }
            TestResult = @{ Enabled = $true; OutputPath = $Report }
        }
        foreach ($test in @($run.Skipped) + @($run.Inconclusive)) {
            $reason = "$($test.ErrorRecord | Select-Object -First 1)" -replace '^.*?, because '
            "Skipped: $($test.ExpandedPath): $($reason ? $reason : 'no reason given')"
        }
        # A file or a block that broke before its tests ran is a failure too.
        $(foreach ($broken in @($run.Failed) + @($run.FailedBlocks) + @($run.FailedContainers)) {
            "    $($broken.ExpandedPath ?? $broken.Item)"
            foreach ($record in $broken.ErrorRecord) {
                # Without Pester's own lines.
                $stack = ($record.ScriptStackTrace -split "`n") -notmatch 'Pester\.(psm1|ScriptScope)|<No file>'
                (@("$record") + $stack) -join "`n" -replace '(?m)^', '      '
            }
        }) | Set-Content $Failed
        @{
            passed  = $run.PassedCount
            failed  = $run.FailedCount + $run.FailedBlocksCount + $run.FailedContainersCount
            skipped = $run.SkippedCount + $run.InconclusiveCount + $run.NotRunCount
        } | ConvertTo-Json | Set-Content $Summary
    }
    $summary = Join-Path $results "$Name.json"
    $command = Get-ChildCommand $run $Pester, $Path, (Join-Path $results "$Name.xml"), $summary,
        (Join-Path $results "$Name.failed")
    & (Join-Path $root tests watch.sh) 120 (Join-Path $results "$Name.log") @command | Out-Host
    if (Test-Path $summary) {
        return Get-Content -Raw $summary | ConvertFrom-Json -AsHashtable
    }
    Write-Host "Failed: $Path ended with exit code $LASTEXITCODE before its tests were done."
    $count.failed = 1
    $count
}

function Invoke-Test {
    Remove-Item $results -Recurse -Force -ErrorAction Ignore
    $null = New-Item -ItemType Directory -Force $results
    $pester = Find-Pester
    Write-Host "PowerShell $($PSVersionTable.PSVersion) ($PSHOME), Pester $($pester ? $pester : 'not to be had')"
    $suites = [ordered] @{ Library = $null; Pester = Join-Path $root tests Pester }
    Get-ChildItem (Join-Path $root tests Integration) -Filter *.Tests.ps1 | ForEach-Object { $suites[$_.Name -replace '\.Tests\.ps1$'] = $_.FullName }
    if ($Tag) {
        $suites.Soak = $null
        # A shell gives a list as one word.
        $Tag = $Tag -split ','
        $unknown = $Tag.Where{ $_ -notin $suites.Keys }
        if ($unknown) {
            throw "There is no suite $($unknown -join ', '); there are $($suites.Keys -join ', ')."
        }
        @($suites.Keys).Where{ $_ -notin $Tag }.ForEach{ $suites.Remove($_) }
        if ('Arm64' -in $Tag -and 'Pester' -notin $Tag -and (Find-CrossLinker arm64)) {
            # Else the tests of the package have made it.
            Publish-HostProgram arm64 (Join-Path $results native linux-arm64) | Out-Host
        }
    }
    $minutes = [ordered] @{}
    $counts = foreach ($suite in $suites.Keys) {
        $watch = [Diagnostics.Stopwatch]::StartNew()
        $suites.$suite ? (Invoke-PesterSuite $suite $suites.$suite $pester) : (Invoke-LibraryTest -Soak:($suite -eq 'Soak'))
        if ($suite -eq 'Soak') { Invoke-PesterSuite Soak (Join-Path $root tests Integration VhostUser.Tests.ps1) $pester }
        $minutes.$suite = $watch.Elapsed.TotalMinutes
    }
    # What failed, once more: it stands far above.
    Get-ChildItem $results -Filter *.failed | Get-Content | Out-Host
    Write-Host "Minutes: $($minutes.Keys.ForEach{ '{0} {1:0.0}' -f $_, $minutes.$_ } -join ', ')"
    $passed, $failed, $skipped = ('passed', 'failed', 'skipped').ForEach{ ($counts.$_ | Measure-Object -Sum).Sum }
    Write-Host "$passed passed, $failed failed, $skipped skipped"
    $script:exitCode = [int] ($failed -gt 0)
}

function Invoke-Analyze {
    $analyzer = Find-Tool PSScriptAnalyzer 1.20 2.0
    if (-not $analyzer) {
        Write-Host 'The scripts were not analyzed: the module PSScriptAnalyzer is not on the module path.'
        return
    }
    Import-Module $analyzer -Verbose:$false
    $settings = Join-Path $root PSScriptAnalyzerSettings.psd1
    $found = @(
        foreach ($path in $PSCommandPath, $manifest, (Join-Path $root build), (Join-Path $root examples), (Join-Path $root tests)) {
            Invoke-ScriptAnalyzer -Path $path -Recurse -Settings $settings
        }
    )
    $found.ForEach{ "$($_.ScriptPath):$($_.Line): $($_.RuleName): $($_.Message)" } | Out-Host
    if ($found) {
        throw "PSScriptAnalyzer found $($found.Count) things."
    }
    Write-Host 'PSScriptAnalyzer found nothing.'
}

function Invoke-Bench {
    $project = Join-Path $root bench GuestMemory.Bench
    $env:PWSH = $pwsh -like '*pwsh*' | Select-Object -First 1
    if ($RemainingArgument -and $RemainingArgument[0] -eq 'xen') {
        # In a machine, which has no SDK.
        Invoke-Build
        & (Join-Path $root bench xen.ps1) @($RemainingArgument | Select-Object -Skip 1)
        return
    }
    Invoke-Native dotnet run --configuration Release --project $project -- @RemainingArgument
}

function Invoke-Demo {
    $program, $arguments = $pwsh + @('-File', (Join-Path $root examples Restore-Snapshot.ps1)) + $RemainingArgument
    & $program @arguments
    $script:exitCode = $LASTEXITCODE
}

function Invoke-Package {
    $version = (Import-PowerShellDataFile $manifest).ModuleVersion
    $module = Join-Path $artifacts GuestMemory
    $target = Join-Path $module $version
    $packages = Join-Path $artifacts packages
    Remove-Item $module, $packages -Recurse -Force -ErrorAction Ignore
    $null = New-Item -ItemType Directory -Force $target, $packages
    foreach ($name in 'bin', 'en-US', 'LICENSE', 'CHANGELOG.md', 'docs/icon.png') {
        Copy-Item (Join-Path $root $name) $target -Recurse
    }
    # Nothing lies beside the README in a gallery: a link to a file of the repository becomes its text.
    $readme = Join-Path $target README.md
    (Get-Content -Raw (Join-Path $root README.md)) -replace '\[([^\]\n]+)\]\((?!https?:|#)[^)\n]+\)', '$1' | Set-Content -NoNewline $readme
    # The newest section of the change log is what a gallery shows as release notes.
    $notes = [regex]::Match((Get-Content -Raw (Join-Path $root CHANGELOG.md)), '(?ms)^## \[.*?(?=^## \[|\z)').Value.Trim()
    (Get-Content -Raw $manifest).Replace('See CHANGELOG.md.', $notes.Replace("'", "''")) | Set-Content -NoNewline (Join-Path $target GuestMemory.psd1)

    # The handler's program, compiled ahead to one file for each architecture that this machine can link; elsewhere, where dotnet is, that
    # runs the library beside it.
    $own = Get-OwnArchitecture
    foreach ($architecture in @($own) + @('x64', 'arm64').Where{ $_ -ne $own -and (Find-CrossLinker $_) }) {
        Publish-HostProgram $architecture (Join-Path $target bin uffdhost "linux-$architecture")
    }

    $archive = Join-Path $artifacts "GuestMemory-$version.tar.gz"
    Invoke-Native tar --create --gzip --file $archive --directory $artifacts --sort=name --owner=0 --group=0 GuestMemory
    Compress-PSResource $target $packages
    $library = Join-Path $root src GuestMemory.Core
    Invoke-Native dotnet pack $library --configuration $Configuration --no-build --output $packages --nologo --verbosity quiet "-p:ReadmePath=$readme"
    Write-Host "Packaged $target, $archive, and in ${packages}: $((Get-ChildItem $packages).Name -join ', ')."
}

function Get-OwnArchitecture {
    [Runtime.InteropServices.RuntimeInformation]::OSArchitecture.ToString().ToLowerInvariant()
}

function Find-CrossLinker([string] $Architecture) {
    # The prefix of the tools that link for another architecture, of Debian's gcc-aarch64-linux-gnu or gcc-x86-64-linux-gnu; nothing where they are not there.
    $prefix = @{ x64 = 'x86_64-linux-gnu-'; arm64 = 'aarch64-linux-gnu-' }[$Architecture]
    if ((Get-Command "${prefix}gcc" -CommandType Application -ErrorAction Ignore) -and (Get-Command "${prefix}objcopy" -CommandType Application -ErrorAction Ignore)) {
        $prefix
    }
}

function Publish-HostProgram([string] $Architecture, [string] $Folder) {
    $cross = @()
    if ($Architecture -ne (Get-OwnArchitecture)) {
        $prefix = Find-CrossLinker $Architecture
        $cross = "-p:CppCompilerAndLinker=${prefix}gcc", "-p:ObjCopyName=${prefix}objcopy"
    }
    $project = Join-Path $root src GuestMemory.UffdHost
    $made = Join-Path $artifacts uffdhost $Architecture
    Invoke-Native dotnet publish $project --configuration $Configuration --runtime "linux-$Architecture" --output $made --nologo --verbosity quiet @cross
    $null = New-Item -ItemType Directory -Force $Folder
    Copy-Item (Join-Path $made GuestMemory.UffdHost) $Folder
}

function Invoke-Clean {
    $projects = (Get-ChildItem $root -Recurse -Depth 2 -File -Filter *.*proj).DirectoryName
    $built = @($artifacts, (Join-Path $root bin)) + $projects.ForEach{ Join-Path $_ bin; Join-Path $_ obj }
    Remove-Item $built -Recurse -Force -ErrorAction Ignore
}

$exitCode = 0
$isOver = $false
try {
    switch ($Task) {
        'Build' { Invoke-Build }
        'Test' { Invoke-Build; Invoke-Test }
        'Analyze' { Invoke-Build; Invoke-Analyze }
        'Docs' { Invoke-Build; Invoke-Documentation }
        'Bench' { Invoke-Bench }
        'Fuzz' { Import-Module (Join-Path $root build Fuzz.psm1); Invoke-Fuzz $RemainingArgument $Seconds }
        'Demo' { Invoke-Build; Invoke-Demo }
        'Package' { Invoke-Build; Invoke-Package }
        'Clean' { Invoke-Clean }
    }
    $isOver = $true
}
catch {
    [Console]::Error.WriteLine("build.ps1: $_")
    $exitCode = 1
    $isOver = $true
}
finally {
    if (-not $isOver) {
        # Ctrl+C; PowerShell itself would end with exit code 0.
        [Environment]::Exit(130)
    }
}
exit $exitCode
