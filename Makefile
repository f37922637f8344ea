# The commands of the README, and what they are made of. make help lists them.
PYTHON ?= python3
ENVIRONMENT := $(CURDIR)/.venv
READY := $(ENVIRONMENT)/.ready
BENCH_READY := $(ENVIRONMENT)/.bench_ready
INSTALL := $(ENVIRONMENT)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt
SPEED := training-step neighborhood clustering graph extraction backbone prepare startup estimate page
TABLES := digits frameworks long-tail
BENCHMARKS := $(SPEED) photos choose-k cifar10 bit-equal gpu scale streaming memory
export PATH := $(ENVIRONMENT)/bin:$(PATH)

.NOTPARALLEL:
.PHONY: help run test check bench stress release-check clean $(BENCHMARKS:%=bench-%) $(TABLES:%=bench-%)

help:  ## List all commands
	@awk -F ':.*##' '/^[a-z0-9-]+:.*##/ {printf "make %-20s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY)  ## Set up, then run the pipeline that params.yaml describes
	@[ -e .git ] || dvc config --local core.no_scm true  # a download without git
	@dvc repro
	@cat results/summary.txt

test: $(READY) check  ## Set up, then lint, check types and run all tests, a file at a time in each of two processes
	@OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile

check: $(READY)  ## Format, lint and types only; container files, too
	@ruff format --check .
	@ruff check .
	@mypy
	@hadolint docker/Dockerfile
	@check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose.yaml
	@check-jsonschema --quiet --builtin-schema vendor.github-workflows docker/examples/weekly.yml
	@shellcheck .ci/run docker/*.sh docker/examples/*.sh

# A benchmark takes options: make bench-digits ARGS='--seeds 0 1'.
bench: $(SPEED:%=bench-%)  ## All comparisons of speed; 25 minutes on two quiet CPU cores, without bench-graph and bench-page
bench-training-step:  ## The training step against lightly's BYOL
bench-neighborhood:  ## ConAff against the published procedure, in a batch and over a data set
bench-clustering:  ## k-means against scikit-learn and faiss
bench-graph:  ## Clusters of the graph: time, memory, the index, the entries of a row: ARGS='--sizes 500000'
bench-extraction:  ## ONNX in float32 and int8 against PyTorch
bench-backbone:  ## Embedding with EfficientNet-Lite0: conr's loop and int8 against onnxruntime alone
bench-prepare:  ## Packing images against torchvision's ImageFolder
bench-startup:  ## conr --help, and a dvc repro with nothing to do
bench-estimate:  ## conr estimate against what a training takes
bench-page:  ## The report's page of 60,000 images: to make it, and to open it in a browser
bench-digits:  ## Table of the README: digits, five seeds
bench-frameworks:  ## Table of docs/experiments.md: ConNR on other self-supervised frameworks, digits, five seeds
bench-long-tail:  ## Table of docs/experiments.md: long-tailed digits, five seeds
bench-photos:  ## Tables of docs/photos.md: k-means beside the graph on labeled image sets: ARGS='--cifar10 FOLDER'
bench-choose-k:  ## Table of docs/lab/choosing-k.md: criteria for K, after bench-photos: ARGS='--cifar10 FOLDER'
bench-cifar10:  ## CIFAR-10 as image files, a small network on the CPU: ARGS='--images FOLDER'
bench-scale:  ## Clusters of 1 and 5 million vectors in files: time and memory of a vector, 3 GB of disk
bench-streaming:  ## What streaming images that do not fit into memory costs a training
bench-memory:  ## How the memory of each stage grows with the number of images
bench-bit-equal:  ## Whether another commit computes the same: ARGS='--commit COMMIT'
stress: $(READY)  ## Kills, full disks, damaged files and two of everything at once; an hour, run it again to resume
	@python bench/stress.py $(ARGS)

release-check: $(READY)  ## Build, check and install sdist and wheel where nothing else is (docs/releasing.md): ARGS=lowest
	@PYTHON=$(PYTHON) bench/release_check.sh $(ARGS)

bench-gpu:  ## On a GPU: numerics, speed, kernels, then CIFAR-10 (docs/gpu.md): ARGS='--archive FILE --seconds 3600'

$(BENCHMARKS:%=bench-%): bench-%: $(READY)
	@echo "== bench/$(subst -,_,$*).py"
	@python bench/$(subst -,_,$*).py $(ARGS)

$(TABLES:%=bench-%): bench-%: $(READY)
	@echo "== bench/tables.py $*"
	@python bench/tables.py $* $(ARGS)

bench-digits bench-training-step: $(BENCH_READY)

clean:  ## Remove the environment, artifacts and results (not DVC's cache)
	rm -rf $(ENVIRONMENT) .conr artifacts results

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "conr needs Python 3.11 or newer: make PYTHON=python3.12")'
	@echo "Setting up $(ENVIRONMENT) (once; PyTorch is large, allow some minutes)"
	@$(PYTHON) -m venv $(ENVIRONMENT)
	@$(INSTALL) -e '.[dev,pretrained]'
	@touch $(READY)

$(BENCH_READY): $(READY)
	@$(INSTALL) -e '.[bench]'
	@touch $(BENCH_READY)
