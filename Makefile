# One target for each thing a person does often. `make demo` needs Python 3.11 and g++, `make test` also Chromium or apt to get it.
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(subst =,-,$(TORCH))

# Two processes (a third made it slower on two cores), a file's tests in one of them, files with slow tests first, the longest
# named at the end. OpenMP threads that wait do not spin: the cores are shared.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	--durations=40 --durations-min=10

# The code that decides, and the tests that alone hold it.
CORE_TESTS := $(addprefix tests/engine/test_,block_pool.py scheduler.py scheduler_events.py) \
	$(addprefix tests/hub_loader/test_,manifest.py resolver.py trust_core.py variant.py)

# The tests that pages name as running their commands.
PAGES = $(shell grep -rhoE 'executed by tests/[a-z_/]+\.py' docs README.md | cut -d' ' -f3 | sort -u)

KERNELS := paged-attention rmsnorm-rotary dense-linear quantized-matmul

# Bytecode is kept where it is made: hundreds of processes would each compile torch anew, half of what the tests take.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test pages test-all fast shuffled lint format bench bench-loader chromium screenshots sanitize docs coverage mutants duplicates clean

demo: $(READY) ## build, serve, publish, fetch, generate: the main job, end to end
	$(BIN)/python ci/demo.py

test: lint chromium ## lint, types, and the tests but for the heaviest
	$(PYTEST) -m "not heavy"

pages: $(READY) ## the commands of the pages, as a reader types them: a few minutes
	$(PYTEST) $(PAGES)

test-all: lint chromium ## every test: also other archs, hollow torch, a cluster (fetches about a gigabyte)
	$(PYTEST)

fast: $(READY) ## the tests that take under five minutes together
	$(PYTEST) -m "not slow"

shuffled: $(READY) chromium ## the same tests in an order that no two runs share
	$(PYTEST) -p randomly -m "not heavy" $(TESTS)

lint: $(READY) ## style, what nothing uses, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vulture
	$(BIN)/mypy --num-workers 2

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Python is not built with the sanitizers, so their run-time comes first; libstdc++ with it, or exceptions are not seen.
sanitize: $(READY) ## the kernels' own tests with AddressSanitizer and UndefinedBehaviorSanitizer in the code
	KHUB_SANITIZE=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_WAIT_POLICY=passive \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
	$(BIN)/python -m pytest -q -p no:faulthandler $(addsuffix /tests,$(addprefix kernels_src/,$(KERNELS)))

docs: $(READY) ## the site, into site/: fails on a broken link or a page in no menu
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

coverage: $(READY) ## the branches of the pure cores by their own tests: at least 95 %
	$(BIN)/coverage run -m pytest -q -m "not slow" $(CORE_TESTS)
	$(BIN)/coverage report

mutants: $(READY) ## change the cores in small ways and see which changes no test notices; MUTANTS='*judge*' takes some
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2 $(if $(MUTANTS),'$(MUTANTS)')
	$(BIN)/mutmut results

duplicates: $(READY) ## eight lines and more that are in two places; ten minutes
	$(BIN)/pylint --recursive=y --disable=all --enable=duplicate-code --min-similarity-lines=8 hub_loader build_matrix registry engine

bench: $(READY) ## the kernels against torch, PEERS='--vllm …' and the limits of this CPU; writes docs/performance.md
	for name in $(KERNELS); do $(BIN)/khub build kernels_src/$$name --select 'torch-stable*-cpu-x86_64*' --out .demo/dist/$$name || exit; done
	$(BIN)/khub bench kernels --packages .demo/dist $(PEERS) --out benchmarks/results/kernels-cpu.json
	$(BIN)/python benchmarks/performance.py

bench-loader: $(READY) ## hub_loader against the stock client, on one hub of this machine
	$(BIN)/python benchmarks/loader.py --json benchmarks/results/loader.json

chromium: ## install the browser that tests look at the pages with, where there is none
	ci/chromium.sh

screenshots: $(READY) chromium ## write docs/screenshots anew: pages, site, terminal, chat
	KHUB_WRITE_SCREENSHOTS=1 $(BIN)/python -m pytest tests/registry/test_pages_browser.py tests/registry/test_terminal.py \
		tests/test_docs_site.py tests/engine/test_serve_page.py -k "screenshot or fits_a_window or answers_with_speed"

bench-registry: $(READY) ## the registry under 200 cold loads at once, and under reading and writing at once
	$(BIN)/python benchmarks/registry.py --json benchmarks/results/registry.json

clean: ## remove the environment and what the demo made
	rm -rf $(VENV) .demo site

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=26' # Python 3.11's takes twice as long
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[dev]'
	touch $@
