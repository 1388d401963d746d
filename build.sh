#!/usr/bin/env bash
# Finds PowerShell 7.6 ($PWSH, the PATH, or as a .NET tool) and hands over to build.ps1: ./build.sh TASK [arguments].
# build.ps1 says what the tasks are.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

export DOTNET_NOLOGO=1 DOTNET_CLI_TELEMETRY_OPTOUT=1
[[ -t 1 ]] || export NO_COLOR=1

say() { printf 'build.sh: %s\n' "$*" >&2; }

# Is "$@" a PowerShell that can run the module? Says why not.
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
    local candidate output
    for candidate in "${PWSH:-}" "$(type -P pwsh)"; do
        if [[ -n $candidate ]] && is_usable "$candidate"; then
            pwsh=("$candidate")
            return
        fi
    done
    output=$(dotnet tool restore 2>&1 </dev/null) || say "dotnet tool restore: $output"
    pwsh=(dotnet tool run pwsh --)
    is_usable "${pwsh[@]}" || pwsh=()
}

if ! type -P dotnet >/dev/null; then
    say 'the .NET 10 SDK is needed, and there is no dotnet on the PATH'
    exit 2
fi
if ! output=$(dotnet --version 2>&1); then
    say "the .NET 10 SDK is needed, and dotnet --version says: $output"
    exit 2
fi

# PowerShell finds none of its modules where / is not among the mounts, as in a chroot of a plain folder. There / is mounted on
# itself, in a namespace that this run alone sees.
if ! grep -q '^[^ ]* / ' /proc/self/mounts; then
    exec unshare --mount --propagation unchanged sh -c 'mount --bind / / && exec "$@"' sh "$PWD/build.sh" "$@"
fi

[[ ${1:-} != -[Tt]ask ]] || shift
task=${1:-Build}
(( $# == 0 )) || shift

find_powershell
if (( ${#pwsh[@]} == 0 )); then
    say 'PowerShell 7.6 is needed, and is neither $PWSH, nor on the PATH, nor to be had by dotnet tool restore'
    exit 3
fi
exec "${pwsh[@]}" -NoProfile -File build.ps1 -Task "$task" "$@"
