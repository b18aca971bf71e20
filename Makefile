# Everything runs inside .venv; the stamp file makes a second run reuse it without touching the network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := orchestration/install
# mypy follows folders, not the installed mapping of names: one folder of links shows it the package as it is installed
TYPES_LINKS := mkdir -p .types/uniavgen && ln -sfn $(addprefix ../../,$(wildcard uniavgen/*.py uniavgen/py.typed) curation ingest orchestration shards train) .types/uniavgen/
# slow files first (tests/conftest.py), which xdist would reorder
PYTEST = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage bench lint types format ui clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## prepare .venv (pip, pinned) and say what the machine still lacks

$(STAMP): pyproject.toml $(INSTALL)/constraints.txt $(INSTALL)/install.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash $(INSTALL)/install.sh
	@touch $@

demo: install ## the whole road on a small real corpus: videos -> corpus -> shards -> model -> sampled video
	@$(BIN)/uniavgen demo

test: install ## every test, a file per core
	@$(PYTEST)

coverage: install ## every test, and the lines that none runs (slower)
	@$(PYTEST) --cov --cov-report=term:skip-covered

bench: install ## the ingest engine beside a plain script, on 26 made videos (about half an hour on two cores)
	@$(BIN)/python tests/benchmarks/ingest/compare.py --folder bench-output

lint: install ## format check, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(MAKE) --no-print-directory types

types: install ## types alone
	@$(TYPES_LINKS)
	@MYPYPATH=.types $(BIN)/mypy

format: install ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

ui: install ## MLflow on the demo's runs
	@$(BIN)/uniavgen ui --folder demo-output/mlflow

clean: ## remove the environment and the demo's output
	rm -rf $(VENV) demo-output bench-output .pytest_cache .mypy_cache .types .ruff_cache .hypothesis .coverage
