# shellcheck shell=bash
# Small helpers of the scripts in this folder. Sourced, never run.

# Prints a heading with the seconds since the script began.
step() { printf '\n== %s  (%ss)\n' "$*" "$SECONDS"; }

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "'$*' needs root: run this script as root, or install sudo"; fi
}

# need_deb PROGRAM:PACKAGE... installs the packages whose program is missing, quietly. The program counts, not
# the package: one that came from elsewhere is as good.
need_deb() {
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "installing: ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Cargo tools live outside the tree, so that a fresh clone finds them again.
TOOLS_DIR=${WEFT_TOOLS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/weft-tools}
PATH=$TOOLS_DIR/bin:$PATH

# need_cargo BINARY CRATE VERSION builds a cargo tool once.
need_cargo() {
  command -v "$1" >/dev/null && return 0
  echo "building $2 $3 once into $TOOLS_DIR (takes some minutes)"
  CARGO_TARGET_DIR=$TOOLS_DIR/target cargo install --quiet --locked --root "$TOOLS_DIR" "$2@$3"
}

# wait_for SECONDS COMMAND... until it succeeds.
wait_for() {
  local deadline=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.1
  done
}
