"""Knows a node's end of the bus, and a reader's: connect, stay alive, give up in time; knows no meaning of messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from pathlib import Path
from typing import Any, Self

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from radio.errors import LinkError, NotTrusted
from testbed.bus.wire import HANDSHAKE_MS, LINGER_MS, Arrays, Envelope, Lost, cancel, now
from testbed.config import Heartbeat as Patience
from testbed.config import Lab
from testbed.keys import READER, SERVER, load_keys, public_key
from testbed.messages import Heartbeat, Message, decode, encode

log = logging.getLogger(__name__)

RETRY_MS, RETRY_MAX_MS = 100, 5_000
WRONG_KEY_TRIES = 3  # handshakes that break off before the key is blamed


class NodeBus:
    """A node's end: one connection to its server, kept alive, given up after a limit.

    Args:
        lab: the server's address and the patience.
        name: of the node; its key pair must be in ``keys``.
        keys: folder with ``NAME.secret``, ``NAME.public`` and ``server.public``.
    """

    def __init__(self, lab: Lab, name: str, keys: Path) -> None:
        self.name = name
        self.address = f"tcp://{lab.server.host}:{lab.server.control_port}"
        self._patience: Patience = lab.heartbeat
        self._keys = load_keys(keys, name)
        self._server_key = public_key(keys, SERVER)
        self._server_file = keys / f"{SERVER}.public"
        self._inbox: asyncio.Queue[Envelope] = asyncio.Queue()
        self._connected = asyncio.Event()
        self._failure: BaseException | None = None
        self._heard = 0.0
        self._reported = False
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def connect(self) -> Self:
        """Reach the server and finish the handshake; retries with back-off until ``heartbeat.give_up_s``.

        Raises:
            LinkError: nobody answers at the address.
            NotTrusted: the server does not know this key, or has another key than ``server.public``.
        """
        self._context = zmq.asyncio.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        _client(self._dealer, self._keys.public, self._keys.secret, self._server_key)
        self._dealer.setsockopt(zmq.IMMEDIATE, 1)  # never queue orders for a server that is not there
        monitor = self._dealer.get_monitor_socket()
        assert isinstance(monitor, zmq.asyncio.Socket)
        self._monitor = monitor
        self._dealer.connect(self.address)
        self._heard = now()
        self._tasks = [asyncio.create_task(self._watch(monitor), name="bus-monitor")]
        limit = self._patience.give_up_s
        try:
            async with asyncio.timeout(limit):
                while not self._connected.is_set():
                    if self._failure is not None:
                        raise self._failure
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._connected.wait(), 0.1)
        except TimeoutError as error:
            await self.close()
            raise LinkError(
                f"node {self.name}: no server at {self.address} within {limit:g} s",
                "start the server, and check host and control_port in lab.toml",
            ) from error
        except LinkError:
            await self.close()
            raise
        self._heard = now()
        self._tasks += [
            asyncio.create_task(self._listen(), name="bus-listen"),
            asyncio.create_task(self._beat(), name="bus-beat"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)
        return self

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error

    @property
    def silence_s(self) -> float:
        """Time since the server was last heard, in seconds."""
        return now() - self._heard

    async def send(self, message: Message, arrays: Arrays | None = None) -> None:
        """Send to the server.

        Raises:
            LinkError: there is no connection, and the server has been silent for ``heartbeat.allowance_s``.
        """
        try:
            async with asyncio.timeout(max(self._patience.allowance_s - self.silence_s, 0.0)):
                await self._dealer.send_multipart(encode(message, arrays))
        except TimeoutError as error:
            raise LinkError(
                f"node {self.name}: {message.kind} not sent, no connection to {self.address} for "
                f"{self._patience.allowance_s:g} s",
                "check that the server runs",
            ) from error

    async def receive(self, timeout_s: float | None = None) -> Envelope | Lost | None:
        """Wait for the next message. Heartbeats never show.

        Returns:
            ``Lost`` once when the server has been silent for ``allowance_s`` (mute, and keep receiving: it may come
            back); None when nothing came within ``timeout_s``.

        Raises:
            LinkError: silence for ``give_up_s``, or the server was replaced by one that refuses this node.
            ProtocolMismatch: the server speaks another version.
        """
        end = None if timeout_s is None else now() + timeout_s
        while True:
            if not self._inbox.empty():
                return self._inbox.get_nowait()
            if self._failure is not None:
                raise self._failure
            silence = self.silence_s
            if silence > self._patience.give_up_s:
                raise LinkError(f"node {self.name}: server at {self.address} silent for {silence:.0f} s", "restart it")
            if silence > self._patience.allowance_s and not self._reported:
                self._reported = True
                log.warning("server at %s silent for %.1f s", self.address, silence)
                return Lost(SERVER, silence)
            left = 0.2 if end is None else min(0.2, end - now())
            if left <= 0:
                return None
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._inbox.get(), left)

    async def close(self) -> None:
        """Close the connection. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        await cancel(self._tasks)
        self._dealer.disable_monitor()
        self._monitor.close(linger=0)
        self._dealer.close(linger=LINGER_MS)
        await asyncio.to_thread(self._context.term)

    async def _listen(self) -> None:
        while True:
            frames = await self._dealer.recv_multipart()
            try:
                message, arrays = decode(frames)
            except LinkError as error:
                self._failure = error
                return
            self._heard, self._reported = now(), False
            if not isinstance(message, Heartbeat):
                self._inbox.put_nowait(Envelope(SERVER, message, arrays))

    async def _beat(self) -> None:
        sequence = 0
        while True:
            await asyncio.sleep(self._patience.interval_s)
            sequence += 1
            with contextlib.suppress(zmq.Again):  # no connection: silence is the right sign
                await self._dealer.send_multipart(encode(Heartbeat(sequence=sequence)), zmq.NOBLOCK)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        broken = retries = 0
        while True:
            event = (await recv_monitor_message(monitor))["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                broken = 0
                log.info("node %s connected to %s", self.name, self.address)
                self._connected.set()
            elif event == zmq.EVENT_CONNECT_RETRIED:
                retries += 1
                log.info("node %s: no answer from %s, try %d", self.name, self.address, retries)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._failure = NotTrusted(
                    f"node {self.name}: the server at {self.address} does not know this node's key",
                    f"copy {self.name}.public into the server's keys folder and restart the server",
                )
            elif event in (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
                broken += 1
                log.warning("node %s: handshake with %s broke off, try %d", self.name, self.address, broken)
                if broken >= WRONG_KEY_TRIES:
                    self._failure = NotTrusted(
                        f"node {self.name}: {self.address} broke off {broken} handshakes",
                        f"check that {self._server_file} is the key of that server",
                    )


class EventReader:
    """A reader's end of the event stream; it has no say in anything.

    Args:
        lab: the server's address.
        keys: folder with ``reader.secret``, ``reader.public`` and ``server.public``.
    """

    def __init__(self, lab: Lab, keys: Path) -> None:
        mine = load_keys(keys, READER)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        _client(self._socket, mine.public, mine.secret, public_key(keys, SERVER))
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(f"tcp://{lab.server.host}:{lab.server.events_port}")

    async def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Wait for the next event; None when none came within ``timeout_s``."""
        try:
            line = await asyncio.wait_for(self._socket.recv(), timeout_s)
        except TimeoutError:
            return None
        event = json.loads(line)
        return event if isinstance(event, dict) else None

    def close(self) -> None:
        """Stop reading."""
        self._socket.close(linger=0)
        self._context.term()


def _client(sock: zmq.asyncio.Socket, public: bytes, secret: bytes, server: bytes) -> None:
    sock.setsockopt(zmq.CURVE_PUBLICKEY, public)
    sock.setsockopt(zmq.CURVE_SECRETKEY, secret)
    sock.setsockopt(zmq.CURVE_SERVERKEY, server)
    sock.setsockopt(zmq.RECONNECT_IVL, RETRY_MS)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, RETRY_MAX_MS)
    sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    sock.setsockopt(zmq.LINGER, LINGER_MS)
