BeforeDiscovery {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    $cmdlets = (Get-Command -Module GuestMemory -CommandType Cmdlet | Sort-Object Name).Name
    $pages = (Get-ChildItem (Join-Path $root docs cmdlets *-*.md)).BaseName
}

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    $module = Import-Module (Join-Path $root GuestMemory.psd1) -PassThru
    $platyPS = [bool] (Import-Module Microsoft.PowerShell.PlatyPS -PassThru -ErrorAction Ignore)

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
        if (-not $platyPS) {
            Set-ItResult -Skipped -Because 'the module Microsoft.PowerShell.PlatyPS, which reads the pages, is not on the module path'
        }
        $null = Get-Page $name
        $documented = (Import-MarkdownCommandHelp -LiteralPath (Join-Path $root docs cmdlets "$name.md")).Parameters
        $common = [System.Management.Automation.Cmdlet]::CommonParameters
        $expected = $command.Parameters.Values | Where-Object { $_.Name -notin $common }

        $documented.Name | Sort-Object | Should -Be ($expected.Name | Sort-Object)
        foreach ($parameter in $documented) {
            $parameter.Description | Should -Not -BeNullOrEmpty -Because "-$($parameter.Name) needs a description"
            $aliases = $command.Parameters[$parameter.Name].Aliases
            $parameter.Aliases | Sort-Object | Should -Be ($aliases | Sort-Object) -Because "these are the aliases of -$($parameter.Name)"
        }
    }

    It 'shows its page in Get-Help' {
        if (-not (Test-Path (Join-Path $root en-US GuestMemory.PowerShell.dll-Help.xml))) {
            Set-ItResult -Skipped -Because 'the help was not built: that needs the module Microsoft.PowerShell.PlatyPS'
        }
        $synopsis = Get-Section (Get-Page $name) SYNOPSIS
        $help = Get-Help $name -Full
        # Without what is only Markdown, and however the lines are broken.
        $help.Synopsis.Trim() -replace '`' -replace '\s+', ' ' | Should -Be ($synopsis -replace '`' -replace '\s+', ' ')
        @($help.examples.example).Count | Should -BeGreaterOrEqual 2
    }
}
