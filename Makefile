# robustssm: everything a checkout needs. `make` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow lint format demo page clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install robustssm in it, with exactly the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard src/robustssm/ops/kernels/csrc/*)
	@test -x $(BIN)/python || $(MAKE) --no-print-directory $(BIN)/python
	@echo "Installing into $(VENV) (torch is large: this takes a minute or more) ..."
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	  echo "robustssm needs Python 3.11 or newer;" \
	       "'$(PYTHON)' is $$($(PYTHON) --version 2> /dev/null || echo not found)." \
	       "Say which one to use: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON)' could not make a virtual environment; its reason stands above." \
	       "On Debian and Ubuntu the venv module is a package: apt install python3-venv" >&2; exit 1; }

# One thread per process, as the tests run on all cores already.
test test-slow: export OMP_NUM_THREADS := 1

test: lint ## Format, lint, types, doors between rooms, then every test that is not slow, on all cores
	$(BIN)/python -m pytest -n auto

test-slow: setup ## The studies that take minutes
	$(BIN)/python -m pytest -n auto -m slow

lint: setup ## The checks of `make test` that run nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup ## Rewrite files as `make lint` wants them
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

demo: setup ## Train, attack and compare on the embedded digits; continues a killed demo; see demo/
	$(BIN)/robustssm demo --out demo/

page: setup ## docs/report.html and the tables of docs/results.md, from results/
	$(BIN)/robustssm report results --out build/report
	cp build/report/report.html docs/report.html
	$(BIN)/python -m benchmarks.summary --write

clean: ## Remove caches, builds and the demo's output; .venv and runs/ stay
	rm -rf build dist demo src/*.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
