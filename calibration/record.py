"""Knows the folder of one calibration and its records: how they are kept, and if one still holds; measures nothing.

A record is ``records/STEP-RADIO.json``, and ``.npz`` beside it for curves. A step that is measured again adds
``STEP-RADIO.2.json``, and so on: nothing is overwritten, and the newest record of a step and radio counts. The JSON
holds the SHA-256 of all it says and of the curves, and is renamed into place last: then both are complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from calibration.result import Result
from radio.base import Capabilities, RadioConfig
from radio.disk import disk_errors, find_numbered, numbered_folder, write_whole
from radio.errors import CalibrationError, Damaged, Foreign, Stale

__all__ = ["FAST", "SCHEMA", "VALID_S", "CalibrationFolder", "RadioKey", "Record"]

#: Version of the format of records and of ``calibration.json``.
SCHEMA = 1
DAY_S = 86_400.0
#: How long a record of each step holds, in seconds; None: until the hardware, its driver or its settings change. The
#: offset between two counters ends with its stream, so it holds for nobody else.
VALID_S: dict[str, float | None] = {
    "inventory": None,
    "preflight": None,
    "noise": DAY_S,
    "level": DAY_S,
    "integrity": None,
    "offset": 0.0,
    "oscillator": 7 * DAY_S,
    "lock": 3600.0,
    "sounding": 60.0,
    "timing": 60.0,
    "phase": 3600.0,
    "balance": 3600.0,
    "sum": 3600.0,
}
#: Steps that a run repeats for itself when it starts: their age does not stop it, it goes without them.
FAST = frozenset({"offset", "lock", "sounding", "timing", "phase", "balance", "sum"})
#: A clock that was set back by less is no reason to doubt a record.
CLOCK_S = 60.0


@dataclass(frozen=True)
class RadioKey:
    """What a record depends on. With any of it changed, the record tells of something else.

    Attributes:
        serial, driver: of the radio; the driver carries its version.
        rate_hz, tx_hz, rx_hz, bandwidth_hz, rx_gain_db, tx_attenuation_db: as ordered, before a node is tuned to its
            server.
        antenna: label in the lab file, empty if there is none.
    """

    serial: str
    driver: str
    rate_hz: float
    tx_hz: float
    rx_hz: float
    bandwidth_hz: float
    rx_gain_db: float
    tx_attenuation_db: float
    antenna: str = ""

    @classmethod
    def of(cls, able: Capabilities, wanted: RadioConfig, antenna: str | None) -> RadioKey:
        """Give the key of a radio under these settings."""
        return cls(able.serial, able.driver, **asdict(wanted), antenna=antenna or "")

    def difference(self, other: RadioKey) -> str:
        """Say in which fields ``other`` differs, as ``field was A, is B``; empty when it does not."""
        pairs = [(name, value, getattr(other, name)) for name, value in asdict(self).items()]
        return ", ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if not _same(old, new))


def _same(old: str | float, new: str | float) -> bool:
    if isinstance(old, str) or isinstance(new, str):
        return old == new
    return math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-9)


@dataclass(frozen=True)
class Record:
    """A result, and what it holds for.

    Attributes:
        result: what the step found.
        key: the radio and its settings.
        time: when it was measured, UTC.
        valid_s: how long it holds; None: until something in ``key`` changes.
        name: file of the record, for messages.
    """

    result: Result
    key: RadioKey
    time: datetime
    valid_s: float | None
    name: str

    def age_s(self, now: datetime) -> float:
        """Give the age in seconds."""
        return (now - self.time).total_seconds()

    def check(self, key: RadioKey, now: datetime) -> None:
        """Make sure that the record still holds.

        Raises:
            Foreign: the radio or its settings are others.
            Stale: it is too old, or of tomorrow.
        """
        step, radio = self.result.step, self.result.radio
        if difference := self.key.difference(key):
            raise Foreign(
                f"{self.name}: the record is of another radio or setting: {difference}",
                f"calibrate {radio} again, or put back what it was calibrated with",
            )
        age, again = self.age_s(now), f"testbed calibrate --steps {step}"
        if self.valid_s is not None and age > self.valid_s:
            raise Stale(
                f"{self.name}: {step} of {radio} is {age / 3600:.1f} h old, limit {self.valid_s / 3600:.1f} h", again
            )
        if age < -CLOCK_S:
            raise Stale(f"{self.name}: {step} of {radio} was measured {-age:.0f} s after now: a clock is wrong", again)

    def holds(self, key: RadioKey, now: datetime) -> bool:
        """Tell if ``check`` finds nothing."""
        try:
            self.check(key, now)
        except CalibrationError:
            return False
        return True


class CalibrationFolder:
    """One calibration on disk. One process at a time may write (``writing``); anyone may read.

    Attributes:
        path: the folder, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @classmethod
    def create(cls, root: Path, files: Mapping[str, str]) -> CalibrationFolder:
        """Make ``root/N`` with the next free number, and point ``root/latest`` to it.

        Args:
            root: made if absent.
            files: text by name, for example ``lab.toml`` and ``experiment.toml``: what is calibrated.

        Raises:
            RunError: the folder cannot be made or written.
        """
        head = _sealed({"started": _stamp(datetime.now(UTC)), "finished": None, "verdict": None})
        folder = cls(numbered_folder(root, "calibration", {**files, "calibration.json": head.decode()}))
        with disk_errors(folder.path, "make its folders"):
            folder.captures.mkdir()
            folder._records.mkdir()
        return folder

    @classmethod
    def open(cls, path: Path) -> CalibrationFolder:
        """Take an existing calibration folder.

        Raises:
            CalibrationError: it is none.
        """
        if not (path / "calibration.json").is_file():
            raise CalibrationError(
                f"{path}: not a calibration folder (no calibration.json)", "give a folder under calibrations/"
            )
        return cls(path.resolve())

    @classmethod
    def find(cls, text: str, root: Path) -> CalibrationFolder:
        """Find a calibration by folder (``calibrations/3``), by number (``3``) or as ``latest``.

        Raises:
            RunError, CalibrationError: there is none.
        """
        return cls.open(find_numbered(text, root, "calibration"))

    @property
    def digest(self) -> str:
        """What tells these records from all others, whatever their folder is called: 16 digits of a SHA-256."""
        whole = b"".join(path.read_bytes() for path in sorted(self._records.glob("*.json")))
        return hashlib.sha256(whole).hexdigest()[:16]

    @property
    def captures(self) -> Path:
        """Folder of the recorded samples."""
        return self.path / "captures"

    @property
    def _records(self) -> Path:
        return self.path / "records"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers away while one is at work.

        Raises:
            CalibrationError: somebody else is at work.
        """
        path = self.path / "lock"
        with disk_errors(path, "lock"):
            file = path.open("a")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CalibrationError(
                    f"{self.path}: another process is calibrating into this folder", "wait for it, or end it"
                ) from error
            yield

    def save(self, result: Result, key: RadioKey, time: datetime | None = None) -> Record:
        """Write a record; older ones of the same step and radio stay.

        Args:
            result: of one of the steps in ``VALID_S``.
            key: what it holds for.
            time: when it was measured; None: now.

        Raises:
            RunError: the disk is full or the folder cannot be written.
            ValueError: an unknown step, or a curve of objects.
        """
        if result.step not in VALID_S:
            raise ValueError(f"no step {result.step!r}; use one of {', '.join(VALID_S)}")
        curves = {name: np.asarray(curve) for name, curve in result.curves.items()}
        if objects := [name for name, curve in curves.items() if curve.dtype.hasobject]:
            raise ValueError(f"{result.step} of {result.radio}: curves of objects: {', '.join(objects)}")
        blob = io.BytesIO()
        if curves:
            np.savez_compressed(blob, **curves)  # type: ignore[arg-type]
        measured = datetime.now(UTC) if time is None else time
        body = {
            "key": asdict(key),
            "time": _stamp(measured),
            "valid_s": VALID_S[result.step],
            "curves": sorted(curves),
            "result": result.to_json(),
        }
        path = self._free(f"{result.step}-{result.radio}")
        if curves:
            write_whole(path.with_suffix(".npz"), blob.getvalue())
        write_whole(path, _sealed(body, blob.getvalue()))
        return Record(result, key, measured, VALID_S[result.step], path.name)

    def _free(self, stem: str) -> Path:
        number = 1
        while True:
            path = self._records / (f"{stem}.json" if number == 1 else f"{stem}.{number}.json")
            if not path.exists() and not path.with_suffix(".npz").exists():
                return path
            number += 1

    def records(self, step: str = "*", radio: str = "*") -> dict[tuple[str, str], Record]:
        """Read the newest record of every step and radio, or of one: (step, radio) -> record.

        Raises:
            Damaged: one is not as it was written; the message names it.
        """
        newest: dict[tuple[str, str], Record] = {}
        paths = [path for tail in ("json", "*.json") for path in self._records.glob(f"{step}-{radio}.{tail}")]
        for path in sorted(set(paths), key=lambda path: (_number(path), path.name)):
            record = _read(path)
            place = (record.result.step, record.result.radio)
            if place not in newest or record.time >= newest[place].time:
                newest[place] = record
        return newest

    def passed(self, step: str, radio: str, key: RadioKey, now: datetime) -> Record | None:
        """Give the record of a step that need not be measured again: it passed and still holds; else None.

        Raises:
            Damaged: a record is not as it was written.
        """
        record = self.records(step, radio).get((step, radio))
        return record if record is not None and record.result.passed and record.holds(key, now) else None

    def conclude(self, verdict: Mapping[str, Any]) -> None:
        """Write the verdict, in words of JSON.

        Raises:
            RunError: the disk is full or the folder cannot be written.
        """
        body = {**self._head(), "finished": _stamp(datetime.now(UTC)), "verdict": dict(verdict)}
        write_whole(self.path / "calibration.json", _sealed(body))

    @property
    def verdict(self) -> dict[str, Any] | None:
        """What ``conclude`` wrote; None while the calibration is not finished.

        Raises:
            Damaged: the file is not as it was written.
        """
        found: dict[str, Any] | None = self._head()["verdict"]
        return found

    @property
    def started(self) -> datetime:
        """When the calibration began, UTC."""
        return datetime.fromisoformat(self._head()["started"])

    def _head(self) -> dict[str, Any]:
        return _unsealed(self.path / "calibration.json")[0]


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(path: Path) -> int:
    """Give the number in ``STEP-RADIO.7.json``."""
    last = path.stem.rsplit(".", 1)[-1]
    return int(last) if last.isdigit() else 1


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a record cannot hold a {type(value).__name__}: {value!r}")


def _digest(body: Mapping[str, Any], blob: bytes) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + blob).hexdigest()


def _sealed(body: Mapping[str, Any], blob: bytes = b"") -> bytes:
    """Give the bytes of a file that says its version, and the digest of its content and of ``blob``."""
    body = json.loads(json.dumps(body, default=_plain))  # as it will be read
    return json.dumps({"schema": SCHEMA, "sha256": _digest(body, blob), **body}, indent=1).encode() + b"\n"


def _unsealed(path: Path) -> tuple[dict[str, Any], bytes]:
    """Read what ``_sealed`` gave, and the curves beside it."""
    try:
        body = json.loads(path.read_bytes())
        schema, digest = body.pop("schema"), body.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"not a whole record: {error!r}") from error
    if schema != SCHEMA:
        raise Damaged(
            f"{path}: format {schema}, this program reads {SCHEMA}", "use the version that wrote it, or calibrate again"
        )
    blob, curves = b"", path.with_suffix(".npz")
    if body.get("curves"):
        try:
            blob = curves.read_bytes()
        except OSError as error:
            raise _damaged(curves, error.strerror or str(error)) from error
    if _digest(body, blob) != digest:
        raise _damaged(path, "SHA-256 of it and its curves differs from the one it was written with")
    return body, blob


def _damaged(path: Path, reason: str) -> Damaged:
    return Damaged(f"{path}: damaged: {reason}", "calibrate again into a new folder; this one is left as it is")


def _read(path: Path) -> Record:
    body, blob = _unsealed(path)
    try:
        curves = {}
        if blob:
            with NpzFile(io.BytesIO(blob)) as file:  # without leave to unpickle, as is its default
                curves = {name: file[name] for name in file.files}
        result = Result.from_json(body["result"], curves)
        key = RadioKey(**body["key"])
        return Record(result, key, datetime.fromisoformat(body["time"]), body["valid_s"], path.name)
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(path, repr(error)) from error
