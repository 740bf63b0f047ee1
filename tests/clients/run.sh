#!/usr/bin/env bash
# Real clients against a server, then against an agent that is none: py-consul, npm's consul, dig, curl, Prometheus
# and HAProxy.
#
#   tests/clients/run.sh BINARY              starts a server on 127.0.0.21 and, when all have spoken to it, an agent
#                                            of it on 127.0.0.22; ends both afterwards
#   tests/clients/run.sh --address 127.0.0.1 uses the agent that is already there (ports 8500 and 8600)
#
# Prometheus and HAProxy listen on the agent's address too, on ports 9090, 9201 and 9202, and their targets on
# 127.0.75.0/24 and 127.0.76.0/24.  The clients are kept in $CLIENTS (default ~/.cache/weft-clients) and $PEERS, outside
# the tree.  One line per check; exit 1 when
# any fails, 2 when nothing could be checked.
set -euo pipefail

PATH=$PATH:/usr/sbin   # HAProxy is there, and not every user's PATH has it
here=$(cd "$(dirname "$0")" && pwd)
cache=${CLIENTS:-$HOME/.cache/weft-clients}
prometheus=${PEERS:-$HOME/.cache/weft-peers}/prometheus/usr/bin/prometheus
server=127.0.0.21
agent=127.0.0.22
address=$server
pids=()
work=$(mktemp -d)

cleanup() {
  local pid
  for pid in "${pids[@]}"; do
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap cleanup EXIT

fail_setup() {
  printf 'clients: %s\n' "$*" >&2
  exit 2
}

# --- the clients, once ---------------------------------------------------------------------------------------------
install_clients() {
  mkdir -p "$cache"
  if [ ! -e "$cache/python/ready" ]; then
    python3 -m venv "$cache/python" || fail_setup "python3 -m venv: install python3-venv (tools/setup-peers.sh clients)"
    "$cache/python/bin/pip" install -q --disable-pip-version-check 'py-consul==1.8.0'
    touch "$cache/python/ready"
  fi
  if [ ! -e "$cache/node/ready" ]; then
    mkdir -p "$cache/node"
    printf '{"private":true}\n' >"$cache/node/package.json"
    (cd "$cache/node" && npm install --silent --no-audit --no-fund 'consul@2.0.1')
    touch "$cache/node/ready"
  fi
}

# --- the server and its agent --------------------------------------------------------------------------------------
start() { # start BINARY NODE ADDRESS FLAGS...
  local binary=$1 node=$2 at=$3 pid tries
  shift 3
  "$binary" agent -node="$node" -bind="$at" -client="$at" -data-dir="$work/$node" "$@" >"$work/$node.log" 2>&1 &
  pid=$!
  pids+=("$pid")
  for tries in $(seq 300); do
    kill -0 "$pid" 2>/dev/null || { tail -20 "$work/$node.log" >&2; fail_setup "$node ended"; }
    if curl -sf "http://$at:8500/v1/health/node/$node" | grep -q '"serfHealth"'; then
      return 0
    fi
    sleep 0.1
  done
  tail -20 "$work/$node.log" >&2
  fail_setup "$node was not ready after $((tries / 10)) s"
}

# --- checks with dig and curl --------------------------------------------------------------------------------------
passed=0
failed=0
verdict() { # verdict NAME GOT WANTED-PATTERN
  if [[ $2 == $3 ]]; then
    passed=$((passed + 1))
    printf 'ok    %s\n' "$1"
  else
    failed=$((failed + 1))
    printf 'FAIL  %s: got `%s`, wanted `%s`\n' "$1" "$2" "$3"
  fi
}

# The same when it may take a moment: an agent's view follows a change by some milliseconds.
verdict_soon() { # verdict_soon NAME WANTED-PATTERN COMMAND...
  local name=$1 wanted=$2 got tries
  shift 2
  for tries in $(seq 200); do
    got=$("$@")
    [[ $got == $wanted ]] && break
    sleep 0.05
  done
  verdict "$name" "$got" "$wanted"
}

ask() { dig +time=2 +tries=2 +short -p 8600 "@$address" "$@" | sort | paste -sd' '; }
header() { grep -i "^$1:" "$work/headers" | tr -d '\r' | cut -d' ' -f2-; }

check_dig_and_curl() {
  local base=http://$address:8500 got
  # a service on a node of its own, so that names and addresses are known
  curl -sf -X PUT "$base/v1/catalog/register" -d '{"Node":"shell-1","Address":"10.77.0.1",
    "Service":{"ID":"shop-1","Service":"shop","Tags":["blue"],"Port":8080},
    "Check":{"CheckID":"shop","Name":"shop","Status":"passing","ServiceID":"shop-1"}}' >"$work/out"
  verdict "curl: register in the catalog" "$(cat "$work/out")" true

  verdict_soon "dig: node A" 10.77.0.1 ask shell-1.node.consul A
  verdict_soon "dig: service A" 10.77.0.1 ask shop.service.consul A
  verdict "dig: service by tag" "$(ask blue.shop.service.consul A)" 10.77.0.1
  verdict "dig: service of an unknown tag" "$(ask red.shop.service.consul A)" ""
  verdict "dig: service SRV" "$(ask shop.service.consul SRV)" "1 1 8080 shell-1.node.dc1.consul."
  verdict "dig: RFC 2782 SRV" "$(ask _shop._blue.service.consul SRV)" "1 1 8080 shell-1.node.dc1.consul."
  verdict "dig: over TCP" "$(ask +tcp shop.service.consul A)" 10.77.0.1
  verdict "dig: with EDNS" "$(ask +bufsize=1232 shop.service.consul A)" 10.77.0.1
  verdict "dig: without EDNS" "$(ask +noedns shop.service.consul A)" 10.77.0.1
  verdict "dig: reverse" "$(ask -x 10.77.0.1)" "shell-1.node.dc1.consul."
  got=$(dig +time=2 -p 8600 "@$address" nothing.service.consul A | grep -o 'status: [A-Z]*')
  verdict "dig: an unknown service" "$got" "status: NXDOMAIN"
  got=$(dig +time=2 -p 8600 "@$address" shell-1.node.consul AAAA | grep -o 'status: [A-Z]*')
  verdict "dig: no such record" "$got" "status: NOERROR"

  curl -sf -X PUT "$base/v1/catalog/register" -d '{"Node":"shell-1","Address":"10.77.0.1",
    "Check":{"CheckID":"shop","Name":"shop","Status":"critical","ServiceID":"shop-1"}}' >"$work/out"
  verdict_soon "dig: a critical instance is hidden" "" ask shop.service.consul A
  got=$(curl -sf "$base/v1/health/service/shop?passing")
  verdict "curl: and is not passing" "$got" "\[\]"

  head -c 4096 /dev/zero | tr '\0' x | curl -sf -X PUT --data-binary @- "$base/v1/kv/clients/big" >"$work/out"
  curl -sf -D "$work/headers" -H 'Accept-Encoding: gzip' -o "$work/body.gz" "$base/v1/kv/clients/big"
  verdict "curl: gzip when asked" "$(header content-encoding)" gzip
  verdict "curl: and it unpacks" "$(gzip -dc "$work/body.gz" | head -c 13)" '\[\{"LockIndex"'
  verdict "curl: --compressed" "$(curl -sf --compressed "$base/v1/kv/clients/big?raw" | wc -c | tr -d ' ')" 4096
  got=$(curl -sf "$base/v1/kv/clients/big" | wc -l | tr -d ' ')
  verdict "curl: compact without ?pretty" "$got" 0
  got=$(curl -sf "$base/v1/kv/clients/big?pretty" | sed -n 2p)
  verdict "curl: four spaces with ?pretty" "$got" "    {"
  curl -s -D "$work/headers" -o /dev/null "$base/v1/kv/clients/none"
  verdict "curl: an index on 404" "$(header x-consul-index)" "[1-9]*"
  verdict "curl: the status of a missing key" "$(curl -s -o /dev/null -w '%{http_code}' "$base/v1/kv/clients/none")" 404
  verdict "curl: a wrong method" "$(curl -s -o /dev/null -w '%{http_code}' -X POST "$base/v1/kv/a" -d x)" 405
  verdict "curl: a body too large" "$(head -c 600000 /dev/zero | curl -s -o /dev/null -w '%{http_code}' -X PUT --data-binary @- "$base/v1/kv/a")" 413
  curl -sf -o "$work/snapshot.tgz" "$base/v1/snapshot"
  verdict "curl and tar: a snapshot archive" "$(tar -tzf "$work/snapshot.tgz" | sort | paste -sd' ')" "SHA256SUMS meta.json state.bin"
  verdict "curl: ten requests on one connection" \
    "$(curl -s -o /dev/null -w '%{num_connects}' "$base/v1/status/leader" $(printf -- "-o /dev/null $base/v1/status/leader %.0s" $(seq 9)))" "1000000000"
}

# --- run -----------------------------------------------------------------------------------------------------------
every_client() { # every_client NAME MEMBERS
  printf '== %s\n' "$1"
  check_dig_and_curl
  "$cache/python/bin/python" "$here/client.py" "$address" || failed=$((failed + 1))
  # The script lies outside the folder of modules, so it is told where they are.
  CLIENTS_NODE=$cache/node MEMBERS=$2 node "$here/client.mjs" "$address" || failed=$((failed + 1))
  python3 -B "$here/prometheus.py" "$address" "$prometheus" || failed=$((failed + 1))
  python3 -B "$here/haproxy.py" "$address" "$(command -v haproxy)" || failed=$((failed + 1))
}

for tool in dig curl npm python3 gzip tar haproxy "$prometheus"; do
  command -v "$tool" >/dev/null || fail_setup "$tool is missing: tools/setup-peers.sh clients"
done
case ${1:-} in
  --address)
    address=${2:?--address takes an address}
    install_clients
    every_client "the agent on $address" "$(curl -sf "http://$address:8500/v1/agent/members" | grep -o '"Status"' | wc -l)"
    ;;
  "" | -*) fail_setup "usage: $0 BINARY | --address ADDRESS" ;;
  *)
    binary=$(realpath "$1")
    [ -x "$binary" ] || fail_setup "$binary is no program"
    install_clients
    start "$binary" clients "$server" -server -bootstrap-expect=1
    every_client "a server" 1
    # Names and keys are what the first round left, as clients that move from one agent to another find them.
    start "$binary" through "$agent" -retry-join="$server"
    address=$agent
    every_client "an agent that is no server" 2
    ;;
esac

if [ $failed -gt 0 ]; then
  printf '%s\n' "clients: $failed failed"
  exit 1
fi
printf '%s\n' "clients: all passed ($passed by dig and curl)"
