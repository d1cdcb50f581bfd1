PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n 4

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## Start the whole service on an embedded Postgres, ready to sell
	$(BIN)/flashsale dev

demo: $(VENV)/.installed ## Run a whole sale against a fresh service and check the promises
	$(BIN)/flashsale demo

psql: $(VENV)/.installed ## Open psql on the running service, as an operator
	$(BIN)/flashsale psql

TESTS ?= test
check: lint format-check types $(TESTS) ## Run all checks of a change: style, format, types, tests

test: $(VENV)/.installed ## Run the tests (TEST=tests/test_pay.py: some of them)
	$(PYTEST) $(TEST)

test-all: slow storms ## Run all tests, the slow ones and the long storms too

slow: $(VENV)/.installed
	$(PYTEST) -m 'not storm and not proof'

storms: $(VENV)/.installed ## Run the long storms
	$(BIN)/pytest -n 2 -m 'storm and not alone'
	$(BIN)/pytest -m alone

coverage: $(VENV)/.installed ## Run the tests, the slow ones too, and fail if their coverage is below its floor
	$(PYTEST) -m 'not storm and not proof' --cov --cov-report=term:skip-covered

prove: $(VENV)/.installed ## Try to break it: crashes, faults, upgrades, mutants (20 minutes)
	$(BIN)/python -m prove $(PROVE)

prove-full: $(VENV)/.installed ## The same before a release (hours)
	$(BIN)/python -m prove --full $(PROVE)

bench: $(VENV)/.installed ## Measure all figures of docs/reference/figures.md (half an hour)
	$(BIN)/python -m bench $(BENCH)

lint: $(VENV)/.installed ## Check the style
	$(BIN)/ruff check .

format-check: $(VENV)/.installed ## Check the format
	$(BIN)/ruff format --check .

types: $(VENV)/.installed ## Check the types
	$(BIN)/mypy

generate: $(VENV)/.installed ## Regenerate docs/sql-api.md and the snapshot of the schema
	$(BIN)/python tests/generate.py

format: $(VENV)/.installed ## Format the code, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment, the caches and the data of make run
	rm -rf $(VENV) .flashsale .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "flashsale needs Python 3.11 or later: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Prerequisites run one after the other, as listed, even with -j, so that the quick checks come
# first.
.NOTPARALLEL:
.PHONY: help run demo psql check test test-all slow storms coverage prove prove-full bench
.PHONY: lint format-check types generate format clean
.DEFAULT_GOAL := help
