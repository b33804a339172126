# podwire: every command a developer or a newcomer runs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
APT_STAMP := .cache/apt.stamp
VM_APT_STAMP := .cache/apt-vm.stamp

.PHONY: help setup demo test test-fast test-vm bench bpf bpf-check gen gen-check fmt lint type clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | \
		awk -F'|' '{printf "  \033[1mmake %-10s\033[0m %s\n", $$1, $$2}'

setup: $(APT_STAMP) $(STAMP) ## Install system packages and the Python environment (demo and test do it too)

$(APT_STAMP): deploy/apt-packages.txt deploy/setup-apt.sh
	@bash deploy/setup-apt.sh
	@mkdir -p .cache && touch $@

$(VM_APT_STAMP): deploy/apt-packages-vm.txt deploy/setup-apt.sh
	@bash deploy/setup-apt.sh apt-packages-vm.txt
	@mkdir -p .cache && touch $@

$(STAMP): requirements.lock pyproject.toml | $(APT_STAMP)
	@echo "==> Python environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## Build a small cluster on this machine, watch its traffic, show the result
	@$(BIN)/podwire demo

test: setup ## Run every check and every test, the real kernel, Kafka and ClickHouse included
	@$(MAKE) --no-print-directory lint type gen-check bpf-check
	@# Most wait for brokers: two at a time. The kernel's programs see all that a machine does: alone.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not bpf"
	$(BIN)/python -m pytest -m bpf

test-fast: setup ## Run the tests that need neither kernel, Kafka nor ClickHouse
	$(BIN)/python -m pytest -m "not bpf and not kafka and not clickhouse and not vm and not slow"

test-vm: setup $(VM_APT_STAMP) ## Run the kernel's tests on Debian's kernels 5.10 to the newest, under QEMU (VM="--quick")
	$(BIN)/python -m tests.vm $(VM)

bench: setup ## Print throughput and cost of every hot path
	$(BIN)/python -m tests.bench

bpf: setup ## Build the eBPF objects for all architectures, their manifest and collector/abi.py
	$(BIN)/python -m collector.build

bpf-check: setup ## Rebuild the eBPF objects and compare them with the committed ones
	$(BIN)/python -m collector.build --check

gen: setup ## Generate the protobuf code
	$(BIN)/python -m schemas.gen

gen-check: setup ## Check that the generated code is up to date
	@$(BIN)/python -m schemas.gen --check

fmt: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup ## Check format, style and the rules about who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

type: setup ## Check the types
	$(BIN)/mypy

clean: ## Remove the environment and every cache
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache build *.egg-info
