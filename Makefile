# One command per thing one does here; `make help` lists them.
#
# PYTHON       the interpreter the environment is made from (3.11 or newer)
# VENV         where the environment is made
# TORCH_INDEX  an extra pip index that has the small CPU build of torch
# ARGS         handed on to the command of run, test, bench and soak
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
ARGS ?=
PROMPT ?= Why is the sky blue?

export PYTHON VENV TORCH_INDEX

PY := $(VENV)/bin/python
# The stamps carry a checksum of what the environment is made from: nothing changed, nothing to do.
KEY := $(shell cat pyproject.toml requirements.lock tools/setup.sh | cksum | cut -d' ' -f1)
RUN_READY := $(VENV)/.ready-run-$(KEY)
DEV_READY := $(VENV)/.ready-dev-$(KEY)
PROTO := splitinfer/segment_runtime/proto

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast lint format types bench soak proto lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "Variables: PYTHON=python3.12 VENV=.venv TORCH_INDEX=URL ARGS='...'"

$(RUN_READY):
	@bash tools/setup.sh runtime,cli
	@rm -f $(VENV)/.ready-* && touch $@

$(DEV_READY):
	@bash tools/setup.sh runtime,torch,cli,dev,bench
	@rm -f $(VENV)/.ready-* && touch $@ $(RUN_READY)

setup: $(DEV_READY) ## the environment for development, in VENV

run: $(RUN_READY) ## import the default model, serve it split over local processes; ARGS="--once --prompt '...'"
	@$(VENV)/bin/splitinfer up --check --prompt "$(PROMPT)" $(ARGS)
	@$(VENV)/bin/splitinfer models import smollm2
	@exec $(VENV)/bin/splitinfer up --prompt "$(PROMPT)" $(ARGS)

test: lint ## set everything up, lint, check types and import contracts, run all tests; ARGS="-k name"
	@$(PY) -m pytest $(ARGS)

test-fast: $(DEV_READY) ## the tests that start no process and load no model
	@$(PY) -m pytest tests/unit $(ARGS)

lint: $(DEV_READY) ## ruff, formatting, mypy --strict, import contracts
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(MAKE) --no-print-directory types
	@$(VENV)/bin/lint-imports --verbose

types: $(DEV_READY) ## mypy --strict over the four packages, the tests and the benchmarks
	@$(PY) -m mypy

format: $(DEV_READY) ## let ruff mend and format what it can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

bench: $(DEV_READY) ## the benchmarks; ARGS to choose
	@$(PY) -m benchmarks $(ARGS)

soak: $(DEV_READY) ## the long runs: plans changed and hosts killed under load
	@$(PY) -m tests.chaos.soak $(ARGS)

proto: $(DEV_READY) ## generate the gRPC stubs from runtime.proto
	@cd segment_runtime && PATH="$(abspath $(VENV))/bin:$$PATH" python -m grpc_tools.protoc -I. \
		--python_out=. --mypy_out=. --grpc_python_out=. --mypy_grpc_out=. $(PROTO)/runtime.proto

lock: ## pin every dependency anew in requirements.lock (needs uv)
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-annotate \
		--no-emit-index-url --custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean: ## remove caches and build outputs, not VENV
	@rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
