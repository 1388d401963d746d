#!/bin/bash
# Runs in the machine, as the only thing beside systemd: restarts, kills and hangs the handler while a VMM touches its pages.
# Each line "check: ok NAME" or "check: not ok NAME: WHY" is a test of Systemd.Tests.ps1.
unit=uffd@web
socket=/run/uffd/web.sock
image=/srv/vm/web.mem

main() { systemctl show --property MainPID --value "$unit"; }
workers() { cat /proc/"$(main)"/task/*/children; }

# wait COMMAND...: until it succeeds.
until_true() {
    local i
    for (( i = 0; i < 600; i++ )); do
        "$@" && return
        sleep 0.1
    done
    echo "not within a minute: $*"
    return 1
}

is_serving() { [[ $(systemctl show --property ActiveState,SubState --value "$unit" | tr '\n' ' ') == 'active running ' ]]; }
is_replaced() { is_serving && [[ $(main) != "$1" ]]; }
are_replaced() { [[ -n $(workers) && $(workers) != "$1" ]]; }
# The service has a network of its own.
is_listened_at() { [[ $(cat "/proc/$(main)/net/unix" 2>/dev/null) == *"$socket"* ]]; }

# test NAME COMMAND...
test_that() {
    local name=$1 why
    shift
    if why=$("$@" 2>&1); then
        echo "check: ok $name"
    else
        echo "check: not ok $name: ${why//$'\n'/; }"
        journalctl --no-pager --unit "$unit" --lines 20
    fi
}

# COMMAND is run while a VMM touches page after page, one in 20 ms, and the rest when it is done; the VMM has to end with every byte right.
while_touched() {
    local client status=0
    touch /tmp/slow
    /opt/check/uffd-client "$socket" "$(( $(stat -c %s "$image") >> 20 ))" --image "$image" --pause 20000 --while /tmp/slow >/tmp/client 2>&1 &
    client=$!
    # It is in before anything happens.
    until_true has_vm || return
    "$@" || status=$?
    if ! kill -0 "$client" 2>/dev/null; then
        echo "the VMM had ended before: $(cat /tmp/client)"
        return 1
    fi
    rm /tmp/slow
    wait "$client" || { echo "the VMM: $(cat /tmp/client)"; return 1; }
    grep -o '"max_us":[0-9.]*' /tmp/client | sed "s/^/check: longest touch of '$*': /" >/dev/console
    return "$status"
}

has_vm() { [[ $(systemctl show --property StatusText --value "$unit") =~ [1-9] ]]; }

start() { systemctl start "$unit" && is_serving && until_true is_listened_at; }
serve() { /opt/check/uffd-client "$socket" "$(( $(stat -c %s "$image") >> 20 ))" --image "$image"; }

# SIGNAL TIMES: to the main process; systemd starts another.
signal_main() {
    local i before
    for (( i = 0; i < $2; i++ )); do
        before=$(main)
        kill -"$1" "$before"
        until_true is_replaced "$before" || return
    done
}

signal_worker() {
    local i before
    for (( i = 0; i < $2; i++ )); do
        until_true are_replaced '' || return
        before=$(workers)
        kill -"$1" $before
        until_true are_replaced "$before" || return
    done
}

has_ended() { ! kill -0 "$1" 2>/dev/null; }

# TIMES: the program at the path takes over; the command comes back when it has.
reload() {
    local i before
    for (( i = 0; i < $1; i++ )); do
        before=$(main)
        systemctl reload "$unit" || return
        until_true is_replaced "$before" && until_true has_ended "$before" || return
    done
}

restart() {
    local i before
    for (( i = 0; i < $1; i++ )); do
        before=$(main)
        systemctl restart "$unit" && is_replaced "$before" || return
    done
}

stop() { systemctl stop "$unit" && ! is_listened_at; }

useradd --system uffd
test_that 'starts when it can be connected to' start
test_that 'serves every byte' serve
test_that 'goes on when its worker is killed' while_touched signal_worker KILL 3
test_that 'goes on when its main process is killed' while_touched signal_main KILL 3
test_that 'is restarted by the watchdog when its main process stands still' while_touched signal_main STOP 1
test_that 'hands the VMs to the new program when it is reloaded' while_touched reload 3
test_that 'keeps the VMs when it is restarted' while_touched restart 3
test_that 'goes on after all that when its main process is killed' while_touched signal_main KILL 1
test_that 'stops' stop
echo 'check: done'
