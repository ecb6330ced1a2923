# make demo    two faces exchange expressions, the true answer beside them      (first time 2-5 minutes, then seconds)
# make test    everything that must hold: lint, types, tests, notebooks
# make lab     JupyterLab in notebooks/
# make lint    ruff and mypy alone
# make results measure the shipped weights: table and picture of the README, benchmarks/results/swap-64.json
# make clean   forget .venv and build/

PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/.ready
BIN    := $(VENV)/bin
SHELL  := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint lab results clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

setup: $(READY)

# A virtual environment with everything pinned; made again only when the list of packages changes or Python has gone.
$(READY): pyproject.toml constraints.txt $(if $(shell $(BIN)/python -c 1 2>/dev/null && echo ok),,rebuild)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); 3.10 to 3.13 is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(BIN)/python -c 1 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned packages into $(VENV) (a minute or two on a fast line) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[course,dev]"
	@touch $@

.PHONY: rebuild
rebuild:

demo: $(READY)
	@$(BIN)/expr-lib demo

lab: $(READY)
	@$(BIN)/jupyter lab --notebook-dir=notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread for each test process: two processes share two cores better than four threads do.
test: lint
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 --durations=15

results: $(READY)
	$(BIN)/expr-lib evaluate -o benchmarks/results/swap-64.json --readme README.md
	$(BIN)/expr-lib demo
	@mkdir -p notebooks/figures && cp build/demo/swap.png notebooks/figures/swap.png

clean:
	rm -rf $(VENV) build
