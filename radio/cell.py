"""A whole cell in one process: one server, its nodes and their radios, without sockets or learning.

What the daemons do by messages happens here by calls, in the same order, for tests, benchmarks and measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Complex64

from radio.base import Radio
from radio.cycle import Cycle, layout, sounding_samples
from radio.errors import ConfigError, LinkError, SamplesLost
from radio.nodelink import Csi, NodeLink
from radio.ofdm import Profile, assemble, canary, pilot
from radio.payload import Payload, Symbols
from radio.serverlink import ServerLink
from radio.sync import sounding
from radio.uplink import Aggregate, Uplink

#: Slots of beacons that nodes may use to find the server, and soundings that measure link and phase error.
ACQUIRE_SLOTS, SOUNDINGS = 60, 6
Grid = Complex64[np.ndarray, "symbol bin"]


@dataclass(frozen=True)
class Outcome:
    """One round.

    Attributes:
        aggregate: what the server decoded.
        sigma_rad: phase errors that the nodes predicted.
        target: the sum that was aimed at; None on hardware, or when nobody sent.
        lost: nodes that could not send, each with the reason; they must join again.
        clipped: samples that the transmitters limited.
    """

    aggregate: Aggregate
    sigma_rad: Mapping[str, float]
    target: Symbols | None
    lost: Mapping[str, str]
    clipped: int


@dataclass
class Cell:
    """A server and its nodes.

    Args:
        server: the server's radio, opened.
        nodes: the nodes' radios by name, opened; sorted names fix positions and shifts.
        profile, mode, precoder: as agreed by all; under ``none`` symbols are not spread, and the server reads energies.
        rx_gain_db: receive gain of every radio.
        adev: Allan deviation that the trackers assume.
        threshold: share of its mean power below which an inverting node leaves a bin silent.
        before: beacons ahead of each burst.
    """

    server: Radio
    nodes: Mapping[str, Radio]
    profile: Profile
    mode: str = "R"
    precoder: str = "phase"
    rx_gain_db: float = 60.0
    adev: float = 3e-10
    threshold: float = 0.0
    before: int = 3
    seed: int = 1
    link: ServerLink = field(init=False)
    uplink: Uplink = field(init=False)
    links: dict[str, NodeLink] = field(init=False)
    lead_samples: int = field(init=False)

    def open(self) -> None:
        """Open every link and measure every TX-RX offset, the server's first.

        Raises:
            ConfigError: two radios have one serial: one device would be driven twice.
        """
        radios = {"server": self.server, **self.nodes}
        serials: dict[str, str] = {}
        for name, radio in radios.items():
            serial = radio.capabilities.serial
            if serial in serials:
                raise ConfigError(
                    f"{serials[serial]} and {name} are one radio, serial {serial}", "give every node a radio of its own"
                )
            serials[serial] = name
        self.link = ServerLink(self.server, self.profile, self.rx_gain_db, self.seed)
        self.link.open()
        self.uplink = Uplink(self.profile, self.mode, self.precoder, max(len(self.nodes), 1), self.threshold)
        self.links = {}
        for place, (name, radio) in enumerate(sorted(self.nodes.items())):
            node = NodeLink(radio, self.profile, self.rx_gain_db, self.adev, self.seed + 1 + place)
            node.open()
            self.links[name] = node
        self.lead_samples = max(radio.capabilities.lead_samples for radio in self.nodes.values())

    def join(self, names: Sequence[str] | None = None) -> dict[str, str]:
        """Acquire and sound nodes, all or those that lost their lock.

        Returns:
            The names that were not admitted, each with the reason.
        """
        names = list(self.links if names is None else names)
        cycle = layout(self.profile, self.lead_samples, self.before, len(names) * sounding_samples(self.profile))
        first = self.link.beckon(ACQUIRE_SLOTS)
        start = self.link.schedule(cycle, 1)
        refused = {}
        for place, name in enumerate(names):
            node = self.links[name]
            try:
                locked = node.acquire(ACQUIRE_SLOTS * self.profile.slot_samples, first)
                for slot in range(locked + 1, start):
                    node.listen(slot)
                self.sound(node, start, cycle, place)
            except (LinkError, SamplesLost) as error:
                refused[name] = error.message
        for name, heard in zip(names, self.link.sound(start, cycle, len(names)), strict=True):
            if name not in refused:
                self.links[name].csi = Csi(heard.gain, self.uplink.first_sounding(name, heard), self.uplink.full_drive)
        return refused | self.resound([name for name in names if name not in refused])

    def resound(self, names: Sequence[str]) -> dict[str, str]:
        """Measure the links of locked nodes again, and their phase errors.

        Returns:
            The names that were not admitted, each with the reason.
        """
        if not names:
            return {}
        cycle = layout(self.profile, self.lead_samples, self.before, len(names) * sounding_samples(self.profile))
        self.refresh()  # the estimate holds for the timing advance that the server knows
        start = self.link.schedule(cycle, SOUNDINGS)
        refused = {}
        for place, name in enumerate(names):
            try:
                for number in range(SOUNDINGS):
                    self.sound(self.links[name], start + number * cycle.slots, cycle, place)
            except (LinkError, SamplesLost) as error:
                refused[name] = error.message
                self.uplink.peers.pop(name, None)
        table = [self.link.sound(start + n * cycle.slots, cycle, len(names)) for n in range(SOUNDINGS)]
        heard = {name: [row[i] for row in table] for i, name in enumerate(names) if name not in refused}
        if heard:
            refused |= self.uplink.admit(heard)
        self.refresh()
        return refused

    def sound(self, node: NodeLink, slot: int, cycle: Cycle, place: int) -> None:
        """Let one node send its sounding pilots in its place of a sounding window."""
        at = cycle.burst_at + place * sounding_samples(self.profile) + self.profile.guard_samples
        node.follow(slot, cycle, sounding(self.profile) * np.float32(self.uplink.full_drive), at)

    def refresh(self) -> None:
        """Hand the server's view of each uplink to its node."""
        for name, peer in self.uplink.peers.items():
            self.links[name].csi = Csi(peer.gain, peer.advance_samples, self.uplink.drive(name))

    def round(
        self,
        symbols: Mapping[str, Symbols],
        number: int,
        appended: bool = False,
        tamper: Callable[[str, Grid], Grid] = lambda name, grid: grid,
    ) -> Outcome:
        """Send the symbols (mean power at most 1) of the given nodes at once and decode their sum.

        Args:
            symbols: complex64 (symbol,) by name.
            number: round number, for seeds.
            appended: append analog checksums.
            tamper: changes a node's precoded burst, to provoke faults.

        Raises:
            LinkError: no node could send.
        """
        ordered = sorted(symbols)
        everyone = sorted(self.links)
        payload = self.payload(len(symbols[ordered[0]]), number, appended)
        cycle = layout(self.profile, self.lead_samples, self.before, self.profile.burst_samples)
        first = self.link.schedule(cycle, payload.bursts)
        targets: list[np.ndarray] = []
        sigma: dict[str, float] = {}
        lost: dict[str, str] = {}
        clipped = 0
        for name in ordered:
            shift = everyone.index(name)
            node = self.links[name]
            assert node.csi is not None
            node.csi = Csi(node.csi.gain, node.csi.advance_samples, self.uplink.drive(name))
            grid = payload.fill(symbols[name])
            known = canary(self.profile, self.seed + number, shift, self.mode)
            for burst, data in enumerate(grid):
                whole = assemble(data, pilot(self.profile, shift, self.uplink.nodes_max), known)
                sent = tamper(name, node.precode(whole, self.precoder, self.uplink.floor(name)))
                try:
                    report, sigma[name] = node.follow(first + burst * cycle.slots, cycle, sent)
                except (LinkError, SamplesLost) as error:
                    lost[name] = error.message
                    break
                clipped += report.clipped
                if node.radio.witness is not None:
                    weight = self.weight(name, report.start)
                    grid[burst] = data * weight
            if name in lost:
                self.uplink.peers.pop(name, None)
            else:
                targets.append(grid)
        names = [name for name in ordered if name not in lost]
        if not names:
            raise LinkError(f"none of {len(ordered)} nodes could send: {lost}", "join them again")
        shifts = [everyone.index(name) for name in names]
        windows = [
            self.link.window(first + burst * cycle.slots, cycle.burst_at, self.profile.burst_symbols)
            for burst in range(payload.bursts)
        ]
        powers = {name: float(np.mean(np.abs(symbols[name]) ** 2)) for name in names}
        aggregate = self.uplink.decode(windows, names, payload, self.seed + number, shifts)
        for name, innovation in self.uplink.absorb(names, aggregate, powers).items():
            csi = self.links[name].csi
            assert csi is not None
            self.links[name].csi = csi.nudged(innovation.turn_rad, innovation.stretch, innovation.delay_samples)
        observed = all(self.nodes[name].witness is not None for name in names)
        target = payload.read(np.sum(targets, axis=0).astype(np.complex64))[0] if observed else None
        return Outcome(aggregate, sigma, target, lost, clipped)

    def payload(self, count: int, number: int, appended: bool = False) -> Payload:
        """Lay out ``count`` symbols of a round."""
        return Payload(self.profile, self.mode, count, self.seed + number, appended, self.precoder != "none")

    def weight(self, name: str, start: int) -> np.ndarray:
        """True arrival amplitude of a node per bin in units of the level; under inversion 1 where it sends."""
        if self.precoder == "inversion":
            return self.links[name].audible(self.uplink.floor(name))
        witness = self.nodes[name].witness
        assert witness is not None
        offsets_hz = np.asarray(self.profile.bins) * self.profile.spacing_hz
        true = witness.amplitude(name, self.server.name, start, offsets_hz)
        return (true * (self.uplink.drive(name) / self.uplink.level)).astype(np.float32)


def nmse_db(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Normalised mean square error in dB: ``10 log10(||estimate - truth||^2 / ||truth||^2)``."""
    return 10 * math.log10(float(np.sum(np.abs(estimate - truth) ** 2)) / float(np.sum(np.abs(truth) ** 2)))


def random_symbols(names: Sequence[str], count: int, rng: np.random.Generator) -> dict[str, Symbols]:
    """Draw independent Gaussian symbols of mean power 1 for each name."""
    return {
        name: ((rng.standard_normal(count) + 1j * rng.standard_normal(count)) / math.sqrt(2)).astype(np.complex64)
        for name in names
    }
