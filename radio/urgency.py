"""Asks the system to run a thread that feeds a stream before others; knows scheduling, no radio."""

from __future__ import annotations

import os
import threading

__all__ = ["hurry"]

NICE = -15


def hurry() -> bool:
    """Put the calling thread before ordinary work: round-robin real time, else a low nice value.

    Both need a privilege that many users do not have (``CAP_SYS_NICE``); streams work without it on a machine that is
    not busy otherwise.

    Returns:
        Whether the system agreed.
    """
    thread = threading.get_native_id()
    try:
        os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except (OSError, AttributeError):  # not allowed, or not Linux
        try:
            os.setpriority(os.PRIO_PROCESS, thread, NICE)
        except (OSError, AttributeError):
            return False
    return True
