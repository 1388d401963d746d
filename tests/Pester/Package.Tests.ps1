# The module and the library as they are packaged, installed, updated and removed: all in a home of its own.

if (-not (Get-Command gcc -CommandType Application -ErrorAction Ignore)) {
    Describe 'The packages' {
        It 'are made, installed, updated and removed' {
            Set-ItResult -Skipped -Because "needs gcc, which links the handler's program: apt-get install gcc libc6-dev"
        }
    }
    return
}

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module "$root/GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
    $pwsh = @(Get-PowerShellCommand) + '-NoProfile', '-NonInteractive'

    # Short, since sockets come into it.
    $homeFolder = [IO.Directory]::CreateTempSubdirectory('gm-').FullName
    $modules = "$homeFolder/.local/share/powershell/Modules/GuestMemory"
    $packages = "$root/artifacts/packages"
    $version = (Import-PowerShellDataFile "$root/GuestMemory.psd1").ModuleVersion
    $higher = '{0}.{1}.0' -f ([version] $version).Major, (([version] $version).Minor + 1)

    Write-Host 'watch: 1200 s: everything is built and packaged'
    $program, $arguments = $pwsh + '-File', "$root/build.ps1", '-Task', 'Package'
    $said = & $program @arguments 2>&1 | Out-String
    $LASTEXITCODE | Should -Be 0 -Because $said

    function Invoke-Shell([string] $Script) {
        # A fresh shell of a user who has nothing but this home; gives what it shows.
        $file = "$homeFolder/script.ps1"
        "`$ErrorActionPreference = 'Stop'`n$Script" | Set-Content $file
        $hidden = ('PSModulePath', 'XDG_DATA_HOME', 'XDG_CONFIG_HOME', 'XDG_CACHE_HOME').ForEach{ "--unset=$_" }
        $shown = & env --chdir $homeFolder @hidden "HOME=$homeFolder" NO_COLOR=1 @pwsh -File $file 2>&1 | Out-String
        $LASTEXITCODE | Should -Be 0 -Because $shown
        $shown
    }

    # The handler's program, as it lies in the module.
    $hostProgram = "bin/uffdhost/linux-$([Runtime.InteropServices.RuntimeInformation]::OSArchitecture.ToString().ToLowerInvariant())/GuestMemory.UffdHost"

    function Read-Package([string] $Name) {
        # The names of its files, its description, and its README.
        $archive = [IO.Compression.ZipFile]::OpenRead("$packages/$Name")
        try {
            $text = @{}
            foreach ($entry in $archive.Entries.Where{ $_.FullName -like '*.nuspec' -or $_.FullName -ceq 'README.md' }) {
                $text[[IO.Path]::GetExtension($entry.FullName)] = [IO.StreamReader]::new($entry.Open()).ReadToEnd()
            }
            @{ Files = $archive.Entries.FullName; Metadata = ([xml] $text.'.nuspec').package.metadata; Readme = $text.'.md' }
        }
        finally {
            $archive.Dispose()
        }
    }

    function Get-ProgramPath([int] $ProcessId) {
        [IO.FileInfo]::new("/proc/$ProcessId/exe").LinkTarget
    }
}

AfterAll {
    Get-UffdHandler | Stop-UffdHandler -WarningAction Ignore
    Remove-Item $homeFolder -Recurse -Force
}

Describe 'The package of the module' {
    BeforeAll {
        $package = Read-Package "GuestMemory.$version.nupkg"
    }

    It 'has what a gallery shows' {
        $manifest = Import-PowerShellDataFile "$root/GuestMemory.psd1"
        $data = $manifest.PrivateData.PSData
        $package.Metadata.id | Should -Be GuestMemory
        $package.Metadata.version | Should -Be $version
        $package.Metadata.description | Should -Be $manifest.Description
        $package.Metadata.licenseUrl | Should -Be $data.LicenseUri
        $data.Tags | ForEach-Object { -split $package.Metadata.tags | Should -Contain $_ }
    }

    It 'has the newest section of the change log as release notes' {
        $headings = @((Get-Content "$root/CHANGELOG.md") -like '## *')
        $notes = $package.Metadata.releaseNotes
        $notes | Should -BeLike "$([WildcardPattern]::Escape($headings[0]))*"
        $notes | Should -Not -Match ([regex]::Escape($headings[1]))
    }

    It 'has <_>' -ForEach 'icon.png', 'README.md', 'CHANGELOG.md', 'LICENSE', 'en-US/GuestMemory.PowerShell.dll-Help.xml', "bin/uffdhost/linux-$([Runtime.InteropServices.RuntimeInformation]::OSArchitecture.ToString().ToLowerInvariant())/GuestMemory.UffdHost", 'bin/uffdhost/GuestMemory.UffdHost.dll' {
        $package.Files | Should -Contain $_
    }

    It 'has no link that leads nowhere' {
        $package.Metadata.projectUrl | Should -BeNullOrEmpty
        $package.Readme | Should -Match 'New-MmapRegion'
        $package.Readme | Should -Not -Match '\]\((?!https?:|#)'
    }
}

Describe 'The size of the package' {
    It 'is under 15 MB' {
        (Get-Item "$packages/GuestMemory.$version.nupkg").Length | Should -BeLessThan 15MB
        (Get-Item "$root/artifacts/GuestMemory-$version.tar.gz").Length | Should -BeLessThan 15MB
    }
}

Describe 'The package of the library' {
    BeforeAll {
        $package = Read-Package "GuestMemory.Core.$version.nupkg"
    }

    It 'has the library, its documentation, and what a gallery shows' {
        $package.Files | Should -Contain lib/net10.0/GuestMemory.Core.dll
        $package.Files | Should -Contain lib/net10.0/GuestMemory.Core.xml
        $package.Files | Should -Contain $package.Metadata.readme
        $package.Files | Should -Contain $package.Metadata.icon
        $package.Metadata.license.'#text' | Should -Be MIT
        $package.Readme | Should -Match 'New-MmapRegion'
        $package.Readme | Should -Not -Match '\]\((?!https?:|#)'
    }

    It 'has symbols beside it, which do not say where they were built' {
        (Read-Package "GuestMemory.Core.$version.snupkg").Files | Should -Contain lib/net10.0/GuestMemory.Core.pdb
        $archive = [IO.Compression.ZipFile]::OpenRead("$packages/GuestMemory.Core.$version.snupkg")
        $stream = [IO.MemoryStream]::new()
        $archive.GetEntry('lib/net10.0/GuestMemory.Core.pdb').Open().CopyTo($stream)
        $archive.Dispose()
        $stream.Position = 0
        $symbols = [Reflection.Metadata.MetadataReaderProvider]::FromPortablePdbStream($stream).GetMetadataReader()
        $sources = @($symbols.Documents).ForEach{ $symbols.GetString($symbols.GetDocument($_).Name) }
        $sources | Should -Contain '/_/src/GuestMemory.Core/Addressing/GuestAddress.cs'
        $sources -notlike '/_/*' | Should -BeNullOrEmpty
    }
}

# One after the other, each on what the one before has left.
Describe 'The module of a folder that is registered as a repository' {
    It 'is installed' {
        Invoke-Shell "
            Register-PSResourceRepository folder -Uri '$packages' -Trusted
            Install-PSResource GuestMemory -Repository folder
            (Get-InstalledPSResource GuestMemory).Version.ToString()" | Should -Match "(?m)^$([regex]::Escape($version))$"
        "$modules/$version/GuestMemory.psd1" | Should -Exist
    }

    It 'runs the five minutes of the README' {
        Skip-UnlessSupported $userfaultfd
        $section = [regex]::Match((Get-Content -Raw "$root/README.md"), '(?ms)^## In five minutes\s*$(.*?)(?=^## )').Groups[1].Value
        $fences = @{}
        foreach ($kind in 'powershell', 'output') {
            $fences.$kind = [regex]::Matches($section, '(?ms)^```' + $kind + '\s*$(.*?)^```').ForEach{ $_.Groups[1].Value.Trim() }
        }
        # The module is the installed one, and the socket one that any user may make.
        $script = ($fences.powershell -join "`n").Replace('./GuestMemory.psd1', 'GuestMemory').Replace('/run/vm1.sock', "$homeFolder/vm1.sock")
        $shown = Invoke-Shell $script
        $shown | Should -BeLike "*$([WildcardPattern]::Escape($fences.output[0]))*"
        $shown | Should -Match 'Serving'
        "$homeFolder/vm1.sock" | Should -Not -Exist
    }

    It 'shows its help' {
        Invoke-Shell 'Get-Help New-MmapRegion -Full; Get-Help about_GuestMemory' | Should -Match '(?s)-GuestAddress.*ABOUT_GUESTMEMORY|about_GuestMemory'
    }

    It 'starts its own program as the handler' {
        Invoke-Shell "
            [IO.File]::WriteAllBytes('$homeFolder/vm.mem', [byte[]]::new(65536))
            `$null = Start-UffdHandler '$homeFolder/old.sock' '$homeFolder/vm.mem'"
        $handler = Get-UffdHandler -SocketPath "$homeFolder/old.sock"
        $handler.State | Should -Be Listening
        foreach ($process in $handler.ProcessId, $handler.WorkerProcessId) {
            Get-ProgramPath $process | Should -Be "$modules/$version/$hostProgram"
        }
    }

    It 'is updated, and the new version speaks with the handler of the old one' {
        $source = "$TestDrive/GuestMemory"
        Copy-Item -Recurse "$root/artifacts/GuestMemory/$version" $source
        $text = Get-Content -Raw "$source/GuestMemory.psd1"
        $text -replace "(?<=ModuleVersion\s*=\s*')[^']+", $higher | Set-Content "$source/GuestMemory.psd1"
        $null = New-Item -ItemType Directory "$TestDrive/packages"
        Invoke-Shell "
            Compress-PSResource '$source' '$TestDrive/packages'
            Set-PSResourceRepository folder -Uri '$TestDrive/packages'
            Update-PSResource GuestMemory -Repository folder"
        Invoke-Shell "
            Import-Module GuestMemory
            (Get-Module GuestMemory).Version.ToString()
            Get-UffdHandler -SocketPath '$homeFolder/old.sock' | Stop-UffdHandler -PassThru | ForEach-Object State
            `$null = Start-UffdHandler '$homeFolder/new.sock' '$homeFolder/vm.mem'" | Should -Match "(?m)^$([regex]::Escape($higher))\s+Stopped\s*$"
        $handler = Get-UffdHandler -SocketPath "$homeFolder/new.sock"
        Get-ProgramPath $handler.ProcessId | Should -Be "$modules/$higher/$hostProgram"
        $handler | Stop-UffdHandler
    }

    It 'is uninstalled without a rest' {
        Invoke-Shell "
            Uninstall-PSResource GuestMemory -Version '*'
            Get-Module -ListAvailable GuestMemory | ForEach-Object Path" | Should -BeNullOrEmpty
        $modules | Should -Not -Exist
    }
}
