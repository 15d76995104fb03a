# Two commands: `make demo` and `make test`. PYTHON chooses the interpreter, VENV the environment's folder.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo demo-visft visft-study test test-slow test-kill check lint docs lock clean

# The environment is made again only when the package's metadata changes.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "keepsight needs Python 3.11 to 3.13, found " + sys.version.split()[0] + ": choose one with make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(PIP) --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/keepsight compare demo

# Both stages of ViSFT on composed scenes, small.
demo-visft: $(VENV)/.installed
	$(PIP) --editable '.[scenes]'
	test -d runs/scenes || $(BIN)/keepsight demo-data scenes runs/scenes --images 400 --val 60 --test 60
	$(BIN)/keepsight visft runs/scenes --out runs/visft-demo detection_stage.steps=300 segmentation_stage.steps=200 captioning_stage.steps=300 \
		joint.steps=40 joint.ladder=40 forgetting.per_set=150

# What ViSFT does to tasks that it never saw: three seeds, with and without retention, a negative control, diagnoses. A killed one goes on.
visft-study: $(VENV)/.installed
	$(PIP) --editable '.[scenes,figures]'
	$(BIN)/python benchmarks/visft_study.py --out runs/visft-study

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 -m "not slow" --doctest-modules src tests

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow tests

# Twenty runs killed at any moment and resumed; damaged files; a full disk.
test-kill: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow tests/faults

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict --quiet

check: lint docs test

# The exact set of packages of this environment, for reproducing it elsewhere.
lock: $(VENV)/.installed-dev
	{ sed -n '/^#/p' requirements.lock; $(BIN)/python -m pip freeze --exclude-editable; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) site
