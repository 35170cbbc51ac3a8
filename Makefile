# What people and CI run. `make` lists the targets; `make check` is what CI runs.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# CI machines keep $HOME between runs, not the checkout.
ifeq ($(CI),true)
export CARGO_TARGET_DIR ?= $(HOME)/.cache/ebla/target
# Nothing is built twice from one checkout there.
export CARGO_INCREMENTAL ?= 0
endif
TARGET_DIR = $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

# Looked up when a recipe runs, not when make starts: `deps` may just have installed it.
ccache = $(if $(shell command -v ccache 2>/dev/null),ccache )
ifneq ($(filter default undefined,$(origin CC)),)
export CC = $(ccache)gcc
endif
ifneq ($(filter default undefined,$(origin CXX)),)
export CXX = $(ccache)g++
endif

# Seeds of the simulator, rounds of the tests with real processes, rows at each level in those of
# copies, cases of the crash matrix (`all` for every one), minutes of the storm: in `make sim` and
# `make chaos`.
SEEDS ?= 20000
SEEDS_IN_CHECK ?= 500
ROUNDS ?= 20
ROWS ?= 100000
CASES ?= 60
MINUTES ?= 10

.PHONY: help deps run test build check fix bench bench-backup bench-memory bench-meta bench-ops bench-rooms bench-watch sim sim-mutants backups chaos chaos-bin matrix storm doc

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the Debian packages that the build needs
	@sh scripts/deps.sh

run: deps ## start a cluster on ./ebla-data, load real data, show it; DEMO=once ends after the show
	cargo build --locked --release --bin ebla
	@EBLA_BIN="$(TARGET_DIR)/release/ebla" sh scripts/demo.sh $(if $(filter once,$(DEMO)),--once)

build: deps
	cargo build --locked --workspace --bins

test: build ## all tests, those with real processes included
	@if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --locked --workspace; \
	else \
		cargo test --locked --workspace --lib --bins --tests --examples; \
	fi
	cargo test --locked --workspace --doc

check: test ## what CI runs; never writes into the tree
	@sh scripts/deps.sh check
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p ebla-kernel --all-targets --features mutations -- -D warnings
	cargo clippy --locked --workspace --all-targets --features ebla/failpoints -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
	sh scripts/lint-protos.sh
	"$(TARGET_DIR)/debug/sim" --seeds $(SEEDS_IN_CHECK)
	EBLA_BIN="$(TARGET_DIR)/debug/ebla" sh scripts/python-client.sh
	EBLA_BIN="$(TARGET_DIR)/debug/ebla" sh scripts/demo-check.sh

fix: ## format and apply the lints' suggestions
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

bench: deps ## measure the cluster beside raw RocksDB, as a markdown table; ARGS="--rows 100000"
	cargo build --locked --release --bin ebla --bin ebla-bench
	"$(TARGET_DIR)/release/ebla-bench" --ebla "$(TARGET_DIR)/release/ebla" $(ARGS)

bench-backup: deps ## measure a backup and a restore beside cp; ARGS="--rows 1000000"
	cargo build --locked --release --bin ebla --bin ebla-bench-backup
	"$(TARGET_DIR)/release/ebla-bench-backup" --ebla "$(TARGET_DIR)/release/ebla" $(ARGS)

bench-memory: deps ## measure a table in memory beside one on disk; ARGS="--rows 100000"
	cargo build --locked --release --bin ebla --bin ebla-bench-memory
	"$(TARGET_DIR)/release/ebla-bench-memory" --ebla "$(TARGET_DIR)/release/ebla" $(ARGS)

bench-meta: deps ## measure the metadata core with 1,000 servers and 1,000,000 tablets
	cargo build --locked --release --bin ebla-bench-meta
	"$(TARGET_DIR)/release/ebla-bench-meta" $(ARGS)

bench-rooms: deps ## measure rooms beside nats-server and redis-server, if installed; ARGS="--rooms 100000"
	cargo build --locked --release --bin ebla --bin ebla-bench-rooms
	"$(TARGET_DIR)/release/ebla-bench-rooms" --ebla "$(TARGET_DIR)/release/ebla" $(ARGS)

bench-ops: deps ## measure what splits, drains, drops and deletions cost others; ARGS="--split-mb 10"
	cargo build --locked --release --bin ebla --bin ebla-bench-ops
	"$(TARGET_DIR)/release/ebla-bench-ops" --ebla "$(TARGET_DIR)/release/ebla" $(ARGS)

bench-watch: deps ## measure how long changes take to those who watch; ARGS="--rate 10000 --watches 1"
	cargo build --locked --release --bin ebla --bin ebla-bench-watch
	"$(TARGET_DIR)/release/ebla-bench-watch" --ebla "$(TARGET_DIR)/release/ebla" $(ARGS)

sim: deps ## models, then many seeds of the simulator; SEEDS=20000, or one in words with SEED=n
	cargo build --locked --release --bin sim --bin models
	$(if $(SEED),,"$(TARGET_DIR)/release/models")
	"$(TARGET_DIR)/release/sim" $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

sim-mutants: deps ## seed known bugs, one per rule; the simulator must find each, and nothing without them
	cargo build --locked -p ebla-cluster-tests --features mutations --bin sim
	"$(TARGET_DIR)/debug/sim" --mutants
	"$(TARGET_DIR)/debug/sim" --mutants --control

chaos: build ## kill real processes again and again; ROUNDS=20, then the matrix and the storm
	@for round in $$(seq $(ROUNDS)); do \
		echo "== round $$round of $(ROUNDS)"; \
		ROWS=$(ROWS) SEED=$$round cargo test --locked --workspace --test copies --test restarts \
			--test faults --test splits --test moves -- --test-threads=1 || exit 1; \
	done

	$(MAKE) matrix storm
	$(MAKE) backups ROWS=1000000

backups: build ## a chain of backups of ROWS=1000000 rows, to a directory and a bucket, restored and compared
	ROWS=$(if $(filter file,$(origin ROWS)),1000000,$(ROWS)) cargo test --locked --workspace --test backup_chain \
		-- --test-threads=1 --nocapture

chaos-bin: deps ## build ebla-chaos, whose servers fail where EBLA_FAILPOINTS says; not for real data
	cargo build --locked --workspace --bin ebla-chaos --features ebla/failpoints

matrix: build chaos-bin ## crash at each durable step; CASES=60 or all, SEED=1, or one with CASE=...
	EBLA_BIN="$(TARGET_DIR)/debug/ebla-chaos" "$(TARGET_DIR)/debug/chaos" matrix --seed $(or $(SEED),1) \
		$(if $(CASE),--case $(CASE),$(if $(filter all,$(CASES)),,--cases $(CASES)))

storm: build ## split, move, drain and kill at random under load; nobody may notice; MINUTES=10 SEED=1
	EBLA_BIN="$(TARGET_DIR)/debug/ebla" "$(TARGET_DIR)/debug/chaos" storm --seed $(or $(SEED),1) \
		--seconds $$(( $(MINUTES) * 60 ))

doc: ## the documentation of all crates
	cargo doc --workspace --no-deps
