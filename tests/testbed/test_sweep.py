"""Sweeps: planning, one table whoever computes it and however often it is killed, bounded memory, and the figure."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from radio.errors import ConfigError, RunError
from testbed import sweep as module
from testbed.figures import against_last, draw, interval, points, reduce_rows, summary
from testbed.problems import ConfigProblems
from testbed.sweep import plan_sweep, sweep

SMALL = """
trials = 2
set."data.new_tasks" = 4
set.data = {clients = 3, classes_per_client = 5}
set.model.hidden = [4]
set.run = {rounds = 2, evaluate_every = 1, clients_per_round = 3}
[[cases]]
name = "ideal"
scheme.name = "ideal"
[[cases]]
name = "air"
scheme.mapping = "pair"
[[cases]]
name = "wild"
model = {hidden = [32, 32, 32], activation = "relu"}
learn = {alpha = 1, local_steps = 30, eta = 100}
[grid]
scheme.snr_db = [0, 20.0]
"scheme.keep" = [0.1]
[figure]
x = "scheme.snr_db"
y = ["loss_new_clients", "generalisation_gap"]
lines = ["case"]
theory = ["convergence", "generalisation"]
"""
FILES = ("table.jsonl", "table.csv")


def write(folder: Path, text: str = SMALL) -> Path:
    path = folder / "small.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The same sweep, computed once in one go by one worker."""
    folder = tmp_path_factory.mktemp("unbroken")
    plan, stands = plan_sweep(write(folder)), []
    table = sweep(plan, folder / "out", workers=1, report=stands.append)
    return plan, table, stands


def test_a_point_is_a_case_a_combination_and_a_seed(unbroken):
    plan, table, stands = unbroken
    assert [(p.labels["case"], p.labels["scheme.snr_db"], p.labels["seed"]) for p in plan.points] == [
        (case, snr, seed) for case in ("ideal", "air", "wild") for snr in (0, 20.0) for seed in (1, 2)
    ]
    experiment = plan.points[7].experiment
    assert (experiment.scheme.mapping, experiment.scheme.snr_db, experiment.run.seed) == ("pair", 20.0, 2)
    assert experiment.model.hidden == (4,) and experiment.data.new_tasks == 4 and experiment.scheme.keep == 0.1
    assert len({point.key for point in plan.points}) == 10  # the channel cannot touch `ideal`
    judged = [row for row in table.rows if row["case"] != "wild"]
    assert len(judged) == 8 * 3  # at the start and after each of two rounds
    assert [stand.done for stand in stands] == list(range(1, 13)) and stands[-1].total == 12  # with two of constants
    assert 50 < stands[-1].peak_mb < 2000


def test_the_seed_alone_decides_what_the_channel_does_not_touch(unbroken):
    rows = [row for row in unbroken[1].rows if row["case"] == "ideal" and row["seed"] == 1]
    low, high = ([r for r in rows if r["scheme.snr_db"] == snr] for snr in (0, 20.0))
    assert [r["loss_new_clients"] for r in low] == [r["loss_new_clients"] for r in high]
    air = [r for r in unbroken[1].rows if r["case"] == "air" and r["seed"] == 1]
    assert air[0]["loss_new_clients"] == low[0]["loss_new_clients"]
    assert air[2]["loss_new_clients"] != low[2]["loss_new_clients"]
    assert air[2]["channel_uses"] == 2 * ((64 * 4 + 4 + 4 * 5 + 5 + 1) // 2)
    assert air[2]["snr_aggregate_db"] == pytest.approx(10 * np.log10(3))


def test_both_tables_say_the_same(unbroken):
    folder, rows = unbroken[1].folder, unbroken[1].rows
    lines = [json.loads(line) for line in (folder / "table.jsonl").read_text().splitlines()]
    with (folder / "table.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert lines == list(rows) and len(cells) == len(rows)
    for row, cell in zip(rows, cells, strict=True):
        for key, value in row.items():
            text = "" if value is None else str(value)
            assert cell[key] == text


def processes_under(parent: int) -> set[int]:
    """Process numbers of all live descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, waiting = set(), [parent]
    while waiting:
        below = children.get(waiting.pop(), [])
        found |= set(below)
        waiting += below
    return found


def test_killed_at_random_and_resumed_it_equals_an_unbroken_one(unbroken, tmp_path):
    out, file = tmp_path / "out", write(tmp_path)
    journal = out / "points.jsonl"
    command = [sys.executable, "-m", "testbed", "sweep", str(file), "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline, wanted = time.monotonic() + 120, random.Random(os.getpid()).randint(1, 9)
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= wanted):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        workers = processes_under(process.pid)
        assert len(workers) >= 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finished = journal.read_bytes().count(b"\n")
    assert wanted <= finished < 12 and not (out / "table.csv").exists()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # they die with it, and do not write on
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with journal.open("ab") as file_:  # as if the kill had come within a write
        file_.write(b'{"key": "half a li')
    stands = []
    sweep(plan_sweep(file), out, report=stands.append)
    assert stands[0].kept == finished and len(stands) == 12 - finished
    for name in FILES:
        assert (out / name).read_bytes() == (unbroken[1].folder / name).read_bytes()
    again = []
    sweep(plan_sweep(file), out, report=again.append)  # nothing is left to do, and nothing is done
    assert again == []


def test_two_dask_workers_give_the_table_of_one_process(unbroken, tmp_path):
    distributed = pytest.importorskip("distributed", reason="the optional extra dask")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path), silence_logs=50
    ) as cluster:
        sweep(plan_sweep(write(tmp_path)), tmp_path / "out", scheduler=cluster.scheduler_address)
        with distributed.Client(cluster) as client:
            assert all(count > 0 for count in client.run(lambda: len(sys.modules)).values())
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (unbroken[1].folder / name).read_bytes()


def test_no_scheduler_there_is_one_error(unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SCHEDULER_WAIT_S", 0.5)
    pytest.importorskip("distributed", reason="the optional extra dask")
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        sweep(unbroken[0], tmp_path, scheduler="tcp://127.0.0.1:9")


def test_a_longer_grid_repeats_nothing(unbroken, tmp_path):
    """The journal is looked up by what decides a point's numbers, so a sweep may grow."""
    table = unbroken[1]
    (tmp_path / "points.jsonl").write_bytes((table.folder / "points.jsonl").read_bytes())
    shorter = plan_sweep(write(tmp_path, SMALL.replace("[0, 20.0]", "[20.0]")))
    told = []
    found = sweep(shorter, tmp_path, say=told.append)
    assert told == [f"8 points, 8 finished before; computing 0 on {told[0].rpartition(' on ')[2]}"]
    assert list(found.rows) == [row for row in table.rows if row["scheme.snr_db"] == 20.0]


def test_a_point_that_diverges_is_data(unbroken):
    _, table, stands = unbroken
    bad = [row for row in table.rows if row["problem"]]
    assert stands[-1].failed == len({row["seed"] for row in bad}) * 2 == len(bad) > 0 and {
        row["case"] for row in bad
    } == {"wild"}
    assert all("not finite" in row["problem"] and "round" not in row for row in bad)


def test_a_worker_may_not_outgrow_its_memory(tmp_path):
    text = "[set]\nmodel.hidden = [8000, 2000]\nrun.rounds = 1\n[grid]\nscheme.snr_db = [0]\n"
    with pytest.raises(RunError, match=r"more than the 150 MB of its worker.*--workers"):
        sweep(plan_sweep(write(tmp_path, text)), tmp_path / "out", memory_mb=150)
    assert (tmp_path / "out" / "points.jsonl").read_bytes() == b""


def test_two_sweeps_do_not_share_a_folder(unbroken, tmp_path):
    with module._journal(tmp_path), pytest.raises(RunError, match="another sweep writes"):
        sweep(unbroken[0], tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("trials = 0", r"trials = 0: must be at least 1"),
        ("gird = {}", r"gird: unknown key -> .*'grid'"),
        ("grid = 3", r"grid = 3: must be a table"),
        ("[grid]\nscheme.keep = 0.1", r"grid\.scheme\.keep = 0\.1: must be a list"),
        ("[grid]\nscheme.keep = [2.0]", r"scheme\.keep = 2\.0: must be at most 1"),
        ("[grid]\nscheme.kep = [0.1]", r"scheme\.kep: unknown key -> did you mean 'keep'"),
        ("[grid]\nkeep = [0.1]", r"keep: not a setting of an experiment"),
        ('[grid]\nscheme.name = ["idael"]', r"'idael': unknown scheme -> did you mean 'ideal'"),
        ("[set]\nrun.clients_per_round = 9", r"clients_per_round = 9, but data\.clients = 8"),
        ('[[cases]]\nscheme.name = "ideal"', "a case has no name"),
        ('[figure]\nx = "scheme.snr_db"', r"'scheme\.snr_db' is no key of the grid"),
        ("trials = ", "not valid TOML"),
        ('experiment = "none.toml"', r"none\.toml: cannot be read"),
    ],
)
def test_every_mistake_is_one_error_before_anything_runs(text, found, tmp_path):
    with pytest.raises(ConfigError, match=found) as caught:
        plan_sweep(write(tmp_path, text))
    assert not isinstance(caught.value, ConfigProblems) and caught.value.remedy


def test_several_mistakes_are_told_together_and_once(tmp_path):
    text = "[grid]\nscheme.keep = [0.1, 2.0]\nscheme.snr_db = [0, 900, 1]"
    with pytest.raises(ConfigProblems) as caught:
        plan_sweep(write(tmp_path, text))
    assert len(caught.value.problems) == 2


def test_overrides_reach_every_point(tmp_path):
    plan = plan_sweep(write(tmp_path), ["run.rounds=7", "data.name=glyphs"])
    assert {(p.experiment.run.rounds, p.experiment.data.name) for p in plan.points} == {(7, "glyphs")}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        plan_sweep(write(tmp_path), ["run.rounds"])


def test_intervals_are_those_of_student():
    values = list(np.random.default_rng(1).normal(3.0, 2.0, 10))
    low, high = stats.t.interval(0.95, 9, np.mean(values), stats.sem(values))
    mean, half = interval(values)
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert interval([1.5])[0] == 1.5 and np.isnan(interval([1.5])[1]) and np.isnan(interval([])[0])


def test_a_stationary_value_is_the_mean_of_the_last_rounds():
    rows = [{"round": number, "y": value} for number, value in zip((0, 5, 10, 15, 20), (9, 8, 4, 2, None), strict=True)]
    assert reduce_rows(rows, "y", 0.0) == 2.0 and reduce_rows(rows, "y", 0.4) == 3.0
    assert np.isnan(reduce_rows([], "y", 0.0))


def test_the_summary_and_the_figure_show_every_line(unbroken, tmp_path):
    plan, table, _ = unbroken
    lines = points(plan, table).splitlines()
    assert summary(plan, table).startswith(points(plan, table)) and against_last(plan, table) in summary(plan, table)
    assert len(lines) >= 2 + 4 and lines[0].startswith("| case | scheme.snr_db | scheme.keep | loss_new_clients |")
    final = [
        r["loss_new_clients"] for r in table.rows if r["case"] == "air" and r["scheme.snr_db"] == 0 and r["round"] == 2
    ]
    assert lines[4].startswith(f"| air | 0 | 0.1 | {np.mean(final):.4g} ±")
    changes = against_last(plan, table).splitlines()
    assert len(changes) == 2 + 2 and changes[2].startswith("| ideal | 0 | +0 ± 0 | +0 ± 0 |")  # none of wild is left
    other = [r["loss_new_clients"] for r in table.rows if r["case"] == "air" and r["scheme.snr_db"] and r["round"] == 2]
    assert changes[3].startswith(f"| air | 0 | {np.mean(final) - np.mean(other):+.3g} ±")
    draw(plan, table, tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert drawn.count("<!-- air -->") == 4 and drawn.count("<!-- ideal -->") == 3  # two panels, one bound each
    assert "<!-- bound" in drawn and "aggregate" in drawn
