"""Repeats a real-time test that failed while the machine stood still; knows the clock, no test and no radio.

Virtual machines are halted by their hosts for tens of milliseconds now and then, which no program can make up for that
must hand over samples every eight. Such a failure tells nothing, so the test is tried again, thrice at most, and the
summary says so. A process of its own, urgent before everything in this project, finds the halts: it sleeps for a
millisecond at a time and notes how late it woke. Where the system does not let it be urgent, nothing is repeated.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

HALT_S = 10e-3  # more than the block of 8 ms that is being filled when it begins
TRIES = 4
WATCH = f"""
import os, sys, time
os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(50))
parent, last = os.getppid(), time.monotonic()
while os.getppid() == parent:
    time.sleep(1e-3)
    now = time.monotonic()
    if now - last > {HALT_S} + 1e-3:
        print(last, now - last, flush=True)
    last = now
"""


class Stillness:
    """A plugin of pytest, for tests that are marked as ``realtime``."""

    def __init__(self) -> None:
        self._log = Path(tempfile.mkdtemp(prefix="stillness-")) / "halts"
        with self._log.open("a") as out:  # a test adds lines of its own
            self._watch = subprocess.Popen([sys.executable, "-c", WATCH], stdout=out, stderr=subprocess.DEVNULL)
        self._repeated: list[str] = []

    def longest_s(self, begin_s: float) -> float:
        """Give the longest halt since a monotonic time."""
        halts = [tuple(map(float, line.split())) for line in self._log.read_text().splitlines()]
        return max((length for at, length in halts if at >= begin_s), default=0.0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if item.get_closest_marker("realtime") is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for left in reversed(range(TRIES)):
            begin_s = time.monotonic()
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            halt_s = self.longest_s(begin_s)
            if not left or not halt_s or not any(report.failed for report in reports):
                break
            self._repeated.append(f"{item.nodeid}: failed while the machine stood still for {1e3 * halt_s:.0f} ms")
            item._initrequest()  # type: ignore[attr-defined]  # its fixtures are made anew
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._repeated:
            terminalreporter.section("tried again")
            terminalreporter.write_line("\n".join(self._repeated))

    def pytest_unconfigure(self) -> None:
        self._watch.kill()
        self._watch.wait()


def pytest_configure(config: pytest.Config) -> None:
    """Watch where real-time tests are asked for; they run alone, in one process."""
    if "realtime" in config.option.markexpr and "not realtime" not in config.option.markexpr:
        config.pluginmanager.register(Stillness(), "stillness")
