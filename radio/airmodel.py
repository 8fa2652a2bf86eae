"""The plain NumPy model of one burst through one link: double precision, exact phase at every sample, long filters.

It is what ``radio.airkernel`` approximates, kept to check it against; nothing calls it in a run.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Complex128, Float64

from radio.links import Link
from radio.station import Burst, Station

HALF = 128  # taps on each side of the windowed-sinc filter
BETA = 12.0  # of its Kaiser window: stopband below -115 dB


def interpolate(
    samples: Complex128[np.ndarray, " sample"], position: Float64[np.ndarray, " point"]
) -> Complex128[np.ndarray, " point"]:
    """Evaluate a band-limited sequence, zero outside, at fractional positions with a Kaiser-windowed sinc."""
    padded = np.pad(samples, HALF + 1)
    inside = np.clip(position, -HALF, samples.size + HALF - 1.0)
    whole = np.floor(inside).astype(np.int64)
    tap = np.arange(-HALF + 1, HALF + 1)
    distance = inside[:, None] - whole[:, None] - tap[None, :]
    window = np.i0(BETA * np.sqrt(np.maximum(1.0 - (distance / HALF) ** 2, 0.0))) / np.i0(BETA)
    index = whole[:, None] + tap[None, :] + HALF + 1
    valid = (index >= 0) & (index < padded.size)
    values = np.where(valid, padded[np.clip(index, 0, padded.size - 1)], 0.0)
    result: np.ndarray = np.sum(values * np.sinc(distance) * window, axis=1)
    return result


def hear(
    receiver: Station, sender: Station, link: Link, burst: Burst, start: int, count: int
) -> Complex128[np.ndarray, " sample"]:
    """Compute what one burst adds at a receiver's mixer from device index ``start`` on, in sqrt(mW), without noise.

    y[n] = sum over paths of g_p(t) s((t + x_tx(t) - origin) rate - delay_p) exp(j phase(t)), t the instant of sample n
    and phase = 2 pi (f_tx (t + x_tx) - f_rx (t + x_rx)) + start phases + phase noises.
    """
    config = receiver.config
    assert config is not None
    reading = receiver.origin_s + np.arange(start, start + count) / config.rate_hz
    time_s = receiver.clock.instant(reading)
    ahead_s = sender.clock.error_s(time_s)
    own_s = receiver.clock.error_s(time_s)
    cycles = (burst.carrier_hz - config.rx_hz) * time_s + burst.carrier_hz * ahead_s - config.rx_hz * own_s
    phase = 2.0 * math.pi * cycles + burst.phase_rad + receiver.rx_phase()
    for pll, sign in ((sender.tx_pll, 1.0), (receiver.rx_pll, -1.0)):
        grid, at = pll.at(time_s)
        if grid.size:
            phase += sign * np.interp(at, np.arange(grid.size), grid)
    samples = burst.re + 1j * burst.im
    gains = burst.level * link.gain * link.paths(time_s)
    total = np.zeros(count, np.complex128)
    for path, extra_s in enumerate(link.path_delay_s):
        since_s = (time_s + ahead_s - burst.origin_s) - burst.device_start / burst.rate_hz - link.delay_s - extra_s
        total += gains[:, path] * interpolate(samples.astype(np.complex128), since_s * burst.rate_hz)
    result: np.ndarray = total * np.exp(1j * phase)
    return result
