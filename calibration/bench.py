"""The lab as calibration sees it: the server's radio here, nodes that do tasks, what is known so far; no process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from jaxtyping import Complex64

from calibration.captures import Sender, burst_parts, sounding_parts
from calibration.options import CalibrationOptions
from calibration.result import Finding, Result
from calibration.tasks import Reply, Task, Team, present
from radio.base import Capture
from radio.capture import Part
from radio.cycle import Cycle, layout, sounding_samples
from radio.errors import LinkError
from radio.ofdm import Profile
from radio.serverlink import ServerLink, Window
from radio.sync import Link, estimate_link, noise_of, sounding
from radio.uplink import Uplink

#: Slots of beacons in which nodes search for the server.
SEARCH_SLOTS = 100
#: What the time between beacon and burst grows by at most for a late node.
LATE_S = 5e-3
#: Beacons of one order: nodes of a simulated air must not run apart by more than its memory, nor orders take for ever.
PIECE_S = 30.0


class Again(Exception):
    """A step met something that passes: a late order, a stream that slipped. It is worth another try."""


class Failed(Exception):
    """A step cannot go on: its results, which hold what was found."""

    def __init__(self, results: Sequence[Result]) -> None:
        super().__init__(results)
        self.results = list(results)


@dataclass(frozen=True)
class Heard:
    """Soundings of one node.

    Attributes:
        grids: received pilots.
        raw: least-squares gains, for a pilot of amplitude 1 at the node's converter.
        links: smoothed estimates, as a run uses them.
        noises: noise variance per element as each sounding shows it.
        noise: the same over all soundings and nodes.
        times_s: server times of the soundings.
        horizon_s: from the end of the last beacon before to the middle of the sounding.
        sigma_rad: phase error that the node expected.
    """

    grids: Complex64[np.ndarray, "cycle symbol bin"]
    raw: Complex64[np.ndarray, "cycle bin"]
    links: list[Link]
    noises: np.ndarray
    noise: float
    times_s: np.ndarray
    horizon_s: float
    sigma_rad: float


@dataclass(frozen=True)
class Kept:
    """Samples worth keeping of a step, and the named parts of them."""

    captures: list[Capture]
    parts: tuple[Part, ...]


@dataclass(repr=False)  # asyncio writes out what its main task returns, to itself: 1.5 s for all the curves in here
class Bench:
    """One calibration in progress.

    Args:
        link: the server's radio and slot clock.
        names: nodes that take part.
        team: carries out tasks.
        options: how long and how often.
        mode: mapping that the experiment will use.
        before: beacons ahead of each burst.
        seed: of codes and known values.
        say: told what happens meanwhile.
        lead_samples: longest ``Capabilities.lead_samples`` of the nodes; grows when one is late.
        tries: how often the step that runs may still be tried again.
    """

    link: ServerLink
    names: tuple[str, ...]
    team: Team
    options: CalibrationOptions
    mode: str = "R"
    before: int = 3
    seed: int = 1
    say: Callable[[str], None] = lambda text: None
    lead_samples: int = 0
    tries: int = 0
    results: dict[tuple[str, str], Result] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    uplink: Uplink = field(init=False)
    locked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.uplink = Uplink(self.profile, self.mode, "phase", max(len(self.names), 1))

    @property
    def profile(self) -> Profile:
        """The waveform."""
        return self.link.profile

    def ask(self, step: str, tasks: Mapping[str, Task], span_s: float = 0.0) -> dict[str, Reply]:
        """Let nodes do their tasks.

        Raises:
            Again: a node could not, and may be asked again; one that was late gets more time.
            Failed: a node could not.
        """
        replies = self.team.ask(tasks, span_s)
        lost = {name: reply.failure for name, reply in replies.items() if reply.failure}
        late = max((reply.late_samples for reply in replies.values()), default=0)
        if late:
            self.lead_samples += min(late, round(LATE_S * self.profile.rate_hz))
        if lost:
            self.locked = False
            if self.tries:
                raise Again("; ".join(f"{name}: {reason}" for name, reason in lost.items()))
            raise Failed([_failed(step, name, reason) for name, reason in lost.items()])
        return replies

    def ask_all(self, step: str, task: Task, span_s: float = 0.0) -> dict[str, Reply]:
        """Let all nodes do the same task."""
        return self.ask(step, dict.fromkeys(self.names, task), span_s)

    def search(self, step: str, count: int) -> dict[str, Reply]:
        """Start the slot clock anew, let all nodes find the beacons, and follow ``count`` further ones.

        Raises:
            Failed: a node found none, or lost them.
        """
        self.ask_all(step, Task("present"))
        present(self.link.radio, self.link.settings())
        self.link.open()
        slots = self.profile.slot_samples
        first = self.link.beckon(SEARCH_SLOTS + count)
        wanted = np.arange(first + SEARCH_SLOTS, first + SEARCH_SLOTS + count)
        where = {"search_samples": SEARCH_SLOTS * slots, "from_slot": first}
        self.uplink.peers.clear()
        task = Task("listen", where, {"slots": wanted})
        try:
            heard = self.ask_all(step, task, (SEARCH_SLOTS + count) * self.slot_s)
        except Failed as failure:
            remedy = "check the antennas and cables of node and server, their gains, and that both use one carrier"
            found = [(r.radio, r.finding.text) for r in failure.results if r.finding is not None]
            raise Failed(
                [Result(step, name, finding=Finding("lock", text, remedy)) for name, text in found]
            ) from failure
        self.locked = True
        return heard

    @property
    def burst_horizon_s(self) -> float:
        """Time from the end of the last beacon before a burst to the middle of the burst."""
        cycle, profile = self.cycle(self.profile.burst_samples), self.profile
        last = (cycle.before - 1) * profile.slot_samples + profile.beacon_samples
        return (cycle.burst_at + profile.burst_samples / 2 - last) / profile.rate_hz

    @property
    def slot_s(self) -> float:
        """Length of a slot in seconds."""
        return self.profile.slot_samples / self.profile.rate_hz

    def listen(self, step: str, slots: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Send beacons in some slots, counted from the next one, and let all nodes measure them.

        Returns:
            For every node, arrays over the beacons it heard; ``slot`` is counted as in ``slots``.
        """
        piece = np.floor(slots * self.slot_s / PIECE_S).astype(int)
        gathered: dict[str, list[Mapping[str, np.ndarray]]] = {name: [] for name in self.names}
        base, done = self.link.next_slot(), 0
        for number in np.unique(piece):
            part = slots[piece == number]
            base = max(base, self.link.next_slot() - int(part[0]))  # real time may have gone on meanwhile
            for slot in part:
                self.link.send_beacons(base + int(slot), 1)
            task = Task("listen", {"search_samples": 0, "from_slot": 0}, {"slots": base + part})
            span_s = (int(part[-1]) + base - self.link.next_slot() + 2) * self.slot_s
            for name, reply in self.ask_all(step, task, max(span_s, 0.0) + PIECE_S).items():
                gathered[name].append({**reply.arrays, "slot": reply.arrays["slot"] - base})
            done += part.size
            self.say(f"{done} of {slots.size} beacons")
        return {
            name: {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            for name, parts in gathered.items()
        }

    def cycle(self, length_samples: int, lead_samples: int | None = None) -> Cycle:
        """Lay out a cycle for the slowest node, or for a longer time between beacon and burst."""
        lead = self.lead_samples if lead_samples is None else lead_samples
        return layout(self.profile, lead, self.before, length_samples)

    def sound(
        self, step: str, cycles: int, names: Sequence[str] = (), lead_samples: int | None = None
    ) -> dict[str, Heard]:
        """Let nodes send sounding pilots in shared windows, and receive them."""
        names = list(names or self.names)
        profile, length = self.profile, sounding_samples(self.profile)
        cycle = self.cycle(len(names) * length, lead_samples)
        first = self.link.schedule(cycle, cycles)
        drive = self.uplink.full_drive
        at = [cycle.burst_at + place * length + profile.guard_samples for place in range(len(names))]
        where = {"first_slot": first, "cycles": cycles, "cycle": asdict(cycle), "drive": drive}
        tasks = {name: Task("sound", {**where, "at": at[place]}) for place, name in enumerate(names)}
        replies = self.ask(step, tasks, cycles * cycle.slots * self.slot_s)
        pilots = sounding(profile)
        rows: dict[str, list[Window]] = {name: [] for name in names}
        for number in range(cycles):
            for place, name in enumerate(names):
                rows[name].append(self.link.window(first + number * cycle.slots, at[place], 2))
        ended = first + (cycles - 1) * cycle.slots
        captures = [row[-1].capture for row in rows.values()]
        self.kept[step] = Kept(captures, sounding_parts(profile, captures[0].start, ended, self._senders(names)))
        # null bins of all places and cycles together: one window's alone would be 0.3 dB off
        noise = float(np.mean([noise_of(window.nulls) for row in rows.values() for window in row]))
        starts_s = (first + np.arange(cycles) * cycle.slots) * self.slot_s
        last = (cycle.before - 1) * profile.slot_samples + profile.beacon_samples
        heard = {}
        for place, name in enumerate(names):
            grids = np.stack([window.grid for window in rows[name]])
            heard[name] = Heard(
                grids,
                np.mean(np.conj(pilots) * grids, axis=1) / np.float32(drive),
                [_estimate(step, name, grid, pilots, noise, profile) for grid in grids],
                np.array([noise_of(window.nulls) for window in rows[name]]),
                noise,
                starts_s + at[place] / profile.rate_hz,
                (at[place] + profile.symbol_samples - last) / profile.rate_hz,
                max(replies[name].told["sigma_rad"]),
            )
        return heard

    def burst(
        self,
        step: str,
        names: Sequence[str],
        seeds: Sequence[int],
        precoder: str,
        signs: Mapping[str, int],
        drive: float,
    ) -> list[Window]:
        """Let nodes send whole bursts of known values at the same time, one per seed, and receive the sums.

        Args:
            step: for what is found.
            names: nodes that send.
            seeds: of the values.
            precoder: ``phase`` or ``inversion``.
            signs: of nodes that send the same values as each other, +1 or -1; empty: every node sends its own.
            drive: factor on every node's amplitude.
        """
        cycle = self.cycle(self.profile.burst_samples)
        first = self.link.schedule(cycle, len(seeds))
        places = {name: self.names.index(name) for name in names}
        tasks = {
            name: Task(
                "send",
                {
                    "first_slot": first,
                    "cycle": asdict(cycle),
                    "seeds": list(seeds),
                    "mode": self.mode,
                    "precoder": precoder,
                    "drive": drive * (self.uplink.level if precoder == "inversion" else self.uplink.drive(name)),
                    "shift": place,
                    "shifts": max(len(self.names), 1),
                    "author": 0 if signs else place,
                    "sign": signs.get(name, 1),
                    "advance_samples": self.uplink.peers[name].advance_samples,
                },
                {"gain": self.uplink.peers[name].gain},
            )
            for name, place in places.items()
        }
        self.ask(step, tasks, len(seeds) * cycle.slots * self.slot_s)
        windows = [
            self.link.window(first + number * cycle.slots, cycle.burst_at, self.profile.burst_symbols)
            for number in range(len(seeds))
        ]
        last, capture = first + (len(seeds) - 1) * cycle.slots, windows[-1].capture
        start = capture.start + self.profile.guard_samples
        self.kept[step] = Kept([capture], burst_parts(self.profile, start, last, self._senders(names)))
        return windows

    def _senders(self, names: Sequence[str]) -> list[Sender]:
        """Tell what is known of each node that sends."""
        senders = []
        for name in names:
            peer = self.uplink.peers.get(name)
            if peer is None:
                senders.append(Sender(name))
                continue
            middle = peer.gain[peer.gain.size // 2]
            senders.append(Sender(name, peer.advance_samples, decibels(peer.power), float(np.angle(middle))))
        return senders

    def tell(self, step: str) -> None:
        """Hand the server's view of each uplink to its node."""
        tasks = {}
        for name, peer in self.uplink.peers.items():
            detail = {"advance_samples": peer.advance_samples, "drive": self.uplink.drive(name)}
            tasks[name] = Task("csi", detail, {"gain": peer.gain})
        self.ask(step, tasks)

    def ready(self, step: str) -> None:
        """See to it that all nodes hear the beacons and know their uplinks, as a run does before its first round."""
        if not self.locked:
            self.search(step, SEARCH_SLOTS // 2)
        if set(self.uplink.peers) != set(self.names):
            for name, heard in self.sound(step, 1).items():
                self.uplink.first_sounding(name, heard.links[0])
            self.tell(step)
            self.admit(step)

    def admit(self, step: str, cycles: int = 6) -> dict[str, Heard]:
        """Sound all nodes at the timing advance they have, and take the links as the server's own.

        Raises:
            Failed: a link is too weak beside the others.
        """
        heard = self.sound(step, cycles)
        refused = self.uplink.admit({name: each.links for name, each in heard.items()})
        if refused:
            remedy = "move it closer, raise its gain or check its antenna"
            raise Failed(
                [Result(step, name, finding=Finding("weak", reason, remedy)) for name, reason in refused.items()]
            )
        self.tell(step)
        return heard


def _failed(step: str, name: str, reason: str) -> Result:
    return Result(step, name, finding=Finding("lost", reason, "read the log of this node, and run the step again"))


def _estimate(step: str, name: str, grid: np.ndarray, pilots: np.ndarray, noise: float, profile: Profile) -> Link:
    try:
        return estimate_link(grid, pilots, noise, profile)
    except LinkError as error:
        raise Failed([Result(step, name, finding=Finding("weak", error.message, error.remedy))]) from error


def decibels(ratio: float) -> float:
    """Give a power ratio in dB, at least -200."""
    return 10 * math.log10(max(ratio, 1e-20))
