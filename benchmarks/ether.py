"""Speed of the simulated air on one core, as ratios taken in one run: eight transmitters into one receiver.

Run: ``python benchmarks/ether.py``. The first limit is the bare work that no air can avoid: eight complex FIR filters
of 8 constant taps over the same samples; the second is eight such filters of the length that the fractional delay
needs. Seconds are those of this thread on a processor, so that other programs disturb them less.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import time
from collections.abc import Callable

import numpy as np
from numba import njit

from radio.airkernel import TAPS
from radio.base import RadioConfig
from radio.ether import Ether
from radio.loopback import LoopbackRadio
from radio.presets import EtherOptions, preset

WINDOW = 50_000
ROUNDS = 15
NODES = 8


@njit(fastmath=True)
def filters(out_re, out_im, re, im, taps_re, taps_im):  # type: ignore[no-untyped-def]
    """Add eight complex FIR filters in cache-sized blocks, four real products per tap."""
    block = 256
    for low in range(0, out_re.size - block + 1, block):
        a, b = out_re[low : low + block], out_im[low : low + block]
        for node in range(re.shape[0]):
            for k in range(taps_re.shape[1]):
                x, y = re[node, low + k : low + k + block], im[node, low + k : low + k + block]
                p, q = taps_re[node, k], taps_im[node, k]
                for i in range(block):
                    a[i] += p * x[i] - q * y[i]
                    b[i] += p * y[i] + q * x[i]


def best(run: Callable[[], object]) -> float:
    """Give MS/s of output by the best of several windows, after a first one that compiles."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        begin = time.thread_time()
        run()
        seconds.append(time.thread_time() - begin)
    return WINDOW / min(seconds) / 1e6


def air(options: EtherOptions) -> float:
    """Measure a receiver in a lab whose eight nodes all transmit all the time."""
    names = ["server", *(f"node-{i}" for i in range(NODES))]
    ether = Ether(options, names)
    radios = [LoopbackRadio(name, ether) for name in names]
    draw = np.random.default_rng(0)
    for radio in radios:
        radio.configure(RadioConfig(1e6, 915e6, 915e6, 1e6, 60.0))
    length = (ROUNDS + 4) * WINDOW + 150_000
    for radio in radios[1:]:
        wave = 0.25 * (draw.standard_normal(length, np.float32) + 1j * draw.standard_normal(length, np.float32))
        radio.transmit(wave.astype(np.complex64))
    radios[0].receive(0, radios[0].now() + 120_000)  # everybody is on the air from here
    return best(lambda: radios[0].receive(WINDOW))


def bare(taps: int) -> float:
    """Measure the filters alone."""
    draw = np.random.default_rng(0)
    re, im = draw.standard_normal((2, NODES, WINDOW + taps), np.float32)
    h_re, h_im = draw.standard_normal((2, NODES, taps), np.float32)
    out = np.zeros((2, WINDOW), np.float32)
    return best(lambda: filters(out[0], out[1], re, im, h_re, h_im))


def main() -> None:
    """Print MS/s and ratios."""
    short, long = bare(8), bare(TAPS + 4)
    print(f"limit: 8 bare FIRs of 8 taps      {short:7.1f} MS/s")
    print(f"limit: 8 bare FIRs of {TAPS + 4} taps     {long:7.1f} MS/s")
    rows = {
        "ideal": preset("ideal"),
        "pluto-stock, one path": preset("pluto-stock", paths_max=1, doppler_max_hz=0.0),
        "pluto-stock, all": preset("pluto-stock"),
        "pluto-stock, 4 paths, interferer": preset("pluto-stock", paths_min=4, interferer_dbm=-110.0),
    }
    for name, options in rows.items():
        speed = air(options)
        print(f"{name:34s}{speed:7.1f} MS/s   {speed / short:5.2f} / {speed / long:5.2f} of the limits")


if __name__ == "__main__":
    main()
