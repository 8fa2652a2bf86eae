"""Whole runs with real processes on a simulated air: repeatable, killed, restarted, resumed."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from radio.errors import CalibrationError
from testbed.config import load
from testbed.launch import Launcher, launch
from testbed.run import RunFolder, read_events

SMALL = [
    "lab.heartbeat.interval_s=0.3",
    "lab.heartbeat.allowance_s=4",
    "data.new_tasks=16",
    "model.hidden=[24]",
    "learn.local_steps=2",
    "run.compare=false",
]
TIMES = {"time", "run", "seconds_train", "seconds_air", "seconds_decode"}


def sized(count: int) -> list[str]:
    """A lab of so many nodes, all of which take part in every round."""
    nodes = ",".join(f'{{name="node-{i + 1}",radio="loopback:node-{i + 1}"}}' for i in range(count))
    return [f"lab.nodes=[{nodes}]", f"data.clients={count}", f"run.clients_per_round={count}"]


def pair(*more: str, nodes: int = 2):
    return load(None, None, [*SMALL, *sized(nodes), *more])


def timeless(folder: RunFolder) -> list[str]:
    return [
        json.dumps({key: value for key, value in event.items() if key not in TIMES}, sort_keys=True)
        for event in read_events(folder.events_path)
    ]


def events(folder: RunFolder, kind: str) -> list[dict]:
    return [event for event in read_events(folder.events_path) if event["kind"] == kind]


def step_until(launcher: Launcher, done, limit_s: float = 120.0) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, f"not reached within {limit_s} s"
        if not launcher.step():
            return
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six rounds."""
    setup = pair("run.rounds=6", "run.evaluate_every=3", nodes=3)
    folder = RunFolder.create(tmp_path_factory.mktemp("whole"), setup)
    launch(setup, folder)
    return setup, folder


@pytest.mark.timeout(300)
def test_same_seeds_give_the_same_events_byte_for_byte(whole, tmp_path):
    setup, first = whole
    second = RunFolder.create(tmp_path, setup)
    launch(setup, second)
    assert timeless(first) == timeless(second)
    finished = events(first, "round-finished")
    assert [event["round"] for event in finished] == list(range(6))
    assert all(event["clients"] == ["node-1", "node-2", "node-3"] and not event["voided"] for event in finished)
    assert events(first, "run-finished")[0]["outcome"] == "finished"
    assert np.array_equal(first.load().arrays["theta"], second.load().arrays["theta"])


@pytest.mark.timeout(300)
def test_a_killed_server_resumes_to_the_parameters_of_an_unbroken_run(whole, tmp_path):
    setup, unbroken = whole
    broken = RunFolder.create(tmp_path, setup)
    with Launcher(setup, broken) as launcher:
        launcher.start()
        step_until(launcher, lambda: len(events(broken, "round-finished")) >= 2)
        launcher.processes["server"].kill()
    assert not events(broken, "run-finished")
    launch(setup, broken, resume=True)
    assert np.array_equal(unbroken.load().arrays["theta"], broken.load().arrays["theta"])
    rounds = [event["round"] for event in events(broken, "round-finished")]
    assert rounds == list(range(6))
    kinds = {"round-finished", "evaluated"}
    same = [[line for line in timeless(f) if json.loads(line)["kind"] in kinds] for f in (unbroken, broken)]
    assert same[0] == same[1]


@pytest.mark.timeout(300)
def test_a_killed_node_voids_or_shrinks_its_round_and_rejoins(tmp_path):
    setup = pair("run.rounds=400", "run.evaluate_every=1000", nodes=3)
    folder = RunFolder.create(tmp_path, setup)
    with Launcher(setup, folder) as launcher:
        launcher.start()
        step_until(launcher, lambda: len(events(folder, "round-finished")) >= 2)
        os.kill(launcher.processes["node-2"].pid, signal.SIGKILL)

        def back() -> bool:
            ready = [e for e in events(folder, "node-changed") if e["node"] == "node-2" and e["state"] == "ready"]
            return len(ready) >= 2

        step_until(launcher, back)
        rejoined = max(e["round"] for e in events(folder, "node-changed") if e["state"] == "ready")
        step_until(launcher, lambda: events(folder, "round-finished")[-1]["round"] >= rejoined + 1)
    finished = events(folder, "round-finished")
    without = [e for e in finished if "node-2" not in e["clients"]]
    assert without, "no round felt the death"
    assert all(e["voided"] or e["clients"] == ["node-1", "node-3"] for e in without)
    assert finished[-1]["clients"] == ["node-1", "node-2", "node-3"]


@pytest.mark.timeout(300)
def test_digital_scheme_runs_through_the_same_daemons_and_counts_what_its_bits_would_take(tmp_path):
    setup = pair("run.rounds=2", 'scheme.name="digital"', "scheme.measure=0.4")
    folder = RunFolder.create(tmp_path, setup)
    launch(setup, folder)
    finished = events(folder, "round-finished")
    d = folder.load().arrays["theta"].size
    assert len(finished) == 2 and all(e["channel_uses"] == round(0.4 * d) and not e["voided"] for e in finished)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["gbma", "truncated-inversion", "cotaf", "airfl-mem"])
def test_the_sums_of_other_schemes_pass_the_same_daemons(tmp_path, name):
    setup = pair("run.rounds=2", f'scheme.name="{name}"')
    folder = RunFolder.create(tmp_path, setup)
    launch(setup, folder)
    finished = events(folder, "round-finished")
    assert len(finished) == 2 and not any(e["voided"] for e in finished)
    for event in finished:
        assert event["clients"] == ["node-1", "node-2"] and event["channel_uses"] > 0
        assert event["nmse_sum_db"] == pytest.approx(event["nmse_predicted_db"], abs=3.0)


@pytest.mark.timeout(300)
def test_energies_that_stand_for_real_numbers_pass_the_same_daemons(tmp_path):
    setup = pair("run.rounds=2", 'scheme.name="reed"', "run.evaluate_every=1")
    folder = RunFolder.create(tmp_path, setup)
    launch(setup, folder)
    finished = events(folder, "round-finished")
    assert len(finished) == 2
    assert all(len(e["clients"]) == 2 and not e["voided"] and e["nmse_sum_db"] is None for e in finished)
    assert all(e["nmse_update_db"] < 0.0 for e in finished), "what was decoded tells more than nothing"


@pytest.mark.timeout(300)
def test_energies_need_no_coherence_and_train_with_a_crystal_that_sums_cannot_use(tmp_path):
    """The crystal that is refused below; votes ride on elements of their own, without precoding."""
    crystal = ("lab.ether.adev=1e-8", "waveform.adev=1e-8")
    setup = pair("run.rounds=3", 'scheme.name="fsk-mv"', "scheme.step=0.1", "run.evaluate_every=1", *crystal)
    folder = RunFolder.create(tmp_path, setup)
    launch(setup, folder)
    finished, losses = events(folder, "round-finished"), [e["loss_train_clients"] for e in events(folder, "evaluated")]
    assert all(e["clients"] == ["node-1", "node-2"] and not e["voided"] for e in finished)
    assert max(e["phase_rms_rad"] for e in finished) > 0.35  # more than a sum of waves may have
    assert all(e["channel_uses"] == 2 * folder.load().arrays["theta"].size for e in finished)
    assert all(e["nmse_sum_db"] is None and e["nmse_update_db"] is not None for e in finished)
    assert losses[-1] < losses[0]


@pytest.mark.timeout(300)
def test_complex_symbols_on_a_shared_reference_with_analog_checksums(tmp_path):
    setup = load(
        Path("examples/usrp-complex/experiment.toml"),
        None,
        [
            *sized(3),
            "run.clients_per_round=2",
            "run.rounds=2",
            "run.compare=false",
            'scheme.precoder="inversion"',  # flat arrival: appended checks then suffer what the payload suffers
        ],
    )
    folder = RunFolder.create(tmp_path, setup)
    launch(setup, folder)
    finished = events(folder, "round-finished")
    assert len(finished) == 2 and all(len(e["clients"]) == 2 and not e["voided"] for e in finished)
    for event in finished:
        assert event["nmse_sum_db"] == pytest.approx(event["nmse_predicted_db"], abs=3.0)
        assert event["nmse_checksum_db"] == pytest.approx(event["nmse_sum_db"], abs=6.0)  # 16 checks: 1.5 dB each way


@pytest.mark.timeout(300)
def test_a_crystal_too_poor_for_coherence_is_refused_with_the_reason(tmp_path):
    setup = pair("run.rounds=3", "lab.ether.adev=1e-8", "waveform.adev=1e-8")
    folder = RunFolder.create(tmp_path, setup)
    with pytest.raises(CalibrationError, match=r"predicted phase error \d\.\d\d rad exceeds 0\.5 rad"):
        launch(setup, folder)
    assert not events(folder, "round-finished")
    assert events(folder, "run-finished")[0]["outcome"] == "failed"
