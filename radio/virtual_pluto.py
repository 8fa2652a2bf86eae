"""Virtual Plutos: paced radios of a simulated air served as iiod endpoints on this machine; knows no attribute rules.

Unmodified libiio connects to ``ip:127.0.0.1:PORT``. All endpoints share one thread and one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterable

from radio.iiod import LINE_LIMIT, Iiod
from radio.pluto_board import Paced, describe
from radio.urgency import hurry

TICK_S = 0.05


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
                self.radio.power_up()  # clients that had not noticed yet may have set it anew
        finally:
            self.close()

    async def _plugged_in(self) -> None:
        iiod = Iiod(describe(self.radio, self.serial, self.host))

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._clients.add(writer)
            try:
                await iiod.serve(reader, writer)
            finally:
                self._clients.discard(writer)

        sock = self._socket or socket.create_server((self.host, self.port))
        self._socket = None
        server = await asyncio.start_server(client, sock=sock, limit=LINE_LIMIT)
        try:
            while not self.radio.gone:
                self.radio.tick()
                await asyncio.sleep(TICK_S)
        finally:
            server.close()
            for writer in self._clients:
                writer.transport.abort()
            while self._clients:
                await asyncio.sleep(0.001)  # each notices within its poll


class VirtualPlutos:
    """All virtual Plutos of a lab, served by one thread."""

    def __init__(self, plutos: Iterable[VirtualPluto]) -> None:
        self.plutos = tuple(plutos)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="virtual-plutos", daemon=True)
        self._serving: asyncio.Task[None] | None = None

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
        if self._serving is not None:
            self._serving.cancel()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for pluto in self.plutos:
                group.create_task(pluto.run())

    def _run(self) -> None:
        hurry(2)
        self._serving = self._loop.create_task(self._serve())
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._serving)
        finally:
            self._loop.close()
