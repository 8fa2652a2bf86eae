"""The compiled inner loops of a simulated crystal; knows arrays and numbers only, no radio, no seed."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64
from numba import njit


@njit(cache=True, nogil=True)
def clock_error_at(
    t: float,
    ppm: float,
    warm_ppm: float,
    warm_s: float,
    drift_per_s: float,
    path_s: Float64[np.ndarray, " grid"],
    slope: Float64[np.ndarray, " grid"],
    first: int,
    step_s: float,
) -> float:
    """Evaluate a clock's time error x(t) in s: closed forms plus a cubic-Hermite path from grid point ``first`` on."""
    x = 1e-6 * ppm * t + 0.5 * drift_per_s * t * t
    if warm_ppm != 0.0:
        x -= 1e-6 * warm_ppm * warm_s * math.expm1(-t / warm_s)
    if path_s.size > 1:
        position = max(t / step_s - first, 0.0)
        cell = min(max(math.floor(position), 0), path_s.size - 2)
        w = position - cell
        rise = path_s[cell + 1] - path_s[cell]
        left = step_s * slope[cell] - rise
        right = rise - step_s * slope[cell + 1]
        x += path_s[cell] + w * rise + w * (1.0 - w) * ((1.0 - w) * left + w * right)
    return x


@njit(cache=True, nogil=True)
def clock_error(
    time_s: Float64[np.ndarray, " time"],
    ppm: float,
    warm_ppm: float,
    warm_s: float,
    drift_per_s: float,
    path_s: Float64[np.ndarray, " grid"],
    slope: Float64[np.ndarray, " grid"],
    first: int,
    step_s: float,
) -> Float64[np.ndarray, " time"]:
    """Evaluate ``clock_error_at`` at many times."""
    out = np.empty(time_s.size)
    for i in range(time_s.size):
        out[i] = clock_error_at(time_s[i], ppm, warm_ppm, warm_s, drift_per_s, path_s, slope, first, step_s)
    return out


@njit(cache=True, nogil=True)
def clock_instant_at(
    reading_s: float,
    near_s: float,
    ppm: float,
    warm_ppm: float,
    warm_s: float,
    drift_per_s: float,
    path_s: Float64[np.ndarray, " grid"],
    slope: Float64[np.ndarray, " grid"],
    first: int,
    step_s: float,
) -> float:
    """Find the true time at which the clock shows ``reading_s``: fixed point, each step gains five digits.

    The search starts at the time error ``near_s``; from a good one or a bad one, it ends at the same bits.
    """
    t = reading_s - near_s
    for _ in range(4):
        t = reading_s - clock_error_at(t, ppm, warm_ppm, warm_s, drift_per_s, path_s, slope, first, step_s)
    return t


@njit(cache=True, nogil=True)
def clock_instant(
    reading_s: Float64[np.ndarray, " time"],
    near_s: float,
    ppm: float,
    warm_ppm: float,
    warm_s: float,
    drift_per_s: float,
    path_s: Float64[np.ndarray, " grid"],
    slope: Float64[np.ndarray, " grid"],
    first: int,
    step_s: float,
) -> Float64[np.ndarray, " time"]:
    """Evaluate ``clock_instant_at`` at many readings."""
    out = np.empty(reading_s.size)
    for i in range(reading_s.size):
        out[i] = clock_instant_at(
            reading_s[i], near_s, ppm, warm_ppm, warm_s, drift_per_s, path_s, slope, first, step_s
        )
    return out


@njit(cache=True, nogil=True)
def relax(
    state: Float64[np.ndarray, " process"],
    keep: Float64[np.ndarray, " process"],
    shock: Float64[np.ndarray, " process"],
    kicks: Float64[np.ndarray, "process step"],
) -> Float64[np.ndarray, "process value"]:
    """Run first-order processes ``x[n+1] = keep x[n] + shock kick[n]``, one a row; the first value is ``state``."""
    path = np.empty((kicks.shape[0], kicks.shape[1] + 1))
    for i in range(kicks.shape[0]):
        path[i, 0] = state[i]
        for n in range(kicks.shape[1]):
            path[i, n + 1] = keep[i] * path[i, n] + shock[i] * kicks[i, n]
    return path
