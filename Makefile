# make quickstart   install, then prune, measure and compare: a table and Pareto plots in about ten minutes
# make test         install, then lint, types and tests (under 8 minutes on 2 cores)
# make test-all     the slow tests too: real Slurm, long kill tests
# make study        continue the CIFAR-10 study, at its commit, from the finished stages of the record, and add to them
# make study-check  run one finished cell of the study again, and compare it
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: setup quickstart test test-all study study-check lint clean

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

quickstart: $(READY)
	$(BIN)/python -m suite.launch --grid quickstart

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-all: test
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup

study: $(READY)
	$(BIN)/python -m suite.study

study-check: $(READY)
	$(BIN)/python -m suite.study --check

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
