# make fit: set up and run the front door.  make test: set up and pass the tests.  Safe to repeat; needs no root.
# The first that runs: pyenv has a command for every version, also for those that it will not start.
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3; do $$p -c '' 2> /dev/null && echo $$p && break; done)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
SMOKE  ?= tests/test_resolve.py tests/test_resume.py tests/test_configs.py tests/probes/test_readings.py tests/models tests/test_convolutions.py

.PHONY: fit test lint stubs bench lowest clean

fit: $(READY)
	$(BIN)/python main.py fit --config configs/resnet_depth.yaml $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -rs $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# The classes of models, data and callbacks by name, for type checkers: after a file was added.
stubs: $(READY)
	$(BIN)/python -m lightning_depth.plugins

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

# The lowest versions that pyproject.toml allows, in an environment of their own (6 GB): installed, and tried.
lowest:
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-lowest/constraints.txt -e '.[dev]'
	.venv-lowest/bin/python -m pytest -n 2 --dist loadgroup $(SMOKE)

clean:
	rm -rf $(VENV) .venv-lowest build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The versions that this checkout was tested with; another environment needs only the ranges in pyproject.toml.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lightning_depth needs Python 3.11 or newer: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "Cannot make a virtual environment (on Debian: apt-get install python3-venv)." >&2; exit 2; }
	@echo "Setting up $(VENV): about 3 minutes and 6 GB the first time (PyTorch)."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
