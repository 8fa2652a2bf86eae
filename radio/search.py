"""Coarse search for beacons in a long capture, compiled; knows the short training field alone, nothing of what follows.

The short training field has odd harmonics only, so half a period later it is its own negative. The comb
``z[n] = y[n] - y[n - period/2]`` therefore doubles it and removes DC offset (and weakens LO leaks, which lie near DC).
One period later ``z`` of the field repeats up to the carrier offset, and the comb leaves noise uncorrelated at that
lag: the lag autocorrelation over the field, divided by the energy, detects it at any offset up to half a tone spacing
(timing metric of Schmidl & Cox, "Robust frequency and timing synchronization for OFDM", IEEE Trans. Commun. 45(12),
1997, eq. 8, applied to the comb's output).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex64, Float32
from numba import njit

from radio.ofdm import Profile

# Noise alone has an rms of 1.22/sqrt(window) = 0.10 at 144 samples, so it passes a few times in 10^5 periods (later
# rungs refuse it at little cost); a beacon at 0 dB per sample reaches 0.67 without offset and 0.50 at the edge.
THRESHOLD = 0.32


def search(samples: Complex64[np.ndarray, " sample"], profile: Profile, threshold: float = THRESHOLD) -> list[int]:
    """Find where short training fields may begin.

    Args:
        samples: capture, complex64; need not be a whole number of periods.
        profile: waveform.
        threshold: least normalised autocorrelation, 0 to 1.

    Returns:
        Positions relative to ``samples[0]``, ascending, within about two periods of the truth at 5 dB or more.
    """
    window = profile.stf_repeats - 2
    periods = samples.size // profile.stf_period
    if periods < window + 2:
        return []
    samples = np.ascontiguousarray(samples, dtype=np.complex64)
    floats = samples[: periods * profile.stf_period].view(np.float32)
    sums = np.zeros((3, periods), dtype=np.float32)
    _period_sums(floats, profile.stf_period, sums[0], sums[1], sums[2])
    starts = _peaks(sums[0], sums[1], sums[2], window, threshold)
    return [int(start - 2) * profile.stf_period for start in starts]


@njit(cache=True, nogil=True, fastmath=True)
def _period_sums(
    floats: Float32[np.ndarray, " interleaved"],
    period: int,
    real: Float32[np.ndarray, " period"],
    imag: Float32[np.ndarray, " period"],
    energy: Float32[np.ndarray, " period"],
) -> None:
    # One pass, no buffers: the four samples of each product are read directly, as re, im, re, im, ...
    for block in range(2, real.size):
        first = 2 * block * period
        re = np.float32(0.0)
        im = np.float32(0.0)
        power = np.float32(0.0)
        for n in range(first, first + 2 * period, 2):
            zr = floats[n] - floats[n - period]
            zi = floats[n + 1] - floats[n + 1 - period]
            wr = floats[n - 2 * period] - floats[n - 3 * period]
            wi = floats[n + 1 - 2 * period] - floats[n + 1 - 3 * period]
            re += zr * wr + zi * wi
            im += zi * wr - zr * wi
            power += zr * zr + zi * zi + wr * wr + wi * wi
        real[block] = re
        imag[block] = im
        energy[block] = np.float32(0.5) * power


@njit(cache=True, nogil=True)
def _peaks(
    real: Float32[np.ndarray, " period"],
    imag: Float32[np.ndarray, " period"],
    energy: Float32[np.ndarray, " period"],
    window: int,
    threshold: float,
) -> np.ndarray:
    # Sliding sums in float64: a float32 sum would keep the rounding of a strong burst long after it has gone.
    found = np.empty(real.size // window + 1, dtype=np.int64)
    count = 0
    best_at = -1
    best = 0.0
    re, im, power = 0.0, 0.0, 0.0
    for n in range(real.size):
        re += np.float64(real[n])
        im += np.float64(imag[n])
        power += np.float64(energy[n])
        if n >= window:
            re -= np.float64(real[n - window])
            im -= np.float64(imag[n - window])
            power -= np.float64(energy[n - window])
        start = n - window + 1
        if start < 2:
            continue
        # By |P| alone the peak is sharp; the normalised metric is a plateau at high SNR and only gates.
        score = re * re + im * im
        if best_at >= 0 and start - best_at > window:
            found[count] = best_at
            count += 1
            best_at = -1
            best = 0.0
        if score > threshold * threshold * power * power and score > best:
            best = score
            best_at = start
    if best_at >= 0:
        found[count] = best_at
        count += 1
    return found[:count]


def metric_model(
    samples: Complex64[np.ndarray, " sample"], profile: Profile
) -> tuple[np.ndarray, Float32[np.ndarray, " start"]]:
    """Compute autocorrelation and normalised metric of the search in plain NumPy: the model of the compiled pass.

    Args:
        samples: capture.
        profile: waveform.

    Returns:
        Complex autocorrelation and metric (0 to 1), one per period, for windows that begin at period 2, 3, ...
    """
    period, window = profile.stf_period, profile.stf_repeats - 2
    samples = samples[: samples.size // period * period].astype(np.complex128)
    comb = samples[period // 2 :] - samples[: -(period // 2)]
    early, late = comb[period // 2 : -period], comb[period // 2 + period :]
    blocks = (late * early.conj()).reshape(-1, period).sum(axis=1)
    energy = (np.abs(late) ** 2 + np.abs(early) ** 2).reshape(-1, period).sum(axis=1) / 2
    correlation = np.convolve(blocks, np.ones(window), "valid")
    total = np.convolve(energy, np.ones(window), "valid")
    return correlation, (np.abs(correlation) / np.maximum(total, np.finfo(float).tiny)).astype(np.float32)


def search_model(
    samples: Complex64[np.ndarray, " sample"], profile: Profile, threshold: float = THRESHOLD
) -> list[int]:
    """Find the same candidates as ``search`` with ``metric_model`` and a plain loop; slow, for tests.

    Args:
        samples: capture.
        profile: waveform.
        threshold: least normalised autocorrelation.

    Returns:
        Positions relative to ``samples[0]``, ascending.
    """
    window = profile.stf_repeats - 2
    if samples.size // profile.stf_period < window + 2:
        return []
    correlation, metric = metric_model(samples, profile)
    strength = np.where(metric > threshold, np.abs(correlation), 0.0)
    found: list[int] = []
    at: int | None = None
    for start, value in enumerate(strength):
        if at is not None and start - at > window:
            found.append(at)
            at = None
        if value > 0 and (at is None or value > strength[at]):
            at = start
    return [start * profile.stf_period for start in [*found, *([] if at is None else [at])]]
