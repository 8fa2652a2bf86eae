"""Steps over a lab: a good one passes all of them, and of a bad one the bad thing is named and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from calibrated_lab import QUICK, build, findings, run

from calibration.predict import NodeBudget, predict_nmse_db
from calibration.result import Estimate
from calibration.steps import NAMES, choose
from calibration.verdict import verdict
from radio.errors import ConfigError


def relative_ppm(air, name: str) -> float:
    """Frequency of a node's clock against the server's over the last second."""
    at = air._stations[name].reached_s() - 0.5 + np.array([-0.5, 0.5])
    mine, theirs = (air._stations[each].clock.error_s(at) for each in (name, "server"))
    return float((np.diff(mine) - np.diff(theirs))[0] * 1e6)


@pytest.fixture(scope="module", params=["pluto-stock", "usrp-ref"])
def good(request):
    """A stock lab that sums real values, and one on a common reference that sums complex ones."""
    mode, profile = {"pluto-stock": ("R", "pluto-915"), "usrp-ref": ("C", "usrp-ref")}[request.param]
    bench, air = build(request.param, snr_db=20.0, profile=profile, mode=mode)
    results = run(bench, ",".join(NAMES[: NAMES.index("sounding") + 1]))
    offsets_hz = np.asarray(bench.profile.bins) * bench.profile.spacing_hz
    true_db = {}
    for name, starts in bench.team.starts.items():
        powers = [np.mean(air.amplitude(name, "server", start, offsets_hz) ** 2) for start in starts]
        true_db[name] = 10 * np.log10(np.mean(powers))
    true_ppm = {name: relative_ppm(air, name) for name in bench.names}
    return bench, results + run(bench, ",".join(NAMES[NAMES.index("timing") :])), true_db, true_ppm


def test_a_good_lab_passes_every_step(good):
    bench, results, _, _ = good
    assert findings(results) == set()
    assert {each.step for each in results} == set(NAMES)
    assert {each.radio for each in results if each.step == "lock"} == set(bench.names)


def test_what_was_measured_is_what_the_air_is(good):
    bench, results, true_db, true_ppm = good
    found = {(each.step, each.radio): each for each in results}
    for name in bench.names:
        assert found["oscillator", name].number("ppm") == pytest.approx(true_ppm[name], abs=0.02)
        gain = found["sounding", name].values["gain_db"]
        assert gain.holds(true_db[name]) or gain.value == pytest.approx(true_db[name], abs=0.17)  # 2 %
    spread = found["sum", "server"].values["nmse_db"]
    assert isinstance(spread, Estimate)
    assert found["sum", "server"].number("loss_db") < 1.0


def test_the_verdict_says_what_follows(good):
    bench, results, _, _ = good
    measured = next(each for each in results if each.step == "sum")
    told = verdict(bench.results, bench.names, bench.profile)
    assert told["nmse_measured_db"] == measured.number("nmse_db")
    assert told["nmse_predicted_db"] == pytest.approx(measured.number("predicted_db"), abs=0.01)
    assert told["mode"] == measured.values["mode"] == bench.mode
    told = verdict({key: each for key, each in bench.results.items() if key[0] != "sum"}, bench.names, bench.profile)
    assert told["nmse_measured_db"] is None
    assert told["passed"] and told["findings"] == []
    assert set(told["nodes"]) == set(bench.names)
    assert told["modes"] == (["R", "C", "non-coherent"] if bench.mode == "C" else ["R", "non-coherent"])
    snr_db = [node["snr_db"] for node in told["nodes"].values()]
    level_db = max(snr_db)  # the upper median of two; the weaker one sends all it has
    budgets = [
        NodeBudget(10 ** ((node["snr_db"] - level_db) / 10), node["sigma_rad"], 0.0) for node in told["nodes"].values()
    ]
    assert told["nmse_predicted_db"] == pytest.approx(predict_nmse_db("R", budgets, 10 ** (-level_db / 10)), abs=0.01)


def radios(**overrides):
    return {"radios": {"node-2": overrides}}


@pytest.mark.parametrize(
    ("steps", "changes", "expected"),
    [
        ("inventory", radios(serial="loopback-node-1"), {("node-1", "serial"), ("node-2", "serial")}),
        ("inventory,noise", {"interferer_dbm": -75.0}, {(n, "interferer") for n in ("server", "node-1", "node-2")}),
        ("inventory,level,offset", radios(declared_tier="P2"), {("node-2", "tier")}),
        ("inventory,integrity", radios(drop_probability=0.01), {("node-2", "drops")}),
        ("inventory,lock,sounding", radios(link_loss_db=17.0), {("node-2", "weak")}),
        ("inventory,lock", radios(link_loss_db=40.0), {("node-2", "lock")}),
        ("inventory,lock,sounding", radios(contact_loss_db=15.0, contact_hz=2.0), {("node-2", "cable")}),
        ("lock,oscillator", radios(adev=1e-8), {("node-2", "crystal")}),
        ("lock,oscillator", {"radios": {"server": {"adev": 1e-8}}}, {("server", "crystal")}),
    ],
    ids=["serial", "interferer", "tier", "drops", "weak", "nothing-heard", "cable", "crystal", "server-crystal"],
)
def test_a_bad_lab_is_told_by_its_one_fault(steps, changes, expected):
    bench, _ = build("pluto-stock", snr_db=20.0, **changes)
    assert findings(run(bench, steps)) == expected


def test_a_link_in_a_deep_fade_is_weak_and_has_no_loose_cable():
    """At 4 dB noise alone takes single beacons of node-2 far below their neighbours."""
    bench, _ = build("pluto-shared-clock", 8, seed=8, snr_db=20.0)
    assert findings(run(bench, "lock")) == {("node-2", "weak")}


def test_a_link_that_turns_is_named_as_such_and_is_no_phase_error_of_its_node():
    links = {"node-2": {"snr_db": 30.0, "taps": ((0.0, 1.0, 0.0),), "scattered": 0.98, "doppler_hz": 1.0}}
    bench, _ = build("ideal", 3, {**QUICK, "phase_bursts": 12}, snr_db=30.0, seed=4, links=links)
    found = {result.radio: result for result in run(bench, "phase")}
    assert findings(list(found.values())) == {("node-2", "phase")}
    assert "its link turns by" in found["node-2"].finding.text
    assert found["node-2"].number("sigma_rad") < 0.03


def test_sums_begin_with_links_as_they_are_now():
    """A link that has turned by a radian since it was sounded costs no burst of the balance."""
    bench, _ = build("ideal", snr_db=20.0)
    assert findings(run(bench, "lock,sounding")) == set()
    peer = bench.uplink.peers["node-2"]
    bench.uplink.peers["node-2"] = replace(peer, gain=(peer.gain * np.exp(1j)).astype(np.complex64))
    bench.tell("balance")
    assert findings(run(bench, "balance")) == set()
    assert max(each.phase_variance for each in bench.uplink.peers.values()) < 0.03**2


def test_the_first_step_that_finds_something_is_the_last():
    bench, _ = build("pluto-stock", **radios(serial="loopback-node-1"))
    assert {each.step for each in run(bench, "inventory,preflight")} == {"inventory"}


def test_steps_are_chosen_by_name():
    assert [step.name for step in choose("balance", [])] == ["balance", "sum"]
    assert [step.name for step in choose(None, ["sum", "noise"])] == ["noise", "sum"]
    with pytest.raises(ConfigError, match=r"no calibration step 'nosie'.*inventory, preflight, noise"):
        choose("nosie", [])
