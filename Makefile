# Everything runs in .venv, which is made on first use. Another interpreter: make PYTHON=/path/to/python3.12 ...
SHELL := /bin/sh
VENV := .venv
PYTHON ?= $(shell tools/find-python)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
VERSIONS := 3.11 3.12 3.13
# The files of tests are shared out among three processes, as many tests wait for most of their time; each stays whole,
# as its tests may share a cluster.
SIDE_BY_SIDE := -n 3 --dist loadfile
# Tests start hundreds of processes: where the environment forbids to keep bytecode, each would compile geraft anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-long test-all prove fuzz lint types verify fix proto bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/runtime ## Three nodes on real disks: kill the leader under load, lose nothing (about 20 s)
	$(BIN)/geraft demo

test: verify ## What CI runs: lint, types and every test but the long ones

test-fast: $(VENV)/dev ## The tests to run while working: without the slow ones
	$(BIN)/python -m pytest -q -m "not slow and not long" $(SIDE_BY_SIDE)

test-long: $(VENV)/dev ## The tests that take minutes each, which nothing else runs
	$(BIN)/python -m pytest -q -m long --timeout 1800

prove: $(VENV)/runtime ## 20,000 seeds of the simulator and 10 minutes of chaos: about an hour (ARGS="--seeds 1000" for less)
	$(BIN)/python tools/prove $(ARGS)

fuzz: $(VENV)/dev ## Almost right bytes for everything that decodes bytes: about five minutes (ARGS="--seconds 300" for more)
	$(BIN)/python tests/fuzz/fuzzing.py $(ARGS)

test-all: ## The tests on each of Python 3.11, 3.12 and 3.13 that this machine has
	@for version in $(VERSIONS); do \
		python=$$(tools/find-python $$version); \
		if [ -z "$$python" ]; then echo "== Python $$version: skipped, none that runs was found"; continue; fi; \
		echo "== Python $$version: $$python"; \
		[ -x $(VENV)-$$version/bin/pip ] || tools/make-venv "$$python" $(VENV)-$$version || exit 1; \
		$(VENV)-$$version/bin/python -m pip --disable-pip-version-check --quiet install -e '.[test,rocksdb]' \
			$(addprefix -e ,$(dir $(wildcard plugins/*/setup.cfg))) || exit 1; \
		$(VENV)-$$version/bin/python -m pytest -q -m "not long" $(SIDE_BY_SIDE) || exit 1; \
	done

lint: $(VENV)/dev ## Style and formatting; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev ## mypy --strict
	$(BIN)/mypy

verify: lint types ## lint, types and every test but the long ones; changes nothing
	$(BIN)/python -m pytest -q -m "not long" $(SIDE_BY_SIDE)

fix: $(VENV)/dev ## Rewrite the sources: what ruff can repair, and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/dev ## Generate geraft/pb from proto/
	$(BIN)/python tools/generate_code.py .

bench: $(VENV)/runtime ## Writes per second with 1, 64 and 512 callers
	for callers in 1 64 512; do $(BIN)/geraft bench write --callers $$callers || exit 1; done

clean: ## Remove the environments and what tools left behind
	rm -rf $(VENV) $(addprefix $(VENV)-,$(VERSIONS)) *.egg-info build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	tools/make-venv "$(PYTHON)" $(VENV)

$(VENV)/runtime: setup.cfg pyproject.toml | $(BIN)/pip
	$(PIP) install -e .
	@touch $@

$(VENV)/dev: setup.cfg pyproject.toml $(wildcard plugins/*/setup.cfg) | $(BIN)/pip
	$(PIP) install -e '.[dev]' $(addprefix -e ,$(dir $(wildcard plugins/*/setup.cfg)))
	@touch $@ $(VENV)/runtime
