"""Knows the folder of one run: its configuration, its events, its checkpoints; knows nothing of who reads them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from radio.disk import JsonLines, find_numbered, numbered_folder, write_whole
from radio.errors import RunError
from testbed.checkpoint import Checkpoint, checkpoint_rounds, load_checkpoint, save_checkpoint
from testbed.config import Pair, load

__all__ = [
    "Checkpoint",
    "EventTail",
    "RunFolder",
    "checkpoint_rounds",
    "find_run",
    "load_checkpoint",
    "read_events",
    "save_checkpoint",
    "saved_air",
]

EVENT_KINDS = frozenset(
    {
        "run-started",
        "node-changed",
        "calibrated",
        "round-started",
        "round-finished",
        "evaluated",
        "warning",
        "run-finished",
    }
)


class RunFolder:
    """One run on disk. Only one process, the server, may call ``emit``; anyone may read.

    Attributes:
        path: the folder, absolute.
        name: its name, the run id in messages and events.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.name = path.name
        self._publish: Callable[[bytes], None] | None = None
        self._events = JsonLines(self.events_path)

    @classmethod
    def create(cls, root: Path, pair: Pair) -> Self:
        """Make ``root/N`` with the next free number, write both files into it, and point ``root/latest`` to it.

        Raises:
            RunError: the folder cannot be made or written.
        """
        return cls(numbered_folder(root, "run", pair.resolved()))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Take an existing run folder.

        Raises:
            RunError: the folder does not hold a run.
        """
        if not (path / "experiment.toml").is_file() or not (path / "lab.toml").is_file():
            raise RunError(f"{path}: not a run folder (no lab.toml and experiment.toml)", "give a folder under runs/")
        return cls(path.resolve())

    @property
    def identity(self) -> str:
        """A random word made with the folder: a node tells by it whether its memory belongs to this run."""
        path = self.path / "identity"
        if not path.is_file():
            write_whole(path, uuid.uuid4().hex.encode())
        return path.read_text(encoding="ascii")

    @property
    def events_path(self) -> Path:
        """The append-only file of events, one JSON object per line."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The server's checkpoints."""
        return self.path / "checkpoints"

    @property
    def voided(self) -> Path:
        """Recordings of the last rounds whose sum was thrown away."""
        return self.path / "voided"

    @property
    def keys(self) -> Path:
        """Key files of a lab that has none of its own."""
        return self.path / "keys"

    def node(self, name: str) -> Path:
        """Folder in which node ``name`` keeps its memory and log."""
        return self.path / "nodes" / name

    def log(self, process: str) -> Path:
        """Log file of one process: ``server``, ``ether``, or a node's name."""
        return self.path / "logs" / f"{process}.log"

    def pair(self) -> Pair:
        """Read the configuration of the run.

        Raises:
            ConfigError: someone has edited it into something invalid.
        """
        return load(self.path)

    def publish_to(self, publish: Callable[[bytes], None] | None) -> None:
        """Hand the bytes of every further event, as written, to ``publish`` as well."""
        self._publish = publish

    def emit(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one event, at once and whole, and publish the same bytes.

        Args:
            kind: one of ``EVENT_KINDS``.
            fields: anything JSON can hold; ``nan`` and infinities become null.

        Returns:
            The event with ``kind``, ``time`` (UTC, ISO 8601) and ``run``.

        Raises:
            RunError: the disk is full; no event written before is lost, and no half line stays behind.
            ValueError: an unknown kind.
        """
        if kind not in EVENT_KINDS:
            raise ValueError(f"unknown event kind {kind!r}; use one of {', '.join(sorted(EVENT_KINDS))}")
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = {"kind": kind, "time": stamp, "run": self.name, **_finite(fields)}
        line = self._events.append(event)
        if self._publish is not None:
            self._publish(line)
        return event

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write the server's checkpoint; the last two are kept. See ``save_checkpoint``."""
        return save_checkpoint(self.checkpoints, checkpoint)

    def load(self, config_hash: str | None = None) -> Checkpoint:
        """Read the server's newest checkpoint. See ``load_checkpoint``."""
        return load_checkpoint(self.checkpoints, config_hash)

    def close(self) -> None:
        """Close the event file. Safe to call twice."""
        self._events.close()


def _finite(value: Any) -> Any:
    """Copy with plain Python types, where nan and infinities are None: JSON has no words for them."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return _finite(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    raise TypeError(f"an event cannot hold a {type(value).__name__}: {value!r}")


def find_run(text: str, root: Path) -> RunFolder:
    """Find a run by folder (``runs/7``), by number (``7``) or as ``latest``.

    Raises:
        RunError: there is no such run.
    """
    return RunFolder.open(find_numbered(text, root, "run"))


def saved_air(folder: Path) -> dict[str, Any]:
    """Give the state of the simulated air in the newest checkpoint of a run folder.

    Raises:
        RunError: there is no checkpoint, or it holds no simulated air.
    """
    state = RunFolder.open(folder).load().extra.get("ether")
    if not isinstance(state, dict):
        raise RunError(f"{folder}: its checkpoint holds no simulated air", "start the ether without --state")
    return state


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Read the events of a run so far. A half line, left by a killed process, is skipped.

    Args:
        path: the ``events.jsonl`` file; it may not exist yet.
    """
    yield from EventTail(path).poll()


class EventTail:
    """Follows an events file as it grows, without any say in the writer's pace."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def poll(self) -> list[dict[str, Any]]:
        """Give the whole events that were added since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        end = content.rfind(b"\n") + 1
        self._offset += end
        events: list[dict[str, Any]] = []
        for line in content[:end].splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "kind" in event:
                events.append(event)
        return events
