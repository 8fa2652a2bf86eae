"""Where a simulated USRP's samples come from and go to; knows sc16 bytes and ticks, and nothing of UHD."""

from __future__ import annotations

import json
import socket
import struct

import numpy as np

FRAME = struct.Struct("<cqI")  # kind, tick, bytes that follow (for b"R": bytes wanted in answer)
KEPT_TICKS = 1 << 23  # a burst older than this is forgotten


class Loop:
    """Hears at tick t what was sent at tick t, and silence elsewhere."""

    def __init__(self) -> None:
        self._bursts: list[tuple[int, bytes]] = []

    def settings(self, tick: int, told: dict[str, object]) -> None:
        """Take settings; a wire has none."""

    def send(self, tick: int, samples: bytes) -> None:
        """Take sc16 samples that start at a tick."""
        self._bursts = [(at, old) for at, old in self._bursts if at + len(old) // 4 > tick - KEPT_TICKS]
        self._bursts.append((tick, samples))

    def hear(self, tick: int, count: int) -> bytes:
        """Give ``count`` sc16 samples from a tick on."""
        heard = bytearray(4 * count)
        for at, samples in self._bursts:
            begin, end = max(at, tick), min(at + len(samples) // 4, tick + count)
            if begin < end:
                heard[4 * (begin - tick) : 4 * (end - tick)] = samples[4 * (begin - at) : 4 * (end - at)]
        return bytes(heard)


class Counter(Loop):
    """Hears its own tick number, 15 bits in I and the next 15 bits in Q: a lost or misplaced sample shows itself."""

    def hear(self, tick: int, count: int) -> bytes:
        """Give the ticks themselves, packed."""
        ticks = np.arange(tick, tick + count)
        return ((ticks & 0x7FFF) | (ticks >> 15 & 0x7FFF) << 16).astype("<u4").tobytes()


class Remote:
    """Hears and sends through another process: frames of FRAME over a local TCP socket.

    Kinds: ``H`` hello and ``S`` settings (JSON), ``T`` transmitted samples, ``R`` a request that is answered by exactly
    the samples asked for.
    """

    def __init__(self, address: str, hello: dict[str, object]) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tell(b"H", 0, json.dumps(hello).encode())

    def _tell(self, kind: bytes, tick: int, payload: bytes) -> None:
        self._socket.sendall(FRAME.pack(kind, tick, len(payload)) + payload)

    def settings(self, tick: int, told: dict[str, object]) -> None:
        """Pass settings on."""
        self._tell(b"S", tick, json.dumps(told).encode())

    def send(self, tick: int, samples: bytes) -> None:
        """Pass samples on."""
        self._tell(b"T", tick, samples)

    def hear(self, tick: int, count: int) -> bytes:
        """Ask for samples."""
        self._socket.sendall(FRAME.pack(b"R", tick, 4 * count))
        heard = b""
        while len(heard) < 4 * count:
            part = self._socket.recv(4 * count - len(heard))
            if not part:
                raise ConnectionError("the air is gone")
            heard += part
        return heard
