"""Schemes on the simulated air at the level of IQ samples: learning, coding, bursts, superposition, decoding, step."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fl_core.decode import nmse_db
from fl_core.options import SchemeOptions
from fl_core.schemes import Csi, Plan, make_scheme
from radio.cell import Cell
from radio.ether import Ether
from radio.loopback import LoopbackRadio
from radio.ofdm import PROFILES, data_rows
from radio.presets import preset
from testbed.config import Experiment
from testbed.learner import Pupil, Teacher

PROFILE = PROFILES["pluto-915"]


def cell_for(scheme, air="ideal", snr_db=20.0, nodes=3, **changes):
    names = [f"node-{i}" for i in range(1, nodes + 1)]
    ether = Ether(preset(air, snr_db=snr_db, seed=3, **changes), ["server", *names])
    radios = {name: LoopbackRadio(name, ether) for name in names}
    cell = Cell(LoopbackRadio("server", ether), radios, PROFILE, "R", scheme.precoder, threshold=scheme.threshold)
    cell.open()
    assert cell.join() == {}
    return cell


def train(name, air="ideal", nodes=3, rounds=3, options=None, **changes):
    """Do what the daemons do, by calls.

    Gives, per round, the estimate, what the sum aims at, means of sparse and dense updates, and the shares of silent
    bins; and the clients.
    """
    wanted = Experiment.model_validate(
        {
            "data": {"clients": nodes, "new_tasks": 4},
            "model": {"hidden": [6]},
            "scheme": {"name": name, **(options or {})},
            "waveform": {"profile": PROFILE.name},
        }
    )
    teacher, pupils = Teacher(wanted), [Pupil(wanted, index) for index in range(nodes)]
    scheme = teacher.scheme
    cell = cell_for(scheme, air, nodes=nodes, **changes)
    names, rows = sorted(cell.links), []
    for number in range(rounds):
        works = [pupil.work(teacher.theta.numpy(), number, nodes) for pupil in pupils]
        scale = teacher.scale([work.norm_squared for work in works], number)
        cut = {}
        for name_, pupil, work in zip(names, pupils, works, strict=True):
            silent = 1 - cell.links[name_].audible(cell.uplink.floor(name_))
            cut[name_] = float(silent.mean())
            payload = cell.payload(work.symbols.size, number)
            pupil.commit(pupil.recall(work, lambda s, p=payload, m=silent: p.read(p.fill(s) * m)[0]))
        symbols = {n: (scale * work.symbols).astype(np.complex64) for n, work in zip(names, works, strict=True)}
        gain_mean = 1.0 if scheme.recalls else cell.uplink.gain_mean(names)
        gain_power = cell.uplink.gain_power(names)
        # Phase-only precoding aims at |a_k| x_k: the spread of the amplitudes is no error of the air.
        weights = np.array([cell.uplink.arrival(name_) for name_ in names]) / cell.uplink.gain_mean(names)
        heard = cell.round(symbols, number).aggregate
        assert heard.verdict.action == "accept"
        estimate = teacher.step(heard.symbols, number, nodes, scale, gain_mean, gain_power, heard.noise)
        aimed = np.mean([weight * work.sparse for weight, work in zip(weights, works, strict=True)], 0)
        means = [np.mean([getattr(work, kind) for work in works], 0) for kind in ("sparse", "dense")]
        rows.append((estimate, *(torch.from_numpy(each.astype(np.float32)) for each in (aimed, *means)), cut))
    return rows, pupils


@pytest.mark.parametrize(
    "name", ["air-meta-pfl", "gbma", "truncated-inversion", "airfl-mem", "cotaf", "a-dsgd", "obda"]
)
def test_coherent_schemes_carry_the_mean_over_the_air(name):
    for estimate, aimed, _, _, _ in train(name, air="pluto-stock", rounds=2, options={"keep": 0.02})[0]:
        if name in ("a-dsgd", "obda"):  # clients weigh unequally, or vote
            assert float(torch.cosine_similarity(estimate, aimed, dim=0)) > 0.75
        else:
            assert nmse_db(estimate, aimed) < -12.0  # 20 dB per node, three nodes, less their phase errors


@pytest.mark.parametrize("name", ["reed", "ncairfl", "fsk-mv"])
def test_energies_of_one_node_arrive_without_any_phase(name):
    for estimate, _, sparse, _, _ in train(name, nodes=1, air="pluto-stock", rounds=2)[0]:
        if name == "fsk-mv":
            assert float((torch.sign(estimate) == torch.sign(sparse)).float().mean()) > 0.98
        else:
            assert nmse_db(estimate, sparse) < -10.0


@pytest.mark.parametrize(("ayes", "noes"), [(2, 1), (1, 3), (3, 0)])
def test_fsk_votes_err_on_the_air_as_published(ayes, noes):
    """Sahin 2022, Rayleigh fading of every element: P(minus wins) = (K- E + n)/((K+ + K-) E + 2 n)."""
    d, nodes, snr_db, rng = 1500, ayes + noes, 10.0, np.random.default_rng(5)
    scheme = make_scheme(SchemeOptions(name="fsk-mv"), d)
    cell = cell_for(scheme, snr_db=snr_db, nodes=nodes)

    def fade(name, grid):
        faded, data = grid.copy(), data_rows(grid.shape[0])
        drawn = rng.standard_normal((2, *grid[data].shape)) / math.sqrt(2)
        faded[data] *= 0.3 * (drawn[0] + 1j * drawn[1])  # kept small, so that no peak is clipped
        return faded.astype(np.complex64)

    plan = Plan(0, 9, nodes, 0.1, math.sqrt(2))
    updates = torch.cat((torch.ones(ayes, d), -torch.ones(noes, d))) * (1 + 0.01 * torch.arange(nodes))[:, None]
    wrong = []
    for number in range(4):
        coded = scheme.encode(updates, torch.zeros_like(updates), Csi(), dataclasses.replace(plan, round=number))[0]
        symbols = dict(zip(sorted(cell.links), plan.scale * coded.numpy(), strict=True))
        heard = cell.round(symbols, number, tamper=fade).aggregate
        wrong.append(float((scheme.decode(torch.from_numpy(heard.symbols), Csi(), plan) < 0).float().mean()))
    vote, noise = plan.scale**2 * 0.3**2, heard.noise
    expected = (noes * vote + noise) / (nodes * vote + 2 * noise)
    assert np.mean(wrong) == pytest.approx(expected, abs=4.5 * math.sqrt(expected * (1 - expected) / (4 * d)) + 0.005)


def test_reed_is_unbiased_on_the_air():
    """The cross terms of a round are as large as the energies and have mean zero over random phases."""
    d, nodes, rounds = 400, 3, 16
    scheme = make_scheme(SchemeOptions(name="reed"), d)
    cell = cell_for(scheme, nodes=nodes)
    updates = torch.from_numpy(np.random.default_rng(1).standard_normal((nodes, d)).astype(np.float32))
    total = torch.zeros(d)
    for number in range(rounds):
        plan = Plan(number, 9, nodes, 0.1)
        coded = scheme.encode(updates, torch.zeros_like(updates), Csi(), plan)[0]
        scale = scheme.scale(coded.abs().double().square().sum(1).tolist(), plan)
        symbols = dict(zip(sorted(cell.links), scale * coded.numpy(), strict=True))
        power = cell.uplink.gain_power(list(symbols))
        heard = cell.round(symbols, number).aggregate
        known = Csi(noise=heard.noise, gain_power=power)
        total += scheme.decode(torch.from_numpy(heard.symbols), known, dataclasses.replace(plan, scale=scale))
    mean, truth = total / rounds, updates.mean(0)
    spread = float((mean - truth).square().mean().sqrt())
    single = float(updates.abs().mean())  # the size of one round's cross terms, roughly
    assert spread < 3.0 * single / math.sqrt(rounds)
    assert float(torch.dot(mean, truth) / torch.dot(truth, truth)) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("name", ["truncated-inversion", "airfl-mem"])
def test_nodes_are_silent_on_faded_bins_and_only_the_memory_gets_it_back(name):
    """Links of several echoes within half a microsecond have deep notches in the band."""
    echoes = {"rician_k_min_db": -10.0, "rician_k_max_db": -10.0, "paths_min": 4, "delay_spread_min_s": 5e-7}
    echoes["delay_spread_max_s"] = 5e-7
    rows, pupils = train(name, air="pluto-stock", rounds=4, options={"threshold": 0.8}, **echoes)
    for *_, cut in rows:
        assert 0.05 < np.mean(list(cut.values())) < 0.9
    sent, meant = (sum(row[k] for row in rows) for k in (0, 3))
    held = torch.from_numpy(np.mean([pupil.memory for pupil in pupils], 0))
    if name == "airfl-mem":
        assert float(held.norm()) > 0.05 * float(meant.norm())
        assert nmse_db(sent + held, meant) < -12.0
        assert nmse_db(sent + held, meant) < nmse_db(sent, meant) - 3.0
    else:
        assert float(held.norm()) == 0.0
        assert float(torch.cosine_similarity(sent, meant, dim=0)) > 0.7
