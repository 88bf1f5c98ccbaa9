# make train        a virtual environment, the package, a first trained operator
# make test         the same set-up, then the tests
# make test-newest  half of them, and the slow ones, on the newest Python and packages
# make lint         ruff and pyright
# make docs         the documentation as a site, site/index.html; a wrong link fails
# make validation   comparisons with what is known in closed form, a few minutes
# make faults       attacks on train.py: kills, signals, damaged files, full disks; half an hour
# make bench        the benchmarks; with PyTorch peers after: .venv/bin/pip install -e '.[bench]'
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
NEWEST_VENV ?= .venv-newest
NEWEST_PYTHON ?= python3.13

.PHONY: train test test-newest lint docs validation faults bench format clean

train: $(VENV)/.train
	$(PY) train.py $(ARGS)

test: $(VENV)/.test
	$(PY) -m pytest $(ARGS)

test-newest:
	@$(NEWEST_PYTHON) -c '' 2>/dev/null || { echo "error: make test-newest needs Python 3.13, $(NEWEST_PYTHON) does not run; try make test-newest NEWEST_PYTHON=/path/to/python3.13" >&2; exit 2; }
	$(MAKE) test VENV=$(NEWEST_VENV) PYTHON=$(NEWEST_PYTHON) ARGS='-m "newest or thorough" $(ARGS)'

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)

# With --quiet MkDocs would not count warnings, and a wrong link would pass.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

faults: $(VENV)/.test
	$(PY) -m tests.faults $(ARGS)

validation: $(VENV)/.train
	for script in validation/*.py; do $(PY) $$script || exit 1; done

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
$(VENV)/.train $(VENV)/.test $(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "error: Python 3.11 or newer is needed, %s is %d.%d; try make PYTHON=python3.12" % (sys.executable, *v[:2]))'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(NEWEST_VENV) build site *.egg-info .pytest_cache .ruff_cache
