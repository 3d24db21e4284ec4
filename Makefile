# Each target sets up .venv first if anything has changed. Needs python3 (>= 3.11), git and make; nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

new_enough := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
find_python = for p in $$PYTHON python3 python3.13 python3.12 python3.11; do \
	if $$p $(new_enough) 2>/dev/null; then echo $$p; exit; fi; done; \
	echo "Python 3.11 or newer was not found: install it, or name it: PYTHON=/path/to/python3 make ..." >&2; exit 1
bin := .venv/bin
python := $(bin)/python
export PYTHON

.PHONY: help setup run test check unit process-test vllm-test e2e-test smoke compose-test sweep results docs clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | column -t -s "$$(printf '\t')" 2>/dev/null \
		|| grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST)

setup: ## make .venv with everything that constraints.txt pins (every target does this first)
	@py=$$($(find_python)); $$py deploy/setup.py

run: setup ## start the whole pipeline on this machine; ARGS="--help" shows its options
	@exec $(bin)/slos-serve up $(ARGS)

check: setup ## lint and types only
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

unit: setup ## tests inside of one process each
	@$(python) -m deploy.compile
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 -m "not process and not vllm and not e2e" -q $(ARGS)

process-test: setup ## tests that start processes, without vLLM
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 -m "process and not vllm and not e2e" -q $(ARGS)

vllm-test: setup ## tests on real vLLM engines; those of a file share theirs
	$(python) -m pytest -n 2 --dist loadfile -m "vllm and not e2e" -q $(ARGS)

e2e-test: setup ## tests of the whole pipeline on real vLLM, alone on the machine
	$(python) -m pytest -m e2e -q $(ARGS)

test: check unit process-test vllm-test e2e-test ## everything that CI checks

smoke: setup ## 60 requests through the pipeline on real vLLM; the last line is one JSON object
	@$(python) -m bench.smoke $(ARGS)

compose-test: setup ## docker compose with two workers of each kind; the last line is one JSON object
	@$(python) deploy/compose_test.py $(ARGS)

sweep: setup ## run all simulated studies into docs/results/ (most of an hour on 2 cores; goes on where it was stopped)
	@$(python) -m bench.sweep $(ARGS)

results: setup ## make docs/results.md, its figures and the README's table from docs/results/*.json
	@$(python) -m bench.results $(ARGS)

docs: setup ## write the settings table into docs/operations.md
	@$(python) -m deploy.docs

clean: ## remove .venv, caches and what runs have left
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis var build dist *.egg-info
