"""The dead-man process beside a radio: mutes it when its daemon dies or hangs; knows the driver, no orders, no rounds.

A daemon starts one guard per radio before it opens the radio. The guard holds the reading end of a pipe that only the
daemon can write to: the kernel closes it at the instant the daemon dies, whatever killed it; a daemon that hangs stops
writing. The guard then opens a connection of its own to the device and switches the transmitter off.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

import radio
from radio.disk import JsonLines
from radio.errors import LinkError, RadioRefused, TestbedError
from radio.loopback import RemoteEther
from radio.safety import Audit, SafeRadio, SafetyProfile
from radio.wire import make_error

__all__ = ["ALLOWANCE_S", "BEAT_S", "Guard", "main", "open_guarded"]

log = logging.getLogger(__name__)

BEAT_S = 0.2  # between two signs of life
ALLOWANCE_S = 3.0  # silence of a daemon that still lives: imports and compilers hold the interpreter for a second
TRIES_S = 3.0  # how long a guard keeps trying to mute a device that does not answer
RETRY_S = 0.1
UP_S = 30.0  # a slow machine imports a driver's libraries for seconds
BEAT, GOODBYE = b".", b"q"


class Guard:
    """The daemon's side of a guard process: up when constructed, told that the daemon lives by a thread.

    Args:
        uri: of the radio.
        folder: where the guard writes ``guard.jsonl``.

    Raises:
        TestbedError: the guard did not come up; what it said.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "testbed.guard", uri, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends the daemon's session or group must not end the guard
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._pipe, self._goodbye = self._process.stdin, threading.Event()
        self._holder: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._beat, name="guard", daemon=True).start()
        ready, _, _ = select.select([self._process.stdout], [], [], UP_S)
        answer = json.loads(self._process.stdout.readline() or "{}") if ready else {}
        self._process.stdout.close()
        if answer.get("state") != "up":
            self.dismiss()
            if "error" in answer:
                raise make_error(answer["error"])
            raise LinkError(f"the guard of radio {uri} did not come up within {UP_S:g} s", "start the program again")

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # it has ended: ``trouble`` tells
            while not self._goodbye.wait(BEAT_S):
                if self._holder is not None and self._holder.poll():  # one that ends with 0 has muted and closed
                    self._pipe.close()  # whoever held the radio has died: for the guard the daemon has, too
                    return
                os.write(self._pipe.fileno(), BEAT)

    def hold(self, holder: subprocess.Popen[bytes]) -> None:
        """Name the process in which the driver runs: its death counts as the daemon's, and it may be ended."""
        os.write(self._pipe.fileno(), b"+%d;" % holder.pid)
        self._holder = holder

    def trouble(self) -> str:
        """Tell why this guard guards no more; empty while it does."""
        code = self._process.poll()
        return "" if code is None else f"its guard process has ended with code {code}"

    def dismiss(self) -> None:
        """Say goodbye: the radio is muted and closed, there is nothing left to guard. Safe to call twice."""
        if not self._goodbye.is_set():
            self._goodbye.set()
            with contextlib.suppress(OSError, ValueError):  # the guard has ended, or its pipe is closed
                os.write(self._pipe.fileno(), GOODBYE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)


def open_guarded(
    uri: str, safety: SafetyProfile, folder: Path, audit: Audit | None = None, air: str | None = None
) -> SafeRadio:
    """Open a radio with a guard beside it; closing the radio dismisses the guard.

    Args:
        uri: of the radio.
        safety: what it may transmit.
        folder: for the guard's log, and for ``emissions.jsonl`` when no ``audit`` is given.
        audit: takes a record of every emission and every refusal.
        air: address of the simulated air behind a radio whose driver does not know that there is one.

    Raises:
        TestbedError: the guard did not come up, or the radio could not be opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    driver, _ = radio.driver_of(uri)
    guard = Guard(uri, folder) if hasattr(driver, "silence") else None
    if guard is None:
        log.warning("radio %s: its driver has no silence(), so no guard can mute it when this process is killed", uri)
    if getattr(driver, "REAL_TIME", False):
        # threads of a matrix product wait for each other without pause: an urgent one would starve the others
        threadpool_limits(1, "blas")
    try:
        ether = None if air is None else RemoteEther(air)
        written = JsonLines(folder / "emissions.jsonl")
        audit = audit or (lambda record: written.append(asdict(record)))
        opened = radio.open(uri, safety, ether=ether, audit=audit, apart=getattr(driver, "REAL_TIME", False))
    except BaseException:
        if guard is not None:
            guard.dismiss()
        raise
    if guard is not None:
        opened.watched(guard.trouble, guard.dismiss)
        if opened.holder is not None:
            guard.hold(opened.holder)
    return opened


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Be the only guard of a radio on this machine: one that is still muting for a dead daemon ends first."""
    with socket.socket(socket.AF_UNIX) as lock:
        end = time.monotonic() + TRIES_S + 1.0
        while sys.platform.startswith("linux"):
            try:
                lock.bind("\0testbed-guard-" + hashlib.sha256(uri.encode()).hexdigest())
                break
            except OSError:
                if time.monotonic() > end:
                    raise RadioRefused(
                        f"radio {uri} is already open by another program of this machine",
                        "close it there, or use another name",
                    ) from None
                time.sleep(RETRY_S)
        yield


def _mute(silence: Callable[[], None], note: Callable[..., None], why: str) -> bool:
    """Mute and say so; a device that is just being let go of by its dead owner may need a second try."""
    begin_s = time.monotonic()
    while True:
        try:
            silence()
        except Exception as error:  # noqa: BLE001  whatever went wrong, the transmitter must be tried again
            if time.monotonic() - begin_s > TRIES_S:
                note("not-muted", why=why, seconds=time.monotonic() - begin_s, error=str(error))
                return False
            time.sleep(RETRY_S)
        else:
            note("muted", why=why, seconds=time.monotonic() - begin_s)
            return True


def _watch(beats: int, silence: Callable[[], None], note: Callable[..., None]) -> None:
    """Read signs of life until there can be no more.

    A device that a hung process holds for itself alone, as over USB, is muted once that process is no more.
    """

    def end(process: int) -> None:
        note("killed", why="it hangs and holds the radio", process=process)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    daemon, holder, hung = os.getppid(), 0, False
    while True:
        ready, _, _ = select.select([beats], [], [], ALLOWANCE_S)
        told = os.read(beats, 4096) if ready else None
        if told == b"":
            if not _mute(silence, note, "the daemon died") and holder:
                end(holder)
                _mute(silence, note, "the daemon died")
            return
        if told is None:
            if not hung and not _mute(silence, note, f"no sign of life for {ALLOWANCE_S:g} s"):
                end(daemon)
            hung = True
            continue
        if GOODBYE in told:
            note("dismissed")
            return
        if found := re.search(rb"\+(\d+);", told):
            holder = int(found[1])
        if hung:
            note("back", why="the daemon shows signs of life again")
            hung = False


def main(uri: str, folder: str) -> None:
    """Guard one radio; the process behind ``Guard``."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a service manager signals the whole group; the daemon says when to go

    journal = JsonLines(Path(folder) / "guard.jsonl")

    def note(state: str, **more: Any) -> None:
        stamp = datetime.now(UTC).isoformat()
        journal.append({"time": stamp, "radio": uri, "state": state, **more})

    def tell(answer: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    try:
        driver, rest = radio.driver_of(uri)
        if hasattr(driver, "warm"):
            driver.warm()
        with _alone(uri):
            note("up")
            tell({"state": "up"})
            _watch(sys.stdin.fileno(), lambda: driver.silence(rest), note)
    except TestbedError as error:
        tell({"error": {"class": type(error).__name__, "message": error.message, "remedy": error.remedy, "late": 0}})


if __name__ == "__main__":
    main(*sys.argv[1:])
