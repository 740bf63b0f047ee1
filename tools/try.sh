#!/usr/bin/env bash
# Builds weft, starts a dev server with HTTP API and DNS, registers a service and resolves it.
# On a terminal the server keeps running until Ctrl-C; elsewhere (or with --once) it is stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/lib.sh

once=false
[ "${1:-}" = --once ] && once=true
[ -t 1 ] || once=true

need_deb curl:curl dig:bind9-dnsutils
step "building weft (release; the first time takes some minutes)"
cargo build --release --bin weft
weft=${CARGO_TARGET_DIR:-target}/release/weft

step "starting a dev server: HTTP on 127.0.0.1:8500, DNS on 127.0.0.1:8600"
log=$(mktemp)
"$weft" agent -dev -node demo >"$log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true' EXIT
wait_for 10 curl -sf "http://127.0.0.1:8500/v1/health/node/demo?passing" || { cat "$log"; die "the server did not come up; its log is above"; }

step "registering the service web, and telling its check that all is well"
curl -sf -X PUT http://127.0.0.1:8500/v1/agent/service/register \
  -d '{"Name":"web","ID":"web-1","Tags":["v1"],"Port":8080,"Check":{"CheckID":"web-alive","TTL":"30s","Status":"passing"}}'
curl -sf -X PUT http://127.0.0.1:8500/v1/agent/check/pass/web-alive
"$weft" catalog services -tags

step "resolving it: an address, and address with port"
address=$(dig +short @127.0.0.1 -p 8600 web.service.consul A)
srv=$(dig +short @127.0.0.1 -p 8600 web.service.consul SRV)
echo "web.service.consul A    $address"
echo "web.service.consul SRV  $srv"
[ "$address" = 127.0.0.1 ] || die "expected 127.0.0.1; the server's log is $log"

step "keeping a key"
"$weft" kv put greeting 'hello from weft'
"$weft" kv get greeting

if $once; then
  echo; echo "It works. Stopping the server."
else
  cat <<TEXT

It works, and goes on running. Try from another terminal:
  curl -s 127.0.0.1:8500/v1/health/service/web?pretty
  dig @127.0.0.1 -p 8600 v1.web.service.weft SRV
  $weft members
  $weft kv put lock/me x && $weft session create
  curl -X PUT 127.0.0.1:8500/v1/agent/check/fail/web-alive     # and resolve again
Ctrl-C stops it.
TEXT
  wait $server
fi
