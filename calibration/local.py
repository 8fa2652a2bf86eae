"""The steps of a calibration on one radio, by name; knows no other radio, no link and no process.

Each runs on a radio whose neighbours are muted, in virtual and in real time alike, through the ``Radio`` protocol
alone. It leaves the radio muted, with the settings it came with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from calibration.options import CalibrationOptions
from calibration.receiver import noise
from calibration.result import Finding, Result, Value
from calibration.streams import integrity, offset
from calibration.transmitter import level
from radio.base import Radio, RadioConfig

#: (radio, settings, options, seed, name of the radio in the lab) -> what was found. The seed picks the codes sent: give
#: every radio its own, so that neighbours are not mistaken for its own echo.
LocalStep = Callable[[Radio, RadioConfig, CalibrationOptions, int, str], Result]


def warmth(told_c: float | None) -> dict[str, float]:
    """Give the temperature that a radio tells as ``temperature_c``; nothing where it tells none."""
    return {} if told_c is None else {"temperature_c": told_c}


def inventory(radio: Radio, config: RadioConfig, options: CalibrationOptions, seed: int, name: str) -> Result:
    """Write down what the radio declares of itself; nothing is sent."""
    able = radio.capabilities
    finding = None
    if not able.driver or "unknown" in f"{able.driver} {able.tier}".lower():
        finding = Finding(
            "tier",
            f"{name}: the driver says {able.driver or 'nothing'!r} of itself, tier {able.tier}: nothing is known of it",
            "install a firmware that the documentation of the driver lists",
        )
    values: dict[str, Value] = {
        "serial": able.serial,
        "driver": able.driver,
        "tier": str(able.tier),
        "one_timeline": able.one_timeline,
        "shared_reference": able.shared_reference,
        "reports_losses": able.reports_losses,
        "real_time": able.real_time,
        "turnaround_samples": able.turnaround_samples,
        "block_samples": able.block_samples,
        "max_rate_hz": able.max_rate_hz,
    }
    return Result("inventory", name, {**values, **warmth(radio.temperature_c())}, finding=finding)


def _restoring(step: LocalStep) -> LocalStep:
    @wraps(step)
    def run(radio: Radio, config: RadioConfig, options: CalibrationOptions, seed: int, name: str) -> Result:
        radio.mute()
        taken = radio.configure(config)
        try:
            return step(radio, taken, options, seed, name)
        finally:
            radio.mute()
            radio.configure(config)

    return run


LOCAL: dict[str, LocalStep] = {step.__name__: _restoring(step) for step in (inventory, noise, level, integrity, offset)}
