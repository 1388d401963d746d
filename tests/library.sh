#!/usr/bin/env bash
# Runs the library's built tests under the watch: tests/library.sh CONFIGURATION RESULTS [FILTERS OF THE RUNNER]
#
# Prints what failed, and what was skipped and why, and counts both in RESULTS/library.json. RESULTS/library.log has the start
# and the end of every test, and the stacks of one that hung; RESULTS/library.trx is the report. All is counted from the log,
# which is there however the tests end; RESULTS/library.failed is what failed, out of it. Where RESULTS/native has the handler's
# program, and no filters are given, the tests of its processes run again with that, and have RESULTS/library-native.log.
set -uo pipefail

configuration=$1 results=$2
shift 2
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
suite=$root/tests/GuestMemory.Core.Tests/bin/$configuration/net10.0/GuestMemory.Core.Tests.dll
mkdir -p -- "$results"

# A test that hangs costs three minutes: two of silence, and one at most for the stacks. No test takes two minutes by itself but
# those whose time is set from outside.
longest=0
for seconds in "${GUESTMEMORY_FUZZ_SECONDS:-}" "${GUESTMEMORY_STRESS_SECONDS:-}"; do
    (( ${seconds%%.*} > longest )) 2>/dev/null && longest=${seconds%%.*}
done
limit=${GUESTMEMORY_HANG_SECONDS:-$(( longest > 60 ? longest + 60 : 120 ))}

passed=0 failed=0 skipped=0

# run LOG [FILTERS OF THE RUNNER]
run() {
    local log=$results/$1.log trx=$results/$1.trx status fails
    shift
    "$root/tests/watch.sh" "$limit" "$log" dotnet "$suite" -noLogo -noColor -reporter verbose -result-trx "$trx" "$@" | awk '
        /^    [^ ].* \[(STARTING|FINISHED|NOT RUN)\]/ { next }
        /^    [^ ].* \[SKIP\]$/ { skipped = substr($0, 5, length($0) - 11); next }
        skipped { sub(/^ */, ""); print "Skipped: " skipped ": " $0; skipped = ""; fflush(); next }
        { print; fflush() }'
    status=${PIPESTATUS[0]}

    count() { grep -c "^    [^ ].* \[$1\]" "$log"; }
    fails=$(count FAIL)
    awk '/^    [^ ]/ { failed = / \[FAIL\]$/ } failed && (/^    [^ ]/ || /^     /)' "$log" >>"$results/library.failed"
    skipped=$(( skipped + $(count SKIP) ))
    passed=$(( passed + $(count FINISHED) - fails - $(count SKIP) - $(count 'NOT RUN') ))
    if (( status == 124 )); then
        # What has begun and has not ended, of what the log says in order.
        sed -n 's/^    \([^ ].*\) \[\(STARTING\|FINISHED\)\].*/\2 \1/p' "$log" |
            awk '{ name = substr($0, index($0, " ") + 1) } /^STARTING/ { running[name] = 1 } /^FINISHED/ { delete running[name] }
                 END { for (name in running) print "Failed: hangs: " name }' | tee -a "$results/library.failed"
    fi
    if (( status != 0 && (fails == 0 || status > 1) )); then
        (( status == 124 )) || echo "Failed: the library's tests ended with exit code $status." | tee -a "$results/library.failed"
        fails=$(( fails + 1 ))
    fi
    failed=$(( failed + fails ))
}

run library "$@"

# Those of the handler's processes again, with the program that was compiled ahead in place of the library that dotnet runs.
native=$results/native
if (( $# == 0 )) && [[ -d $native ]]; then
    beside=$(dirname -- "$suite")/uffdhost
    trap 'rm -rf -- "$beside"' EXIT
    cp -r -- "$native" "$beside"
    echo "The tests of the handler's processes, with the program that was compiled ahead:"
    # Its processes start in a fraction of the time: a twentieth of what a release is tried with (CONTRIBUTING.md).
    export GUESTMEMORY_CRASH_ROUNDS=${GUESTMEMORY_CRASH_ROUNDS:-5} GUESTMEMORY_UPGRADE_ROUNDS=${GUESTMEMORY_UPGRADE_ROUNDS:-5}
    run library-native -class '*.HostTests' -class '*.SystemdTests' -class '*.UpgradeTests' -class '*.SurvivalTests' -class '*.ManyVmsTests'
fi

echo "{ \"passed\": $passed, \"failed\": $failed, \"skipped\": $skipped }" >"$results/library.json"
echo "The library's tests: $passed passed, $failed failed, $skipped skipped."
(( failed == 0 ))
