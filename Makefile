# make quickstart   install, then prune, measure and compare: a table and Pareto plots in a few minutes
# make test         install, then lint, types and tests (under 8 minutes on 2 cores)
# make test-all     the slow tests too: real Slurm, long kill tests
# make study        continue the CIFAR-10 study, at its commit, from the finished stages of the record
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

# All blocks of the study have one commit, whatever else has changed since.
STUDY_COMMIT = ebb1d0ab490848912b3250dd5337f06aeb96e86e
STUDY = build/study
STUDY_RESULTS = results/study

# Freed memory stays with the process, in large pages: 2 to 21 % less time (Xeon with AMX, ResNet-20), and the same bits.
study: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
study: export MALLOC_MMAP_THRESHOLD_ = 4294967296
study: export MALLOC_TRIM_THRESHOLD_ = 17179869184
study: export MALLOC_TOP_PAD_ = 67108864
study: $(READY)
	test -d $(STUDY) || git clone --quiet . $(STUDY)
	git -C $(STUDY) fetch --quiet
	git -C $(STUDY) checkout --quiet --force $(STUDY_COMMIT)
	cp -R results/reference/networks $(STUDY)/results/reference
	cd $(STUDY) && PYTHONPATH=$(CURDIR)/$(STUDY) $(abspath $(BIN))/python -m suite.launch --grid cifar10_study --from-zoo --jobs 2 \
		--results $(CURDIR)/$(STUDY_RESULTS)
	$(BIN)/python -m suite.records merge results/reference $(STUDY_RESULTS)
	$(BIN)/python -m suite.zoo add --grid cifar10_study --results $(STUDY_RESULTS)

study-check: $(READY)
	$(BIN)/python -m suite.zoo check --grid cifar10_study

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
