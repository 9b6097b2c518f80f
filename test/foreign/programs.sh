#!/usr/bin/env bash
# Runs programs that run on etcd against clusters of this tree's quorate: programs.sh DIRECTORY COREDNS-VERSION. Patroni and PostgreSQL come from
# Debian, CoreDNS from the Go proxy; TESTS='Patroni' runs some only.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1 coredns=$2

missing=()
command -v patroni >/dev/null 2>&1 || missing+=(patroni)
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
if [ "${#missing[@]}" -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
  # The test starts its own servers: the packages must not start theirs. A policy that was there before stays.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
  fi
  "${as_root[@]}" apt-get update -q
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
fi
# Built once a version; it takes minutes.
if [ "$(go version -m "$out/bin/coredns" 2>/dev/null | awk '$1 == "mod" {print $3}')" != "$coredns" ]; then
  GOBIN=$out/bin go install "github.com/coredns/coredns@$coredns"
fi

cd "$here/.."
go vet -tags programs .
go test -tags programs -v -count 1 -timeout 20m -run "TestProgram_${TESTS:-}" .
