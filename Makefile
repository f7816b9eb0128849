# Two commands for a newcomer: `make demo` and `make test`. The rest is for who works on the code.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread a test process: two processes share two cores, and spinning pools starve each other.
# Compiled modules are kept whatever the shell says: many tests start a process of their own.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=

.PHONY: install demo test test-slow lint types bench clean

install: $(STAMP)

# torch first and alone, so that nothing else pulls another build of it; torchvision without its
# dependencies, because they name a torch build of their own.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps torchvision
	touch $(STAMP)

demo: install
	$(BIN)/transform demo

# A test process that dies ends the run: without --max-worker-restart it would hang.
test: install
	$(TEST_ENV) $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart 0 -m "not slow"

test-slow: install
	$(TEST_ENV) HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

bench: install
	$(BIN)/python -m bench.speed

clean:
	rm -rf $(VENV) demo-output .mypy_cache .ruff_cache .pytest_cache
