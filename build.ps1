#!/usr/bin/env pwsh

<#
.SYNOPSIS
    Builds, tests, checks, documents, measures, shows and packages GuestMemory.
.DESCRIPTION
    Build    builds everything; the module lands in bin/, its help in en-US/, so that Import-Module ./GuestMemory.psd1 works
    Test     builds, then runs every test; the last line is "N passed, N failed, N skipped"
    Analyze  builds (any analyzer warning is an error), then runs PSScriptAnalyzer over the scripts
    Docs     brings the pages in docs/cmdlets up to the cmdlets' parameters, then makes the help from them
    Bench    runs bench/GuestMemory.Bench; further arguments are its own
    Demo     builds, then runs examples/Restore-Snapshot.ps1; further arguments (-MemoryPath FILE) are its own
    Package  puts the module as it is installed into artifacts/GuestMemory/VERSION/, and a tar.gz of it beside
    Clean    removes everything that was built

    The modules Pester 5, Microsoft.PowerShell.PlatyPS and PSScriptAnalyzer are taken from the module path, or saved under
    artifacts/tools; where one cannot be had, what needs it is left out, and that is said.
.EXAMPLE
    ./build.ps1 -Task Test
.EXAMPLE
    ./build.ps1 -Task Demo -MemoryPath ./vm.mem
#>
#Requires -Version 7.6
[CmdletBinding()]
param(
    [Parameter(Position = 0)]
    [ValidateSet('Build', 'Test', 'Analyze', 'Docs', 'Bench', 'Demo', 'Package', 'Clean')]
    [string] $Task = 'Build',

    [ValidateSet('Release', 'Debug')]
    [string] $Configuration = 'Release',

    # For Bench and Demo: handed on.
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
$tools = Join-Path $artifacts tools
$results = Join-Path $artifacts test-results
$notToBeHad = [System.Collections.Generic.List[string]]::new()   # modules that were looked for in vain: once is enough

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
    # The manifest of a module that the build uses, from the module path or saved under artifacts/tools; nothing where there is none.
    $find = {
        Get-Module -ListAvailable -Name $Name, (Join-Path $tools $Name) -ErrorAction Ignore |
            Where-Object { $_.Version -ge $Minimum -and $_.Version -lt $Below } |
            Sort-Object Version -Descending | Select-Object -First 1 -ExpandProperty Path
    }
    $found = & $find
    if (-not $found -and $Name -notin $notToBeHad) {
        $save = {
            param($Name, $Range, $Newest, $Path)
            $null = New-Item -ItemType Directory -Force $Path
            if (Get-Command Save-PSResource -ErrorAction Ignore) {
                Save-PSResource -Name $Name -Version $Range -Path $Path -TrustRepository
            }
            elseif (Get-Command Save-Module -ErrorAction Ignore) {
                Save-Module -Name $Name -MaximumVersion $Newest -Path $Path -Force
            }
        }
        $command = Get-ChildCommand $save $Name, "[$Minimum,$Below)", "$($Below.Major - 1).9999.9999", $tools
        & timeout --foreground 60 @command *> $null
        $found = & $find
        if (-not $found) {
            $notToBeHad.Add($Name)
        }
    }
    $found
}

function Invoke-Build {
    Invoke-Native dotnet build $solution --configuration $Configuration --nologo --verbosity quiet
    Build-Help
    Write-Host "Built $manifest ($Configuration)."
}

function Build-Help {
    $null = New-Item -ItemType Directory -Force $help
    foreach ($topic in Get-ChildItem (Join-Path $root docs about_*.md)) {
        $text = (Get-Content $topic) -notmatch '^```' -replace '^#+ +(.*)', '$1'
        Set-Content (Join-Path $help "$($topic.BaseName).help.txt") $text
    }

    $source = @(Get-ChildItem (Join-Path $pages *-*.md))
    $platyPS = Find-Tool Microsoft.PowerShell.PlatyPS 1.0 2.0
    if (-not $source) {
        Write-Host 'No help: docs/cmdlets has no pages.'
    }
    elseif (-not $platyPS) {
        Write-Host 'No help: the module Microsoft.PowerShell.PlatyPS is not on the module path and could not be saved.'
    }
    else {
        Import-Module $platyPS -Verbose:$false
        $commands = Import-MarkdownCommandHelp -LiteralPath $source.FullName
        $maml = $commands | Export-MamlCommandHelp -OutputFolder (Join-Path $artifacts help) -Force
        foreach ($file in $maml) {
            $xml = [xml] (Get-Content -Raw $file)
            Repair-Maml $xml $commands
            $xml.Save((Join-Path $help $file.Name))
        }
    }
}

function Repair-Maml([xml] $Maml, [object[]] $Command) {
    # PlatyPS 1.0 leaves Markdown fences, control characters and an empty link in the help, and types with their namespaces.
    $namespaces = [Xml.XmlNamespaceManager]::new($Maml.NameTable)
    $namespaces.AddNamespace('command', 'http://schemas.microsoft.com/maml/dev/command/2004/10')
    $namespaces.AddNamespace('maml', 'http://schemas.microsoft.com/maml/2004/10')
    $namespaces.AddNamespace('dev', 'http://schemas.microsoft.com/maml/dev/2004/10')

    foreach ($node in $Maml.SelectNodes('//maml:navigationLink[not(string(maml:uri))]', $namespaces)) {
        $null = $node.ParentNode.RemoveChild($node)
    }
    # A link to a neighbouring page is good in Markdown; Get-Help shows its name, and takes a relative address for an error.
    foreach ($node in $Maml.SelectNodes('//maml:navigationLink/maml:uri[starts-with(., "./")]', $namespaces)) {
        $node.InnerText = ''
    }
    foreach ($node in $Maml.SelectNodes('//command:parameters//command:parameterValue', $namespaces)) {
        $node.InnerText = $node.InnerText -replace '(\w+\.)+'
    }
    foreach ($item in $Maml.SelectNodes('//command:command', $namespaces)) {
        $name = $item.SelectSingleNode('command:details/command:name', $namespaces).InnerText
        $examples = ($Command | Where-Object Title -EQ $name).Examples
        $nodes = $item.SelectNodes('command:examples/command:example', $namespaces)
        for ($i = 0; $i -lt $nodes.Count; $i++) {
            # What stands before the first fence introduces, its content is the code, what follows are the remarks.
            $introduction, $code, $remarks = $examples[$i].Remarks -split '(?m)^```.*\r?\n?', 3
            $parts = @{ introduction = $introduction; remarks = $remarks -replace '(?m)^```.*\r?\n?' }
            foreach ($part in $parts.Keys) {
                $node = $nodes[$i].SelectSingleNode("*[local-name() = '$part']")
                $node.RemoveAll()
                foreach ($text in "$($parts[$part])".Trim(), '') {
                    $para = $node.AppendChild($Maml.CreateElement('maml', 'para', $namespaces.LookupNamespace('maml')))
                    $para.InnerText = $text
                }
            }
            $nodes[$i].SelectSingleNode('dev:code', $namespaces).InnerText = "$code".TrimEnd()
        }
    }
}

function Invoke-Documentation {
    $platyPS = Find-Tool Microsoft.PowerShell.PlatyPS 1.0 2.0
    if (-not $platyPS) {
        throw 'The module Microsoft.PowerShell.PlatyPS is not on the module path and could not be saved.'
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
}

function Invoke-LibraryTest {
    # Every result is a table of what passed, failed and was skipped.
    & (Join-Path $root tests library.sh) $Configuration $results | Out-Host
    $summary = Join-Path $results library.json
    if (Test-Path $summary) {
        return Get-Content -Raw $summary | ConvertFrom-Json -AsHashtable
    }
    Write-Host "Failed: the library's tests ended with exit code $LASTEXITCODE before they were counted."
    @{ passed = 0; failed = 1; skipped = 0 }
}

function Invoke-PesterSuite([string] $Name) {
    $files = @(Get-ChildItem (Join-Path $root tests $Name *.Tests.ps1))
    $count = @{ passed = 0; failed = 0; skipped = 0 }
    if (-not $files) {
        return $count
    }
    $pester = Find-Tool Pester 5.0 6.0
    if (-not $pester) {
        Write-Host "Skipped: tests/${Name}: $($files.Count) files: Pester 5 is not on the module path and could not be saved."
        $count.skipped = $files.Count
        return $count
    }

    $run = {
        param($Pester, $Path, $Report, $Summary, $Tools)
        $ErrorActionPreference = 'Stop'
        $env:PSModulePath += [IO.Path]::PathSeparator + $Tools
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
        @{
            passed  = $run.PassedCount
            failed  = $run.FailedCount + $run.FailedBlocksCount + $run.FailedContainersCount
            skipped = $run.SkippedCount + $run.InconclusiveCount + $run.NotRunCount
        } | ConvertTo-Json | Set-Content $Summary
    }
    $summary = Join-Path $results "$Name.json"
    $command = Get-ChildCommand $run $pester, (Join-Path $root tests $Name), (Join-Path $results "$Name.xml"), $summary, $tools
    & timeout --foreground --kill-after=10 45m @command | Out-Host
    if (Test-Path $summary) {
        return Get-Content -Raw $summary | ConvertFrom-Json -AsHashtable
    }
    Write-Host "Failed: tests/$Name ended with exit code $LASTEXITCODE before its tests were done."
    $count.failed = 1
    $count
}

function Invoke-Test {
    Remove-Item $results -Recurse -Force -ErrorAction Ignore
    $null = New-Item -ItemType Directory -Force $results
    $counts = @(
        Invoke-LibraryTest
        Invoke-PesterSuite Pester
        Invoke-PesterSuite Integration
    )
    $passed, $failed, $skipped = ('passed', 'failed', 'skipped').ForEach{ ($counts.$_ | Measure-Object -Sum).Sum }
    Write-Host "$passed passed, $failed failed, $skipped skipped"
    exit [int] ($failed -gt 0)
}

function Invoke-Analyze {
    $analyzer = Find-Tool PSScriptAnalyzer 1.20 2.0
    if (-not $analyzer) {
        Write-Host 'The scripts were not analyzed: PSScriptAnalyzer is not on the module path and could not be saved.'
        return
    }
    Import-Module $analyzer -Verbose:$false
    $settings = Join-Path $root PSScriptAnalyzerSettings.psd1
    $found = @(
        foreach ($path in $PSCommandPath, $manifest, (Join-Path $root examples), (Join-Path $root tests)) {
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
    Invoke-Native dotnet run --configuration Release --project $project -- @RemainingArgument
}

function Invoke-Demo {
    $program, $arguments = $pwsh + @('-File', (Join-Path $root examples Restore-Snapshot.ps1)) + $RemainingArgument
    & $program @arguments
    exit $LASTEXITCODE
}

function Invoke-Package {
    $version = (Import-PowerShellDataFile $manifest).ModuleVersion
    $module = Join-Path $artifacts GuestMemory
    $target = Join-Path $module $version
    Remove-Item $module -Recurse -Force -ErrorAction Ignore
    $null = New-Item -ItemType Directory -Force $target
    foreach ($name in 'GuestMemory.psd1', 'bin', 'en-US', 'LICENSE', 'README.md') {
        Copy-Item (Join-Path $root $name) $target -Recurse
    }
    # The handler's program with a runtime of its own, compiled ahead: a host that has PowerShell alone can run it.
    $architecture = [Runtime.InteropServices.RuntimeInformation]::OSArchitecture.ToString().ToLowerInvariant()
    $hostFolder = Join-Path $target bin uffdhost
    Remove-Item $hostFolder -Recurse -Force -ErrorAction Ignore
    $project = Join-Path $root src GuestMemory.UffdHost
    Invoke-Native dotnet publish $project --configuration Release --runtime "linux-$architecture" --output $hostFolder --nologo --verbosity quiet
    Get-ChildItem $hostFolder -Filter *.pdb | Remove-Item
    $archive = Join-Path $artifacts "GuestMemory-$version.tar.gz"
    Invoke-Native tar --create --gzip --file $archive --directory $artifacts --sort=name --owner=0 --group=0 GuestMemory
    Write-Host "Packaged $target and $archive."
}

function Invoke-Clean {
    $projects = (Get-ChildItem $root -Recurse -Depth 2 -File -Filter *.csproj).DirectoryName
    $built = @($artifacts, $help, (Join-Path $root bin)) + $projects.ForEach{ Join-Path $_ bin; Join-Path $_ obj }
    Remove-Item $built -Recurse -Force -ErrorAction Ignore
}

try {
    switch ($Task) {
        'Build' { Invoke-Build }
        'Test' { Invoke-Build; Invoke-Test }
        'Analyze' { Invoke-Build; Invoke-Analyze }
        'Docs' { Invoke-Build; Invoke-Documentation; Build-Help }
        'Bench' { Invoke-Bench }
        'Demo' { Invoke-Build; Invoke-Demo }
        'Package' { Invoke-Build; Invoke-Package }
        'Clean' { Invoke-Clean }
    }
}
catch {
    [Console]::Error.WriteLine("build.ps1: $_")
    exit 1
}
