"""Radios on the simulated air, in process or over a local socket; knows the Radio protocol, hides true time.

On the socket a DEALER sends a pair of frames (JSON header, raw bytes) to a ROUTER, which answers with a pair. No
pickle; errors travel by class name and are raised again as the same class.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import zmq


from radio.air import Air, EtherWitness
from radio.base import Capabilities, Capture, Discovered, RadioConfig, Samples, Tier, TxReport, checked
from radio.errors import ConfigError, LinkError, ProtocolMismatch, TestbedError
from radio.wire import VERSION, index, make_error, pack, read_events, unpack

OPENS_MUTED = True  # or goes on as it was, on an air that was restored: muting would draw a new LO phase


class LoopbackRadio:
    """One radio of a simulated air, behind the door that every radio has. Opens on construction.

    Args:
        name: the radio's name on that air.
        ether: the air.
        release: called last when the radio is closed, to let go of a connection made for it alone.

    Raises:
        RadioNotFound, RadioRefused: no such radio, or somebody has it open.
    """

    def __init__(self, name: str, ether: Air, release: Callable[[], None] | None = None) -> None:
        self.name = name
        self._air = ether
        self._open = False
        self._release = release
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

    def newest(self) -> int:
        """Give ``now()``: on virtual time nothing arrives before it is asked for."""
        return self.now()

    def temperature_c(self) -> None:
        """Tell nothing: nothing here gets warm."""

    def earliest(self) -> int:
        """Give the first TX index that can still be met."""
        return self._air.earliest(self.name)

    def transmit(self, samples: Samples, start: int | None = None) -> TxReport:
        """Send a finite burst from TX index ``start``; clips to full scale and counts it."""
        samples = checked(samples, self.name)
        # setting frequencies does not clear a power-down: say it
        return self._air.transmit(self.name, samples, start, unmute=True)

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
            try:
                self._air.close(self.name)
            finally:
                if self._release is not None:
                    self._release()


class RemoteEther:
    """An air in another process, with the methods of ``Ether``. One per radio; safe to call from several threads.

    Args:
        address: where an ``EtherServer`` listens, ``tcp://127.0.0.1:5700``.
        timeout_s: how long to wait for one answer.

    Raises:
        LinkError: nothing answers at the address in time.
        ProtocolMismatch: it speaks another version.
    """

    def __init__(self, address: str, timeout_s: float = 60.0) -> None:
        import zmq

        self._address, self._timeout_s = address, timeout_s
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.RCVTIMEO, int(1000 * timeout_s))
        self._socket.setsockopt(zmq.IDENTITY, uuid.uuid4().hex.encode())
        self._lock = threading.Lock()
        self._number = 0
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.disconnect()
            raise LinkError(f"{address} is no address of an air: {error.strerror}", "write tcp://HOST:PORT") from error
        try:
            self.names = tuple(self._ask("hello")[0])
        except TestbedError:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        """Release the socket. Radios opened through it stay open until closed or taken over."""
        self._socket.close()
        self._context.term()

    def _ask(
        self, call: str, arrays: Mapping[str, np.ndarray] | None = None, **args: Any
    ) -> tuple[Any, dict[str, np.ndarray]]:
        import zmq

        with self._lock:
            if self._socket.closed:
                raise LinkError(f"the connection to the air at {self._address} is closed", "open the radio again")
            self._number += 1
            table, blob = pack(arrays or {})
            header = {"version": VERSION, "id": self._number, "call": call, "args": args, "arrays": table}
            self._socket.send_multipart([json.dumps(header).encode(), blob])
            while True:
                try:
                    head, body = self._socket.recv_multipart()
                except zmq.Again:
                    raise LinkError(
                        f"no simulated air answered {call} at {self._address} within {self._timeout_s:g} s",
                        "start it with: testbed ether",
                    ) from None
                reply = json.loads(head)
                if reply.get("id") == self._number:  # others are probes, or answers to calls given up
                    break
        if reply.get("version") != VERSION:
            raise ProtocolMismatch(
                f"the air at {self._address} speaks version {reply.get('version')}, this side version {VERSION}",
                "install the same release on both sides",
            )
        if "error" in reply:
            raise make_error(reply["error"])
        return reply["result"], unpack(reply["arrays"], body)

    def open(self, name: str, owner: str = "") -> None:
        """Take a radio; this client is its owner, whatever ``owner`` says."""
        self._ask("open", name=name)

    def capabilities(self, name: str) -> Capabilities:
        """Give what a radio declares of itself."""
        told = self._ask("capabilities", name=name)[0]
        return Capabilities(**{**told, "tier": Tier(told["tier"])})

    def configure(self, name: str, wanted: RadioConfig, manual_gain: bool = True) -> tuple[RadioConfig, int]:
        """Apply settings; see ``Ether.configure``."""
        taken, stale = self._ask("configure", name=name, wanted=asdict(wanted), manual_gain=manual_gain)[0]
        return RadioConfig(**taken), int(stale)

    def now(self, name: str) -> int:
        """Give the RX index of the next sample."""
        return int(self._ask("now", name=name)[0])

    def earliest(self, name: str) -> int:
        """Give the first TX index that can still be met."""
        return int(self._ask("earliest", name=name)[0])

    def transmit(self, name: str, samples: Samples, start: int | None = None, *, unmute: bool = False) -> TxReport:
        """Register a burst; see ``Ether.transmit``."""
        told, _ = self._ask("transmit", {"samples": samples}, name=name, start=index(start), unmute=unmute)
        begin, count, clipped, events = told
        return TxReport(begin, count, clipped, read_events(events))

    def receive(self, name: str, count: int, start: int | None = None) -> Capture:
        """Render a window; see ``Ether.receive``."""
        told, arrays = self._ask("receive", name=name, count=int(count), start=index(start))
        begin, rate_hz, clipped, events = told
        return Capture(arrays["samples"], begin, rate_hz, clipped, read_events(events))

    def mute(self, name: str) -> None:
        """Switch a transmitter off."""
        self._ask("mute", name=name)

    def close(self, name: str) -> None:
        """Mute a radio and give it back."""
        self._ask("close", name=name)

    def silence(self, name: str) -> None:
        """Mute a radio whoever holds it, and leave it to its holder."""
        self._ask("silence", name=name)

    def deposit(self, key: str, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Leave arrays of radio ``name`` under ``key``."""
        self._ask("deposit", arrays, key=key, name=name)

    def collect(self, key: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Take the sums over ``names`` of everything under ``key``, and forget it."""
        return self._ask("collect", key=key, names=list(names))[1]

    def amplitude(self, sender: str, receiver: str, start: int, offsets_hz: np.ndarray) -> np.ndarray:
        """Give the true link amplitude; see ``Ether.amplitude``."""
        offsets = {"offsets_hz": np.asarray(offsets_hz, np.float64)}
        return self._ask("amplitude", offsets, sender=sender, receiver=receiver, start=index(start))[1]["amplitude"]

    def state(self) -> dict[str, Any]:
        """Give what a restarted air needs to continue; see ``Ether.state``."""
        return cast("dict[str, Any]", self._ask("state")[0])

    def fault(self, name: str, kind: str, seconds: float) -> None:
        """Let a radio that runs in real time ``stall`` or come ``unplugged`` for a while."""
        self._ask("fault", name=name, kind=kind, seconds=seconds)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; see ``Ether.restore``."""
        self._ask("restore", state=dict(state))


def _place(rest: str) -> tuple[str, str]:
    address, _, name = rest.rpartition("/")
    if address.count(":") != 2 or not name:
        raise ConfigError(
            f"loopback:{rest} is not loopback:tcp://HOST:PORT/NAME", "for example tcp://127.0.0.1:5700/node-1"
        )
    return address, name


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
    address, name = _place(rest)
    remote = RemoteEther(address)
    try:
        return LoopbackRadio(name, remote, remote.disconnect)
    except TestbedError:
        remote.disconnect()
        raise


def silence(rest: str) -> None:
    """Mute a radio of an air in another process, whoever holds it: for the guard of a process that died or hangs.

    Raises:
        ConfigError: ``rest`` is no address of an air and a name.
        LinkError: the air does not answer within half a second.
    """
    address, name = _place(rest)
    remote = RemoteEther(address, timeout_s=0.5)
    try:
        remote.silence(name)
    finally:
        remote.disconnect()


def discover() -> list[Discovered]:
    """List nothing: simulated radios exist only on an air that somebody started."""
    return []
