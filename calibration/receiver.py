"""What a receiver shows while nobody transmits: noise, DC, lines, foreign signals, gain; knows one radio, is silent.

The stream is cut into rows of 32 spectra at half overlap under a Blackman-Harris window, whose side lobes (-92 dB) keep
a strong DC out of the band. A cell is the mean of eight neighbouring bins in one row. Powers of bins are scaled so that
white noise of power P per sample gives P in every bin; 0 dBFS is a tone at full scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64
from scipy.fft import fft, fftfreq
from scipy.special import gammainccinv

from calibration.options import CalibrationOptions
from calibration.result import Estimate, Finding, Result, Value
from radio.base import Radio, RadioConfig, Samples
from radio.errors import RadioRefused

WATCH_S = 1.0  # sees every transmitter that is on at least that often
RESOLUTION_HZ = 4e3
FRAMES = 32  # spectra in a row: 4 ms at the resolution above
CELL = 8  # bins
BAND_SHARE = 0.42  # of the narrower of rate and bandwidth, on either side: what filters pass undamaged
LO_PPM = 30.0  # around the carrier lie DC and what transmitters of other radios leak: two crystals of +/-15 ppm
FALSE_CELL = 1e-6
CELL_FREEDOM = FRAMES * CELL / 3.0  # independent values in a cell: bins correlate under the window
RISE_DB = 0.5  # of the noise in the band in some row, from which on an interferer matters
SPUR_DB = 1.0
LINE_UP_DB = (-9.0, -6.0, -3.0, 3.0)
LINE_UP_ROWS = 8
CONVERTER_DBFS = -68.0  # below, noise is also that of a 12-bit converter, which is at -74 dBFS
DB = 10.0 / math.log(10.0)


@dataclass(frozen=True)
class Watch:
    """Spectra of what a receiver heard.

    Attributes:
        power: by row and bin; bins in the order of ``hz``.
        hz: offset of each bin from the receive carrier, rising.
        cells: mean power by row and cell, for the cells inside the band and off the carrier.
        cell_hz: centre of each cell.
        mean: mean sample.
        count: samples taken.
        clipped: samples at a rail.
        rate_hz: sample rate.
    """

    power: Float64[np.ndarray, "row bin"]
    hz: Float64[np.ndarray, " bin"]
    cells: Float64[np.ndarray, "row cell"]
    cell_hz: Float64[np.ndarray, " cell"]
    mean: complex
    count: int
    clipped: int
    rate_hz: float

    @property
    def floor(self) -> float:
        """Noise power per sample, from the median cell: most may not be busy."""
        return float(np.median(self.cells)) / (1.0 - 1.0 / (3.0 * CELL_FREEDOM))

    def busy(self) -> Bool[np.ndarray, "row cell"]:
        """Tell which cells hold more than noise."""
        result: np.ndarray = self.cells > self.floor * gammainccinv(CELL_FREEDOM, FALSE_CELL) / CELL_FREEDOM
        return result

    def quiet_power(self, busy: Bool[np.ndarray, "row cell"], loud: Bool[np.ndarray, " row"]) -> tuple[float, float]:
        """Give the noise power per sample and its relative standard deviation, from cells that hold nothing else."""
        free = ~busy & (~loud | loud.all())[:, None]
        size = self.hz.size
        square = _window(size) ** 2
        weight = np.zeros((FRAMES + 1) * size // 2)
        for frame in range(FRAMES):
            weight[frame * size // 2 :][:size] += square
        per_row = weight.sum() ** 2 / np.sum(weight**2)
        samples = per_row * CELL / size * int(free.sum())
        return float(self.cells[free].mean()), 1.0 / math.sqrt(samples)


def listen(radio: Radio, config: RadioConfig, seconds: float | None) -> Watch:
    """Take samples for so many seconds (None: a few rows), row by row, and keep their spectra.

    Args:
        radio: it is configured, and muted.
        config: its settings.
        seconds: how long.
    """
    size = 1 << max(6, round(math.log2(config.rate_hz / RESOLUTION_HZ)))
    length = (FRAMES + 1) * size // 2
    rows = LINE_UP_ROWS if seconds is None else max(LINE_UP_ROWS, round(seconds * config.rate_hz / length))
    window = _window(size).astype(np.float32)
    power = np.empty((rows, size))
    total, clipped = 0.0 + 0.0j, 0
    start: int | None = radio.newest()
    for first in range(0, rows, LINE_UP_ROWS):
        some = min(LINE_UP_ROWS, rows - first)
        capture = radio.receive(some * length, start)
        start = None
        clipped += capture.clipped
        total += complex(capture.samples.sum(dtype=np.complex128))
        for row, samples in enumerate(capture.samples.reshape(some, length)):
            power[first + row] = _row(samples, window)
    hz = fftfreq(size, 1.0 / config.rate_hz)
    order = np.argsort(hz)
    hz, power = hz[order], power[:, order]
    cell_hz = hz.reshape(-1, CELL).mean(axis=1)
    reach = 0.5 * CELL * config.rate_hz / size
    inside = np.abs(cell_hz) + reach <= BAND_SHARE * min(config.rate_hz, config.bandwidth_hz)
    inside &= np.abs(cell_hz) - reach >= max(1e-6 * LO_PPM * config.rx_hz, 4.0 * config.rate_hz / size)
    cells = power.reshape(rows, -1, CELL).mean(axis=2)[:, inside]
    count = rows * length
    return Watch(power, hz, cells, cell_hz[inside], total / count, count, clipped, config.rate_hz)


def _window(size: int) -> np.ndarray:
    """Give the periodic four-term window of -92 dB side lobes (F. J. Harris, Proc. IEEE 66(1), 1978, table 1).

    SciPy has it in a package that takes a second to import, in every node of a lab.
    """
    turns = 2 * np.pi * np.arange(size) / size
    return np.asarray(0.35875 - 0.48829 * np.cos(turns) + 0.14128 * np.cos(2 * turns) - 0.01168 * np.cos(3 * turns))


def _row(samples: Samples, window: np.ndarray) -> np.ndarray:
    """Give the mean power of every bin over the frames of one row."""
    size = window.size
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[:: size // 2]
    spectra = fft(frames * window, axis=1)
    result: np.ndarray = np.mean(spectra.real**2 + spectra.imag**2, axis=0, dtype=np.float64) / np.sum(window**2)
    return result


def noise(radio: Radio, config: RadioConfig, options: CalibrationOptions, seed: int, name: str) -> Result:
    """Measure noise floor, DC, lines and gain, and look for foreign signals in the band.

    What other radios leak while they are not muted, and the receiver's own DC, lie within LO_PPM of the carrier, where
    no foreign signal is looked for. A noise figure is not given: no radio knows the power of its full scale.

    Returns:
        ``noise_dbfs`` per sample in the band at the given gain, ``dc_dbfs``, ``gain_step_db`` (measured per nominal dB
        of gain), ``spur_hz`` and ``spur_db`` of the strongest line over the noise in its bin; curves ``psd_hz``,
        ``psd_dbfs`` (per Hz), ``gain_db``, ``gain_noise_dbfs``.
    """
    watch = listen(radio, config, WATCH_S)
    busy = watch.busy()
    excess = np.where(busy, watch.cells - watch.floor, 0.0)
    rise = excess.mean(axis=1) / watch.floor
    loud = rise > 10.0 ** (RISE_DB / 10.0) - 1.0
    power, spread = watch.quiet_power(busy, loud)
    values: dict[str, Value] = {"noise_dbfs": Estimate.normal(DB * math.log(power), DB * spread, "db")}
    size, sigma = abs(watch.mean), math.sqrt(power / watch.count)
    if size > 4.0 * sigma:
        low, high = (20.0 * math.log10(size + sign * 1.96 * sigma / math.sqrt(2.0)) for sign in (-1.0, 1.0))
        values["dc_dbfs"] = Estimate(20.0 * math.log10(size), low, high, "db")
    values |= _spur(watch, config)
    gains, noises = _line_up(radio, config, DB * math.log(power))
    analogue = np.array(noises) > CONVERTER_DBFS
    if np.count_nonzero(analogue) >= 3:
        values["gain_step_db"] = float(np.polyfit(np.array(gains)[analogue], np.array(noises)[analogue], 1)[0])
    curves = {
        "psd_hz": watch.hz + config.rx_hz,
        "psd_dbfs": DB * np.log(watch.power.mean(axis=0) / config.rate_hz + 1e-30),
        "gain_db": np.array(gains),
        "gain_noise_dbfs": np.array(noises),
    }
    return Result("noise", name, values, curves, _finding(watch, config, name, loud, excess))


def _spur(watch: Watch, config: RadioConfig) -> dict[str, Value]:
    """Find the strongest line that stays: the median over time passes bursts by."""
    away = np.abs(watch.hz) >= np.abs(watch.cell_hz).min()
    away &= np.abs(watch.hz) <= np.abs(watch.cell_hz).max()
    steady = np.where(away, np.median(watch.power, axis=0), 0.0)
    best = int(np.argmax(steady))
    over_db = DB * math.log(steady[best] / watch.floor)
    return {"spur_hz": float(watch.hz[best] + config.rx_hz), "spur_db": over_db} if over_db > SPUR_DB else {}


def _line_up(radio: Radio, config: RadioConfig, noise_dbfs: float) -> tuple[list[float], list[float]]:
    """Measure the noise at a few gains around the wanted one, where the device takes them."""
    found = {config.rx_gain_db: noise_dbfs}
    for step_db in LINE_UP_DB:
        try:
            taken = radio.configure(replace(config, rx_gain_db=config.rx_gain_db + step_db))
        except RadioRefused:
            continue
        found[taken.rx_gain_db] = DB * math.log(listen(radio, taken, None).floor)
    gains = sorted(found)
    return gains, [found[gain] for gain in gains]


def _finding(watch: Watch, config: RadioConfig, name: str, loud: np.ndarray, excess: np.ndarray) -> Finding | None:
    if loud.any():
        weight = excess[loud].mean(axis=0)
        centre_hz = config.rx_hz + float(weight @ watch.cell_hz / weight.sum())
        level = float(weight.sum()) * CELL / watch.hz.size
        rise_db = 10.0 * math.log10(1.0 + float(excess[loud].mean()) / watch.floor)
        return Finding(
            "interferer",
            f"{name} hears a foreign signal at {centre_hz / 1e6:.3f} MHz of {DB * math.log(level):.1f} dBFS during "
            f"{100.0 * loud.mean():.0f} % of {watch.count / watch.rate_hz:.1f} s; it raises the noise of the band by "
            f"{rise_db:.1f} dB, {RISE_DB:g} dB pass",
            "switch its transmitter off, or tune the lab to a free part of the band",
        )
    if watch.clipped:
        return Finding(
            "clip",
            f"{name}: {watch.clipped} of {watch.count} samples are at a rail of its converter while nobody transmits",
            "lower rx_gain_db of this radio",
        )
    return None
