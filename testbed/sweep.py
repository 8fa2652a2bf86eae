"""Runs a grid of simulated experiments, on this machine or on a Dask cluster; knows no learning, no radio, no screen.

A point is one setting of the grid with one seed, and is named by a hash of all that decides its numbers. Finished
points are appended to a journal one line at a time, so a killed sweep loses what was under way and repeats nothing
else. The table is made from the journal in the order of the grid: its bytes do not tell how often it was interrupted.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import resource
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from fl_core.options import SCHEME_NAMES
from radio.disk import disk_errors, write_whole
from radio.errors import ConfigError, RunError
from testbed.config import Experiment, Section, load_experiment
from testbed.parent import PARENT_VARIABLE, die_with_parent
from testbed.problems import explain, raise_all, suggest

__all__ = ["FigureOptions", "Plan", "Point", "Progress", "Table", "available_mb", "plan_sweep", "sweep", "work"]

SCHEDULER_WAIT_S = 10.0
FORMAT = 1  # of a journal line; a new one computes all points again
WIRED = ("ideal", "fedavg", "per-fedavg")  # schemes that never see the channel: one point serves all its settings

Row = dict[str, Any]


class FigureOptions(Section):
    """What the figure shows."""

    title: str = Field(default="", description="Heading of the figure.")
    x: str = Field(default="round", description="Horizontal axis: a key of the grid, or round.")
    y: tuple[str, ...] = Field(default=("loss_new_clients",), min_length=1, description="Columns, one panel each.")
    lines: tuple[str, ...] = Field(default=(), description="Keys of the grid, or case, that tell lines apart.")
    band: Literal["interval", "trials"] = Field(
        default="interval", description="interval: 95 % of the mean (Student). trials: what holds 95 % of the trials."
    )
    last: float = Field(
        default=0.0, ge=0, le=1, description="Share of the rounds, at the end, whose measurements are averaged."
    )
    log: bool = Field(default=False, description="Logarithmic vertical axes.")
    theory: tuple[Literal["convergence", "generalisation"], ...] = Field(
        default=(), description="Bounds to draw, each in a panel of its own."
    )


class _SweepFile(Section):
    """What a sweep file may hold."""

    experiment: str | None = Field(default=None, description="experiment.toml to start from; unset: the built-in one.")
    trials: int = Field(default=1, ge=1, le=10_000, description="Seeds per point: run.seed, run.seed + 1, ...")
    set: dict[str, Any] = Field(default_factory=dict, description="Settings of all points.")
    cases: tuple[dict[str, Any], ...] = Field(default=(), description="Settings that change together, with a name.")
    grid: dict[str, Any] = Field(default_factory=dict, description="Key -> list of values; all combinations are run.")
    figure: FigureOptions = Field(default_factory=FigureOptions, description="The figure.")


@dataclass(frozen=True)
class Point:
    """One unit of work.

    Attributes:
        key: hash of the resolved experiment.
        labels: what the table says of it: case, grid keys, seed.
        experiment: resolved.
    """

    key: str
    labels: dict[str, Any]
    experiment: Experiment


@dataclass(frozen=True)
class Plan:
    """A whole sweep before it runs."""

    name: str
    points: tuple[Point, ...]
    figure: FigureOptions


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands.

    Attributes:
        done: finished points, those of earlier runs included.
        total: all points.
        kept: points that earlier runs had finished.
        failed: points that ended with a problem.
        peak_mb: largest resident memory of any worker so far.
        problem: of the point that has just finished, if any.
    """

    done: int
    total: int
    kept: int
    failed: int
    peak_mb: float
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """The outcome of a sweep: one row per point and measurement, and the constants of each point's bounds."""

    folder: Path
    rows: tuple[Row, ...]
    constants: dict[str, dict[str, float]]
    progress: Progress


def plan_sweep(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a sweep file and resolve every point of it.

    Args:
        path: TOML. Keys are dotted, quoted or not.
        overrides: ``KEY=VALUE`` for all points, above the settings of the file and below its cases and grid.

    Raises:
        ConfigError: one problem; ``ConfigProblems`` when there are several.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", "give the path of a sweep file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", "correct the line; text values need quotes") from error
    try:
        file = _SweepFile.model_validate(table)
    except ValidationError as error:
        raise_all(explain(error, _SweepFile, str(path), {}))
        raise
    base = load_experiment(path.parent / file.experiment if file.experiment else None).model_dump(mode="json")
    common = {**_flat(file.set), **_typed(overrides)}
    grid = _flat(file.grid)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: grid.{key} = {values!r}: must be a list of values", f"write {key} = [...]")
    cases = [_flat(case) for case in file.cases] or [{}]
    if file.cases and not all(isinstance(case.get("name"), str) for case in cases):
        raise ConfigError(f"{path}: a case has no name", 'add name = "..." to every [[cases]] table')
    points: list[Point] = []
    problems: dict[str, ConfigError] = {}
    for case, values in itertools.product(cases, itertools.product(*grid.values())):
        setting = dict(zip(grid, values, strict=True))
        label = {"case": case["name"]} if "name" in case else {}
        settings = {**common, **{key: value for key, value in case.items() if key != "name"}, **setting}
        for found in _resolve(base, settings, str(path)):
            if isinstance(found, ConfigError):
                problems[str(found)] = found
                continue
            for trial in range(file.trials):
                seed = found.run.seed + trial
                experiment = found.model_copy(update={"run": found.run.model_copy(update={"seed": seed})})
                points.append(Point(_key(experiment), {**label, **setting, "seed": seed}, experiment))
    raise_all(list(problems.values()))
    known = {"round", "case", *grid}
    for key in (file.figure.x, *file.figure.lines):
        if key not in known:
            raise ConfigError(f"{path}: figure: {key!r} is no key of the grid", suggest(key, known))
    return Plan(path.stem, tuple(points), file.figure)


def _typed(overrides: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` as the line of a TOML file; a bare word is text, so that no shell quoting is needed."""
    found: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: not of the form KEY=VALUE", "write for example --set run.rounds=10")
        try:
            found[key.strip()] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = text
    return found


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join nested tables to dotted keys: in TOML, ``a.b = 1`` without quotes is a table in a table."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _resolve(base: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> Iterator[Experiment | ConfigError]:
    """Give the experiment with these settings, or what is wrong with it."""
    table = json.loads(json.dumps(base))
    for key, value in settings.items():
        group, _, name = key.partition(".")
        if not name or not isinstance(table.get(group), dict):
            yield ConfigError(f"{source}: {key}: not a setting of an experiment", suggest(group, table))
            return
        table[group][name] = value
    try:
        found = Experiment.model_validate(table)
    except ValidationError as error:
        yield from explain(error, Experiment, source, {})
        return
    name, active, clients = found.scheme.name, found.run.clients_per_round, found.data.clients
    if name not in SCHEME_NAMES:
        yield ConfigError(f"{source}: scheme.name = {name!r}: unknown scheme", suggest(name, SCHEME_NAMES))
    elif active > clients:
        text = f"{source}: run.clients_per_round = {active}, but data.clients = {clients}"
        yield ConfigError(text, f"choose at most {clients}")
    else:
        yield found


def _key(experiment: Experiment, *parts: str) -> str:
    """Hash what decides the numbers of a simulated point, or of some tables of it."""
    settings = experiment.model_dump(mode="json", exclude={"waveform"}, include=set(parts) or None)
    for name in ("checkpoint_every", "compare", "join_timeout_s", "train_timeout_s"):
        settings.get("run", {}).pop(name, None)
    if experiment.scheme.name in WIRED:
        for name in ("snr_db", "fading", "coherence"):
            settings.get("scheme", {}).pop(name, None)
    text = json.dumps([FORMAT, settings], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def available_mb() -> int:
    """Return the memory that this machine can give to new processes now, in MB."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 4096


def work(order: str) -> str:
    """Compute one point; text in, text out, so that any executor can carry it.

    Args:
        order: JSON with ``task`` (``measure`` or ``constants``) and the resolved ``experiment``.

    Returns:
        JSON with ``result`` and ``problem`` (one of them null), ``seconds`` and ``peak_mb`` of this worker.
    """
    from testbed.learner import constants, measure_trial

    begun = time.perf_counter()
    asked = json.loads(order)
    experiment = Experiment.model_validate(asked["experiment"])
    result, problem, memory = None, None, False
    try:
        result = measure_trial(experiment) if asked["task"] == "measure" else constants(experiment)
    except ConfigError as error:
        problem = str(error)
    except MemoryError as error:
        problem, memory = str(error), True
    spent = round(time.perf_counter() - begun, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer = {"result": result, "problem": problem, "out_of_memory": memory, "seconds": spent, "peak_mb": round(peak)}
    return json.dumps(answer, separators=(",", ":"))


def _start(parent: int, memory_mb: int) -> None:
    """Make a fresh worker die with the sweep, run on one thread, and refuse to grow by more than its share."""
    os.environ |= {PARENT_VARIABLE: str(parent), "OMP_NUM_THREADS": "1"}
    die_with_parent()
    import_module("testbed.learner")
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    held = next(int(line.split()[1]) for line in status if line.startswith("VmData:")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + memory_mb * 2**20, resource.RLIM_INFINITY))


@contextmanager
def _executor(workers: int, memory_mb: int, scheduler: str | None) -> Iterator[Executor]:
    if scheduler is None:
        # Spawned, not forked: a fork of a process with torch loaded may hang on a lock of its threads.
        context = get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(os.getpid(), memory_mb))
        try:
            yield pool
        except BaseException:
            for worker in active_children():  # or the interpreter would wait for the points under way
                worker.kill()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return
    try:
        distributed = import_module("distributed")
    except ImportError as error:
        raise ConfigError("--scheduler needs Dask, which is not installed", "pip install distributed") from error
    try:
        client = distributed.Client(scheduler, timeout=SCHEDULER_WAIT_S)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at {scheduler}: {error}", "start one: dask scheduler") from error
    with client, client.get_executor(pure=False) as executor:
        yield executor


def sweep(
    plan: Plan,
    folder: Path,
    *,
    workers: int = 1,
    memory_mb: int | None = None,
    scheduler: str | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda text: None,
) -> Table:
    """Compute every point that ``folder`` does not hold yet, and write the table.

    Args:
        plan: from ``plan_sweep``.
        folder: made if absent; holds ``points.jsonl`` (the journal), ``table.jsonl`` and ``table.csv``.
        workers: processes on this machine.
        memory_mb: what each of them may take beyond its libraries; unset: its share of what is free.
        scheduler: address of a Dask scheduler, which then has workers and memory limits of its own.
        report: called after every point.
        say: takes what a user should know before the first.

    Raises:
        RunError: another sweep writes to the folder, a worker ran out of memory or died, the disk is full.
        ConfigError: no such scheduler.
    """
    limit = memory_mb or max(256, int(0.8 * available_mb() / workers))
    with _journal(folder) as (finished, append):
        orders = {point.key: ("measure", point.experiment) for point in plan.points}
        if "convergence" in plan.figure.theory:
            for point in plan.points:
                orders.setdefault(_constants_key(point), ("constants", point.experiment))
        kept = sum(key in finished for key in orders)
        waiting = {key: order for key, order in orders.items() if key not in finished}
        waiting = dict(sorted(waiting.items(), key=lambda item: item[1][1].run.seed))  # a worker keeps a seed's images
        peak = 0.0

        def progress(problem: str | None = None) -> Progress:
            failed = sum(finished[key]["problem"] is not None for key in orders if key in finished)
            return Progress(sum(key in finished for key in orders), len(orders), kept, failed, peak, problem)

        room = f"{workers} workers of at most {limit} MB" if scheduler is None else f"the Dask cluster at {scheduler}"
        say(f"{len(orders)} points, {kept} finished before; computing {len(waiting)} on {room}")
        if waiting:
            with _executor(workers, limit, scheduler) as executor:
                futures: dict[Future[str], str] = {}
                for key, (task, experiment) in waiting.items():
                    order = json.dumps({"task": task, "experiment": experiment.model_dump(mode="json")})
                    futures[executor.submit(work, order)] = key
                for future in as_completed(futures):
                    answer = _answer(future, limit)
                    peak = max(peak, answer["peak_mb"])
                    finished[futures[future]] = answer
                    append({"key": futures[future], **answer})
                    report(progress(answer["problem"]))
        rows = [row for point in plan.points for row in _rows(point, finished[point.key])]
        constants = {
            point.key: finished[key]["result"]
            for point in plan.points
            if (key := _constants_key(point)) in finished and finished[key]["problem"] is None
        }
        write_whole(folder / "table.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        write_whole(folder / "table.csv", _csv(rows).encode())
        return Table(folder, tuple(rows), constants, progress())


def _constants_key(point: Point) -> str:
    """Hash what decides the constants of a point's bounds: not its channel, and not which trial it is."""
    first = point.experiment.run.model_copy(update={"seed": 0})
    return "constants-" + _key(point.experiment.model_copy(update={"run": first}), "data", "model", "learn")


def _answer(future: Future[str], limit: int) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(future.result())
    except BrokenProcessPool as error:
        raise RunError("a worker of the sweep died", "use fewer --workers, then start the sweep again") from error
    if answer.pop("out_of_memory"):
        raise RunError(
            f"a point needs more than the {limit} MB of its worker: {answer['problem']}",
            "raise --memory-mb, use fewer --workers, or make the network smaller; finished points are kept",
        )
    return answer


def _rows(point: Point, answer: Mapping[str, Any]) -> list[Row]:
    if answer["problem"] is not None:
        return [{**point.labels, "problem": answer["problem"]}]
    experiment = point.experiment
    aggregate = experiment.scheme.snr_db + 10.0 * math.log10(experiment.run.clients_per_round)
    return [{**point.labels, "problem": "", **row, "snr_aggregate_db": aggregate} for row in answer["result"]]


def _csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


Append = Callable[[Mapping[str, Any]], None]


@contextmanager
def _journal(folder: Path) -> Iterator[tuple[dict[str, dict[str, Any]], Append]]:
    """Open the journal for this process alone; give what it holds, and a way to add one whole line."""
    path = folder / "points.jsonl"
    with disk_errors(path, "open the journal of the sweep"):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another sweep writes to {folder}", "wait for it, or give another --out") from error
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        os.ftruncate(descriptor, whole)  # half a line, from a process that was killed while writing it
        finished: dict[str, dict[str, Any]] = {}
        for line in content[:whole].splitlines():
            answer = json.loads(line)
            finished[answer.pop("key")] = answer

        def append(answer: Mapping[str, Any]) -> None:
            with disk_errors(path, "append a finished point"):
                os.write(descriptor, json.dumps(answer, separators=(",", ":")).encode() + b"\n")
                os.fsync(descriptor)

        yield finished, append
    finally:
        os.close(descriptor)
