#!/usr/bin/env bash
# Compares the etcd face with etcd by etcd's own benchmark tool, and writes docs/benchmarks-etcd.md. It takes about ten minutes;
# leave the machine alone meanwhile. Further flags go to the program: scripts/bench-etcd.sh -rounds 8
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p bin
go build -trimpath -o bin/quorate ./cmd/quorate
(cd bench/peers && go build -o ../../bin/etcd go.etcd.io/etcd/server/v3)
(cd bench/etcd && go build -o ../../bin/etcd-benchmark go.etcd.io/etcd/v3/tools/benchmark && go build -o ../../bin/bench-etcd .)
exec bin/bench-etcd -quorate bin/quorate -etcd bin/etcd -tool bin/etcd-benchmark -out docs/benchmarks-etcd.md "$@"
