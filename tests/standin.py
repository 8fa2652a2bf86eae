"""A radio in memory with the queues of a Pluto, no air behind it, and a client that speaks to its server in lines."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from radio.base import RadioConfig
from radio.errors import RadioRefused
from radio.virtual_pluto import VirtualPluto, VirtualPlutos


class StandIn:
    """Receives a ramp that marks every sample with its index, keeps what is sent; both at the configured rate."""

    def __init__(self) -> None:
        self.power_up()
        self.gone = False
        self.stalled = False
        self.sent: list[np.ndarray] = []
        self.opened: dict[str, tuple[int, int, bool]] = {}
        self._rx_begin = self._tx_begin = 0.0
        self._taken = self._put = 0

    def power_up(self) -> None:
        self.config = RadioConfig(30.72e6, 2.45e9, 2.4e9, 18e6, 71.0, 10.0)
        self.manual_gain, self.powered = False, True
        self.overflowed = self.underflowed = False

    def set(self, manual_gain: bool | None = None, **changes: Any) -> RadioConfig:
        if changes.get("rx_gain_db", 0.0) < -1.0:
            raise RadioRefused("rx_gain_db is below -1")
        self.manual_gain = self.manual_gain if manual_gain is None else manual_gain
        self.config = replace(self.config, **changes)
        return self.config

    def power(self, on: bool) -> None:
        self.powered = on

    def _span_s(self, blocks: int, side: str) -> float:
        return blocks * self.opened[side][0] / self.config.rate_hz

    def rx_open(self, block: int, buffers: int) -> None:
        self.opened["rx"] = (block, buffers, False)
        self._rx_begin, self._taken = time.monotonic(), 0

    def rx_wait_s(self) -> float:
        if self.stalled:
            return math.inf
        return max(0.0, self._rx_begin + self._span_s(self._taken + 1, "rx") - time.monotonic())

    def rx_take(self) -> np.ndarray:
        block = self.opened["rx"][0]
        index = self._taken * block + np.arange(block)
        self._taken += 1
        return np.stack([index % 2048, -(index % 2048)], axis=1).astype(np.int16)

    def rx_close(self) -> None:
        self.opened.pop("rx", None)

    def tx_open(self, block: int, buffers: int, cyclic: bool = False) -> None:
        self.opened["tx"] = (block, buffers, cyclic)
        self._put = 0

    def tx_wait_s(self) -> float:
        if self.stalled:
            return math.inf
        if not self._put:
            return 0.0
        ahead = self._put - self.opened["tx"][1] + 1
        return max(0.0, self._tx_begin + self._span_s(ahead, "tx") - time.monotonic())

    def tx_put(self, samples: np.ndarray) -> None:
        if not self._put:
            self._tx_begin = time.monotonic()
        self._put += 1
        self.sent.append(samples.copy())

    def tx_close(self) -> None:
        self.opened.pop("tx", None)

    def tick(self) -> None:
        pass


class Client:
    """Sends lines to a server and reads what comes back."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5.0)
        self.file = self.socket.makefile("rb")

    def send(self, line: str | bytes, data: bytes = b"") -> None:
        raw = line if isinstance(line, bytes) else line.encode()
        self.socket.sendall(raw + b"\r\n" + data)

    def number(self, line: str | bytes, data: bytes = b"") -> int:
        """Send a line and read the number it is answered with."""
        self.send(line, data)
        return self.next()

    def next(self) -> int:
        return int(self.file.readline())

    def value(self, line: str) -> str:
        """Read an attribute: length, value with its NUL, end of line."""
        size = self.number(line)
        assert size > 0, f"{line}: {size}"
        raw = self.file.read(size)
        assert self.file.read(1) == b"\n" and raw.endswith(b"\0")
        return raw[:-1].decode()

    def write(self, path: str, value: str) -> int:
        data = value.encode() + b"\0"
        return self.number(f"WRITE {path} {len(data)}", data)

    def block(self, device: str, size: int) -> tuple[str, bytes]:
        """Read samples in one piece: the mask and the bytes."""
        got = self.number(f"READBUF {device} {size}")
        assert got > 0, got
        return self.file.readline().decode().strip(), self.file.read(got)

    def put(self, device: str, data: bytes) -> int:
        """Write samples and give the last reply."""
        self.send(f"WRITEBUF {device} {len(data)}")
        first = self.next()
        if first:
            return first
        self.socket.sendall(data)
        return self.next()

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Served:
    """A virtual Pluto on a stand-in, and everything that a test opened on it, closed in the order that is safe."""

    def __init__(self) -> None:
        self.radio = StandIn()
        self.pluto = VirtualPluto(self.radio, "1044730a1997000d12003e00")
        self.plutos = VirtualPlutos([self.pluto])
        self.plutos.start()
        self.uri = self.pluto.uri
        self.client = Client(self.pluto.port)
        self.exits = contextlib.ExitStack()

    def adi(self, uri: str = "") -> Any:
        """Connect with pyadi-iio."""
        import adi

        sdr = adi.Pluto(uri or self.uri)
        # libiio crashes when a context goes before its buffers
        self.exits.callback(lambda: (sdr.rx_destroy_buffer(), sdr.tx_destroy_buffer()))
        return sdr

    def close(self) -> None:
        self.exits.close()
        self.client.close()
        self.plutos.stop()


def ramp(start: int, count: int) -> np.ndarray:
    """Give what the stand-in receives."""
    index = np.arange(start, start + count) % 2048
    return index - 1j * index


def fails(call: Callable[[], Any]) -> int:
    """Give the error number of a call. No traceback is kept: it would keep buffers alive that are to be destroyed."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    pytest.fail("no error")
