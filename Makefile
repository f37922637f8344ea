# The two commands of the README, and what they are made of.
PYTHON ?= python3
ENVIRONMENT := $(CURDIR)/.venv
READY := $(ENVIRONMENT)/.ready
export PATH := $(ENVIRONMENT)/bin:$(PATH)

.PHONY: run test test-bench check bench bench-digits bench-hosts bench-long-tail bench-cifar10 bench-gpu bench-table2 clean

run: $(READY)  ## Set up, then run the pipeline that params.yaml describes
	@dvc repro
	@cat results/summary.txt

test: $(READY) check  ## Set up, then lint, check types and run all tests, a file at a time in each of two processes
	@OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile

test-bench: $(READY)  ## Two minutes more: the resumable GPU benchmarks at toy size
	@pytest tests/bench

check: $(READY)
	@ruff format --check .
	@ruff check .
	@mypy

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "conr needs Python 3.11 or newer: make PYTHON=python3.12")'
	@echo "Setting up $(ENVIRONMENT) (once; PyTorch is large, allow some minutes)"
	@$(PYTHON) -m venv $(ENVIRONMENT)
	@$(ENVIRONMENT)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

bench-digits: $(READY)  ## Table of the README: digits, five seeds
	@pip install -qq --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@python bench/digits.py

bench-hosts: $(READY)  ## Table of docs/experiments.md: ConNR on four self-supervised frameworks, digits, five seeds
	@python bench/hosts.py

bench-long-tail: $(READY)  ## Table of docs/experiments.md: long-tailed digits, five seeds
	@python bench/long_tail.py

bench-cifar10: $(READY)  ## CIFAR-10 as a folder of JPEG files, a small network on the CPU
	@python bench/cifar10.py

# Speed: each prints a table of docs/performance.md. What is compared stands at the head of bench/*.py.
SPEED := training_step neighbourhood clustering extraction prepare startup estimate

bench: $(READY)  ## All comparisons of speed, about 23 minutes on two quiet CPU cores
	@pip install -qq --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@for name in $(SPEED); do echo; echo "== bench/$$name.py"; python bench/$$name.py || exit; done

$(addprefix bench-,$(subst _,-,$(SPEED))): bench-%: $(READY)
	@pip install -qq --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@python bench/$(subst -,_,$*).py

bench-gpu: $(READY)  ## On a GPU: numerics, speed, shares, levers (docs/gpu.md); the same command goes on
	@pip install -qq --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@python bench/gpu.py

bench-table2: $(READY)  ## On a GPU: nine minutes of Table 2 on CIFAR-10 (docs/gpu.md); the same command goes on
	@python bench/table2.py

clean:  ## Remove the environment, artifacts and results (not DVC's cache)
	rm -rf $(ENVIRONMENT) .conr artifacts results
