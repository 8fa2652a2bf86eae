"""Decode of a received burst against its air time on one core; knows the waveform, no radios.

Run: ``OMP_NUM_THREADS=1 python benchmarks/burst.py``. The limit: a burst of eight nodes (demodulate, noise, verify,
unpack) must take less time than it lasts on the air. A bare FFT of the same windows is the lower bound of any decoder.
Times are processor time of one thread, so that a busy machine does not change the ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.fft import fft

from radio.ofdm import (
    PROFILES,
    Profile,
    assemble,
    canary,
    capacity,
    demodulate,
    drive_for_backoff,
    pack,
    pilot,
    split,
    synthesise,
    unpack,
)
from radio.sync import estimate_link, noise_of, sounding
from radio.verify import judge, verify

NODES = 8


@dataclass(frozen=True)
class Figures:
    """Median milliseconds of each step and the ratios that count."""

    name: str
    air_ms: float
    decode_ms: float
    bare_fft_ms: float
    synthesise_ms: float
    estimate_ms: float

    @property
    def of_air_time(self) -> float:
        """Decode time as a part of the air time; below 1 the host keeps up."""
        return self.decode_ms / self.air_ms


def median_ms(work: Callable[[], object], repeats: int = 41) -> float:
    """Time ``work`` after one warm-up call."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return 1e3 * float(np.median(seconds))


def measure(profile: Profile) -> Figures:
    """Superpose a burst of eight nodes at 20 dB SNR and time its steps."""
    rng = np.random.default_rng(0)
    mode = profile.modes[-1]
    reals, drive = capacity(profile, mode), np.float32(drive_for_backoff(profile))
    # Sample instants 10 ppm off, as a free-running node has them.
    times = np.arange(profile.burst_samples) * (1 + 1e-5)
    noise = float(drive) ** 2 / 100
    samples = np.sqrt(noise / 2) * (rng.standard_normal(times.size) + 1j * rng.standard_normal(times.size))
    for node in range(NODES):
        data = pack(rng.standard_normal(reals).astype(np.float32), profile, mode, 1)[0]
        grid = assemble(data, pilot(profile, node, NODES), canary(profile, 1, node, mode)) * drive
        samples += synthesise(grid, profile, times)
    received = samples.astype(np.complex64)

    def decode() -> None:
        elements, nulls = demodulate(received, profile, profile.burst_symbols)
        pilots, payload, _ = split(elements)
        result = verify(pilots[None], tuple(range(NODES)), NODES, noise_of(nulls), profile, float(drive))
        judge(result, mode)
        unpack(payload[None], profile, mode, reals, 1)

    windows = np.ascontiguousarray(received.reshape(profile.burst_symbols, profile.symbol_samples)[:, profile.cp :])
    sounded = sounding(profile)
    return Figures(
        name=profile.name,
        air_ms=1e3 * profile.burst_samples / profile.rate_hz,
        decode_ms=median_ms(decode),
        bare_fft_ms=median_ms(lambda: fft(windows, axis=1)),
        synthesise_ms=median_ms(lambda: synthesise(grid, profile, times)),
        estimate_ms=median_ms(lambda: estimate_link(sounded, sounded, noise, profile)),
    )


def main() -> None:
    """Print one line per profile."""
    print(f"{NODES} nodes; decode = demodulate + noise + verify + judge + unpack; medians in ms, one core")
    for name in ("pluto-915", "usrp-ref"):
        figures = measure(PROFILES[name])
        print(
            f"{figures.name:10} air {figures.air_ms:.2f}  decode {figures.decode_ms:.2f}"
            f" = {figures.of_air_time:.3f} of air time (limit 1),"
            f" {figures.decode_ms / figures.bare_fft_ms:.1f} bare FFTs;"
            f"  synthesise at a node {figures.synthesise_ms:.2f}, link estimate {figures.estimate_ms:.2f}"
        )


if __name__ == "__main__":
    main()
