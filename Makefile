# make up        installs what is missing and serves configs/local.yaml      make help lists the rest
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: install up down test test-fast chaos check bench plan-accuracy lock clean help

PYTHON ?= python3
EXTRA ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
CONFIG ?= configs/local.yaml
ARGS ?=
BIN := .venv/bin
YAML := $(wildcard configs docker)
YAMLLINT := $(BIN)/yamllint -d '{extends: relaxed, rules: {line-length: disable}}'

install:  ## make .venv from the lock; EXTRA=cpu|gpu (found by itself), PYTHON=python3
	@PYTHON="$(PYTHON)" EXTRA="$(EXTRA)" .ci/install

up: install  ## install, then serve CONFIG (configs/local.yaml); more flags in ARGS
	$(BIN)/ferry up --config $(CONFIG) $(ARGS)

down:  ## stop what `make up` started
	$(BIN)/ferry down

test: install  ## every test that needs no GPU; ARGS go to pytest
	$(BIN)/pytest -m "not gpu and not bench and not chaos" $(ARGS)

test-fast: install  ## the tests that take seconds
	$(BIN)/pytest -m "not slow and not gpu and not bench" $(ARGS)

chaos: install  ## what takes too long for make test: harm at every seam of a move, the whole exactness matrix
	$(BIN)/pytest -m chaos $(ARGS)

check: install  ## format, lint, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/shellcheck .ci/*
	$(if $(YAML),$(YAMLLINT) $(YAML))
	$(BIN)/pytest -q tests/test_architecture.py

bench: install  ## run the measurements in tests/bench, one after another
	@set -e; for script in tests/bench/[a-z]*.py; do \
	  [ -e "$$script" ] || continue; \
	  echo "== $$script"; $(BIN)/python "$$script" $(ARGS); \
	done

plan-accuracy: install  ## how wrong the planner's estimates are on published measurements (FERRY_DATA names their folder)
	$(BIN)/python tests/bench/plan_accuracy.py $(ARGS)

# PyTorch's CPU builds are not on the package index. So the CPU lock resolves the index's torch without its CUDA
# parts and then pins the CPU build: a CUDA build cannot slip in. The CUDA builds of torchvision, torchaudio and
# torchcodec break `import transformers` beside it, and nixl asks for both CUDA majors: each lock keeps one.
# Versions stay where they are unless ARGS=--upgrade, or ARGS='--upgrade-package NAME'.
COMPILE = $(BIN)/uv pip compile --universal --python-version 3.11 --quiet --no-header --no-annotate
ANYWHERE = python_full_version < '3.14' and ((platform_machine == 'aarch64' and sys_platform == 'linux') or \
(platform_machine == 'x86_64' and sys_platform == 'linux'))
NOT_ON_CPU := torchvision torchaudio torchcodec nixl-cu13 cuda-bindings cuda-toolkit nvidia-cudnn-cu13 \
  nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvshmem-cu13
NOT_ON_GPU := nixl-cu12

lock:  ## resolve both locks again; ARGS=--upgrade moves the versions
	$(COMPILE) pyproject.toml --extra cpu --extra dev -o requirements-cpu.lock $(ARGS) \
	  --excludes <(printf '%s\n' $(NOT_ON_CPU)) --overrides <(printf '%s\n' torch==2.13.0 'triton>=3.9') >/dev/null
	$(COMPILE) pyproject.toml --extra gpu --extra dev -o requirements-gpu.lock $(ARGS) \
	  --excludes <(printf '%s\n' $(NOT_ON_GPU)) >/dev/null
	sed -i 's/^\(torch==[0-9.]*\)/\1+cpu/' requirements-cpu.lock
	for extra in cpu gpu; do sed -i -e "s/ ; $(ANYWHERE)$$//" -e "1i # ferry-serve[$$extra,dev] on Linux, x86_64 and \
	aarch64, Python 3.11 to 3.13. Made by: make lock" requirements-$$extra.lock; done

clean:  ## remove caches and build leftovers; .venv stays
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find serving planner loadtest tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14
