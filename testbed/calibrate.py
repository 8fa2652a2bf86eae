"""The calibration of a live lab: brings it up, runs the steps, keeps records and report; knows no measurement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibration import CalibrationFolder, RadioKey
from calibration.bench import Bench
from calibration.captures import record
from calibration.local import warmth
from calibration.record import FAST
from calibration.report import write_report
from calibration.result import Result
from calibration.steps import NAMES, Step, choose, run_steps
from calibration.verdict import verdict
from radio.capture import Scalar
from radio.errors import CalibrationError, ConfigError, Failed, Stale
from radio.ofdm import PROFILES
from radio.serverlink import ServerLink
from radio.warm import warm_receiver
from testbed.artist import Artist
from testbed.bus import ServerBus
from testbed.calibrated import node_key
from testbed.config import Pair, load
from testbed.guard import open_guarded
from testbed.launch import Launcher
from testbed.messages import Hello, Welcome
from testbed.run import RunFolder
from testbed.team import PATIENCE_S, BusTeam
from testbed.twin import write_twin

#: How far a node on virtual time may lag behind one that has finished a step: steps last up to an hour.
HISTORY = "lab.ether.history_s=7200"

Say = Callable[[str], None]


class Findings(Failed):
    """All that a calibration found wrong, one ``Failed`` each in ``problems``.

    Args:
        findings: with ``step``, ``thing``, ``text`` and ``remedy``.
    """

    def __init__(self, findings: Sequence[Mapping[str, str]]) -> None:
        self.problems = [Failed(f"{f['step']}, {f['thing']}: {f['text']}", f["remedy"]) for f in findings]
        super().__init__("; ".join(problem.message for problem in self.problems), self.problems[0].remedy)


@dataclass(frozen=True)
class Order:
    """What is asked of a calibration.

    Attributes:
        pair: the lab, and the experiment whose waveform it is calibrated for.
        names: nodes that take part.
        steps: to run, in their order.
        resume: take over what was found before and still holds.
    """

    pair: Pair
    names: tuple[str, ...]
    steps: tuple[Step, ...]
    resume: bool


def order_of(
    pair: Pair, names: Sequence[str], first: str | None, steps: Iterable[str], folder: CalibrationFolder | None
) -> Order:
    """Check what is asked against the lab and the table of steps.

    Raises:
        ConfigError: there is no such node or step.
    """
    for name in names:
        pair.lab.node(name)
    everybody = [entry.name for entry in pair.lab.nodes]
    chosen = choose(first, [name.strip() for name in steps if name.strip()])
    if not chosen:
        raise ConfigError("no step is left to run", f"name steps at or after --from {first}")
    return Order(pair, tuple(n for n in everybody if not names or n in names), chosen, folder is not None)


def calibrate(order: Order, folder: CalibrationFolder, overrides: Sequence[str], say: Say) -> dict[str, Any]:
    """Calibrate a lab into a folder: records, captures, verdict, report, and the lab as a simulated one.

    Args:
        order: what to do.
        folder: new, or the one to go on in.
        overrides: ``--set`` items that differ from the files in ``folder``.
        say: told what happens, line by line.

    Returns:
        The verdict.

    Raises:
        Findings: something is wrong with the lab; everything is written all the same.
        TestbedError: the lab did not come up.
    """
    simulated = order.pair.lab.ether is not None
    with folder.writing(), Artist() as artist:
        run = RunFolder(folder.path)
        more = [*overrides, *([HISTORY] if simulated else [])]
        with Launcher(order.pair, run, overrides=more, only=order.names) as launcher:
            if simulated:
                launcher.start(server=False)
            live = load(folder.path, None, launcher.settings)
            bench = asyncio.run(_calibrate(replace(order, pair=live), folder, artist, launcher.alive, say))
        known = {name for _, name in bench.results}
        names = [entry.name for entry in order.pair.lab.nodes if entry.name in known]
        found = verdict(bench.results, names, bench.profile)
        folder.conclude(found)
        if found["passed"] and any(step == "sounding" for step, _ in bench.results):
            write_twin(folder)
        _report(folder, order.pair, bench, found, artist)
    if not found["passed"]:
        raise Findings(found["findings"])
    return found


async def _calibrate(
    order: Order, folder: CalibrationFolder, artist: Artist, alive: Callable[[], None], say: Say
) -> Bench:
    lab, experiment = order.pair.lab, order.pair.experiment
    run = RunFolder(folder.path)
    bus = ServerBus(lab, Path(lab.keys), warn=lambda code, text: say(f"{code}: {text}"))
    await bus.start()
    team = BusTeam(bus, order.names)
    outcome, radio = "failed", None
    try:
        witness = lab.witness_address("server")
        radio = await asyncio.to_thread(
            open_guarded, lab.radio_uri("server"), lab.safety, run.path / "logs", None, witness
        )
        profile = PROFILES[experiment.waveform.profile]
        if radio.capabilities.real_time:
            warm_receiver(profile)
        await team.join(experiment.run.join_timeout_s, alive)
        places = [entry.name for entry in lab.nodes]
        greeting = Welcome(
            experiment=experiment.model_dump(mode="json"),
            client=0,
            nodes=len(places),
            shift=0,
            shifts=len(places),
            run_identity=folder.path.name,
            learns=False,
        )
        leads = await team.welcome(greeting, {name: places.index(name) for name in order.names}, PATIENCE_S)
        mine, seed = lab.server, experiment.run.seed
        link = ServerLink(radio, profile, mine.rx_gain_db, seed, mine.tx_attenuation_db)
        waveform = experiment.waveform
        bench = Bench(
            link, order.names, team, lab.calibration, waveform.mode, waveform.beacons_per_cycle, seed, say, max(leads)
        )
        keys = _keys(order, link, team.hellos)
        steps = order.steps
        if order.resume:
            bench.results.update(_known(folder, keys, [step.name for step in steps]))
        facts: dict[str, Scalar] = {
            "node": "server",
            "waveform": profile.name,
            "seed": seed,
            "calibration": folder.path.name,
        }

        def keep(bench: Bench, step: Step, results: list[Result]) -> None:
            for result in results:
                folder.save(result, keys[result.radio])
                state = "good" if result.finding is None else f"{result.finding.thing}: {result.finding.text}"
                say(f"{step.name} {result.radio}: {state}")
            if (kept := bench.kept.pop(step.name, None)) is not None:
                able = link.radio.capabilities
                told = {**facts, **warmth(link.radio.temperature_c())}
                record(folder.captures, step.name, kept.captures, link.settings(), able, kept.parts, told)
            artist.draw(step.name, bench.results.values(), _burst(folder))

        await asyncio.to_thread(run_steps, bench, steps, keep)
        outcome = "finished"
        return bench
    finally:
        await team.stop(outcome)
        if radio is not None:
            await asyncio.to_thread(radio.close)
        await bus.close()


def _keys(order: Order, link: ServerLink, hellos: Mapping[str, Hello]) -> dict[str, RadioKey]:
    """Tell for every radio what its records depend on."""
    lab = order.pair.lab
    keys = {"server": RadioKey.of(link.radio.capabilities, link.settings(), lab.server.antenna)}
    keys |= {name: node_key(hellos[name], lab.node(name), link.profile) for name in order.names}
    return keys


def _known(
    folder: CalibrationFolder, keys: Mapping[str, RadioKey], steps: Sequence[str]
) -> dict[tuple[str, str], Result]:
    """Take over the results of all steps but ``steps``, as long as they hold; what a run repeats anyway may be old.

    A node that does not take part this time is what its records say it is.

    Raises:
        CalibrationError: one is damaged, stale, of another radio, or an earlier step did not pass.
    """
    now, taken = datetime.now(UTC), {}
    for (step, name), found in folder.records().items():
        if step in steps and name in keys:
            continue
        with suppress(*([Stale] if step in FAST else [])):
            found.check(keys.get(name, found.key), now)
        if found.result.passed:
            taken[step, name] = found.result
        elif name in keys and NAMES.index(step) < NAMES.index(steps[0]):
            raise CalibrationError(
                f"{found.name}: {step} of {name} did not pass", f"testbed calibrate --resume latest --from {step}"
            )
    return taken


def unfinished(folder: CalibrationFolder, names: Sequence[str]) -> str | None:
    """Name the first step of the table that has not passed for every radio it is about; None when all have.

    Raises:
        Damaged: a record is not as it was written.
    """
    records = folder.records()
    for step in NAMES:
        found = {name: each.result.passed for (of, name), each in records.items() if of == step}
        about = {"server"} if step == "sum" else set(names)
        if not about <= set(found) or not all(found.values()):
            return step
    return None


def _burst(folder: CalibrationFolder) -> Path | None:
    """Find the newest recording of a sum."""
    return max(folder.captures.glob("sum*.sigmf-meta"), key=lambda path: path.stat().st_mtime, default=None)


def _report(folder: CalibrationFolder, pair: Pair, bench: Bench, found: Mapping[str, Any], artist: Artist) -> None:
    about = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "lab": pair.lab_source,
        "experiment": pair.experiment_source,
        "waveform": f"{bench.profile.name}, mode {bench.mode}",
        "folder": folder.path.name,
    }
    write_report(
        folder.path / "report.html",
        pair.lab.name,
        list(bench.results.values()),
        found,
        about,
        _burst(folder),
        artist.pictures(),
    )


class Stopwatch:
    """Prefixes lines with the seconds since it was made."""

    def __init__(self, say: Say) -> None:
        self._say, self._begun = say, time.monotonic()

    def __call__(self, text: str) -> None:
        """Pass a line on."""
        self._say(f"{time.monotonic() - self._begun:6.1f} s  {text}")
