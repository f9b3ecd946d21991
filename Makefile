# What there is to run. `make mount` and `make test` install what they need; nothing else has to be set up.
#
# PYTHON chooses the interpreter of the virtual environment (3.11 or newer).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-test mount lint types check test clean
.PHONY: test-unit test-kernel test-posix test-model test-stress test-kubo test-stores test-faults soak bench bench-fs bench-scale fuzz

help:
	@echo 'make mount DIR=/some/directory   install into .venv, mount over DIR'
	@echo 'make test                        everything: lint, types, all tests'
	@echo 'make check                       lint, types, unit tests that take no seconds each: the quick one'
	@echo 'make test-unit | test-kernel | test-posix | test-model | test-stress | test-kubo'
	@echo 'make test-stores [STORES="kubo …"]   workloads and crashes again, with a node as the store'
	@echo 'make test-faults                 full and broken disks, power cuts, signals, limits, clocks'
	@echo 'make soak [HOURS=1]              the property, model and stress tests in full, for hours'
	@echo 'make bench-fs [BENCH_FS="FLAG … ROW …"]   beside the local file system and other mounts; takes long, see docs/performance.md'
	@echo 'make bench [BENCH="ROW …"]       that, do handlers stall each other, what do they cost, how fast are the store and a node: 35 GB of disk'
	@echo 'make bench-scale                 a million files: time, memory'
	@echo 'make fuzz [FUZZ_SECONDS=240]     coverage-guided fuzzing of the decoders, each for so long'
	@echo 'make clean                       remove .venv and what the tools left'

# --- installing -------------------------------------------------------------------------------------------------

$(VENV)/installed: pyproject.toml constraints.txt scripts/system-packages Makefile
	@PYTHON='$(PYTHON)' scripts/system-packages run
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info >= (3, 11) or sys.exit( \
	  "ipfsfs needs Python 3.11 or newer, and $(PYTHON) is " + v + ": run make with PYTHON=/path/to/a/newer/python3")'
	@test -x $(BIN)/python || { echo 'Making $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@echo 'Installing ipfsfs into $(VENV)'
	@$(PIP) install --constraint constraints.txt --editable .
	@$(BIN)/python -m compileall -q fused
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo 'Installing what the tests need into $(VENV)'
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/installed

install-test: $(VENV)/installed-test
	@scripts/system-packages test
	@scripts/system-packages bench

# --- using ------------------------------------------------------------------------------------------------------

# DIR goes through the environment, not through the shell's parser: it may hold blanks and quotes.
export DIR
mount: $(if $(DIR),$(VENV)/installed)
	@test -n "$$DIR" || { echo 'usage: make mount DIR=/some/directory' >&2; exit 2; }
	@$(BIN)/ipfsfs mount $(MOUNT_FLAGS) "$$DIR"
	@scripts/what-next $(CURDIR)/$(BIN)/ipfsfs "$$DIR"

# --- checking ---------------------------------------------------------------------------------------------------

# Tests that can't run here fail instead of being skipped, and say what is missing.
PYTEST := IPFSFS_TEST_NO_SKIP=1 PATH="$(CURDIR)/$(BIN):$$PATH:/usr/sbin:/sbin" $(BIN)/python -m pytest

lint: install-test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: install-test
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/mypy --no-error-summary --explicit-package-bases --package bench

# Side by side, which these can be: each has its own directory, ports that the kernel chose, and no mount elsewhere.
check: lint types
	@$(PYTEST) -m 'not slow' -n "$$(nproc)" tests/unit tests/test_layering.py

test: lint types
	@$(PYTEST)

test-unit: install-test
	@$(PYTEST) tests/unit tests/test_layering.py

test-kernel: install-test
	@$(PYTEST) tests/kernel

test-posix: install-test
	@$(PYTEST) tests/posix tests/unit/test_posix_differences.py

test-model: install-test
	@$(PYTEST) tests/model

# What was done first with the embedded store, with a node as the store: programs on a mount, databases in snapshots,
# the CID that Kubo gives, a daemon that is killed again and again.
STORES ?= kubo ipfs-kit
ON_A_STORE := $(wildcard tests/kernel/test_workload_*.py) tests/kernel/test_sqlite_snapshots.py \
  tests/kernel/test_incremental.py tests/kernel/test_crash.py tests/kubo/test_snapshot_same_cid.py

test-stores: install-test
	@for store in $(STORES); do IPFSFS_TEST_STORE=$$store $(PYTEST) $(ON_A_STORE) || exit 1; done

test-kubo: install-test
	@$(PYTEST) -m kubo

test-stress: install-test
	@$(PYTEST) tests/stress

test-faults: install-test
	@$(PYTEST) tests/faults

# HOURS is how long programs work on a mount while its store and index are disturbed; all the rest takes some hours, too.
HOURS ?= 1
SOAK := IPFSFS_TEST_PROFILE=soak IPFSFS_TEST_HOURS=$(HOURS) $(PYTEST) -o faulthandler_timeout=0 --durations=0 --durations-min=10

soak: install-test
	@$(SOAK) tests/property tests/model tests/stress

bench-scale: install-test
	@$(SOAK) tests/stress/test_million_files.py

FUZZ_SECONDS ?= 240
FUZZ_TARGETS ?= dag_pb unixfs hamt dag dag_cbor xattrs cid_bytes cid_text control config settings

$(VENV)/installed-fuzz: $(VENV)/installed-test
	@echo 'Installing the fuzzer into $(VENV)'
	@$(PIP) install --constraint constraints.txt --editable '.[fuzz]'
	@touch $@

# Not part of `make test`, which runs the same targets with fewer and tamer inputs (tests/property/test_fuzz_targets.py).
fuzz: $(VENV)/installed-fuzz
	@for target in $(FUZZ_TARGETS); do $(BIN)/python tests/fuzz/fuzz.py $$target $(FUZZ_SECONDS) || exit 1; done

# Beside the directory itself and other mounts. BENCH_FS names rows and flags, as `--size medium requests`.
BENCH_FS ?= --at /var/tmp --tmpfs
bench-fs: install-test
	@PYTHONPATH=. $(BIN)/python -m bench.fs --json bench-fs.json $(BENCH_FS)

# BENCH names rows of bench/stall.py, or flags, as `--at DIRECTORY` on the disk to be measured.
bench: bench-fs
	@$(BIN)/python bench/stall.py --json bench-stall.json $(BENCH)
	@PYTHONPATH=. $(BIN)/python bench/handlers.py
	@PYTHONPATH=. $(BIN)/python bench/store.py put
	@PYTHONPATH=. $(BIN)/python bench/store.py get
	@PYTHONPATH=. $(BIN)/python bench/node.py --json bench-node.json

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist ipfsfs.egg-info
	find fused tests -name __pycache__ -type d -exec rm -rf {} +
