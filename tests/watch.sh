#!/usr/bin/env bash
# Runs a command and watches that it goes on: tests/watch.sh SECONDS LOG COMMAND [ARGUMENTS]
#
# The command's output goes to LOG and to this one's output. When nothing has been added to it for SECONDS, the command hangs: the
# stacks of all its threads are added (what the kernel says of each, native ones by gdb, managed ones out of a dump by
# dotnet-dump; a minute for all of them), the command is ended with all that it started, and this ends with 124. Else this ends as
# the command did. What takes longer says so before, by a line "watch: N s: REASON": then it may be silent for N seconds.
# The watch is a process of its own, since the whole of a .NET process stands still while a collection waits for one thread.
set -uo pipefail

limit=$1 log=$2
shift 2
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# A command, for so many seconds at most, and no longer than the stacks may take in all.
within() {
    local seconds=$1
    shift
    (( deadline - SECONDS < seconds )) && seconds=$(( deadline - SECONDS ))
    (( seconds > 0 )) && timeout --kill-after=2 "$seconds" "$@" </dev/null 2>&1
}

# The process, and all that it started.
tree() {
    local child
    echo "$1"
    for child in $(cat "/proc/$1/task"/*/children 2>/dev/null); do
        tree "$child"
    done
}

# What the kernel knows of each thread; asks nothing of the process, which may not be able to answer.
kernel_stacks() {
    local process deadline=$(( SECONDS + 60 ))
    echo
    echo "HANGS: nothing has been written for $2 s."
    for process in $(tree "$1"); do
        [[ -d /proc/$process ]] || continue
        echo "--- process $process: $(tr '\0' ' ' <"/proc/$process/cmdline" 2>/dev/null)"
        kernel_stacks "$process"
        echo "--- process $process: native stacks"
        native_stacks "$process"
        echo "--- process $process: managed stacks"
        (managed_stacks "$process")
    done
    echo "--- end of stacks"
}

: >"$log"
"$@" >>"$log" 2>&1 </dev/null &
command=$!
tail --quiet --lines=+1 --follow --pid="$command" "$log" &
output=$!
trap 'kill $(tree "$command") 2>/dev/null; exit 130' INT TERM

while kill -0 "$command" 2>/dev/null; do
    sleep 1 &
    wait -n "$command" $! 2>/dev/null
    allowed=$limit
    [[ $(tail --lines=1 "$log") =~ ^watch:\ ([0-9]+)\ s ]] && allowed=${BASH_REMATCH[1]}
    if (( $(date +%s) - $(stat -c %Y "$log") >= allowed )) && kill -0 "$command" 2>/dev/null; then
        stacks "$command" "$allowed" >>"$log" 2>&1
        kill -KILL $(tree "$command") 2>/dev/null
        wait "$command" "$output" 2>/dev/null
        exit 124
    fi
done
wait "$output"
wait "$command"
