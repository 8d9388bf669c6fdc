# make demo   synthesise, train, infer, evaluate and report in demo/, offline once the packages are installed
# make test   every check of the project; CI runs the same
# Both need only Python 3.10 or newer and make: the first run installs the locked packages into .venv/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEED ?= 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo docs test lint types docs-spelling unit format lock audit clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

install: $(STAMP)  ## Create .venv with the locked packages and this checkout

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "MAEDiff needs Python 3.10 or newer; $(PYTHON) is older: make PYTHON=/path/to/python3 …" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "installing the locked packages into $(VENV)/ (minutes, once)"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## Run the whole pipeline on a synthetic cohort; open demo/report.html
	$(BIN)/maediff demo --output demo --seed $(SEED)

docs: $(STAMP)  ## Build the documentation into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint types docs-spelling unit  ## Run every check

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry .

types: $(STAMP)
	$(BIN)/mypy --strict maediff cli benchmarks

docs-spelling: $(STAMP)
	$(BIN)/codespell

unit: $(STAMP)
	$(BIN)/python -m pytest

format: $(STAMP)  ## Format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Resolved with uv for every supported Python at once; what is pinned stays (torch, whose CPU wheel this project's machines
# hold, above all), so delete a line of requirements.lock to upgrade its package. The CUDA packages are left to torch,
# whose builds differ in them.
lock: $(STAMP)  ## Add to requirements.lock what pyproject.toml asks for
	$(BIN)/python -m pip install --quiet uv
	cp requirements.lock $(VENV)/resolved.txt
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.10 --all-extras --group dev --group docs --no-header \
	  --no-annotate --no-emit-index-url --no-emit-find-links --output-file $(VENV)/resolved.txt --quiet
	{ sed -n '/^#/p' requirements.lock; \
	  grep -vE '^(#|nvidia-|cuda-|triton=|.*== .emscripten)' $(VENV)/resolved.txt; } > $(VENV)/requirements.lock
	mv $(VENV)/requirements.lock requirements.lock

# Asks PyPI, or with AUDIT="-s osv" the OSV database, about every locked package; it needs the network and is no part of test.
audit: $(STAMP)  ## Look for known vulnerabilities in the locked packages
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict -r requirements.lock --no-deps --disable-pip --progress-spinner off $(AUDIT)

clean:  ## Remove the environment, caches and the demo
	rm -rf $(VENV) demo site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
