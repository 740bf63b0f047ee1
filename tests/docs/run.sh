#!/usr/bin/env bash
# Runs the commands of the guide (docs/src) against a built weft, and checks its links and its build.
#   tests/docs/run.sh WEFT             every page
#   tests/docs/run.sh WEFT dns tls     pages whose path contains one of these words
# Needs python3, curl, dig and mdbook (or MDBOOK=path). Prints one line per page; any failure ends in exit code 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 1 ] && [ -x "$1" ] || { echo "usage: tests/docs/run.sh WEFT [WORD...]" >&2; exit 2; }
for tool in python3 curl dig; do
  command -v "$tool" >/dev/null || { echo "error: $tool is missing; install python3 curl bind9-dnsutils" >&2; exit 2; }
done
weft=$(realpath "$1"); shift
failed=0

python3 tests/docs/generate.py --check "$weft" || failed=1
python3 tests/docs/pages.py "$weft" "$@" || failed=1
python3 tests/docs/links.py docs/src || failed=1

mdbook=${MDBOOK:-$(command -v mdbook || echo "$HOME/.cache/weft-tools/bin/mdbook")}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
if "$mdbook" build docs --dest-dir "$out/book" >"$out/log" 2>&1 && ! grep -qiE '\b(warn|error)' "$out/log"; then
  echo "ok    mdbook build"
else
  echo "FAIL  mdbook build"; cat "$out/log"; failed=1
fi
exit $failed
