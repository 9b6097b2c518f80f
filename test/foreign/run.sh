#!/usr/bin/env bash
# Builds a suite that others wrote, and runs it against this tree's quorate: run.sh etcd-common | etcd-e2e | k8s-etcd3 | k8s-cacher | robustness |
# clients | programs | redis | librdkafka | franz-go. Everything comes from the Go proxy, npm and Debian. Output of each test is in bin/foreign/SUITE. TESTS='^TestKV' runs some tests only.
# SHRINK=1 takes what passes off the list.
#
# Each suite of tests has a list, SUITE.txt, of those that do not pass. A test that fails and is not on it fails the run, and so does one that is
# on it and passes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$root/bin/foreign
suite=${1:?name a suite}
shift
mkdir -p "$out/bin"

# The versions that Kubernetes' tests, kube-apiserver and CoreDNS are taken from.
kubernetes=v0.37.2
coredns=v1.15.0

cd "$root"
go build -trimpath -o bin/quorate ./cmd/quorate
(cd "$here" && go build -o "$out/judge-tests" ./judge)
ln -sf "$root/bin/quorate" "$out/bin/etcd"

# judge SUITE FOLDER [FLAGS...] TEST-BINARY [ITS FLAGS...]
judge() {
  local name=$1 folder=$2
  shift 2
  cd "$folder"
  "$out/judge-tests" -list "$here/$name.txt" ${SHRINK:+-shrink} -tests "${TESTS:-}" -out "$out/$name" "$@"
}

# etcd PACKAGE builds and runs a package of etcd's tests. They need its folder, with the certificates beside it, and etcd's tools.
etcd() {
  local name=$1
  cd "$here"
  go build -o "$out/bin/etcdctl" go.etcd.io/etcd/etcdctl/v3
  go build -o "$out/bin/etcdutl" go.etcd.io/etcd/etcdutl/v3
  go test -c -tags e2e -o "$out/$name.test" "go.etcd.io/etcd/tests/v3/$name"
  rm -rf "$out/tests"
  mkdir "$out/tests"
  cp -r "$(go list -m -f '{{.Dir}}' go.etcd.io/etcd/tests/v3)/." "$out/tests"
  chmod -R u+w "$out/tests"
  # etcd's example of a configuration file is in a module that the proxy has no newer version of.
  cp "$(go mod download -json go.etcd.io/etcd/v3@v3.6.8 | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/etcd.conf.yml.sample" "$out/"
  chmod u+w "$out/etcd.conf.yml.sample"
  E2E_TEST_MINIMAL=true judge "etcd-$name" "$out/tests/$name" "$out/$name.test" -bin-dir "$out/bin"
}

# kubernetes_storage PACKAGE builds and runs a package of Kubernetes' storage tests, in a copy in which one file is ours: the one that would run
# etcd inside the test.
kubernetes_storage() {
  local name=$1 copy=$out/kubernetes
  if [ ! -e "$copy/go.sum" ]; then
    rm -rf "$copy"
    mkdir "$copy"
    cd "$copy"
    printf 'module storagetests\n\ngo 1.26.0\n' >go.mod
    go get -t "k8s.io/apiserver/pkg/storage/etcd3@$kubernetes" "k8s.io/apiserver/pkg/storage/cacher@$kubernetes"
    cp -r "$(go list -m -f '{{.Dir}}' k8s.io/apiserver)/." apiserver
    chmod -R u+w apiserver
    go mod edit -replace k8s.io/apiserver=./apiserver
  fi
  cd "$copy"
  cp "$here/k8s/testserver.go.txt" apiserver/pkg/storage/etcd3/testserver/test_server.go
  go test -c -o "$out/k8s-$name.test" "k8s.io/apiserver/pkg/storage/$name"
  QUORATE_ETCD=$out/bin/etcd judge "k8s-$name" "$copy/apiserver/pkg/storage/$name" -together "$out/k8s-$name.test"
}

# franz_go builds and runs the tests of a Kafka client. The ones for the client alone run too: to tell them apart would need a list.
franz_go() {
  . "$here/lib.sh"
  cd "$here"
  go test -c -o "$out/franz-go.test" github.com/twmb/franz-go/pkg/kgo
  serve "$root/bin/quorate" 4
  KGO_SEEDS="127.0.0.1:$kafka_port" KGO_TEST_RF=1 KGO_TEST_RECORDS=50000 KGO_TEST_STABLE_FETCH=true \
    judge franz-go "$(go list -m -f '{{.Dir}}' github.com/twmb/franz-go)/pkg/kgo" -timeout 1m "$out/franz-go.test"
}

case $suite in
  etcd-common | etcd-e2e) etcd "${suite#etcd-}" ;;
  k8s-etcd3 | k8s-cacher) kubernetes_storage "${suite#k8s-}" ;;
  robustness)
    (cd "$here" && go build -o "$out/robustness" ./robustness)
    "$out/robustness" -quorate "$root/bin/quorate" "$@"
    ;;
  clients) "$here/clients/run.sh" "$out" ;;
  programs)
    "$here/programs.sh" "$out" "$coredns" "v1.${kubernetes#v0.}"
    ;;
  redis | librdkafka) "$here/$suite.sh" "$root/bin/quorate" "$out" ;;
  franz-go) franz_go ;;
  *)
    echo "no suite $suite" >&2
    exit 2
    ;;
esac
