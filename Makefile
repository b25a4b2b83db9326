# `make train` and `make test` set up what they need on a fresh machine and do nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# pip takes the CPU build of torch where there is one at hand; see the range in pyproject.toml
EXTRAS := dev

.PHONY: help setup train test lint clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup: $(READY) ## make the virtual environment and install the project into it

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

train: $(READY) ## train on simulated scans and classify a few (no download, minutes on a CPU)
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml run_classification.py \
		--config configuration/recipes/quickstart.yaml $(ARGS)

test: $(READY) ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(READY) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the virtual environment and caches, but no run
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
