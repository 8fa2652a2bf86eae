"""How the report writes numbers: labels, units and intervals of measured values; knows no page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibration.result import Estimate, Value

__all__ = ["ABSENT", "Column", "number", "tidy"]

#: Name of a value -> how a reader calls it. The unit comes from the end of the name.
LABELS: Mapping[str, str] = {
    "turnaround_samples": "turnaround",
    "block_samples": "block",
    "max_rate_hz": "largest rate",
    "band_low_hz": "band from",
    "band_high_hz": "band to",
    "radiated_dbm": "radiated",
    "profile": "safety profile",
    "centre_hz": "carrier",
    "bandwidth_hz": "bandwidth",
    "limit_dbm": "limit",
    "noise_dbfs": "noise per sample",
    "noise_figure_db": "noise figure",
    "dc_dbfs": "DC offset",
    "image_dbc": "image sent",
    "rx_image_dbc": "image received",
    "echo_db": "own echo",
    "gapless_s": "without a gap",
    "tested_rate_hz": "at rate",
    "lost": "samples lost",
    "repeated": "samples repeated",
    "leak_dbc": "LO leak",
    "gain_step_db": "step of 1 dB gives",
    "spur_hz": "strongest line at",
    "spur_db": "line over noise",
    "compression_db": "compression at full drive",
    "span_s": "watched",
    "latency_s": "latency",
    "offset_samples": "last offset",
    "spread_samples": "spread",
    "ppm": "ppm",
    "drift_ppb_per_s": "drift (ppb/s)",
    "warm_ppm": "change in warm-up (ppm)",
    "warm_s": "warm after",
    "predicted_sigma_rad": "predicted phase error",
    "adev": "ADEV at 0.1 s, pair",
    "adev_own": "ADEV at 0.1 s, alone",
    "white_phase_rad": "white phase noise",
    "snr_db": "SNR",
    "cfo_rms_hz": "frequency, rms",
    "index_rms_samples": "time, rms",
    "gain_db": "link gain",
    "delay_samples": "delay",
    "rms_delay_s": "rms delay spread",
    "coherence_time_s": "coherence time",
    "coherence_hz": "coherence bandwidth",
    "std_samples": "spread of arrival",
    "noise_samples": "of it noise",
    "advance_samples": "timing advance",
    "converged_bursts": "settled after (bursts)",
    "sigma_rad": "phase error",
    "horizon_s": "at horizon",
    "null_depth_db": "depth of null",
    "level_db": "level",
    "nmse_db": "NMSE, measured",
    "predicted_db": "NMSE, predicted",
    "formula_db": "NMSE, explained",
    "loss_db": "above explained",
    "bound_db": "NMSE, noise alone",
}
_UNITS = {"hz": "Hz", "s": "s", "db": "dB", "dbfs": "dBFS", "dbm": "dBm", "dbc": "dBc", "rad": "rad"}
_UNITS |= {"samples": "samples", "ppm": "ppm"}
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
MINUS, ABSENT = "\u2212", "\u2013"  # the printed minus, and a dash for what was not measured
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Column:
    """A column of values of one name, all in one unit that suits the largest.

    Attributes:
        label: what it is, with its unit.
        factor: what a value is divided by.
    """

    label: str
    factor: float

    @classmethod
    def of(cls, name: str, values: Sequence[Value]) -> Column:
        """Choose label and unit.

        Args:
            name: of the values, which ends in their unit.
            values: all of the column.
        """
        ending = name.rsplit("_", 1)[-1]
        label = LABELS.get(name, name.removesuffix(f"_{ending}") if ending in _UNITS else name).replace("_", " ")
        unit = _UNITS.get(ending, "")
        if not unit or unit == label or "(" in label:
            return cls(label, 1.0)
        factor = 1.0
        if unit in ("Hz", "s"):
            plain = [v.value if isinstance(v, Estimate) else v for v in values if not isinstance(v, str | bool)]
            largest = max((abs(v) for v in plain if math.isfinite(v)), default=0.0)
            fitting = [p for p in _PREFIXES if (p[0] <= 1 if unit == "s" else p[0] >= 1)]
            factor, prefix = next((p for p in fitting if largest >= p[0]), (1.0, ""))
            unit = prefix + unit
        return cls(f"{label} ({unit})", factor)

    def pair(self, value: Value | None) -> tuple[str, str]:
        """Write one value, a dash where nothing was measured, and its interval, empty where there is none."""
        if value is None:
            return ABSENT, ""
        if isinstance(value, bool):
            return "yes" if value else "no", ""
        if isinstance(value, str):
            return value, ""
        if not isinstance(value, Estimate):
            return number(value / self.factor), ""
        low, middle, high = (v / self.factor for v in (value.low, value.value, value.high))
        half = (high - low) / 2
        if not math.isfinite(half) or half <= 0:
            return number(middle), ""
        power = math.floor(math.log10(max(abs(low), abs(high))))
        scale, tail = (10.0**power, f"·10{str(power).translate(_SUPERSCRIPT)}") if not -4 < power < 6 else (1.0, "")
        digits = max(0, min(6, 1 - math.floor(math.log10(half / scale))))
        plain, below, above = (_minus(f"{v / scale:.{digits}f}") for v in (middle, low, high))
        if abs(high + low - 2 * middle) <= 0.2 * half:
            return f"{plain}{tail}", f"± {half / scale:.{digits}f}{tail}"
        return f"{plain}{tail}", f"({below} … {above}){tail}"


def number(value: float) -> str:
    """Write a number so that four digits count, with a power of ten where it is very small or large."""
    if not math.isfinite(value):
        return ABSENT
    if value == int(value) and abs(value) < 1e15:
        return _minus(f"{int(value):,}".replace(",", "\u202f"))
    return tidy(f"{value:.4g}")


def tidy(text: str) -> str:
    """Turn Python's way to write a number into the printed one: a true minus, a raised power of ten."""
    mantissa, _, power = text.partition("e")
    return _minus(mantissa) + (f"·10{str(int(power)).translate(_SUPERSCRIPT)}" if power else "")


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
