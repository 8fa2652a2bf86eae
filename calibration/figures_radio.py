"""Figures of one radio alone: noise, gain, compression, latency, restarts; draws results, measures nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from calibration.cells import number, tidy
from calibration.figures import BAD, MUTED, Picture, Scene, extremes, legend, per_radio, picture, single, steps, told
from calibration.result import Result

__all__ = ["compression", "gain_line_up", "latency", "noise_spectrum", "restarts"]

#: Points of a spectrum that a panel can show.
COLUMNS = 400


def noise_spectrum(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw what each receiver hears while nobody sends."""
    drawn = steps(results, "psd_hz", "psd_dbfs")
    if not drawn:
        return None
    spans = [r.curves["psd_hz"] for r in drawn]
    carrier_hz = scene.carrier_hz or float(np.median([(hz.min() + hz.max()) / 2 for hz in spans]))

    def draw(axes: Axes, result: Result) -> None:
        off_hz = result.curves["psd_hz"] - carrier_hz
        hz, low, high = _envelope(off_hz, result.curves["psd_dbfs"])
        axes.fill_between(hz / 1e3, low, high, color=scene.colour(result.radio), lw=0.6)
        if "spur_hz" in result.values:
            spur_hz = told(result.values["spur_hz"]) - carrier_hz
            axes.plot(spur_hz / 1e3, np.interp(spur_hz, hz, high), "v", color=BAD, ms=5, clip_on=False)

    figure = per_radio(drawn, scene, draw, "offset from the carrier (kHz)", "power density (dBFS per Hz)")
    caption = (
        f"Noise of each receiver while nobody sends. Noise per sample: {extremes(drawn, 'noise_dbfs', '.1f', 'dBFS')}"
    )
    spurs = [r for r in drawn if "spur_hz" in r.values]
    caption += (
        ". A red mark shows the strongest line: "
        + ", ".join(
            f"{r.radio} {tidy(format((told(r.values['spur_hz']) - carrier_hz) / 1e3, '+.0f'))} kHz"
            + (f", {told(r.values['spur_db']):.0f} dB over the noise" if "spur_db" in r.values else "")
            for r in spurs
        )
        + "."
        if spurs
        else "; no line stands out."
    )
    return picture("noise-psd", figure, caption, f"Noise spectra of {len(drawn)} radios, one panel each")


def _envelope(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reduce a spectrum to as many columns as a panel shows, with the least and the most of each: no line is lost."""
    order = np.argsort(x)
    width = max(1, -(-x.size // COLUMNS))
    whole = x.size // width * width
    at, level = x[order][:whole].reshape(-1, width), y[order][:whole].reshape(-1, width)
    low, high = level.min(1), level.max(1)
    return at.mean(1), np.minimum(low, high - 0.15), high


def gain_line_up(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the noise at every receive gain: where it rises by the gain, the analogue noise is above the converter's."""
    drawn = steps(results, "gain_db", "gain_noise_dbfs")
    if not drawn:
        return None
    figure, axes = single()
    for result in drawn:
        gain, noise = result.curves["gain_db"], result.curves["gain_noise_dbfs"]
        axes.plot(gain, noise, **scene.line(result.radio), ms=4, label=result.radio)
    top = max(float(np.max(r.curves["gain_noise_dbfs"])) for r in drawn)
    reach = np.concatenate([r.curves["gain_db"] for r in drawn])
    axes.plot([reach.min(), reach.max()], [top - np.ptp(reach), top], ":", color=MUTED, zorder=0, label="1 dB per dB")
    axes.set(xlabel="receive gain (dB)", ylabel="noise (dBFS)")
    axes.set_ylim(bottom=min(float(np.min(r.curves["gain_noise_dbfs"])) for r in drawn) - 4)
    legend(figure, axes)
    caption = (
        "Gain line-up. Along the dotted slope noise comes from the antenna and the first stage; where a line is "
        "flatter, from the converter."
    )
    if any("noise_figure_db" in r.values for r in drawn):
        caption += f" Noise figure: {extremes(drawn, 'noise_figure_db', '.1f', 'dB')}."
    if any("gain_step_db" in r.values for r in drawn):
        caption += f" A nominal step of 1 dB gives {extremes(drawn, 'gain_step_db', '.3f', 'dB')}."
    return picture(
        "noise-gain", figure, caption, f"Noise against receive gain, one line for each of {len(drawn)} radios"
    )


def compression(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw output against input amplitude of each transmitter (AM/AM)."""
    drawn = steps(results, "am_in_dbfs", "am_out_db")
    if not drawn:
        return None
    figure, axes = single()
    for result in drawn:
        order = np.argsort(result.curves["am_in_dbfs"])
        drive, out = result.curves["am_in_dbfs"][order], result.curves["am_out_db"][order]
        axes.plot(drive, out, **scene.line(result.radio), ms=4, label=result.radio)
    axes.axhline(-1.0, color=MUTED, ls=":", label="1 dB compression")
    axes.set(xlabel="drive (dBFS)", ylabel="gain against small drive (dB)")
    axes.set_ylim(bottom=min(-1.3, axes.get_ylim()[0]))
    legend(figure, axes)
    caption = "AM/AM: what a transmitter gives less than it is asked for, heard by its own receiver."
    if any("compression_db" in r.values for r in drawn):
        caption += f" At full drive: {extremes(drawn, 'compression_db', '.2f', 'dB')}."
    return picture("level-am", figure, caption, f"Gain against drive, one line for each of {len(drawn)} transmitters")


def latency(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw how long a burst took from its order to its echo."""
    drawn = steps(results, "latency_s")
    if not drawn:
        return None
    longest = max(float(np.max(r.curves["latency_s"])) for r in drawn) * 1e3
    edges = np.linspace(0.0, max(longest, 1e-3), 41)

    def draw(axes: Axes, result: Result) -> None:
        _histogram(axes, result.curves["latency_s"] * 1e3, edges, scene.colour(result.radio))

    figure = per_radio(drawn, scene, draw, "from order to echo (ms)", "bursts")
    caption = (
        f"Time from the order of a burst to its echo in the same radio. Longest: {longest:.2f} ms. "
        f"Samples lost: {extremes(drawn, 'lost', '.0f', '') or 'not known'}."
    )
    return picture("integrity-latency", figure, caption, f"Histograms of the latency of {len(drawn)} radios")


def _histogram(axes: Axes, values: np.ndarray, edges: np.ndarray, colour: str) -> None:
    axes.stairs(np.histogram(values, edges)[0], edges, fill=True, color=colour)


def restarts(results: Sequence[Result], scene: Scene) -> Picture | None:
    """Draw the TX-RX offset at each restart of the streams, and its histogram on the side."""
    drawn = steps(results, "offset_samples")
    if not drawn:
        return None

    def draw(axes: Axes, result: Result) -> None:
        offsets = result.curves["offset_samples"].astype(float)
        # A constant offset gets a bar of one sample, in the middle of a span of a few.
        half = max(float(np.ptp(offsets)) / 2 * 1.05, 3.5)
        middle = (float(offsets.max()) + float(offsets.min())) / 2
        edges = np.linspace(middle - half, middle + half, min(21, int(2 * half)) + 1)
        _histogram(axes, offsets, edges, scene.colour(result.radio))
        ends = sorted({offsets.min(), offsets.max()})
        axes.set_xticks(ends, [number(end) for end in ends])
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))

    figure = per_radio(drawn, scene, draw, "TX-RX offset (samples)", "restarts", alike=False)
    constant = [r.radio for r in drawn if r.values.get("constant")]
    caption = (
        f"TX-RX offset over restarts of the streams, found by hearing an own burst. Constant: "
        f"{', '.join(constant) or 'none'}. Another value at every restart: "
        f"{', '.join(r.radio for r in drawn if r.radio not in constant) or 'none'}."
    )
    return picture("offset-restarts", figure, caption, f"Histograms of the TX-RX offset of {len(drawn)} radios")
