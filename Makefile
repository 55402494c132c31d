# Commands for newcomers and CI. They need make and Python 3.11 or 3.12; everything else is installed in .venv.
#
# Packages are installed by uv, if there is one, because it is faster; otherwise by pip with --no-compile, because
# byte-compiling every package takes longer than fetching it.

VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= demo-output
KILLS ?= 200
MINUTES ?= 60
WORKERS ?= auto
# A worker that dies, by a crash or because a test hung, ends the run.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --max-worker-restart 0
# Benchmarks use what is not typed, and names that modules have imported themselves.
LOOSER := --follow-imports=silent --implicit-reexport --allow-untyped-calls --allow-subclassing-any --no-warn-return-any
UV := $(shell command -v uv 2>/dev/null)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo ui test fuzz soak endure check package bench bench-check docs pictures install lock clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: install ## Run a year of real purchases through the whole path; output in demo-output/ (OUTPUT=DIR to change)
	@$(BIN)/unskew demo --output $(OUTPUT)

ui: install ## Show the demo's output in a browser (OUTPUT=DIR to change)
	@$(BIN)/unskew ui $(OUTPUT)

test: install ## Run the tests except the long ones, on all cores (WORKERS=0 for one process)
	$(PYTEST) -m "not long"

fuzz: install ## Run the property tests with new random examples (MINUTES=60); failures stay in .hypothesis/
	$(BIN)/python -m tests.support.fuzz --minutes $(MINUTES)

soak: install ## Kill the pipeline many times (KILLS=200, SEED=N to repeat a history)
	$(BIN)/python -m tests.support.recovery.soak --kills $(KILLS) $(if $(SEED),--seed $(SEED))

endure: install ## Run a live pipeline for an hour: memory, files and disk must not grow (MINUTES=60)
	$(BIN)/python -m tests.support.recovery.endurance --minutes $(MINUTES)

check: install ## Run every check of CI: format, lint, spelling, types, import contracts, the site, all tests and the package
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/mypy
	$(BIN)/mypy $(LOOSER) benchmarks
	$(BIN)/lint-imports --no-logo
	$(BIN)/sphinx-build -q -n -W --keep-going -j auto -c docs/site . build/site
	$(PYTEST)
	$(BIN)/python .ci/package.py

package: install ## Build sdist and wheel, run the wheel's demo and read its features outside the checkout (READERS=PYTHONS)
	$(BIN)/python .ci/package.py $(READERS)

bench: install ## Run the benchmarks
	$(BIN)/python -m benchmarks

bench-check: install ## Compare ratios of speed with those recorded (a few minutes; before a release)
	$(BIN)/python benchmarks/check.py

install: $(VENV)/.installed ## Only set up .venv

# A changed lock makes a new environment, so packages that are no longer in the lock do not stay behind.
$(VENV)/.locked: requirements.lock
	@python=; \
	for candidate in $(PYTHON) python3.11 python3.12 python3 python; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "unskew needs Python 3.11 or 3.12, and neither python3.11, python3.12, python3 nor python is one." >&2; \
	  echo "Install one, or name yours: make PYTHON=/path/to/python3.11 ..." >&2; \
	  exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$($$python --version), once ..."; \
	rm -rf $(VENV); \
	if [ -n "$(UV)" ]; then \
	  "$(UV)" venv --quiet --python "$$("$$python" -c 'import sys; print(sys.executable)')" $(VENV) \
	  && VIRTUAL_ENV="$(CURDIR)/$(VENV)" "$(UV)" pip install --quiet --require-hashes --no-deps -r requirements.lock; \
	else \
	  "$$python" -m venv $(VENV) \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	       --require-hashes --no-deps -r requirements.lock; \
	fi
	@touch $@

# The build backend is in the lock too, so this fetches nothing.
$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	@if [ -n "$(UV)" ]; then \
	  VIRTUAL_ENV="$(CURDIR)/$(VENV)" "$(UV)" pip install --quiet --no-build-isolation --no-deps --editable .; \
	else \
	  { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; } \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	    --no-build-isolation --no-deps --editable .; \
	fi
	@touch $@

COMPILE = "$(UV)" pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header \
  --no-emit-index-url --no-emit-find-links --quiet $(if $(UPGRADE),--upgrade)

docs: install ## Build the site of the documentation into build/site; any warning is an error
	$(BIN)/sphinx-build -q -n -W --keep-going -j auto -c docs/site . build/site
	@echo "Open build/site/index.html"

pictures: install ## Make the pictures of README and docs anew (needs chromium and tmux)
	$(BIN)/python docs/site/timelines.py
	$(BIN)/python -m tests.support.pictures

lock: ## Rewrite the lock files from pyproject.toml (needs uv; UPGRADE=1 takes newer versions)
	@if [ -z "$(UV)" ]; then echo "make lock needs uv: pip install uv" >&2; exit 1; fi
	$(COMPILE) --all-extras --group dev --output-file requirements.lock
	$(COMPILE) --extra pipeline --extra protobuf --extra registry --extra serve --extra objects --group build --constraints requirements.lock --output-file requirements-runtime.lock

clean: ## Remove .venv, caches and the demo's output
	rm -rf $(VENV) demo-output dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
