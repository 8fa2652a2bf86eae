"""Figures of the sum: its error over the number of nodes, pilots of each node, the burst itself; judges nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.mlab import specgram
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from calibration.cells import tidy
from calibration.figures import LEGEND_IN, SERVER, Picture, Scene, legend, panels, per_radio, picture, single, steps
from calibration.result import Result
from radio.capture import Part, Recording

__all__ = ["constellation", "error", "q_meter", "waterfall"]

#: Colours of the parts of a frame over the waterfall; a label is looked up by its first word.
PART_COLOURS = {"beacon": "#0072b2", "data": "#8a8a8a", "canary": "#d55e00", "sounding": "#009e73", "noise": "#8a8a8a"}
#: Curve of the sum, what it is called, and how it is drawn.
LINES: tuple[tuple[str, str, Any], ...] = (
    ("sum_nmse_db", "measured", {"ls": "", "marker": "o", "color": "#0072b2", "ms": 5, "alpha": 0.8}),
    ("sum_predicted_db", "predicted", {"ls": "--", "color": "#d55e00"}),
    ("sum_formula_db", "explained", {"ls": "-", "lw": 0.8, "color": "#8a8a8a"}),
    ("sum_bound_db", "noise alone", {"ls": ":", "color": SERVER}),
)
BINS = 128  # of the waterfall
PILOT_COLOUR = "#aa4f86"


def error(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the error of the sum for every number of nodes, and for all of them at lower power."""
    drawn = steps(results, "sum_nodes", "sum_nmse_db")
    if not drawn:
        return None
    curves = drawn[0].curves
    count = curves["sum_nodes"].astype(int)
    level_db = curves.get("sum_level_db", np.zeros(count.size))
    full = level_db == 0
    lower = count == count.max()
    sweep = bool(np.ptp(level_db[lower]) > 0)
    figure, axes = panels(1, 2 if sweep else 1, 3.2, right_in=LEGEND_IN, sharey=True, apart_in=(0.3, 0.0))
    _errors(axes[0], curves, full, count)
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set(xlabel="nodes in the sum", ylabel="NMSE of the sum (dB)")
    if sweep:
        _errors(axes[1], curves, lower, level_db)
        axes[1].locator_params(axis="x", nbins=6)
        axes[1].set_xlabel(f"power of all {count.max()} nodes (dB)")
    legend(figure, axes[0])
    whole = full & lower
    parts = [f"{label} {_mean(curves[key][whole])} dB" for key, label, _ in LINES if key in curves]
    mode = drawn[0].values.get("mode")
    caption = (
        f"Error of the sum of known values{f', mode {mode}' if mode else ''}, over the number of nodes"
        f"{' and with less power' if sweep else ''}. With {count.max()} nodes: {', '.join(parts)}."
    )
    return picture("sum-nmse", figure, caption, "Error of the sum against the number of nodes")


def _errors(axes: Axes, curves: Mapping[str, np.ndarray], rows: np.ndarray, x: np.ndarray) -> None:
    """Draw the chosen rows over ``x``: measured points with their intervals, and the lines beside them."""
    order = np.argsort(x[rows], kind="stable")
    for key, label, style in LINES:
        if key in curves:
            axes.plot(x[rows][order], curves[key][rows][order], label=label, **style)
    if "sum_low_db" in curves and "sum_high_db" in curves:
        axes.vlines(x[rows], curves["sum_low_db"][rows], curves["sum_high_db"][rows], color="#0072b2", lw=1.2)


def _mean(levels_db: np.ndarray) -> str:
    return tidy(f"{np.mean(levels_db):.1f}")


def constellation(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the verification pilots of each node over what was sent: a perfect link puts them all on the cross."""
    drawn = steps(results, "iq_pilots", "iq_node")
    if not drawn:
        return None
    points = np.concatenate([r.curves["iq_pilots"].ravel() for r in drawn])
    owner = np.concatenate([r.curves["iq_node"].ravel() for r in drawn]).astype(int)
    each = [
        Result("sum", scene.names[n] if n < len(scene.names) else f"node {n + 1}", curves={"iq": points[owner == n]})
        for n in np.unique(owner)
    ]
    reach = max(0.1, 1.05 * float(np.abs(points - 1).max()))

    def draw(axes: Axes, result: Result) -> None:
        value = result.curves["iq"][:400]
        axes.plot(value.real, value.imag, ".", color=scene.colour(result.radio), ms=3, alpha=0.5)
        axes.plot([1], [0], "+", color=SERVER, ms=9, mew=1.2)
        axes.set(xlim=(1 - reach, 1 + reach), ylim=(-reach, reach), aspect="equal")

    figure = per_radio(each, scene, draw, "in phase", "quadrature")
    spread = {r.radio: float(np.sqrt(np.mean(np.abs(r.curves["iq"] - 1) ** 2))) for r in each}
    worst = max(spread, key=spread.__getitem__)
    caption = (
        "Verification pilots of each node, what was sent divided out; the cross is where a perfect link puts them. "
        f"Largest rms distance from it: {spread[worst]:.3f} ({worst})."
    )
    return picture("sum-pilots", figure, caption, f"Constellations of the pilots of {len(each)} nodes")


def q_meter(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the phase error that shows on the unused quadrature of each burst (R-mode)."""
    drawn = steps(results, "q_sigma_rad")
    if not drawn:
        return None
    figure, axes = single(2.6)
    value = np.concatenate([r.curves["q_sigma_rad"].ravel() for r in drawn])
    axes.plot(np.arange(value.size), value, "o-", color="#0072b2", lw=0.8, ms=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("burst")
    axes.set_ylabel("phase error on Q (rad)")
    axes.set_ylim(0, 1.15 * float(value.max()) or 1.0)
    caption = (
        "Q-meter: nothing is sent on the quadrature of an R-mode burst, so what arrives there beyond the noise is "
        f"phase error. Median {np.median(value):.3f} rad, largest {value.max():.3f} rad."
    )
    return picture("sum-q", figure, caption, "Phase error from the unused quadrature, per burst")


def waterfall(path: Path) -> Picture:
    """Draw a recorded burst over time and frequency, with the parts of its frame above.

    Args:
        path: a SigMF recording, annotated by ``calibration.captures``.

    Raises:
        RadioError: it cannot be read.
    """
    recording = Recording(path)
    rate_hz, start = recording.about.config.rate_hz, recording.start
    capture = recording.read(start, min(recording.end - start, 200_000))
    hop = max(BINS // 2, capture.samples.size // 900)
    size, hz, seconds = map(
        np.asarray, specgram(capture.samples, BINS, rate_hz, noverlap=max(0, BINS - hop), mode="magnitude")
    )
    power = 20 * np.log10(size + 1e-9)
    low, high = np.quantile(power, (0.05, 0.97))  # the DC line is above
    figure, (axes,) = panels(1, 1, 3.9, right_in=1.0, top_in=0.5)
    marks = axes.inset_axes((0, 1.0, 1, 0.15), sharex=axes)
    extent = (0.0, 2e3 * float(seconds.mean()), float(hz[0]) / 1e3, float(hz[-1]) / 1e3)
    shown = axes.imshow(
        power, aspect="auto", origin="lower", extent=extent, vmin=low, vmax=high, cmap="cividis", rasterized=True
    )
    axes.grid(visible=False)
    length_ms = capture.samples.size / rate_hz * 1e3
    axes.set(xlabel="time (ms)", ylabel="offset from the carrier (kHz)", xlim=(0, length_ms))
    figure.colorbar(shown, cax=axes.inset_axes((1.01, 0, 0.02, 1)), label="dBFS")
    parts = [p for p in recording.about.parts if "node" not in p.facts and p.start < start + capture.samples.size]
    _overlay(marks, axes, parts, start, rate_hz)
    names = list(dict.fromkeys(part.label.split()[0] for part in parts))
    caption = (
        f"Waterfall of a recorded burst, {length_ms:.1f} ms from receive index {start}, "
        f"with the parts of its frame: {', '.join(names) or 'not annotated'}."
    )
    return picture("sum-waterfall", figure, caption, "Power of a recorded burst over time and frequency")


def _overlay(marks: Axes, below: Axes, parts: Sequence[Part], start: int, rate_hz: float) -> None:
    """Draw the parts of a frame as labelled blocks, and their borders over the waterfall."""
    marks.set_axis_off()
    marks.set_ylim(0, 1)
    spans: list[tuple[str, float, float]] = []  # of neighbours that share a word
    for part in parts:
        begin, end = ((at - start) / rate_hz * 1e3 for at in (part.start, part.start + part.count))
        word = part.label.split()[0]
        colour = PART_COLOURS.get(word, PILOT_COLOUR)
        marks.add_patch(Rectangle((begin, 0.05), end - begin, 0.35, facecolor=colour, edgecolor="white", lw=0.5))
        for edge in (begin, end):
            below.axvline(edge, color="white", lw=0.5, alpha=0.5)
        joined = spans and spans[-1][0] == word and spans[-1][2] == begin
        spans[-1:] = [(word, spans[-1][1], end)] if joined else [*spans[-1:], (word, begin, end)]
    for word, begin, end in spans:
        # The canary stands at the end of a burst, right behind a pilot whose name is as wide as itself.
        place, side = (begin, "left") if word == "canary" else ((begin + end) / 2, "center")
        marks.text(place, 0.5, f" {word}", ha=side, va="bottom", fontsize=8, color=PART_COLOURS.get(word, PILOT_COLOUR))
