# Everything one does with this repository. `make` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

SEEDS ?= 200
FIRST ?= 1
FUZZ ?= 10s
D ?= ls
OLD ?= HEAD~1

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/quorate
	go build -trimpath -o bin/quorate ./cmd/quorate

.PHONY: test
test: ## Everything that must pass before a change goes in
	@SEEDS=$(SEEDS) FUZZ=$(FUZZ) scripts/test.sh

.PHONY: quick
quick: ## Unit tests only, without race detector and drills
	go test -short ./...

.PHONY: race
race: ## Unit tests with the race detector
	go test -race -short -p 2 -timeout 20m ./...

.PHONY: clients
clients: ## Stock etcd, Redis and Kafka clients against clusters of real processes
	scripts/deps.sh
	cd test && go test -parallel 8 ./...

.PHONY: lint
lint: bin/golangci-lint ## Run golangci-lint, which is built on first use
	bin/golangci-lint run ./...

.PHONY: fmt
fmt: bin/golangci-lint ## Format all Go files
	bin/golangci-lint fmt ./...
	gofmt -w test

.PHONY: generate
generate: ## Rewrite the documents that are made from code
	go test ./internal/protocol/redis -run TestCompatDocument -rewrite
	go test ./internal/protocol/kafka -run 'APIs|Compat|Document' -rewrite
	go test ./internal/protocol/etcd -run TestCompatDocument -rewrite
	go test . -run 'TestMetrics' -rewrite

.PHONY: check-generate
check-generate: generate ## Fail if generate changes anything
	git diff --exit-code -- docs

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZ=10s
	scripts/fuzz.sh $(FUZZ)

.PHONY: sim
sim: ## Simulate SEEDS=200 clusters, from seed FIRST=1
	go test ./internal/sim -v -timeout 0 -run TestSeeds -seeds $(SEEDS) -first $(FIRST)

.PHONY: mutants
mutants: ## Show that the simulation, or a test, finds every planted defect
	go test -tags mutants -v -timeout 30m -run TestMutant ./internal/sim ./internal/kv

.PHONY: drill
drill: build ## Run a drill, D=name; without D list them
	bin/quorate drill $(if $(filter ls,$(D)),ls,run $(D))

.PHONY: foreign-etcd
foreign-etcd: ## etcd's own tests against this program; TESTS=regexp for some of them
	test/foreign/run.sh etcd-common
	test/foreign/run.sh etcd-e2e

.PHONY: foreign-k8s
foreign-k8s: ## Kubernetes' storage tests against this program
	test/foreign/run.sh k8s-etcd3
	test/foreign/run.sh k8s-cacher

.PHONY: foreign-robustness
foreign-robustness: ## etcd's robustness checks, without faults and with: D=10m each
	for traffic in etcd k8s; do \
		test/foreign/run.sh robustness -d $(if $(filter ls,$(D)),1m,$(D)) -traffic $$traffic || exit 1; \
		test/foreign/run.sh robustness -d $(if $(filter ls,$(D)),1m,$(D)) -traffic $$traffic -faults kill,stop || exit 1; \
	done

.PHONY: foreign-clients
foreign-clients: ## Clients of etcd in other languages against this program, and elections between them
	test/foreign/run.sh clients

.PHONY: foreign-redis
foreign-redis: ## Redis' own tests of what is served, against this program
	test/foreign/run.sh redis

.PHONY: foreign-kafka
foreign-kafka: ## The tests of franz-go and of librdkafka, against this program; takes some twenty minutes
	test/foreign/run.sh franz-go
	test/foreign/run.sh librdkafka

.PHONY: foreign-programs
foreign-programs: ## Patroni, CoreDNS and kube-apiserver on clusters of this program
	test/foreign/run.sh programs

.PHONY: bench
bench: ## Go benchmarks, with benchstat
	go test -run NONE -bench . -count 6 ./... | tee bin/bench.txt
	go tool -modfile=tools/go.mod benchstat bin/bench.txt

.PHONY: bench-peers
bench-peers: ## The same load on Quorate, etcd and Redis in turn; writes docs/benchmarks.md
	scripts/bench-peers.sh

.PHONY: bench-etcd
bench-etcd: ## etcd's own benchmark tool on Quorate and on etcd in turn; writes docs/benchmarks-etcd.md
	scripts/bench-etcd.sh

.PHONY: bench-etcd-large
bench-etcd-large: ## The etcd face with 20 GB, 10 million versions compacted, 100,000 leases; takes an hour or two, and 50 GB of disk
	scripts/bench-etcd.sh -large 20
	bin/bench-etcd -compaction 10000000
	bin/bench-etcd -leases 100000

.PHONY: bench-restart
bench-restart: build ## How long nodes with 1 GB take to come back from kill -9 under load; fails above 5 s
	go run ./bench/restart -limit 5s

.PHONY: cover
cover: ## Coverage of the unit tests, by package
	go test -coverprofile bin/cover.out ./... && go tool cover -func bin/cover.out | tail -n 1

.PHONY: tools
tools: bin/golangci-lint ## Build the tools into bin

bin/golangci-lint: tools/go.mod tools/go.sum
	@echo "building golangci-lint, once; this takes some minutes"
	cd tools && go build -o ../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
