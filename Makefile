.DEFAULT_GOAL := help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 18
test: ## every test of this machine
	cargo test --workspace --locked
.PHONY: help test
