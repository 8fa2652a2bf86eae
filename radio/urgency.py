"""Asks the system to run threads that feed a stream before others, and those that only wait later; knows no radio."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["calm", "hurry", "urgent"]

NICE, CALM = -15, 5


def hurry(rank: int = 1) -> bool:
    """Put the calling thread, and those it starts later, before ordinary work: round-robin, else a low nice value.

    Both need a privilege that many users do not have (``CAP_SYS_NICE``); streams work without it on a machine that is
    not busy otherwise.

    Args:
        rank: 2 for what moves samples, 1 for what hands them over in time; a higher one interrupts a lower one.

    Returns:
        Whether the system agreed.
    """
    thread = threading.get_native_id()
    try:
        os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(rank))
    except (OSError, AttributeError):  # not allowed, or not Linux
        try:
            os.setpriority(os.PRIO_PROCESS, thread, NICE)
        except (OSError, AttributeError):
            return False
    return True


def calm(prefix: str) -> int:
    """Put threads of this process a little after ordinary work: what asks without a pause must not take all there is.

    Args:
        prefix: how the names of these threads begin.

    Returns:
        How many there are; 0 where the system does not tell.
    """
    found = 0
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # it ended meanwhile
            if (thread / "comm").read_text().startswith(prefix):
                os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, int(thread.name), CALM)
                found += 1
    return found


@contextmanager
def urgent() -> Iterator[None]:
    """Hurry for the length of a block: what must be on the air at a given sample cannot wait its turn."""
    thread = threading.get_native_id()
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    hurry()
    try:
        yield
    finally:
        with suppress(OSError, AttributeError):
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, thread, nice)
