"""Throughput of the Pluto driver through real libiio, as ratios to pyadi-iio's ``rx()`` and ``tx()`` in one run.

Run: ``python benchmarks/pluto.py``. A stand-in radio that answers at once is served by the virtual Pluto in a process
of its own, so that neither air nor pacing is the limit. Both sides move 65,536-sample blocks: pyadi-iio gives
complex128, the driver complex64 from its ring; both take complex64 to send. The bare refill and push of libiio, without
any conversion, bound both. Every figure is the best of several rounds, taken in turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from radio import pluto
from radio.base import RadioConfig
from radio.paced import POWER_UP
from radio.pairs import to_pairs
from radio.pluto_stream import Streams, TxQueue
from radio.ring import RxRing
from radio.virtual_pluto import VirtualPluto, VirtualPlutos

BLOCK = 65_536
BLOCKS = 150
ROUNDS = 12


class AtOnce:
    """A radio whose blocks are always full and always free."""

    gone = overflowed = underflowed = False
    manual_gain = powered = True
    config: RadioConfig = POWER_UP

    def __init__(self) -> None:
        self.block = np.zeros((0, 2), np.int16)

    def set(self, manual_gain: bool | None = None, **changes: float) -> RadioConfig:
        """Take any setting."""
        self.config = replace(self.config, **changes)
        return self.config

    def power(self, on: bool) -> None:
        """Have no transmitter."""

    def rx_open(self, block: int, buffers: int) -> None:
        """Fill the one block there is with 12-bit noise."""
        self.block = np.random.default_rng(1).integers(-2000, 2000, (block, 2), np.int16)

    def rx_take(self) -> np.ndarray:
        """Give it."""
        return self.block

    def rx_wait_s(self) -> float:
        """Never wait."""
        return 0.0

    tx_wait_s = rx_wait_s

    def tx_open(self, block: int, buffers: int, cyclic: bool = False) -> None:
        """Be ready."""

    def tx_put(self, samples: np.ndarray) -> None:
        """Forget it."""

    def rx_close(self) -> None:
        """Do nothing."""

    tx_close = tick = power_up = rx_close


def serve() -> None:
    """Serve the stand-in until standard input closes."""
    served = VirtualPluto(AtOnce(), "benchmark")
    lab = VirtualPlutos([served])
    lab.start()
    print(json.dumps(served.uri), flush=True)
    sys.stdin.read()
    lab.stop()


class Idle:
    """The direction that is not measured."""

    buffers = 4

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.memory = np.zeros((BLOCK, 2), np.int16)

    def refill(self) -> None:
        """Hang until cancelled."""
        self.woken.wait()
        raise OSError(9, "cancelled")

    push = refill

    def cancel(self) -> None:
        """Wake."""
        self.woken.set()

    def samples(self) -> np.ndarray:
        """Give some memory."""
        return self.memory

    def close(self) -> None:
        """Have nothing to close."""


def timed(step: Callable[[], object], warm: int = 10) -> float:
    """Give MS/s of a step that moves one block."""
    for _ in range(warm):
        step()
    begin = time.perf_counter()
    for _ in range(BLOCKS):
        step()
    return BLOCKS * BLOCK / (time.perf_counter() - begin) / 1e6


def driver_rx(uri: str) -> float:
    """Receive through the driver's thread and ring."""
    device = pluto.Device(pluto.address(uri))
    port, unused = device.blocks(BLOCK, 4)
    unused.close()
    ring = RxRing(1 << 24, 2**11)  # holds a whole round, should the reader fall behind
    ring.append(np.zeros((1 << 24, 2), np.int16), 0)  # its memory is had from the system before, as in a long run
    ring.restart(0, seam=False)
    streams = Streams(port, Idle(), ring, TxQueue("benchmark"), 61.44e6, BLOCK)
    speed = timed(lambda: ring.take(BLOCK, None, 5.0))
    assert streams.stop(5.0)
    return speed


def driver_tx(uri: str, burst: np.ndarray) -> float:
    """Send through the driver's conversion and queue, in one thread.

    The driver's own thread never waits for a burst: against a radio without a pace it would fill the time with zeros.
    """
    device = pluto.Device(pluto.address(uri))
    unused, port = device.blocks(BLOCK, 4)
    unused.close()
    queue = TxQueue("benchmark")

    def send() -> None:
        queue.add(to_pairs(burst, 12)[0], None)
        queue.compose(port.samples())
        port.push()

    speed = timed(send)
    port.close()
    return speed


def adi_rx(uri: str) -> float:
    """Receive through pyadi-iio."""
    _, adi = pluto.libraries()
    plain = adi.Pluto(uri)
    plain.rx_buffer_size = BLOCK
    speed = timed(plain.rx)
    plain.rx_destroy_buffer()
    return speed


def adi_tx(uri: str, burst: np.ndarray) -> float:
    """Send through pyadi-iio, which wants full scale 2^15 in the values."""
    _, adi = pluto.libraries()
    plain = adi.Pluto(uri)
    scaled = (burst * 2**15).astype(np.complex64)
    speed = timed(lambda: plain.tx(scaled))
    plain.tx_destroy_buffer()
    return speed


def bare(uri: str, output: bool) -> float:
    """Refill or push without touching the samples."""
    device = pluto.Device(pluto.address(uri))
    ports = device.blocks(BLOCK, 4)
    speed = timed(ports[1].push if output else ports[0].refill)
    for port in ports:
        port.close()
    return speed


def main() -> None:
    """Print the figures and the two ratios."""
    child = subprocess.Popen([sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    uri = json.loads(child.stdout.readline())
    draw = np.random.default_rng(2)
    burst = (0.1 * (draw.standard_normal(BLOCK) + 1j * draw.standard_normal(BLOCK))).astype(np.complex64)
    runs: dict[str, Callable[[], float]] = {
        "RX libiio": lambda: bare(uri, False),
        "RX pyadi-iio": lambda: adi_rx(uri),
        "RX driver": lambda: driver_rx(uri),
        "TX libiio": lambda: bare(uri, True),
        "TX pyadi-iio": lambda: adi_tx(uri, burst),
        "TX driver": lambda: driver_tx(uri, burst),
    }
    best = dict.fromkeys(runs, 0.0)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            best[name] = max(best[name], run())
    child.communicate()
    for name, speed in best.items():
        print(f"{name:13} {speed:7.1f} MS/s")
    for way, wanted in (("RX", 3), ("TX", 1)):
        ratio = best[f"{way} driver"] / best[f"{way} pyadi-iio"]
        print(f"{way}: {ratio:.2f} times pyadi-iio (wanted: at least {wanted}), "
              f"{best[f'{way} driver'] / best[f'{way} libiio']:.2f} of bare libiio")  # fmt: skip


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
