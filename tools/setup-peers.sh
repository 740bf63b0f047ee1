#!/usr/bin/env bash
# Brings the programs weft is compared with onto this machine.  Idempotent, and quick when all is there.
#
#   tools/setup-peers.sh                 everything
#   tools/setup-peers.sh differential    Consul 1.8.7 only (the oracle of tests/differential and tests/clients)
#   tools/setup-peers.sh bench           Consul, etcd and the load tools of bench/
#   tools/setup-peers.sh clients         Consul, Prometheus, and HAProxy, dig, curl, Python's venv and npm for tests/clients
#
# Consul and Prometheus are the packages of Debian 11, unpacked below $PEERS (default ~/.cache/weft-peers) and never
# installed (that Prometheus is the last of Debian's that knows consul_sd_configs); the rest are Debian packages of the running release, whose daemons are not started.  Which mirror is asked is
# decided by this machine's own apt configuration: nothing here names one.  Needs root only to install packages.
set -euo pipefail
PATH=$PATH:/usr/sbin   # Debian's daemons are there, and not every user's PATH has it

PEERS=${PEERS:-$HOME/.cache/weft-peers}
CONSUL=$PEERS/consul/usr/bin/consul
what=${1:-all}

say() { printf '%s\n' "setup-peers: $*" >&2; }

# Takes package:program pairs; packages whose program is not there yet are installed, without starting any daemon.
# The program counts, not the package: a Node.js from elsewhere brings an npm that Debian's would conflict with.
install_packages() {
  local missing=() pair policy=/usr/sbin/policy-rc.d made=
  for pair in "$@"; do
    command -v "${pair#*:}" >/dev/null 2>&1 || missing+=("${pair%%:*}")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" -ne 0 ]; then
    say "these packages are missing and installing them needs root: ${missing[*]}"
    return 1
  fi
  say "installing ${missing[*]}"
  apt-get update -qq
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    made=$policy
  fi
  local status=0
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || status=$?
  [ -z "$made" ] || rm -f "$made"
  return $status
}

# unpack PACKAGE... from Debian 11: apt gets a private set of lists whose suites are renamed, so the machine's own
# configuration and package state are left as they are.  Each goes to $PEERS/PACKAGE, and its program is of that name.
unpack() {
  local package missing=()
  for package in "$@"; do
    [ -x "$PEERS/$package/usr/bin/$package" ] || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local work file
  work=$(mktemp -d)
  # shellcheck disable=SC2064  # the path is meant now
  trap "rm -rf '$work'" EXIT
  mkdir -p "$work/parts" "$work/lists/partial" "$work/archives/partial"
  : >"$work/sources.list"
  [ ! -e /etc/apt/sources.list ] || sed 's/bookworm/bullseye/g' /etc/apt/sources.list >"$work/sources.list"
  for file in /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
    [ ! -e "$file" ] || sed 's/bookworm/bullseye/g' "$file" >"$work/parts/${file##*/}"
  done
  local apt=(apt-get -qq
    -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts="$work/parts"
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o Dir::Cache::Archives="$work/archives"
    -o APT::Sandbox::User=root)
  # A suite the older release lacks is a warning here; the download below decides.
  "${apt[@]}" update || true
  mkdir -p "$PEERS"
  for package in "${missing[@]}"; do
    say "unpacking $package into $PEERS"
    (cd "$work" && "${apt[@]}" download "$package")
    rm -rf "$PEERS/$package.new" "${PEERS:?}/$package"
    dpkg-deb -x "$work/$package"_*.deb "$PEERS/$package.new"
    mv "$PEERS/$package.new" "$PEERS/$package"
  done
  rm -rf "$work"
  trap - EXIT
}

bench_tools=(etcd-server:etcd etcd-client:etcdctl dnsperf:dnsperf wrk:wrk)
client_tools=(haproxy:haproxy dnsutils:dig curl:curl jq:jq python3-venv:python3 npm:npm)

case $what in
  differential) unpack consul ;;
  bench)
    unpack consul
    install_packages "${bench_tools[@]}"
    ;;
  clients)
    unpack consul prometheus
    install_packages "${client_tools[@]}"
    ;;
  all)
    unpack consul prometheus
    install_packages "${bench_tools[@]}" "${client_tools[@]}"
    ;;
  *)
    say "unknown set '$what': differential, bench, clients, or nothing for all"
    exit 2
    ;;
esac

# `version` of another release would make every comparison meaningless.
found=$("$CONSUL" version | sed -n 1p)
[ "$found" = "Consul v1.8.7" ] || { say "$CONSUL is '$found', not Consul v1.8.7: remove $PEERS/consul and run this again"; exit 1; }
say "ready: $found in $PEERS"
