#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a guest: makes it look like a node, does the job that lies in /proxy-agent, reports
# the result on the second serial port, and ends the guest.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
export PATH=/proxy-agent/target/release:/usr/sbin:/usr/bin:/sbin:/bin HOME=/ TERM="${TERM:-vt100}"
mkdir -p /dev/pts /dev/shm /run /tmp
# Nothing is mounted here: the clone that the tests were built in may lie below, and its files with it.
chmod 1777 /tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up

report() { echo "$*" > /dev/ttyS1; }
finish() {
    report "end $1"
    sync
    reboot -f
    sleep 3600
}

. /proxy-agent/environment

# Modules that nothing asks for by itself. One that the kernel's command line forbids is missing.
for module in nf_conntrack nf_conntrack_netlink br_netfilter ip_vs ip_vs_rr; do
    /sbin/modprobe -q "$module"
done

# Each line of the plan is a file of tests, the program that has them, how many seconds it may take, and its arguments.
run_plan() {
    outcome=0
    while read -r name program limit arguments; do
        echo "==== $name"
        before=$(cut -d. -f1 /proc/uptime)
        # shellcheck disable=SC2086
        timeout -s KILL "$limit" "/proxy-agent/target/release/deps/$program" $arguments < /dev/null
        status=$?
        echo "==== end of $name"
        [ "$status" = 0 ] || outcome=1
        report "tests $name $status $(($(cut -d. -f1 /proc/uptime) - before))"
    done < /proxy-agent/plan
    for record in /proxy-agent/target/skipped/*.txt; do
        [ -f "$record" ] || continue
        name=${record##*/}
        report "skipped ${name%.txt} $(tr '\n' ' ' < "$record")"
    done
    return "$outcome"
}

measure_verifier() {
    verifier /sys/fs/bpf/verifier > /tmp/verifier || return 1
    while read -r line; do report "verifier $line"; done < /tmp/verifier
}

cd /
report "up $(uname -r)"
case "$JOB" in
    nothing) finish 0 ;;
    shell)
        echo "Linux $(uname -r) in a guest: \`demo\` shows the agent, \`proxy-agent --help\`; \`exit\` ends the guest."
        setsid -c /bin/bash -i < /dev/ttyS0 > /dev/ttyS0 2>&1
        finish $?
        ;;
    command)
        setsid -c /bin/sh /proxy-agent/command < /dev/ttyS0 > /dev/ttyS0 2>&1
        finish $?
        ;;
    verifier)
        measure_verifier
        finish $?
        ;;
    tests)
        run_plan
        outcome=$?
        measure_verifier || outcome=1
        finish "$outcome"
        ;;
esac
finish 127
