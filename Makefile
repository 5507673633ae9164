VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.driftsched
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := $(shell grep '^torch==' requirements-cpu.lock)
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# The Jupyter kernel named python3 starts the first `python` on PATH: it has to be this one.
IN_VENV := PATH="$(abspath $(BIN)):$$PATH"

.PHONY: help setup run test thorough lab bench lint lock

help:  ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 14

setup: $(STAMP)  ## the environment alone, in .venv (PYTHON=... chooses its Python)

run: setup  ## the experiment on real vLLM on this CPU: notebooks, report and results in runs/quick
	@$(IN_VENV) python -m driftsched_lib notebooks params/quick.yaml --out runs/quick

test: lint  ## style, types, every test, and the notebooks cell by cell
	@$(IN_VENV) python tests/smoke_notebooks.py runs/smoke-notebooks
	@$(IN_VENV) pytest -n 2 --dist loadfile --no-loadscope-reorder --nbval-lax tests runs/smoke-notebooks/notebooks

thorough: setup  ## what takes hours: 10,000 fuzzed files of each kind, faults on real vLLM, ten million requests per policy
	@$(IN_VENV) pytest --thorough tests/test_fuzz.py tests/test_faults.py
	@$(IN_VENV) python tests/soak.py

lab: setup  ## JupyterLab on the notebooks
	@$(IN_VENV) jupyter lab notebooks

bench: setup  ## benchmarks of the serving loop, the policies, the plug-in and the simulator
	@$(IN_VENV) PYTHONPATH=tests python -m benchmarks

lint: setup  ## style of code and notebooks, types of the core
	@$(IN_VENV) ruff check
	@$(IN_VENV) ruff format --check
	@$(IN_VENV) mypy

lock: setup  ## write requirements-cpu.lock from what .venv holds
	@{ grep "^#" requirements-cpu.lock; $(BIN)/python -m pip --disable-pip-version-check list --format freeze --exclude-editable --exclude pip; } > $(VENV)/lock
	@mv $(VENV)/lock requirements-cpu.lock
	@touch $(STAMP)

$(BIN)/pip:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3); do \
		$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		&& exec $$python -m venv $(VENV); \
	done; \
	echo "DriftSched needs Python 3.11 or newer with its venv module; name one with PYTHON=..." >&2; exit 1

# torch first and by itself: plain PyPI holds only its CUDA build, and then PyTorch's own index has the CPU one.
$(STAMP): pyproject.toml requirements-cpu.lock | $(BIN)/pip
	@echo "Installing $(TORCH) into $(VENV)"
	@$(PIP) install --no-deps $(TORCH) || { \
		echo "pip's indexes lack it: taking it from $(TORCH_INDEX)"; \
		$(PIP) install --no-deps --index-url $(TORCH_INDEX) $(TORCH); }
	@echo "Installing the other locked packages (2 to 4 minutes)"
	@$(PIP) install --no-deps --requirement requirements-cpu.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
