#!/usr/bin/env bash
# Runs the library's built tests under the watch: tests/library.sh CONFIGURATION RESULTS [FILTERS OF THE RUNNER]
#
# Prints what failed, and what was skipped and why, and counts both in RESULTS/library.json. RESULTS/library.log has the start
# and the end of every test, and the stacks of one that hung; RESULTS/library.trx is the report. All is counted from the log,
# which is there however the tests end.
set -uo pipefail

configuration=$1 results=$2
shift 2
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
suite=$root/tests/GuestMemory.Core.Tests/bin/$configuration/net10.0/GuestMemory.Core.Tests.dll
log=$results/library.log
mkdir -p -- "$results"

# A test that hangs costs three minutes: two of silence, and one at most for the stacks. No test takes two minutes by itself but
# those whose time is set from outside.
longest=0
for seconds in "${GUESTMEMORY_FUZZ_SECONDS:-}" "${GUESTMEMORY_STRESS_SECONDS:-}"; do
    (( ${seconds%%.*} > longest )) 2>/dev/null && longest=${seconds%%.*}
done
limit=${GUESTMEMORY_HANG_SECONDS:-$(( longest > 60 ? longest + 60 : 120 ))}

"$root/tests/watch.sh" "$limit" "$log" dotnet "$suite" -noLogo -noColor -reporter verbose -result-trx "$results/library.trx" "$@" | awk '
    /^    [^ ].* \[(STARTING|FINISHED|NOT RUN)\]/ { next }
    /^    [^ ].* \[SKIP\]$/ { skipped = substr($0, 5, length($0) - 11); next }
    skipped { sub(/^ */, ""); print "Skipped: " skipped ": " $0; skipped = ""; fflush(); next }
    { print; fflush() }'
status=${PIPESTATUS[0]}

count() { grep -c "^    [^ ].* \[$1\]" "$log"; }
failed=$(count FAIL) skipped=$(count SKIP)
passed=$(( $(count FINISHED) - failed - skipped - $(count 'NOT RUN') ))
if (( status == 124 )); then
    # What has begun and has not ended, of what the log says in order.
    sed -n 's/^    \([^ ].*\) \[\(STARTING\|FINISHED\)\].*/\2 \1/p' "$log" |
        awk '{ name = substr($0, index($0, " ") + 1) } /^STARTING/ { running[name] = 1 } /^FINISHED/ { delete running[name] }
             END { for (name in running) print "Failed: hangs: " name }'
fi
if (( status != 0 && (failed == 0 || status > 1) )); then
    (( status == 124 )) || echo "Failed: the library's tests ended with exit code $status."
    failed=$(( failed + 1 ))
fi
echo "{ \"passed\": $passed, \"failed\": $failed, \"skipped\": $skipped }" >"$results/library.json"
echo "The library's tests: $passed passed, $failed failed, $skipped skipped."
(( failed == 0 ))
