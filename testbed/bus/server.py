"""Knows the server's end of the bus: who is connected, who is lost, who is refused; knows no meaning of messages."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils.monitor import recv_monitor_message

from radio.errors import ConfigError, LinkError, NodeLost, ProtocolMismatch
from testbed.bus.wire import HANDSHAKE_MS, LINGER_MS, Arrays, Envelope, Lost, cancel, now
from testbed.config import Lab
from testbed.keys import READER, SERVER, known_keys, load_keys
from testbed.messages import Heartbeat, Hello, Message, Refused, RefusedCode, Stop, decode, encode

log = logging.getLogger(__name__)

CONTROL_DOMAIN, EVENTS_DOMAIN = b"control", b"events"
LARGEST_FROM_NODE = 64 << 20  # bytes; nodes send scalars, never an update, so this is already generous

Warn = Callable[[str, str], None]


@dataclass
class _Peer:
    route: bytes
    heard: float


class ServerBus:
    """The server's end: orders to nodes by name, answers from them, events to whoever listens.

    Args:
        lab: addresses, node names and patience.
        keys: folder with ``server.secret`` and the public keys of the nodes and of ``reader``.
        warn: called with a code (``handshake``, ``not-trusted``, ``replaced``, ``protocol``, ``malformed``) and a text,
            for everything a person should know and no message tells.
    """

    def __init__(self, lab: Lab, keys: Path, warn: Warn | None = None) -> None:
        self._lab = lab
        self._keys = load_keys(keys, SERVER)
        self._names = known_keys(keys, [entry.name for entry in lab.nodes])
        self._readers = known_keys(keys, [READER]) | self._names
        self._warn = warn or (lambda code, text: log.warning("%s: %s", code, text))
        self._peers: dict[str, _Peer] = {}
        self._inbox: asyncio.Queue[Envelope | Lost | BaseException] = asyncio.Queue()
        self._warned: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = self._dismissed = False
        self.control_address = ""
        self.events_address = ""

    async def start(self) -> Self:
        """Bind both ports and begin to listen.

        Raises:
            LinkError: a port is in use.
            ConfigError: the host is not an address of this machine.
        """
        self._context = zmq.asyncio.Context()
        self._zap = AsyncioAuthenticator(self._context)
        self._zap.start()  # before bind: a handshake without it would be let in
        self._zap.configure_curve_callback(CONTROL_DOMAIN.decode(), _Trust(self._names))
        self._zap.configure_curve_callback(EVENTS_DOMAIN.decode(), _Trust(self._readers))
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.MAXMSGSIZE, LARGEST_FROM_NODE)
        # A plain socket on the same context: publishing never waits, and slow readers lose events, not the round.
        self._publisher = zmq.Context(self._context).socket(zmq.PUB)
        monitor = self._router.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        assert isinstance(monitor, zmq.asyncio.Socket)
        self._monitor = monitor
        server = self._lab.server
        try:
            for sock, domain in ((self._router, CONTROL_DOMAIN), (self._publisher, EVENTS_DOMAIN)):
                sock.setsockopt(zmq.CURVE_SERVER, 1)
                sock.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
                sock.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
                sock.setsockopt(zmq.ZAP_DOMAIN, domain)
                sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
                sock.setsockopt(zmq.LINGER, LINGER_MS)
            self.control_address = _bind(self._router, server.host, server.control_port, "control_port")
            self.events_address = _bind(self._publisher, server.host, server.events_port, "events_port")
        except (ConfigError, LinkError):
            await self.close()
            raise
        self._tasks = [
            asyncio.create_task(self._listen(), name="bus-listen"),
            asyncio.create_task(self._beat(), name="bus-beat"),
            asyncio.create_task(self._watch_handshakes(monitor), name="bus-monitor"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)
        return self

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._inbox.put_nowait(error)

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the nodes that have said Hello and are not lost, in the order of the lab file."""
        return tuple(entry.name for entry in self._lab.nodes if entry.name in self._peers)

    async def receive(self, timeout_s: float | None = None) -> Envelope | Lost | None:
        """Wait for the next message of a node, or for the news that one is lost. Heartbeats never show.

        Returns:
            None when nothing came within ``timeout_s``.
        """
        try:
            item = await asyncio.wait_for(self._inbox.get(), timeout_s)
        except TimeoutError:
            return None
        return _arrived(item)

    def receive_now(self) -> Envelope | Lost | None:
        """Take the next message or loss that has already arrived; None when there is none."""
        return None if self._inbox.empty() else _arrived(self._inbox.get_nowait())

    async def send(self, name: str, message: Message, arrays: Arrays | None = None) -> None:
        """Send to one node.

        Raises:
            NodeLost: it is not connected (and ``Lost`` follows in ``receive``).
        """
        if not await self._send(name, encode(message, arrays)):
            raise NodeLost(f"node {name} is not connected, {message.kind} not sent", f"restart it: testbed node {name}")

    async def send_all(self, names: Iterable[str], message: Message, arrays: Arrays | None = None) -> tuple[str, ...]:
        """Send one message to several nodes, encoded once.

        Returns:
            The names that could not be reached.
        """
        frames = encode(message, arrays)
        return tuple([name for name in names if not await self._send(name, frames)])

    async def refuse(self, name: str, reason: str) -> None:
        """Turn one node away, which ends with the reason; it is not lost."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            await self._refuse(peer.route, "other", reason)

    async def dismiss(self, reason: str) -> None:
        """Let all nodes go; who leaves now is not lost."""
        self._dismissed = True
        await self.send_all(self.present, Stop(reason=reason))

    def publish(self, line: bytes) -> None:
        """Send an event to all readers. Never waits; a reader that is too slow misses events."""
        with contextlib.suppress(zmq.Again):
            self._publisher.send(line, zmq.NOBLOCK)

    async def close(self) -> None:
        """Close both ports. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        await cancel(self._tasks)
        self._router.disable_monitor()
        self._monitor.close(linger=0)
        self._router.close()
        self._publisher.close()
        self._zap.stop()
        # destroy() would wait for lingering messages and hold up everything else on this loop
        await asyncio.to_thread(self._context.term)

    async def _send(self, name: str, frames: list[bytes]) -> bool:
        peer = self._peers.get(name)
        if peer is None:
            return False
        try:
            await self._router.send_multipart([peer.route, *frames], copy=len(frames[1]) < 65_536)
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._lose(name, 0.0)
            return False
        return True

    def _lose(self, name: str, silence_s: float) -> None:
        if self._peers.pop(name, None) is not None:
            if not self._dismissed:
                log.warning("node %s lost after %.1f s of silence", name, silence_s)
            self._inbox.put_nowait(Lost(name, silence_s))

    async def _refuse(self, route: bytes, code: RefusedCode, reason: str) -> None:
        with contextlib.suppress(zmq.ZMQError):  # it may be gone already
            await self._router.send_multipart([route, *encode(Refused(code=code, reason=reason))])

    async def _listen(self) -> None:
        while True:
            frames = await self._router.recv_multipart(copy=False)
            route, body = frames[0].bytes, [frame.bytes for frame in frames[1:]]
            name = self._names.get(str(frames[-1].get("User-Id")).encode())
            if name is None:  # cannot happen while ZAP is in force; if it ever does, nothing passes
                self._warn("not-trusted", "a message without a known key was dropped")
                continue
            try:
                message, arrays = decode(body)
            except ProtocolMismatch as error:
                self._warn("protocol", f"node {name}: {error.message}")
                await self._refuse(route, "protocol", error.message)
                continue
            except LinkError as error:
                self._warn("malformed", f"node {name}: {error.message}")
                await self._refuse(route, "other", error.message)
                continue
            if isinstance(message, Hello):
                if not await self._admit(route, name, message):
                    continue
            elif name not in self._peers or self._peers[name].route != route:
                await self._refuse(route, "hello-first", f"server does not know this connection of {name}")
                continue
            self._peers[name].heard = now()
            if not isinstance(message, Heartbeat):
                self._inbox.put_nowait(Envelope(name, message, arrays))

    async def _admit(self, route: bytes, name: str, hello: Hello) -> bool:
        if hello.name != name:
            text = f"the key of {name} was presented under the name {hello.name}"
            self._warn("not-trusted", text)
            await self._refuse(route, "not-trusted", text)
            return False
        old = self._peers.get(name)
        if old is not None and old.route != route:
            self._warn("replaced", f"a new process with the key of {name} takes over")
            await self._refuse(old.route, "replaced", f"another process with the key of {name} has joined")
        self._peers[name] = _Peer(route, now())
        return True

    async def _beat(self) -> None:
        patience = self._lab.heartbeat
        sequence, last = 0, now()
        while True:
            await asyncio.sleep(patience.interval_s)
            sequence += 1
            tick, gap = now(), now() - last
            last = tick
            if gap > 2 * patience.interval_s:  # this process was busy: first hear what waits to be read
                for peer in self._peers.values():
                    peer.heard = max(peer.heard, tick - patience.interval_s)
                continue
            frames = encode(Heartbeat(sequence=sequence))
            for name, peer in list(self._peers.items()):
                if tick - peer.heard > patience.allowance_s:
                    self._lose(name, tick - peer.heard)
                else:
                    await self._send(name, frames)

    async def _watch_handshakes(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            event = await recv_monitor_message(monitor)
            refused = event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            code = "not-trusted" if refused else "handshake"
            self._warned[code] = count = self._warned.get(code, 0) + 1
            if count & (count - 1):  # a refused peer tries again and again: report the 1st, 2nd, 4th, 8th time
                continue
            why = (
                "its key is not known" if refused else "it showed no key, a wrong server key, or spoke another protocol"
            )
            self._warn(code, f"a peer was refused at {self.control_address}: {why} ({count} times so far)")


def _arrived(item: Envelope | Lost | BaseException) -> Envelope | Lost:
    if isinstance(item, BaseException):
        raise item  # one of the bus's own tasks broke: nothing more would ever arrive
    return item


class _Trust:
    """The answer to ZAP: is this key one of ours?"""

    def __init__(self, known: Mapping[bytes, str]) -> None:
        self._known = known

    def callback(self, domain: str, key: bytes) -> bool:
        return key in self._known


def _bind(sock: Any, host: str, port: int, key: str) -> str:
    try:
        sock.bind(f"tcp://{socket.gethostbyname(host)}:{port}")
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise LinkError(
                f"port {port} on {host} (server.{key}) is in use",
                f"stop the other process, or choose another port: --set lab.server.{key}={port + 10}",
            ) from error
        raise ConfigError(
            f"server.host = {host!r}: cannot bind: {error.strerror}", "give an address of this machine"
        ) from error
    except OSError as error:
        raise ConfigError(f"server.host = {host!r}: no such host", "give an address of this machine") from error
    return bytes(sock.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
