#!/usr/bin/env bash
# Runs programs that run on etcd against clusters of this tree's quorate: programs.sh DIRECTORY COREDNS-VERSION KUBERNETES-VERSION. Patroni
# and PostgreSQL come from Debian, CoreDNS and kube-apiserver from the Go proxy; TESTS='Patroni' runs some only.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1 coredns=$2 kubernetes=$3

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
# built PROGRAM MODULE prints the version of a module that a program was built from, if it was built.
built() { go version -m "$out/bin/$1" 2>/dev/null | awk -v module="$2" '$2 == module {print $3}'; }

# Each is built once a version; it takes minutes.
if [ "$(built coredns github.com/coredns/coredns)" != "$coredns" ]; then
  GOBIN=$out/bin go install "github.com/coredns/coredns@$coredns"
fi
if [ "$(built kube-apiserver k8s.io/kubernetes)" != "$kubernetes" ]; then
  # Kubernetes takes the libraries of its own tree from ./staging, which the proxy does not have: here they are those of the same release.
  rm -rf "$out/kube-apiserver"
  mkdir "$out/kube-apiserver"
  (
    cd "$out/kube-apiserver"
    printf 'module kubeapiserver\n\ngo 1.26.0\n' >go.mod
    go mod download -json "k8s.io/kubernetes@$kubernetes" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p' >name
    for library in $(sed -n 's/^[[:space:]]*\(k8s.io\/[a-z-]*\) v0.0.0$/\1/p' "$(cat name)" | sort -u); do
      go mod edit -replace "$library=$library@v0.${kubernetes#v1.}"
    done
    go mod edit -require "k8s.io/kubernetes@$kubernetes"
    go get k8s.io/kubernetes/cmd/kube-apiserver
    go build -o "$out/bin/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver
  )
fi

cd "$here/.."
go vet -tags programs .
go test -tags programs -v -count 1 -timeout 20m -run "TestProgram_${TESTS:-}" .
