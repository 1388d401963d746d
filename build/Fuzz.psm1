# Coverage-guided fuzzing of the parsers of untrusted bytes: afl-fuzz on the targets of tests/Fuzz.
Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'

$root = Split-Path $PSScriptRoot
$project = Join-Path $root tests Fuzz
$folder = Join-Path $root artifacts fuzz
$program = Join-Path $project bin Release net10.0 GuestMemory.Fuzz.dll   # as it is built, to show what is found

# SharpFuzz starts the program again by a command line without quotes: it lies elsewhere where the clone's path has a space.
$published = $root -match '\s' ? [IO.Directory]::CreateTempSubdirectory('gm-fuzz-').FullName : (Join-Path $folder bin)
$instrumented = Join-Path $published GuestMemory.Fuzz.dll

$aflEnvironment = @{
    AFL_SKIP_BIN_CHECK                      = 1        # SharpFuzz instruments the library, not the program
    AFL_SKIP_CPUFREQ                        = 1        # a virtual machine has no governor
    AFL_NO_AFFINITY                         = 1        # other programs run here too
    AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES   = 1        # SharpFuzz tells of crashes, whatever core_pattern says
    AFL_FORKSRV_INIT_TMOUT                  = 120000   # the runtime starts, on a busy machine
    AFL_NO_UI                               = [Console]::IsOutputRedirected ? 1 : $null
}

function Invoke-Program {
    & dotnet @args
    if ($LASTEXITCODE -ne 0) {
        throw "dotnet $($args[0]) ended with exit code $LASTEXITCODE."
    }
}

function Build-Target {
    Invoke-Program build $project --configuration Release --nologo --verbosity quiet
    Invoke-Program tool restore | Out-Null
    Remove-Item $published -Recurse -Force -ErrorAction Ignore
    Invoke-Program publish $project --configuration Release --no-build --nologo --verbosity quiet --output $published
    foreach ($library in 'GuestMemory.Core.dll', 'GuestMemory.UffdHost.dll') {
        Invoke-Program tool run sharpfuzz (Join-Path $published $library) | Out-Null
    }
}

function Get-TargetName {
    # The program lists a target a line, its name first.
    & dotnet $program | ForEach-Object { ($_ -split ' ')[0] }
}

function Get-Finding([string] $Output) {
    Get-ChildItem (Join-Path $Output default 'crashes*'), (Join-Path $Output default 'hangs*') -File -ErrorAction Ignore | Where-Object Name -Like 'id*'
}

function Invoke-Afl([string] $Name, [int] $Seconds, [string] $Output) {
    # What an earlier run has found stays, under another name.
    if (Get-Finding $Output) {
        Move-Item $Output "$Output.$((Get-Item $Output).LastWriteTime.ToString('yyyyMMdd-HHmmss'))"
    }
    Remove-Item $Output -Recurse -Force -ErrorAction Ignore
    $null = New-Item -ItemType Directory -Force $Output
    # A second of the processor is the limit, which the target watches itself; ten by the clock are a hang.
    $arguments = @('-i', (Join-Path $project corpus $Name), '-o', $Output, '-V', $Seconds, '-t', 10000, '-m', 'none', '-G', 65536)
    $dictionary = Join-Path $project dictionaries "$Name.dict"
    if (Test-Path $dictionary) {
        $arguments += '-x', $dictionary
    }
    $log = Join-Path $Output afl.log
    $saved = @{}
    foreach ($variable in $aflEnvironment.Keys) {
        $saved.$variable = [Environment]::GetEnvironmentVariable($variable)
        [Environment]::SetEnvironmentVariable($variable, $aflEnvironment.$variable)
    }
    try {
        if ($aflEnvironment.AFL_NO_UI) {
            & afl-fuzz @arguments -- dotnet $instrumented $Name *> $log
        }
        else {
            & afl-fuzz @arguments -- dotnet $instrumented $Name | Out-Host
        }
    }
    finally {
        foreach ($variable in $saved.Keys) {
            [Environment]::SetEnvironmentVariable($variable, $saved.$variable)
        }
    }
    if ($LASTEXITCODE -ne 0) {
        Get-Content $log -Tail 20 -ErrorAction Ignore | Out-Host
        throw "afl-fuzz $Name ended with exit code $LASTEXITCODE."
    }
}

function Invoke-Target([string] $Name, [int] $Seconds) {
    # Fuzzes a target; the number of findings.
    $output = Join-Path $folder $Name
    $seeds = @(Get-ChildItem (Join-Path $project corpus $Name) -File)
    & dotnet $program $Name @($seeds.FullName) | Out-Host
    if ($LASTEXITCODE -eq 3) {
        Write-Host "Skipped: $Name"
        return 0
    }
    if ($LASTEXITCODE -ne 0) {
        Write-Host "${Name}: the corpus finds something already"
        return 1
    }

    Invoke-Afl $Name $Seconds $output
    $figures = @{}
    foreach ($line in Get-Content (Join-Path $output default fuzzer_stats)) {
        $key, $value = $line -split ' *: *', 2
        $figures.$key = $value
    }
    $found = @(Get-Finding $output)
    Write-Host ('{0}: {1} s, {2} execs ({3:0}/s), {4} paths, {5} edges, {6} findings' -f
        $Name, $figures.run_time, $figures.execs_done, [double] $figures.execs_per_sec, $figures.corpus_count, $figures.edges_found, $found.Count)
    foreach ($file in $found) {
        # Without instrumentation, so that it shows what happens in the product; nothing where only many runs in one process do it.
        $message = & timeout 60 dotnet $program $Name $file.FullName 2>&1 | Select-Object -First 8
        Write-Host "  $($file.FullName)"
        Write-Host "    $($message ? ($message -join "`n    ") : 'not by itself')"
    }
    $found.Count
}

function Invoke-Fuzz([string[]] $Name, [int] $Seconds) {
    if (-not (Get-Command afl-fuzz -CommandType Application -ErrorAction Ignore)) {
        throw "afl-fuzz is not on the PATH. Install the package afl++ ('apt-get install afl++')."
    }
    try {
        Build-Target
        $targets = @(Get-TargetName)
        if (-not $Name) {
            & dotnet $program | Out-Host
            return
        }
        foreach ($unknown in $Name.Where{ $_ -cnotin $targets + 'all' }) {
            throw "There is no target '$unknown'; there are $($targets -join ', '), and all."
        }

        $each = $Seconds
        if ('all' -cin $Name) {
            $Name = $targets
            $each = [Math]::Max(5, [int] [Math]::Floor($Seconds / $targets.Count))
        }
        $count = 0
        foreach ($target in $Name) {
            $count += Invoke-Target $target $each
        }
        if ($count -gt 0) {
            throw "$count findings; they lie in $folder/TARGET/default/crashes and hangs."
        }
    }
    finally {
        Remove-Item $published -Recurse -Force -ErrorAction Ignore
    }
}

Export-ModuleMember -Function Invoke-Fuzz
