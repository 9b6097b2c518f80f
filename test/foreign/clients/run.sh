#!/usr/bin/env bash
# Runs clients of etcd in other languages against one node, and the elections of docs/howto/leader-election.md, of which none may be missing here:
# run.sh DIRECTORY, where bin/etcd is the program. python3-etcd3 and, if they are not there, Node and npm come from Debian, etcd3 from npm.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"
out=$1
python=/usr/bin/python3 # Debian's packages are for Debian's Python, which need not be the first in PATH.

missing=()
"$python" -c 'import etcd3' 2>/dev/null || missing+=(python3-etcd3)
for command in node npm; do
  command -v "$command" >/dev/null 2>&1 || missing+=("${command/#node/nodejs}")
done
debian "${missing[@]}"
if [ ! -d "$out/npm/node_modules/etcd3" ]; then
  mkdir -p "$out/npm"
  npm install --prefix "$out/npm" --no-audit --no-fund --ignore-scripts etcd3@1.1.2
fi

read -r client peer < <(free_ports 2)
data=$(mktemp -d)
"$out/bin/etcd" --name one --data-dir "$data/one" --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
  --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "one=http://127.0.0.1:$peer" \
  >"$data/log" 2>&1 &
node=$!
trap 'kill "$node" 2>/dev/null; wait "$node" || true; rm -rf "$data"' EXIT
curl -sf --retry 30 --retry-connrefused --retry-delay 1 "http://127.0.0.1:$client/readyz" >/dev/null

"$python" "$here/smoke.py" "$client"
cp "$here/smoke.mjs" "$out/npm/smoke.mjs"
node "$out/npm/smoke.mjs" "$client"

"$here/../../../scripts/deps.sh"
cd "$here/../.."
QUORATE_TEST_ALL=1 go test -v -count 1 -parallel 8 -run TestHowto_LeaderElection .
