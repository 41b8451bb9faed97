# Everything needs only Python 3.11+ and a C++ compiler.
#   make demo    set up and run the quickstart search
#   make test    set up and run all tests
#   make browser  install Chromium for the tests that open a report (Debian, Ubuntu, as root)
#   make lint    ruff, ruff format --check, mypy --strict
#   make metrics  how large the package is; AGAINST=REVISION shows a git revision beside it

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# DeepSpeed compiles its CPU communication op with ninja, found through PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-fast browser lint format metrics clean

$(READY): pyproject.toml constraints.txt
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "a C++ compiler is needed (e.g. the package g++)"; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch" setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# A pretrained model for the tests; only its files are read, so what its code needs is not.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps rxnmapper
	@touch $@

demo: $(READY)
	$(BIN)/mptune search search_spaces/quickstart.yaml

test: $(READY)
	$(BIN)/python -m pytest

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow"

browser:
	tests/report/install-browser

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

metrics:
	@$(PYTHON) tools/metrics.py $(AGAINST)

clean:
	rm -rf $(VENV) runs build dist *.egg-info
