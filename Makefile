# Two commands: `make train` runs the main job, `make test` the tests. Both set up .venv the first time.

# A python3 that fits, else one of the versions by name.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
READY := $(VENV)/.ready

.PHONY: train test install clean

train: $(READY)
	$(VENV)/bin/bicot train examples/shapes/train.yaml $(ARGS)

test: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest $(ARGS)

install: $(READY)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "bicot needs Python 3.11 or 3.12: install one, or name it with make PYTHON=..."; exit 1; }
	@echo "setting up $(VENV) with pinned dependencies (once; a few minutes)"
	@$(PYTHON) -m venv $(VENV) || { echo "that Python has no venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV)
