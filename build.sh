#!/usr/bin/env bash
# Finds PowerShell 7.6 ($PWSH, the PATH, or as a .NET tool) and hands over to build.ps1: ./build.sh TASK [arguments].
# Where there is none, Build, Test and Demo still run, for the library alone. build.ps1 says what the tasks are.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

export DOTNET_NOLOGO=1 DOTNET_CLI_TELEMETRY_OPTOUT=1
[[ -t 1 ]] || export NO_COLOR=1

say() { printf 'build.sh: %s\n' "$*" >&2; }

# Is "$@" a PowerShell that can run the module? Says why not, where there is one at all.
is_usable() {
    local version
    version=$("$@" --version 2>/dev/null </dev/null) || { say "'$*' does not run"; return 1; }
    if ! [[ $version =~ ^PowerShell\ ([0-9]+)\.([0-9]+) ]]; then
        say "'$*' is no PowerShell"
        return 1
    fi
    if (( BASH_REMATCH[1] < 7 || (BASH_REMATCH[1] == 7 && BASH_REMATCH[2] < 6) )); then
        say "'$*' is $version, and 7.6 is needed"
        return 1
    fi
}

# Sets pwsh to the command that starts PowerShell, or to nothing.
find_powershell() {
    local -a candidates=()
    [[ -z ${PWSH:-} ]] || candidates+=("$PWSH")
    [[ -z $(type -P pwsh) ]] || candidates+=("$(type -P pwsh)")
    for candidate in "${candidates[@]}"; do
        if is_usable "$candidate"; then
            pwsh=("$candidate")
            return
        fi
    done
    pwsh=()
    if timeout 90 dotnet tool restore </dev/null >/dev/null 2>&1 && is_usable dotnet tool run pwsh --; then
        pwsh=(dotnet tool run pwsh --)
    fi
}

build() {
    dotnet build GuestMemory.slnx --configuration Release --nologo --verbosity quiet
}

test_library() {
    local results=artifacts/test-results passed failed skipped
    rm -rf -- "$results"
    tests/library.sh Release "$results" || true
    read -r passed failed skipped < <(tr -cd '0-9 ' <"$results/library.json") || true
    # No count at all is a failure.
    passed=${passed:-0} failed=${failed:-1} skipped=${skipped:-0}

    shopt -s nullglob
    local -a suites=(tests/Pester/*.Tests.ps1 tests/Integration/*.Tests.ps1)
    if (( ${#suites[@]} > 0 )); then
        echo "Skipped: ${#suites[@]} Pester files: no PowerShell 7.6."
        skipped=$(( skipped + ${#suites[@]} ))
    fi
    echo "$passed passed, $failed failed, $skipped skipped"
    (( failed == 0 ))
}

if ! type -P dotnet >/dev/null; then
    say 'the .NET 10 SDK is needed, and there is no dotnet on the PATH'
    exit 2
fi
if ! dotnet --version >/dev/null 2>&1; then
    say 'the .NET 10 SDK is needed, and dotnet has none that global.json accepts (see dotnet --list-sdks)'
    exit 2
fi

[[ ${1:-} != -[Tt]ask ]] || shift
task=${1:-Build}
(( $# == 0 )) || shift

find_powershell
if (( ${#pwsh[@]} > 0 )); then
    exec "${pwsh[@]}" -NoProfile -File build.ps1 -Task "$task" "$@"
fi

say 'no PowerShell 7.6 can be had ($PWSH, PATH, dotnet tool restore): doing what the .NET library alone can do'
case ${task,,} in
    build) build ;;
    test) build && test_library ;;
    demo) build && dotnet run --configuration Release --no-build --project examples/SnapshotRestore -- "$@" ;;
    *) say "$task needs PowerShell 7.6"; exit 3 ;;
esac
