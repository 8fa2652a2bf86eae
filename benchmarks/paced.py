"""Share of one core that the air behind five virtual Plutos takes at 1 MS/s, without libiio and sockets.

Run: ``python benchmarks/paced.py``. At 100 % the air falls behind. Seconds are those of this thread on a processor, so
that other programs disturb them less; the median of sixty blocks is printed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Collection

import numpy as np

from radio.ether import Ether
from radio.paced import PacedRadio, Wall, paced_options
from radio.presets import preset

NAMES = ("server", "node-1", "node-2", "node-3", "node-4")
BLOCK, BUFFERS, RATE_HZ = 8192, 3, 1e6
ROUNDS = 60


class Lab:
    """Radios whose time moves on a block at a time."""

    def __init__(self) -> None:
        self._now_s = 0.0
        ether, wall = Ether(paced_options(preset("pluto-stock", snr_db=20.0), NAMES), NAMES), Wall(lambda: self._now_s)
        self._radios = {name: PacedRadio(ether, name, wall) for name in NAMES}
        for radio in self._radios.values():
            radio.set(rate_hz=RATE_HZ, tx_hz=915e6, rx_hz=915e6, rx_gain_db=40.0, manual_gain=True)
            radio.rx_open(BLOCK, BUFFERS)
            radio.tx_open(BLOCK, BUFFERS)
        self._wave = (np.random.default_rng(0).standard_normal((BLOCK, 2)) * 6000).astype(np.int16)

    def share(self, senders: Collection[str]) -> float:
        """Give processor time over time on the air while ``senders`` send without a pause and the others zeros."""
        costs = []
        for _ in range(ROUNDS + BUFFERS):
            self._now_s += BLOCK / RATE_HZ
            begin_s = time.thread_time()
            for name, radio in self._radios.items():
                while radio.tx_wait_s() <= 0:
                    radio.tx_put(self._wave if name in senders else np.zeros_like(self._wave))
                while radio.rx_wait_s() <= 0:
                    radio.rx_take()
            costs.append(time.thread_time() - begin_s)
        return statistics.median(costs[BUFFERS:]) * RATE_HZ / BLOCK


def main() -> None:
    """Print one line per state of the air."""
    lab = Lab()
    lab.share(NAMES)  # compiles
    for title, senders in (("silent", ()), ("the server sends", NAMES[:1]), ("four nodes send", NAMES[1:])):
        print(f"{title:20}{100 * lab.share(senders):6.1f} % of one core")


if __name__ == "__main__":
    main()
