"""Two streams that never stop, as two sample counters, with losses found by counting; knows no device.

Zeros are sent for ever, and a burst is written into the block that its index falls into. The two counters then differ
by a constant for as long as no sample is lost.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from radio.base import StreamEvent
from radio.errors import TooLate
from radio.pairs import IQ
from radio.ring import RxRing
from radio.urgency import hurry

PACE_WINDOW_S = 1.0
DRIFT = 1e-4  # between the crystals of radio and host
SWITCH_S = 2e-4  # other threads of the process must not hold the interpreter for longer than blocks last
HEAD_BLOCKS = 4  # at the start of a stream: the kernel may have filled them long ago
SETTLE_S = 0.5  # a stream that starts fills its queue first


@runtime_checkable
class Port(Protocol):
    """One direction of DMA: a block of memory, the wait for the device to fill or take it, its queue of ``buffers``."""

    buffers: int

    def refill(self) -> None:
        """Wait for the next block received."""
        ...

    def push(self) -> None:
        """Hand the block over for sending, waiting for room."""
        ...

    def cancel(self) -> None:
        """Wake the thread that waits; the port is of no use afterwards."""
        ...

    def samples(self) -> IQ:
        """View the block's memory, valid until the next call of the port."""
        ...

    def close(self) -> None:
        """Destroy the buffer, which must be gone before its context is."""
        ...


class TxQueue:
    """Bursts in the order of their TX index, and the index of the next block that can still be written."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._bursts: deque[tuple[int, IQ]] = deque()
        self._head = self._end = 0

    @property
    def head(self) -> int:
        """Index of the first sample not handed over yet."""
        return self._head

    def earliest(self, margin: int = 0) -> int:
        """Give the first index that is free, and at least ``margin`` samples away."""
        return max(self._head + margin, self._end)

    def add(self, burst: IQ, start: int | None) -> int:
        """Queue a burst from ``start`` (None: as early as possible); returns its first index.

        Raises:
            TooLate: ``start`` is handed over already, or taken by an earlier burst.
        """
        with self._lock:
            start = self.check(start)
            self._end = start + len(burst)
            if len(burst):
                self._bursts.append((start, burst))
            return start

    def check(self, start: int | None) -> int:
        """Give the index at which a burst would start now.

        Raises:
            TooLate: as ``add``.
        """
        first = self.earliest()
        if start is not None and start < first:
            raise TooLate(
                f"{self._name}: TX index {start} is {first - start} samples too early, the first free is {first}",
                "plan turnaround_samples and a block between the last sample received and the burst",
                first - start,
            )
        return first if start is None else start

    def compose(self, block: IQ) -> None:
        """Write the next block: zeros, and the parts of bursts that fall into it."""
        with self._lock:
            end = self._head + len(block)
            done = 0
            while self._bursts and self._bursts[0][0] < end:
                start, burst = self._bursts[0]
                low, high = max(start, self._head), min(start + len(burst), end)
                block[done : low - self._head] = 0
                block[low - self._head : high - self._head] = burst[low - start : high - start]
                done = high - self._head
                if high < start + len(burst):
                    break
                self._bursts.popleft()
            block[done:] = 0
            self._head = end

    def clear(self) -> None:
        """Drop every burst that is not handed over yet."""
        with self._lock:
            self._bursts.clear()
            self._end = min(self._end, self._head)

    def restart(self, head: int) -> None:
        """Count on from ``head`` without any burst."""
        with self._lock:
            self._bursts.clear()
            self._head = self._end = head


class Pace:
    """Counts the samples of a stream against the clock, and tells losses from delays.

    Delays of the host come and go: at some moment of every second the stream is as far as it was ever ahead. It stays
    behind for good after a loss. One larger than all that may wait between host and converter is told at once, a
    smaller one when two windows in a row have stayed behind. Neither the status bit of the device, which some firmware
    has always set, nor its answers are trusted. Drift of the two clocks moves the level along.

    Args:
        rate_hz: sample rate.
        queue_samples: what may wait between host and converter.
        slack_samples: losses smaller than this are taken for drift.
    """

    def __init__(self, rate_hz: float, queue_samples: int, slack_samples: int) -> None:
        self._rate_hz, self._queue, self._slack = rate_hz, queue_samples, slack_samples
        self._count = self._doubts = 0
        self._begin_s, self._turn_s = 0.0, math.inf
        self._level = self._low = math.inf

    def count(self, samples: int, now_s: float) -> int:
        """Count a block that came or went at ``now_s``; returns how many samples were lost before it."""
        if self._count == 0:
            self._begin_s, self._turn_s = now_s, now_s + SETTLE_S + PACE_WINDOW_S
        self._count += samples
        elapsed_s = now_s - self._begin_s
        if elapsed_s < SETTLE_S:
            return 0
        behind = elapsed_s * self._rate_hz - self._count
        self._low, self._level = min(self._low, behind), min(self._level, behind)
        lost = behind - self._level
        if lost <= self._queue:
            if now_s < self._turn_s:
                return 0
            lost = self._judge()
        self._turn_s, self._low = now_s + PACE_WINDOW_S, math.inf
        self._count += round(lost)
        return round(lost)

    def due(self, now_s: float) -> int:
        """Give the count that a stream without delays would have reached; 0 before it has settled."""
        if self._level == math.inf:
            return 0
        return round((now_s - self._begin_s) * self._rate_hz - self._level)

    def _judge(self) -> float:
        """Compare the best of a window that ends with the level; returns a loss that is sure by now."""
        shift = self._low - self._level
        if shift <= self._slack:
            self._level += min(shift, DRIFT * self._rate_hz * PACE_WINDOW_S)
            self._doubts = 0
            return 0.0
        self._doubts = (self._doubts + 1) % 2
        return 0.0 if self._doubts else shift


class Streams:
    """The two threads of one radio and the two counters they keep, from start to ``stop``.

    Args:
        rx: port to receive from.
        tx: port to send to.
        ring: takes what is received; its running index goes on, the left-over blocks at the head are dropped.
        queue: holds the bursts to be sent.
        rate_hz: sample rate.
        block: samples in a block.
    """

    def __init__(self, rx: Port, tx: Port, ring: RxRing, queue: TxQueue, rate_hz: float, block: int) -> None:
        self._rx, self._tx, self._ring, self._queue = rx, tx, ring, queue
        self._rate_hz, self._block = rate_hz, block
        self._first = ring.newest
        self._rx_pace, self._tx_pace = (
            # a full queue, a block in transfer and one in the making
            Pace(rate_hz, (port.buffers + 2) * block, block // 2)
            for port in (rx, tx)
        )
        self._stop = threading.Event()
        self._broken = ""
        self._slips: deque[StreamEvent] = deque()
        self.events: deque[StreamEvent] = deque()  # underflows that no TxReport has told yet
        self._fed_s = self._sent_s = time.monotonic()
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        self._threads = [
            threading.Thread(target=self._guarded, args=(run,), name=f"pluto-{run.__name__}", daemon=True)
            for run in (self._receive, self._send)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def fed_s(self) -> float:
        """Monotonic time at which the last block came in."""
        return self._fed_s

    def fresh(self) -> int:
        """Give the RX index from which on samples are received later than now, however far the host is behind."""
        return max(self._ring.newest, self._first + self._rx_pace.due(time.monotonic())) + 2 * self._block

    def trouble(self, patience_s: float) -> str:
        """Say what is wrong, or nothing."""
        if self._broken:
            return self._broken
        quiet_s = time.monotonic() - min(self._fed_s, self._sent_s)
        return f"no block moved for {quiet_s:.1f} s" if quiet_s > patience_s else ""

    def stop(self, patience_s: float) -> bool:
        """Stop both threads and close their ports; False when one hangs in the device, and nothing can be closed."""
        self._stop.set()
        for wait_s in (max(0.1, 4 * self._block / self._rate_hz), patience_s):
            deadline = time.monotonic() + wait_s
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            if not any(thread.is_alive() for thread in self._threads):
                self._rx.close()
                self._tx.close()
                return True
            self._rx.cancel()
            self._tx.cancel()
        return False

    def _guarded(self, run: Callable[[], None]) -> None:
        hurry(2)
        try:
            run()
        except OSError as error:
            self._broken = f"{error.strerror or error} (errno {error.errno})"

    def _receive(self) -> None:
        for _ in range(HEAD_BLOCKS):
            self._rx.refill()
        index = self._first
        while not self._stop.is_set():
            self._rx.refill()
            self._fed_s = time.monotonic()
            index += self._rx_pace.count(self._block, self._fed_s)
            events: tuple[StreamEvent, ...] = ()
            while self._slips:  # an underflow voids the constant between the counters: captures tell it, too
                events += (StreamEvent("underflow", index, self._slips.popleft().count),)
            self._ring.append(self._rx.samples(), index, events)
            index += self._block

    def _send(self) -> None:
        while not self._stop.is_set():
            self._queue.compose(self._tx.samples())
            self._tx.push()
            self._sent_s = time.monotonic()
            lost = self._tx_pace.count(self._block, self._sent_s)
            if lost:
                event = StreamEvent("underflow", self._queue.head - self._block, lost)
                self.events.append(event)
                self._slips.append(event)
