PYTHON ?= python3
VENV ?= .venv
PEERS := .venv-peers
PYTEST_ARGS ?=
# Processes that share the tests; on an accelerator, which one process takes for itself, none beside it.
WORKERS ?= $(if $(ACCELERATOR),0,auto --maxprocesses=8)

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# Left out, ACCELERATOR is what the environment was made with.
ACCELERATOR ?= $(shell cat $(READY) 2>/dev/null)
override ACCELERATOR := $(strip $(ACCELERATOR))
EXTRA := $(if $(ACCELERATOR),$(if $(filter cuda,$(ACCELERATOR)),[gpu],[$(ACCELERATOR)]))

ifneq ($(ACCELERATOR),$(filter cuda tpu,$(ACCELERATOR)))
$(error ACCELERATOR is '$(ACCELERATOR)'; choose cuda, tpu or nothing)
endif

.DEFAULT_GOAL := help
.PHONY: help venv reproduce reproduce-toy reproduce-beyond reproduce-sae reproduce-lm reproduce-reading reproduce-stories reproduce-all test test-parity lint format bench peers clean FORCE

help: ## print this list
	@echo "make TARGET [PYTHON=python3] [VENV=.venv] [ACCELERATOR=cuda|tpu] [PYTEST_ARGS='-k name']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

# ---- environments. The stamp is written last, so one that is half made, or whose Python is gone, is made again.

# $(call environment,FOLDER,WHAT PIP INSTALLS)
define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "superpose needs Python 3.11 or newer, and '$(PYTHON)' says: $$($(PYTHON) --version 2>&1 | tail -n 1). Name another with make PYTHON=python3.12." >&2; \
  exit 1; }
@case '$(abspath $(1))' in '$(CURDIR)'/*) ;; *) if [ -e '$(1)' ] && [ ! -e '$(1)/.ready' ]; then \
  echo "'$(1)' exists and was not finished by this Makefile: remove it, or name another with make VENV=FOLDER." >&2; \
  exit 1; fi ;; esac
@rm -f $(1)/.ready
$(PYTHON) -m venv --clear $(1)
$(1)/bin/python -m pip install --disable-pip-version-check $(2)
@echo '$(if $(filter $(VENV),$(1)),$(ACCELERATOR))' > $(1)/.ready
endef

runs = $(shell $(1)/bin/python -c '' 2>/dev/null && echo yes)
ifneq ($(call runs,$(VENV))-$(ACCELERATOR),yes-$(strip $(shell cat $(READY) 2>/dev/null)))
$(READY): FORCE
endif
ifneq ($(call runs,$(PEERS)),yes)
$(PEERS)/.ready: FORCE
endif

venv: $(READY) ## make the environment; ACCELERATOR=cuda (CUDA 13) or tpu adds that backend
$(READY): requirements.txt requirements-dev.txt
	$(call environment,$(VENV),-r requirements.txt -r requirements-dev.txt -e '.$(EXTRA)')

peers: $(PEERS)/.ready ## make the environment of the libraries that benchmarks compare with
$(PEERS)/.ready: requirements-peers.txt
	$(call environment,$(PEERS),-r requirements-peers.txt)
	@$(PEERS)/bin/python -m pip install -q --no-deps sae-dashboard==0.8.0  # it asks for older versions of the peers above
	@$(PEERS)/bin/python -m pip uninstall -q -y torchvision  # a build for another torch, which breaks the peers' imports

# ---- what one does with them

reproduce: $(READY) ## train and draw the main figures into figures/, then print the table of claims
	$(PY) -m experiments.reproduce main --anew

reproduce-toy: $(READY) ## the same for the other figures of the paper (about half an hour on 2 cores)
	$(PY) -m experiments.reproduce toy --anew

reproduce-beyond: $(READY) ## the same for toy models of later papers (about three quarters of an hour on 2 cores)
	$(PY) -m experiments.reproduce beyond --anew

reproduce-sae: $(READY) ## the same for the SAE experiments (about 50 minutes on 2 cores)
	$(PY) -m experiments.reproduce sae --anew

reproduce-lm: $(READY) ## the same for language models and their SAEs (one_layer takes about half an hour on 2 cores, all about two hours)
	$(PY) -m experiments.reproduce lm --anew

reproduce-reading: $(READY) ## the four questions asked of the models of reproduce-lm, which comes first (about an hour and a half for each of the two on 2 cores)
	$(PY) -m experiments.reproduce reading --anew

reproduce-stories: $(READY) ## the same for llama2.c's model: put stories260K.bin and tok512.bin here first
	$(PY) -m experiments.reproduce stories --anew

reproduce-all: $(READY) ## every figure that is not made by this config and this code (about seven hours on 2 cores)
	$(PY) -m experiments.reproduce

test: $(READY) ## run the tests
	$(PY) -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-parity: $(READY) $(PEERS)/.ready ## compare with SAELens and dictionary_learning: losses, gradients, files, scores
	SUPERPOSE_PEERS=$(abspath $(PEERS))/bin/python $(PY) -m pytest tests/parity -m "ci or not ci" $(PYTEST_ARGS)

lint: $(READY) ## check style, format and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: $(READY) ## mend style and format
	$(PY) -m ruff check --fix --exit-zero
	$(PY) -m ruff format

bench: $(READY) $(PEERS)/.ready ## time the library side by side with its peers
	$(PY) -m benchmarks.toy
	$(PY) -m benchmarks.sae
	$(PY) -m benchmarks.lm
	$(PY) -m benchmarks.dashboard

clean: ## remove runs/ (checkpoints and logs); figures/ stays
	rm -rf runs
