"""Serves one simulated air on a local socket to the radios of other processes; knows the calls, no radio of its own.

A pair of frames (JSON header, raw bytes) comes from a DEALER and is answered with a pair. No pickle; errors travel by
class name and are raised again as the same class.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import zmq

    from radio.ether import Ether

from radio.base import RadioConfig
from radio.errors import LinkError, ProtocolMismatch, RadioRefused, TestbedError
from radio.wire import VERSION, pack, unpack


class EtherServer:
    """One air served on one socket, by default of this machine only.

    Args:
        ether: the air.
        address: where to listen, ``tcp://127.0.0.1:5700``; port 0 takes a free one, see ``address`` afterwards.
        faults: lets a fault happen to a radio: its name, the kind of fault, and for how many seconds.

    Raises:
        LinkError: the port is in use or cannot be had.
    """

    def __init__(
        self,
        ether: Ether,
        address: str = "tcp://127.0.0.1:5700",
        faults: Callable[[str, str, float], None] | None = None,
    ) -> None:
        import zmq

        self._ether, self._faults = ether, faults
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(
            zmq.ROUTER_MANDATORY, 1
        )  # sending to a client that has died then fails: how death is seen
        self._stop = threading.Event()
        try:
            self._socket.bind(address.replace(":0", ":*") if address.endswith(":0") else address)
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            raise LinkError(
                f"the simulated air cannot listen on {address}: {error.strerror}",
                "stop the program that uses this port, or choose another port",
            ) from error
        self.address = cast("bytes", self._socket.getsockopt(zmq.LAST_ENDPOINT)).decode()

    def stop(self) -> None:
        """Ask ``serve`` to return; may be called from any thread."""
        self._stop.set()

    def serve(self) -> None:
        """Answer calls until ``stop``, then release the port."""
        import zmq

        try:
            while not self._stop.is_set():
                if self._socket.poll(100, zmq.POLLIN):
                    frames = self._socket.recv_multipart()
                    header, blob = self._answer(frames)
                    self._send(frames[0], header, blob)
        finally:
            self._socket.close()
            self._context.term()

    def _send(self, client: bytes, header: dict[str, Any], blob: bytes = b"") -> bool:
        """Send to a client; False when it is gone."""
        import zmq

        try:
            self._socket.send_multipart([client, json.dumps(header).encode(), blob], zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def _answer(self, frames: list[bytes]) -> tuple[dict[str, Any], bytes]:
        """Carry one request out; every failure becomes a reply."""
        number: Any = None
        try:
            header = json.loads(frames[1])
            number = header.get("id")
            if header.get("version") != VERSION:
                raise ProtocolMismatch(
                    f"the client speaks ether protocol version {header.get('version')}, this side version {VERSION}",
                    "install the same release on both sides",
                )
            result, arrays = self._call(frames[0], header, unpack(header.get("arrays", []), frames[2]))
            table, blob = pack(arrays)
            return {"version": VERSION, "id": number, "result": result, "arrays": table}, blob
        except TestbedError as error:
            late = getattr(error, "late_samples", 0)
            told = {"class": type(error).__name__, "message": error.message, "remedy": error.remedy, "late": late}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            told = {
                "class": "LinkError",
                "message": f"the simulated air could not read a request: {error!r}",
                "remedy": "",
            }
        return {"version": VERSION, "id": number, "error": told}, b""

    def _call(
        self, client: bytes, header: dict[str, Any], arrays: dict[str, np.ndarray]
    ) -> tuple[Any, Mapping[str, np.ndarray]]:
        """Dispatch by name. A radio answers only the client that opened it."""
        ether, call, args = self._ether, header["call"], header["args"]
        name, who = args.get("name", ""), client.decode("ascii", "replace")
        if call == "hello":
            return list(ether.names), {}
        if call == "state":
            return ether.state(), {}
        if call == "restore":
            ether.restore(args["state"])
            return None, {}
        if call == "deposit":
            ether.deposit(args["key"], name, arrays)
            return None, {}
        if call == "collect":
            return None, ether.collect(args["key"], tuple(args["names"]))
        if call == "fault" and self._faults is not None:
            self._faults(name, args["kind"], float(args["seconds"]))
            return None, {}
        if call == "amplitude":
            found = ether.amplitude(args["sender"], args["receiver"], args["start"], arrays["offsets_hz"])
            return None, {"amplitude": found}
        holder = ether.owner(name)
        if call == "silence":
            if holder is not None:
                ether.mute(name)
            return None, {}
        if call == "open":
            if holder is not None and (
                holder == who or not self._send(holder.encode(), {"version": VERSION, "id": -1})
            ):
                ether.close(name)  # its holder died, or asks again: what it left is muted
            ether.open(name, who)
            return None, {}
        if holder is not None and holder != who:
            raise RadioRefused(
                f"radio {name} is already open by another program", "close it there, or use another name"
            )
        if call == "configure":
            taken, stale = ether.configure(name, RadioConfig(**args["wanted"]), args["manual_gain"])
            return [asdict(taken), stale], {}
        if call == "capabilities":
            return asdict(ether.capabilities(name)), {}
        if call == "transmit":
            sent = ether.transmit(name, arrays["samples"].astype(np.complex64), args["start"], unmute=args["unmute"])
            return [sent.start, sent.count, sent.clipped, [list(astuple(event)) for event in sent.events]], {}
        if call == "receive":
            took = ether.receive(name, args["count"], args["start"])
            listed = [list(astuple(event)) for event in took.events]
            return [took.start, took.rate_hz, took.clipped, listed], {"samples": took.samples}
        if call in ("now", "earliest", "mute", "close"):
            return getattr(ether, call)(name), {}
        raise LinkError(f"the simulated air knows no call {call!r}", "install the same release on both sides")
