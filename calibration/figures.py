"""The look of the report's figures: colours, panels, and pictures that stand in the page itself; knows no step."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibration.cells import tidy
from calibration.result import Estimate, Result

#: Told apart with every common colour blindness (after M. Okabe and K. Ito, 2008), and by marker where colours repeat.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#8c2d19")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SERVER, MUTED, GOOD, BAD = "#222222", "#8a8a8a", "#1b7f3b", "#b3261e"
WIDTH_IN = 9.6
LEGEND_IN = 1.65
STYLE: Any = {  # names and values of rcParams
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titley": 1.02,  # else matplotlib looks for the place of each title
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "savefig.facecolor": "white",
    "svg.hashsalt": "air-meta-pfl",  # the same figures give the same file
}


@dataclass(frozen=True)
class Picture:
    """One figure of the report.

    Attributes:
        name: of its anchor, unique in a report.
        caption: what is seen, with numbers.
        alt: for a reader who does not see it.
        uri: the drawing itself, as a ``data:`` address.
    """

    name: str
    caption: str
    alt: str
    uri: str


@dataclass(frozen=True)
class Scene:
    """What every figure must know of the lab.

    Attributes:
        names: nodes in the order of the lab, which gives each its colour.
        carrier_hz: of the uplink; None when no step told.
    """

    names: tuple[str, ...]
    carrier_hz: float | None = None

    def colour(self, name: str) -> str:
        """Give the colour of a radio."""
        return COLOURS[self.names.index(name) % len(COLOURS)] if name in self.names else SERVER

    def line(self, name: str) -> dict[str, Any]:
        """Give colour, marker and stroke of a radio's line; the second eight nodes are dashed and hollow."""
        if name not in self.names:
            return {"color": SERVER, "marker": "|", "ls": "-."}
        number = self.names.index(name)
        second = number >= len(COLOURS)
        face = "white" if second else self.colour(name)
        marker = MARKERS[number % len(MARKERS)]
        return {"color": self.colour(name), "marker": marker, "ls": "--" if second else "-", "mfc": face}


def picture(name: str, figure: Figure, caption: str, alt: str) -> Picture:
    """Turn a figure into one that stands in the page: SVG, letters as outlines, so that it looks alike everywhere."""
    sink = io.BytesIO()
    figure.savefig(sink, format="svg", dpi=110, metadata={"Date": None, "Creator": None})
    return Picture(name, caption, alt, "data:image/svg+xml;base64," + base64.b64encode(sink.getvalue()).decode("ascii"))


def single(height_in: float = 3.2, right_in: float = LEGEND_IN) -> tuple[Figure, Axes]:
    """Open a figure of one panel, with room for a legend on its right."""
    figure, (axes,) = panels(1, 1, height_in, right_in=right_in)
    return figure, axes


def panels(
    rows: int,
    columns: int,
    height_in: float,
    width_in: float = WIDTH_IN,
    right_in: float = 0.1,
    top_in: float = 0.24,
    apart_in: tuple[float, float] = (0.75, 0.35),
    **shared: Any,
) -> tuple[Figure, list[Axes]]:
    """Open a figure of ``rows`` x ``columns`` panels.

    Places are counted out in inches: the engine that finds them by trial draws every figure three times.

    Args:
        rows, columns: of panels.
        height_in, width_in: of the figure.
        right_in, top_in: room on the right and above.
        apart_in: room between columns and between rows.
        shared: for ``Figure.subplots``.
    """
    figure = Figure(figsize=(width_in, height_in))
    left_in, bottom_in = 0.72, 0.48
    wide = (width_in - left_in - right_in - (columns - 1) * apart_in[0]) / columns
    high = (height_in - bottom_in - top_in - (rows - 1) * apart_in[1]) / rows
    places = {
        "left": left_in / width_in,
        "right": 1 - right_in / width_in,
        "bottom": bottom_in / height_in,
        "top": 1 - top_in / height_in,
        "wspace": apart_in[0] / wide,
        "hspace": apart_in[1] / high,
    }
    return figure, list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=places, **shared).flat)


def per_radio(
    results: Sequence[Result],
    scene: Scene,
    draw: Callable[[Axes, Result], None],
    x: str,
    y: str,
    alike: bool = True,
) -> Figure:
    """Draw one small panel per radio, so that radios are compared without a legend.

    Args:
        results: of one step, one per radio.
        scene: the lab.
        draw: draws one result into one panel.
        x, y: labels of the axes, written once.
        alike: whether all panels have the same axes.
    """
    count = len(results)
    columns = min((5, 4, 3), key=lambda wanted: (-(-count // wanted), -count % wanted)) if count > 4 else count
    rows = -(-count // columns)
    width = WIDTH_IN if columns > 2 else 0.72 + columns * 3.0
    apart = (0.22, 0.32) if alike else (0.46, 0.46)
    height = 0.4 + apart[1] + 1.9 if rows == 1 else 0.4 + rows * (1.5 + apart[1])
    figure, axes = panels(rows, columns, height, width, 0.3, apart_in=apart, sharex=alike, sharey=alike)
    for number, (panel, result) in enumerate(zip(axes, results, strict=False)):
        if number == 0 or not alike:
            panel.locator_params(nbins=4)
        draw(panel, result)
        panel.set_title(result.radio, color=scene.colour(result.radio), fontweight="bold", loc="left")
        if number + columns >= count:
            panel.tick_params(labelbottom=True)
    for panel in axes[count:]:
        panel.remove()
    figure.text(0.5, 0.05 / height, x, ha="center", va="bottom")
    figure.text(0.03 / width, 0.5, y, ha="left", va="center", rotation=90)
    return figure


def legend(figure: Figure, axes: Axes) -> None:
    """Put the legend beside the panels, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    place = (1 - (LEGEND_IN - 0.1) / figure.get_figwidth(), 1 - 0.2 / figure.get_figheight())
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=place, fontsize=8.5, borderaxespad=0)


def steps(results: Iterable[Result], *needed: str) -> list[Result]:
    """Choose the results that hold every one of the named curves, with something in them."""
    return [r for r in results if all(name in r.curves and np.size(r.curves[name]) for name in needed)]


def thin(count: int, most: int = 1200) -> slice:
    """Give the slice that leaves at most ``most`` of ``count`` points."""
    return slice(None, None, max(1, math.ceil(count / most)))


def told(value: Estimate | float | int | str | bool) -> float:
    """Give a value as a plain number; not-a-number for words."""
    if isinstance(value, Estimate):
        return value.value
    return math.nan if isinstance(value, str) else float(value)


def extremes(results: Sequence[Result], name: str, form: str, unit: str) -> str:
    """Say where a value lies over radios, with the names of the two ends; empty when nobody measured it."""
    known = [(told(r.values[name]), r.radio) for r in results if name in r.values]
    known = [pair for pair in known if math.isfinite(pair[0])]
    if not known:
        return ""
    (low, first), (high, last) = min(known), max(known)
    least, most = tidy(f"{low:{form}}"), tidy(f"{high:{form}}")
    unit = f" {unit}" if unit else ""
    if len(known) == 1:
        return f"{least}{unit} ({first})"
    if least == most:
        return f"{least}{unit} on all"
    return f"{least}{unit} ({first}) to {most}{unit} ({last})"
