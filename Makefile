# `make quickstart` trains the bundled model; `make test` checks everything. Both set up .venv.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
BACKENDS := jax tensorflow torch

.PHONY: quickstart test lint $(BACKENDS:%=test-%)

quickstart: .venv/installed
	time $(BIN)/kerora train configs/quickstart.yaml output=runs/quickstart

test: lint $(BACKENDS:%=test-%)

lint: .venv/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/mypy

# Keras reads its backend once, so each backend has a process of its own.
$(BACKENDS:%=test-%): test-%: .venv/installed-for-tests lint
	time KERAS_BACKEND=$* $(BIN)/python -m pytest

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -e .
	touch $@

# PyTorch first and by its version: what depends on it then takes this build, where it is the CPU's.
.venv/installed-for-tests: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e '.[test]'
	touch $@ .venv/installed
