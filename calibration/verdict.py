"""What a calibration says in the end: per node its figures and permitted modes, for the lab its error to expect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from calibration.predict import COHERENT_LIMIT_RAD, Mode, NodeBudget, predict_nmse_db
from calibration.result import Estimate, Result
from radio.ofdm import Profile

#: A burst is as long as is useful when its error at the end is this much above that of the shortest.
USEFUL_DB = 1.0
Results = Mapping[tuple[str, str], Result]

#: Field of the verdict -> step and value that it is taken from.
FIELDS = {
    "tier": ("inventory", "tier"),
    "serial": ("inventory", "serial"),
    "ppm": ("oscillator", "ppm"),
    "adev": ("oscillator", "adev"),
    "snr_db": ("sounding", "snr_db"),
    "delay_samples": ("sounding", "delay_samples"),
    "timing_samples": ("timing", "std_samples"),
    "sigma_rad": ("phase", "sigma_rad"),
    "horizon_s": ("phase", "horizon_s"),
    "null_depth_db": ("phase", "null_depth_db"),
    "level_db": ("balance", "level_db"),
}


def verdict(results: Results, names: Sequence[str], profile: Profile) -> dict[str, Any]:
    """Sum up a calibration as JSON values; what was not measured is None.

    Args:
        results: by step and radio.
        names: nodes that took part.
        profile: waveform, for the modes that it knows.

    Returns:
        ``passed`` and ``findings``; ``nodes`` (per node the fields of ``FIELDS`` and ``modes``); for the lab ``modes``,
        ``mode`` (that of the sums measured, else R) with its ``nmse_predicted_db`` and ``nmse_measured_db``, and
        ``largest_burst_s`` with ``largest_burst_symbols``.
    """
    nodes = {name: {field: _value(results, *where, name) for field, where in FIELDS.items()} for name in names}
    noise = 10 ** (-_level_db(nodes) / 10)
    budgets = _budgets(nodes)
    for node in nodes.values():
        node["modes"] = _permitted(node["sigma_rad"], noise, len(names), profile)
    modes = [mode for mode in ("R", "C", "non-coherent") if all(mode in node["modes"] for node in nodes.values())]
    whole = results.get(("sum", "server"))
    mode: Mode = "C" if whole is not None and whole.values.get("mode") == "C" else "R"
    useful_s = _useful(nodes, noise)
    findings = [
        {"step": result.step, "radio": result.radio, **vars(result.finding)}
        for result in results.values()
        if result.finding is not None
    ]
    return {
        "passed": not findings,
        "findings": findings,
        "nodes": nodes,
        "profile": profile.name,
        "modes": modes,
        "mode": mode,
        "nmse_predicted_db": _predicted(mode, budgets, noise, whole),
        "nmse_measured_db": None if whole is None or "nmse_db" not in whole.values else whole.number("nmse_db"),
        "largest_burst_s": useful_s,
        "largest_burst_symbols": None if useful_s is None else int(useful_s * profile.rate_hz / profile.symbol_samples),
    }


def _value(results: Results, step: str, name: str, radio: str) -> Any:
    value = results[step, radio].values.get(name) if (step, radio) in results else None
    return value.value if isinstance(value, Estimate) else value


def _budgets(nodes: Mapping[str, Mapping[str, Any]], more_rad: float = 1.0) -> list[NodeBudget]:
    """Give what is known of each node, with all phase errors ``more_rad`` times as large; empty when one is unknown."""
    if any(node["sigma_rad"] is None or node["snr_db"] is None for node in nodes.values()):
        return []
    level_db = _level_db(nodes)
    return [
        NodeBudget(10 ** (min(node["snr_db"] - level_db, 0.0) / 10), more_rad * node["sigma_rad"], 0.0)
        for node in nodes.values()
    ]


def _predicted(mode: Mode, budgets: Sequence[NodeBudget], noise: float, whole: Result | None) -> float | None:
    """Predict the error of the sum: as before the bursts of the last step where that was made, else from its parts."""
    if whole is not None and "predicted_db" in whole.values:
        return round(whole.number("predicted_db"), 2)
    return round(predict_nmse_db(mode, budgets, noise), 2) if budgets else None


def _level_db(nodes: Mapping[str, Mapping[str, Any]]) -> float:
    """Give the SNR that power control aims at: stronger nodes than the median one hold back."""
    known = sorted(node["snr_db"] for node in nodes.values() if node["snr_db"] is not None)
    return float(known[len(known) // 2]) if known else 0.0


def _permitted(sigma_rad: float | None, noise: float, nodes: int, profile: Profile) -> list[str]:
    """Name the mappings that are worth their airtime: C only where its phase floor lies below its noise.

    The rule is ``2 (1 - mu) <= noise / (K P)`` with ``mu = exp(-sigma^2/2)``: C-mode halves the airtime and loses the
    quarter power of sigma.
    """
    modes = ["non-coherent"]
    if sigma_rad is None or sigma_rad > COHERENT_LIMIT_RAD:
        return modes
    floor = 2 * (1 - math.exp(-(sigma_rad**2) / 2))
    return ["R", *(["C"] if "C" in profile.modes and floor <= noise / nodes else []), *modes]


def _useful(nodes: Mapping[str, Mapping[str, Any]], noise: float) -> float | None:
    """Find the longest burst whose predicted error at its end is ``USEFUL_DB`` above that at its beginning.

    Phase errors grow in proportion to the time since the last beacon, as flicker of frequency makes them.
    """
    budgets = _budgets(nodes)
    horizons = [node["horizon_s"] for node in nodes.values()]
    if not budgets or None in horizons:
        return None
    limit_db = predict_nmse_db("R", budgets, noise) + USEFUL_DB
    low, high = 1.0, 1e3
    if predict_nmse_db("R", _budgets(nodes, high), noise) <= limit_db:
        return None  # no phase error to speak of: nothing limits the burst
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (
            (middle, high) if predict_nmse_db("R", _budgets(nodes, middle), noise) <= limit_db else (low, middle)
        )
    return float(round((low - 1) * max(horizons), 4))
