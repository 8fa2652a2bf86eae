"""Figures of links between nodes and server: crystals, lock, gains, time, phase; draws results, measures nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, SymmetricalLogLocator

from calibration.cells import tidy
from calibration.figures import (
    LEGEND_IN,
    MUTED,
    Picture,
    Scene,
    extremes,
    legend,
    panels,
    per_radio,
    picture,
    single,
    steps,
    thin,
    told,
)
from calibration.predict import COHERENT_LIMIT_RAD
from calibration.result import Z95, Estimate, Result

__all__ = [
    "adev",
    "advance",
    "balance",
    "gain",
    "horizon",
    "lock_residual",
    "lock_snr",
    "phase",
    "phase_time",
    "profile",
    "sigma",
    "warm_up",
]

#: Horizons of the table that a first look at a crystal asks for.
HORIZONS_S = (5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 200e-3)


def warm_up(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw each crystal against the server's over time, as it is and as it moves."""
    drawn = steps(results, "warm_s", "warm_ppm")
    if not drawn:
        return None
    figure, (left, right) = panels(1, 2, 3.2, right_in=LEGEND_IN)
    minutes = max(float(np.max(r.curves["warm_s"])) for r in drawn) > 180
    for result in drawn:
        keep = thin(result.curves["warm_s"].size, 400)
        time, ppm = result.curves["warm_s"][keep] / (60 if minutes else 1), result.curves["warm_ppm"][keep]
        style = scene.line(result.radio) | {"markevery": max(1, time.size // 6), "ms": 4}
        left.plot(time, ppm, **style, label=result.radio)
        right.plot(time, ppm - ppm[-1], **style)
    unit = "min" if minutes else "s"
    left.set(xlabel=f"time ({unit})", ylabel="offset from the server (ppm)")
    right.set(xlabel=f"time ({unit})", ylabel="change until the end (ppm)")
    legend(figure, left)
    caption = f"Warm-up: frequency of each node against the server. At the end {extremes(drawn, 'ppm', '+.3f', 'ppm')}"
    if any("drift_ppb_per_s" in r.values for r in drawn):
        caption += f", still moving by {extremes(drawn, 'drift_ppb_per_s', '+.3f', 'ppb/s')}"
    return picture("oscillator-warm", figure, caption + ".", f"Frequency offset over time of {len(drawn)} nodes")


def adev(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the overlapping Allan deviation with its interval, each node before the others."""
    drawn = steps(results, "adev_tau_s", "adev")
    if not drawn:
        return None

    others = [np.column_stack([r.curves["adev_tau_s"], 1e10 * r.curves["adev"]]) for r in drawn]

    def draw(axes: Axes, result: Result) -> None:
        _logarithmic(axes)
        axes.add_collection(LineCollection(others, colors=MUTED, linewidths=0.6, alpha=0.45), autolim=False)
        tau, curves = result.curves["adev_tau_s"], result.curves
        if "adev_low" in curves and "adev_high" in curves:
            low = np.maximum(1e10 * curves["adev_low"], 1e-4)  # zero has no place on this axis
            axes.fill_between(tau, low, 1e10 * curves["adev_high"], color=scene.colour(result.radio), alpha=0.25, lw=0)
        axes.plot(tau, 1e10 * curves["adev"], color=scene.colour(result.radio))
        axes.axvline(0.1, color=MUTED, ls=":", lw=0.9)

    figure = per_radio(drawn, scene, draw, "averaging time (s)", "Allan deviation (10\u207b\u00b9\u2070)")
    caption = (
        "Overlapping Allan deviation of each node against the server, with its 95 % interval; the other nodes in grey. "
        f"At 0.1 s (dotted): {extremes(drawn, 'adev', '.2g', '') or 'not told'}."
    )
    return picture("oscillator-adev", figure, caption, f"Allan deviation against averaging time of {len(drawn)} nodes")


def _logarithmic(axes: Axes) -> None:
    """Make both axes logarithmic, without small marks, unless a panel that shares them has done it."""
    if axes.get_xscale() == "linear":
        axes.set(xscale="log", yscale="log")
        _plain(axes)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_minor_locator(NullLocator())


def sigma(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the phase error that the crystals alone leave after a time without beacons: 2 pi f_c adev(tau) tau."""
    drawn = steps(results, "adev_tau_s", "adev")
    if not drawn or scene.carrier_hz is None:
        return None
    figure, axes = single()
    low, high = np.inf, 0.0
    for result in drawn:
        tau = result.curves["adev_tau_s"]
        error = 2 * math.pi * scene.carrier_hz * result.curves["adev"] * tau
        low, high = min(low, float(tau.min())), max(high, float(tau.max()))
        axes.loglog(tau * 1e3, error, **scene.line(result.radio), ms=4, label=result.radio)
    axes.axhline(COHERENT_LIMIT_RAD, color=MUTED, ls=":", label=f"limit {COHERENT_LIMIT_RAD} rad")
    axes.set(xlabel="time since the last beacon (ms)", ylabel="phase error (rad)")
    if low < 1.0 < high:
        axes.set_xlim(low * 900, 1100)
    _plain(axes)
    legend(figure, axes)
    first = "; ".join(f"{h * 1e3:g} ms {_at(drawn, scene.carrier_hz, h)}" for h in HORIZONS_S if low <= h <= high)
    caption = (
        f"What the crystals alone do to the phase at {scene.carrier_hz / 1e6:g} MHz, by 2\u03c0 f \u03c4 times the "
        f"measured Allan deviation; noise of the beacons comes on top. Over all nodes: {first or 'not in range'}."
    )
    return picture("oscillator-sigma", figure, caption, "Predicted phase error against the time since the last beacon")


def _at(results: Sequence[Result], carrier_hz: float, tau_s: float) -> str:
    """Say between what the predicted phase errors lie at one horizon."""
    errors = []
    for result in results:
        tau, deviation = result.curves["adev_tau_s"], result.curves["adev"]
        level = np.exp(np.interp(math.log(tau_s), np.log(tau), np.log(np.maximum(deviation, 1e-15))))
        errors.append(2 * math.pi * carrier_hz * float(level) * tau_s)
    least, most = min(errors), max(errors)
    return f"{least:.2g} rad" if len(errors) == 1 else f"{least:.2g} to {most:.2g} rad"


def _plain(axes: Axes) -> None:
    """Write plain numbers on logarithmic axes."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def lock_snr(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw how well each node hears the beacons."""
    drawn = steps(results, "lock_slot", "lock_snr_db")
    if not drawn:
        return None
    figure, axes = single(2.9)
    for result in drawn:
        slots, snr = result.curves["lock_slot"], result.curves["lock_snr_db"]
        keep = thin(slots.size, 300)
        style = scene.line(result.radio) | {"markevery": max(1, slots[keep].size // 8), "ms": 4, "lw": 1.0}
        axes.plot(slots[keep] - slots[0], snr[keep], **style, label=result.radio)
    axes.set(xlabel="slot", ylabel="SNR of the beacon (dB)")
    legend(figure, axes)
    caption = f"Beacons as the nodes hear them: {extremes(drawn, 'snr_db', '.1f', 'dB')} per sample"
    if any("missed" in r.values for r in drawn):
        caption += f"; missed beacons: {extremes(drawn, 'missed', '.0f', '')}"
    return picture("lock-snr", figure, caption + ".", f"Beacon SNR over slots of {len(drawn)} nodes")


def lock_residual(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw how the phase of the beacons wandered."""
    drawn = steps(results, "lock_slot", "lock_residual_rad")
    if not drawn:
        return None

    def draw(axes: Axes, result: Result) -> None:
        slots, residual = result.curves["lock_slot"], result.curves["lock_residual_rad"]
        keep = thin(slots.size, 600)
        axes.axhline(0, color=MUTED, lw=0.8)
        axes.plot(slots[keep] - slots[0], residual[keep], ".", color=scene.colour(result.radio), ms=3)

    figure = per_radio(drawn, scene, draw, "slot", "phase (rad)")
    rms = {r.radio: float(np.sqrt(np.mean(r.curves["lock_residual_rad"] ** 2))) for r in drawn}
    worst = max(rms, key=rms.__getitem__)
    caption = (
        "Phase of each beacon, a constant drift of the frequency taken out: what the crystals and noise leave. "
        f"Largest rms: {rms[worst]:.3f} rad ({worst})"
    )
    if any("cfo_rms_hz" in r.values for r in drawn):
        caption += f"; frequency: rms {extremes(drawn, 'cfo_rms_hz', '.2f', 'Hz')}"
    return picture("lock-residual", figure, caption + ".", f"Phase residuals over slots of {len(drawn)} nodes")


def gain(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the magnitude of each link over the bins."""
    drawn = steps(results, "bin", "gain")
    if not drawn:
        return None

    def draw(axes: Axes, result: Result) -> None:
        bins, size = result.curves["bin"], np.abs(result.curves["gain"])
        error = Z95 * np.broadcast_to(result.curves.get("gain_sigma", np.zeros(1)), size.shape)
        low = 20 * np.log10(np.maximum(size - error, 0.02 * size))
        axes.fill_between(bins, low, 20 * np.log10(size + error), color=scene.colour(result.radio), alpha=0.3, lw=0)
        axes.plot(bins, 20 * np.log10(size), color=scene.colour(result.radio))

    figure = per_radio(drawn, scene, draw, "bin", "link gain (dB)")
    caption = (
        "Gain of every link, full scale to full scale, with its 95 % interval. RMS "
        f"{extremes(drawn, 'gain_db', '.2f', 'dB')}; SNR per resource element {extremes(drawn, 'snr_db', '.1f', 'dB')}."
    )
    return picture("sounding-gain", figure, caption, f"Link gain over bins of {len(drawn)} nodes, with error bands")


def phase(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the phase of each link over the bins, its mean slope taken out."""
    drawn = steps(results, "bin", "gain")
    if not drawn:
        return None

    def draw(axes: Axes, result: Result) -> None:
        bins, value = result.curves["bin"].astype(float), result.curves["gain"]
        turn = np.unwrap(np.angle(value))
        flat = turn - np.polyval(np.polyfit(bins, turn, 1, w=np.abs(value)), bins)
        spread = np.broadcast_to(result.curves.get("gain_sigma", np.zeros(1)), flat.shape)
        error = Z95 * np.minimum(spread / np.maximum(np.abs(value), 1e-12) / math.sqrt(2), 1.0)
        axes.fill_between(bins, flat - error, flat + error, color=scene.colour(result.radio), alpha=0.3, lw=0)
        axes.plot(bins, flat, color=scene.colour(result.radio))

    figure = per_radio(drawn, scene, draw, "bin", "phase off a line (rad)")
    caption = (
        "Phase of every link over the bins, with its 95 % interval. The mean slope, which is the delay, is taken out: "
        f"{extremes(drawn, 'delay_samples', '.2f', 'samples') or 'not told'}."
    )
    return picture("sounding-phase", figure, caption, f"Link phase over bins of {len(drawn)} nodes, with error bands")


def profile(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the power-delay profile of each link."""
    drawn = steps(results, "pdp_s", "pdp_db")
    if not drawn:
        return None

    def draw(axes: Axes, result: Result) -> None:
        delay, level = result.curves["pdp_s"] * 1e6, result.curves["pdp_db"] - np.max(result.curves["pdp_db"])
        level = np.maximum(level, -60)
        axes.fill_between(delay, -60, level, color=scene.colour(result.radio), alpha=0.25, lw=0)
        axes.plot(delay, level, color=scene.colour(result.radio))
        axes.set_ylim(-60, 3)

    figure = per_radio(drawn, scene, draw, "delay (µs)", "power (dB of the peak)")
    caption = "Power-delay profile of every link."
    if any("rms_delay_s" in r.values for r in drawn):
        times = [told(r.values["rms_delay_s"]) * 1e9 for r in drawn if "rms_delay_s" in r.values]
        caption += f" Rms delay spread: {min(times):.0f} to {max(times):.0f} ns."
    return picture("sounding-pdp", figure, caption, f"Power-delay profiles of {len(drawn)} links")


def advance(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw where each burst of a node arrived, while its timing advance settles."""
    drawn = steps(results, "timing_tau")
    if not drawn:
        return None
    far = max(float(np.abs(r.curves["timing_tau"]).max()) for r in drawn) > 0.3

    def draw(axes: Axes, result: Result) -> None:
        tau = result.curves["timing_tau"]
        axes.axhspan(-0.05, 0.05, color=MUTED, alpha=0.2, lw=0)
        axes.plot(np.arange(tau.size), tau, ".-", color=scene.colour(result.radio), lw=0.8, ms=3.5)
        if far and axes.get_yscale() == "linear":  # the first of panels that share it
            axes.set_yscale("symlog", linthresh=0.05, linscale=1.5)
            axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.1))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tidy(f"{value:g}")))

    figure = per_radio(drawn, scene, draw, "burst", "late by (samples)")
    caption = (
        "Timing loop: arrival of each burst against its place. The grey band is ±0.05 sample. Standard deviation: "
        f"{extremes(drawn, 'std_samples', '.4f', 'samples') or 'not told'}; timing advance: "
        f"{extremes(drawn, 'advance_samples', '.2f', 'samples') or 'not told'}."
    )
    return picture("timing-tau", figure, caption, f"Arrival time over bursts of {len(drawn)} nodes")


def horizon(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the measured phase error against the time since the last beacon."""
    drawn = steps(results, "phase_horizon_s", "phase_sigma_rad")
    if not drawn:
        return None
    figure, axes = single()
    for result in drawn:
        time, error = result.curves["phase_horizon_s"] * 1e3, result.curves["phase_sigma_rad"]
        axes.loglog(time[error > 0], error[error > 0], **scene.line(result.radio), ms=4, label=result.radio)
    axes.axhline(COHERENT_LIMIT_RAD, color=MUTED, ls=":", label=f"limit {COHERENT_LIMIT_RAD} rad")
    used = [told(r.values["horizon_s"]) * 1e3 for r in drawn if "horizon_s" in r.values]
    if used:
        axes.axvline(max(used), color=MUTED, ls="--", label="this lab")
    axes.set(xlabel="time since the last beacon (ms)", ylabel="phase error (rad)")
    _plain(axes)
    legend(figure, axes)
    caption = "Measured phase error of the precoded bursts against the time since the last beacon."
    if used:
        caption += f" At the turnaround of {max(used):.1f} ms: {extremes(drawn, 'sigma_rad', '.3f', 'rad')}."
    nulls = [r for r in drawn if "null_depth_db" in r.values]
    if nulls:
        caption += (
            " Two nodes sent with opposite signs leave a null of "
            f"{extremes(nulls, 'null_depth_db', '.1f', 'dB')}; a depth of D dB tells an error of 10^(\u2212D/20) rad."
        )
    return picture("phase-sigma", figure, caption, f"Phase error against horizon of {len(drawn)} nodes")


def phase_time(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the phase of each node's bursts over time."""
    drawn = steps(results, "phase_series_s", "phase_series_rad")
    if not drawn:
        return None

    def draw(axes: Axes, result: Result) -> None:
        time, value = result.curves["phase_series_s"], result.curves["phase_series_rad"]
        keep = thin(time.size, 600)
        axes.axhline(0, color=MUTED, lw=0.8)
        axes.plot(time[keep] - time[0], value[keep], ".-", color=scene.colour(result.radio), lw=0.7, ms=3.5)

    figure = per_radio(drawn, scene, draw, "time (s)", "phase (rad)")
    rms = {r.radio: float(np.sqrt(np.mean(r.curves["phase_series_rad"] ** 2))) for r in drawn}
    worst = max(rms, key=rms.__getitem__)
    caption = f"Phase of each precoded burst at the server over time. Largest rms: {rms[worst]:.3f} rad ({worst})."
    return picture("phase-time", figure, caption, f"Burst phase over time of {len(drawn)} nodes")


def balance(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the level at which each node arrives, against what was expected of it."""
    drawn = [r for r in results if "level_db" in r.values]
    if not drawn:
        return None
    figure, axes = single(2.8)
    axes.axhspan(-0.5, 0.5, color=MUTED, alpha=0.2, lw=0)
    for place, result in enumerate(drawn):
        value = result.values["level_db"]
        axes.bar(place, told(value), color=scene.colour(result.radio), width=0.6)
        if isinstance(value, Estimate):
            ends = [[told(value) - value.low], [value.high - told(value)]]
            axes.errorbar(place, told(value), yerr=ends, color=MUTED, capsize=3, ecolor="#222222")
    axes.axhline(0, color="#222222", lw=0.8)
    axes.set_xticks(range(len(drawn)), [r.radio for r in drawn])
    axes.set_ylabel("level (dB of the expected)")
    axes.grid(axis="x", visible=False)
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, -0.7), max(top, 0.7))
    caption = (
        "Level of each node's pilots in a common burst, against the expected: "
        f"{extremes(drawn, 'level_db', '+.2f', 'dB')}. The grey band is ±0.5 dB."
    )
    return picture("balance-level", figure, caption, f"Arrival level of {len(drawn)} nodes as bars")
