# The only entry point, for people and for CI. `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Where cargo-nextest, cargo-deny and cargo-machete are installed if they are not on the machine.
TOOLS ?= $(CURDIR)/.deps/cargo
export PATH := $(TOOLS)/bin:$(PATH)

# The crates that build and are tested without libtorch.
LIGHT := crescendo-core crescendo-store crescendo-proto crescendo-node crescendo-controller crescendo-cli
CARGO_TOOL = cargo $(1) --version >/dev/null 2>&1 || cargo install --locked --quiet --root $(TOOLS) cargo-$(1)

.PHONY: help setup build demo-data demo test test-light python-test chart-test chaos fuzz lint fmt bench ablations docs doc clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | \
		while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: ## Fetch libtorch, protoc, etcd and an S3 server into .deps
	@scripts/setup.sh

demo-data: setup
	@scripts/fetch_demo_data.sh

build: setup ## Build every binary, optimised
	cargo build --release --workspace --bins

demo: build demo-data ## From a job spec (SPEC=examples/nano-loop.yaml) to a trained LoRA and pictures, on this machine
	@scripts/demo.sh $(SPEC)

test: setup ## Run every test
	@$(call CARGO_TOOL,nextest)
	@# With the tests, so that both have the same features and nothing is built twice.
	cargo build --workspace --bins --tests
	CRESCENDO_REQUIRE_ETCD=1 CRESCENDO_REQUIRE_S3=1 cargo nextest run --workspace --no-fail-fast
	cargo test --workspace --doc --quiet
	CRESCENDO_BIN=$${CARGO_TARGET_DIR:-target}/debug scripts/chart_test.sh
	CRESCENDO_BIN=$${CARGO_TARGET_DIR:-target}/debug scripts/python_test.sh
	CRESCENDO_REQUIRE_ETCD=1 scripts/docs.sh test

test-light: ## Build and test, without libtorch, the crates that need none
	@$(call CARGO_TOOL,nextest)
	@for crate in $(LIGHT); do env -u LIBTORCH cargo build --quiet -p $$crate; done
	cargo nextest run $(addprefix -p ,$(LIGHT))

python-test: ## Run the Python client against messages generated from the protos
	@scripts/python_test.sh

chart-test: ## Check the chart, its alerts and dashboards and the image files, without a cluster
	@scripts/chart_test.sh

chaos: setup ## Kill curators and ranks at random, then count every pair and position (minutes)
	cargo build --workspace --bins
	cargo run --quiet -p crescendo-tests --bin chaos

fuzz: setup ## Fuzz every parser of outside bytes for SECONDS (600) each, on a nightly compiler
	@scripts/fuzz.sh $(or $(SECONDS),600)

lint: setup ## Check format, clippy, docs, licences and unused dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
	@$(call CARGO_TOOL,deny)
	cargo deny --log-level error check bans licenses sources
	@$(call CARGO_TOOL,machete)
	cargo machete

fmt: ## Format the code
	cargo fmt --all

bench: build ## Measure, and print the figures of docs/benchmarks.md
	@scripts/bench.sh

ablations: build demo-data ## Run the paper's comparisons in miniature, three seeds each (hours)
	@python3 bench/ablations.py

docs: ## Build the documentation as a site into target/site
	@scripts/docs.sh

doc: setup ## Build the API documentation into target/doc
	cargo doc --workspace --no-deps

clean: ## Remove what was built, but not what was fetched
	cargo clean
