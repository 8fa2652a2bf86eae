"""A whole run on simulated USRPs: server and node as a user starts them, every radio through real libuhd.

One node: three devices in real time, each a process that never rests, are more than two cores carry every time.
"""

import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack

import pytest
from simulated import SimulatedLab

from testbed.launch import free_ports

NODES = ("node-1",)
ROUNDS = 8
LAB = """
name = "simulated USRPs"
[safety]
name = "conducted"
attenuation_db = 60.0
[server]
control_port = {}
events_port = {}
radio = "usrp:{}"
"""
NODE = """
[[nodes]]
name = "{}"
radio = "usrp:{}"
"""
EXPERIMENT = f"""
[data]
clients = 1
new_tasks = 8
[model]
hidden = [8]
[learn]
local_steps = 2
[waveform]
profile = "pluto-915"
[run]
rounds = {ROUNDS}
clients_per_round = 1
evaluate_every = {ROUNDS}
compare = false
"""
pytestmark = [pytest.mark.realtime, pytest.mark.timeout(200)]


def start(folder, *command):
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = (folder / f"{command[0]}-{command[1]}.log").open("w")
    return subprocess.Popen(
        [sys.executable, "-m", "testbed", *command], cwd=folder, env=alone, stdout=log, stderr=subprocess.STDOUT
    )


def test_the_main_job_runs_on_simulated_usrps(tmp_path):
    """No code above the driver knows what it runs on; nobody knows the true sum, so the canary is what is measured."""
    with SimulatedLab(2, "usrp-free", 23, "--snr-db", "26") as lab, ExitStack() as daemons:
        first, *others = lab.rests
        (tmp_path / "lab.toml").write_text(
            LAB.format(*free_ports(2), first)
            + "".join(NODE.format(name, rest) for name, rest in zip(NODES, others, strict=True))
        )
        (tmp_path / "experiment.toml").write_text(EXPERIMENT)
        subprocess.run([sys.executable, "-m", "testbed", "init", "."], cwd=tmp_path, check=True, capture_output=True)
        processes = [start(tmp_path, "node", name, "--lab", "lab.toml") for name in NODES]
        processes.append(start(tmp_path, "run", "experiment.toml"))
        for process in processes:
            daemons.callback(process.kill)
        told = [process.wait(150) for process in reversed(processes)]
    events = [json.loads(line) for line in (tmp_path / "runs" / "1" / "events.jsonl").open()]
    said = [event["text"] for event in events if event["kind"] == "warning"]
    assert told == [0, 0], said
    rounds = [event for event in events if event["kind"] == "round-finished"]
    good = [event for event in rounds if not event["voided"]]
    assert len(rounds) == ROUNDS and len(good) >= ROUNDS // 2, said
    assert {name for event in good for name in event["clients"]} == set(NODES)
    assert statistics.median(event["nmse_canary_db"] for event in good) <= -20.0, said
    for name in NODES:
        guard = [json.loads(line) for line in (tmp_path / "nodes" / name / "guard.jsonl").open()]
        assert {line["radio"].split(":")[0] for line in guard} == {"usrp"} and guard[-1]["state"] == "dismissed"
