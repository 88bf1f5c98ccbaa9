# make train   a virtual environment, the package, a first trained operator
# make test    the same set-up, then the tests
# make lint    ruff and pyright
# make bench   the benchmarks; with PyTorch peers after: .venv/bin/pip install -e '.[bench]'
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python

.PHONY: train test lint bench format clean

train: $(VENV)/.train
	$(PY) train.py $(ARGS)

test: $(VENV)/.test
	$(PY) -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)

bench: $(VENV)/.train
	$(PY) benchmarks/optimizer.py $(ARGS)
	$(PY) benchmarks/training_step.py
	$(PY) benchmarks/transforms.py
	$(PY) benchmarks/sizes.py
	$(PY) benchmarks/memory.py

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# One stamp per extra: a target installs when pyproject.toml is newer than its stamp.
$(VENV)/.train $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "error: Python 3.11 or newer is needed, %s is %d.%d; try make PYTHON=python3.12" % (sys.executable, *v[:2]))'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
