"""The time of a USRP: its reference, its PPS, and what its clock is set to; is handed UHD, never imports it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from radio.errors import RadioRefused

LOCK_S = 10.0
EDGE_S = 1.2
_EPOCH_S = time.monotonic()  # indices of a radio opened twice in one process keep growing


def wait(locked: Callable[[], bool], patience_s: float, what: str) -> None:
    """Wait until a lock is seen.

    Raises:
        RadioRefused: it is not, in time.
    """
    deadline = time.monotonic() + patience_s
    while not locked():
        if time.monotonic() > deadline:
            raise RadioRefused(f"{what} is not locked after {patience_s:g} s", "check its cable, then its source")
        time.sleep(0.02)


def lock_reference(usrp: Any, name: str, clock: str, pulse: str) -> None:
    """Choose the sources, wait for the lock, and see that time runs.

    Raises:
        RadioRefused: there is no such source, or no lock, or no time.
    """
    clocks, pulses = list(usrp.get_clock_sources(0)), list(usrp.get_time_sources(0))
    for kind, wanted, known in (("clock", clock, clocks), ("time", pulse, pulses)):
        if wanted not in known:
            raise RadioRefused(f"{name} has no {kind} source {wanted}; it has {known}", "choose one of these")
    usrp.set_clock_source(clock, 0)
    usrp.set_time_source(pulse, 0)
    if clock != "internal":
        if "ref_locked" not in usrp.get_mboard_sensor_names(0):
            raise RadioRefused(f"{name} does not tell if its reference is locked", "use its internal clock")
        wait(lambda: usrp.get_mboard_sensor("ref_locked", 0).to_bool(), LOCK_S, f"{name}: the 10 MHz reference")
    before = usrp.get_time_now(0).get_real_secs()
    time.sleep(0.02)
    if usrp.get_time_now(0).get_real_secs() == before:
        raise RadioRefused(
            f"{name}: its time stands still at {before:g} s, so no burst can be timed",
            "use a device, or a simulator, whose time runs",
        )


def last_pps(usrp: Any) -> tuple[int, float]:
    """Give the device's time at the last PPS edge, whole seconds and fraction."""
    told = usrp.get_time_last_pps(0)
    return told.get_full_secs(), told.get_frac_secs()


def set_time(uhd: Any, usrp: Any, name: str, pulse: str) -> None:
    """Set the time: with a PPS, at an edge, to the host's second of the day, so that all radios of a lab agree.

    Raises:
        RadioRefused: no PPS comes, or the time does not become what was set.
    """
    if pulse == "internal":
        fraction, whole = math.modf(time.monotonic() - _EPOCH_S)
        usrp.set_time_now(uhd.types.TimeSpec(int(whole), fraction), 0)
        return
    before = last_pps(usrp)
    wait(lambda: last_pps(usrp) != before, EDGE_S, f"{name}: the PPS")
    second = round(time.time()) % 86400 + 1  # just after an edge: the host may be off by less than half a second
    usrp.set_time_next_pps(uhd.types.TimeSpec(second, 0.0), 0)
    time.sleep(1.1)
    told = last_pps(usrp)
    if told not in ((second, 0.0), (second + 1, 0.0)):
        raise RadioRefused(f"{name}: time at the PPS reads {told}, set to {(second, 0.0)}", "check the PPS cable")
