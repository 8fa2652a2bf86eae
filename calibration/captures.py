"""Samples of a calibration as annotated recordings: parts of a frame, and what is known of who sent; hears no radio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from radio.base import Capabilities, Capture, RadioConfig
from radio.capture import SUFFIX, About, Part, Scalar, write
from radio.cycle import sounding_samples
from radio.errors import RadioError
from radio.ofdm import Profile

__all__ = ["Sender", "burst_parts", "record", "sounding_parts"]


@dataclass(frozen=True)
class Sender:
    """What is known of one node whose samples are in a recording.

    Attributes:
        node: its name.
        advance_samples: timing advance that it applied.
        gain_db: rms of its link estimate C(f), full scale to full scale.
        phase_rad: phase of C(f) in the middle of the band.
        reference_slot: slot of the beacon that this phase is referred to.
        shift: of its verification pilots.
    """

    node: str
    advance_samples: float | None = None
    gain_db: float | None = None
    phase_rad: float | None = None
    reference_slot: int | None = None
    shift: int | None = None

    def facts(self) -> dict[str, Scalar]:
        """Give what is known as facts of an annotation."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def sounding_parts(profile: Profile, start: int, slot: int, senders: Sequence[Sender]) -> tuple[Part, ...]:
    """Name the places of a sounding window.

    Args:
        profile: waveform.
        start: RX index at which the first place begins, its guard included.
        slot: first slot of the cycle.
        senders: nodes in the order of their places.
    """
    length, guard = sounding_samples(profile), profile.guard_samples
    return tuple(
        Part(
            start + place * length + guard,
            length - 2 * guard,
            f"sounding {sender.node}",
            {"slot": slot, "place": place, **sender.facts()},
        )
        for place, sender in enumerate(senders)
    )


def burst_parts(profile: Profile, start: int, slot: int, senders: Sequence[Sender]) -> tuple[Part, ...]:
    """Name the parts of a burst, and whose waves are in it.

    Args:
        profile: waveform.
        start: RX index of the first sample of the burst, its guard excluded.
        slot: first slot of the cycle.
        senders: nodes whose waves are in it; one that tells no shift has that of its place here.
    """
    before, after = profile.data_symbols
    parts = []
    position = start
    for label, symbols in (("V0", 1), ("data", before), ("M", 1), ("data", after), ("V1", 1), ("canary", 1)):
        count = symbols * profile.symbol_samples
        parts.append(Part(position, count, label, {"slot": slot}))
        position += count
    whole = profile.burst_samples
    return (
        *parts,
        *(
            Part(start, whole, f"from {sender.node}", {"slot": slot, "shift": shift, **sender.facts()})
            for shift, sender in enumerate(senders)
        ),
    )


def record(
    folder: Path,
    name: str,
    captures: Iterable[Capture],
    config: RadioConfig,
    able: Capabilities,
    parts: Sequence[Part],
    facts: Mapping[str, Scalar],
    time: datetime | None = None,
) -> Path:
    """Write what one radio received; a recording of this name that exists stays, and the new one gets a number.

    Settings, tier, serial and driver of the radio are written along.

    Args:
        folder: made if absent.
        name: of the recording, without ending.
        captures: in the order of their indices.
        config: settings of the radio.
        able: what it declares.
        parts: named stretches.
        facts: scalars worth keeping: ``node`` (the receiver), ``waveform``, ``seed``, ``calibration`` (its hash),
            ``temperature_c``.
        time: of the first sample; None when unknown.

    Returns:
        Path of the metadata.

    Raises:
        RadioError: it cannot be written, or nothing was captured.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RadioError(f"{folder}: cannot be made: {error.strerror or error}", "choose another folder") from error
    path, number = folder / f"{name}{SUFFIX}", 1
    while path.exists() or path.with_suffix(".sigmf-data").exists():
        number += 1
        path = folder / f"{name}.{number}{SUFFIX}"
    return write(path, captures, About(config, able, time, tuple(parts), facts))
