"""A radio whose driver runs in a process of its own; knows the Radio protocol and two pipes, no driver.

A stream starves when the interpreter is busy elsewhere: a learning process holds it for tens of milliseconds at a time.
Here the driver has an interpreter to itself. Should this process die, the other one sees the pipes close, mutes and
ends; should a driver's library crash, it takes only its own process along.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, astuple
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np

import radio
from radio.base import Capabilities, Capture, Radio, RadioConfig, Samples, Tier, TxReport, Witness
from radio.errors import RadioError, TestbedError
from radio.urgency import hurry
from radio.wire import index, make_error, pack, read_events, unpack

__all__ = ["ApartRadio", "main"]

STREAMING = frozenset({"receive", "transmit"})  # these may wait; all other calls have a pipe of their own
OPEN_S = 30.0  # a slow machine imports a driver's libraries for seconds
END_S = 5.0

Answer = tuple[Any, Mapping[str, np.ndarray]]


class ApartRadio:
    """The near side. Opens on construction, muted or not as the driver opens it.

    Args:
        uri: of the radio.

    Raises:
        TestbedError: what the driver said when it could not open the radio.
    """

    witness: Witness | None = None

    def __init__(self, uri: str) -> None:
        self._uri, self._closed = uri, False
        pairs = [Pipe(), Pipe()]
        self._pipes = [(near, threading.Lock()) for near, _ in pairs]
        far = [pipe.fileno() for _, pipe in pairs]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "radio.apart", uri, *map(str, far)],
            pass_fds=far,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the owner, who closes this radio in order
        )
        for _, pipe in pairs:
            pipe.close()
        try:
            if not self._pipes[1][0].poll(OPEN_S):
                raise RadioError(f"radio {uri} did not open within {OPEN_S:g} s", "look at its driver's messages")
            told, _ = self._hear(self._pipes[1][0])
        except TestbedError:
            self._end()
            raise
        self.name: str = told["name"]
        self.capabilities = _able(told["capabilities"])

    def _ask(self, call: str, arrays: Mapping[str, np.ndarray] | None = None, **args: Any) -> Answer:
        pipe, lock = self._pipes[0 if call in STREAMING else 1]
        with lock:
            if self._closed:
                raise RadioError(f"{self._uri} is closed", "open it again")
            with contextlib.suppress(OSError):  # the far side has ended: hearing says how
                _say(pipe, {"call": call, "args": args}, arrays or {})
            return self._hear(pipe)

    def _hear(self, pipe: Connection) -> Answer:
        try:
            head, arrays = _read(pipe)
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_S)
            code = self.process.poll()
            raise RadioError(
                f"the process of radio {self._uri} ended with code {code}", "open it again; if it repeats, report it"
            ) from None
        if "error" in head:
            raise make_error(head["error"])
        return head["result"], arrays

    def configure(self, wanted: RadioConfig) -> RadioConfig:
        """Apply settings and read back what was taken."""
        told, _ = self._ask("configure", wanted=asdict(wanted))
        self.capabilities = _able(told["capabilities"])
        return RadioConfig(**told["taken"])

    def now(self) -> int:
        """Give the RX index of the next sample."""
        return int(self._ask("now")[0])

    def newest(self) -> int:
        """Give the RX index just past the newest sample that has arrived."""
        return int(self._ask("newest")[0])

    def temperature_c(self) -> float | None:
        """Give the temperature of the device, where it tells one."""
        told: float | None = self._ask("temperature_c")[0]
        return told

    def earliest(self) -> int:
        """Give the first TX index that can still be met."""
        return int(self._ask("earliest")[0])

    def transmit(self, samples: Samples, start: int | None = None) -> TxReport:
        """Send a finite burst from TX index ``start``."""
        begin, count, clipped, events = self._ask("transmit", {"samples": np.asarray(samples)}, start=index(start))[0]
        return TxReport(begin, count, clipped, read_events(events))

    def receive(self, count: int, start: int | None = None) -> Capture:
        """Take ``count`` samples from RX index ``start``."""
        told, arrays = self._ask("receive", count=int(count), start=index(start))
        begin, rate_hz, clipped, events = told
        return Capture(arrays["samples"], begin, rate_hz, clipped, read_events(events))

    def mute(self) -> None:
        """Drop pending bursts and switch the transmitter off."""
        self._ask("mute")

    def close(self) -> None:
        """Mute and release the device. Safe to call twice."""
        if self._closed:
            return
        try:
            self._ask("close")
        finally:
            self._end()

    def _end(self) -> None:
        self._closed = True
        for pipe, _ in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send_bytes(b"")
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe, _ in self._pipes:
            pipe.close()


def _able(told: Mapping[str, Any]) -> Capabilities:
    return Capabilities(**{**told, "tier": Tier(told["tier"])})


def _say(pipe: Connection, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    table, blob = pack(arrays)
    pipe.send_bytes(json.dumps({**head, "arrays": table}).encode())
    pipe.send_bytes(blob)


def _read(pipe: Connection) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read one message; an empty one is goodbye.

    Raises:
        EOFError: the other side has said goodbye or is gone.
    """
    head = pipe.recv_bytes()
    if not head:
        raise EOFError
    told = json.loads(head)
    return told, unpack(told["arrays"], pipe.recv_bytes())


def _do(device: Radio, call: str, args: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Answer:
    if call == "transmit":
        sent = device.transmit(arrays["samples"], args["start"])
        return [sent.start, sent.count, sent.clipped, [list(astuple(event)) for event in sent.events]], {}
    if call == "receive":
        took = device.receive(args["count"], args["start"])
        listed = [list(astuple(event)) for event in took.events]
        return [took.start, took.rate_hz, took.clipped, listed], {"samples": took.samples}
    if call == "configure":
        taken = device.configure(RadioConfig(**args["wanted"]))
        return {"taken": asdict(taken), "capabilities": asdict(device.capabilities)}, {}
    return getattr(device, call)(), {}


def _serve(device: Radio, pipe: Connection) -> None:
    """Answer calls until there can be no more; every failure is an answer."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            head, arrays = _read(pipe)
            try:
                result, back = _do(device, head["call"], head["args"], arrays)
                _say(pipe, {"result": result}, back)
            except TestbedError as error:
                _say(pipe, {"error": _told(error)}, {})


def _told(error: TestbedError) -> dict[str, Any]:
    late = getattr(error, "late_samples", 0)
    return {"class": type(error).__name__, "message": error.message, "remedy": error.remedy, "late": late}


def main(uri: str, *numbers: str) -> None:
    """Open one radio and serve it; the process behind ``ApartRadio``."""
    streaming, control = (Connection(int(number)) for number in numbers)
    try:
        driver, rest = radio.driver_of(uri)
        polls = getattr(driver, "POLLS", False)  # what its library starts asks without a pause, and must not be urgent
        if not polls:
            hurry(2)
        device: Radio = driver.connect(rest, None)
    except TestbedError as error:
        _say(control, {"error": _told(error)}, {})
        return
    if polls:
        hurry(2)
    try:
        _say(control, {"result": {"name": device.name, "capabilities": asdict(device.capabilities)}}, {})
        threading.Thread(target=_serve, args=(device, streaming), daemon=True).start()
        _serve(device, control)
    finally:
        device.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
