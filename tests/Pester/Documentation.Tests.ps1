BeforeDiscovery {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    $cmdlets = (Get-Command -Module GuestMemory -CommandType Cmdlet | Sort-Object Name).Name
    $pages = (Get-ChildItem (Join-Path $root docs cmdlets *-*.md)).BaseName
}

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    $module = Import-Module (Join-Path $root GuestMemory.psd1) -PassThru
    Import-Module (Join-Path $root build Help.psm1)
    Import-Module (Join-Path $PSScriptRoot TestHelpers.psm1) -Force

    function ConvertTo-PlainText([string] $Text) {
        # Without what is only Markdown, and however the lines are broken.
        ($Text -replace '[`*]|^\s*- ' -replace '\s+', ' ').Trim()
    }

    function Get-Page([string] $Name) {
        $path = Join-Path $root docs cmdlets "$Name.md"
        $path | Should -Exist -Because 'every cmdlet has a page'
        Get-Content -Raw $path
    }

    function Get-Section([string] $Page, [string] $Title) {
        [regex]::Match($Page, ('(?ms)^## ' + $Title + '\s*$(.*?)(?=^## |\z)')).Groups[1].Value.Trim()
    }
}

Describe 'The manifest' {
    It 'exports every cmdlet of the module, by name' {
        $assembly = $module.ExportedCmdlets.Values | Select-Object -First 1 | ForEach-Object { $_.ImplementingType.Assembly }
        $written = foreach ($type in $assembly.GetTypes()) {
            $attribute = $type.GetCustomAttributes([System.Management.Automation.CmdletAttribute], $false)
            if ($attribute) { "$($attribute[0].VerbName)-$($attribute[0].NounName)" }
        }
        $exported = (Import-PowerShellDataFile (Join-Path $root GuestMemory.psd1)).CmdletsToExport
        $exported | Sort-Object | Should -Be ($written | Sort-Object)
    }

    It 'names a version that the change log knows' {
        Join-Path $root CHANGELOG.md | Should -Exist
        Get-Content -Raw (Join-Path $root CHANGELOG.md) | Should -Match "(?m)^## \[?($([regex]::Escape($module.Version))|Unreleased)\b"
    }
}

Describe 'The page <_>' -ForEach $pages {
    It 'belongs to a cmdlet' {
        (Get-Command -Module GuestMemory).Name | Should -Contain $_
    }
}

Describe '<_>' -ForEach $cmdlets {
    BeforeAll {
        $name = $_
        $command = Get-Command -Module GuestMemory -Name $name
    }

    It 'uses an approved verb' {
        (Get-Verb).Verb | Should -Contain $command.Verb
    }

    It 'has a Pester file' {
        Join-Path $PSScriptRoot "$name.Tests.ps1" | Should -Exist
    }

    It 'stands in the README' {
        Select-String "\b$name\b" (Join-Path $root README.md) -Quiet | Should -BeTrue
    }

    It 'has a page without placeholders' {
        $page = Get-Page $name
        [regex]::Matches($page, '\{\{.*?\}\}').Value | Should -BeNullOrEmpty
        Get-Section $page SYNOPSIS | Should -Not -BeNullOrEmpty
        Get-Section $page DESCRIPTION | Should -Not -BeNullOrEmpty
    }

    It 'has at least two examples' {
        $examples = Get-Section (Get-Page $name) EXAMPLES
        [regex]::Matches($examples, '(?m)^### ').Count | Should -BeGreaterOrEqual 2
        [regex]::Matches($examples, '(?m)^```\w*\s*$').Count | Should -BeGreaterOrEqual 4 -Because 'every example shows code'
    }

    It 'documents every parameter, and no other' {
        # As the help has it, which is made of the page.
        $documented = @((Get-Help $name -Full).parameters.parameter)
        $common = [System.Management.Automation.Cmdlet]::CommonParameters
        $expected = $command.Parameters.Values | Where-Object { $_.Name -notin $common }

        $documented.name | Sort-Object | Should -Be ($expected.Name | Sort-Object)
        foreach ($parameter in $documented) {
            ($parameter.description.Text -join '').Trim() | Should -Not -BeNullOrEmpty -Because "-$($parameter.name) needs a description"
            $aliases = "$($command.Parameters[$parameter.name].Aliases | Sort-Object)"
            "$($parameter.aliases -replace '^none$' -split ', *' | Sort-Object)" | Should -Be $aliases -Because "these are the aliases of -$($parameter.name)"
        }
    }

    It 'shows its page in Get-Help' {
        $page = Get-Page $name
        $help = Get-Help $name -Full
        ConvertTo-PlainText $help.Synopsis | Should -Be (ConvertTo-PlainText (Get-Section $page SYNOPSIS))
        ConvertTo-PlainText ($help.description.Text -join ' ') | Should -Be (ConvertTo-PlainText (Get-Section $page DESCRIPTION))
        $titles = [regex]::Matches((Get-Section $page EXAMPLES), '(?m)^### (.*?)\s*$').ForEach{ ConvertTo-PlainText $_.Groups[1].Value }
        @($help.examples.example.title).ForEach{ ConvertTo-PlainText ($_ -replace '^-+|-+$') } | Should -Be $titles
    }
}

Describe 'The help in en-US' {
    BeforeEach {
        $copy = (New-Item -ItemType Directory "$TestDrive/$([guid]::NewGuid())").FullName
        Copy-Item -Recurse (Join-Path $root docs), (Join-Path $root en-US) $copy
        $page = "$copy/docs/cmdlets/New-MmapRegion.md"
    }

    It 'is that of the pages (./build.sh Docs makes it anew)' {
        Get-StaleHelp | Should -BeNullOrEmpty
    }

    It 'is stale where a page was changed' {
        Add-Content $page 'One more line.'
        Get-StaleHelp $copy | Should -Contain 'docs/cmdlets/New-MmapRegion.md'
    }

    It 'is stale where a page is new' {
        Copy-Item $page "$copy/docs/cmdlets/New-Thing.md"
        Get-StaleHelp $copy | Should -Contain 'docs/cmdlets/New-Thing.md'
    }

    It 'is stale where a page is gone' {
        Remove-Item $page
        Get-StaleHelp $copy | Should -Contain 'docs/cmdlets/New-MmapRegion.md'
    }

    It 'is stale where a topic was changed' {
        Add-Content "$copy/docs/about_GuestMemory.md" 'One more line.'
        Get-StaleHelp $copy | Should -Contain 'docs/about_GuestMemory.md'
    }

    It 'is stale where it is missing' {
        Remove-Item -Recurse "$copy/en-US"
        Get-StaleHelp $copy | Should -Be (@(Get-ChildItem $copy/docs/cmdlets/*-*.md | Sort-Object Name -Culture '' | ForEach-Object { "docs/cmdlets/$($_.Name)" }) + 'docs/about_GuestMemory.md')
    }

    It 'is shown where there is no PlatyPS' {
        # A shell that knows no module but its own.
        $script = "`$env:PSModulePath = '$PSHOME/Modules'
            Import-Module '$root/GuestMemory.psd1'
            if (Get-Module -ListAvailable Microsoft.PowerShell.PlatyPS) { throw 'PlatyPS is there.' }
            Get-Help New-MmapRegion -Full
            Get-Help about_GuestMemory"
        $program, $arguments = @(Get-PowerShellCommand) + '-NoProfile', '-NonInteractive', '-Command', $script
        $shown = & $program @arguments | Out-String
        $shown | Should -BeLike "*$((Get-Section (Get-Page New-MmapRegion) SYNOPSIS).Trim())*"
        $shown | Should -Match '(?m)^\s*-GuestAddress <'
        $shown | Should -Match '(?m)^\s*-+ Example 1: '
        $shown | Should -Match 'about_GuestMemory'
    }
}
