# `make demo` and `make test` need nothing but make and Python 3.11-3.13; everything else is set up in .venv.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-packages test-processors lint format docs docs-serve bench chaos doctor clean clean-venv

# Any Python that runs (3.8 or later) can start the setup, which then looks for one from 3.11 to 3.13.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
OUTPUT ?= runs/demo
# One thread per process: two OpenMP teams on two cores make single steps 20 to 200 times slower.
ONE_THREAD := OMP_NUM_THREADS=1
# Of a test of ranks or of a fault much is waiting: more workers than cores.
TEST_WORKERS ?= 3
DOCS_PORT ?= 8000
# mkdocs-material says at every start that it wants to be followed to another generator; `mkdocs<2` is pinned instead.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup:  ## Create or update .venv (fast when nothing changed)
	@test -n "$(PYTHON)" || { echo "No Python found: install Python 3.13, 3.12 or 3.11 and run make again." >&2; exit 1; }
	@$(PYTHON) tools/setup_env.py

demo: setup  ## Run base and mwuf on the synthetic data set and compare them (OUTPUT=runs/demo)
	$(ONE_THREAD) $(BIN)/mwuf compare configs/demo.toml --output $(OUTPUT)

test: setup  ## Run the tests (PYTEST_ARGS='--slow' runs the slow ones too)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup $(PYTEST_ARGS)

test-packages:  ## Install the Debian packages without which some tests are skipped (as root)
	apt-get update -qq
	sed 's/#.*//' tools/debian-packages.txt | xargs apt-get install -qq -y --no-install-recommends

test-processors: setup  ## Run the numeric tests as other processors would (PROCESSORS='v3 aarch64')
	$(ONE_THREAD) $(BIN)/python tools/play_processors.py $(PROCESSORS)

lint: setup  ## Check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

format: setup  ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: setup  ## Build the documentation into site/ (needs no network)
	$(MKDOCS) build --strict

docs-serve: setup  ## Show the documentation on this machine and follow changes (DOCS_PORT=8000)
	$(MKDOCS) serve --dev-addr 127.0.0.1:$(DOCS_PORT)

bench: setup  ## Time everything beside its alternative and its limit, in under ten minutes
	$(ONE_THREAD) $(BIN)/python -m benchmarks.bench $(BENCH_ARGS)

chaos: setup  ## Kill a run at random, 50 times, and compare it with one left alone (CHAOS_ARGS='--kills 5')
	$(ONE_THREAD) $(BIN)/python -W ignore -m benchmarks.chaos $(CHAOS_ARGS)

doctor: setup  ## Print the environment and what is wrong with it
	$(BIN)/mwuf doctor

clean:  ## Remove caches and build files
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

clean-venv: clean  ## Remove .venv too
	rm -rf .venv
