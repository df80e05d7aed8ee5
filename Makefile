# Everything a developer types. `make demo` and `make test` each work as the first command on a fresh clone.
# Override on the command line: PYTHON=python3.12, VENV=/elsewhere, ARGS="--help" (for demo), PYTEST_ARGS="-k tokenizer",
# PIP_ARGS= (shows the progress of downloads), TEST_JOBS=8 (processes that test side by side).

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?=
PIP_ARGS ?= --quiet
TEST_JOBS ?= 2
BIN := $(VENV)/bin
INSTALLED_FROM := pyproject.toml setup.py constraints.txt $(wildcard native/*)
STEP = @echo ==
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Without this, pyright asks the network for a newer version.
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-all check format clean distclean

help: ## show this list
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14

demo: $(VENV)/.installed-demo ## train a model on real pictures in minutes, and write a report
	$(BIN)/coca quickstart $(ARGS)

test: check ## what CI runs: check, then every test that is not slow (under 10 minutes on 2 cores)
	$(STEP) 'pytest, without the slow ones'
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(TEST_JOBS) -m 'not slow' $(PYTEST_ARGS)

test-all: check ## check, then every test, the long ones too
	$(STEP) 'pytest, all'
	@$(BIN)/pytest -q $(PYTEST_ARGS)

check: $(VENV)/.installed-dev ## lint, format, layers and types; runs no test
	$(STEP) 'ruff'
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "Not formatted as ruff would: run 'make format'."; exit 1; }
	$(STEP) 'import layers'
	@$(BIN)/lint-imports --no-cache > $(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; exit 1; }
	$(STEP) 'pyright'
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev ## rewrite the code as ruff would have it
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format .

venv: $(VENV)/.installed-dev ## make the environment with everything that developers need

# The stamps are newer than what they were installed from; a failed install leaves none. The developers' set holds the demo's.
$(VENV)/.installed-demo: $(INSTALLED_FROM) | $(BIN)/python
	$(call install,demo$(COMMA)train)
	@touch $@

$(VENV)/.installed-dev: $(INSTALLED_FROM) | $(BIN)/python
	$(call install,demo$(COMMA)train$(COMMA)dev)
	@touch $(VENV)/.installed-demo $@

COMMA := ,
define install
	$(STEP) 'installing opencoca[$(1)] into $(VENV) (the first time takes minutes: PyTorch is large)'
	@rm -f $(VENV)/.installed-demo $(VENV)/.installed-dev
	@$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[$(1)]'
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "OpenCoCa needs Python 3.11 or newer, and $(PYTHON) is not: try 'make PYTHON=python3.12 ...'."; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

clean: ## remove caches and build output; keeps .venv, data and runs
	@rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	@rm -rf $(VENV)
