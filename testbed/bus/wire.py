"""Knows what both ends of the bus share: what arrives, key pairs, timing constants; knows nothing of who is who."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import zmq

from testbed.messages import Message

HANDSHAKE_MS = 5_000  # a peer that has not proved its key by then is dropped
LINGER_MS = 500  # how long the last words may take when a socket closes

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Envelope:
    """A message as it arrived: from whom (name bound to its key), and its arrays."""

    name: str
    message: Message
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Lost:
    """A peer fell silent: for how long, or 0.0 when its connection broke."""

    name: str
    silence_s: float


def new_keypair() -> tuple[bytes, bytes]:
    """Make a CURVE key pair: public, secret."""
    public, secret = zmq.curve_keypair()
    return public, secret


def curve_available() -> bool:
    """Say whether this libzmq was built with CURVE."""
    return bool(zmq.has("curve"))


def port_free(host: str, port: int) -> bool:
    """Say whether a TCP port can be bound. Port 0 is always free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def now() -> float:
    return asyncio.get_running_loop().time()


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
