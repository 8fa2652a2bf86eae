# Set-up and the daily commands. Everything happens in .venv; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test env env-dev lint types laws docs wheel ci clean

demo: env
	$(BIN)/testbed run

test: env-dev
	$(BIN)/python -m pytest -n auto --dist worksteal

env: $(VENV)/.core
env-dev: $(VENV)/.dev

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.core: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install -q -c constraints.txt -e ".[dev,docs]"
	touch $@

lint: env-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env-dev
	$(BIN)/mypy

laws: env-dev
	$(BIN)/lint-imports

docs: env-dev
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

# A wheel in an empty environment must bring its own dependencies and open all four rooms.
wheel: env-dev
	rm -rf build/wheel && mkdir -p build/wheel
	$(PIP) wheel -q --no-deps -w build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt build/wheel/*.whl
	cd build/wheel && venv/bin/python -c "import radio, fl_core, calibration, testbed" && venv/bin/testbed --help > /dev/null
	cd build/wheel && venv/bin/testbed doctor

clean:
	rm -rf $(VENV) build dist docs/_build
