#!/usr/bin/env bash
# Sets up and runs every test: formatting, lints, licences, unit and end-to-end tests, documentation,
# the comparison with Consul 1.8.7, real clients, and a short round of power cuts.
# Installs what it needs (Debian packages as root, cargo tools once into a cache outside the tree).
#   tools/test.sh              everything
#   tools/test.sh unit docs    only these stages
set -Eeuo pipefail
cd "$(dirname "$0")/.."
. tools/lib.sh
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
export CARGO_INCREMENTAL=0   # one build, thrown away or cached whole: incremental files only cost time here

TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
WEFT=$TARGET/debug/weft

stage_format() {
  cargo fmt --all --check
}

stage_lints() {
  cargo clippy --workspace --all-targets --quiet -- -D warnings
}

stage_deny() {
  need_cargo cargo-deny cargo-deny 0.20.2
  cargo deny --log-level error check licenses bans sources
}

stage_unit() {
  need_deb ip:iproute2 unshare:util-linux   # tests/pool_in_namespaces.rs
  cargo test --workspace --quiet
}

stage_docs() {
  need_cargo mdbook mdbook 0.5.4
  RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
  mdbook build docs --dest-dir "$(mktemp -d)"
  need_deb python3:python3 curl:curl dig:bind9-dnsutils unshare:util-linux
  cargo build --quiet --bin weft
  tests/docs/run.sh "$WEFT"
}

stage_differential() {
  tools/setup-peers.sh differential
  cargo build --quiet --bin weft
  local compare=(cargo run --quiet -p weft-differential -- --weft "$WEFT" --consul "${PEERS:-$HOME/.cache/weft-peers}/consul/usr/bin/consul")
  step "differential: servers are asked"
  "${compare[@]}"
  step "differential: agents that are no servers are asked"
  "${compare[@]}" --through-client
}

stage_clients() {
  tools/setup-peers.sh clients
  cargo build --quiet --bin weft
  tests/clients/run.sh "$WEFT"
}

stage_powercut() {
  need_deb xfs_io:xfsprogs mkfs.ext4:e2fsprogs
  cargo build --quiet -p weft-raft --example powercut
  POWERCUT_BIN=$TARGET/debug/examples/powercut tests/powercut.sh 3
}

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(format lints deny unit docs differential clients powercut)
for stage in "${stages[@]}"; do
  declare -F "stage_$stage" >/dev/null || die "no stage called $stage"
  step "$stage"
  # Not `stage || die`: that would switch off errexit inside the stage.
  trap 'printf "error: stage %s failed\n" "$stage" >&2' ERR
  "stage_$stage"
done
step "all stages passed: ${stages[*]}"
