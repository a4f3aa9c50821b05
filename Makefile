# The loop: `make test` is what guards main; `make demo` shows the main job.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

test: ## every check and every test that this machine can run
	@scripts/test

lint: ## formatting, clippy, unused dependencies, licences
	@scripts/lint

generate: ## write what is generated from code: the definition, its documentation, the chart's copies
	UPDATE=1 cargo test --locked -p registry-mirror-crds --test generated
	UPDATE=1 cargo test --locked -p tests --test generated

install: ## build the programs and put them into PREFIX/bin (default: cargo's)
	cargo install --locked --path mirror $(if $(PREFIX),--root $(PREFIX))
	cargo install --locked --path operator $(if $(PREFIX),--root $(PREFIX))

.PHONY: help test lint generate install
