"""The digital twin: levels and responses come back as they were measured, and sums over it err as in its lab."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from calibration.record import CalibrationFolder, RadioKey
from calibration.result import Result
from calibration.twin import twin_options
from radio.base import RadioConfig
from radio.cell import Cell, nmse_db, random_symbols
from radio.errors import CalibrationError, ConfigError
from radio.ether import Ether
from radio.links import draw_link
from radio.loopback import LoopbackRadio
from radio.ofdm import PROFILES, capacity
from radio.presets import preset
from testbed.config import load, load_lab
from testbed.front import twin_lab

PLUTO = PROFILES["pluto-915"]
NAMES = ["node-1", "node-2", "node-3", "node-4"]


def cell_on(options, names=NAMES, gain_db=60.0):
    ether = Ether(options, ["server", *names])
    cell = Cell(LoopbackRadio("server", ether), {n: LoopbackRadio(n, ether) for n in names}, PLUTO, rx_gain_db=gain_db)
    cell.open()
    assert cell.join() == {}
    return cell


def noise_dbfs(options, gain_db):
    radio = LoopbackRadio("server", Ether(options, ["server", *NAMES]))
    radio.configure(RadioConfig(1e6, 915e6, 915e6, 1e6, gain_db))
    heard = radio.receive(100_000, 20_000).samples
    return 10 * math.log10(float(np.var(heard)))


def measured(options, gain_db=60.0, names=NAMES):
    """Calibrate the shortest way: what a server and its nodes know once they have met, and what the air was told."""
    cell = cell_on(options, names, gain_db)
    level = noise_dbfs(options, gain_db)
    results = []
    for name, radio in {"server": cell.server, **cell.nodes}.items():
        able, e = radio.capabilities, options.of(name)
        told = {k: getattr(able, k) for k in ("serial", "max_rate_hz", "turnaround_samples", "block_samples")}
        told |= {"one_timeline": able.one_timeline, "shared_reference": able.shared_reference, "tier": str(able.tier)}
        echo = e.self_leak_db + gain_db - e.rx_fs_offset_dbm
        compression = 5 * math.log10(1 + 10 ** (-e.tx_saturation_dbm / 5))
        results += [
            Result("inventory", name, told),
            Result("noise", name, {"noise_dbfs": level, "dc_dbfs": e.rx_dc_dbfs}),
            Result("level", name, {"leak_dbc": e.tx_leak_dbc, "echo_db": echo, "compression_db": compression}),
            Result("offset", name, {}, {"offset_samples": np.array([120, 20_000])}),
        ]
    for name, node in cell.links.items():
        peer = cell.uplink.peers[name]
        error = peer.sigma_eps * abs(peer.gain).mean()
        values = {"gain_db": 10 * math.log10(np.mean(abs(peer.gain) ** 2)), "delay_samples": 0.0}
        curves = {"bin": np.array(PLUTO.bins), "gain": peer.gain, "gain_sigma": np.full(peer.gain.size, error)}
        pair = math.sqrt(2) * options.of(name).adev
        results += [
            Result("sounding", name, values, curves),
            Result("oscillator", name, {"ppm": node.ppm, "drift_ppb_per_s": 0.0, "adev": pair}),
            Result("lock", name, {"snr_db": node.snr_db}),
        ]
    return results


def kept(root, results, gain_db=60.0, files=None):
    folder = CalibrationFolder.create(root, files or {})
    for result in results:
        key = RadioKey(result.radio, "loopback 1", 1e6, 915e6, 915e6, 1e6, gain_db, 0.0)
        folder.save(result, key, datetime.now(UTC))
    return folder


def error_of_sums_db(cell, rounds=16):
    rng = np.random.default_rng(0)
    found = []
    for number in range(rounds):
        outcome = cell.round(random_symbols(sorted(cell.links), capacity(PLUTO, "R") // 2, rng), number)
        found.append(nmse_db(outcome.aggregate.symbols, outcome.target))
    return float(np.median(found))


@pytest.mark.parametrize(
    "options",
    [
        preset("pluto-stock", snr_db=20.0, seed=1),
        preset("usrp-free", snr_db=25.0, spread_db=6.0, seed=3),
    ],
    ids=["stock Plutos", "free USRPs"],
)
def test_sums_over_the_twin_err_as_in_its_lab(options, tmp_path):
    air = twin_options(kept(tmp_path, measured(options)).records(), PLUTO, seed=9)
    lab, twin = cell_on(options), cell_on(air)
    for name, node in lab.links.items():
        assert twin.links[name].ppm == pytest.approx(node.ppm, abs=0.02)
        assert twin.links[name].radio.capabilities == node.radio.capabilities
    assert noise_dbfs(air, 60.0) == pytest.approx(noise_dbfs(options, 60.0), abs=0.1)
    assert error_of_sums_db(twin) == pytest.approx(error_of_sums_db(lab), abs=2.0)


@pytest.mark.parametrize("spread_s", [0.0, 8e-7, 2e-6])
def test_gain_and_response_of_a_link_come_back(spread_s, tmp_path):
    rng = np.random.default_rng(round(spread_s * 1e8))
    bins = np.array(PLUTO.bins)
    hz = bins * PLUTO.spacing_hz
    paths = [(delay, rng.normal() + 1j * rng.normal()) for delay in (0.0, spread_s / 3, spread_s)]
    truth = 0.01 * sum(size * np.exp(-2j * np.pi * hz * delay) for delay, size in paths)
    error = 0.01 * abs(truth).mean()
    noisy = (truth + error * rng.normal(size=(bins.size, 2)) @ [1, 1j] / math.sqrt(2)).astype(np.complex64)
    told = {"serial": "a", "max_rate_hz": 2e6, "turnaround_samples": 0, "block_samples": 256, "tier": "U0"}
    results = [
        part
        for name in ("server", "node-1")
        for part in (
            Result("inventory", name, told | {"one_timeline": True, "shared_reference": False}),
            Result("noise", name, {"noise_dbfs": -70.0}),
        )
    ]
    values = {"gain_db": 10 * math.log10(np.mean(abs(truth) ** 2)), "delay_samples": 0.3}
    curves = {"bin": bins, "gain": noisy, "gain_sigma": np.full(bins.size, error)}
    records = kept(tmp_path, [*results, Result("sounding", "node-1", values, curves)], 40.0).records()
    options = twin_options(records, PLUTO)
    link = draw_link(options, "node-1", "server", 1e6)
    there = link.gain * sum(
        size * np.exp(-2j * np.pi * hz * delay) for delay, size in zip(link.path_delay_s, link.fixed, strict=True)
    )
    full_scale_dbm = options.of("server").rx_fs_offset_dbm - 40.0  # as the server hears it, at its gain
    heard = 10 ** (-full_scale_dbm / 20) * there * np.exp(-2j * np.pi * bins / PLUTO.fft * 0.3)
    turned = heard * np.exp(-1j * np.angle(np.vdot(truth, heard)))
    off_db = 10 * math.log10(np.mean(abs(turned - truth) ** 2) / np.mean(abs(truth) ** 2))
    assert off_db < (-30.0 if spread_s < 2e-6 else -25.0)
    assert options.of("server").noise_figure_db == 5.0 and options.of("node-1").serial == "a"


def test_a_twin_is_a_lab_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = preset("pluto-stock", snr_db=20.0)
    pair = load(None, None, ["lab.ether_port=5799"])
    results = [*measured(options, names=NAMES[:2]), Result("sum", "server", {"nmse_db": -28.0})]
    folder = kept(tmp_path / "calibrations", results, files=pair.resolved())
    path = twin_lab("latest", None)
    assert path == folder.path / "twin.toml"
    room = load_lab(path)
    assert [entry.radio for entry in room.nodes] == ["loopback:node-1", "loopback:node-2"]
    assert room.ether is not None and room.ether == twin_options(folder.records(), PLUTO) and room.ether_port == 5799
    cell_on(room.ether, NAMES[:2])
    before = path.read_bytes()
    assert twin_lab(str(folder.path), None).read_bytes() == before
    with pytest.raises(ConfigError, match="leave --lab away"):
        twin_lab("latest", tmp_path / "lab.toml")


def test_a_calibration_that_stopped_early_makes_no_twin(tmp_path):
    results = measured(preset("ideal"), names=NAMES[:1])
    without = [result for result in results if result.step != "sounding"]
    with pytest.raises(CalibrationError, match="no link was sounded"):
        twin_options(kept(tmp_path, without).records(), PLUTO)
    without = [result for result in results if (result.step, result.radio) != ("noise", "node-1")]
    with pytest.raises(CalibrationError, match=r"node-1: no record of the step noise.*--steps noise"):
        twin_options(kept(tmp_path, without).records(), PLUTO)
    deaf = [replace(r, curves={}) if r.step == "sounding" else r for r in results]
    with pytest.raises(CalibrationError, match="node-1: its link was not measured"):
        twin_options(kept(tmp_path, deaf).records(), PLUTO)
