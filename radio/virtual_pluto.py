"""Virtual Plutos: paced radios of a simulated air served as iiod endpoints on this machine; knows no attribute rules.

Unmodified libiio connects to ``ip:127.0.0.1:PORT``. All endpoints share one thread and one event loop.
"""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int16

from radio.ad936x import Chip, Front, constant, flag, kept, unsigned
from radio.iiod import Attribute, Channel, Context, Device, Iiod

IQ = Int16[np.ndarray, "sample 2"]
TICK_S = 0.05


class Paced(Front, Protocol):
    """A radio in real time with the DMA queues of a Pluto. Nothing of it waits."""

    gone: bool
    overflowed: bool
    underflowed: bool

    def rx_open(self, block: int, buffers: int) -> None: ...
    def rx_wait_s(self) -> float: ...
    def rx_take(self) -> IQ: ...
    def rx_close(self) -> None: ...
    def tx_open(self, block: int, buffers: int, cyclic: bool = False) -> None: ...
    def tx_wait_s(self) -> float: ...
    def tx_put(self, samples: IQ) -> None: ...
    def tx_close(self) -> None: ...
    def tick(self) -> None: ...


class RxStream:
    """What the receive DMA delivers: 12-bit values, right aligned."""

    def __init__(self, radio: Paced, chip: Chip) -> None:
        self._radio, self._chip = radio, chip
        self._channels: Sequence[int] = (0, 1)

    def open(self, block: int, channels: Sequence[int], buffers: int, cyclic: bool) -> None:
        """Start; a receiver knows no cyclic buffers and ignores the word."""
        self._channels = channels
        self._radio.rx_open(block, buffers)

    def wait_s(self) -> float:
        """Give the seconds until a block is full."""
        return self._radio.rx_wait_s()

    def take(self) -> memoryview:
        """Take a block of the channels that are streamed."""
        block = self._radio.rx_take()
        power = float(np.mean(np.square(block, dtype=np.float32))) * 2.0
        self._chip.level_db = min(115.0, max(0.0, -10.0 * math.log10(power / 2**22 + 1e-12)))
        if len(self._channels) == 1:
            block = block[:, self._channels[0]]
        return np.ascontiguousarray(block, "<i2").data.cast("B")

    def close(self) -> None:
        """Stop."""
        self._radio.rx_close()

    def put(self, block: bytes) -> None:
        """Ignore what is written to a receiver."""


class TxStream:
    """What the transmit DMA takes: 16-bit values of which the upper twelve count."""

    def __init__(self, radio: Paced, chip: Chip) -> None:
        self._radio, self._chip = radio, chip
        self._channels: Sequence[int] = (0, 1)

    def open(self, block: int, channels: Sequence[int], buffers: int, cyclic: bool) -> None:
        """Start."""
        self._channels = channels
        self._radio.tx_open(block, buffers, cyclic)

    def wait_s(self) -> float:
        """Give the seconds until there is room for a block."""
        return self._radio.tx_wait_s()

    def put(self, block: bytes) -> None:
        """Queue a block; a channel that is not streamed sends zeros."""
        samples = np.frombuffer(block, "<i2", len(block) // 2 // len(self._channels) * len(self._channels))
        if len(self._channels) == 1:
            pair = np.zeros((samples.size, 2), np.int16)
            pair[:, self._channels[0]] = samples
        else:
            pair = samples.reshape(-1, 2)
        self._radio.tx_put(pair)

    def take(self) -> memoryview:
        """Read nothing from a transmitter."""
        return memoryview(b"")

    def close(self) -> None:
        """Stop; what was not played is lost."""
        self._radio.tx_close()


def _context(radio: Paced, serial: str) -> Context:
    chip = Chip(radio)
    rate = {
        "sampling_frequency": Attribute(lambda: str(chip.rate())),
        "sampling_frequency_available": Attribute(lambda: f"{chip.rate()} {chip.rate() // 8} "),
    }
    shared = frozenset(rate)
    dac = [
        Channel(
            f"voltage{index}",
            True,
            {"calibphase": kept("0.000000"), "calibscale": kept("1.000000"), **rate},
            scan=(index, "le:S16/16>>0"),
            shared=shared,
        )
        for index in (0, 1)
    ]
    tones = [
        Channel(
            f"altvoltage{index}",
            True,
            {
                "frequency": kept("0", unsigned),
                "phase": kept("0", unsigned),
                "raw": flag(True),
                "scale": kept("0.000000"),
                "sampling_frequency": rate["sampling_frequency"],
            },
            name=name,
            shared=shared,
        )
        for index, name in ((3, "TX1_Q_F2"), (1, "TX1_I_F2"), (0, "TX1_I_F1"), (2, "TX1_Q_F1"))
    ]
    adc = [
        Channel(
            f"voltage{index}",
            False,
            {"calibbias": kept("0"), "calibphase": kept("0.000000"), "calibscale": kept("1.000000"), **rate},
            scan=(index, "le:S12/16>>0"),
            shared=shared,
        )
        for index in (0, 1)
    ]
    buffer = {"length_align_bytes": constant("8"), "watermark": kept("2048", unsigned)}
    return Context(
        "127.0.0.1 Linux (none) 5.15.0 virtual armv7l",
        {
            "hw_model": "Analog Devices PlutoSDR Rev.C (Z7010-AD9363A)",
            "hw_model_variant": "0",
            "hw_serial": serial,
            "fw_version": "v0.38",
            "ad9361-phy,xo_correction": "40000000",
            "ad9361-phy,model": "ad9363a",
            "local,kernel": "5.15.0",
        },
        (
            chip.device(),
            Device(
                "iio:device2", "cf-ad9361-dds-core-lpc", (*dac, *tones), buffer=buffer, stream=TxStream(radio, chip)
            ),
            Device("iio:device3", "cf-ad9361-lpc", tuple(adc), buffer=buffer, stream=RxStream(radio, chip)),
        ),
    )


class VirtualPluto:
    """One endpoint. Its port is bound at once; clients are answered from the start of its ``VirtualPlutos``.

    Args:
        radio: the radio behind it.
        serial: hardware serial, unique in a lab.
        port: TCP port, 0 for any free one.
        host: address of this machine that clients connect to.
    """

    def __init__(self, radio: Paced, serial: str, port: int = 0, host: str = "127.0.0.1") -> None:
        self.radio, self.serial, self.host = radio, serial, host
        self._socket: socket.socket | None = socket.create_server((host, port))
        self.port: int = self._socket.getsockname()[1]
        self._clients: set[asyncio.StreamWriter] = set()

    @property
    def uri(self) -> str:
        """Give the URI that libiio opens."""
        return f"ip:{self.host}:{self.port}"

    def close(self) -> None:
        """Give the port back if it was never served."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def run(self) -> None:
        """Serve until cancelled. While the cable is out nobody is answered; the radio comes back as switched on."""
        try:
            while True:
                await self._plugged_in()
                while self.radio.gone:
                    await asyncio.sleep(TICK_S)
        finally:
            self.close()

    async def _plugged_in(self) -> None:
        iiod = Iiod(_context(self.radio, self.serial))

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._clients.add(writer)
            try:
                await iiod.serve(reader, writer)
            finally:
                self._clients.discard(writer)

        sock = self._socket or socket.create_server((self.host, self.port))
        self._socket = None
        server = await asyncio.start_server(client, sock=sock, limit=1 << 20)
        try:
            while not self.radio.gone:
                self.radio.tick()
                await asyncio.sleep(TICK_S)
        finally:
            server.close()
            for writer in self._clients:
                writer.transport.abort()
            while self._clients:
                await asyncio.sleep(0)


class VirtualPlutos:
    """All virtual Plutos of a lab, served by one thread."""

    def __init__(self, plutos: Iterable[VirtualPluto]) -> None:
        self.plutos = tuple(plutos)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="virtual-plutos", daemon=True)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Answer clients from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Drop all clients and end the thread. Safe to call twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._cancel)
            self._thread.join()
        for pluto in self.plutos:
            pluto.close()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _serve(self) -> None:
        async def everything() -> None:
            self._tasks = [asyncio.create_task(pluto.run()) for pluto in self.plutos]
            await asyncio.gather(*self._tasks, return_exceptions=True)

        try:
            self._loop.run_until_complete(everything())
        finally:
            self._loop.close()
