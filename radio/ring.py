"""The ring between a stream that never stops and a reader that comes when it likes; knows no device."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
from jaxtyping import Complex64, Int16

from radio.base import StreamEvent
from radio.errors import RadioError, RadioRefused, SamplesLost

PIECE = (
    1 << 16
)  # samples converted at a time under the lock: in cache, and the stream waits a fraction of a millisecond


class RxRing:
    """Received samples as int16 pairs under one running index; one writer, one reader, any thread may ask.

    Samples are contiguous: a jump of the index is filled with zeros and reported as ``lost``. Samples that nobody took
    leave silently when the ring is full.

    Args:
        capacity: samples kept.
        full_scale: integer that stands for 1.0; the rails are ``full_scale - 1`` and ``-full_scale``.
        name: of the radio, for messages.
    """

    def __init__(self, capacity: int = 1 << 24, full_scale: float = 2.0**15, name: str = "radio") -> None:
        self._ring = np.zeros((capacity, 2), np.int16)
        self._capacity, self._full_scale, self._name = capacity, full_scale, name
        self._piece = min(PIECE, max(1, capacity // 4))
        self._ready = threading.Condition()
        self._origin = self._newest = self._cursor = 0
        self._wanted: int | None = None  # the reader sleeps until this index: waking it for every block costs a core
        self._events: deque[StreamEvent] = deque()
        self._seam: StreamEvent | None = None
        self._error: RadioError | None = None
        self._fed_s = time.monotonic()

    @property
    def newest(self) -> int:
        """Index just past the newest sample; ``now`` where a reader skipped samples that are yet to come."""
        return max(self._newest, self._cursor)

    @property
    def now(self) -> int:
        """Index of the next sample that ``take`` without ``start`` gives."""
        with self._ready:
            return self._now()

    def _now(self) -> int:
        return max(self._cursor, self._origin, self._newest - self._capacity)

    def append(self, block: Int16[np.ndarray, "sample 2"], index: int, events: tuple[StreamEvent, ...] = ()) -> None:
        """Store a block whose first sample has ``index``.

        Raises:
            ValueError: the index lies in the past; a stream that counts anew calls ``restart``.
        """
        with self._ready:
            gap = index - self._newest
            if gap < 0:
                raise ValueError(f"a block at index {index} follows one that ended at {self._newest}: restart the ring")
            if gap:
                self._events.append(StreamEvent("lost", self._newest, gap))
                self._fill(index - min(gap, self._capacity), None, min(gap, self._capacity))
            kept = block[-self._capacity :]
            self._newest = index + len(block)
            self._fill(self._newest - len(kept), kept, len(kept))
            self._events.extend(events)
            while self._events and self._events[0].index + self._events[0].count <= self._newest - self._capacity:
                self._events.popleft()
            self._fed_s = time.monotonic()
            if self._wanted is not None and self._newest >= self._wanted:
                self._ready.notify_all()

    def _fill(self, index: int, block: Int16[np.ndarray, "sample 2"] | None, count: int) -> None:
        begin = index % self._capacity
        first = min(count, self._capacity - begin)
        self._ring[begin : begin + first] = 0 if block is None else block[:first]
        self._ring[: count - first] = 0 if block is None else block[first:]

    def fail(self, error: RadioError) -> None:
        """Make a waiting reader, and every later one, raise ``error`` until ``restart``."""
        with self._ready:
            self._error = error
            self._ready.notify_all()

    def restart(self, index: int, seam: bool = True) -> None:
        """Go on at ``index`` with an empty ring; the next capture carries a ``seam`` as ``lost`` wherever it starts."""
        with self._ready:
            if seam:
                first = self._seam.index if self._seam else self._newest
                self._seam = StreamEvent("lost", first, max(0, index - first))
            self._origin = self._newest = self._cursor = index
            self._events.clear()
            self._error = None
            self._fed_s = time.monotonic()

    def take(
        self, count: int, start: int | None, timeout_s: float
    ) -> tuple[Complex64[np.ndarray, " sample"], int, int, tuple[StreamEvent, ...]]:
        """Take samples, waiting for those that have not arrived.

        Args:
            count: how many; may exceed the capacity, as they are converted while they come.
            start: index of the first one (None: ``now``); earlier ones are given up.
            timeout_s: give up when nothing at all arrived for this long.

        Returns:
            The samples, full scale 1.0; the index of the first; how many have I or Q on the rails; and the events that
            overlap them.

        Raises:
            RadioRefused: ``start`` has left the ring, or was already taken.
            RadioError: the stream failed, or nothing arrives.
        """
        samples = np.empty(count, np.complex64)
        flat = samples.view(np.float32).reshape(count, 2)
        begin = clipped = 0
        for done in range(0, max(count, 1), self._piece):
            out = flat[done : done + self._piece]
            with self._ready:  # let go of between pieces: the stream must not wait for a reader
                if done == 0:
                    begin = self._begin(start)
                if count:
                    self._wait(begin + done + len(out), timeout_s)
                if begin + done < self._newest - self._capacity:
                    raise SamplesLost(
                        f"{self._name}: RX index {begin + done} left the ring while it was read", "read sooner"
                    )
                clipped += self._convert(begin + done, out)
                self._cursor = begin + done + len(out)
        with self._ready:
            spoilt = [e for e in self._events if e.index < begin + count and begin < e.index + max(e.count, 1)]
            seam, self._seam = self._seam, None
            return samples, begin, clipped, tuple([seam, *spoilt] if seam else spoilt)

    def _begin(self, start: int | None) -> int:
        """Check where a capture starts, and give up what lies before."""
        self._raise()
        oldest = self._now()
        if start is not None and start < oldest:
            raise RadioRefused(
                f"{self._name}: RX index {start} lies before {oldest}, the oldest sample not taken yet",
                "read sooner, or from now() on",
            )
        self._cursor = oldest if start is None else start
        return self._cursor

    def _raise(self) -> None:
        if self._error is not None:
            raise type(self._error)(self._error.message, self._error.remedy)

    def _wait(self, index: int, timeout_s: float) -> None:
        """Sleep until the sample before ``index`` is there."""
        self._raise()
        if self._newest >= index:
            return
        self._wanted = index
        try:
            while self._newest < index:
                left_s = self._fed_s + timeout_s - time.monotonic()
                if left_s <= 0:
                    raise RadioError(
                        f"{self._name}: no samples for {timeout_s:g} s, the stream stands at RX index {self._newest}",
                        "check the cable and the power of the radio",
                    )
                self._ready.wait(left_s)
                self._raise()
        finally:
            self._wanted = None

    def _convert(self, index: int, out: np.ndarray) -> int:
        """Convert stored samples from ``index`` on into float32 pairs; returns how many lie on the rails."""
        begin = index % self._capacity
        first = min(len(out), self._capacity - begin)
        clipped = 0
        for source, target in ((self._ring[begin : begin + first], out[:first]), (self._ring, out[first:])):
            source = source[: len(target)]
            np.multiply(source, np.float32(1.0 / self._full_scale), out=target, dtype=np.float32)
            if len(source) and (source.max() >= self._full_scale - 1 or source.min() <= -self._full_scale):
                rails = (source >= self._full_scale - 1) | (source <= -self._full_scale)
                clipped += int(rails.any(axis=1).sum())
        return clipped
