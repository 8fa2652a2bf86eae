"""Knows every message that crosses the wire, and its bytes; knows nothing of sockets and of what is done about it.

A message is one frame of JSON (the header: protocol version, run, round, sequence, kind, and the fields of its kind)
and one frame of safetensors for arrays, empty when there are none. Nothing here can execute code on reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from radio.cycle import Cycle
from radio.errors import LinkError, ProtocolMismatch

__all__ = [
    "PROTOCOL",
    "Ack",
    "Csi",
    "CycleTimes",
    "Header",
    "Heartbeat",
    "Hello",
    "Measure",
    "Measured",
    "Message",
    "Nack",
    "Plan",
    "Refused",
    "RefusedCode",
    "Report",
    "Scale",
    "Sent",
    "Sound",
    "Stop",
    "StreamTrouble",
    "Train",
    "Welcome",
    "as_cycle",
    "as_times",
    "decode",
    "encode",
]

PROTOCOL = 1  # raised whenever a kind or a field changes its meaning

Arrays = Mapping[str, np.ndarray]
Count = Annotated[int, Field(ge=0)]
RefusedCode = Literal["protocol", "not-trusted", "replaced", "hello-first", "other"]


class Header(BaseModel):
    """What every message carries: to which run and round it belongs, and its place in the sender's sequence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = ""
    round: Count = 0
    sequence: Count = 0


class Hello(Header):
    """Node -> server: who I am and what my radio can do. Late: not admitted."""

    kind: Literal["hello"] = "hello"
    name: str
    serial: str
    tier: str
    driver: str = ""
    rate_hz: float = Field(gt=0)
    turnaround_samples: Count
    block_samples: Count = 0
    one_timeline: bool
    shared_reference: bool = False
    safety_hash: str = ""
    software: str = ""
    checkpoint_rounds: tuple[int, ...] = ()  # rounds whose memory this node has on disk, for resuming


class Welcome(Header):
    """Server -> node: admitted, with everything a node needs to know of the run."""

    kind: Literal["welcome"] = "welcome"
    experiment: dict[str, Any]
    client: Count  # index of this node's client, its place in the lab file
    nodes: Annotated[int, Field(ge=1)]
    shift: Count  # cyclic shift of its verification pilot
    shifts: Annotated[int, Field(ge=1)]
    run_identity: str  # memories of another run are not used
    resume_round: int | None = None  # load the memory as it was after this round; None: start with none
    restored: bool = False  # the air kept running: take up the saved link instead of being sounded anew
    adev: float | None = Field(default=None, gt=0)  # Allan deviation that calibration measured; None: waveform.adev
    learns: bool = True  # false: a calibration, which needs the radio and no client


class CycleTimes(BaseModel):
    """One cycle on the air, as ``radio.cycle.Cycle``: beacons first, then a burst, in server samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: Annotated[int, Field(ge=1)]
    beacons: Annotated[int, Field(ge=1)]
    burst_at: Count
    slots: Annotated[int, Field(ge=1)]


def as_times(cycle: Cycle) -> CycleTimes:
    """Turn the radio's form of a cycle into the wire's."""
    return CycleTimes(before=cycle.before, beacons=cycle.beacons, burst_at=cycle.burst_at, slots=cycle.slots)


def as_cycle(times: CycleTimes) -> Cycle:
    """Turn the wire's form of a cycle into the radio's."""
    return Cycle(times.before, times.beacons, times.burst_at, times.slots)


class Sound(Header):
    """Server -> node: listen to beacons, and send your sounding pilots in this place of each cycle's window."""

    kind: Literal["sound"] = "sound"
    first_slot: Count
    cycles: Annotated[int, Field(ge=1)] = 1
    cycle: CycleTimes
    place: Count = 0
    drive: float = Field(default=1.0, gt=0)
    search_samples: Count = 0  # search this long for the beacons first; 0: the lock holds


class Csi(Header):
    """Server -> node: the slow constant of your uplink. Arrays: ``gain`` complex64 (bins,)."""

    kind: Literal["csi"] = "csi"
    timing_advance_samples: float = 0.0
    drive: float = Field(default=1.0, ge=0)  # slow power control: amplitude that equalises the nodes
    final: bool = True  # false: only the timing advance is known yet, more soundings follow


class Measure(Header):
    """Server -> node: do one task of a calibration (``calibration.tasks.Task``). Arrays: those of the task."""

    kind: Literal["measure"] = "measure"
    what: str
    detail: dict[str, Any] = {}


class Measured(Header):
    """Node -> server: what came of it. Arrays: what was seen; never anything of a client's data."""

    kind: Literal["measured"] = "measured"
    told: dict[str, Any] = {}


class Train(Header):
    """Server -> node: compute your update from these parameters. Arrays: ``theta`` float32 (d,)."""

    kind: Literal["train"] = "train"
    clients: tuple[str, ...]  # names of those who take part


class Scale(Header):
    """Node -> server: my update is ready, and these are the scalars you need to plan. Late: excluded this round.

    Arrays: none, except ``symbols`` complex64 (M,) under a scheme that says that it does not use the air.
    """

    kind: Literal["scale"] = "scale"
    norm_squared: float = Field(ge=0)
    nonzeros: Count = 0
    seconds_train: float = Field(default=0.0, ge=0)
    checksums: tuple[float, ...] = ()  # digital checksums of the unscaled symbols


class Plan(Header):
    """Server -> node: send. A node that cannot keep it answers with Nack."""

    kind: Literal["plan"] = "plan"
    first_slot: Count
    cycle: CycleTimes
    bursts: Annotated[int, Field(ge=1)]
    scale: float = Field(gt=0)  # common amplitude of the scheme
    level: float = Field(gt=0)  # common amplitude per element at the server's converter
    drive: float = Field(ge=0)
    shift: Count
    shifts: Annotated[int, Field(ge=1)]
    mode: Literal["R", "C"]
    precoder: Literal["phase", "inversion", "none"]
    floor: float = Field(default=0.0, ge=0)  # link amplitude below which the data of a bin are silent
    appended: bool = False  # analog checksums ride behind the payload
    seed: Count
    attempt: Count = 0  # 1 and up: the same burst again, after a voided one


class StreamTrouble(BaseModel):
    """One event of a radio's stream, as ``radio.base.StreamEvent``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    index: int
    count: int


class Sent(Header):
    """Node -> server: what left my antenna, and how sure I was of its phase."""

    kind: Literal["sent"] = "sent"
    sigma_rad: float = Field(default=0.0, ge=0)
    clipped: Count = 0
    snr_db: float | None = None
    cfo_hz: float | None = None
    ppm: float | None = None
    starts: tuple[int, ...] = ()  # TX index of each burst
    troubles: tuple[StreamTrouble, ...] = ()


class Nack(Header):
    """Node -> server: I shall not do this, and why."""

    kind: Literal["nack"] = "nack"
    of: str  # kind of the order
    reason: str
    late_samples: Count = 0


class Report(Header):
    """Server -> all: how the round went, and what each node's link must absorb."""

    kind: Literal["report"] = "report"
    verdict: Literal["accept", "partial", "void"]
    verdicts: dict[str, str] = {}  # per node: ok, missing, phase, timing, cfo, gain
    innovations: dict[str, tuple[float, float, float]] = {}  # per node: turn_rad, stretch, delay_samples
    again: bool = False  # the burst is sent once more: keep it
    save: bool = True  # write a checkpoint
    nmse_canary_db: float | None = None


class Ack(Header):
    """Either way: done. ``of`` names the kind that is answered."""

    kind: Literal["ack"] = "ack"
    of: str
    detail: dict[str, float] = {}


class Stop(Header):
    """Server -> all: mute and end."""

    kind: Literal["stop"] = "stop"
    reason: str


class Heartbeat(Header):
    """Both ways: alive. Its ``sequence`` counts heartbeats."""

    kind: Literal["heartbeat"] = "heartbeat"


class Refused(Header):
    """Server -> node: no, and why. ``hello-first``: this server does not know the connection, say Hello again."""

    kind: Literal["refused"] = "refused"
    code: RefusedCode = "other"
    reason: str


Message = (
    Hello | Welcome | Sound | Csi | Measure | Measured | Train | Scale | Plan | Sent | Nack | Report | Ack | Stop
    | Heartbeat | Refused
)  # fmt: skip
_ANY: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode(message: Message, arrays: Arrays | None = None) -> list[bytes]:
    """Write a message as two frames: JSON header, safetensors blob (empty without arrays).

    Args:
        message: one of the kinds.
        arrays: name -> array of any shape; float, integer, bool, complex64.

    Raises:
        LinkError: an array has a type that safetensors cannot hold.
    """
    # nan and infinity pass as the JavaScript words that Python's json reads back
    head = json.dumps({"protocol": PROTOCOL, **message.model_dump(mode="json")}, separators=(",", ":"))
    if not arrays:
        return [head.encode(), b""]
    try:
        blob = save_arrays({name: np.asarray(array, order="C") for name, array in arrays.items()})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        types = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        raise LinkError(
            f"message {message.kind}: cannot send arrays {types}: {error}", "send float32 or complex64"
        ) from error
    return [head.encode(), blob]


def decode(frames: Sequence[bytes]) -> tuple[Message, dict[str, np.ndarray]]:
    """Read the frames of ``encode``.

    Raises:
        ProtocolMismatch: the sender speaks another version; the message holds both numbers.
        LinkError: not a message of ours: wrong number of frames, broken JSON, unknown kind or field, broken blob.
    """
    remedy = "check what connects to this port"
    if len(frames) != 2:
        raise LinkError(f"malformed message: {len(frames)} frames, expected 2", remedy)
    try:
        head = json.loads(frames[0])
    except (ValueError, RecursionError) as error:
        raise LinkError(
            f"malformed message: header is not JSON: {error}", "check what connects to this port"
        ) from error
    if not isinstance(head, dict):
        raise LinkError("malformed message: header is not a JSON object", remedy)
    theirs = head.pop("protocol", None)
    if theirs != PROTOCOL:
        raise ProtocolMismatch(
            f"peer speaks protocol {theirs}, this side speaks {PROTOCOL}", "install the same version on both machines"
        )
    try:
        message = _ANY.validate_python(head)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "header"
        raise LinkError(
            f"malformed message of kind {head.get('kind')!r}: {where}: {first['msg']}",
            "install the same version on both machines",
        ) from error
    if not frames[1]:
        return message, {}
    try:
        return message, load_arrays(bytes(frames[1]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise LinkError(f"malformed message {message.kind}: arrays: {error}", "send it again") from error
