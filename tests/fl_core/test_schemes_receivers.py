"""Schemes whose receiver does the work: misaligned symbols, many antennas, approximate message passing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_core.decode import nmse_db
from fl_core.encode import energy
from fl_core.mac import Channel
from fl_core.options import SchemeOptions
from fl_core.schemes import Csi, Plan, exchange, make_scheme
from fl_core.schemes.compressed import amp, gaussian
from fl_core.schemes.misaligned import RIDGE, aligned_sample, durations, least_squares, sample

OFFSETS = {1: [0.0], 2: [0.0, 0.4], 3: [0.0, 0.1, 0.35], 4: [0.0, 0.2, 0.2, 0.9]}


def matrix(gains: np.ndarray, offsets: np.ndarray, count: int) -> np.ndarray:
    """Write down, sample by sample, who sends what during each stretch; unknowns by symbol, then by client."""
    clients = len(gains)
    whole = np.zeros((count * clients + clients - 1, count * clients), complex)
    for place in range(len(whole)):
        symbol, stretch = divmod(place, clients)
        for client in range(clients):
            sent = symbol if client <= stretch else symbol - 1
            if 0 <= sent < count:
                whole[place, sent * clients + client] = gains[client] * math.sqrt(durations(offsets)[stretch])
    return whole


def drawn(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / math.sqrt(2)


@pytest.mark.parametrize("clients", OFFSETS)
def test_banded_estimators_equal_dense_ones(clients):
    rng, count, offsets = np.random.default_rng(clients), 6, np.array(OFFSETS[clients])
    gains, symbols = drawn(rng, clients), drawn(rng, clients, count)
    dense = matrix(gains, offsets, count)
    clean = sample(symbols, gains, offsets)
    np.testing.assert_allclose(dense @ symbols.T.reshape(-1), clean, atol=1e-12)
    noisy = clean + 0.2 * drawn(rng, len(clean))
    for ratio in (1e-6, 0.04, 3.0):
        normal = dense.conj().T @ dense + (ratio + RIDGE) * np.eye(dense.shape[1])
        expected = np.linalg.solve(normal, dense.conj().T @ noisy).reshape(count, clients).sum(1)
        np.testing.assert_allclose(least_squares(noisy, gains, offsets, ratio), expected, atol=1e-6)


def test_lmmse_errs_by_its_posterior_covariance_and_less_than_the_others():
    """Gaussian symbols of unit power: E|error|^2 = sigma^2 1^T (A^H A + sigma^2 I)^-1 1, one symbol's clients."""
    rng, count, clients, noise = np.random.default_rng(5), 8, 3, 0.1
    offsets, gains = np.array(OFFSETS[3]), np.exp(1j * np.array([0.4, -0.3, 0.1]))
    dense = matrix(gains, offsets, count)
    inverse = np.linalg.inv(dense.conj().T @ dense + noise * np.eye(dense.shape[1]))
    adding = np.kron(np.eye(count), np.ones(clients))
    expected = noise * np.trace(adding @ inverse @ adding.T).real / count
    errors: dict[str, list[float]] = {"lmmse": [], "ml": [], "aligned": []}
    for _ in range(1500):
        symbols = drawn(rng, clients, count)
        noisy = sample(symbols, gains, offsets) + math.sqrt(noise) * drawn(rng, dense.shape[0])
        found = {
            "lmmse": least_squares(noisy, gains, offsets, noise),
            "ml": least_squares(noisy, gains, offsets, 0.0),
            "aligned": aligned_sample(noisy, gains, offsets),
        }
        for name, estimate in found.items():
            errors[name].append(float(np.mean(np.abs(estimate - symbols.sum(0)) ** 2)))
    mean = {name: np.mean(values) for name, values in errors.items()}
    assert mean["lmmse"] == pytest.approx(expected, abs=4.5 * np.std(errors["lmmse"]) / math.sqrt(1500))
    assert mean["lmmse"] < mean["aligned"] < mean["ml"]


@pytest.mark.parametrize("receiver", ["aligned-sample", "ml", "lmmse"])
def test_symbols_that_do_arrive_together_are_simply_added(receiver):
    updates = torch.randn((3, 20), generator=torch.Generator().manual_seed(1))
    scheme = make_scheme(SchemeOptions(name="misaligned", receiver=receiver, timing=0.0, phase_rad=0.0), 20)
    sent = exchange(scheme, Channel("none", 100.0), updates, torch.zeros_like(updates), Plan(0, 1, 3), 1, range(3))
    # Equal arrivals leave the sum alone observable; the prior and the ridge share it out, and it adds up again.
    assert nmse_db(scheme.decode(sent.received, sent.csi, sent.plan), updates.mean(0)) < -60


@pytest.mark.parametrize("antennas", [4, 64])
def test_error_of_blind_antennas_decays_with_their_number(antennas):
    """Rayleigh: E|error of the mean|^2 = (sum_i |u_i|^2 + d sigma^2/(2 scale^2))/(s K)."""
    clients, d, trials = 3, 40, 600
    updates = torch.randn((clients, d), generator=torch.Generator().manual_seed(2))
    scheme = make_scheme(SchemeOptions(name="blind-antennas", antennas=antennas), d)
    channel, errors = Channel("rayleigh", 3.0), []
    for number in range(trials):
        sent = exchange(scheme, channel, updates, torch.zeros_like(updates), Plan(number, 6, 3), 6, range(3))
        errors.append(float((scheme.decode(sent.received, sent.csi, sent.plan) - updates.mean(0)).square().sum()))
    noise = d * channel.noise / 2 / sent.plan.scale**2
    expected = (float(updates.square().sum()) + noise) / (clients * antennas)
    assert np.mean(errors) == pytest.approx(expected, abs=4.5 * np.std(errors) / math.sqrt(trials))


def test_antennas_are_not_combined_without_their_channels():
    scheme = make_scheme(SchemeOptions(name="blind-antennas", antennas=2), 4)
    with pytest.raises(ValueError, match=r"2 antennas need.*csi\.gains"):
        scheme.decode(torch.zeros((2, 2), dtype=torch.complex64), Csi(), Plan(0, 1, 1))


def bernoulli_gaussian_mmse(tau2: float, sparsity: float, rng: np.random.Generator) -> float:
    """Draw X (variance 1 where not 0) and X + noise, and average the posterior variance, written out."""
    x = rng.normal(size=200_000) * (rng.random(200_000) < sparsity)
    r = x + math.sqrt(tau2) * rng.normal(size=x.size)
    active = sparsity * np.exp(-r * r / 2 / (1 + tau2)) / math.sqrt(1 + tau2)
    quiet = (1 - sparsity) * np.exp(-r * r / 2 / tau2) / math.sqrt(tau2)
    return float(np.mean((active / (active + quiet) * r / (1 + tau2) - x) ** 2))


@pytest.mark.parametrize(("share", "sparsity", "noise"), [(0.5, 0.1, 1e-3), (0.4, 0.05, 1e-2)])
def test_amp_ends_where_state_evolution_says(share, sparsity, noise):
    """Donoho, Maleki, Montanari 2009: tau^2 <- noise + (n/m) mmse(tau^2), with the prior known."""
    n, rng = 3000, np.random.default_rng(3)
    m = int(share * n)
    tau2, error = noise + sparsity / share, 0.0
    for _ in range(60):
        error = bernoulli_gaussian_mmse(tau2, sparsity, rng)
        tau2 = noise + error / share
    found = []
    for trial in range(12):
        x = rng.normal(size=n) * (rng.random(n) < sparsity)
        truth = torch.from_numpy(x).float()
        shared = gaussian(m, n, trial)
        values = shared @ truth + math.sqrt(noise) * torch.from_numpy(rng.normal(size=m)).float()
        found.append(float((amp(shared, values, 0.2, 60) - truth).square().mean()))
    # One trial scatters by a quarter, so the mean of 12 by .3 dB; 1 dB is three times that.
    assert 10 * math.log10(np.mean(found) / error) == pytest.approx(0.0, abs=1.0)


def test_a_dsgd_gives_the_mean_that_its_scales_weigh():
    d, plan = 600, Plan(0, 4, 3, 0.1)
    scheme = make_scheme(SchemeOptions(name="a-dsgd", keep=0.02, measure=0.3, memory=False), d)
    updates = 0.1 * torch.randn((3, d), generator=torch.Generator().manual_seed(5)) * torch.tensor([[1.0], [3.0], [6]])
    sparse, _ = scheme.sparsify(updates, torch.zeros_like(updates), plan)
    symbols, _ = scheme.encode(updates, torch.zeros_like(updates), Csi(), plan)
    torch.testing.assert_close(energy(symbols), torch.full((3,), float(scheme.symbols), dtype=torch.float64))
    projected = scheme.matrix(plan) @ sparse.T / plan.eta
    weights = (scheme.symbols / (projected.square().sum(0) + 1)).sqrt()
    torch.testing.assert_close(symbols[:, -1].real, weights)
    estimate = scheme.decode(symbols.sum(0), Csi(noise=0.0), plan)
    expected = (weights[:, None] * sparse).sum(0) / weights.sum()
    assert nmse_db(estimate, expected) < -50 and nmse_db(expected, sparse.mean(0)) > -10


def test_a_dsgd_does_not_believe_noise():
    scheme = make_scheme(SchemeOptions(name="a-dsgd"), 100)
    received = torch.full((scheme.symbols,), 0.5 + 0j)
    assert float(scheme.decode(received, Csi(noise=1.0), Plan(0, 1, 2)).abs().max()) == 0.0


def test_a_dsgd_refuses_a_matrix_that_memory_does_not_hold():
    with pytest.raises(ValueError, match=r"8\.0e\+09 entries for 100000") as refused:
        make_scheme(SchemeOptions(name="a-dsgd"), 100_000)
    assert "lower measure" in str(refused.value)


def test_misaligned_symbols_need_what_the_server_knows():
    scheme = make_scheme(SchemeOptions(name="misaligned"), 4)
    with pytest.raises(ValueError, match=r"csi\.gains and csi\.offsets"):
        scheme.decode(torch.zeros(5, dtype=torch.complex64), Csi(), Plan(0, 1, 2))
    with pytest.raises(ValueError, match="leave coherence unset instead of 3"):
        scheme.superpose(
            torch.zeros((2, 2), dtype=torch.complex64),
            torch.ones((2, 2), dtype=torch.complex64),
            [0, 1],
            replace(Channel(), coherence=3),
            torch.Generator(),
        )
