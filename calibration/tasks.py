"""A node's half of calibration: carries out one task on its own radio and tells what it saw; knows no other node.

Tasks and what they tell are plain values and arrays, so that they cross a process boundary as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from calibration.local import LOCAL, inventory
from calibration.options import CalibrationOptions
from calibration.preflight import preflight
from calibration.result import Result
from calibration.streams import restart
from radio.base import Radio, RadioConfig
from radio.cycle import Cycle
from radio.errors import ConfigError
from radio.nodelink import Csi, NodeLink
from radio.ofdm import Profile, assemble, canary, pilot
from radio.payload import Payload, Symbols
from radio.sync import sounding

#: Steps that one radio does alone.
ALONE = {**LOCAL, "inventory": inventory, "preflight": preflight}
#: What is kept of every beacon heard.
HEARD = (
    "slot",
    "reference",
    "phase_rad",
    "phase_sigma_rad",
    "cfo_hz",
    "cfo_sigma_hz",
    "index",
    "index_sigma",
    "snr_db",
    "gain",
)


@dataclass(frozen=True)
class Task:
    """What a node is to do: ``measure``, ``present``, ``listen``, ``sound``, ``csi`` or ``send``.

    Attributes:
        what: which of these.
        detail: its settings, JSON values.
        arrays: its arrays.
    """

    what: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What came of a task.

    Attributes:
        told: JSON values.
        arrays: arrays.
        failure: why the node could not do it; empty when it could.
        late_samples: by how much it was late, if that was why.
    """

    told: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    failure: str = ""
    late_samples: int = 0


@runtime_checkable
class Team(Protocol):
    """The nodes of a lab, wherever they run."""

    def ask(self, tasks: Mapping[str, Task], span_s: float) -> dict[str, Reply]:
        """Let every named node do its task, all at the same time, and wait; ``span_s`` is how long it lasts on air."""
        ...


def known_symbols(profile: Profile, mode: str, seed: int, author: int) -> Symbols:
    """Draw symbols of mean power 1 that fill one burst and that all who know the seed can compute.

    Args:
        profile: waveform.
        mode: R or C.
        seed: of the burst.
        author: whose symbols; two nodes with the same author send the same.
    """
    count = sum(profile.data_symbols) * len(profile.bins) // (2 if mode == "R" else 1)
    draw = np.random.default_rng([seed, 0xCA1, author])
    pairs = draw.standard_normal((2, count)).astype(np.float32)
    result: np.ndarray = ((pairs[0] + 1j * pairs[1]) / np.float32(np.sqrt(2.0))).astype(np.complex64)
    return result


def present(radio: Radio, config: RadioConfig) -> None:
    """Bring a radio on virtual time to where the others are: its time stands still while nobody asks it."""
    if not radio.capabilities.real_time:
        radio.configure(config)
        restart(radio, config)


def measure(step: str, radio: Radio, config: RadioConfig, options: CalibrationOptions, seed: int, name: str) -> Result:
    """Run a step that needs one radio alone."""
    if step in LOCAL and step != "inventory":
        present(radio, config)
    return ALONE[step](radio, config, options, seed, name)


def carry_out(link: NodeLink, task: Task) -> Reply:
    """Do one task.

    Raises:
        RadioError, LinkError, CalibrationError: the radio or the link failed.
        ConfigError: no such task.
    """
    doing = TASKS.get(task.what)
    if doing is None:
        raise ConfigError(f"no calibration task {task.what!r}; known are {', '.join(TASKS)}", "install one version")
    return doing(link, task.detail, task.arrays)


def _measure(link: NodeLink, detail: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Reply:
    """Run a step that needs this radio alone; whatever lock there was is gone afterwards."""
    link.csi = link.clock = link.tracker = None
    options = CalibrationOptions.model_validate(detail["options"])
    result = measure(detail["step"], link.radio, link.settings(), options, link.seed, detail["name"])
    return Reply(result.to_json(), result.curves)


def _present(link: NodeLink, detail: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Reply:
    """Be where the others are, before a search for beacons."""
    link.csi = link.clock = link.tracker = None
    present(link.radio, link.settings())
    return Reply()


def _listen(link: NodeLink, detail: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Reply:
    """Follow the beacons of the given slots, after a search for them if one is asked for."""
    slots = arrays["slots"].tolist()
    if detail["search_samples"]:
        locked = link.acquire(detail["search_samples"], detail["from_slot"])
        slots = [*range(locked + 1, slots[0]), *slots]
    first = int(arrays["slots"][0])
    fixes = [fix for slot in slots if (fix := link.listen(slot)) is not None and slot >= first]
    heard = {name: np.array([getattr(fix, name) for fix in fixes], np.float64) for name in HEARD}
    heard["tuned_hz"] = np.full(len(fixes), link.tuned_hz)
    return Reply({"offset": link.offset}, heard)


def _sound(link: NodeLink, detail: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Reply:
    """Send sounding pilots in this node's place of each cycle."""
    cycle, first = Cycle(**detail["cycle"]), detail["first_slot"]
    pilots = sounding(link.profile) * np.float32(detail["drive"])
    sent = [link.follow(first + n * cycle.slots, cycle, pilots, detail["at"]) for n in range(detail["cycles"])]
    return Reply(
        {"sigma_rad": [sigma for _, sigma in sent], "ppm": link.ppm},
        {"starts": np.array([report.start for report, _ in sent], np.int64)},
    )


def _csi(link: NodeLink, detail: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Reply:
    """Take what the server measured of this node's uplink."""
    link.csi = Csi(arrays["gain"], detail["advance_samples"], detail["drive"])
    return Reply()


def _send(link: NodeLink, detail: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Reply:
    """Send one whole burst of known values, once per cycle."""
    cycle, mode = Cycle(**detail["cycle"]), detail["mode"]
    link.csi = Csi(arrays["gain"], detail["advance_samples"], detail["drive"])
    sigma, starts = [], []
    for number, seed in enumerate(detail["seeds"]):
        symbols = detail["sign"] * known_symbols(link.profile, mode, seed, detail["author"])
        grid = Payload(link.profile, mode, symbols.size, seed, appended=False).fill(symbols.astype(np.complex64))
        mark = pilot(link.profile, detail["shift"], detail["shifts"])
        known = detail["sign"] * canary(link.profile, seed, detail["author"], mode)
        burst = link.precode(assemble(grid[0], mark, known.astype(np.complex64)), detail["precoder"])
        report, doubt = link.follow(detail["first_slot"] + number * cycle.slots, cycle, burst)
        sigma.append(doubt)
        starts.append(report.start)
    return Reply({"sigma_rad": sigma}, {"starts": np.array(starts, np.int64)})


TASKS = {"measure": _measure, "present": _present, "listen": _listen, "sound": _sound, "csi": _csi, "send": _send}
