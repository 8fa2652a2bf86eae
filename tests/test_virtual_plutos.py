"""Whole runs on virtual Plutos: five daemons, every radio through real libiio, paced by the wall clock at 1 MS/s."""

import json
import statistics
import time
from contextlib import ExitStack

import pytest

from radio.loopback import RemoteEther
from testbed.config import load
from testbed.launch import Launcher
from testbed.run import RunFolder, read_events
from tests import parts

pytestmark = [pytest.mark.realtime, parts.libiio, pytest.mark.timeout(280)]

NODES = [f"node-{i}" for i in (1, 2, 3, 4)]
LAB = [
    'lab.server.radio="pluto-virtual"',
    "lab.nodes=[" + ",".join(f'{{name="{name}",radio="pluto-virtual"}}' for name in NODES) + "]",
    "lab.ether={preset='pluto-stock',snr_db=20.0}",
    "data.clients=4",
    "data.new_tasks=16",
    "model.hidden=[24]",
    "learn.local_steps=2",
    "run.clients_per_round=4",
    "run.compare=false",
]


def events(folder: RunFolder, kind: str) -> list[dict]:
    return [event for event in read_events(folder.events_path) if event["kind"] == kind]


def step(launcher: Launcher, done, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, f"not reached within {limit_s} s"
        if not launcher.step():
            return
        time.sleep(0.02)


def test_the_main_job_runs_on_virtual_plutos(tmp_path):
    setup = load(None, None, [*LAB, "run.rounds=20", "run.evaluate_every=20"])
    folder = RunFolder.create(tmp_path / "runs", setup)
    with Launcher(setup, folder) as launcher:
        launcher.start()
        step(launcher, lambda: False, 200.0)
    rounds = events(folder, "round-finished")
    assert len(rounds) == 20 and events(folder, "run-finished")[0]["outcome"] == "finished"
    good = [event for event in rounds if not event["voided"]]
    assert len(good) >= 16
    assert statistics.median(len(event["clients"]) for event in good) == 4
    assert statistics.median(event["nmse_sum_db"] for event in good) <= -20.0
    assert statistics.median(event["nmse_canary_db"] for event in good) <= -20.0
    hellos = [json.loads(line) for name in NODES for line in (folder.node(name) / "guard.jsonl").open()]
    assert {line["radio"].split(":")[0] for line in hellos} == {"pluto"}, "every radio was opened through libiio"


def test_a_radio_unplugged_in_a_run_is_back_in_a_round_within_ten_seconds(tmp_path):
    setup = load(None, None, [*LAB, "run.rounds=400", "run.evaluate_every=400"])
    folder = RunFolder.create(tmp_path / "runs", setup)
    with Launcher(setup, folder) as launcher, ExitStack() as stack:
        launcher.start()
        whole = lambda: sum(len(e["clients"]) == 4 for e in events(folder, "round-finished"))  # noqa: E731
        step(launcher, lambda: whole() >= 2, 120.0)
        port = next(item for item in launcher.command("ether") if item.startswith("lab.ether_port="))
        air = RemoteEther(f"tcp://127.0.0.1:{port.split('=')[1]}")
        stack.callback(air.disconnect)
        air.fault("node-2", "unplug", 2.0)
        pulled = time.monotonic()
        before = len(events(folder, "round-finished"))
        gone = lambda: any("node-2" not in e["clients"] for e in events(folder, "round-finished")[before:])  # noqa: E731
        step(launcher, gone, 20.0)
        back = len(events(folder, "round-finished"))
        step(
            launcher,
            lambda: any("node-2" in e["clients"] for e in events(folder, "round-finished")[back:]),
            30.0,
        )
        seconds = time.monotonic() - pulled - 2.0
    told = [event["text"] for event in events(folder, "warning") if "node-2" in event["text"]]
    assert any("stopped at RX index" in text for text in told), told
    assert seconds < 10.0
