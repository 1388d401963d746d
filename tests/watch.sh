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
    local task
    for task in /proc/"$1"/task/*; do
        echo "thread ${task##*/} '$(cat "$task/comm")' $(grep -s ^State: "$task/status" | cut -f 2) in $(cat "$task/wchan"), syscall $(cat "$task/syscall")"
        sed 's/^/    /' "$task/stack"
    done 2>/dev/null
}

native_stacks() {
    if ! type -P gdb >/dev/null; then
        echo "no native stacks: gdb is missing ('apt-get install gdb')"
        return
    fi
    within 20 gdb -nx -p "$1" -batch -ex 'set pagination off' -ex 'thread apply all bt 64' | grep -v '^\[New LWP\|^warning: ' ||
        echo "gdb did not end in time"
}

managed_stacks() {
    local dump
    grep -q libcoreclr "/proc/$1/maps" 2>/dev/null || return
    cd "$root"
    if ! within 20 dotnet tool run dotnet-dump --version >/dev/null; then
        echo "no managed stacks: dotnet-dump is missing ('dotnet tool restore'), or did not start in time"
        return
    fi
    dump=$(mktemp -u)
    # The dump is read by the program that makes it, not by the process; where a thread cannot be stopped, it never comes.
    if within 20 dotnet tool run dotnet-dump collect --type Mini -p "$1" -o "$dump" && [[ -s $dump ]]; then
        within 30 dotnet tool run dotnet-dump analyze "$dump" -c 'clrstack -all' -c exit |
            grep -v 'Xunit[.]v3[.]\|CompilerServices[.]Async\|InlinedCallFrame\|MethodBaseInvoker' | cut -c 1-240 ||
            echo "dotnet-dump did not read the dump in time"
    else
        echo "dotnet-dump made no dump in time"
    fi
    rm -f -- "$dump"
}

# The stacks of a process and all that it started, for a minute at most.
stacks() {
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
