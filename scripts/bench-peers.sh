#!/usr/bin/env bash
# Compares Quorate with etcd and Redis and writes docs/benchmarks.md. It takes about ten minutes; leave the machine alone
# meanwhile. Further flags go to the program: scripts/bench-peers.sh -rounds 8
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/deps.sh
mkdir -p bin
go build -trimpath -o bin/quorate ./cmd/quorate
(cd bench/peers && go build -o ../../bin/etcd go.etcd.io/etcd/server/v3 && go build -o ../../bin/peers .)
exec bin/peers -quorate bin/quorate -etcd bin/etcd -redis redis-server -out docs/benchmarks.md "$@"
