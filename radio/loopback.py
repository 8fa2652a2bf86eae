"""Radios on the simulated air, in process or over a local socket; knows the Radio protocol, hides true time.

Socket protocol, version 1: one request frame pair from a DEALER to a ROUTER (JSON header, raw bytes), one reply pair back. No
pickle; errors travel by class name and are raised again as the same class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from radio.base import Capabilities, Capture, Discovered, RadioConfig, Samples, TxReport
from radio.errors import ConfigError, RadioRefused

VERSION = 1


class Air(Protocol):
    """What a loopback radio needs of the air: an ``Ether`` in this process, or a ``RemoteEther``."""

    def open(self, name: str, owner: str = "") -> None: ...
    def capabilities(self, name: str) -> Capabilities: ...
    def configure(self, name: str, wanted: RadioConfig, manual_gain: bool = True) -> tuple[RadioConfig, int]: ...
    def now(self, name: str) -> int: ...
    def earliest(self, name: str) -> int: ...
    def unmute(self, name: str) -> None: ...
    def transmit(self, name: str, samples: Samples, start: int | None = None) -> TxReport: ...
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
        """Give the true link amplitude at the receiver's RX index ``start``, at each baseband offset in Hz."""
        return self._air.amplitude(sender, receiver, start, offsets_hz)


class LoopbackRadio:
    """One radio of a simulated air, behind the door that every radio has. Opens on construction.

    Args:
        name: the radio's name on that air.
        ether: the air.

    Raises:
        RadioNotFound, RadioRefused: no such radio, or somebody has it open.
    """

    def __init__(self, name: str, ether: Air) -> None:
        self.name = name
        self._air = ether
        self._open = False
        ether.open(name)
        self._open = True
        self.capabilities: Capabilities = ether.capabilities(name)
        self.witness: EtherWitness = EtherWitness(ether)

    def configure(self, wanted: RadioConfig) -> RadioConfig:
        """Apply settings with manual gain, and flush what a restarted stream holds of old samples."""
        taken, stale = self._air.configure(self.name, wanted, True)
        if stale:
            self._air.receive(self.name, 0, self._air.now(self.name) + stale)
        self.capabilities = self._air.capabilities(self.name)
        return taken

    def now(self) -> int:
        """Give the RX index of the next sample."""
        return self._air.now(self.name)

    def earliest(self) -> int:
        """Give the first TX index that can still be met."""
        return self._air.earliest(self.name)

    def transmit(self, samples: Samples, start: int | None = None) -> TxReport:
        """Send a finite burst from TX index ``start``; clips to full scale and counts it."""
        samples = _checked(samples, self.name)
        self._air.unmute(self.name)  # setting frequencies does not clear a power-down: say it
        return self._air.transmit(self.name, samples, start)

    def receive(self, count: int, start: int | None = None) -> Capture:
        """Take ``count`` samples from RX index ``start``."""
        return self._air.receive(self.name, count, start)

    def mute(self) -> None:
        """Drop pending bursts and switch the transmitter off."""
        self._air.mute(self.name)

    def close(self) -> None:
        """Mute and give the radio back. Safe to call twice."""
        if self._open:
            self._open = False
            self._air.close(self.name)


def _checked(samples: Samples, name: str) -> Samples:
    array = np.asarray(samples)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 1 or array.dtype != np.complex64:
        raise RadioRefused(
            f"{name}: samples are {array.dtype} of shape {array.shape}, wanted complex64 of shape (sample,)",
            "convert with numpy.complex64 and one antenna",
        )
    if not np.isfinite(array).all():
        raise RadioRefused(f"{name}: the burst holds values that are not finite", "check the waveform")
    return array


def connect(rest: str, ether: Air | None) -> LoopbackRadio:
    """Open the radio of a ``loopback:`` URI, ``rest`` being what follows the colon.

    Raises:
        ConfigError: a name without an air, or an address that cannot be read.
    """
    if not rest.startswith("tcp://"):
        if ether is None or not rest:
            raise ConfigError(
                f"loopback:{rest} names a radio in this process, but no air was given",
                "use loopback:tcp://HOST:PORT/NAME",
            )
        return LoopbackRadio(rest, ether)
    from radio.remote import RemoteEther

    address, _, name = rest.rpartition("/")
    if address.count(":") != 2 or not name:
        raise ConfigError(
            f"loopback:{rest} is not loopback:tcp://HOST:PORT/NAME", "for example tcp://127.0.0.1:5700/node-1"
        )
    return LoopbackRadio(name, RemoteEther(address))


def discover() -> list[Discovered]:
    """List nothing: simulated radios exist only on an air that somebody started."""
    return []
