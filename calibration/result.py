"""What one calibration step found on one radio: values with their intervals, curves, and what is wrong; no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

#: Two-sided 95 % of the normal distribution, in standard deviations.
Z95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """One measured value with its 95 % interval.

    Attributes:
        value: the estimate.
        low, high: ends of its interval.
        unit: as in the names of fields, for example ``ppm``, ``db``, ``rad``, ``samples``; empty for pure numbers.
    """

    value: float
    low: float
    high: float
    unit: str = ""

    @classmethod
    def normal(cls, value: float, sigma: float, unit: str = "") -> Estimate:
        """Give the interval of a Gaussian error of standard deviation ``sigma``."""
        return cls(float(value), float(value - Z95 * sigma), float(value + Z95 * sigma), unit)

    def holds(self, truth: float) -> bool:
        """Tell if the interval contains a value."""
        return bool(self.low <= truth <= self.high)


Value = Estimate | float | int | str | bool


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        thing: what, as one word of ``docs/errors/calibration.md``, for example ``interferer`` or ``crystal``.
        text: what happened, with numbers.
        remedy: the one thing to do.
    """

    thing: str
    text: str
    remedy: str


@dataclass(frozen=True)
class Result:
    """What a step found on one radio, or on the link between one node and the server.

    Attributes:
        step: name of the step.
        radio: ``server`` or the name of a node.
        values: named values; what could not be measured is absent.
        curves: named arrays for plots and for the digital twin, at most a few thousand points each.
        finding: what is wrong; None when the step passed.
    """

    step: str
    radio: str
    values: Mapping[str, Value] = field(default_factory=dict)
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    finding: Finding | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.finding is None

    def number(self, name: str) -> float:
        """Give a value as a plain number.

        Raises:
            KeyError: it was not measured.
        """
        value = self.values[name]
        return float(value.value if isinstance(value, Estimate) else value)

    def to_json(self) -> dict[str, Any]:
        """Give everything but the curves as JSON values."""
        values = {key: asdict(v) if isinstance(v, Estimate) else v for key, v in self.values.items()}
        return {
            "step": self.step,
            "radio": self.radio,
            "values": values,
            "finding": None if self.finding is None else asdict(self.finding),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any], curves: Mapping[str, np.ndarray]) -> Result:
        """Take up what ``to_json`` gave.

        Raises:
            KeyError, TypeError: it did not come from there.
        """
        values = {key: Estimate(**v) if isinstance(v, dict) else v for key, v in told["values"].items()}
        finding = None if told["finding"] is None else Finding(**told["finding"])
        return cls(str(told["step"]), str(told["radio"]), values, dict(curves), finding)
