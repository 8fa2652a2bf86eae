"""A simulated radio driven by the wall clock, with the DMA queues of a Pluto; knows the ether, no protocol, no socket.

The ether stays what it is: a receive window is rendered once its last sample has passed, and samples to send are
registered before their time comes. What is real here is the queue: blocks that nobody takes in time are lost, and a
transmitter that runs dry plays silence while the counter of its host stands still.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from radio.base import RadioConfig, Tier
from radio.errors import RadioError
from radio.ether import Ether
from radio.pairs import IQ, to_pairs
from radio.presets import EtherOptions

log = logging.getLogger(__name__)

TX_FULL_SCALE, ADC_BITS = float(2**15), 12
#: What an AD9363 is set to when it has booted.
POWER_UP = RadioConfig(30.72e6, 2.45e9, 2.4e9, 18e6, 71.0, 10.0)
#: How far ahead a cyclic buffer is put on the air.
CYCLIC_AHEAD_S = 0.2
#: Waveform profiles for the Pluto run at this rate; a paced air has no first configuration to learn it from.
REFERENCE_RATE_HZ = 1e6
HISTORY_S = 2.0


def paced_options(options: EtherOptions, names: Iterable[str]) -> EtherOptions:
    """Give the options of an air whose radios ``names`` run in real time.

    Latency, stale blocks and losses of these come from their queues and from the host, so the ether must not add its
    own; and nobody may lag behind as long as on virtual time.
    """
    radios = dict(options.radios)
    for name in names:
        tier = options.of(name).tier
        radios[name] = {
            **radios.get(name, {}),
            "tier": Tier.P2 if tier is Tier.P0 else tier,
            "turnaround_s": 0.0,
            "tx_latency_max_s": 0.0,
            "start_spread_s": 0.0,
            "kernel_buffers": 0,
            "drop_probability": 0.0,
            "duplicate_probability": 0.0,
            "overflows_per_min": 0.0,
            "underflows_per_min": 0.0,
            "unplug_at": None,
            "max_rate_hz": 61.44e6,
        }
    rate_hz = options.reference_rate_hz or REFERENCE_RATE_HZ
    changed = {"radios": radios, "reference_rate_hz": rate_hz, "history_s": min(options.history_s, HISTORY_S)}
    return EtherOptions.model_validate({**options.model_dump(), **changed})


class Wall:
    """The time on the air: seconds since this was made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin_s = clock()

    def now_s(self) -> float:
        """Give the seconds gone by."""
        return self._clock() - self._begin_s


class PacedRadio:
    """One radio of an ether in real time. Safe to call from several threads; nothing here sleeps.

    Args:
        ether: the air, made with ``paced_options``.
        name: of a radio that nobody has open.
        wall: the time, one for the whole air.
    """

    def __init__(self, ether: Ether, name: str, wall: Wall) -> None:
        self.name = name
        self._ether, self._wall = ether, wall
        self._lock = threading.RLock()
        self._stalled_until_s = self._gone_until_s = -math.inf
        self.config, self.manual_gain = POWER_UP, False
        self.powered = self.overflowed = self.underflowed = False
        self._rx: deque[int] | None = None  # first device index of every armed block
        self._rx_block = 0
        self._tx_block, self._tx_buffers, self._tx_end = 0, 0, -1
        self._cycle: IQ | None = None
        self._cyclic = False
        self._numbered = False
        ether.open(name, "in real time")
        self.power_up()

    def power_up(self) -> None:
        """Take the state of a radio just switched on: tuned somewhere, gain automatic, carrier leaking."""
        with self._lock:
            self._rx, self._tx_block, self._cycle = None, 0, None
            self.overflowed = self.underflowed = False
            self.manual_gain = True  # so that the next line changes it
            self.set(**vars(POWER_UP), manual_gain=False)
            self.power(True)

    def set(self, manual_gain: bool | None = None, **changes: Any) -> RadioConfig:
        """Change settings (fields of ``RadioConfig``) and read all of them back.

        Raises:
            RadioRefused: a value is outside what the device can do; nothing is changed.
        """
        with self._lock:
            manual = self.manual_gain if manual_gain is None else manual_gain
            wanted = replace(self.config, **changes)
            restarts = wanted.rate_hz != self.config.rate_hz
            self.config, _ = self._ether.configure(self.name, wanted, manual)
            self.manual_gain = manual
            if restarts:  # indices count anew
                self._numbered, self._tx_end = False, -1
                if self._rx is not None:
                    self._arm(len(self._rx))
            return self.config

    def power(self, on: bool) -> None:
        """Switch the transmit synthesiser on, which leaks its carrier with a new phase, or off."""
        with self._lock:
            if on == self.powered:
                return
            self.powered = on
            if not on:
                self._ether.mute(self.name)
                return
            self._ether.unmute(self.name)
            with self._ether.hold(self.name) as station:
                station.leak_from(self._wall.now_s())

    @property
    def gone(self) -> bool:
        """Whether the cable is out at this moment."""
        return self._wall.now_s() < self._gone_until_s

    def stall(self, seconds: float) -> None:
        """Let the streams hang for a while."""
        with self._lock:
            self._stalled_until_s = self._wall.now_s() + seconds

    def unplug(self, seconds: float) -> None:
        """Pull the cable; the radio comes back after ``seconds`` as if just switched on."""
        with self._lock:
            self._gone_until_s = self._wall.now_s() + seconds
            self.power(False)
            self.power_up()

    def _now(self) -> int:
        """Give the device index of the sample that is at the antenna now."""
        with self._ether.hold(self.name) as station:  # a stream that restarts has its first sample a little later
            return max(station.device_at(self._wall.now_s()), station.cursor)

    def _until_s(self, device: int) -> float:
        """Give the seconds until a device index comes up, at least 0; infinite while nothing moves."""
        if self._wall.now_s() < self._stalled_until_s:
            return math.inf
        with self._ether.hold(self.name) as station:
            return max(0.0, station.instant_s(device) - self._wall.now_s())

    def _arm(self, buffers: int) -> None:
        begin = self._now()
        self._rx = deque(begin + number * self._rx_block for number in range(buffers))

    def rx_open(self, block: int, buffers: int) -> None:
        """Start receiving into ``buffers`` blocks of ``block`` samples."""
        with self._lock:
            self._rx_block = block
            self._arm(buffers)

    def rx_close(self) -> None:
        """Stop receiving."""
        with self._lock:
            self._rx = None

    def rx_wait_s(self) -> float:
        """Give the seconds until the oldest block is full; 0 when one waits."""
        with self._lock:
            return self._until_s(self._blocks()[0] + self._rx_block)

    def _blocks(self) -> deque[int]:
        if self._rx is None:
            raise RadioError(f"{self.name}: nothing is being received", "open a buffer first")
        return self._rx

    def rx_take(self) -> IQ:
        """Take the oldest full block, 12-bit values, and arm its memory again; late takers lose what came meanwhile."""
        with self._lock:
            blocks = self._blocks()
            begin = blocks.popleft()
            armed, now = (blocks[-1] if blocks else begin) + self._rx_block, self._now()
            if now > armed:
                self.overflowed = True
                log.info("%s: nobody took %d samples received", self.name, now - armed)
            blocks.append(max(armed, now))  # when every block was full, samples went nowhere until this one is free
            capture = self._ether.receive(self.name, self._rx_block, begin)
            return to_pairs(capture.samples, ADC_BITS)[0] >> (16 - ADC_BITS)

    def tx_open(self, block: int, buffers: int, cyclic: bool = False) -> None:
        """Prepare to send from ``buffers`` blocks of ``block`` samples, or one block over and over."""
        with self._lock:
            self._tx_block, self._tx_buffers, self._cyclic = block, buffers, cyclic
            self._tx_end, self._cycle = -1, None

    def tx_close(self) -> None:
        """Stop sending; what was not played yet is lost."""
        with self._lock:
            self._tx_block, self._tx_end, self._cycle = 0, -1, None
            with self._ether.hold(self.name) as station:
                station.cut(self._wall.now_s())

    def tx_wait_s(self) -> float:
        """Give the seconds until another block is accepted; 0 when there is room."""
        with self._lock:
            if self._tx_end < 0:
                return self._until_s(0)
            return self._until_s(self._tx_end - (self._tx_buffers - 1) * self._tx_block)

    def tx_put(self, samples: IQ) -> None:
        """Queue one block, full scale 2**15. An empty queue starts with this block, and the gap is an underflow."""
        with self._lock:
            if self._tx_block == 0:
                raise RadioError(f"{self.name}: nothing is being sent", "open a buffer first")
            now = self._now()
            if self._tx_end < now:
                gap = now - self._tx_end
                if self._tx_end >= 0:
                    self.underflowed = True
                    log.info("%s: nothing to send for %d samples", self.name, gap)
                with self._ether.hold(self.name) as station:
                    # the host counts what it pushes; true amplitudes are asked for by that count
                    if not self._numbered:
                        station.hidden = now
                    elif self._tx_end >= 0:
                        station.hidden += gap
                self._numbered, self._tx_end = True, now
            if self._cyclic:
                self._cycle = samples.copy()
                self.tick()
            else:
                self._register(samples)

    def tick(self) -> None:
        """Keep a cyclic buffer on the air; to be called at least every tenth of a second while one is open."""
        with self._lock:
            if self._cycle is None:
                return
            with self._ether.hold(self.name) as station:
                ahead = station.device_at(self._wall.now_s() + CYCLIC_AHEAD_S)
            while self._tx_end < ahead:
                self._register(self._cycle)

    def _register(self, samples: IQ) -> None:
        """Put what is not silence on the air."""
        begin, self._tx_end = self._tx_end, self._tx_end + len(samples)
        sounding = np.flatnonzero(np.ascontiguousarray(samples).view(np.int32))
        if not self.powered or not sounding.size:
            return
        first, last = int(sounding[0]), int(sounding[-1]) + 1
        pairs: np.ndarray = np.multiply(samples[first:last], 1.0 / TX_FULL_SCALE, dtype=np.float32)
        with self._ether.hold(self.name) as station:
            index = begin + first - station.hidden
        self._ether.transmit(self.name, pairs.view(np.complex64).reshape(-1), index)
