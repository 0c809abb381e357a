VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The test models are tiny: one thread per test run is as fast as two, and sums come out bit for bit alike.
TEST_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test served-judge lint format docs clean

help:
	@echo "make quickstart   set up .venv if needed, then train the small model and report what improved"
	@echo "make test         set up .venv if needed, then run the tests"
	@echo "make served-judge serve a tiny vision language model by vLLM and let it score a training run"
	@echo "make bench        measure speed against vLLM, TRL and plain copies; writes runs/bench"
	@echo "make soak         200 steps over Ray: does anything grow? writes runs/soak"
	@echo "make lint         ruff (lint and format), mypy and the import directions"
	@echo "make format       let ruff mend what it can"
	@echo "make docs         write docs/metrics.md from the table of metrics"
	@echo "make setup        only set up .venv"
	@echo "make clean        remove .venv and caches"

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@set -e; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		python=; \
		for name in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
			if $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then python=$$name; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "dina needs Python 3.11, 3.12 or 3.13, and none was found on PATH. Install one, or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11" >&2; exit 1; \
		fi; \
		echo "Creating $(VENV) with $$python"; \
		if ! $$python -m venv $(VENV); then \
			echo "'$$python -m venv' failed. On Debian and Ubuntu the package python3-venv has to be installed." >&2; exit 1; \
		fi; \
	fi
	@echo "Installing the pinned packages (about 8 GB; minutes the first time, seconds afterwards)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

quickstart: setup
	$(BIN)/dina quickstart

test: setup
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest $(TESTS)

served-judge: setup
	$(BIN)/python -m tests.rewards.served_judge

.PHONY: bench soak

# One part or a glance: make bench BENCH="--only sync learner", make bench BENCH=--quick
bench: setup
	$(BIN)/python -m dina.rl.bench $(BENCH)

soak: setup
	$(BIN)/python -m dina.rl.bench.soak $(SOAK)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p dina
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m dina.eval.metric_table docs/metrics.md

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
