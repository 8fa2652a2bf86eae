"""Beacon search and acquisition: speed against a bare FFT pass, false locks in 2,000 acquisitions, cost of tracking.

Run ``python benchmarks/search.py [acquisitions]``. Ratios are taken in one run; absolute figures depend on the machine.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.fft

from radio.beacon import acquire, beacon, search, track
from radio.ofdm import PROFILES

heard = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "radio" / "test_beacon.py"))["heard"]
PLUTO = PROFILES["pluto-915"]


def best_s(work: Callable[[], object], repeats: int = 5) -> float:
    spent = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        spent.append(time.perf_counter() - begin)
    return min(spent)


def overlap_save(samples: np.ndarray, spectrum: np.ndarray, step: int) -> None:
    for first in range(0, samples.size - spectrum.size + 1, step):
        scipy.fft.ifft(scipy.fft.fft(samples[first : first + spectrum.size]) * spectrum)


def speed() -> None:
    rng = np.random.default_rng(1)
    samples = 0.1 * rng.standard_normal((4_000_000, 2), dtype=np.float32).view(np.complex64)[:, 0]
    for first in range(5_000, samples.size - 5_000, 40_000):  # a beacon every 10 ms at 4 MS/s
        samples[first : first + PLUTO.beacon_samples] += beacon(PLUTO, first)
    spectrum = np.ones(4096, dtype=np.complex64)
    step = 4096 - PLUTO.stf_period * PLUTO.stf_repeats
    found = search(samples, PLUTO)  # compiles
    ours = samples.size / 1e6 / best_s(lambda: search(samples, PLUTO))
    bare = samples.size / 1e6 / best_s(lambda: overlap_save(samples, spectrum, step))
    print(
        f"search {ours:.0f} MS/s ({len(found)} candidates for 100 beacons), "
        f"bare scipy FFT+IFFT overlap-save {bare:.0f} MS/s"
    )
    print(f"ratio {ours / bare:.2f}")
    window = heard(PLUTO, rng, 1560, 50.3, slot=1, cfo_hz=20e3)
    print(f"track {best_s(lambda: track(window, PLUTO, 0, 50.0, 20.05e3, 1), 500) * 1e3:.2f} ms per beacon")
    print(f"acquire {best_s(lambda: acquire(window, PLUTO), 500) * 1e3:.2f} ms per beacon")


def locks(snr_db: float, count: int) -> None:
    rng = np.random.default_rng(int(snr_db) + 100)
    missed = wrong = 0
    timing, offset = [], []
    for _ in range(count):
        slot = int(rng.integers(2**32))
        index, cfo_hz = rng.uniform(0, 3000), rng.uniform(-62.5e3, 62.5e3)
        samples = heard(PLUTO, rng, 5000, index, slot=slot, cfo_hz=cfo_hz, phase_rad=rng.uniform(-3, 3), snr_db=snr_db)
        fix = acquire(samples, PLUTO)
        if fix is None:
            missed += 1
        elif fix.slot != slot or abs(fix.index - index) > 0.5 or abs(fix.cfo_hz - cfo_hz) > 100:
            wrong += 1
        else:
            timing.append(fix.index - index)
            offset.append(fix.cfo_hz - cfo_hz)
    rms = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (timing, offset)]
    print(
        f"{snr_db:4.0f} dB: {count} acquisitions, {missed} missed, {wrong} false locks; "
        f"rms {rms[0]:.4f} sample, {rms[1]:.2f} Hz"
    )


def noise_only(count: int) -> None:
    rng = np.random.default_rng(7)
    false = 0
    for _ in range(count):
        noise = rng.standard_normal((20_000, 2), dtype=np.float32).view(np.complex64)[:, 0]
        false += acquire(noise, PLUTO) is not None
    print(f"noise only: {count} captures of 20 ms, {false} false locks")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    speed()
    for snr_db in (0.0, 5.0):
        locks(snr_db, count)
    noise_only(count)


if __name__ == "__main__":
    main()
