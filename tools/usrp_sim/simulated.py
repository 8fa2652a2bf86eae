"""Starts and ends simulated E320s as child processes, from any Python; imports nothing of UHD."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType

LAUNCHER = Path(__file__).with_name("launch.py")
BRIDGE = Path(__file__).with_name("bridge.py")
SYSTEM_PYTHON = "/usr/bin/python3"  # the one that Debian's MPM belongs to


class Simulated:
    """One simulated E320, ready for clients; it ends with this process whatever happens.

    Args:
        number: it listens on 127.0.0.NUMBER and has serial SIM00NUMBER.
        air: ``loop``, ``counter``, or HOST:PORT of a bridge.
        options: further options of the launcher.

    Raises:
        RuntimeError: it does not start.
    """

    def __init__(self, number: int, air: str = "loop", *options: str) -> None:
        self.address, self.serial = f"127.0.0.{number}", f"SIM{number:04d}"
        self.rest = f"addr={self.address},type=e3xx"  # what follows usrp:
        python = shutil.which("python3", path="/usr/bin") or SYSTEM_PYTHON
        command = [python, str(LAUNCHER), "--address", self.address, "--serial", self.serial, "--air", air]
        self.process = subprocess.Popen(
            [*command, "--while-stdin", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        if not told or json.loads(told)["serial"] != self.serial:
            self.stop()
            raise RuntimeError(f"the simulated E320 on {self.address} did not start; see its messages above")

    def stop(self) -> None:
        """End it as a power cut does. Safe to call twice."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Simulated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class SimulatedLab:
    """Simulated E320s on one simulated air, in a process of its own: UHD holds the interpreter while it opens a device.

    Args:
        count: of devices.
        preset: of the air.
        first: they listen on 127.0.0.FIRST and the addresses after it.
        options: further options of the bridge.
    """

    def __init__(self, count: int, preset: str, first: int, *options: str) -> None:
        options = ("--radios", str(count), "--preset", preset, "--first", str(first), "--while-stdin", *options)
        self.process = subprocess.Popen(
            [sys.executable, str(BRIDGE), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        told = [self.process.stdout.readline().strip() for _ in range(count)]
        if not all(told):
            self.stop()
            raise RuntimeError("the simulated air did not start; see its messages above")
        self.rests = [line.partition("usrp:")[2] for line in told]

    def stop(self) -> None:
        """End the air and its devices. Safe to call twice."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> SimulatedLab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
