"""Analog and digital schemes of whole updates against their published closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from fl_core.encode import energy
from fl_core.mac import (
    RAYLEIGH_MEAN,
    RAYLEIGH_SPREAD,
    Channel,
    inversion_power,
    least_error_amplitude,
    participation,
)
from fl_core.options import LearnOptions, SchemeOptions
from fl_core.schemes import Csi, Plan, exchange, make_scheme
from fl_core.schemes.digital import affordable, capacity_bits, message_bits, quantise
from fl_core.seeds import generator
from fl_core.theory import truncation_threshold

ALL = {"mapping": "pair", "keep": 1.0}


def make(name: str, dimension: int, **options):
    return make_scheme(SchemeOptions(name=name, **options), dimension)


def vectors(clients: int, dimension: int, seed: int = 2) -> torch.Tensor:
    return torch.randn((clients, dimension), generator=torch.Generator().manual_seed(seed))


def rounds_of(scheme, channel, updates, count, memories=None):
    """Exchange the same updates for many rounds; each yields what was sent and the decoded mean."""
    memories = torch.zeros_like(updates) if memories is None else memories
    for number in range(count):
        plan = Plan(number, 7, len(updates), 0.1)
        sent = exchange(scheme, channel, updates, memories, plan, 7, range(len(updates)))
        yield sent, scheme.decode(sent.received, sent.csi, sent.plan)


@pytest.mark.parametrize("clients", [2, 8])
def test_gbma_with_fixed_energy_has_the_error_floor_of_its_recursion(clients):
    """Sery, Cohen 2019: gradient descent on |theta|^2/2 by GBMA with a constant step ends at a floor.

    With gradients e, step b, gains h/mu and noise variance n per entry of the mean, E|e'|^2 =
    [(1-b)^2 + b^2 v/(mu^2 s)] E|e|^2 + b^2 d n, whose fixed point is the floor; n = sigma^2/(2 s^2 mu^2 E).
    """
    d, step, amplitude, channel = 600, 0.2, 3.0, Channel("rayleigh", 5.0)
    scheme, point, squares = make("gbma", d), torch.ones(d), []
    for number in range(1000):
        plan = Plan(number, 1, clients, 1.0, amplitude)
        each = point.expand(clients, d)
        symbols, _ = scheme.encode(each, torch.zeros_like(each), Csi(), plan)
        gains = channel.draw(clients, scheme.symbols, 1, generator(1, "gains", number))
        received, csi = scheme.superpose(
            amplitude * symbols, gains, list(range(clients)), channel, generator(1, "noise", number)
        )
        point = point - step * scheme.decode(received, csi, plan)
        if number >= 100:
            squares.append(float(point.square().sum()))
    noise = channel.noise / (2 * clients**2 * RAYLEIGH_MEAN**2 * amplitude**2)
    shrink = (1 - step) ** 2 + step**2 * RAYLEIGH_SPREAD / clients
    floor = step**2 * d * noise / (1 - shrink)
    # What one round adds is forgotten within 5: the mean of 900 rounds has a standard error of about 1 %.
    assert np.mean(squares) == pytest.approx(floor, rel=0.05)


def test_gbma_is_air_meta_pfl_without_its_compression():
    updates = vectors(3, 41)
    zeros, plan = torch.zeros_like(updates), Plan(4, 1, 3)
    ours, theirs = make("gbma", 41), make("air-meta-pfl", 41, estimator="linear", **ALL)
    assert torch.equal(ours.encode(updates, zeros, Csi(), plan)[0], theirs.encode(updates, zeros, Csi(), plan)[0])
    received = ours.encode(updates, zeros, Csi(), plan)[0].sum(0)
    torch.testing.assert_close(ours.decode(received, Csi(), plan), theirs.decode(received, Csi(), plan))


@pytest.mark.parametrize("threshold", [0.02, 0.3, 1.5])
def test_truncated_inversion_takes_part_and_spends_as_published(threshold):
    """Zhu, Wang, Huang 2018: participation e^{-g}, and mean power P E_1(g) rho/P = P: the limit, on average."""
    channel = Channel("rayleigh", math.inf, coherence=1)
    scheme = make("truncated-inversion", 100_000, threshold=threshold, power="average")
    updates = vectors(1, scheme.dimension).sign()  # constant modulus: every symbol tells of the fading alone
    spent = quad(lambda g: math.exp(-g) / g, threshold, math.inf)[0]
    assert participation("rayleigh", threshold) == pytest.approx(quad(lambda g: math.exp(-g), threshold, math.inf)[0])
    assert inversion_power("rayleigh", threshold) == pytest.approx(spent, rel=1e-6)
    ((sent, estimate),) = rounds_of(scheme, channel, updates, 1)
    shared = float((estimate[:50_000] != 0).float().mean())
    assert shared == pytest.approx(math.exp(-threshold), abs=5 * 0.5 / math.sqrt(50_000))
    # 1/|h|^2 has a variance of about 1/threshold over 50,000 symbols.
    assert sent.power[0] == pytest.approx(1.0, abs=5 / math.sqrt(threshold * 50_000) / spent)
    active = estimate[estimate != 0]
    torch.testing.assert_close(active.abs(), torch.full_like(active, math.exp(threshold)))


def test_truncated_inversion_is_unbiased_and_aligned():
    updates = vectors(5, 40)
    scheme = make("truncated-inversion", 40, threshold=0.4, power="average")
    found = torch.stack([e for _, e in rounds_of(scheme, Channel("rayleigh", 10.0), updates, 800)])
    error = found.mean(0) - updates.mean(0)
    assert float((error / (found.std(0) / math.sqrt(800))).abs().max()) < 4.5
    sent, estimate = next(iter(rounds_of(scheme, Channel("none", math.inf), updates, 1)))
    assert float((estimate - updates.mean(0)).norm()) < 1e-5 and len(sent.power) == 5


def test_power_limit_by_round_is_never_exceeded_in_any_fade():
    updates = vectors(4, 60)
    for name in ("truncated-inversion", "cotaf", "airfl-mem", "obda", "a-dsgd"):
        for sent, _ in rounds_of(make(name, 60, threshold=0.05), Channel("rayleigh", 20.0), updates, 30):
            assert max(sent.power) <= 1 + 1e-6


@pytest.mark.parametrize("snr_db", [-5.0, 10.0, 40.0])
def test_power_control_of_least_error_is_the_best_of_all(snr_db):
    """Cao, Zhu, Xu, Huang 2020: no powers within the limit and no receive scaling give a smaller error of the sum."""
    channel, clients, d = Channel("rayleigh", snr_db), 5, 4000
    gains = channel.draw(clients, d, 1, torch.Generator().manual_seed(6))
    sizes = gains.abs().double().numpy()
    amplitude = least_error_amplitude(gains, channel.noise)

    def error(a: float) -> float:
        # For a given a the best power of each client is convex and separate: aligned if it can, else full.
        return float(np.sum((np.minimum(sizes, a) / a - 1) ** 2) + channel.noise / a**2)

    grid = np.geomspace(1e-3, 1e3, 40_001)
    assert error(amplitude) <= min(map(error, grid)) * (1 + 1e-9)
    scheme = make("truncated-inversion", d, inversion="mse")
    updates = vectors(clients, d)
    updates /= updates.norm(dim=1, keepdim=True)
    sent = exchange(scheme, channel, updates, torch.zeros_like(updates), Plan(0, 6, clients), 6, range(clients))
    drawn = channel.draw(clients, scheme.symbols, 1, generator(6, "gains", 0)).abs().double().numpy()
    best = least_error_amplitude(torch.from_numpy(drawn).to(torch.complex64), channel.noise)
    assert sent.power == pytest.approx(tuple(np.minimum(1, best / drawn) ** 2 * 1.0), rel=1e-4)
    found = float((clients * scheme.decode(sent.received, sent.csi, sent.plan) - updates.sum(0)).square().sum())
    # Orthonormal updates to 1/sqrt(d): the error of the sum per client energy is the one above, to a few percent.
    expected = np.sum((np.minimum(drawn, best) / best - 1) ** 2) + channel.noise / best**2
    assert found == pytest.approx(expected, rel=0.15)


def test_power_control_of_least_error_is_planned_before_anybody_is_lost():
    scheme, channel, updates = (
        make("truncated-inversion", 20, inversion="mse"),
        Channel("rayleigh", 10.0),
        vectors(4, 20),
    )
    zeros, plan = torch.zeros_like(updates), Plan(0, 2, 4)
    whole, part = (exchange(scheme, channel, updates, zeros, plan, 2, heard) for heard in (range(4), [1, 3]))
    assert whole.power == part.power and whole.csi.gain_mean == part.csi.gain_mean
    with pytest.raises(ValueError, match="leave coherence unset instead of 2"):
        exchange(scheme, replace(channel, coherence=2), updates, zeros, plan, 2, range(4))


def test_no_threshold_under_rayleigh_takes_infinite_power():
    scheme = make("truncated-inversion", 10, threshold=0.0, power="average")
    with pytest.raises(ValueError, match="infinite power"):
        scheme.scale([1.0], Plan(0, 1, 1))


@pytest.mark.parametrize("eta", [0.1, 0.05, 0.01])
def test_noise_of_cotaf_decays_with_the_squared_step(eta):
    """Sery et al. 2021: the noise on the mean has variance sigma^2/(s^2 p_t), p_t = P M/(U^2 eta^2)."""
    d, clients, norm, trials = 200, 4, 30.0, 200
    scheme = make("cotaf", d, update_norm=norm)
    updates = eta * vectors(clients, d) * (0.9 * norm / math.sqrt(d * 1.3))  # below the norm that was agreed
    channel, errors = Channel("none", 10.0), []
    for number in range(trials):
        sent = exchange(scheme, channel, updates, torch.zeros_like(updates), Plan(number, 3, clients, eta), 3, range(4))
        errors.append(float((scheme.decode(sent.received, sent.csi, sent.plan) - updates.mean(0)).square().sum()))
    precoder = scheme.symbols / (norm * eta) ** 2
    expected = d * channel.noise / 2 / (clients**2 * precoder)
    assert np.mean(errors) == pytest.approx(expected, abs=4 * np.std(errors) / math.sqrt(trials))


def test_cotaf_never_exceeds_what_the_energies_allow():
    scheme, updates = make("cotaf", 20, update_norm=1e-3), vectors(2, 20)
    symbols, _ = scheme.encode(updates, torch.zeros_like(updates), Csi(), Plan(0, 1, 2, 0.1))
    scale = scheme.scale(energy(symbols).tolist(), Plan(0, 1, 2, 0.1))
    assert max((energy(scale * symbols) / scheme.symbols).tolist()) == pytest.approx(1.0)


@pytest.mark.parametrize(("snr_db", "threshold"), [(0, 0.014), (10, 0.0019), (20, 0.0002)])
def test_airfl_mem_contracts_as_its_published_thresholds_say(snr_db, threshold):
    """Wen, Xing, Simeone 2023: Q = 5, eta = 1e-3, r = .5, L = G = 1, s = 10; lambda = e^{-threshold}."""
    best = truncation_threshold(1e-3, 5, 0.5, 10, 10 ** (snr_db / 10))
    assert best == pytest.approx(threshold, rel=0.06)
    scheme = make("airfl-mem", 200_000, threshold=best)
    updates = vectors(1, scheme.dimension)
    ((sent, _),) = rounds_of(scheme, Channel("rayleigh", math.inf, coherence=1), updates, 1)
    lost = float(sent.memories.square().sum() / updates.square().sum())
    share = -math.expm1(-best)
    assert lost == pytest.approx(share, abs=5 * math.sqrt(2 * share / 100_000))


def test_long_memory_loses_nothing_short_memory_all_but_the_last():
    """Block fading with a high threshold: a client is silent for whole rounds."""
    updates, channel = vectors(6, 30), Channel("rayleigh", math.inf)
    kept = {}
    for term in ("long", "short"):
        scheme = make("airfl-mem", 30, threshold=1.0, memory_term=term)
        memories, total, silent = torch.zeros_like(updates), torch.zeros_like(updates), 0
        for number in range(12):
            sent = exchange(scheme, channel, updates, memories, Plan(number, 5, 6), 5, range(6))
            estimate = scheme.decode(sent.received, sent.csi, sent.plan)
            torch.testing.assert_close(estimate, sent.sparse.mean(0), atol=1e-5, rtol=1e-5)
            total, memories = total + sent.sparse, sent.memories
            quiet = sent.sparse.norm(dim=1) == 0
            silent += int(quiet.sum())
            if term == "short":
                assert torch.equal(memories, torch.where(quiet[:, None], updates, 0.0))
        kept[term] = float((total + memories - 12 * updates).norm())
        assert silent > 20  # of 72; 1 - 1/e of them on average
    assert kept["long"] < 1e-3 < 1.0 < kept["short"]


def test_fedavg_trains_plainly_and_per_fedavg_does_not():
    learn = LearnOptions(alpha=0.7)
    assert make("fedavg", 8).learning(learn) == learn.model_copy(update={"alpha": 0.0})
    assert make("per-fedavg", 8).learning(learn) == learn == make("gbma", 8).learning(learn)


def test_digital_counts_bits_as_published():
    """Amiri, Gündüz 2019: (M/s) log2(1 + s P/sigma^2) on average power; log2 C(d, q) + q b + 32 bits a message."""
    assert capacity_bits(1000, 5, 7.0, average=True) == pytest.approx(200 * math.log2(36))
    assert capacity_bits(1000, 5, 7.0, average=False) == pytest.approx(600)
    assert make("digital", 9, power="average").wired_power(5) == 1.0 == 5 * make("digital", 9).wired_power(5)
    assert message_bits(300, 20, 6) == pytest.approx(math.log2(math.comb(300, 20)) + 120 + 32, abs=1e-6)
    for bits in (2, 4, 9):
        for budget in (0, 20, 40, 100, 333, 700, 1210, 5000):
            fits = [q for q in range(1, 201) if message_bits(200, q, bits) <= budget]
            assert affordable(200, bits, budget) == max(fits, default=0)


def test_digital_sends_what_its_own_channel_affords():
    d, noise = 400, 0.05
    scheme = make("digital", d, measure=0.3, bits=6)
    updates, plan = vectors(3, d), Plan(0, 1, 3)
    gains = torch.tensor([[0.1 + 0j], [1.0], [3.0]])
    sent, rest = scheme.sparsify(updates, torch.zeros_like(updates), plan, Csi(noise=noise, gains=gains))
    for client, power in enumerate((0.01, 1.0, 9.0)):
        budget = 120 / 3 * math.log2(1 + power / noise)
        count = affordable(d, 6, budget)
        # The smallest of the sent entries may round to 0.
        assert count - 3 <= int(sent[client].count_nonzero()) <= count
    assert sent[0].count_nonzero() < sent[1].count_nonzero() < sent[2].count_nonzero()
    torch.testing.assert_close(sent + rest, updates)


def test_quantisation_errs_by_half_a_step_at_most():
    vector = vectors(1, 500)[0]
    for bits in (2, 5, 12):
        coarse = quantise(vector, bits)
        step = float(vector.abs().max()) / (2 ** (bits - 1) - 1)
        assert float((coarse - vector).abs().max()) <= step / 2 * (1 + 1e-4)
        assert len(torch.unique(coarse)) <= 2**bits - 1


def test_a_plan_of_fewer_clients_gives_each_more_bits():
    scheme, plan = make("digital", 400), Plan(0, 1, 8)
    assert int(scheme.entries(Csi(), replace(plan, clients=2))) > int(scheme.entries(Csi(), plan))
