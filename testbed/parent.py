"""Knows what a daemon owes the launcher that started it: a word when ready, and to die with it; knows no lab."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["PARENT_VARIABLE", "READY", "announce_ready", "die_with_parent"]

PARENT_VARIABLE = "TESTBED_LAUNCHER"  # environment variable with the launcher's process number
READY = "ready "
_PR_SET_PDEATHSIG = 1  # Linux prctl(2)


def announce_ready(name: str) -> None:
    """Tell a launcher, through the log, that this process now answers."""
    sys.stdout.write(f"{READY}{name}\n")
    sys.stdout.flush()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its launcher dies, if it has one. Linux only; elsewhere do nothing."""
    parent = os.environ.get(PARENT_VARIABLE, "")
    if not parent.isdigit() or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)
