# `make test` guards main; `make demo` shows the main job.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

test: ## every check and every test that this machine can run
	@scripts/test

demo: ## a registry, a mirror without a cluster, three pulls: cold, warm, registry stopped
	@scripts/demo local

demo-cluster: ## the same with the chart on Kubernetes: a real node for root, else a control plane and Pods as processes
	@scripts/demo cluster

e2e: ## image, chart and a mirror on a real node that pulls through it (root)
	@scripts/e2e

e2e-day2: ## the same during a year's events of a cluster: how long pulls fail, printed and bounded (root)
	@scripts/e2e day_two

campaign-kills: ## mirrors killed with -9 at 200 (KILLS=n) random instants of fills and uploads to a bucket: all objects are whole
	@KILLS=$(or $(KILLS),200) cargo test --locked --workspace --test bucket -- kill_leaves_only_whole_objects --nocapture

docs: ## the documentation site in target/site, its links checked
	@scripts/docs
	@cargo test --locked --quiet -p tests --test docs

screenshots: ## pictures of the pages of server and operator in docs/images, after axe-core checked them (Chromium)
	@SCREENSHOTS=docs/images scripts/pages

lint: ## formatting, clippy, links and spelling of documentation, unused dependencies, licences
	@scripts/lint

bench: ## this server compared with nginx and Distribution, 5 rounds: tables, JSON and a plot in target/bench
	@scripts/bench

bench-quick: ## the same in 2 shorter rounds, without failing registries
	@scripts/bench --quick

bench-day: ## a day of pulls, compressed into minutes: hits compared with an ideal LRU and Distribution 3
	@scripts/bench --day

profile: ## flame graphs of hits, misses and a herd, in docs/performance
	@scripts/profile

bench-million: ## a cache with an index of a million blobs: start, expiry, hits meanwhile
	@scripts/bench --million

bench-fleet: ## replicas that share a bucket compared with Distribution 3 on the same store: requests, herds, faults, throughput
	@scripts/bench --fleet

bench-docs: ## copy the tables and the plot of the last runs into docs/performance.md
	@scripts/bench-docs

count: ## the instructions of each operation of a hit and of a reconcile, against their budgets
	@scripts/count

fuzz: ## each fuzz target for a minute (SECONDS_EACH=n); one target: scripts/fuzz SECONDS TARGET
	@scripts/fuzz $(SECONDS_EACH)

coverage: ## coverage of each crate; one crate: scripts/coverage PACKAGE
	@scripts/coverage

bench-operator: ## 1,000 mirrors (MIRRORS=n) on a real API server: times, writes, CPU, memory of the operator (CONTROLLERS=true: with kube-controller-manager; PROFILE=dev: a debug build)
	@MIRRORS=$(or $(MIRRORS),1000) CONTROLLERS=$(CONTROLLERS) scripts/bench-operator $(or $(PROFILE),release)

generate: ## write the files that are generated from code: CRD, documentation, the chart's copies
	UPDATE=1 cargo test --locked -p registry-mirror-crds --test generated
	UPDATE=1 cargo test --locked -p mirror --lib keys
	UPDATE=1 cargo test --locked -p registry-mirror --test changes
	UPDATE=1 cargo test --locked -p tests --test generated --test tidy

image: ## the image of operator and mirror, built without a daemon, in target/image
	@scripts/image

cluster-up: ## a real Kubernetes node in namespaces of its own (root); then tests/cluster/in kubectl …
	@tests/cluster/up

cluster-down: ## stop it
	@tests/cluster/down

install: ## build the programs and put them into PREFIX/bin (default: cargo's)
	cargo install --locked --path mirror $(if $(PREFIX),--root $(PREFIX))
	cargo install --locked --path operator $(if $(PREFIX),--root $(PREFIX))

.PHONY: help demo demo-cluster test e2e e2e-day2 campaign-kills docs screenshots lint bench bench-quick bench-day bench-million bench-fleet bench-docs profile count fuzz coverage generate image cluster-up cluster-down install
