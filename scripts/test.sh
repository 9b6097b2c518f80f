#!/usr/bin/env bash
# Everything that must hold before a change goes in. Each step prints its name and how long it took; the output of a step
# that passes is in bin/logs. The last line says how many tests passed and failed.
set -euo pipefail
cd "$(dirname "$0")/.."

logs=bin/logs
rm -rf "$logs"
mkdir -p "$logs"
passed=0
failed=0
failures=()
began=$SECONDS

# step NAME COMMAND... runs a command. Tests in its output are counted one by one, anything else as one.
step() {
  local name=$1 log status=0 from=$SECONDS
  shift
  log=$logs/$(tr -c 'a-zA-Z0-9\n' '-' <<<"$name").log
  echo "=== $name"
  "$@" >"$log" 2>&1 || status=$?
  local good bad
  good=$(grep -cE '^ *--- PASS: ' "$log" || true)
  bad=$(grep -cE '^ *--- FAIL: ' "$log" || true)
  if [ "$status" -eq 0 ]; then
    # A fuzz target that was cut off in the middle of an input says FAIL and is none.
    bad=0
    if [ "$good" -eq 0 ]; then good=1; fi
    echo "    ok, $good passed, $((SECONDS - from)) s"
  else
    if [ "$bad" -eq 0 ]; then bad=1; fi
    failures+=("$name")
    grep -vE '^ *(=== (RUN|PAUSE|CONT|NAME)|--- (PASS|SKIP))|^(ok|\?) ' "$log" | tail -n 300 | cut -c1-2000 || true
    echo "    FAILED, $((SECONDS - from)) s; all of its output is in $log"
  fi
  passed=$((passed + good))
  failed=$((failed + bad))
}

gofmt_clean() {
  local dirty
  dirty=$(gofmt -l -- *.go cmd internal test)
  if [ -n "$dirty" ]; then
    echo "not formatted; run make fmt:"
    echo "$dirty"
    return 1
  fi
}

# Tests that are run side by side wait for leases to end most of the time: there may be more of them than processors.
# They run a program that they build, of which Go's cache of results does not know.
foreign_clients() { (cd test && go vet ./... && go test -count=1 -v -parallel 8 -timeout 10m ./...); }

# Each drill must be safe, and each control must be caught.
drills() { go build -trimpath -o bin/quorate ./cmd/quorate && bin/quorate drill run --all; }

# The shell reads this as a whole before it runs any of it, so that a change meanwhile does no harm.
main() {
  step "what the tests need" scripts/deps.sh
  step "format" gofmt_clean
  step "vet" go vet ./...
  # To build the linters takes minutes on a cold machine, more than all tests of the rules of the house: those run anyway.
  if [ -x bin/golangci-lint ]; then
    step "lint" make -s lint
  else
    echo "=== lint: not built here, so not run; make tools builds it, make lint runs it"
  fi
  step "unit tests, with the race detector" go test -race -short -p 2 -v -timeout 20m ./...
  step "planted defects are found" go test -tags mutants -v -timeout 15m -run TestMutant ./internal/sim ./internal/kv
  step "simulation, ${SEEDS:-200} seeds" go test -v -timeout 15m -run 'TestSeeds|TestRun|TestRegressions' ./internal/sim -seeds "${SEEDS:-200}"
  step "fuzz, ${FUZZ:-10s} a target" scripts/fuzz.sh "${FUZZ:-10s}"
  step "stock clients against real processes" foreign_clients
  step "drills and their controls" drills

  echo "=== all in $((SECONDS - began)) s"
  for f in "${failures[@]}"; do echo "    failed: $f"; done
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ]
}

main
exit
