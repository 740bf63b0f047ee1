#!/bin/sh
# Power cuts on a loop-mounted ext4, and what the Raft log stores make of them.
#
#   tests/powercut.sh [CUTS]        CUTS per store, 3 if absent
#
# One cut: format a small image, mount it, run a writer that prints each sequence number only once
# it is durable, shut the file system down without flushing its journal, unmount, mount again,
# reopen the store and compare. Every store is cut twice per image life: the second writer goes on
# from what the first cut left (wal and sled), so recovery is itself cut.
# Stores take turns, and a plain append+fdatasync control runs beside them as the instrument's own error.
#
# Verdict: more than one acknowledged record lost in a cut, a hole, or a store that does not open = failed.
# The control may lose at most one as well; if it loses more the instrument is broken (exit 2).
#
# Needs root, loop devices, mkfs.ext4 and xfs_io (package xfsprogs).
# POWERCUT_BIN: a built `powercut` example (default: built here in release mode).
# POWERCUT_STORES: default "wal sled control".  POWERCUT_SECONDS: writing time before a cut, default 2.
set -u

cuts=${1:-3}
stores=${POWERCUT_STORES:-wal sled control}
seconds=${POWERCUT_SECONDS:-2}
here=$(cd "$(dirname "$0")/.." && pwd)

[ "$(id -u)" = 0 ] || { echo "powercut: needs root (loop mounts)" >&2; exit 2; }
for tool in xfs_io mkfs.ext4 losetup; do
    command -v "$tool" >/dev/null || { echo "powercut: $tool is missing; install xfsprogs e2fsprogs mount" >&2; exit 2; }
done
bin=${POWERCUT_BIN:-}
if [ -z "$bin" ]; then
    (cd "$here" && cargo build --quiet --release -p weft-raft --example powercut) || exit 2
    bin=${CARGO_TARGET_DIR:-$here/target}/release/examples/powercut
fi

work=$(mktemp -d)
mnt=$work/mnt
mkdir "$mnt"
writer=
cleanup() {
    [ -n "$writer" ] && kill -9 "$writer" 2>/dev/null
    umount "$mnt" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Runs the writer, cuts the power under it and mounts again. Leaves the last number printed in $acked.
cut_power() {
    : >"$work/acks"
    "$bin" write "$mnt/log" --store "$1" --seconds 60 >"$work/acks" 2>"$work/errors" &
    writer=$!
    # It must have acknowledged something, or the cut proves nothing.
    patience=100
    while [ ! -s "$work/acks" ] && [ "$patience" -gt 0 ]; do sleep 0.1; patience=$((patience - 1)); done
    # Not always the same moment: anything from a quarter of the time to all of it.
    pause=$(awk -v s="$seconds" -v n="$2" 'BEGIN { srand(n * 7919); print s * (0.25 + 0.75 * rand()) }')
    sleep "$pause"
    xfs_io -x -c shutdown "$mnt" || { echo "powercut: the file system cannot be shut down" >&2; exit 2; }
    # The writer meets an error by itself; an orderly close can write nothing any more.
    kill -9 "$writer" 2>/dev/null
    wait "$writer" 2>/dev/null
    writer=
    acked=$(tail -n 1 "$work/acks")
    [ -n "$acked" ] || acked=-1
    umount "$mnt" && mount -o loop "$work/image" "$mnt" || { echo "powercut: cannot mount again" >&2; exit 2; }
}

failed=0
broken=0
cut=0
for store in $stores; do eval "lost_$store=0 acks_$store=0 cuts_$store=0 bad_$store=0"; done

# One cut and its verdict.
judge() {
    cut=$((cut + 1))
    cut_power "$1" "$cut"
    verdict=ok
    if kept=$("$bin" verify "$mnt/log" --store "$1" 2>"$work/why"); then
        lost=$((acked - kept))
        [ "$lost" -gt 0 ] || lost=0
        [ "$lost" -le 1 ] || verdict=FAILED
    else
        kept=none lost=$((acked + 1)) verdict="FAILED: $(tail -n 1 "$work/why")"
    fi
    # A writer that never got to write has proved nothing.
    [ "$acked" -ge 0 ] || verdict="FAILED: nothing was acknowledged: $(tail -n 1 "$work/errors")"
    echo "cut $cut store=$1 life=$2 acked=$acked kept=$kept lost=$lost $verdict"
    eval "lost_$1=\$((lost_$1 + lost)) acks_$1=\$((acks_$1 + acked + 1)) cuts_$1=\$((cuts_$1 + 1))"
    if [ "$verdict" != ok ]; then
        eval "bad_$1=\$((bad_$1 + 1))"
        if [ "$1" = control ]; then broken=1; else failed=1; fi
    fi
}

round=0
while [ "$round" -lt "$cuts" ]; do
    for store in $stores; do
        eval "done=\$cuts_$store"
        [ "$done" -lt "$cuts" ] || continue
        truncate -s 400M "$work/image"
        mkfs.ext4 -q -F "$work/image" && mount -o loop "$work/image" "$mnt" || { echo "powercut: cannot make an image" >&2; exit 2; }
        judge "$store" 1
        eval "done=\$cuts_$store"
        if [ "$store" != control ] && [ "$done" -lt "$cuts" ]; then judge "$store" 2; fi
        umount "$mnt"
        rm "$work/image"
    done
    round=$((round + 1))
done

for store in $stores; do
    eval "echo \"summary store=$store cuts=\$cuts_$store acknowledged=\$acks_$store lost=\$lost_$store failed=\$bad_$store\""
done
[ "$broken" = 0 ] || { echo "powercut: the control lost more than one record: the instrument cannot be trusted" >&2; exit 2; }
exit "$failed"
