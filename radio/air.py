"""What a loopback radio needs of an air, wherever that air is, and the witness it hands on; knows no air itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from radio.base import Capabilities, Capture, RadioConfig, Samples, TxReport


@runtime_checkable
class Air(Protocol):
    """What a loopback radio needs of the air: an ``Ether`` in this process, or a ``RemoteEther``."""

    def open(self, name: str, owner: str = "") -> None: ...
    def capabilities(self, name: str) -> Capabilities: ...
    def configure(self, name: str, wanted: RadioConfig, manual_gain: bool = True) -> tuple[RadioConfig, int]: ...
    def now(self, name: str) -> int: ...
    def earliest(self, name: str) -> int: ...
    def transmit(self, name: str, samples: Samples, start: int | None = None, *, unmute: bool = False) -> TxReport: ...
    def receive(self, name: str, count: int, start: int | None = None) -> Capture: ...
    def mute(self, name: str) -> None: ...
    def close(self, name: str) -> None: ...
    def deposit(self, key: str, name: str, arrays: Mapping[str, np.ndarray]) -> None: ...
    def collect(self, key: str, names: tuple[str, ...]) -> dict[str, np.ndarray]: ...
    def amplitude(self, sender: str, receiver: str, start: int, offsets_hz: np.ndarray) -> np.ndarray: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class EtherWitness:
    """The witness of a simulated air, without the rest of it."""

    def __init__(self, air: Air) -> None:
        self._air = air

    def deposit(self, key: str, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Leave arrays of radio ``name`` under ``key``."""
        self._air.deposit(key, name, arrays)

    def collect(self, key: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Take the sums over ``names`` of everything under ``key``, and forget it."""
        return self._air.collect(key, names)

    def amplitude(self, sender: str, receiver: str, start: int, offsets_hz: np.ndarray) -> np.ndarray:
        """Give the true link amplitude at the sender's TX index ``start``, at each baseband offset in Hz."""
        return self._air.amplitude(sender, receiver, start, offsets_hz)

    def state(self) -> dict[str, Any]:
        """Give all that the air needs to continue bit for bit after a restart, as JSON values."""
        return self._air.state()
