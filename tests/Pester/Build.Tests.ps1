# build.ps1, as a process of its own.

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'build.ps1' {
    It 'ends with exit code 130 where Ctrl+C ends it' {
        # As dotnet, and afl-fuzz, which ends with exit code 0 then.
        $folder = (New-Item -ItemType Directory "$TestDrive/bin").FullName
        foreach ($name in 'dotnet', 'afl-fuzz') {
            "#!/bin/sh`ntrap 'exit 0' INT`n: >'$TestDrive/begun'`nwhile :; do sleep 0.1; done" | Set-Content "$folder/$name"
            chmod +x "$folder/$name"
        }
        $pwsh = @(Get-PowerShellCommand)
        $pwsh[0] = (Get-Command $pwsh[0] -CommandType Application)[0].Source
        # In a group of its own, as a terminal signals it; who runs the tests in the background ignores the signal.
        $start = [Diagnostics.ProcessStartInfo]::new('setsid', [string[]] (@('env', '--default-signal=INT') + $pwsh + '-NoProfile', '-NonInteractive', '-File', "$root/build.ps1", '-Task', 'Fuzz', 'mapping-list'))
        $start.Environment['PATH'] = "${folder}:$env:PATH"
        $start.RedirectStandardInput = $start.RedirectStandardOutput = $true
        $process = [Diagnostics.Process]::Start($start)
        try {
            Wait-Until { $process.HasExited -or (Test-Path "$TestDrive/begun") }
            $process.HasExited | Should -BeFalse
            bash -c 'kill -INT -- "-$0"' $process.Id
            $process.WaitForExit(60000) | Should -BeTrue
            $process.ExitCode | Should -Be 130
        }
        finally {
            if (-not $process.HasExited) {
                bash -c 'kill -KILL -- "-$0"' $process.Id
            }
        }
    }
}
