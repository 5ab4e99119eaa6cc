# Every target sets up what it needs, once: .venv is rebuilt only when pyproject.toml or constraints.txt change.
PYTHON ?= python3.11
VENV   ?= .venv
BLENDER_PYTHON ?= python3.11
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test trust lint type bench blender clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or run make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV): some minutes, without further lines"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## create .venv with pinned packages

demo: $(STAMP)  ## build, train and texture on procedural meshes (out/demo)
	$(BIN)/seqtex demo --out out/demo

test: $(STAMP)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

trust: $(STAMP)  ## run the fault matrix at full counts (half an hour or more)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m trust --full-counts --trust-table=out/trust.md --timeout 7200

lint: $(STAMP)  ## check style and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(STAMP)  ## check static types
	$(BIN)/mypy

blender: .venv-blender/.installed  ## install Blender's module in .venv-blender (870 MB, GPL-3): more formats, Cycles views
	@.venv-blender/bin/python -I pipeline/blender/check.py

.venv-blender/.installed: pipeline/blender/requirements.txt
	@command -v $(BLENDER_PYTHON) >/dev/null || { echo "$(BLENDER_PYTHON) not found: Blender's module needs Python 3.11"; exit 1; }
	test -x .venv-blender/bin/python || $(BLENDER_PYTHON) -m venv .venv-blender
	.venv-blender/bin/python -m pip install --quiet -r $<
	@touch $@

bench: $(STAMP)  ## run side-by-side benchmarks and print tables
	$(BIN)/python -m benchmarks.raster
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.blender

clean:  ## remove build products and demo output (keeps .venv)
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
