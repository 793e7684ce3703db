# Everything from a fresh clone, with only Python 3.11 or newer, make and a shell:
#
#   make demo    train a network, slim it to half its latency, fine-tune it, show the difference
#   make test    run every test that needs no GPU
#
# Both make their own environment in .venv, once. `make demo PYTHON=/path/to/python` chooses the
# Python that the environment is made with.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TENSORRT ?= .venv-tensorrt
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
  then echo $$p; break; fi; done)

.DEFAULT_GOAL := help
.PHONY: help demo test test-tensorrt check clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

# Passive waiting costs nothing on a quiet machine, and saves half the time on a busy one.
demo: $(READY) ## train, slim to half the latency, fine-tune; writes demo-output/
	OMP_WAIT_POLICY=passive $(BIN)/python -m examples.demo

# One thread each: two workers share the cores as it is.
test: $(READY) ## run every test that needs no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not gpu"

test-tensorrt: $(TENSORRT)/.ready ## run the front end of Torch-TensorRT on slim networks; no GPU needed
	OMP_NUM_THREADS=1 $(TENSORRT)/bin/python -m pytest -m tensorrt tests/test_torch_tensorrt.py

check: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the environment and everything built
	rm -rf $(VENV) $(TENSORRT) build dist demo-output *.egg-info .*_cache .hypothesis

# Made last, so that an installation that was interrupted is taken up again.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; try make PYTHON=..."; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,openvino]'
	@touch $@

# On top of the other environment: 20 MB more, and a C compiler.
$(TENSORRT)/.ready: $(READY) tests/tensorrt_frontend.py
	$(BIN)/python -m tests.tensorrt_frontend $(TENSORRT)
	@touch $@
