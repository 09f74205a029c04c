# Mooring. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.0.0-dev)
LDFLAGS := -s -w -X github.com/mooring-edge/mooring/internal/version.Version=$(VERSION)
# How long each fuzz target runs, and which (a regular expression).
FUZZTIME ?= 60s
FUZZ ?= .
# How many nodes bench-fleet holds, and for how long churn goes on.
AGENTS ?= 10000
CHURN ?= 30m
# Where built Kubernetes binaries are kept; outside the tree, so that a fresh clone finds them.
export MOORING_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mooring
export CGO_ENABLED ?= 0
# The time of all that is in an image: the commit's, so that it is the same whenever it is made.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

CHART := deploy/helm/mooring-broker
# Built once, into the cache.
helm = $$(cd e2e && go run ./cmd/helm)

say = @printf '\n==> %s\n' "$(1)"

.DEFAULT_GOAL := help
.PHONY: help build images packages packages-check image manifests test unit race e2e image-test image-power-cuts lint demo fuzz faults bench bench-fleet churn tools kubernetes deps clean

help: ## Show this list
	@echo 'make <target>, as root for demo, e2e and test:'
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/' | expand -t 20
	@echo
	@echo 'Variables: FUZZTIME (now $(FUZZTIME)), FUZZ (now $(FUZZ)), AGENTS (now $(AGENTS)), CHURN (now $(CHURN)), VERSION (now $(VERSION)), MOORING_CACHE (now $(MOORING_CACHE)),'
	@echo '           DEMO_ONCE=1 (end the demo after its last check), MOORING_E2E_KEEP=1 (keep a run'"'"'s directory)'

build: ## Build edge-agent and broker into bin/, stripped and static
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/broker
	go build -trimpath -ldflags '$(LDFLAGS)' $$(cat cmd/edge-agent/build.flags) -o bin/ ./cmd/edge-agent

images: ## Make the images of broker and agent for each platform, in bin/images, with no container engine
	@cd packaging/oci && go run . --version '$(VERSION)' --revision "$$(git rev-parse HEAD 2>/dev/null || true)"

packages: ## Make the packages of broker and agent, deb and rpm for each platform, in bin/packages
	@packaging/build --version '$(VERSION)'

packages-check: ## Look whether packages are right: lintian, rpmlint, qemu-user, the same bytes twice
	@packaging/check

demo: deps kubernetes ## A control plane, a broker and an edge node behind NAT, for real; stays up until Ctrl-C
	@cd e2e && go build -o ../bin/demo ./cmd/demo
	@exec bin/demo

test: deps ## Run every test there is; fails if one had to be skipped
	$(call say,unit tests with the race detector)
	@MOORING_REQUIRE_ALL=1 $(MAKE) race
	$(call say,end-to-end tests with a real Kubernetes, over QUIC and over TCP)
	@MOORING_REQUIRE_ALL=1 $(MAKE) e2e
	$(call say,packages)
	@$(MAKE) packages-check
	$(call say,the immutable image in QEMU)
	@MOORING_REQUIRE_ALL=1 $(MAKE) image-test IMAGE_TESTS='Test/^(Start|FirstBootToReady|NoSecretLeft|ImmutableRoot|Then)/Boxes/PowerCuts'

unit: ## Run the unit and conformance tests (seconds, no root)
	go test ./...
	cd packaging/oci && go test ./...

race: ## Run the unit tests, and a small fleet in churn, with the race detector
	CGO_ENABLED=1 go test -race -timeout 10m ./...
	cd bench && CGO_ENABLED=1 go test -race -timeout 10m ./...
	cd packaging/oci && CGO_ENABLED=1 go test -race ./...

e2e: deps tools ## Run the end-to-end tests
	@cd e2e && go run ./cmd/helm >/dev/null
	cd e2e && go test -count=1 $$(go list ./... | tail -n +2 | grep -vE '/(edgeos|packages)$$') && go test -count=1 -v -timeout 20m ./packages && go test -count=1 -v -timeout 70m .

image: deps kubernetes ## Make the immutable edge image, bin/edge-os/edge-os_VERSION.raw, and the files of an update to it (as root)
	@images/edge-os/build --version "$$(packaging/build --say-version '$(VERSION)' | tr + - | cut -c1-31)" --out bin/edge-os

image-test: deps kubernetes ## Boot the immutable image in QEMU: zero touch, updates, clones, 2 power cuts
	cd e2e && go test -count=1 -v -timeout 60m $(if $(IMAGE_TESTS),-run '$(IMAGE_TESTS)') ./edgeos

image-power-cuts: deps kubernetes ## Cut the power of 20 boxes (MOORING_POWER_CUTS) while they boot and join for the first time
	cd e2e && MOORING_POWER_CUTS=$${MOORING_POWER_CUTS:-20} go test -count=1 -v -timeout 150m -run 'TestEdgeOS/^(Start|Then)$$/Boxes/PowerCuts' ./edgeos

lint: ## gofmt, go mod tidy, go vet and staticcheck on all modules, helm lint, manifests that are up to date
	$(call say,gofmt)
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "not formatted:"; echo "$$bad"; exit 1; fi
	$(call say,go mod tidy)
	go mod tidy -diff
	cd e2e && go mod tidy -diff
	cd bench && go mod tidy -diff
	cd packaging/oci && go mod tidy -diff
	cd packaging/tools && go mod tidy -diff
	cd packaging/nfpm && go mod tidy -diff
	$(call say,go vet and staticcheck)
	go vet ./... && go vet -tags man ./cmd/...
	go tool staticcheck ./...
	go build -o bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	cd e2e && go vet ./... && ../bin/staticcheck ./...
	cd bench && go vet ./... && ../bin/staticcheck ./...
	cd bench/peers && go vet ./... && ../../bin/staticcheck ./...
	cd packaging/oci && go vet ./... && ../../bin/staticcheck ./...
	$(call say,helm chart and manifests)
	@helm=$(helm); for values in $(CHART)/ci/*-values.yaml; do \
		$$helm lint --strict --quiet $(CHART) -f $$values; \
		$$helm template mooring-broker $(CHART) -n mooring -f $$values >/dev/null; \
	done; hack/manifests $$helm bin/manifests
	@diff -ru deploy/manifests bin/manifests || { echo 'deploy/manifests is not what the chart gives: run make manifests'; exit 1; }

manifests: ## Write deploy/manifests anew from the Helm chart
	hack/manifests $(helm) deploy/manifests

fuzz: ## Run each fuzz target that matches FUZZ for FUZZTIME
	@for pkg in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$pkg | grep ^Fuzz | grep -E '$(FUZZ)' || true); do \
			printf '\n==> %s %s\n' "$$pkg" "$$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$pkg; \
		done; \
	done

faults: ## List the tests of each fault and attack that the product must stand, by number
	@git grep -hoE '(func |")(Test|Fuzz)?Fault[0-9]{2}[A-Za-z0-9]*' -- '*_test.go' | sed -E 's/^(func |")//' | \
		sed -E 's/^((Test|Fuzz)?Fault([0-9]{2}).*)/\3  \1/' | sort -u

ROUNDS ?= 5
bench: deps kubernetes ## Measure speed and size beside peers and the practical limit, and write docs/performance.md (as root; some 35 minutes; ROUNDS=5)
	@mkdir -p bin/bench
	$(call say,the same load through Mooring and its peers and a chain that does no more than has to be done)
	cd bench && go run ./speed --rounds $(ROUNDS) -o json > ../bin/bench/speed.json.new && mv ../bin/bench/speed.json.new ../bin/bench/speed.json
	cd bench && go run ./speed quic --rounds $(ROUNDS) -o json > ../bin/bench/quic.json.new && mv ../bin/bench/quic.json.new ../bin/bench/quic.json
	$(call say,kubectl exec with a real Kubernetes)
	cd e2e && go run ./cmd/execbench --rounds $(ROUNDS) -o json > ../bin/bench/exec.json.new && mv ../bin/bench/exec.json.new ../bin/bench/exec.json
	$(call say,the size of the programs and what an idle agent takes)
	cd bench && go run ./speed footprint -o json > ../bin/bench/footprint.json.new && mv ../bin/bench/footprint.json.new ../bin/bench/footprint.json
	cd bench && go run ./speed page --figures ../bin/bench --page ../docs/performance.md

bench-fleet: ## What AGENTS idle nodes cost a broker, over each transport, and their return after kill -9 (15 minutes)
	cd bench && go run ./fleet --agents $(AGENTS) --idle 150s --kill

churn: ## Have 500 nodes come and go for CHURN; fails if goroutines, open files or memory rise after minute 5
	cd bench && go run ./fleet --agents 500 --churn $(CHURN)

tools: ## Build the real Kubernetes, etcd, Kamaji and konnectivity agent for the end-to-end tests, once
	@cd e2e && go run ./cmd/tools >/dev/null

kubernetes:
	@cd e2e && go run ./cmd/tools kubernetes >/dev/null

deps: ## Install the Debian packages that the end-to-end tests run
	@hack/install-deps

clean: ## Remove what was built in the tree
	rm -rf bin
