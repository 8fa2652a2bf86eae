"""Marks for tests that need a part of the system that pip cannot bring; knows how to find each part, opens no radio.

A user without the part sees a skip with the remedy. Where every part is promised (``TESTBED_ALL_PARTS=1``), the hooks
at the end, which ``conftest.py`` takes over, make any skip of any test a failure.
"""

import ctypes.util
import importlib.util
import os
import shutil
from collections.abc import Generator

import numpy as np
import pytest

VARIABLE = "TESTBED_ALL_PARTS"


def _needs(found: bool, remedy: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not found, reason=f"missing on this machine; {remedy}")


def _importable(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


#: the C library with its Python bindings
libiio = _needs(
    ctypes.util.find_library("iio") is not None and _importable("iio", "adi"),
    "apt install libiio0 and pip install '.[pluto]'",
)
#: the server that a Pluto runs, as a second client and as a reference
iiod = _needs(shutil.which("iiod", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None, "apt install iiod")
#: command-line clients of an iiod
iio_tools = _needs(shutil.which("iio_info") is not None, "apt install libiio-utils")
#: the settings of a real Pluto, as pytest-libiio has recorded them
pluto_dump = _needs(_importable("pytest_libiio"), "pip install '.[dev]'")
#: UHD for this interpreter; its binding of before NumPy 2 crashes under NumPy 2
uhd = _needs(
    _importable("uhd") and np.__version__.split(".")[0] == "1",
    "apt install python3-uhd, in an environment that sees it and has numpy<2",
)
#: a browser and what steers it
browser = _needs(
    all(shutil.which(name) for name in ("chromium", "chromedriver")) and _importable("selenium"),
    "apt install chromium chromium-driver and pip install '.[dev]'",
)


def _refuse_skip(report: pytest.CollectReport | pytest.TestReport) -> None:
    if os.environ.get(VARIABLE) == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was not run, and {VARIABLE}=1 allows no skip. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report
