"""Knows how to bring up a whole loopback lab as processes of this machine and how to take it down; draws nothing.

Every process has a log file in the run folder. The children die with the launcher, even when it is killed with SIGKILL:
the kernel tells them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from radio.disk import disk_errors
from radio.errors import LinkError, RunError, TestbedError
from testbed.config import Pair
from testbed.keys import READER, SERVER, load_keys, make_keys
from testbed.parent import PARENT_VARIABLE, READY
from testbed.run import EventTail, RunFolder

__all__ = ["Launcher", "free_ports", "free_run", "launch"]

ETHER = "ether"
READY_S = 60.0  # longest wait for the ether to listen
GRACE_S = 15.0  # a server may finish its round and save before it is ended by force
POLL_S = 0.05
RESTARTS = 3  # of one node in one run
_ERROR = re.compile(r"^error\[(?P<slug>[a-z-]+)\]: (?P<text>.*)$", re.MULTILINE)

Reader = Callable[[dict[str, Any]], None]


def launch(
    pair: Pair, folder: RunFolder, *, resume: bool = False, overrides: Sequence[str] = (), reader: Reader | None = None
) -> None:
    """Run an experiment to its end: the ether, the server and every node of a loopback lab, or the server alone.

    Args:
        pair: lab and experiment. Without an ether in the lab only the server is started; its nodes live elsewhere.
        folder: run folder that holds the pair.
        resume: go on from the newest checkpoint.
        overrides: ``--set`` items that differ from the files in ``folder``.
        reader: called with every new event, here, in the launcher; the run does not wait for it.

    Raises:
        TestbedError: the first process that failed, by name, with its own error.
        KeyboardInterrupt: after the server has saved and everything is down.
    """
    with Launcher(pair, folder, resume=resume, overrides=overrides) as launcher:
        launcher.start()
        while launcher.step(reader):
            time.sleep(POLL_S)


class Launcher:
    """The processes of one run. Use as a context manager: leaving it leaves no process behind.

    Args:
        pair: lab and experiment.
        folder: that holds them.
        resume: go on from the newest checkpoint.
        overrides: ``--set`` items that differ from the files in ``folder``.
        only: nodes to start; empty: all.

    Attributes:
        processes: by name (``ether``, ``server``, node names), those that run now or have ended.
    """

    def __init__(
        self,
        pair: Pair,
        folder: RunFolder,
        *,
        resume: bool = False,
        overrides: Sequence[str] = (),
        only: Sequence[str] = (),
    ) -> None:
        self._lab = pair.lab
        self._folder = folder
        self._resume = resume
        self._tail = EventTail(folder.events_path, from_end=resume)
        names = [entry.name for entry in pair.lab.nodes] if pair.lab.ether is not None else []
        self._names = [name for name in names if not only or name in only]
        self._seen_ready: set[str] = set()
        self._restarts = dict.fromkeys(self._names, 0)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = ExitStack()
        self._set = [*overrides, *self._live_settings()]

    def _live_settings(self) -> list[str]:
        """Fix what the files leave open: free ports, and keys for this run alone."""
        lab, names = self._lab, [entry.name for entry in self._lab.nodes]
        keys = Path(lab.keys) if lab.keys else self._folder.keys
        if not lab.keys:
            make_keys(keys, [SERVER, READER, *names])
        for name in (SERVER, *self._names):
            load_keys(keys, name)
        settings = [f"lab.keys={keys}"]
        open_keys = {
            "ether_port": lab.ether_port if lab.ether is not None else 1,
            "server.control_port": lab.server.control_port,
            "server.events_port": lab.server.events_port,
        }
        wanted = [key for key, port in open_keys.items() if port == 0]
        if lab.virtual_plutos and lab.iiod_port == 0:
            settings.append(f"lab.iiod_port={free_run(len(lab.virtual_plutos))}")
        return settings + [f"lab.{key}={port}" for key, port in zip(wanted, free_ports(len(wanted)), strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def command(self, name: str) -> list[str]:
        """Give the command line of one process: ``ether``, ``server`` or a node's name."""
        base = [sys.executable, "-m", "testbed"]
        room = ["--lab", str(self._folder.path / "lab.toml")]
        mine = [item for item in self._set if name == SERVER or item.startswith("lab.")]
        settings = [part for item in mine for part in ("--set", item)]
        if name == ETHER:
            state = ["--state", str(self._folder.path)] if self._resume else []
            return [*base, "ether", *room, *settings, *state]
        if name == SERVER:
            resume = ["--resume", str(self._folder.path)] if self._resume else ["--folder", str(self._folder.path)]
            return [*base, "server", *resume, *settings]
        return [*base, "node", name, *room, "--folder", str(self._folder.node(name)), *settings]

    @property
    def settings(self) -> tuple[str, ...]:
        """The ``--set`` items under which every process of this run goes."""
        return tuple(self._set)

    def alive(self) -> None:
        """Look after the processes where none may end.

        Raises:
            TestbedError: the ether or a node has ended.
        """
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise self._failure(name)

    def start(self, server: bool = True) -> None:
        """Start everything; the ether first, because radios open on it.

        Args:
            server: whether the server is a process of its own; otherwise whoever calls takes its place.

        Raises:
            TestbedError: the ether failed, or is not ready in time.
        """
        if self._lab.ether is not None:
            self._spawn(ETHER)
            deadline = time.monotonic() + READY_S
            while f"\n{READY}{ETHER}" not in "\n" + self._log_text(ETHER):
                if self.processes[ETHER].poll() is not None:
                    raise self._failure(ETHER)
                if time.monotonic() > deadline:
                    raise LinkError(f"the ether is not ready after {READY_S:g} s", f"read {self._folder.log(ETHER)}")
                time.sleep(POLL_S)
        for name in (SERVER, *self._names) if server else self._names:
            self._spawn(name)

    def step(self, reader: Reader | None = None) -> bool:
        """Hand over new events and look after the processes; call it a few times per second.

        A node that dies after it was ready is started again, as a service manager would; the run goes on meanwhile.

        Returns:
            False when the server has finished.

        Raises:
            TestbedError: the server, the ether, or a node that was never ready failed.
        """
        server_done = self.processes[SERVER].poll()  # asked before the events, so that the last ones are seen
        for event in self._tail.poll():
            if event.get("kind") == "node-changed" and event.get("state") == "ready":
                self._seen_ready.add(str(event.get("node")))
            if reader is not None:
                reader(event)
        if server_done is not None:
            if server_done != 0:
                raise self._root_cause()
            return False
        ether = self.processes.get(ETHER)
        if ether is not None and ether.poll() is not None:
            raise self._failure(ETHER)
        for name in self._names:
            if self.processes[name].poll() not in (None, 0):
                if name not in self._seen_ready or self._restarts[name] >= RESTARTS:
                    raise self._failure(name)
                self._restarts[name] += 1
                self._spawn(name)
        return True

    def stop(self) -> None:
        """End everything: the server first, so that it can save and tell its nodes. Safe to call twice."""
        for group in ([SERVER], self._names, [ETHER]):
            running = [self.processes[name] for name in group if name in self.processes]
            patience = GRACE_S if group == [SERVER] else 5.0
            if group == self._names and running and running[0].poll() is None:
                _wait(running, 2.0)  # the server has just told them to end
            for process in running:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
            _wait(running, patience)
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        self._logs.close()

    def _spawn(self, name: str) -> None:
        path = self._folder.log(name)
        with disk_errors(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = self._logs.enter_context(path.open("ab"))
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        self.processes[name] = subprocess.Popen(
            self.command(name),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one, PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends things in order
        )

    def _log_text(self, name: str) -> str:
        try:
            return self._folder.log(name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _root_cause(self) -> TestbedError:
        """Find what failed first: when an ether or a node broke, the server's error is only its echo."""
        for name in (ETHER, *self._names):
            process = self.processes.get(name)
            if process is not None and process.poll() not in (None, 0) and _ERROR.search(self._log_text(name)):
                return self._failure(name)
        return self._failure(SERVER)

    def _failure(self, name: str) -> TestbedError:
        """Word the failure of one process: its own error line if it left one, else how it ended and its last lines."""
        code = self.processes[name].poll()
        found = list(_ERROR.finditer(self._log_text(name)))
        if found:
            what, _, remedy = found[-1]["text"].rpartition(" -> ")
            kind = _class_of(found[-1]["slug"])
            return kind(f"{name}: {what or remedy}", remedy if what else f"read {self._folder.log(name)}")
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        last = " | ".join(self._log_text(name).strip().splitlines()[-3:])
        remedy = f"read {self._folder.log(name)}; continue with testbed run --resume {self._folder.path}"
        return RunError(f"{name} {how}; its last lines: {last or 'none'}", remedy)


def free_ports(count: int) -> list[int]:
    """Find TCP ports of this machine that nobody uses now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_run(count: int) -> int:
    """Find the first of ``count`` TCP ports in a row that nobody uses now."""
    while True:
        first = free_ports(1)[0]
        with ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _class_of(slug: str) -> type[TestbedError]:
    waiting: list[type[TestbedError]] = [TestbedError]
    while waiting:
        kind = waiting.pop()
        if kind.slug == slug:
            return kind
        waiting += kind.__subclasses__()
    return RunError
