# make demo: build the digits recipe.   make test: everything that CI checks.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
DEMO := recipes/digits-cnn

# Real data for tests and recipes, where it lies beside the checkout.
ifeq ($(origin OPTIMIZE_DATA),undefined)
ifneq ($(wildcard ../shared/data),)
export OPTIMIZE_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: demo test lint types check install clean

demo: $(DEMO)/checkpoint.safetensors
	$(BIN)/optimize build $(DEMO)/recipe.yaml

$(DEMO)/checkpoint.safetensors: $(DEMO)/train.py $(DEMO)/model.py $(DEMO)/data.py | $(VENV)/.installed
	$(BIN)/python $(DEMO)/train.py

install: $(VENV)/.installed

# torch first and pinned: a range would let the resolver take a build with gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[cpu,demo,test,dev]'
	touch $@

test: lint types check

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

# Files go to workers whole, because tests of a file share what they built; threads inside them would only wait.
check: $(VENV)/.installed $(DEMO)/checkpoint.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache $(DEMO)/checkpoint.safetensors
