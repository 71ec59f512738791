# Everything a person or CI runs. Needs git, make and Python 3.11 or newer; nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
# Processes that compile what is installed: on a cold disk they wait more than they work.
export UV_CONCURRENT_INSTALLS := 8
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo test check .types .style bench lock clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.complete ## create .venv from requirements.lock

.venv/.complete: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --editable .
	@touch $@

demo: setup ## a year of New York flights through Airflow; ARGS="--exit --report FILE"
	$(BIN)/evergreen demo $(ARGS)

test: setup ## all tests, in three processes; ARGS="-k gate" passes on to pytest
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## what CI checks besides the tests
	$(MAKE) --no-print-directory --jobs 2 .types .style

.types:
	$(BIN)/mypy

.style:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/evergreen check
	$(BIN)/uv pip check --quiet --python $(BIN)/python

bench: setup ## measured ratios: parsing, imports, overhead
	$(BIN)/python tests/bench/bench.py $(ARGS)

lock: setup ## resolve requirements.lock anew
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --generate-hashes --python-version 3.11 \
	  --quiet --upgrade --custom-compile-command "make lock" --output-file requirements.lock

clean: ## remove the environment and what the demo made
	rm -rf .venv .evergreen
