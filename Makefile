# One command for each thing a person does here. A machine needs python3 (3.11 or newer, with venv) and make; no compiler, no GPU.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Without byte code on disk every `import torch` costs 4 s. Some packages carry files for other Pythons, which do not compile: no matter.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib >/dev/null 2>&1 || true
# jobs of pytest; one thread of torch each (tests/conftest.py)
JOBS ?= 2

.PHONY: help demo test test-all check format lint types law deps docs doctest bench clean setup setup-dev

help:  ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(VENV)/.core  ## certify bundled images, in about a minute
	@$(BIN)/calipers demo

test: $(VENV)/.dev  ## the test suite, slow tests left out
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow and not network"

test-all: $(VENV)/.dev  ## the slow tests too
	$(BIN)/python -m pytest -n $(JOBS) -m "not network"

check: format lint types law deps docs doctest  ## format, lint, types, import law, dependencies, docs, doctests

format: $(VENV)/.dev  ## is everything formatted?
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev  ## ruff's rules, docstrings among them
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## mypy, strict
	$(BIN)/mypy

law: $(VENV)/.dev  ## the import law
	$(BIN)/lint-imports

deps: $(VENV)/.dev  ## declared dependencies = imported ones
	$(BIN)/deptry src

docs: $(VENV)/.dev  ## the documentation, in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

doctest: $(VENV)/.dev  ## the examples in docstrings and in docs/
	$(BIN)/python -m pytest -q --doctest-modules --doctest-glob='*.md' --ignore=docs/case_study_pictures -p no:cacheprovider src docs README.md

bench: $(VENV)/.dev  ## the measurements that need bundled parts only, about a quarter of an hour
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/decide.py network
	$(BIN)/python benchmarks/workers.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/store_append.py

clean:  ## remove what was built; --run files stay
	rm -rf $(VENV) docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(VENV)/.core  ## install calipers into .venv
setup-dev: $(VENV)/.dev  ## install calipers and what its checks need into .venv

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "calipers needs Python 3.11 or newer; '$(PYTHON)' is older. Name another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv"; rm -rf $(VENV); exit 2; }

# The stamps: a second call is instant, a changed list of dependencies installs again.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing calipers into $(VENV) (once; torch is most of it) ..."
	@$(PIP) -e .
	@$(COMPILE)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing calipers and its development tools into $(VENV) (once) ..."
	@$(PIP) -e '.[dev]'
	@$(COMPILE)
	@touch $@ $(VENV)/.core
