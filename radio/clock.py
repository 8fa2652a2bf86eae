"""The oscillator of one simulated radio and its phase-locked loops; knows true time, nothing of samples on the air.

One ``Clock`` drives a radio's LO phases and its transmit and receive sample instants alike, so a carrier offset and a
sample-clock offset are always the same fraction, as on hardware with one crystal.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64

from radio.clockkernel import clock_error, clock_error_at, clock_instant, clock_instant_at, relax

STEP_S = 1e-3  # grid of the flicker path
CHUNK = 2048  # grid points generated at a time
SHORTEST_S, LONGEST_S, RATIO = 1e-3, 2e3, 2.5  # time constants whose sum is flat in Allan deviation between these times
PLL_STEP_S = 20e-6  # grid of the PLL phase noise: about 25 kHz of loop bandwidth
PLL_CHUNK = 4096


def rng(seed: int, *keys: str | int) -> np.random.Generator:
    """Give a random generator that depends on ``seed`` and every key, the same in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, keys)).encode(), digest_size=16).digest()
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, *np.frombuffer(digest, np.uint32).tolist()]))
    )


class Chunks:
    """Arrays made chunk by chunk from a pure function of the chunk number; keeps the last few, so memory stays flat."""

    def __init__(self, make: Callable[[int], np.ndarray], length: int, keep: int = 8) -> None:
        self._make, self._length, self._keep = make, length, keep
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._span: tuple[int, int, np.ndarray] = (0, -1, np.empty(0))

    def _chunk(self, number: int) -> np.ndarray:
        if number not in self._kept:
            self._kept[number] = self._make(number)
            if len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]

    def span(self, first: int, last: int) -> tuple[np.ndarray, int]:
        """Give an array that covers points ``first`` to ``last`` (along its last axis) and the point it starts at."""
        low, high = first // self._length, last // self._length
        if not (self._span[0] <= low and high <= self._span[1]):
            joined = np.ascontiguousarray(np.concatenate([self._chunk(k) for k in range(low, high + 1)], axis=-1))
            self._span = (low, high, joined)
        return self._span[2], self._span[0] * self._length


class FlickerPath:
    """Time error of flicker frequency noise: a sum of Ornstein-Uhlenbeck processes with log-spaced time constants.

    Each process has variance ln(RATIO) ADEV^2 / (2 ln 2): the sum over time constants of 4 v tau / (1 + (2 pi f tau)^2)
    then is h_-1 / f with ADEV^2 = 2 ln 2 h_-1, the flicker floor of IEEE Std 1139-2008. Process and integral are
    stepped with their exact joint covariance (Gillespie, Phys. Rev. E 54, 2084, 1996).
    """

    def __init__(self, adev: float, seed: int, name: str) -> None:
        count = math.ceil(math.log(LONGEST_S / SHORTEST_S) / math.log(RATIO)) + 1
        self._tau = SHORTEST_S * RATIO ** np.arange(count)
        self._variance = math.log(RATIO) * adev**2 / (2.0 * math.log(2.0))
        self._seed, self._name = seed, name
        start = rng(seed, name, "flicker-start").standard_normal(count) * math.sqrt(self._variance)
        self._states: list[tuple[Float64[np.ndarray, " process"], float]] = [(start, 0.0)]
        self._chunks = Chunks(self._make, CHUNK, keep=32)  # radios on virtual time are not at one place

    def _step(self, number: int) -> tuple[np.ndarray, tuple[Float64[np.ndarray, " process"], float]]:
        state, error_s = self._states[number]
        tau, ratio = self._tau, STEP_S / self._tau
        keep = np.exp(-ratio)
        v = self._variance
        shock = math.sqrt(v) * np.sqrt(-np.expm1(-2.0 * ratio))
        # exact integral variance; its closed form cancels for slow processes, where the leading terms serve
        exact = 2.0 * ratio - 3.0 + 4.0 * keep - keep**2
        spread = (
            v * tau**2 * np.where(ratio < 1e-2, ratio**3 * (2.0 / 3.0 - 0.5 * ratio + 7.0 / 30.0 * ratio**2), exact)
        )
        shared = v * tau * np.expm1(-ratio) ** 2 / shock
        rest = math.sqrt(float(np.sum(np.maximum(spread - shared**2, 0.0))))
        source = rng(self._seed, self._name, "flicker", number)
        kicks = source.standard_normal((tau.size, CHUNK))
        rate = relax(state, keep, shock, kicks)
        moved = (-tau * np.expm1(-ratio)) @ rate[:, :-1] + shared @ kicks + rest * source.standard_normal(CHUNK)
        path = error_s + np.concatenate([[0.0], np.cumsum(moved)])
        chunk = np.stack([path[:-1], rate[:, :-1].sum(axis=0)])
        return chunk, (rate[:, -1].copy(), float(path[-1]))

    def _make(self, number: int) -> np.ndarray:
        while len(self._states) <= number:
            self._states.append(self._step(len(self._states) - 1)[1])
        chunk, after = self._step(number)
        if len(self._states) == number + 1:
            self._states.append(after)
        return chunk

    def span(self, begin_s: float, end_s: float) -> tuple[np.ndarray, int]:
        """Give grid values (row 0 time error in s, row 1 its slope) that cover the times, and the first grid point."""
        return self._chunks.span(max(math.floor(begin_s / STEP_S), 0), max(math.ceil(end_s / STEP_S) + 1, 2))


class Clock:
    """What a radio's crystal shows at true time t: the reading t + x(t).

    Args:
        ppm: constant fractional frequency error.
        warm_ppm, warm_s: warm-up, an exponential that starts at ``warm_ppm`` and dies with time constant ``warm_s``.
        drift_ppb_per_s: linear frequency drift.
        adev: flicker floor, Allan deviation; 0 switches it off.
        seed, name: what the random path is keyed by.
    """

    def __init__(
        self, ppm: float, warm_ppm: float, warm_s: float, drift_ppb_per_s: float, adev: float, seed: int, name: str
    ) -> None:
        self._fixed = (float(ppm), float(warm_ppm), float(warm_s), 1e-9 * drift_ppb_per_s)
        self._path = FlickerPath(adev, seed, name) if adev > 0 else None
        self._empty = np.zeros((2, 0))
        self._grid, self._first, self._from_s, self._to_s = self._empty, 0, 0.0, 0.0  # what single times fall into
        self._near_s = 0.0  # the last time error that was found

    def error_s(self, time_s: Float64[np.ndarray, " time"]) -> Float64[np.ndarray, " time"]:
        """Evaluate the time error x(t) in seconds at rising true times."""
        time_s = np.ascontiguousarray(time_s, dtype=np.float64)
        grid, first = self._empty, 0
        if self._path is not None and time_s.size:
            grid, first = self._path.span(float(time_s[0]), float(time_s[-1]))
        result: np.ndarray = clock_error(time_s, *self._fixed, grid[0], grid[1], first, STEP_S)
        return result

    def instant(self, reading_s: Float64[np.ndarray, " time"]) -> Float64[np.ndarray, " time"]:
        """Find the true times at which the clock shows rising readings."""
        reading_s = np.ascontiguousarray(reading_s, dtype=np.float64)
        if not reading_s.size:
            return reading_s
        begin_s, end_s = self.instant_at(float(reading_s[0])), self.instant_at(float(reading_s[-1]))
        grid, first = self._empty, 0
        if self._path is not None:
            grid, first = self._path.span(begin_s, end_s)
        result: np.ndarray = clock_instant(reading_s, self._near_s, *self._fixed, grid[0], grid[1], first, STEP_S)
        return result

    def _cover(self, time_s: float) -> None:
        """Have the grid at hand into which one time falls."""
        if self._path is not None and not self._from_s <= time_s < self._to_s:
            self._grid, self._first = self._path.span(time_s, time_s)
            self._from_s = self._first * STEP_S
            self._to_s = self._from_s + (self._grid.shape[1] - 2) * STEP_S

    def instant_at(self, reading_s: float) -> float:
        """Find the true time at which the clock shows one reading."""
        for _ in range(2):  # the second time only if the last error was far off, and with it the grid
            self._cover(reading_s - self._near_s)
            grid = self._grid
            time_s = float(
                clock_instant_at(reading_s, self._near_s, *self._fixed, grid[0], grid[1], self._first, STEP_S)
            )
            self._near_s = reading_s - time_s
            if self._path is None or self._from_s <= time_s < self._to_s:
                break
        return time_s

    def reading(self, time_s: float) -> float:
        """Read the clock at one true time."""
        self._cover(time_s)
        grid = self._grid
        return time_s + float(clock_error_at(time_s, *self._fixed, grid[0], grid[1], self._first, STEP_S))


class PhaseNoise:
    """Stationary band-limited phase noise of one PLL: independent values every 20 us, linear between.

    Args:
        rms_rad: integrated phase noise; 0 switches it off.
        seed, name: what the noise is keyed by.
    """

    def __init__(self, rms_rad: float, seed: int, name: str) -> None:
        self._scale = np.float32(rms_rad * math.sqrt(1.5))  # interpolation keeps 2/3 of the variance
        self._seed, self._name = seed, name
        self._chunks = Chunks(self._make, PLL_CHUNK)

    def _make(self, number: int) -> np.ndarray:
        draw = rng(self._seed, self._name, "pll", number).standard_normal(PLL_CHUNK, dtype=np.float32)
        values: np.ndarray = self._scale * draw
        return values

    def at(
        self, time_s: Float64[np.ndarray, " time"]
    ) -> tuple[Float32[np.ndarray, " grid"], Float64[np.ndarray, " time"]]:
        """Give grid values in rad that cover rising times, and the grid position of each time."""
        if self._scale == 0.0:
            return np.empty(0, np.float32), time_s
        position = time_s / PLL_STEP_S
        grid, first = self._chunks.span(max(int(position[0]), 0), int(position[-1]) + 2)
        return grid, np.maximum(position - first, 0.0)
