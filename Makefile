# The everyday commands; "make help" lists them. Programs land in bin/, downloaded tools in .cache/.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GOTEST_TIMEOUT ?= 20m
PLATFORMS      := linux/arm64 linux/arm darwin/arm64 windows/amd64

.PHONY: help run build test lint vuln conformance clients logins helm kill faults faults-mutants bench lab cross clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

run: build ## run a mesh of three nodes in one process, to try things out
	@exec bin/flotilla dev

build: ## build the programs into bin/
	@CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/...

test: ## run every test with the race detector (needs a C compiler)
	@go build -race ./... # by all cores; the tests then run a package at a time, since elections and disks are timed
	@go test -race -p 1 -timeout $(GOTEST_TIMEOUT) ./... 2>&1 | awk '\
	  /\[no test files\]/ { next } \
	  { print; fflush() } \
	  /^ok  / { ok++ } \
	  /^FAIL\t/ { failed++ } \
	  END { printf "test: %d packages passed, %d failed\n", ok, failed }'

lint: ## check format, common mistakes, shell scripts and patches
	@test -z "$$(gofmt -l .tools cmd api mesh metadata node | tee /dev/stderr)"
	@go vet ./...
	@go tool -modfile=.tools/go.mod staticcheck ./...
	@if command -v shellcheck >/dev/null; then shellcheck -x .ci/run deploy/test/*.sh; else echo "shellcheck is not here: scripts not checked"; fi
	@for p in cmd/faults/mutants/*.patch; do git apply --check "$$p"; done
	@echo "lint: clean"

vuln: ## look for known vulnerabilities in what the programs call
	@deploy/test/vuln.sh

conformance: ## run the distribution specification's tests through three nodes at once
	@deploy/test/conformance.sh

clients: ## push and pull with docker, podman, helm and others (as root on Debian)
	@deploy/test/clients.sh

logins: ## log in to a mesh with accounts and TLS with docker, podman, helm and others (as root on Debian)
	@deploy/test/logins.sh

helm: ## render the Helm chart and hold it against Kubernetes' types
	@deploy/test/helm.sh

kill: ## kill the node that a client talks to, 50 times (KILLS, KILL_SEED)
	@deploy/test/kill.sh

faults: ## break networks, disks, clocks and processes under clients, and check every answer (FAULT_SEED, FAULT_MINUTES)
	@deploy/test/faults.sh

faults-mutants: ## plant bugs one at a time and expect the checks to catch each (MUTANTS)
	@deploy/test/faults-mutants.sh

bench: ## measure every workload beside the reference registry (ROUNDS, BENCH_FLAGS)
	@deploy/test/bench.sh

lab: ## let many hosts with shaped links pull one image at once (as root; LAB_RUNS, LAB_ROUNDS)
	@deploy/test/lab.sh $(LAB_RUNS)

cross: ## build for the other platforms
	@for p in $(PLATFORMS); do \
	  CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} go build -trimpath -ldflags='-s -w' -o ".cache/cross/$${p/\//-}/" ./cmd/flotilla; \
	  echo "built $$p"; \
	done
	@echo "cross: $(words $(PLATFORMS)) platforms built"

clean: ## remove what the commands above made
	@rm -rf bin .cache
