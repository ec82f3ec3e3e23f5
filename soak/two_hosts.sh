#!/bin/sh
# Run a command under mpiexec on two hosts, which are network namespaces of this machine.
#
#     soak/two_hosts.sh -n 4 python script.py
#
# The first half of the ranks runs on the host "left" (10.213.0.1), the rest on "right"
# (10.213.0.2). Each is a node of its own for MPI, with its host name and its own /dev/shm; a veth
# pair joins them, nothing else reaches them, and MPI crosses by TCP alone. Processes, files and
# memory are this machine's.
#
# Needs root, ip (iproute2), unshare and setsid (util-linux) and MPICH's mpiexec; exits with 77
# where hosts cannot be made. Else the status is mpiexec's. The hosts are gone when this ends.

LEFT=10.213.0.1
RIGHT=10.213.0.2
PATH=$PATH:/usr/sbin:/sbin

# run_on ADDRESS COMMAND...: become a command on a host.
run_on() {
    side=left
    if [ "$1" = $RIGHT ]; then side=right; fi
    shift
    # shellcheck disable=SC2016 # for the inner shell
    exec setsid --wait ip netns exec "$TWO_HOSTS-$side" unshare --uts --ipc --mount \
        sh -c 'hostname "$0" && mount -t tmpfs tmpfs /dev/shm && exec "$@"' $side "$@"
}

# mpiexec starts this script in place of ssh: with options, a host and a line for its shell.
if [ -n "$TWO_HOSTS" ]; then
    while [ "${1#-}" != "$1" ]; do shift; done
    host=$1
    shift
    run_on "$host" sh -c "$*"
fi

skip() {
    echo "two_hosts.sh: $1" >&2
    exit 77
}

if [ "$1" != -n ] || [ $# -lt 3 ] || ! [ "$2" -ge 1 ] 2>/dev/null; then
    echo "usage: two_hosts.sh -n RANKS COMMAND..." >&2
    exit 2
fi
ranks=$2
shift 2
for tool in ip unshare setsid mpiexec; do
    command -v $tool >/dev/null || skip "there is no '$tool' command"
done
mpiexec --version 2>/dev/null | grep -q HYDRA || skip "mpiexec is not MPICH's"

export TWO_HOSTS="largesparse-$$"

clean_up() {
    trap '' INT TERM HUP
    for side in left right; do
        pids=$(ip netns pids "$TWO_HOSTS-$side" 2>/dev/null)
        # shellcheck disable=SC2086 # several numbers
        if [ -n "$pids" ]; then kill -KILL $pids 2>/dev/null; fi
        ip netns delete "$TWO_HOSTS-$side" 2>/dev/null
    done
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

for side in left right; do
    ip netns add "$TWO_HOSTS-$side" || skip "no right to make network namespaces; run as root"
    ip -n "$TWO_HOSTS-$side" link set lo up
done
ip -n "$TWO_HOSTS-left" link add veth0 type veth peer name veth0 netns "$TWO_HOSTS-right" ||
    skip "the kernel makes no veth pair"
ip -n "$TWO_HOSTS-left" address add $LEFT/24 dev veth0
ip -n "$TWO_HOSTS-right" address add $RIGHT/24 dev veth0
for side in left right; do
    ip -n "$TWO_HOSTS-$side" link set veth0 up || skip "a link between namespaces does not work"
done
for side in left right; do # this takes a moment, and UCX passes over a link that is down
    until ip -n "$TWO_HOSTS-$side" link show veth0 | grep -q 'state UP'; do sleep 0.05; done
done

hosts=$LEFT:$(((ranks + 1) / 2))
if [ "$ranks" -gt 1 ]; then hosts=$hosts,$RIGHT:$((ranks / 2)); fi
# MPICH has two network libraries, and UCX, its default, would find a way through memory.
export UCX_TLS=tcp UCX_NET_DEVICES=veth0 FI_PROVIDER=tcp FI_TCP_IFACE=veth0
# A shell's background jobs ignore Ctrl-C, unless told; Python then never sees one.
run_on $LEFT env --default-signal=INT,QUIT \
    mpiexec -n "$ranks" -hosts $hosts -launcher ssh -launcher-exec "$(realpath "$0")" "$@" &
job=$!
trap 'kill -INT $job' INT
trap 'kill -TERM $job' TERM HUP
while :; do # a signal ends `wait`, but not the job
    wait $job
    status=$?
    kill -0 $job 2>/dev/null || break
done
exit $status
