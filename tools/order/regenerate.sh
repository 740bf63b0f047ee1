#!/usr/bin/env bash
# Finds out which functions three servers and a client agent enter, first idle, then while all common requests are
# made once, and writes them to tools/order/functions in that order; build.rs asks the linker to lay them so.
#
#   tools/order/regenerate.sh [WEFT]          a release build; by default the one in the target folder
#   tools/order/regenerate.sh --known [WEFT]  only says how many of the names written down still exist
#
# To be run before a release, and when `weft-bench idle` has grown. Uses 127.0.18.1 to 127.0.18.4.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/lib.sh
here=tools/order

known=false
[ "${1:-}" = --known ] && { known=true; shift; }
weft=${1:-${CARGO_TARGET_DIR:-target}/release/weft}
[ -x "$weft" ] || die "$weft is not there: cargo build --release --bin weft"
need_deb nm:binutils python3:python3-minimal curl:curl dig:bind9-dnsutils

if $known; then
  nm "$weft" | awk '{print $3}' | sort -u >"${TMPDIR:-/tmp}/weft-names.$$"
  sort -u "$here/functions" | comm -12 - "${TMPDIR:-/tmp}/weft-names.$$" | wc -l |
    awk -v of="$(wc -l <"$here/functions")" '{printf "%d of %d names exist (%d %%)\n", $1, of, 100 * $1 / of}'
  rm -f "${TMPDIR:-/tmp}/weft-names.$$"
  exit 0
fi

work=$(mktemp -d)
servers=()
stop() {
  [ ${#servers[@]} -eq 0 ] || kill "${servers[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT

# start NAME ADDRESS FLAGS... runs one agent.
start() {
  local name=$1 address=$2
  shift 2
  "$weft" agent -node "$name" -bind "$address" -client "$address" -data-dir "$work/$name" \
    -retry-join 127.0.18.1 -retry-join 127.0.18.2 -retry-join 127.0.18.3 "$@" >"$work/$name.log" 2>&1 &
  servers+=($!)
}

# Every request a small installation makes all day, once or twice.
requests() {
  local at=$1:8500 session
  for i in 1 2; do
    curl -s -X PUT -d value "$at/v1/kv/a/$i"
    for read in kv/a/$i "kv/a?recurse" "kv/a/$i?stale" catalog/services catalog/nodes agent/services agent/members \
      agent/self "agent/metrics?format=prometheus" status/leader; do
      curl -s "$at/v1/$read"
    done
    curl -s -X PUT -d "{\"Name\":\"web$i\",\"Port\":80,\"Tags\":[\"a\"],\"Check\":{\"TTL\":\"30s\"}}" \
      "$at/v1/agent/service/register"
    curl -s -X PUT "$at/v1/agent/check/pass/service:web$i"
    curl -s "$at/v1/health/service/web$i?passing"
    curl -s "$at/v1/health/service/web$i?cached"
    curl -s "$at/v1/health/service/web$i?index=1"
    curl -s "$at/v1/health/service/web$i?index=1000000&wait=1s"
    session=$(curl -s -X PUT -d '{"TTL":"10s"}' "$at/v1/session/create" | cut -d'"' -f4)
    curl -s -X PUT -d value "$at/v1/kv/lock?acquire=$session"
    curl -s -X PUT "$at/v1/session/renew/$session"
    curl -s -X PUT "$at/v1/session/destroy/$session"
    for question in "web$i.service.consul A" "web$i.service.consul SRV" "n1.node.consul A"; do
      # shellcheck disable=SC2086 # name and type
      dig +short -p 8600 "@$1" $question
    done
  done >/dev/null
}

step "starting three servers and a client agent"
for i in 1 2 3; do start "n$i" "127.0.18.$i" -server -bootstrap-expect 3; done
start n4 127.0.18.4
wait_for 30 sh -c 'curl -s 127.0.18.1:8500/v1/status/leader | grep -q 8300'
sleep 6

for i in 1 2 3 4; do
  step "watching agent $i idle for 15 s"
  "$here/touched.py" "${servers[$((i - 1))]}" 15 >"$work/idle.$i"
done
for i in 1 2 3 4; do
  step "watching agent $i while it is asked for everything"
  (sleep 4 && requests "127.0.18.$i") &
  asker=$!
  "$here/touched.py" "${servers[$((i - 1))]}" 20 >"$work/busy.$i"
  wait "$asker"
done

cat "$work"/idle.* "$work"/busy.* | awk '!seen[$0]++' >"$here/functions"
step "$(wc -l <"$here/functions") functions written; build again"
