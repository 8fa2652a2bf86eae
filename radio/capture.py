"""Recordings as SigMF files, written and read; knows files and sample indices, no device and no waveform.

Format: SigMF 1.x (https://sigmf.org). Samples are ``cf32_le`` or ``ci16_le`` with full scale 1.0. Each stretch of
contiguous samples is a SigMF capture whose ``core:global_index`` is the receive index of its first sample. Parts of a
frame, and whatever spoiled samples, are annotations. What SigMF has no word for stands in the ``aircomp`` namespace.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from radio.base import Capabilities, Capture, RadioConfig, Samples, StreamEvent, Tier
from radio.errors import RadioError, RadioNotFound

SUFFIX = ".sigmf-meta"
NAMESPACE = "aircomp"
RAIL = 1.0 - 2.0**-11  # the top code of a 12-bit converter
Scalar = str | int | float | bool | None
Datatype = Literal["cf32_le", "ci16_le"]
KNOWN = {*(f.name for f in fields(Capabilities)), *(f.name for f in fields(RadioConfig)), "samples"}
IN_PARTS = {"start", "count", "event"}


@dataclass(frozen=True)
class Part:
    """A stretch with a name: ``count`` samples from receive index ``start``, and scalars worth keeping with it."""

    start: int
    count: int
    label: str
    facts: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """What a recording says of itself.

    Attributes:
        config: settings of the radio; a gain that nobody wrote down is not-a-number.
        capabilities: what the radio declared.
        time: of the first sample; None when unknown.
        parts: named stretches.
        facts: scalars worth keeping with the recording; infinities are left out.
    """

    config: RadioConfig
    capabilities: Capabilities
    time: datetime | None = None
    parts: tuple[Part, ...] = ()
    facts: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """Contiguous samples: ``count`` from ``position`` in the file, which is receive index ``start``."""

    position: int
    start: int
    count: int

    @property
    def end(self) -> int:
        """Receive index just past the last sample."""
        return self.start + self.count


def write(path: Path, captures: Iterable[Capture], about: About, datatype: Datatype = "cf32_le") -> Path:
    """Write captures of one radio, in the order of their indices, as one recording.

    Args:
        path: of the metadata, ending in ``.sigmf-meta``; the samples go beside it as ``.sigmf-data``.
        captures: taken one by one, so a generator may record more than memory holds.
        about: what to say of the radio; ``about.config.rate_hz`` is the rate of every capture.
        datatype: ``ci16_le`` takes half the space and rounds to 2^-15 of full scale.

    Returns:
        ``path``.

    Raises:
        RadioError: the files exist or cannot be written, nothing was captured, or captures do not follow each other.
    """
    import sigmf

    if path.suffix != SUFFIX:
        raise RadioError(f"{path}: a recording is named *{SUFFIX}", f"write {path.stem}{SUFFIX}")
    data = path.with_suffix(".sigmf-data")
    if path.exists() or data.exists():
        raise RadioError(f"{path}: this recording exists", "choose another name")
    if taken := (KNOWN & set(about.facts)) | {name for part in about.parts for name in IN_PARTS & set(part.facts)}:
        raise RadioError(f"{path}: {sorted(taken)} are names of the format", "give these facts other names")
    try:
        segments, events = _write_samples(data, captures, about.config.rate_hz, datatype)
        told = {**asdict(about.capabilities), **asdict(about.config), "samples": sum(s.count for s in segments)}
        found = sigmf.SigMFFile(
            data_file=data,
            global_info={
                "core:datatype": datatype,
                "core:sample_rate": about.config.rate_hz,
                "core:hw": f"{about.capabilities.driver}, serial {about.capabilities.serial}",
                "core:recorder": "air-meta-pfl",
                "core:extensions": [{"name": NAMESPACE, "version": "1.0.0", "optional": True}],
                **_namespaced({**about.facts, **told}),
            },
        )
        for segment in segments:
            entry: dict[str, Any] = {"core:global_index": segment.start, "core:frequency": about.config.rx_hz}
            if about.time is not None:
                later = timedelta(seconds=(segment.start - segments[0].start) / about.config.rate_hz)
                entry["core:datetime"] = (about.time + later).astimezone(UTC).isoformat().replace("+00:00", "Z")
            found.add_capture(segment.position, entry)
        named = [Part(e.index, e.count, e.kind, {"event": e.kind}) for e in events]
        for part in (*about.parts, *named):
            begin, end = _position(segments, part.start), _position(segments, part.start + part.count)
            exact = {
                "core:label": part.label,
                f"{NAMESPACE}:start": int(part.start),
                f"{NAMESPACE}:count": int(part.count),
            }
            found.add_annotation(begin, end - begin, exact | _namespaced(part.facts))
        found.validate()
        unfinished = path.with_suffix(".unfinished")  # metadata come last, and whole: they make it a recording
        unfinished.write_text(found.dumps() + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        data.unlink(missing_ok=True)
        raise RadioError(f"{path}: cannot be written: {error.strerror or error}", "free some space there") from error
    except RadioError:
        data.unlink(missing_ok=True)
        raise
    return path


def _write_samples(
    path: Path, captures: Iterable[Capture], rate_hz: float, datatype: str
) -> tuple[list[Segment], list[StreamEvent]]:
    segments: list[Segment] = []
    events: dict[StreamEvent, None] = {}  # captures that touch the same loss both carry it
    written = 0
    with path.open("xb") as sink:
        for capture in captures:
            if capture.rate_hz != rate_hz:
                raise RadioError(
                    f"{path}: a capture of {capture.rate_hz:g} S/s in a recording of {rate_hz:g} S/s",
                    "write one recording per rate",
                )
            reached = segments[-1].end if segments else capture.start
            if capture.start < reached:
                raise RadioError(
                    f"{path}: a capture from index {capture.start} follows one that ended at {reached}",
                    "give captures in the order of their indices",
                )
            if not segments or capture.start > reached:
                segments.append(Segment(written, capture.start, 0))
            sink.write(_encode(capture.samples, datatype))
            written += capture.samples.size
            segments[-1] = replace(segments[-1], count=written - segments[-1].position)
            events.update(dict.fromkeys(capture.events))
    if written == 0:
        raise RadioError(f"{path}: no samples to write", "receive some first")
    return segments, list(events)


def _encode(samples: Samples, datatype: str) -> bytes:
    plain = np.ascontiguousarray(samples, dtype="<c8")
    if datatype == "cf32_le":
        return plain.tobytes()
    return np.clip(np.rint(plain.view("<f4") * 2.0**15), -(2**15), 2**15 - 1).astype("<i2").tobytes()


def _namespaced(facts: Mapping[str, Any]) -> dict[str, Scalar]:
    """Put scalars under our namespace, without infinities and not-a-number, which JSON does not have."""
    finite = {name: value for name, value in facts.items() if not isinstance(value, float) or math.isfinite(value)}
    return {f"{NAMESPACE}:{name}": value for name, value in finite.items()}


def _position(segments: list[Segment], index: int) -> int:
    """Give the place in the file of a receive index; indices that were not recorded fall on the next that was."""
    for segment in segments:
        if index < segment.end:
            return segment.position + max(0, index - segment.start)
    return segments[-1].position + segments[-1].count


class _Words(BaseModel):
    """Base of what is read from a SigMF file: core keys, strictly typed; other keys are left alone."""

    model_config = ConfigDict(alias_generator=lambda name: f"core:{name}", extra="allow", allow_inf_nan=False)


class _Global(_Words):
    datatype: Datatype
    sample_rate: float = Field(gt=0)
    hw: str = ""
    recorder: str = "unknown"
    num_channels: Literal[1] = 1
    offset: Literal[0] = 0


class _Capture(_Words):
    sample_start: int = Field(ge=0)
    global_index: int | None = Field(None, ge=0)
    frequency: float | None = Field(None, ge=0)
    datetime: AwareDatetime | None = None
    header_bytes: Literal[0] = 0


class _Annotation(_Words):
    sample_start: int = Field(ge=0)
    sample_count: int = Field(0, ge=0)
    label: str = ""


class Recording:
    """A recording, opened for reading; its samples stay in the file until they are asked for.

    Args:
        path: of the metadata, ``*.sigmf-meta``.
        verify: compare the samples with their hash, which reads them all.

    Attributes:
        about: what it says of itself.
        segments: its contiguous stretches, in order.
        events: what spoiled its samples.

    Raises:
        RadioNotFound: there is no such file; the message lists the recordings beside it.
        RadioError: it is no SigMF recording, or one that was cut or changed, or of a kind that is not supported.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        import sigmf

        self.path = path
        if path.suffix != SUFFIX or not path.is_file():
            beside = sorted(found.name for found in path.parent.glob(f"*{SUFFIX}"))
            raise RadioNotFound(
                f"{path}: no such recording; in that folder: {', '.join(beside) or 'none'}",
                f"name a file that ends in {SUFFIX}",
            )
        try:
            self._file: Any = sigmf.SigMFFile(metadata=json.loads(path.read_text(encoding="utf-8")))
            self._read()
            if verify and self._file.get_global_field("core:sha512") is not None:
                self._file.calculate_hash()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise self._bad(f"{where}: {first['msg']}, not {first['input']!r:.60}") from error
        except OSError as error:
            raise self._bad(error.strerror or str(error)) from error
        except (sigmf.error.SigMFError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._bad(f"it is not SigMF, or was changed ({type(error).__name__}: {error})") from error

    def _bad(self, why: str) -> RadioError:
        return RadioError(
            f"{self.path} cannot be replayed: {why}", "record it again, or copy both files from where it was recorded"
        )

    def _read(self) -> None:
        head = _Global.model_validate(self._file.get_global_info())
        found = [_Capture.model_validate(each) for each in self._file.get_captures()] or [
            _Capture.model_validate({"core:sample_start": 0})
        ]
        own, data = _own(head), self.path.with_suffix(".sigmf-data")
        width = 4 if head.datatype == "ci16_le" else 8
        size, rest = divmod(data.stat().st_size, width)
        wanted = own.get("samples", max(size, 1))
        if rest or size != wanted:
            raise self._bad(f"{data.name} has {size * width + rest} bytes, which are not {wanted} samples of {width}")
        ends = [each.sample_start for each in found[1:]] + [size]
        self.segments = [
            Segment(c.sample_start, c.sample_start if c.global_index is None else c.global_index, end - c.sample_start)
            for c, end in zip(found, ends, strict=True)
        ]
        for before, after in zip(self.segments, self.segments[1:], strict=False):
            if before.count <= 0 or before.end > after.start:
                raise self._bad(f"a capture at index {after.start} follows one from {before.start} to {before.end}")
        if self.segments[-1].count <= 0:
            raise self._bad(f"a capture begins at sample {self.segments[-1].position} of {size}")
        parts = [self._part(each) for each in self._file.get_annotations()]
        self.events = tuple(_event(part) for part in parts if "event" in part.facts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of annotations past the end, which do no harm
            self._file.set_data_file(data, skip_checksum=True)
        self.about = About(
            _config(own, head, found[0].frequency),
            _capabilities(own, head, self.path),
            found[0].datetime,
            tuple(part for part in parts if "event" not in part.facts),
            {name: value for name, value in own.items() if name not in KNOWN and isinstance(value, Scalar)},
        )

    def _part(self, annotation: dict[str, Any]) -> Part:
        read = _Annotation.model_validate(annotation)
        home = [segment for segment in self.segments if segment.position <= read.sample_start][-1]
        own = {name: value for name, value in _own(read).items() if isinstance(value, Scalar)}
        start = own.pop("start", home.start + read.sample_start - home.position)
        return Part(int(start or 0), int(own.pop("count", None) or read.sample_count), read.label, own)

    @property
    def start(self) -> int:
        """Receive index of the first sample."""
        return self.segments[0].start

    @property
    def end(self) -> int:
        """Receive index just past the last sample."""
        return self.segments[-1].end

    def read(self, start: int, count: int) -> Capture:
        """Take samples by their receive indices. What was not recorded is zero, and an event ``lost``.

        Raises:
            RadioError: the span reaches past the recording, or the file can no longer be read.
        """
        if start < self.start or start + count > self.end or count < 0:
            raise RadioError(
                f"{self.path} holds indices {self.start} to {self.end - 1}; asked for {count} from {start}",
                "ask for what it holds, or record longer",
            )
        samples, reached = np.zeros(count, np.complex64), start
        lost: list[StreamEvent] = []
        for segment in self.segments:
            begin, end = max(start, segment.start), min(start + count, segment.end)
            if begin < end:
                if begin > reached:
                    lost.append(StreamEvent("lost", reached, begin - reached))
                position = segment.position + begin - segment.start
                try:
                    samples[begin - start : end - start] = self._file.read_samples(position, end - begin)
                except (OSError, ValueError) as error:  # cut while it is open
                    raise self._bad(str(error)) from error
                reached = end
        if reached < start + count:
            lost.append(StreamEvent("lost", reached, start + count - reached))
        rails = int(((np.abs(samples.real) >= RAIL) | (np.abs(samples.imag) >= RAIL)).sum())
        here = [e for e in self.events if e.index < start + count and e.index + max(e.count, 1) > start]
        return Capture(samples, start, self.about.config.rate_hz, rails, (*here, *lost) if count else ())


def _own(read: _Words) -> dict[str, Any]:
    prefix = f"{NAMESPACE}:"
    extra = read.model_extra or {}
    return {key.removeprefix(prefix): value for key, value in extra.items() if key.startswith(prefix)}


def _event(part: Part) -> StreamEvent:
    return TypeAdapter(StreamEvent).validate_python(
        {"kind": part.facts["event"], "index": part.start, "count": part.count}
    )


def _config(own: Mapping[str, Any], head: _Global, frequency_hz: float | None) -> RadioConfig:
    """Read the settings; of a recording by another program, those that SigMF itself has words for."""
    centre_hz = frequency_hz or 0.0
    plain = RadioConfig(head.sample_rate, centre_hz, centre_hz, head.sample_rate, math.nan)
    told = {f.name: own[f.name] for f in fields(RadioConfig) if f.name in own}
    return TypeAdapter(RadioConfig).validate_python({**asdict(plain), **told, "rate_hz": head.sample_rate})


def _capabilities(own: Mapping[str, Any], head: _Global, path: Path) -> Capabilities:
    """Read what the radio declared; of an unknown radio, the least that any can do."""
    least = Capabilities(Tier.P0, head.hw or path.stem, head.recorder, head.sample_rate, 0, 1, True, False, False)
    told = {f.name: own[f.name] for f in fields(Capabilities) if f.name in own}
    return TypeAdapter(Capabilities).validate_python({**asdict(least), **told})
