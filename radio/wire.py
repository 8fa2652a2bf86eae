"""How calls on the simulated air are written as JSON and raw bytes; knows arrays, events and errors, no socket."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from radio import errors
from radio.base import StreamEvent
from radio.errors import ConfigError, LinkError, TestbedError, TooLate

VERSION = 2  # of the protocol between an EtherServer and its clients


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[list[list[Any]], bytes]:
    """Lay arrays end to end as little-endian bytes, with a list of (name, type, shape) to read them back."""
    plain = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    for name, value in plain.items():
        if value.dtype.kind not in "biufc":
            raise ConfigError(f"array {name!r} is of type {value.dtype}, which does not travel", "send numbers")
    table = [[name, value.dtype.newbyteorder("<").str, list(value.shape)] for name, value in plain.items()]
    return table, b"".join(value.astype(value.dtype.newbyteorder("<"), copy=False).data for value in plain.values())


def unpack(table: list[list[Any]], blob: bytes) -> dict[str, np.ndarray]:
    """Read arrays back; a length that does not fit raises ValueError."""
    arrays, at = {}, 0
    for name, kind, shape in table:
        dtype = np.dtype(str(kind))
        if dtype.kind not in "biufc":
            raise ValueError(f"type {kind} does not travel")
        count = math.prod(map(int, shape))
        arrays[str(name)] = np.frombuffer(blob, dtype, count, at).reshape(shape).copy()
        at += count * dtype.itemsize
    return arrays


def read_events(listed: list[list[Any]]) -> tuple[StreamEvent, ...]:
    """Read events back from (kind, index, count)."""
    return tuple(StreamEvent(kind, int(index), int(count)) for kind, index, count in listed)


def index(start: int | None) -> int | None:
    """Turn a NumPy integer into one that JSON can carry."""
    return None if start is None else int(start)


def make_error(told: Mapping[str, Any]) -> TestbedError:
    """Make the error again that was raised in the air."""
    kind = getattr(errors, str(told["class"]), LinkError)
    if kind is TooLate:
        return TooLate(told["message"], told["remedy"], late_samples=int(told["late"]))
    return cast("TestbedError", kind(told["message"], told["remedy"]))
