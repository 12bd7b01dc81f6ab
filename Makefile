# Everything here needs Python >= 3.11 and make, and nothing else. `make` alone lists what there is.
# Packages come from wherever pip on this machine is set up to look; the lock files pin every version and every hash.

.DEFAULT_GOAL := help
.PHONY: help demo test gpu vllm lint mutants bench chaos lock clean

VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
ARGS :=
JOBS := 3
GPU_PYTHON = $(BIN)/python

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo-ready  ## serve a model on this machine, kill a worker, see it healed, leave nothing behind
	$(BIN)/noray demo $(ARGS)

test: lint  ## lint, then the test suite (ARGS=... for pytest, JOBS=... files at once)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

gpu: $(VENV)/.test-ready  ## vLLM on the GPUs of this machine (GPU_PYTHON=... that has vLLM and pytest), or its stand-in
	$(GPU_PYTHON) -m pytest -m gpu tests/gpu $(ARGS)

# Not in CI: it costs 2700 MB of disk, minutes to install, once, and 6 to run on two cores.
vllm: $(VENV)/.test-ready $(VLLM_VENV)/.ready  ## real vLLM on the CPU of this machine, in an environment of its own
	NORAY_VLLM_PYTHON=$(CURDIR)/$(VLLM_VENV)/bin/python $(BIN)/python -m pytest tests/vllm $(ARGS)

lint: $(VENV)/.test-ready  ## ruff, mypy, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutants: $(VENV)/.test-ready  ## sabotage each guarantee and see its test turn red
	$(BIN)/python tests/mutants/run.py --jobs $(JOBS) $(ARGS)

bench: $(VENV)/.test-ready  ## beside floors and peers, as tables (ARGS="stop memory logs --quick --write=FILE"; root for stop)
	$(BIN)/python -m benchmarks $(ARGS)

chaos: $(VENV)/.test-ready  ## random scenarios over hosts of our own, as root (ARGS="--seed 7", "--count 20 --real --jobs 2")
	$(BIN)/python -m tests.chaos $(ARGS)

# The test set contains the demo set in the same versions (--constraints), so one environment serves both.
# setuptools is locked too: it builds our own package, without a build environment of unknown content.
LOCK = printf 'setuptools>=77\n' | UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile pyproject.toml - --quiet \
	--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links $(ARGS)
lock: $(BIN)/python  ## pin anew what pyproject.toml asks for (ARGS=--upgrade for the newest)
	$(BIN)/python -m pip install --quiet uv
	$(LOCK) --extra dynamo --output-file requirements.lock
	$(LOCK) --extra dynamo --extra test --constraints requirements.lock --output-file requirements-test.lock

clean:  ## remove what make, the tests and the build have made
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.demo-ready: pyproject.toml requirements.lock | $(BIN)/python
	$(call install,requirements.lock)

$(VENV)/.test-ready: pyproject.toml requirements-test.lock | $(BIN)/python
	$(call install,requirements-test.lock)
	@touch $(VENV)/.demo-ready

# Every package is listed, and --no-deps leaves out what a CPU does not need. vLLM's CPU build wants torch's, 2.13.0+cpu, from
# torch's own CPU index if pip does not find it where it looks.
$(VLLM_VENV)/.ready: tests/vllm/requirements.txt tests/vllm/torchvision_ops.py | $(BIN)/python
	$(BIN)/python -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/vllm/requirements.txt
	cp tests/vllm/torchvision_ops.py $(VLLM_VENV)/lib/python3*/site-packages/
	cd $(VLLM_VENV)/lib/python3*/site-packages && echo import torchvision_ops >torchvision_ops.pth
	@touch $@

# Two steps: pip checks hashes of what has hashes, which a working tree has not.
define install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
endef

# The first of these that runs, is new enough and can make virtual environments. PYTHON=... to choose yourself.
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
GOOD_PYTHON := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
$(BIN)/python:
	@for python in $(PYTHONS); do \
	  if $$python -c '$(GOOD_PYTHON)' >/dev/null 2>&1; then \
	    echo "$$python -m venv $(VENV)"; \
	    exec $$python -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "noray needs Python 3.11 or newer with venv and ensurepip; none of these has it: $(PYTHONS)" >&2; \
	echo "Debian and Ubuntu: apt-get install python3-venv. Elsewhere: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1
