"""The node daemon: a state machine around one radio and one client, moved by orders; knows no other node."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.tasks import Task, carry_out
from radio.base import Radio
from radio.cycle import sounding_samples
from radio.disk import JsonLines
from radio.errors import CalibrationError, LinkError, NotTrusted, ProtocolMismatch, RadioError, TooLate
from radio.nodelink import Csi as LinkCsi
from radio.nodelink import NodeLink
from radio.ofdm import PROFILES, assemble, canary, pilot
from radio.payload import Payload
from radio.sync import sounding
from radio.urgency import urgent
from radio.warm import warm_receiver
from testbed.bus import Lost, NodeBus
from testbed.checkpoint import Checkpoint, checkpoint_rounds, load_checkpoint, other_version, save_checkpoint
from testbed.config import Experiment, Lab, round_seed
from testbed.guard import open_guarded
from testbed.messages import (
    Ack,
    Csi,
    Hello,
    Measure,
    Measured,
    Message,
    Nack,
    Plan,
    Refused,
    Report,
    Scale,
    Sent,
    Sound,
    Stop,
    StreamTrouble,
    Train,
    Welcome,
    as_cycle,
)

if TYPE_CHECKING:
    from testbed.learner import Pupil, Work

log = logging.getLogger(__name__)

Answer = Message | tuple[Message, dict[str, np.ndarray]] | None
Handler = Callable[..., Answer]

#: What may follow what. ``ANYWHERE`` is always allowed: a server that starts again welcomes its nodes anew, and a muted
#: or faulty node is sounded anew.
ANYWHERE = {"welcome": "joining", "muted": "muted", "fault": "fault", "measure": "measuring"}
TRANSITIONS: dict[tuple[str, str], str] = {
    ("joining", "sound"): "tracking",
    ("joining", "restore"): "ready",
    ("joining", "train"): "training",
    ("ready", "sound"): "tracking",
    ("training", "sound"): "tracking",
    ("muted", "sound"): "tracking",
    ("fault", "sound"): "tracking",
    ("tracking", "sound"): "tracking",
    ("tracking", "csi"): "ready",
    ("ready", "csi"): "ready",
    ("ready", "train"): "training",
    ("training", "train"): "training",
    ("training", "plan"): "armed",
    ("ready", "plan"): "armed",
    ("armed", "transmitted"): "sent",
    ("armed", "late"): "ready",
    ("tracking", "late"): "tracking",
    ("measuring", "late"): "measuring",
    ("sent", "plan"): "armed",
    ("sent", "report"): "ready",
    ("training", "report"): "ready",
    ("ready", "report"): "ready",
    ("tracking", "report"): "tracking",
    ("muted", "report"): "muted",
    ("fault", "report"): "fault",
}

#: Beacons that the trackers settle on after a search.
SETTLING = 32
#: What a refusal means for a node, and the one thing to do.
REFUSALS: dict[str, tuple[type[LinkError], str]] = {
    "protocol": (ProtocolMismatch, "install the same version on both machines"),
    "not-trusted": (NotTrusted, "start the node under the name of its key"),
    "replaced": (LinkError, "run one process per node, or give each its own key with `testbed init`"),
}


class Node:
    """One node. Orders come one at a time; radio and training run in a worker thread, so signs of life go on.

    Args:
        lab: what is in the room.
        name: of this node in the lab.
        folder: where it keeps its checkpoints and its log of states and emissions.
        keys: folder of the key files.
    """

    def __init__(self, lab: Lab, name: str, folder: Path, keys: Path) -> None:
        self.lab, self.name, self.folder = lab, name, folder
        self.state = "starting"
        self.bus = NodeBus(lab, name, keys)
        self.entry = lab.node(name)
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = JsonLines(folder / "journal.jsonl")
        self.radio: Radio = open_guarded(
            lab.radio_uri(name),
            lab.safety,
            folder,
            lambda record: self._note("emission", asdict(record)),
            lab.witness_address(name),
        )
        self.link: NodeLink | None = None
        self.pupil: Pupil | None = None
        self.work: Work | None = None
        self.experiment: Experiment | None = None
        self.run_identity = ""
        self.round = 0

    def _note(self, kind: str, content: Any) -> None:
        self._journal.append({"kind": kind, "round": self.round, "content": content})

    def _go(self, event: str) -> None:
        new = ANYWHERE.get(event) or TRANSITIONS.get((self.state, event))
        if new is None:
            raise LinkError(
                f"node {self.name}: order {event!r} makes no sense in state {self.state!r}", "restart the node"
            )
        if new != self.state:
            self._note("state", {"from": self.state, "to": new})
            log.info("node %s: %s -> %s", self.name, self.state, new)
        self.state = new

    async def run(self) -> None:
        """Join the server and obey it until it says stop.

        Raises:
            LinkError: the server cannot be reached, refuses this node or falls silent for good.
        """
        try:
            await self.bus.connect()
            await self._hello()
            while True:
                envelope = await self.bus.receive()
                if isinstance(envelope, Lost):
                    await asyncio.to_thread(self.radio.mute)
                    self._go("muted")
                elif envelope is not None and not await self._obey(envelope.message, envelope.arrays):
                    return
        finally:
            await asyncio.to_thread(self.radio.close)
            await self.bus.close()
            self._journal.close()

    async def _hello(self) -> None:
        able = self.radio.capabilities
        await self.bus.send(
            Hello(
                name=self.name,
                serial=able.serial,
                tier=str(able.tier),
                driver=able.driver,
                rate_hz=able.max_rate_hz,
                turnaround_samples=able.turnaround_samples,
                block_samples=able.block_samples,
                one_timeline=able.one_timeline,
                shared_reference=able.shared_reference,
                safety_hash=self.lab.safety.digest,
                checkpoint_rounds=tuple(checkpoint_rounds(self.folder)),
            )
        )

    async def _obey(self, message: Message, arrays: dict[str, np.ndarray]) -> bool:
        """Handle one order; returns False when it was the last."""
        if isinstance(message, Stop):
            return False
        if isinstance(message, Refused):
            if message.code == "hello-first":
                await self._hello()
                return True
            kind, remedy = REFUSALS.get(message.code, (LinkError, "restart the node; read the server's warnings"))
            raise kind(f"the server refuses node {self.name}: {message.reason}", remedy)
        handlers: dict[type, Handler] = {
            Welcome: self._welcome,
            Sound: self._sound,
            Csi: self._csi,
            Measure: self._measure,
            Train: self._train,
            Plan: self._plan,
            Report: self._report,
        }
        handler = handlers.get(type(message))
        if handler is None:
            log.warning("node %s: unexpected %s", self.name, message.kind)
            return True
        self.round = message.round
        expected = (RadioError, LinkError, *([CalibrationError] if isinstance(message, Measure) else []))
        try:
            answer = await asyncio.to_thread(self._handled, handler, message, arrays)
        except expected as error:
            log.warning("node %s: %s failed: %s", self.name, message.kind, error)
            late = error.late_samples if isinstance(error, TooLate) else 0
            self._go("late" if late else "fault")
            if isinstance(error, LinkError):  # whoever hears no beacon must not be heard
                await asyncio.to_thread(self.radio.mute)
            answer = Nack(of=message.kind, reason=error.message, late_samples=late)
        if answer is not None:
            reply, extra = answer if isinstance(answer, tuple) else (answer, None)
            try:
                await self.bus.send(reply.model_copy(update={"round": message.round, "run": message.run}), extra)
            except LinkError as error:  # the server died meanwhile: its silence mutes this node, and it may come back
                log.warning("%s", error)
        return True

    def _handled(self, handler: Handler, message: Message, arrays: dict[str, np.ndarray]) -> Answer:
        timed = isinstance(message, Sound | Plan | Measure) and self.radio.capabilities.real_time
        with urgent() if timed else nullcontext():
            return handler(message, arrays)

    def _welcome(self, order: Welcome, arrays: dict[str, np.ndarray]) -> Message:
        self._go("welcome")
        self.experiment = Experiment.model_validate(order.experiment)
        self.run_identity = order.run_identity
        profile = PROFILES[self.experiment.waveform.profile]
        able = self.radio.capabilities
        if able.real_time:  # what a process does for the first time may hold it up for longer than a stream can wait
            warm_receiver(profile)
        self.link = NodeLink(
            self.radio,
            profile,
            self.entry.rx_gain_db,
            order.adev or self.experiment.waveform.adev,
            seed=self.experiment.run.seed + 1 + order.client,
            tx_attenuation_db=self.entry.tx_attenuation_db,
        )
        restored = order.learns and self._learn(order, able.real_time)
        return Ack(of="welcome", detail={"lead_samples": able.lead_samples, "restored": float(restored)})

    def _learn(self, order: Welcome, real_time: bool) -> bool:
        """Make the client, with the memory it had; returns whether the link, too, goes on as it was."""
        from testbed.learner import Pupil  # imported late: a calibration needs no learning

        assert self.experiment is not None and self.link is not None
        self.pupil = Pupil(self.experiment, order.client)
        if real_time:
            self.pupil.work(np.zeros(self.pupil.model.dimension, np.float32), 0, order.nodes)
        known = checkpoint_rounds(self.folder)
        usable = [k for k in known if order.resume_round is None or k <= order.resume_round]
        saved = load_checkpoint(self.folder, None, usable[-1]) if usable else None
        if saved is not None and saved.config_hash != self.run_identity:
            saved = None  # of an earlier run
        if saved is not None:
            self.pupil.memory = np.array(saved.arrays["memory"], np.float32)
        # The saved link is good only if this node took part in the round from which the air goes on.
        restored = order.restored and saved is not None and saved.round == order.resume_round
        if restored and saved is not None:
            try:
                self.link.restore(saved.extra["link"])
            except (KeyError, TypeError) as error:
                raise other_version(self.folder, error) from error
            self._go("restore")
        elif self.pupil.scheme.over_air:
            self.link.open()
        return restored

    def _measure(self, order: Measure, arrays: dict[str, np.ndarray]) -> tuple[Message, dict[str, np.ndarray]]:
        if self.link is None:
            raise LinkError(f"node {self.name}: ordered about before its welcome", "restart the node")
        self._go("measure")
        reply = carry_out(self.link, Task(order.what, order.detail, arrays))
        return Measured(told=dict(reply.told)), dict(reply.arrays)

    def _parts(self) -> tuple[NodeLink, Pupil, Experiment]:
        if self.link is None or self.pupil is None or self.experiment is None:
            raise LinkError(f"node {self.name}: ordered about before its welcome", "restart the node")
        return self.link, self.pupil, self.experiment

    def _sound(self, order: Sound, arrays: dict[str, np.ndarray]) -> Message:
        link, _, _ = self._parts()
        self._go("sound")
        cycle = as_cycle(order.cycle)
        if order.search_samples:
            train = order.search_samples // link.profile.slot_samples  # slots of beacons right before the first cycle
            locked = link.acquire(order.search_samples, order.first_slot - train)
            for slot in range(max(locked + 1, order.first_slot - SETTLING), order.first_slot):
                link.listen(slot)
        at = cycle.burst_at + order.place * sounding_samples(link.profile) + link.profile.guard_samples
        pilots = sounding(link.profile) * np.float32(order.drive)
        return self._sent(
            [link.follow(order.first_slot + n * cycle.slots, cycle, pilots, at) for n in range(order.cycles)]
        )

    def _sent(self, reports: list[tuple[Any, float]]) -> Sent:
        link, _, _ = self._parts()
        return Sent(
            sigma_rad=max(sigma for _, sigma in reports),
            clipped=sum(report.clipped for report, _ in reports),
            snr_db=link.snr_db,
            cfo_hz=link.cfo_hz,
            ppm=link.ppm,
            starts=tuple(report.start for report, _ in reports),
            troubles=tuple(
                StreamTrouble(kind=event.kind, index=event.index, count=event.count)
                for report, _ in reports
                for event in report.events
            ),
        )

    def _csi(self, order: Csi, arrays: dict[str, np.ndarray]) -> None:
        link, _, _ = self._parts()
        link.csi = LinkCsi(arrays["gain"], order.timing_advance_samples, order.drive)
        if order.final:
            self._go("csi")

    def _train(self, order: Train, arrays: dict[str, np.ndarray]) -> tuple[Message, dict[str, np.ndarray]]:
        _, pupil, experiment = self._parts()
        self._go("train")
        work = self.work = pupil.work(arrays["theta"], order.round, len(order.clients))
        checks: tuple[float, ...] = ()
        summed = pupil.scheme.over_air and pupil.scheme.precoder != "none"  # energies have no linear checksums
        if experiment.waveform.checksum == "digital" and summed:
            checks = tuple(float(c) for c in self._payload(order.round, appended=False).checks(work.symbols))
        scale = Scale(
            norm_squared=work.norm_squared, nonzeros=work.nonzeros, seconds_train=work.seconds, checksums=checks
        )
        return scale, {} if pupil.scheme.over_air else {"symbols": work.symbols}

    def _payload(self, round_number: int, appended: bool) -> Payload:
        link, pupil, experiment = self._parts()
        return Payload(
            link.profile,
            experiment.waveform.mode,
            pupil.scheme.symbols,
            round_seed(experiment.run.seed, round_number),
            appended,
            spread=pupil.scheme.precoder != "none",
        )

    def _plan(self, order: Plan, arrays: dict[str, np.ndarray]) -> Message:
        link, pupil, _ = self._parts()
        work = self.work
        if work is None or work.round != order.round:
            raise LinkError(f"node {self.name}: no update for round {order.round}", "the next round starts afresh")
        if link.csi is None:
            raise LinkError(f"node {self.name}: no link estimate", "sound this node again")
        self._go("plan")
        link.csi = LinkCsi(link.csi.gain, link.csi.advance_samples, order.drive)
        cycle, payload = as_cycle(order.cycle), self._payload(order.round, order.appended)
        silent = 1 - link.audible(order.floor)
        work = self.work = pupil.recall(work, lambda symbols: payload.read(payload.fill(symbols) * silent)[0])
        symbols = (work.symbols * np.float32(order.scale)).astype(np.complex64)
        grid = payload.fill(symbols)
        known = canary(link.profile, order.seed, order.shift, order.mode)
        mark = pilot(link.profile, order.shift, order.shifts)
        reports = []
        for number, data in enumerate(grid):
            burst = link.precode(assemble(data, mark, known), order.precoder, order.floor)
            reports.append(link.follow(order.first_slot + number * cycle.slots, cycle, burst))
        self._go("transmitted")
        self._testify(order, work, grid, [report.start for report, _ in reports])
        return self._sent(reports)

    def _testify(self, order: Plan, work: Work, grid: np.ndarray, starts: list[int]) -> None:
        """Tell the simulated air what was sent, so that it can give the server the true sums."""
        witness = self.radio.witness
        if witness is None:
            return
        link, _, _ = self._parts()
        elements = grid * link.audible(order.floor)
        if order.precoder != "inversion":
            offsets_hz = np.asarray(link.profile.bins) * link.profile.spacing_hz
            for number, start in enumerate(starts):
                true = witness.amplitude(self.name, "server", start, offsets_hz)
                elements[number] *= (true * (order.drive / order.level)).astype(np.float32)
        witness.deposit(
            f"{order.round}/{order.attempt}",
            self.name,
            {"elements": elements, "sparse": work.sparse, "dense": work.dense},
        )

    def _report(self, order: Report, arrays: dict[str, np.ndarray]) -> Message | None:
        link, pupil, _ = self._parts()
        if link.csi is not None and self.name in order.innovations:
            link.csi = link.csi.nudged(*order.innovations[self.name])
        if order.again:
            return None
        self._go("report")
        used = order.verdict != "void" and order.verdicts.get(self.name, "missing") != "missing"
        if used and self.work is not None and self.work.round == order.round:
            pupil.commit(self.work)
        self.work = None
        if order.save:
            save_checkpoint(
                self.folder,
                Checkpoint(order.round, self.run_identity, {"memory": pupil.memory}, extra={"link": link.state()}),
                keep=3,  # the server may be killed between a node's checkpoint and its own
            )
        return Ack(of="report")


async def serve_node(lab: Lab, name: str, folder: Path, keys: Path) -> None:
    """Run one node until its server stops it.

    Args:
        lab: what is in the room.
        name: of the node.
        folder: for its checkpoints and journal.
        keys: folder of the key files.

    Raises:
        TestbedError: the radio, the link or the disk failed; the radio is muted first.
    """
    await Node(lab, name, folder, keys).run()


__all__ = ["ANYWHERE", "TRANSITIONS", "Node", "serve_node"]
