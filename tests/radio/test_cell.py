"""A whole cell on the simulated air: sums as the formula says, faults seen in the round in which they happen."""

import dataclasses
import math

import numpy as np
import pytest

from calibration import NodeBudget, predict_nmse_db, refuse_coherent
from radio import nodelink
from radio.base import Capture
from radio.cell import Cell, nmse_db, random_symbols
from radio.errors import ConfigError, LinkError
from radio.ether import Ether
from radio.loopback import LoopbackRadio
from radio.ofdm import PROFILES, capacity, pilot
from radio.presets import preset
from radio.verify import verify

PLUTO = dataclasses.replace(PROFILES["pluto-915"], modes=("R", "C"))


class Slipping:
    """A radio whose driver silently loses samples (or repeats them): later samples come under too small an index."""

    def __init__(self, radio):
        self._radio, self.slip = radio, 0

    def __getattr__(self, key):
        return getattr(self._radio, key)

    def now(self):
        return self._radio.now() - self.slip

    newest = now

    def receive(self, count, start=None):
        got = self._radio.receive(count, None if start is None else start + self.slip)
        return Capture(got.samples, got.start - self.slip, got.rate_hz, got.clipped, got.events)


def build(
    name, snr_db, mode="R", precoder="phase", nodes=8, profile=PLUTO, backoff_db=9.0, seed=1, wrap=None, **changes
):
    names = [f"node-{i}" for i in range(1, nodes + 1)]
    ether = Ether(preset(name, snr_db=snr_db, seed=seed, **changes), ["server", *names])
    radios = {n: LoopbackRadio(n, ether) for n in names}
    radios |= {n: wrap(radios[n]) for n in names[:1] if wrap}
    cell = Cell(LoopbackRadio("server", ether), radios, profile, mode, precoder, seed=seed)
    cell.open()
    cell.uplink.backoff_db = backoff_db
    assert cell.join() == {}
    return cell


def predicted_db(cell):
    uplink = cell.uplink
    budgets = [
        NodeBudget(
            uplink.arrival(name) ** 2,
            math.sqrt(peer.phase_variance),
            peer.sigma_eps if cell.precoder == "inversion" else 0.0,
        )
        for name, peer in uplink.peers.items()
    ]
    return predict_nmse_db(cell.mode, budgets, uplink.noise / uplink.level**2)


def play(cell, rounds, first=0, tamper=None):
    """Run rounds; gives (sum, canary, predicted) NMSE in dB per round and the last outcome."""
    rng = np.random.default_rng(first)
    count = capacity(cell.profile, cell.mode) // 2
    rows = []
    for number in range(first, first + rounds):
        forecast = predicted_db(cell)
        symbols = random_symbols(sorted(cell.uplink.peers), count, rng)
        extra = {"tamper": tamper} if tamper else {}
        outcome = cell.round(symbols, number, **extra)
        rows.append((nmse_db(outcome.aggregate.symbols, outcome.target), outcome.aggregate.canary_nmse_db, forecast))
    return np.array(rows), outcome


def mean_db(values):
    return 10 * math.log10(np.mean(10 ** (values / 10)))


def formula_db(mode, gamma_db, clipping=False):
    if clipping:
        return predict_nmse_db(mode, [NodeBudget(1.0, 0.0, 0.0)] * 8, 10 ** (-gamma_db / 10))
    return -gamma_db - 10 * math.log10(8 * (2 if mode == "R" else 1))


@pytest.mark.parametrize("mode", ["R", "C"])
@pytest.mark.parametrize("gamma_db", [0.0, 10.0, 20.0])
def test_the_ideal_air_reaches_the_formula(mode, gamma_db):
    rows, _ = play(build("ideal", gamma_db, mode), 5)
    assert mean_db(rows[:, 0]) == pytest.approx(formula_db(mode, gamma_db), abs=0.3)
    assert np.median(rows[:, 2]) == pytest.approx(formula_db(mode, gamma_db), abs=0.3)
    assert np.median(rows[:, 1]) == pytest.approx(np.median(rows[:, 0]), abs=1.0)


@pytest.mark.parametrize("mode", ["R", "C"])
def test_at_30_db_clipping_is_all_that_is_left_to_explain(mode):
    rows, outcome = play(build("ideal", 30.0, mode), 10)
    assert outcome.clipped > 0
    assert mean_db(rows[:, 0]) == pytest.approx(formula_db(mode, 30.0, clipping=True), abs=0.5)
    assert np.median(rows[:, 2]) == pytest.approx(formula_db(mode, 30.0, clipping=True), abs=0.3)
    rows, outcome = play(build("ideal", 33.0, mode, backoff_db=12.0), 5)  # the same gamma, hardly a sample clipped
    assert mean_db(rows[:, 0]) == pytest.approx(formula_db(mode, 30.0), abs=0.2)


@pytest.fixture(scope="module")
def stock():
    return build("pluto-stock", 20.0, seed=2)


def test_free_running_radios_sum_as_predicted(stock):
    rows, outcome = play(stock, 16)
    measured, canary, forecast = np.median(rows, axis=0)
    assert measured <= -24.0
    assert measured == pytest.approx(forecast, abs=1.5)
    assert canary == pytest.approx(measured, abs=1.0)
    assert outcome.aggregate.verdict.action == "accept"


def test_a_constant_phase_error_of_one_node_is_caught_in_its_round(stock):
    before, _ = play(stock, 4, first=100)
    turned = np.complex64(np.exp(0.6j))  # the other nodes' phases, and this one's own, are 0.1 rad off, too

    def tamper(name, grid):
        return grid * turned if name == "node-3" else grid

    rows, outcome = play(stock, 1, first=110, tamper=tamper)
    verdict = outcome.aggregate.verdict
    assert verdict.nodes[2] == "phase" and verdict.action == "partial"
    assert set(verdict.nodes) - {verdict.nodes[2]} <= {"ok", "gain"}
    assert rows[0, 1] > np.median(before[:, 1]) + 2.0
    assert stock.uplink.peers["node-3"].flagged


def test_half_a_radian_on_one_node_of_a_clean_air_is_caught():
    cell = build("ideal", 20.0)
    before, _ = play(cell, 2, first=100)
    turned = np.complex64(np.exp(0.5j))
    rows, outcome = play(cell, 1, first=110, tamper=lambda name, grid: grid * turned if name == "node-3" else grid)
    assert outcome.aggregate.verdict.nodes[2] == "phase" and outcome.aggregate.verdict.action == "partial"
    assert rows[0, 1] > np.median(before[:, 1]) + 1.0


def test_a_jump_is_not_followed_but_asks_for_a_sounding_and_a_gate_that_keeps_closing_widens():
    cell = build("ideal", 20.0, nodes=4)
    play(cell, 2)
    before = cell.links["node-3"].csi

    def tamper(name, grid):
        return grid * np.complex64(np.exp(0.3j)) if name == "node-3" else grid

    _, outcome = play(cell, 1, first=10, tamper=tamper)
    assert outcome.aggregate.verdict.nodes[2] == "ok"  # within the limits of R mode, but not what a clean air does
    assert "jump of 0.2" in cell.uplink.due(0)["node-3"] and set(cell.uplink.due(0)) == {"node-3"}
    assert cell.links["node-3"].csi.gain == pytest.approx(before.gain)
    for number in range(11, 40):
        play(cell, 1, first=number, tamper=tamper)
        if not cell.uplink.peers["node-3"].flagged:
            break
    assert 12 <= number <= 16 and cell.links["node-3"].csi.gain != pytest.approx(before.gain)


def test_a_link_that_nothing_confirms_is_due_after_its_time():
    cell = build("ideal", 20.0, nodes=2)
    slots = round(30.0 * PLUTO.rate_hz / PLUTO.slot_samples)
    cell.uplink.confirm(["node-1", "stranger"], 500)
    assert set(cell.uplink.due(slots + 1)) == {"node-2"} and cell.uplink.due(slots) == {}
    assert cell.uplink.due(slots + 502)["node-1"] == "not confirmed for 30 s"
    assert set(cell.uplink.due(600, holds_s=0.5)) == {"node-1", "node-2"}


def test_a_crystal_too_poor_is_refused_with_its_number():
    cell = build("pluto-stock", 20.0, nodes=2, adev=1e-8)
    sigma = math.sqrt(max(peer.phase_variance for peer in cell.uplink.peers.values()))
    assert f"{sigma:.2f} rad exceeds 0.5 rad" in (refuse_coherent(sigma) or "")


@pytest.mark.parametrize("snr_db", [0.0, 5.0])
def test_corner_clocks_at_low_snr_lock_and_sum(snr_db):
    ppm = {"server": {"ppm": -25.0}, **{f"node-{i}": {"ppm": 25.0 * (-1) ** i} for i in range(1, 9)}}
    calm = {"rician_k_min_db": 15.0, "rician_k_max_db": 15.0}  # a 10 dB fade of one link is another matter
    cell = build("pluto-stock", snr_db, radios=ppm, **calm)
    for place, node in enumerate(cell.links.values(), 1):
        assert node.ppm == pytest.approx(25.0 * (-1) ** place + 25.0, abs=0.05)  # one beacon's reading
    rows, _ = play(cell, 8)
    assert np.median(rows[:, 0]) == pytest.approx(np.median(rows[:, 2]), abs=1.5)


@pytest.mark.parametrize(
    ("name", "mode", "profile"),
    [
        ("pluto-shared-clock", "R", PLUTO),
        ("pluto-shared-clock", "C", PLUTO),
        ("usrp-free", "R", PLUTO),
        ("usrp-ref", "C", PROFILES["usrp-ref"]),
    ],
)
def test_other_presets_sum_near_their_prediction(name, mode, profile):
    rows, _ = play(build(name, 20.0, mode, profile=profile, nodes=8 if profile is PLUTO else 4), 6)
    measured, _, forecast = np.median(rows, axis=0)
    assert measured == pytest.approx(forecast, abs=1.5)


def test_separate_carriers_sum_as_one_carrier_does():
    profile = dataclasses.replace(PLUTO, downlink_hz=PLUTO.carrier_hz - 20e6)
    cell = build("pluto-stock", 20.0, profile=profile, seed=2)
    assert {node.radio.capabilities.tier for node in cell.links.values()} == {"P0"}
    rows, _ = play(cell, 8)
    measured, canary, forecast = np.median(rows, axis=0)
    assert measured <= -24.0
    assert measured == pytest.approx(forecast, abs=1.5)
    assert canary == pytest.approx(measured, abs=1.5)
    node = cell.links["node-1"]
    node.tracker.epoch += 1  # as after a gap in which a turn was lost
    symbols = random_symbols(sorted(cell.links), 1488, np.random.default_rng(0))
    outcome = cell.round(symbols, 50)
    assert set(outcome.lost) == {"node-1"} and "phase was lost" in outcome.lost["node-1"]
    assert cell.join(["node-1"]) == {}
    rows, outcome = play(cell, 2, first=60)
    assert outcome.aggregate.verdict.nodes[0] in ("ok", "gain")


def test_inversion_reaches_its_prediction_and_corrects_a_wrong_gain():
    cell = build("pluto-stock", 20.0, precoder="inversion", nodes=4)
    rows, _ = play(cell, 8)
    assert np.median(rows[:, 0]) == pytest.approx(np.median(rows[:, 2]), abs=1.5)

    def tamper(name, grid):
        return grid * np.float32(10 ** (-3 / 20)) if name == "node-2" else grid

    rows, outcome = play(cell, 1, first=20, tamper=tamper)
    assert outcome.aggregate.verdict.nodes[1] == "gain"
    assert rows[0, 1] > rows[0, 2] + 3.0  # the canary shows it
    rows, outcome = play(cell, 8, first=30, tamper=tamper)
    assert outcome.aggregate.verdict.nodes[1] == "ok"
    assert rows[-1, 1] < rows[-1, 2] + 2.0


def test_a_node_that_dies_in_its_burst_voids_the_round_and_a_silent_one_leaves_the_others_sum():
    cell = build("ideal", 20.0)
    everyone = sorted(cell.links)

    def dies(name, grid):
        return np.concatenate([grid[:17], 0 * grid[17:]]) if name == "node-5" else grid

    _, outcome = play(cell, 1, tamper=dies)
    assert outcome.aggregate.verdict.nodes[4] == "missing" and outcome.aggregate.verdict.action == "void"
    assert any("fell silent" in reason for reason in outcome.aggregate.verdict.reasons)

    symbols = random_symbols(everyone, 1488, np.random.default_rng(8))
    outcome = cell.round(symbols, 8, tamper=lambda name, grid: 0 * grid if name == "node-5" else grid)
    assert outcome.aggregate.verdict.nodes == ("ok",) * 4 + ("missing",) + ("ok",) * 3
    assert outcome.aggregate.verdict.action == "partial"
    others = sum(symbols[name] for name in everyone if name != "node-5")
    assert nmse_db(outcome.aggregate.symbols, others) == pytest.approx(-20 - 10 * math.log10(2 * 7), abs=0.5)
    assert cell.uplink.peers["node-5"].flagged


@pytest.mark.parametrize("slip", [4096, -4096])
def test_a_lost_or_repeated_block_is_noticed_and_the_node_comes_back(slip):
    cell = build("pluto-stock", 20.0, nodes=4, wrap=Slipping)
    play(cell, 2)
    node = cell.links["node-1"]
    offset = node.offset
    cell.nodes["node-1"].slip = slip
    rng = np.random.default_rng(0)
    outcome = cell.round(random_symbols(sorted(cell.links), 1488, rng), 5)
    assert "a stream has slipped" in outcome.lost["node-1"]
    assert len(outcome.aggregate.verdict.nodes) == 3 and outcome.aggregate.verdict.action == "accept"
    with pytest.raises(LinkError, match="not locked"):
        node.listen(0)
    play(cell, 3, first=6)  # the others go on; the node is left behind among beacons with gaps
    assert cell.join(["node-1"]) == {}
    assert node.offset == offset + slip
    rows, outcome = play(cell, 6, first=10)
    assert outcome.aggregate.verdict.nodes[0] in ("ok", "gain")
    assert np.median(rows[:, 0]) == pytest.approx(np.median(rows[:, 2]), abs=1.5)


def test_a_jump_of_the_timing_advance_is_caught_and_sounding_again_corrects_it():
    cell = build("ideal", 20.0, nodes=4)
    node = cell.links["node-2"]
    node.csi = dataclasses.replace(node.csi, advance_samples=node.csi.advance_samples + 0.5)
    _, outcome = play(cell, 1)
    seen = outcome.aggregate
    assert seen.verdict.nodes == ("ok", "timing", "ok", "ok") and seen.verdict.action == "partial"
    assert seen.verification.slope_samples[1] == pytest.approx(-0.5, abs=0.05)
    assert cell.resound([name for name, peer in cell.uplink.peers.items() if peer.flagged]) == {}
    rows, outcome = play(cell, 3, first=5)
    assert set(outcome.aggregate.verdict.nodes) == {"ok"}
    assert np.median(rows[:, 0]) == pytest.approx(np.median(rows[:, 2]), abs=0.5)


def test_the_one_sided_band_makes_a_leaking_oscillator_harmless(monkeypatch):
    monkeypatch.setattr(nodelink, "COARSE_HZ", math.inf)  # the LO stays 20 kHz off, and so does its leak
    still = {"ppm": 0.0}
    leaky = {"ppm": 20e3 / 915.0, "tx_leak_dbc": -35.0}
    radios = {"server": still, "node-1": leaky, "node-2": still, "node-3": still, "node-4": still}
    cell = build("pluto-stock", 20.0, nodes=4, radios=radios)
    assert abs(cell.links["node-1"].cfo_hz) == pytest.approx(20e3, abs=100)
    rows, outcome = play(cell, 8)
    assert np.median(rows[:, 0]) == pytest.approx(np.median(rows[:, 2]), abs=1.0)
    assert outcome.aggregate.verdict.nodes[0] in ("ok", "gain")


def test_two_radios_with_one_name_or_serial_are_refused():
    with pytest.raises(ConfigError, match="named twice"):
        Ether(preset("ideal"), ["server", "node-1", "node-1"])
    names = ["server", "node-1", "node-2"]
    ether = Ether(preset("ideal", radios={name: {"serial": "104473"} for name in names[1:]}), names)
    radios = {name: LoopbackRadio(name, ether) for name in names}
    with pytest.raises(ConfigError, match=r"node-1 and node-2 are one radio, serial 104473"):
        Cell(radios.pop("server"), radios, PLUTO).open()


def test_pilots_tell_the_slope_of_each_amplitude():
    rng = np.random.default_rng(5)
    place = np.linspace(-1, 1, len(PLUTO.bins))
    tilts = np.array([0.0, 0.2, -0.1, 0.05])
    sent = np.stack([pilot(PLUTO, node, 4) * (1 + tilt * place) for node, tilt in enumerate(tilts)])
    noise = 10**-2.0
    errors = []
    for _ in range(200):
        z = rng.standard_normal((1, 3, place.size)) + 1j * rng.standard_normal((1, 3, place.size))
        grid = (sent.sum(0) + math.sqrt(noise / 2) * z).astype(np.complex64)
        errors.append(verify(grid, (0, 1, 2, 3), 4, noise, PLUTO).tilt - tilts)
    bound = math.sqrt(noise / 2 / 3 / np.sum(place**2))  # least squares over three pilots
    assert np.sqrt(np.mean(np.square(errors), axis=0)) == pytest.approx(np.full(4, bound), rel=0.25)
