"""One round on the air, from the nodes' scalars to a stepped model; knows the sum, never one node's update."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from calibration import NodeBudget, predict_nmse_db, signal_power
from radio.cell import nmse_db
from radio.cycle import layout
from radio.errors import CalibrationError, RadioError, SamplesLost
from radio.payload import Payload
from radio.serverlink import Window
from radio.uplink import Aggregate, Peer
from testbed import voided
from testbed.bus import Envelope
from testbed.config import round_seed
from testbed.messages import Plan, Report, Scale, Sent, as_times
from testbed.sounding import incoherent

if TYPE_CHECKING:
    from testbed.server import Server

Verdict = Literal["accept", "partial", "void"]
#: How often the same burst is sent when verification voids it.
ATTEMPTS = 3


@dataclass(frozen=True)
class RoundPlan:
    """What the server knows before the burst.

    Attributes:
        number: of the round.
        names: nodes with an update, in the order of the lab.
        scale: common amplitude of the scheme's symbols.
        powers: mean power of each node's scaled symbols, at most 1.
        checks: sum of the nodes' digital checksums of scaled symbols, or None.
        symbols: the nodes' summed scaled symbols under a scheme that does not use the air, or None.
        nmse_predicted_db: of the sum, from measured phase errors, link errors, noise and correlation so far.
        error: the same as a variance per symbol.
        seconds_train: of the slowest node.
        nonzeros: entries that the nodes send.
    """

    number: int
    names: tuple[str, ...]
    scale: float
    powers: Mapping[str, float]
    checks: np.ndarray | None
    symbols: np.ndarray | None
    nmse_predicted_db: float | None
    error: float
    seconds_train: float
    nonzeros: int

    @property
    def over_air(self) -> bool:
        """Whether symbols travel as radio samples."""
        return self.symbols is None

    @classmethod
    def make(cls, server: Server, number: int, answers: Mapping[str, Envelope]) -> RoundPlan | None:
        """Plan with the scalars that the nodes reported; None without any."""
        scales = {
            name: e.message for name, e in answers.items() if isinstance(e.message, Scale) and name in server.ready
        }
        if not scales:
            return None
        scheme = server.teacher.scheme
        scale = server.teacher.scale([s.norm_squared for s in scales.values()], number)
        powers = {name: scale**2 * s.norm_squared / scheme.symbols for name, s in scales.items()}
        symbols = predicted = checks = None
        error = 0.0
        if scheme.over_air:
            if scheme.precoder != "none":
                predicted, error = predict(server, powers)
            if all(s.checksums for s in scales.values()):
                sizes = [scale * server.uplink.arrival(name) for name in scales]
                checks = np.sum(
                    [a * np.array(s.checksums) for a, s in zip(sizes, scales.values(), strict=True)], axis=0
                )
        else:
            symbols = np.sum([scale * answers[name].arrays["symbols"] for name in scales], axis=0)
        return cls(
            number,
            tuple(scales),
            scale,
            powers,
            checks,
            symbols,
            predicted,
            error,
            max(s.seconds_train for s in scales.values()),
            sum(s.nonzeros for s in scales.values()),
        )


@dataclass(frozen=True)
class Decoded:
    """What came of a round: verdict, innovations for the nodes, and the facts of its event."""

    action: Verdict
    names: list[str]
    verdicts: Mapping[str, str]
    innovations: dict[str, tuple[float, float, float]]
    facts: dict[str, Any]


def predict(server: Server, powers: Mapping[str, float]) -> tuple[float, float]:
    """Predict the error of the sum from what was measured so far, before anything is sent: NMSE in dB, and variance."""
    uplink = server.uplink
    exact = uplink.precoder == "inversion"
    budgets = [
        NodeBudget(
            power * uplink.arrival(name) ** 2 * uplink.share(name),
            math.sqrt(uplink.peers[name].phase_variance),
            uplink.peers[name].sigma_eps if exact else 0.0,
        )
        for name, power in powers.items()
    ]
    rho = uplink.rho or 0.0
    nmse_db = predict_nmse_db("C" if uplink.mode == "C" else "R", budgets, uplink.noise / uplink.level**2, rho)
    return nmse_db, 10 ** (nmse_db / 10) * signal_power(budgets, rho)


FACTS = (
    "nmse_sum_db",
    "nmse_update_db",
    "nmse_dense_db",
    "nmse_canary_db",
    "nmse_checksum_db",
    "nmse_predicted_db",
    "snr_db",
    "phase_rms_rad",
)


def summary(number: int, decoded: Decoded | None, losses: list[dict[str, str]]) -> dict[str, Any]:
    """Build the fields of ``round-finished``."""
    facts: dict[str, Any] = dict.fromkeys(FACTS)
    facts |= {"bursts": 0, "channel_uses": 0, "seconds_train": 0.0, "seconds_air": 0.0, "seconds_decode": 0.0}
    names: list[str] = []
    if decoded is not None:
        facts |= decoded.facts
        names = decoded.names
    voided = decoded is None or decoded.action == "void"
    return {"round": number, "clients": names, **facts, "losses": losses, "voided": voided}


def hopeless(server: Server, names: Sequence[str]) -> dict[str, str]:
    """Name the nodes whose phase cannot be known well enough at the time of a burst, each with the reason.

    Raises:
        CalibrationError: all are, and the waves of no two of them would add up.
    """
    phases = {name: incoherent(server, name) for name in names}
    lost = {name: reason for name, reason in phases.items() if reason}
    if lost and len(lost) == len(names):
        worst = max(lost, key=lambda name: server.uplink.peers[name].phase_variance)
        raise CalibrationError(
            f"round {server.round}, node {worst}: {lost[worst]}",
            "use a lower carrier, a shared reference, a better crystal or a shorter turnaround",
        )
    return lost


async def run_burst(server: Server, plan: RoundPlan, losses: list[dict[str, str]]) -> Decoded:
    """Send, receive and decode one round's bursts; repeat a voided one; step the model with a usable one."""
    if plan.symbols is not None:
        scheme = server.teacher.scheme
        server.teacher.step(plan.symbols, plan.number, len(plan.names), plan.scale, 1.0, 1.0, 0.0)
        uses = scheme.uses if scheme.wired_power(len(plan.names)) else 0  # what its bits would take
        facts = {"seconds_train": plan.seconds_train, "channel_uses": uses}
        return Decoded("accept", list(plan.names), dict.fromkeys(plan.names, "ok"), {}, facts)
    for attempt in range(ATTEMPTS):
        decoded = await _attempt(server, plan, attempt, losses)
        if decoded is None or decoded.action != "void" or attempt == ATTEMPTS - 1:
            break
        for name in plan.names:
            await server.send(
                name,
                Report(verdict="void", verdicts=dict(decoded.verdicts), innovations=decoded.innovations, again=True),
            )
    if decoded is None:
        return Decoded("void", [], {}, {}, {"seconds_train": plan.seconds_train})
    return decoded


def payload_of(server: Server, number: int) -> Payload:
    """Lay out a round's payload as the nodes do; energies have no linear checksums."""
    waveform, scheme = server.experiment.waveform, server.teacher.scheme
    spread = scheme.precoder != "none"
    seed = round_seed(server.experiment.run.seed, number)
    return Payload(
        server.link.profile, waveform.mode, scheme.symbols, seed, spread and waveform.checksum == "analog", spread
    )


async def _attempt(server: Server, plan: RoundPlan, attempt: int, losses: list[dict[str, str]]) -> Decoded | None:
    """Order one transmission of a round and decode what arrives."""
    uplink, link = server.uplink, server.link
    names = [name for name in plan.names if name in server.ready]
    if not names:
        return None
    payload = payload_of(server, plan.number)
    cycle = layout(
        link.profile, server.lead_samples, server.experiment.waveform.beacons_per_cycle, link.profile.burst_samples
    )
    first = await asyncio.to_thread(link.schedule, cycle, payload.bursts)
    for name in names:
        order = Plan(
            first_slot=first,
            cycle=as_times(cycle),
            bursts=payload.bursts,
            scale=plan.scale,
            level=uplink.level,
            drive=uplink.drive(name),
            shift=server.names.index(name),
            shifts=len(server.names),
            mode=server.experiment.waveform.mode,
            precoder=server.teacher.scheme.precoder,
            floor=uplink.floor(name),
            appended=payload.appended,
            seed=payload.seed,
            attempt=attempt,
        )
        await server.send(name, order)
    sent = await server.gather(names, "sent", server.experiment.run.train_timeout_s)
    losses += [{"node": name, "reason": "did not send"} for name in names if name not in sent]
    names = [name for name in names if name in sent]
    if not names:
        return None
    begun = time.perf_counter()
    decode = _Decode(server, plan, payload, names, first, cycle.slots, cycle.burst_at)
    try:
        windows = await asyncio.to_thread(decode.receive)
        aggregate = await asyncio.to_thread(decode.aggregate, windows)
    except SamplesLost as error:
        losses.append({"node": "server", "reason": error.message})
        await server.slipped(error)
        return None
    seconds_air = payload.bursts * cycle.slots * link.profile.slot_samples / link.profile.rate_hz
    known = dict(uplink.peers)
    decoded = await asyncio.to_thread(decode.conclude, aggregate, attempt, losses)
    if decoded.action == "void":
        await asyncio.to_thread(decode.keep, windows, known, attempt)
    clipped = sum(e.message.clipped for e in sent.values() if isinstance(e.message, Sent))
    decoded.facts.update(seconds_air=seconds_air, seconds_decode=time.perf_counter() - begun, clipped_transmit=clipped)
    return decoded


@dataclass(frozen=True)
class _Decode:
    """The blocking half of a round: receive, decode, judge, compare with the witness, step."""

    server: Server
    plan: RoundPlan
    payload: Payload
    names: list[str]
    first: int
    slots: int
    burst_at: int

    @property
    def _shifts(self) -> dict[str, int]:
        return {name: self.server.names.index(name) for name in self.names}

    def receive(self) -> list[Window]:
        """Receive every burst."""
        link = self.server.link
        return [
            link.window(self.first + burst * self.slots, self.burst_at, link.profile.burst_symbols)
            for burst in range(self.payload.bursts)
        ]

    def aggregate(self, windows: Sequence[Window]) -> Aggregate:
        """Decode the superposition of all bursts."""
        shifts = list(self._shifts.values())
        return self.server.uplink.decode(windows, self.names, self.payload, self.payload.seed, shifts)

    def keep(self, windows: Sequence[Window], known: Mapping[str, Peer], attempt: int) -> None:
        """Write what was received beside the run; a full disk costs the recording and not the run."""
        server, number = self.server, self.plan.number
        slots = [self.first + burst * self.slots for burst in range(self.payload.bursts)]
        facts: dict[str, str | int] = {"round": number, "attempt": attempt, "seed": self.payload.seed}
        if server.calibrated is not None:
            facts["calibration"] = server.calibrated.folder.digest
        name = f"round-{number}-{attempt}"
        try:
            voided.keep(server.folder.voided, name, server.link, windows, slots, known, self._shifts, facts)
        except RadioError as error:
            server.warn("recording", f"round {number}: what was received is not kept: {error.message}")

    def conclude(self, aggregate: Aggregate, attempt: int, losses: list[dict[str, str]]) -> Decoded:
        """Judge the round, feed the loops, step the model unless the round is void, and gather the facts."""
        server, plan = self.server, self.plan
        verdicts = dict(zip(self.names, aggregate.verdict.nodes, strict=True))
        here = [name for name in self.names if verdicts[name] != "missing"]
        harmless = {"ok", "gain"} if server.uplink.precoder != "inversion" else {"ok"}  # |a_k| is part of the sum
        losses += [{"node": name, "reason": status} for name, status in verdicts.items() if status not in harmless]
        action: Verdict = "void" if aggregate.lost or not here else aggregate.verdict.action
        gain_mean = 1.0 if server.teacher.scheme.recalls else server.uplink.gain_mean(self.names)
        arrival = gain_mean, server.uplink.gain_power(self.names)
        for name, status in verdicts.items():
            if status in ("missing", "cfo"):
                server.unlock(status, name)
        if aggregate.verdict.rogue:
            server.warn("rogue", f"round {plan.number}: {'; '.join(aggregate.verdict.reasons)}")
        if not here:  # all missing at once: the server's own receive stream slipped
            server.link.remeasure()
        innovations = server.uplink.absorb(self.names, aggregate, plan.powers)
        server.uplink.confirm(here, self.first + self.payload.bursts * self.slots)
        for name in here:
            if name not in innovations:
                server.warn("jump", f"node {name}: {server.uplink.peers[name].flagged}; it is sounded again")
        canary_db, predicted_db = aggregate.canary_nmse_db, plan.nmse_predicted_db
        if predicted_db is not None and server.uplink.watch(canary_db, predicted_db):
            server.warn("aged", f"the canary stays above its prediction, now by {canary_db - predicted_db:.1f} dB")
        truth = self._truth(attempt, here)
        coherent = self.payload.spread  # else there is no sum of waves to compare: energies add up on average alone
        facts: dict[str, Any] = {
            "nmse_canary_db": aggregate.canary_nmse_db if coherent else None,
            "nmse_checksum_db": self._checksum(aggregate, here),
            "nmse_predicted_db": plan.nmse_predicted_db,
            "snr_db": -10 * math.log10(aggregate.noise),
            "phase_rms_rad": aggregate.phase_rms_rad,
            "correlation": server.uplink.rho,
            "phase_quadrature_rad": aggregate.q_sigma_rad,
            "clipped_receive": aggregate.clipped,
            "attempts": attempt + 1,
            "bursts": self.payload.bursts,
            "channel_uses": self.payload.uses,
            "control_scalars": 1 + (len(plan.checks) if plan.checks is not None else 0),
            "nonzeros": plan.nonzeros,
            "seconds_train": plan.seconds_train,
        }
        if truth is not None and coherent:
            facts["nmse_sum_db"] = nmse_db(aggregate.symbols, self.payload.read(truth["elements"])[0])
        if action != "void":
            noise = plan.error if coherent else aggregate.noise
            estimate = server.teacher.step(aggregate.symbols, plan.number, len(here), plan.scale, *arrival, noise)
            if truth is not None:
                facts["nmse_update_db"] = server.teacher.nmse_db(estimate, truth["sparse"] / len(here))
                facts["nmse_dense_db"] = server.teacher.nmse_db(estimate, truth["dense"] / len(here))
        return Decoded(
            action,
            here if action != "void" else [],
            verdicts,
            {name: (i.turn_rad, i.stretch, i.delay_samples) for name, i in innovations.items()},
            facts,
        )

    def _truth(self, attempt: int, here: list[str]) -> dict[str, np.ndarray] | None:
        """Ask the simulated air for the true sums; hardware has no witness."""
        witness = self.server.radio.witness
        if witness is None or not here or (len(here) == 1 and len(self.plan.names) > 1):
            return None  # a sum of one would be that node's update; others may have sent, and died before they said so
        return witness.collect(f"{self.plan.number}/{attempt}", tuple(here))

    def _checksum(self, aggregate: Aggregate, here: list[str]) -> float | None:
        """Error that the checksums show; the digital ones hold only for the full set of nodes."""
        if self.payload.appended:
            return aggregate.checksum_nmse_db
        if self.plan.checks is None or len(here) < len(self.plan.names):
            return None
        return self.payload.checksum_nmse_db(aggregate.symbols, self.plan.checks.astype(np.float32))
