# Isthmus. "make" or "make help" lists the targets. A fresh machine needs Go and make; race, lint and fuzz also gcc and git.

GO             ?= go
BIN            := bin
TOOLS          := .cache/tools
# The linter is built from source at this version and kept under a name that holds it.
GOLANGCI       := v2.15.0
GOLANGCI_LINT  := $(TOOLS)/golangci-lint-$(GOLANGCI)
# Writes deepcopies and CRDs from the types of api/mesh. Not in go.mod: it would raise what programs are built with.
CONTROLLER_GEN := sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0
FUZZTIME       ?= 10s
VERSION        ?=
LDFLAGS        := $(if $(VERSION),-ldflags "-X github.com/isthmus-mesh/isthmus/internal/version.release=$(VERSION)")

.DEFAULT_GOAL := help
.PHONY: help build images demo chaos promises test race lint generate check fuzz bench bench-gateway kube-binaries kube-test kube-mutants kind-image kind-up kind-down kind-test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the programs into bin/
	$(GO) build $(LDFLAGS) -o $(BIN)/ ./cmd/...

images: ## the container images into bin/images.tar, and their digests; no container runtime (ARGS='-arch amd64,arm64')
	$(GO) run ./deploy/images -out $(BIN)/images.tar -tag $(if $(VERSION),$(VERSION),dev) $(ARGS)

demo: build ## three clusters, one call: kill a cluster under load and watch the traffic move (about 30 s)
	$(BIN)/isthmus playground run --report $(BIN)/demo-report.json

# As many as it takes for each pair of kinds to be drawn once.
chaos: build ## break everything, in every way and each two ways at once, under load, and add the ledger up (about 40 minutes; root: with a WAN; ARGS='--faults 50 --seed 7')
	$(BIN)/isthmus playground chaos --runtime $$([ "$$(id -u)" = 0 ] && echo netns || echo local) --faults 1400 --report $(BIN)/ledger.json $(ARGS)

promises: ## what is promised on failover beside what is measured, event by event (about 25 minutes; root: with a WAN)
	@mkdir -p $(BIN)
	ISTHMUS_FULL=1 ISTHMUS_PROMISES=$(abspath $(BIN))/promises $(GO) test -count=1 -timeout 60m -run '^TestPromises$$' ./internal/lab; status=$$?; cat $(BIN)/promises.md; exit $$status

# -count=1: the scenarios run binaries that the test cache knows nothing of.
test: ## all tests, the scenarios on real processes among them
	$(GO) test -count=1 -timeout 45m ./...

race: ## the tests under the race detector (the scenarios on processes left out)
	.ci/race

lint: $(GOLANGCI_LINT) ## golangci-lint, each linter with its reason in .golangci.yml
	$(GOLANGCI_LINT) run --allow-serial-runners ./...

$(GOLANGCI_LINT):
	@mkdir -p $(TOOLS)
	GOBIN=$(abspath $(TOOLS)) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	mv $(TOOLS)/golangci-lint $@

generate: ## Go code from the .proto files; CRDs and deep copies from the types of api/mesh
	$(GO) run ./api/internal/protogen
	$(GO) run $(CONTROLLER_GEN) object crd paths=./api/mesh/... output:crd:dir=deploy/crds
	cp deploy/crds/*.yaml deploy/charts/isthmus-crds/files/isthmus/

check: ## what is committed is what would be generated; go.mod is tidy; vet is silent
	.ci/regenerated
	$(GO) mod tidy -diff
	$(GO) vet ./...

fuzz: ## every fuzz target for FUZZTIME (10s)
	.ci/fuzz $(FUZZTIME)

bench: ## benchmarks: handshakes, choosing, the gateway pair, the sidecar pair
	$(GO) test -run '^$$' -bench . -benchmem ./topology ./trust/... ./federation/... ./gateway ./sidecar/... ./internal/...

bench-gateway: build ## the gateways beside direct TCP, haproxies and HTTP/2, over a WAN of several delays and losses (root; about ten minutes; ARGS='-rtt 20 -loss 1')
	$(GO) build -o $(BIN)/wanbench ./gateway/wanbench
	$(BIN)/wanbench -report $(BIN)/bench-gateway.json $(ARGS)

kube-binaries: ## etcd and Kubernetes' API server from Go modules, for kube-test: about ten minutes, once
	kind-tests/kubernetes/build

# More at once than there are cores: a scenario mostly waits.
KUBE_TEST = ISTHMUS_KUBE_BINARIES="$$(kind-tests/kubernetes/build --where)" $(GO) test -count=1 -parallel 8 -timeout 20m

kube-test: kube-binaries ## the MCS scenarios on three real API servers (ARGS='-run TestMCS/port' for some of them)
	$(KUBE_TEST) ./kind-tests/... $(ARGS)

# Breaks control on purpose, in each way that mutants_test.go lists: a scenario that does not notice is no check.
kube-mutants: kube-binaries ## see each of those scenarios fail (about fifteen minutes)
	ISTHMUS_KUBE_MUTANTS=1 $(KUBE_TEST) ./kind-tests -timeout 60m -run TestMutants -v

KINDLAB = $(GO) run ./kind-tests/kindlab

kind-image: ## the image of a kind node, built without a registry: about fifteen minutes, once
	$(KINDLAB) image

kind-test: ## two kind clusters, Isthmus in both, the MCS specifications and faults (ARGS='-run TestKind/scenarios')
	$(KINDLAB) test $(ARGS)

kind-up: ## two kind clusters to try things by hand (go run ./kind-tests/kindlab exec kubectl --context eu get pods)
	$(KINDLAB) up

kind-down: ## remove them, and all that came with them
	$(KINDLAB) down

clean: ## remove what the targets made
	rm -rf $(BIN) .cache
