"""Runs that use a calibration: what they take from it and what they refuse, with real processes where needed."""

import asyncio
import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from calibration.record import CalibrationFolder, RadioKey
from calibration.result import Estimate, Finding, Result
from radio.errors import CalibrationError, Damaged, Failed, Foreign, RunError, Stale
from radio.ofdm import PROFILES
from testbed.bus import NodeBus
from testbed.calibrated import Calibrated, node_key
from testbed.config import load
from testbed.front import prepare
from testbed.launch import Launcher, launch
from testbed.messages import Hello, Refused
from testbed.run import RunFolder, read_events

NAMES = ["node-1", "node-2"]
SMALL = [
    "lab.nodes=[" + ",".join(f'{{name="{name}",radio="loopback:{name}"}}' for name in NAMES) + "]",
    "data.clients=2", "data.new_tasks=8", "model.hidden=[8]", "learn.local_steps=1", "run.clients_per_round=2",
    "run.rounds=1", "run.compare=false",
]  # fmt: skip
PLUTO = PROFILES["pluto-915"]
VERDICT = {
    "findings": [],
    "nodes": {name: {"sigma_rad": 0.12, "modes": ["R", "non-coherent"]} for name in NAMES},
    "largest_burst_s": 0.004,
}


def key(name, **changes):
    lab = load(None, None, SMALL).lab
    entry = lab.server if name == "server" else lab.node(name)
    made = RadioKey(f"loopback-{name}", "loopback 1", 1e6, 915e6, 915e6, 1e6, entry.rx_gain_db, entry.tx_attenuation_db)
    return replace(made, **changes)


def calibrate(root, age=timedelta(0), verdict=VERDICT, keys=None):
    folder = CalibrationFolder.create(root / "calibrations", {"lab.toml": ""})
    time = datetime.now(UTC) - age
    for name in ("server", *NAMES):
        mine = (keys or {}).get(name) or key(name)
        folder.save(Result("noise", name, {"noise_dbfs": Estimate(-70.0, -71.0, -69.0, "db")}), mine, time)
        if name != "server":
            folder.save(Result("oscillator", name, {"adev": Estimate(6e-10, 5e-10, 7e-10)}), mine, time)
            folder.save(Result("phase", name, {"sigma_rad": Estimate(0.3, 0.2, 0.4, "rad")}), mine, time)
            folder.save(Result("balance", name, {"level_db": Estimate(-0.5, -0.6, -0.4, "db")}), mine, time)
    if verdict is not None:
        folder.conclude(verdict)
    return folder


def ready(tmp_path, monkeypatch, folder, *more, accept=False):
    monkeypatch.chdir(tmp_path)
    return prepare(None, None, [*SMALL, *more], None, tmp_path / "runs", str(folder.path), accept)


def test_the_figures_of_a_calibration(tmp_path):
    used = Calibrated(calibrate(tmp_path), "calibrations/1")
    assert used.adev("node-1") == pytest.approx(6e-10 / 2**0.5) and used.adev("server") is None
    variance, amplitude = used.prior("node-2")
    assert variance == pytest.approx(0.09) and amplitude == pytest.approx(0.056, abs=1e-3)
    assert used.check("node-1", key("node-1")) == []
    hello = Hello(
        name="node-1", serial="loopback-node-1", tier="P0", driver="loopback 1", rate_hz=2e6, turnaround_samples=0,
        one_timeline=False,
    )  # fmt: skip
    assert node_key(hello, load(None, None, SMALL).lab.node("node-1"), PLUTO) == key("node-1")
    with pytest.raises(CalibrationError, match=r"calibrations/1: node-9 was not calibrated"):
        used.check("node-9")


def test_modes_and_schemes_that_the_verdict_does_not_permit_are_refused(tmp_path):
    used = Calibrated(calibrate(tmp_path), "calibrations/1")
    assert used.permit(NAMES, "R", "phase", PLUTO) == [
        "bursts last 10.1 ms, the largest useful burst of this lab 4.0 ms"
    ]
    with pytest.raises(CalibrationError, match=r"mode C is not permitted for node-1: its phase error is 0\.120 rad"):
        used.permit(NAMES, "C", "phase", PLUTO)
    nodes = {**VERDICT["nodes"], "node-2": {"sigma_rad": 0.7, "modes": ["non-coherent"]}}
    worse = Calibrated(calibrate(tmp_path, verdict={**VERDICT, "nodes": nodes}), "calibrations/2")
    with pytest.raises(CalibrationError, match=r"node-2: predicted phase error 0\.70 rad.*\"fsk-mv\" or \"reed\""):
        worse.permit(NAMES, "R", "phase", PLUTO)
    assert worse.permit(NAMES, "R", "none", PLUTO)
    assert not worse.permit(["node-1"], "R", "inversion", replace(PLUTO, rate_hz=1e7))


def test_what_no_run_may_start_with_leaves_no_run_folder(tmp_path, monkeypatch):
    old = calibrate(tmp_path, timedelta(days=2))
    with pytest.raises(Stale, match=r"noise of node-1 is 48\.0 h old, limit 24\.0 h.*--accept-stale") as caught:
        ready(tmp_path, monkeypatch, old)
    assert caught.value.exit_code == 4
    with pytest.raises(CalibrationError, match="not finished"):
        ready(tmp_path, monkeypatch, calibrate(tmp_path, verdict=None))
    found = {"step": "noise", "radio": "server", **vars(Finding("interferer", "a carrier at 915.2 MHz", "find it"))}
    with pytest.raises(Failed, match=r"noise of server: a carrier at 915\.2 MHz -> find it"):
        ready(tmp_path, monkeypatch, calibrate(tmp_path, verdict={**VERDICT, "findings": [found]}))
    broken = calibrate(tmp_path)
    path = broken.path / "records" / "noise-node-1.json"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Damaged, match=r"noise-node-1\.json"):
        ready(tmp_path, monkeypatch, broken)
    with pytest.raises(RunError, match="no calibration '77'"):
        prepare(None, None, SMALL, None, tmp_path / "runs", "77")
    assert not (tmp_path / "runs").exists()
    fast = timedelta(hours=20)  # older than the fast steps hold: the run measures these itself
    ready(tmp_path, monkeypatch, calibrate(tmp_path, fast))


@pytest.mark.timeout(300)
def test_a_run_takes_an_old_calibration_when_told_to_says_so_and_repeats_from_its_folder(tmp_path, monkeypatch):
    old = calibrate(tmp_path, timedelta(days=2))
    setup, folder = ready(tmp_path, monkeypatch, old, accept=True)
    launch(setup, folder)
    events = list(read_events(folder.events_path))
    assert events[0]["calibration"] == "calibrations/1"
    warnings = [event["text"] for event in events if event["kind"] == "warning" and event["code"] == "stale"]
    assert len(warnings) == 3 and "noise of server is 48.0 h old" in warnings[0]
    assert any(event["kind"] == "warning" and event["code"] == "burst" for event in events)
    links = next(event["links"] for event in events if event["kind"] == "calibrated")
    assert all(link["phase_rms_rad"] == pytest.approx(0.3) for link in links.values()), "the prior was not used"
    assert json.loads((folder.path / "calibration" / "use.json").read_text())["accept_stale"] is True
    saved = folder.path / "nodes" / "node-1"
    state = json.loads(max(saved.glob("round-*.json")).read_text())["extra"]["link"]["tracker"]
    assert state["adev"] == pytest.approx(6e-10 / 2**0.5)
    with pytest.raises(Stale, match=r"48\.0 h old"):
        prepare(folder.path, None, [], None, tmp_path / "runs")
    _, again = prepare(folder.path, None, [], None, tmp_path / "runs", None, True)
    assert Calibrated.of(again.path).source == "calibrations/1"
    with pytest.raises(RunError, match="leave --calibration away"):
        prepare(None, None, [], str(folder.path), tmp_path / "runs", "latest")


@pytest.mark.timeout(300)
def test_a_run_refuses_the_records_of_another_radio(tmp_path, monkeypatch):
    swapped = calibrate(tmp_path, keys={"node-2": key("node-2", serial="104473", rx_gain_db=40.0)})
    setup, folder = ready(tmp_path, monkeypatch, swapped)
    expected = r"balance-node-2\.json.*serial was '104473', is 'loopback-node-2', rx_gain_db was 40.0, is 60.0"
    with pytest.raises(Foreign, match=expected) as caught:
        launch(setup, RunFolder.open(folder.path))
    assert caught.value.exit_code == 4


@pytest.mark.timeout(300)
def test_a_node_that_comes_back_with_another_radio_is_refused_and_the_run_goes_on(tmp_path, monkeypatch):
    more = ["run.rounds=80", "run.evaluate_every=80"]  # of 60 ms each: the run must not be over before the swap
    setup, folder = ready(tmp_path, monkeypatch, calibrate(tmp_path), *more)
    place = RunFolder.open(folder.path)

    def told(kind):
        return [event for event in read_events(place.events_path) if event["kind"] == kind]

    async def swap(lab):
        bus = await NodeBus(lab, "node-2", place.keys).connect()
        await bus.send(other_radio)
        while not isinstance(answer := (await bus.receive()).message, Refused):
            pass  # orders of the round that is under way
        await bus.close()
        return answer.reason

    other_radio = Hello(
        name="node-2", serial="104473", tier="P0", driver="loopback 1", rate_hz=2e6, turnaround_samples=0,
        one_timeline=False,
    )  # fmt: skip
    with Launcher(setup, place) as launcher:
        launcher.start()
        while not told("round-finished"):
            launcher.alive()
            time.sleep(0.05)
        reason = asyncio.run(swap(load(place.path, None, launcher.settings).lab))
        assert launcher.processes["server"].wait(120) == 0
    assert "serial was 'loopback-node-2', is '104473'" in reason
    (warning,) = [event for event in told("warning") if event["code"] == "calibration-foreign"]
    assert "node-2 is refused" in warning["text"]
    assert len(told("round-finished")) == 80 and told("run-finished")[-1]["outcome"] == "finished"
    assert {loss["node"] for event in told("round-finished") for loss in event["losses"]} == {"node-2"}
