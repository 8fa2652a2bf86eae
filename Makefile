# Set-up and the daily commands. Everything happens in .venv; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-uhd system env env-dev env-uhd lint types laws docs wheel clean

# What Debian and Ubuntu carry and no wheel brings: libiio for the Pluto, UHD for USRPs, what the tests need of both, and a
# browser for the tests of reports.
PARTS := libiio0 iiod libiio-utils python3-uhd python3-gevent python3-msgpack python3-six chromium chromium-driver
UHD_PYTHON := $(shell command -v /usr/bin/python3)

demo: env
	$(BIN)/testbed run

# Tests paced by the wall clock run alone, one after the other.
test: env-dev
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not realtime"
	$(BIN)/python -m pytest -m realtime

test-uhd: env-uhd
	TESTBED_UHD=1 .venv-uhd/bin/python -m pytest -m "not realtime" tests/usrp
	TESTBED_UHD=1 .venv-uhd/bin/python -m pytest -m realtime tests/usrp

system:
	$(if $(filter 0,$(shell id -u)),,sudo )apt-get install -y --no-install-recommends $(PARTS)

env: $(VENV)/.core
env-dev: $(VENV)/.dev
env-uhd: .venv-uhd/.ready

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.core: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install -q -c constraints.txt -e ".[dev,docs,pluto,dask]"
	touch $@

# Debian's UHD breaks under NumPy 2, and only its own folder of the system's packages may show: an environment apart.
.venv-uhd/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-uhd
	grep -v '^numpy==' constraints.txt > .venv-uhd/constraints.txt
	.venv-uhd/bin/python -m pip --disable-pip-version-check install -q -c .venv-uhd/constraints.txt \
		"numpy<2" -e . pytest pytest-timeout beartype
	ln -sfn "$$($(UHD_PYTHON) -c 'import importlib.util as u; print(u.find_spec("uhd").submodule_search_locations[0])')" \
		"$$(.venv-uhd/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/uhd"
	.venv-uhd/bin/python -c "import uhd; uhd.usrp.MultiUSRP"
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
	rm -rf $(VENV) .venv-uhd build dist docs/_build
