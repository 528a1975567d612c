# One target for each thing a person does often. `make demo` needs Python 3.11 and g++, `make test` also Chromium or apt to get it.
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(subst =,-,$(TORCH))

# Two processes, a file's tests in one of them. OpenMP threads that wait do not spin: the cores are shared.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile

KERNELS := paged-attention rmsnorm-rotary dense-linear quantized-matmul

.PHONY: demo test test-all fast lint format bench bench-loader chromium screenshots docs clean

demo: $(READY) ## build, serve, publish, fetch, generate: the main job, end to end
	$(BIN)/python ci/demo.py

test: lint chromium ## lint, types, and the tests but for the heaviest
	$(PYTEST) -m "not heavy"

test-all: lint chromium ## every test: also other archs, hollow torch, a cluster (fetches about a gigabyte)
	$(PYTEST)

fast: $(READY) ## the tests that take under five minutes together
	$(PYTEST) -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## the site, into site/: fails on a broken link or a page in no menu
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(READY) ## the kernels against torch eager and the limits of this machine's CPU; writes docs/performance.md
	for name in $(KERNELS); do $(BIN)/khub build kernels_src/$$name --select 'torch-stable*-cpu-x86_64*' --out .demo/dist/$$name || exit; done
	$(BIN)/python benchmarks/kernels.py --packages .demo/dist --out benchmarks/results/kernels-cpu.json
	$(BIN)/python benchmarks/performance.py

bench-loader: $(READY) ## hub_loader against the stock client, on one hub of this machine
	$(BIN)/python benchmarks/loader.py --json benchmarks/results/loader.json

chromium: ## install the browser that tests look at the pages with, where there is none
	ci/chromium.sh

screenshots: $(READY) chromium ## write docs/screenshots anew
	KHUB_WRITE_SCREENSHOTS=1 $(BIN)/python -m pytest tests/registry/test_pages_browser.py -k screenshot

bench-registry: $(READY) ## the registry under 200 cold loads at once, and under reading and writing at once
	$(BIN)/python benchmarks/registry.py --json benchmarks/results/registry.json

clean: ## remove the environment and what the demo made
	rm -rf $(VENV) .demo site

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
