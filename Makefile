PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n 4

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## Start the whole service on an embedded Postgres, ready to sell
	$(BIN)/flashsale dev

demo: $(VENV)/.installed ## Run a whole sale against a fresh service and check the promises
	$(BIN)/flashsale demo

psql: $(VENV)/.installed ## Open psql on the running service, as an operator
	$(BIN)/flashsale psql

test: $(VENV)/.installed ## Run the tests
	$(PYTEST)

test-all: $(VENV)/.installed ## Run the tests and the long storms
	$(PYTEST)
	$(BIN)/pytest -n 2 -m 'storm and not alone'
	$(BIN)/pytest -m alone

prove: $(VENV)/.installed ## Try to break it: crashes, faults, interleavings, mutants (15 minutes)
	$(BIN)/python -m prove $(PROVE)

prove-full: $(VENV)/.installed ## The same before a release (hours)
	$(BIN)/python -m prove --full $(PROVE)

bench: $(VENV)/.installed ## Measure everything that docs/reference/figures.md says (half an hour)
	$(BIN)/python -m bench $(BENCH)

lint: $(VENV)/.installed ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment, the caches and the data of make run
	rm -rf $(VENV) .flashsale .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "flashsale needs Python 3.11 or later: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

.PHONY: help run demo psql test test-all prove prove-full bench lint format clean
.DEFAULT_GOAL := help
