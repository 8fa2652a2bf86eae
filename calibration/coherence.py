"""How well phases hold: the spread over repeated bursts at several horizons, and how deep two nodes cancel."""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex64, Float64
from scipy.stats import chi2

from calibration.bench import Bench, Heard, decibels
from calibration.predict import COHERENT_LIMIT_RAD
from calibration.result import Estimate, Finding, Result, Value
from calibration.slow import without_slow
from radio.ofdm import split
from radio.sync import noise_of

#: Horizons measured, as multiples of the lab's own; none beyond ``LONGEST_S``.
MULTIPLES = (1.0, 2.0, 4.0)
LONGEST_S = 0.2
#: Bursts of each pair that should cancel.
NULLS = 3


def turns(raw: Complex64[np.ndarray, "cycle bin"]) -> Float64[np.ndarray, " cycle"]:
    """Give the phase of each repeat against their common shape, of mean near zero, unwrapped."""
    raw = raw.astype(np.complex128)
    shape = raw[0]
    for _ in range(2):
        angles = np.angle(raw @ np.conj(shape))
        shape = np.mean(raw * np.exp(-1j * angles)[:, None], axis=0)
    angles = np.angle(raw @ np.conj(shape))
    return np.unwrap(np.angle(np.exp(1j * (angles - np.angle(np.mean(np.exp(1j * angles)))))))


def own_variances(
    table: Float64[np.ndarray, "node cycle"],
) -> tuple[Float64[np.ndarray, " node"], Float64[np.ndarray, " node"], Float64[np.ndarray, " node"]]:
    """Split the variance of each node's phase from what all share: the server's oscillator, which a common rotation of
    the sum undoes. What moves slowly, as a link does, is taken out: the loops of a run follow it from burst to burst.

    With the mean over N nodes taken out, node k shows ``(1 - 2/N) v_k + sum(v)/N^2``; this solves for v. Two nodes show
    the same thing twice: each gets half of it. One node alone has nothing left.

    Returns:
        variances v; and the ends of their 95 % intervals, by the chi-squared distribution of what each node shows.
    """
    nodes = len(table)
    if nodes == 1:
        return np.zeros(1), np.zeros(1), np.zeros(1)
    off, freedom = without_slow(table - table.mean(0))
    seen = np.sum(off**2, axis=1) / freedom
    part = 1 - 2 / nodes if nodes > 2 else 0.5
    others = seen.sum() / nodes / (nodes - 1) if nodes > 2 else 0.0
    low, high = (freedom / chi2.ppf(q, freedom) * seen for q in (0.975, 0.025))
    return (seen - others) / part, (low - others) / part, (high - others) / part


def phase_noise(heard: Heard, drive: float) -> float:
    """Give the variance of one phase that the receiver's noise alone causes (two pilot symbols, all bins)."""
    power = float(np.sum(np.abs(heard.raw.mean(0)) ** 2))
    return heard.noise / (2 * drive**2) / (2 * max(power, 1e-30))


def phase(bench: Bench) -> list[Result]:
    """Measure the phase error of every node at its time between beacon and burst and beyond, and null pairs."""
    bench.ready("phase")
    drive, profile = bench.uplink.full_drive, bench.profile
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in bench.names}
    first: dict[str, tuple[Estimate, float, float, np.ndarray, np.ndarray]] = {}
    middle = profile.burst_samples // 2
    for multiple in MULTIPLES:
        horizon_s = multiple * bench.burst_horizon_s
        if multiple > 1 and horizon_s > LONGEST_S:
            continue
        lead = round((horizon_s - bench.burst_horizon_s) * profile.rate_hz) + bench.lead_samples + middle
        bursts = bench.options.phase_bursts if multiple == 1 else max(bench.options.phase_bursts // 2, 4)
        heard = bench.sound("phase", bursts, lead_samples=lead)
        table = np.array([turns(each.raw) for each in heard.values()])
        apart = table - table.mean(0)
        moved = np.std(apart - without_slow(apart)[0], axis=1)
        noise = np.array([phase_noise(each, drive) for each in heard.values()])
        sigma, low, high = (np.sqrt(np.maximum(each - noise, 0.0)) for each in own_variances(table))
        for place, (name, each) in enumerate(heard.items()):
            curves[name].append((each.horizon_s, float(sigma[place])))
            if multiple == 1:
                spread = Estimate(float(sigma[place]), float(low[place]), float(high[place]), "rad")
                times_s = each.times_s - each.times_s[0]
                first[name] = (spread, float(moved[place]), each.horizon_s, times_s, table[place])
    depths = _nulls(bench)
    results = []
    for name in bench.names:
        spread, turned_rad, horizon_s, times_s, series = first[name]
        values: dict[str, Value] = {"sigma_rad": spread, "horizon_s": horizon_s}
        if name in depths:
            values["null_depth_db"] = depths[name]
        finding = None
        if spread.low > COHERENT_LIMIT_RAD:
            finding = Finding(
                "phase",
                f"{name}: its phase is off by {spread.value:.2f} rad rms {1e3 * horizon_s:.0f} ms after a beacon, the "
                f"limit for coherent sums is {COHERENT_LIMIT_RAD} rad",
                "use a lower carrier, a shared reference, a better crystal or a shorter turnaround",
            )
        elif turned_rad > COHERENT_LIMIT_RAD:
            finding = Finding(
                "phase",
                f"{name}: its link turns by {turned_rad:.2f} rad rms within {times_s[-1]:.1f} s, the limit is "
                f"{COHERENT_LIMIT_RAD} rad",
                "move its antenna out of the fade by a quarter of a wavelength, or stop what moves; then measure again",
            )
        rows = np.array(curves[name])
        results.append(
            Result(
                "phase",
                name,
                values,
                {
                    "phase_horizon_s": rows[:, 0],
                    "phase_sigma_rad": rows[:, 1],
                    "phase_series_s": times_s,
                    "phase_series_rad": series,
                },
                finding,
            )
        )
    return results


def _nulls(bench: Bench) -> dict[str, float]:
    """Let pairs of nodes send the same values with opposite signs, and see what is left, in dB below one of them."""
    bench.admit("phase")
    depths = {}
    for one, other in zip(bench.names[::2], bench.names[1::2], strict=False):
        seeds = [bench.seed + 7919 * (number + 1) for number in range(NULLS)]
        windows = bench.burst("phase", [one, other], seeds, "inversion", {one: 1, other: -1}, 1.0)
        level = bench.uplink.level
        rest = 0.0
        for window in windows:
            _, data, _ = split(window.grid / np.float32(level))
            rest += float(np.mean(np.abs(data) ** 2)) - noise_of(window.nulls) / level**2
        depths[one] = depths[other] = -decibels(max(rest / NULLS, 1e-6))
    return depths
