"""The server daemon: admits nodes, sounds them, plans rounds, decodes sums, steps; never sees one node's update."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from calibration import RadioKey
from radio.base import Radio
from radio.errors import CalibrationError, LinkError, SamplesLost
from radio.ofdm import PROFILES
from radio.serverlink import ServerLink
from radio.uplink import Uplink
from radio.warm import warm_receiver
from testbed.bus import Envelope, Lost, ServerBus
from testbed.calibrated import Calibrated, node_key
from testbed.checkpoint import other_version
from testbed.config import Experiment, Lab
from testbed.guard import open_guarded
from testbed.learner import Teacher
from testbed.messages import Ack, Hello, Message, Nack, Report, Train, Welcome
from testbed.round import Decoded, RoundPlan, hopeless, run_burst, summary
from testbed.run import Checkpoint, RunFolder, read_events
from testbed.sounding import due, sound

log = logging.getLogger(__name__)

#: What the time between beacon and burst grows by at most for one node that was late, and for all of them.
LATE_S, LATEST_S = 5e-3, 30e-3
#: Void rounds in a row after which going on makes no sense.
VOIDS = 5


class Server:
    """One run's server.

    Args:
        lab: what is in the room.
        experiment: what to try.
        folder: the run folder; this process alone writes its events.
        keys: folder of the key files.
        fingerprint: hash of what decides the numbers of the run.
    """

    def __init__(self, lab: Lab, experiment: Experiment, folder: RunFolder, keys: Path, fingerprint: str) -> None:
        self.lab, self.experiment, self.folder, self.fingerprint = lab, experiment, folder, fingerprint
        self.names = [entry.name for entry in lab.nodes]
        self.bus = ServerBus(lab, keys, warn=self.warn)
        self.teacher = Teacher(experiment)
        uri, air = lab.radio_uri("server"), lab.witness_address("server")
        self.radio: Radio = open_guarded(uri, lab.safety, folder.path / "logs", air=air)
        profile = PROFILES[experiment.waveform.profile]
        mine = lab.server
        self.link = ServerLink(self.radio, profile, mine.rx_gain_db, experiment.run.seed, mine.tx_attenuation_db)
        scheme, mode = self.teacher.scheme, experiment.waveform.mode
        self.uplink = Uplink(profile, mode, scheme.precoder, len(self.names), scheme.threshold)
        self.calibrated = Calibrated.of(folder.path)
        if self.calibrated is not None:
            self.uplink.priors = {name: self.calibrated.prior(name) for name in self.names}
        self.hellos: dict[str, Hello] = {}
        self.ready: set[str] = set()
        self.arrivals: list[str] = []
        self.unlocked: dict[str, str] = {}  # to be sought before the next round, each with the reason
        self.lead_samples, self.extra_s = 0, 0.0
        self.round = self.first_round = self.voids = 0
        self.history: list[dict[str, Any]] = []

    def warn(self, code: str, text: str) -> None:
        self.folder.emit("warning", code=code, text=text)

    async def run(self, resume: bool) -> None:
        """Run the experiment from its start, or from the newest checkpoint."""
        await self.bus.start()
        self.folder.publish_to(self.bus.publish)
        restored = self._restore() if resume else False
        self.folder.emit(
            "run-started",
            rounds=self.experiment.run.rounds,
            first_round=self.first_round,
            resumed=resume,
            clients=self.names,
            dimension=self.teacher.model.dimension,
            symbols=self.teacher.scheme.symbols,
            scheme=self.teacher.scheme.name,
            profile=self.link.profile.name,
            mode=self.experiment.waveform.mode,
            calibration=None if self.calibrated is None else self.calibrated.source,
        )
        outcome, reason = "failed", ""
        try:
            self._permit()
            await self._join(restored)
            for number in range(self.first_round, self.experiment.run.rounds):
                await self._round(number)
            outcome = "finished"
        except asyncio.CancelledError:
            outcome, reason = "stopped", "told to stop"
            raise
        except Exception as error:
            reason = str(error)
            raise
        finally:
            await self._finish(outcome, reason)

    def _permit(self) -> None:
        """Make sure that the calibration, if there is one, permits this run with this radio."""
        if self.calibrated is None:
            return
        scheme, mode = self.teacher.scheme, self.experiment.waveform.mode
        precoder = scheme.precoder if scheme.over_air else "none"
        for text in self.calibrated.permit(self.names, mode, precoder, self.link.profile):
            self.warn("burst", text)
        key = RadioKey.of(self.radio.capabilities, self.link.settings(), self.lab.server.antenna)
        for text in self.calibrated.check("server", key):
            self.warn("stale", text)

    def _known(self, name: str) -> float | None:
        """Give the Allan deviation of a node that says Hello, if its calibration holds for the radio that it has."""
        if self.calibrated is None:
            return None
        for text in self.calibrated.check(name, node_key(self.hellos[name], self.lab.node(name), self.link.profile)):
            self.warn("stale", text)
        return self.calibrated.adev(name)

    def _restore(self) -> bool:
        """Take up the newest checkpoint; returns whether the air kept running, too."""
        saved = self.folder.load(self.fingerprint)
        self.teacher.restore(dict(saved.arrays))
        self.first_round = self.round = saved.round + 1
        told = {e["kind"] for e in read_events(self.folder.events_path) if e.get("round") == saved.round}
        if "round-finished" not in told:  # killed between checkpoint and event
            self.folder.emit("round-finished", **saved.extra["event"])
        if "evaluated" not in told:
            self._evaluate(saved.round)
        try:
            self.history = list(saved.extra["history"])
            if saved.extra["ether"] is None:
                return False
            self.link.restore(saved.extra["link"])
            self.uplink.restore(saved.extra["uplink"])
            self.lead_samples = saved.extra["lead_samples"]
        except (KeyError, TypeError) as error:
            raise other_version(self.folder.path, error) from error
        return True

    async def _join(self, restored: bool) -> None:
        """Wait for every node of the lab, then admit them together."""
        end = time.monotonic() + self.experiment.run.join_timeout_s
        while len(self.arrivals) < len(self.names) and (left := end - time.monotonic()) > 0:
            self._note(await self.bus.receive(min(left, 1.0)))
        missing = sorted(set(self.names) - set(self.arrivals))
        if len(missing) == len(self.names):
            raise LinkError(
                f"no node joined within {self.experiment.run.join_timeout_s:.0f} s at {self.bus.control_address}",
                "start the nodes: testbed node NAME",
            )
        for name in missing:
            self.warn("missing", f"node {name} did not join within {self.experiment.run.join_timeout_s:.0f} s")
        await self._admit(restored, first=True)

    async def _admit(self, restored: bool = False, first: bool = False) -> None:
        """Welcome the nodes that said Hello, and sound them.

        A radio for which the calibration does not hold ends the run before its first round, and is refused later on.
        """
        names, self.arrivals, known = sorted(set(self.arrivals)), [], {}
        for name in names:
            try:
                known[name] = self._known(name)
            except CalibrationError as error:
                if first:
                    raise
                self.warn(error.slug, f"node {name} is refused: {error}")
                await self.bus.refuse(name, error.message)
        if not known:
            return
        resume_round = self.first_round - 1 if restored or self.first_round else None
        for name, adev in known.items():
            await self.send(
                name,
                Welcome(
                    experiment=self.experiment.model_dump(mode="json"),
                    client=self.names.index(name),
                    nodes=len(self.names),
                    shift=self.names.index(name),
                    shifts=len(self.names),
                    run_identity=self.folder.identity,
                    resume_round=resume_round if self.round == self.first_round else None,
                    restored=restored,
                    adev=adev,
                ),
            )
        welcomed = await self.gather(known, "ack", self.experiment.run.join_timeout_s)
        details = {name: e.message.detail for name, e in welcomed.items() if isinstance(e.message, Ack)}
        for detail in details.values():
            self.lead_samples = max(self.lead_samples, int(detail["lead_samples"]))
        unknown = [name for name, detail in details.items() if not detail["restored"]]
        self.ready |= set(details) - (set(unknown) if self.teacher.scheme.over_air else set())
        if self.teacher.scheme.over_air and unknown:
            await self._open()
            await sound(self, dict.fromkeys(sorted(unknown), "joined"), search=True)
        for name in sorted(self.ready & set(names)):
            self.folder.emit("node-changed", node=name, state="ready", round=self.round)

    async def _open(self) -> None:
        """Start the radio once there is somebody to talk to: processes that still start up disturb its streams."""
        if self.link.last_slot >= 0:
            return
        if self.radio.capabilities.real_time:
            warm_receiver(self.link.profile)
            await asyncio.to_thread(self.teacher.warm)
        await asyncio.to_thread(self.link.open)

    async def _round(self, number: int) -> None:
        self.round = number
        self._drain()
        for name in set(self.uplink.peers) - self.ready:
            del self.uplink.peers[name]
        await self._admit()
        unlocked, self.unlocked = {name: why for name, why in self.unlocked.items() if name in self.bus.present}, {}
        if unlocked:
            await sound(self, unlocked, search=True)
        chosen = [self.names[index] for index in self.teacher.choose(number)]
        if reasons := await due(self, chosen):
            await sound(self, reasons, search=False)
        active = [name for name in chosen if name in self.ready]
        self.folder.emit("round-started", round=number, clients=active)
        losses = [{"node": name, "reason": "not ready"} for name in chosen if name not in self.ready]
        lost = hopeless(self, active) if self.teacher.scheme.over_air else {}
        losses += [{"node": name, "reason": reason} for name, reason in lost.items()]
        active = [name for name in active if name not in lost]
        decoded = await self._exchange(number, active, losses) if active else None
        event = summary(number, decoded, losses)
        await self._conclude(number, decoded)
        self.history.append({key: event[key] for key in HISTORY})
        self.voids = self.voids + 1 if event["voided"] else 0
        self._save(number, event)
        self.folder.emit("round-finished", **event)
        await asyncio.to_thread(self._evaluate, number)
        if self.voids >= VOIDS:
            raise LinkError(
                f"{VOIDS} rounds in a row were void, the last for {_reasons(losses)}",
                "look at the warnings in events.jsonl, then continue with testbed run --resume",
            )

    def _evaluate(self, number: int) -> None:
        """Evaluate after every so many rounds, and after the last."""
        run = self.experiment.run
        if (number + 1) % run.evaluate_every == 0 or number + 1 == run.rounds:
            self.folder.emit("evaluated", round=number, **self.teacher.evaluation(number))

    async def _exchange(self, number: int, active: list[str], losses: list[dict[str, str]]) -> Decoded | None:
        """Train, plan, and send until a burst is usable; None when nobody could."""
        theta = {"theta": self.teacher.theta.numpy()}
        order = Train(clients=tuple(active))
        for name in active:
            await self.send(name, order, theta)
        scales = await self.gather(active, "scale", self.experiment.run.train_timeout_s)
        losses += [{"node": name, "reason": "no update"} for name in active if name not in scales]
        plan = RoundPlan.make(self, number, scales)
        if plan is None:
            return None
        return await run_burst(self, plan, losses)

    async def _conclude(self, number: int, decoded: Decoded | None) -> None:
        """Tell all nodes how the round went and wait until each has saved its side."""
        due = (number + 1) % self.experiment.run.checkpoint_every == 0 or number + 1 == self.experiment.run.rounds
        report = Report(verdict="void", save=due)
        if decoded is not None:
            report = Report(
                verdict=decoded.action,
                verdicts=dict(decoded.verdicts),
                innovations=decoded.innovations,
                nmse_canary_db=decoded.facts.get("nmse_canary_db"),
                save=due,
            )
        here = [name for name in self.names if name in self.bus.present and name not in self.arrivals]
        for name in here:
            await self.send(name, report)
        await self.gather(here, "ack", self.lab.heartbeat.allowance_s + self.experiment.run.train_timeout_s)

    def _save(self, number: int, event: dict[str, Any]) -> None:
        every = self.experiment.run.checkpoint_every
        if (number + 1) % every and number + 1 < self.experiment.run.rounds:
            return
        witness = None if self.radio.capabilities.real_time else self.radio.witness  # that air went on meanwhile
        extra = {
            "event": event,
            "history": self.history,
            "ether": None if witness is None else witness.state(),
            "link": self.link.state(),
            "uplink": self.uplink.state(),
            "lead_samples": self.lead_samples,
        }
        self.folder.save(Checkpoint(number, self.fingerprint, self.teacher.arrays(), extra=extra))

    async def _finish(self, outcome: str, reason: str) -> None:
        """Compare, report the end, stop every node."""
        try:
            done = len(self.history)
            told: dict[str, Any] = {"outcome": outcome, "reason": reason, "rounds": done}
            for key in HISTORY[2:]:
                seen = [row[key] for row in self.history if row[key] is not None]
                told[f"median_{key}"] = median(seen) if seen else None
            told["voided"] = sum(1 for row in self.history if row["voided"])
            if outcome == "finished":
                told["trained"] = self.teacher.evaluation(done - 1)
                if self.experiment.run.compare:
                    told |= await asyncio.to_thread(self.teacher.comparison, done)
            self.folder.emit("run-finished", **told)
        finally:
            await self.bus.dismiss(outcome)
            await asyncio.to_thread(self.radio.close)
            await self.bus.close()
            self.folder.close()

    async def send(self, name: str, message: Message, arrays: dict[str, Any] | None = None) -> bool:
        """Send with the run's name and round; a node that is gone shows up as ``Lost``."""
        stamped = message.model_copy(update={"run": self.folder.name, "round": self.round})
        return not await self.bus.send_all([name], stamped, arrays)

    def _drain(self) -> None:
        """Note what arrived between orders, without waiting."""
        while (item := self.bus.receive_now()) is not None:
            self._note(item)

    def _note(self, item: Envelope | Lost | None) -> None:
        """Handle news that no order waits for: arrivals and losses."""
        if isinstance(item, Lost):
            self.ready.discard(item.name)
            self.folder.emit("node-changed", node=item.name, state="lost", round=self.round)
        elif isinstance(item, Envelope) and isinstance(item.message, Hello):
            self.ready.discard(item.name)
            self.hellos[item.name] = item.message
            if item.name not in self.arrivals:
                self.arrivals.append(item.name)

    def timed(self, name: str) -> bool:
        """Tell if a node's indices count from the same pulse as the server's own."""
        hello = self.hellos.get(name)
        return hello is not None and hello.one_timeline and hello.shared_reference

    def unlock(self, reason: str, *names: str) -> None:
        """A node that lost its beacons, or could not do as told, is sought and sounded before its next round."""
        self.ready -= set(names)
        self.unlocked |= dict.fromkeys(names, reason)

    async def slipped(self, error: SamplesLost) -> None:
        """After a slip of this radio's own streams no beacon and no window is where it is expected."""
        self.warn("slipped", str(error))
        self.unlock("slipped", *self.names)
        await asyncio.to_thread(self.link.remeasure)

    async def gather(self, names: Iterable[str], kind: str, timeout_s: float) -> dict[str, Envelope]:
        """Wait for one answer of ``kind`` from each name; the dead, the refusing and the late are left out.

        Returns:
            Answers by name, in the order of the lab file, so that nothing depends on who was first.
        """
        waiting = set(names)
        answers: dict[str, Envelope] = {}
        refusals: dict[str, Nack] = {}
        end = time.monotonic() + timeout_s
        while waiting and (left := end - time.monotonic()) > 0:
            item = await self.bus.receive(min(left, 1.0))
            if isinstance(item, Lost) or (isinstance(item, Envelope) and isinstance(item.message, Hello)):
                waiting.discard(item.name)
                self._note(item)
            elif isinstance(item, Envelope) and item.name in waiting and item.message.round == self.round:
                if isinstance(item.message, Nack):
                    waiting.discard(item.name)
                    refusals[item.name] = item.message
                elif item.message.kind == kind:
                    waiting.discard(item.name)
                    answers[item.name] = item
        for name, refusal in sorted(refusals.items()):
            self.warn("nack", f"node {name}: {refusal.of}: {refusal.reason}")
            if refusal.late_samples:  # its host is slower than its radio declares: leave it more time
                more_s = min(refusal.late_samples / self.link.profile.rate_hz, LATE_S, LATEST_S - self.extra_s)
                self.extra_s += more_s
                self.lead_samples += round(more_s * self.link.profile.rate_hz)
            if not refusal.late_samples or refusal.of != "plan":
                self.unlock(refusal.reason, name)
        for name in sorted(waiting):
            self.warn("timeout", f"node {name}: no {kind} within {timeout_s:.0f} s")
        return {name: answers[name] for name in self.names if name in answers}


HISTORY = ("round", "voided", "nmse_sum_db", "nmse_canary_db", "nmse_predicted_db", "nmse_update_db", "phase_rms_rad")


def _reasons(losses: Iterable[dict[str, str]]) -> str:
    return "; ".join(f"{loss['node']}: {loss['reason']}" for loss in losses) or "no node being ready"


async def serve_server(
    lab: Lab, experiment: Experiment, folder: RunFolder, keys: Path, fingerprint: str, resume: bool = False
) -> None:
    """Run the server of one experiment to its end.

    Args:
        lab: what is in the room.
        experiment: what to try.
        folder: the run folder.
        keys: folder of the key files.
        fingerprint: hash of what decides the numbers of the run.
        resume: go on from the newest checkpoint of ``folder``.

    Raises:
        TestbedError: what ended the run early.
    """
    await Server(lab, experiment, folder, keys, fingerprint).run(resume)


__all__ = ["Server", "serve_server"]
