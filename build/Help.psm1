# The help in en-US/, which is made of the pages in docs/ and committed, so that Get-Help works where PlatyPS is not to be had.
Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'

$root = Split-Path $PSScriptRoot
$mamlName = 'GuestMemory.PowerShell.dll-Help.xml'
$namespaceOf = @{
    command = 'http://schemas.microsoft.com/maml/dev/command/2004/10'
    maml    = 'http://schemas.microsoft.com/maml/2004/10'
    dev     = 'http://schemas.microsoft.com/maml/dev/2004/10'
}

function Get-CommandPage([string] $Folder) {
    Get-ChildItem (Join-Path $Folder docs cmdlets *-*.md) | Sort-Object Name -Culture ''
}

function Get-PageMark([string] $Path) {
    # Stands in the MAML before the help of a cmdlet: the page that the help was made of, and its digest.
    " docs/cmdlets/$(Split-Path -Leaf $Path) SHA-256 $((Get-FileHash -LiteralPath $Path).Hash) "
}

function Get-TopicText([string] $Path) {
    (Get-Content -LiteralPath $Path) -notmatch '^```' -replace '^#+ +(.*)', '$1'
}

function Get-StaleHelp([string] $Folder = $root) {
    # The pages of docs/ that the help in en-US/ was not made of, and help whose page is gone; nothing where the help is current.
    $maml = Join-Path $Folder en-US $mamlName
    $marks = @(if (Test-Path -LiteralPath $maml) {
        ([xml] (Get-Content -Raw -LiteralPath $maml)).SelectNodes('/*/comment()').ForEach{ $_.Value }
    })
    $expected = @(Get-CommandPage $Folder | ForEach-Object { Get-PageMark $_.FullName })
    $differing = @($expected.Where{ $_ -cnotin $marks }) + @($marks.Where{ $_ -cnotin $expected })
    $differing.ForEach{ ($_.Trim() -split ' ')[0] } | Select-Object -Unique

    foreach ($topic in Get-ChildItem (Join-Path $Folder docs about_*.md)) {
        $made = Join-Path $Folder en-US "$($topic.BaseName).help.txt"
        if (-not (Test-Path -LiteralPath $made) -or (Compare-Object (Get-TopicText $topic) (Get-Content -LiteralPath $made) -SyncWindow 0)) {
            "docs/$($topic.Name)"
        }
    }
}

function Write-ModuleHelp {
    # Makes the help anew. PlatyPS is the manifest of the module Microsoft.PowerShell.PlatyPS; Scratch a folder for what it writes.
    param([string] $PlatyPS, [string] $Scratch, [string] $Folder = $root)
    $target = New-Item -ItemType Directory -Force (Join-Path $Folder en-US)
    foreach ($topic in Get-ChildItem (Join-Path $Folder docs about_*.md)) {
        Set-Content (Join-Path $target "$($topic.BaseName).help.txt") (Get-TopicText $topic)
    }

    Import-Module $PlatyPS -Verbose:$false
    $commands = Import-MarkdownCommandHelp -LiteralPath (Get-CommandPage $Folder).FullName
    $exported = $commands | Export-MamlCommandHelp -OutputFolder $Scratch -Force
    $xml = [xml] (Get-Content -Raw $exported)
    Repair-Maml $xml $commands
    Add-PageMark $xml (Join-Path $Folder docs cmdlets)
    $xml.Save((Join-Path $target $mamlName))
}

function Get-MamlNamespace([xml] $Maml) {
    $namespaces = [Xml.XmlNamespaceManager]::new($Maml.NameTable)
    $namespaceOf.GetEnumerator().ForEach{ $namespaces.AddNamespace($_.Key, $_.Value) }
    , $namespaces
}

function Add-PageMark([xml] $Maml, [string] $Pages) {
    $namespaces = Get-MamlNamespace $Maml
    foreach ($command in $Maml.SelectNodes('/*/command:command', $namespaces)) {
        $name = $command.SelectSingleNode('command:details/command:name', $namespaces).InnerText
        $mark = $Maml.CreateComment((Get-PageMark (Join-Path $Pages "$name.md")))
        $null = $command.ParentNode.InsertBefore($mark, $command)
    }
}

function Repair-Maml([xml] $Maml, [object[]] $Command) {
    # PlatyPS 1.0 leaves Markdown fences, control characters and an empty link in the help, and types with their namespaces.
    $namespaces = Get-MamlNamespace $Maml

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
            $parts = [ordered] @{ introduction = $introduction; remarks = $remarks -replace '(?m)^```.*\r?\n?' }
            foreach ($part in $parts.Keys) {
                $node = $nodes[$i].SelectSingleNode("*[local-name() = '$part']")
                $node.RemoveAll()
                foreach ($text in "$($parts[$part])".Trim(), '') {
                    $para = $node.AppendChild($Maml.CreateElement('maml', 'para', $namespaceOf.maml))
                    $para.InnerText = $text
                }
            }
            $nodes[$i].SelectSingleNode('dev:code', $namespaces).InnerText = "$code".TrimEnd()
        }
    }
}

Export-ModuleMember Get-StaleHelp, Write-ModuleHelp
