"""The bounds against quadrature, brute force, simulations of problems solved by hand, and dense derivatives."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from fl_core.data import load, sample_tasks, split_clients
from fl_core.estimate import estimate_constants, hessian_smoothness, spectral_norms
from fl_core.mac import RAYLEIGH_MEAN, RAYLEIGH_SPREAD
from fl_core.maml import loss, meta_gradient
from fl_core.models import build
from fl_core.options import DataOptions, LearnOptions, ModelOptions
from fl_core.seeds import generator
from fl_core.theory import (
    Constants,
    System,
    aggregate_snr_db,
    channel_error,
    convergence_bound,
    generalisation_bound,
    linear,
    memory_bound,
    sent_bound,
    truncation_threshold,
)


@pytest.mark.parametrize(("snr_db", "published"), [(0, 0.014), (10, 0.0019), (20, 0.0002)])
def test_threshold_of_truncation_with_memory(snr_db, published):
    """Q = 5, eta = 1e-3, r = 0.5, L = G = 1, s = 10; and no point of a fine grid, by quadrature, is cheaper."""
    found = truncation_threshold(1e-3, 5, 0.5, 10, linear(snr_db))
    assert found == pytest.approx(published, rel=0.05)
    a, b = 4e-3 * 5 / (100 * linear(snr_db)), 48e-6 * 25 / 0.25

    def cost(g: float) -> float:
        tail, _ = quad(lambda x: math.exp(-math.exp(x)), math.log(g), math.log(60.0), limit=500)  # E_1 in log power
        return a * (4 * math.expm1(2 * g) + 1) * tail + b * math.expm1(2 * g)

    assert cost(found) <= min(cost(g) for g in found * np.geomspace(1e-3, 1e2, 101)) * (1 + 1e-9)


def test_memory_stays_below_its_bound_for_any_updates():
    """Keep the first half of the largest entries of unit random updates for long; the bound has room but not a decade.

    A contraction in the squared norm by 1 - k/d, as top-k is, is what the bound's lambda means.
    """
    rng, keep, dimension = np.random.default_rng(3), 0.5, 64
    memory, largest = np.zeros(dimension), 0.0
    for _ in range(300):
        update = rng.normal(size=dimension)
        update /= np.linalg.norm(update)
        whole = memory + update
        order = np.argsort(np.abs(whole))
        memory = whole.copy()
        memory[order[dimension // 2 :]] = 0.0
        largest = max(largest, float(memory @ memory))
        assert float((whole - memory) @ (whole - memory)) <= sent_bound(keep, 1, 1.0)
    assert largest <= memory_bound(keep, 0.1, 10, 1.0)
    with pytest.raises(ValueError, match="outside"):
        memory_bound(0.0, 0.1, 10, 1.0)


def test_channel_error_is_what_a_simulated_channel_makes():
    rng, uses, snr = np.random.default_rng(1), 40, linear(7.0)
    updates = rng.normal(size=(5, uses, 2)) @ [1, 1j] * np.array([1.0, 0.3, 2.0, 0.7, 1.0])[:, None]
    norms = np.sum(np.abs(updates) ** 2, axis=1)
    scale = math.sqrt(uses / norms.max())
    errors = []
    for _ in range(4000):
        gains = np.abs(rng.normal(size=(5, 2)) @ [1, 1j]) / math.sqrt(2)
        noise = rng.normal(size=(uses, 2)) @ [1, 1j] * math.sqrt(0.5 / snr)
        estimate = (gains @ (scale * updates) + noise) / (scale * RAYLEIGH_MEAN)
        errors.append(np.sum(np.abs(estimate - updates.sum(0)) ** 2))
    # The updates are fixed, the gains independent: cross terms vanish on average. Five standard errors.
    wanted = channel_error(norms.tolist(), snr, RAYLEIGH_MEAN, RAYLEIGH_SPREAD)
    assert np.mean(errors) == pytest.approx(wanted, abs=5 * np.std(errors) / math.sqrt(4000))


QUADRATIC = Constants(
    gradient=0.0,
    smoothness=1.0,
    hessian_smoothness=0.0,
    gradient_variance=0.0,
    hessian_variance=0.0,
    gradient_spread=0.0,
    hessian_spread=0.0,
    meta_square=0.0,
    gap=0.0,
)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
def test_convergence_bound_holds_for_quadratic_losses_through_a_fading_channel(snr_db):
    """f_i = |theta - c_i|^2/2 with alpha = 0: every constant is known, and local gradient descent has a closed form."""
    rng, clients, dimension, steps, eta, rounds = np.random.default_rng(2), 6, 20, 3, 0.02, 100
    centres = rng.normal(size=(clients, dimension))
    middle, theta = centres.mean(0), centres.mean(0) + rng.normal(size=dimension)
    gap = 0.5 * float((theta - middle) @ (theta - middle))
    squares, meta_square, gradient = [], 0.0, 0.0
    for _ in range(rounds):
        squares.append(float((theta - middle) @ (theta - middle)))
        slopes = theta - centres
        updates = (1 - (1 - eta) ** steps) * slopes
        meta_square = max(meta_square, float(np.max(np.sum(slopes**2, axis=1))))
        gradient = math.sqrt(meta_square)
        paired = updates[:, : dimension // 2] + 1j * updates[:, dimension // 2 :]
        scale = math.sqrt(dimension / 2 / np.max(np.sum(updates**2, axis=1)))
        gains = np.abs(rng.normal(size=(clients, 2)) @ [1, 1j]) / math.sqrt(2)
        noise = rng.normal(size=(dimension // 2, 2)) @ [1, 1j] * math.sqrt(0.5 / linear(snr_db))
        received = (gains @ (scale * paired) + noise) / (scale * RAYLEIGH_MEAN)
        theta = theta - np.concatenate((received.real, received.imag)) / clients
    spread = float(np.mean(np.sum((centres - middle) ** 2, axis=1)))
    constants = replace(QUADRATIC, gradient=gradient, gradient_spread=spread, meta_square=meta_square, gap=gap)
    system = System(clients, clients, steps, 0.0, eta, 1.0, snr_db, 1, 1, 1)
    bound = convergence_bound(constants, system, rounds)
    assert np.mean(squares) <= bound.total
    assert bound.memory == 0.0 and bound.bias == 0.0
    assert bound.channel == pytest.approx(
        4
        * eta
        * 4
        / (steps * clients**2)
        * channel_error([2 * steps**2 * meta_square] * clients, linear(snr_db), RAYLEIGH_MEAN, RAYLEIGH_SPREAD)
    )


def test_convergence_bound_moves_as_the_theorem_says():
    constants = Constants(1.0, 2.0, 0.5, 1.0, 0.5, 0.1, 0.2, 3.0, 1.5)
    base = System(10, 5, 5, 0.1, 0.01, 0.1, 10.0, 25, 75, 25)

    def terms(rounds: int = 100, **changes: float):
        return convergence_bound(constants, replace(base, **changes), rounds)

    assert terms(rounds=200).start == pytest.approx(terms().start / 2)
    assert terms(snr_db=0.0).channel > terms().channel > terms(snr_db=60.0).channel
    assert terms(snr_db=60.0).channel == pytest.approx(terms(snr_db=90.0).channel, rel=1e-3)  # the spread remains
    assert terms(contraction=0.5).memory < terms().memory and terms(contraction=1.0).memory == 0.0
    assert terms(active=10).memory == pytest.approx(terms().memory / 4)
    assert terms(eta=0.02).steps == pytest.approx(2 * terms().steps)
    smooth = 4 * 2.0 + 0.1 * 0.5 * 1.0
    sampling = 12 * (1 + 1 / 75 + 0.04 / 25) * (1 + 0.5 * 0.01 / 100) - 12
    apart = 3 * 0.01 * 0.2 + 192 * 0.1
    assert terms().drift == pytest.approx(40 * 1e-4 * 5 * smooth**2 * (sampling + 30 * apart))


def test_generalisation_bound_holds_where_a_client_is_one_bit():
    """Each client holds a fair coin, the server hears the noisy sum of +-1 and guesses the majority; loss 0 or 1.

    The gap is 1/2 minus the share of clients that the guess fits. It must stay below the bound at every SNR, and grow
    with the SNR as the bound does. 40,000 repetitions: standard errors below 0.0005.
    """
    rng, clients, repeats = np.random.default_rng(4), 9, 40_000
    coins = rng.choice([-1.0, 1.0], size=(repeats, clients))
    gaps, bounds = [], []
    for snr_db in (-20.0, -10.0, 0.0, 10.0):
        noise = rng.normal(size=repeats) * math.sqrt(0.5 / linear(snr_db))
        guess = np.sign(coins.sum(1) + noise)
        gaps.append(0.5 - np.mean(coins != guess[:, None]))
        bounds.append(
            generalisation_bound(clients, clients, 1, 1, linear(snr_db), deviation=0.5, gain_mean=1.0, gain_spread=0.0)
        )
    assert all(0 < gap <= bound for gap, bound in zip(gaps, bounds, strict=True))
    assert np.all(np.diff(gaps) > 0) and np.all(np.diff(bounds) > 0)


def test_information_of_the_channel_is_the_capacity_of_the_gaussian_sum():
    """ln det(I + SNR E[sum h sum h*]) by brute force over gains, for independent symbols that add coherently."""
    rng, active = np.random.default_rng(5), 5
    gains = np.abs(rng.normal(size=(200_000, active, 2)) @ [1, 1j]) / math.sqrt(2)
    power = np.mean(gains.sum(1) ** 2)
    covariance = np.eye(7) * (1 + linear(3.0) * power)
    information = 2 * np.linalg.slogdet(covariance)[1]
    bound = generalisation_bound(20, active, 2, 7, linear(3.0), deviation=1.0)
    assert bound == pytest.approx(math.sqrt(2 * information / 20), rel=1e-3)
    bits = generalisation_bound(20, active, 2, 7, linear(3.0), scale_bits=8)
    assert bits**2 - bound**2 == pytest.approx(2 / 20 * 2 * 8 * math.log(2))


def test_both_definitions_of_the_received_snr():
    assert aggregate_snr_db(7.0, 10) == pytest.approx(17.0) and aggregate_snr_db(7.0, 1, -3.0) == 4.0


DATA = DataOptions(ways=2, shots=2, queries=3, hessian_shots=2, clients=2, classes_per_client=4)
LEARN = LearnOptions(alpha=0.3)


def dense_third(function, theta):
    hessian = torch.func.hessian(function)
    return torch.func.jacrev(hessian)(theta)


def test_power_methods_find_the_norms_of_dense_derivatives():
    model = build(ModelOptions(hidden=(), activation="tanh"), (1, 3, 3), 2)
    source = torch.Generator().manual_seed(1)
    theta = torch.randn(model.dimension, generator=source, dtype=torch.float64)
    x, y = torch.randn((6, 1, 3, 3), generator=source, dtype=torch.float64), torch.arange(6) % 2

    def value(point):
        return torch.nn.functional.cross_entropy(model.logits(point, x), y)

    start = torch.randn(model.dimension, generator=source, dtype=torch.float64)
    hessian = torch.func.hessian(value)(theta)
    exact = float(torch.linalg.eigvalsh(hessian).abs().max())
    both = torch.stack([hessian, -2 * hessian])
    starts = torch.stack([start, start.flip(0)])

    def apply(vectors):
        return torch.einsum("kab,kb->ka", both, vectors)

    assert spectral_norms(apply, starts, 200).tolist() == pytest.approx([exact, 2 * exact], rel=1e-6)
    few = spectral_norms(apply, starts) / torch.tensor([exact, 2 * exact])
    assert float(few.min()) > 0.8 and float(few.max()) <= 1 + 1e-12
    third = dense_third(value, theta)
    directions = torch.randn((400, model.dimension), generator=source, dtype=torch.float64)
    directions = torch.cat([directions, torch.linalg.eigh(hessian).eigenvectors.T])
    directions = directions / directions.norm(dim=1, keepdim=True)
    for _ in range(30):  # alternate maximisation of |D3f(u, u, v)| from every direction at once
        bent = torch.einsum("abc,nc->nab", third, directions)
        values, vectors = torch.linalg.eigh(bent)
        best = values.abs().argmax(1)
        directions = vectors[torch.arange(len(best)), :, best]
    norm = float(values.abs().max())
    found = hessian_smoothness(torch.func.grad(value), theta, start, 100)
    assert 0.5 * norm < found < norm * (1 + 1e-3)  # from one start: a local maximum, never above the norm
    assert hessian_smoothness(lambda point: 3.0 * point, theta, start) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_estimated_constants_equal_those_from_dense_derivatives():
    dataset = load(DATA, 1)
    clients = split_clients(dataset, DATA, 1)
    model = build(ModelOptions(hidden=(), activation="tanh"), dataset.image_shape, DATA.ways)
    theta, draws = 0.5 * model.init(generator(1, "init")), 2
    found = estimate_constants(model, [theta], clients, DATA, LEARN, seed=9, draws=draws)
    tasks = [
        sample_tasks(client, DATA, generator(9, "constants", index), draws) for index, client in enumerate(clients)
    ]
    batches = [[type(t.support)(t.support.x[k], t.support.y[k]) for k in range(draws)] for t in tasks]
    slope, curve = torch.func.grad(lambda p, b: loss(model, p, b)), torch.func.hessian(lambda p, b: loss(model, p, b))
    g = np.array([[slope(theta, b).numpy() for b in client] for client in batches])
    h = np.array([[curve(theta, b).numpy() for b in client] for client in batches])
    own, curved = g.mean(1), h.mean(1)

    def norm(matrix):
        return np.abs(np.linalg.eigvalsh(matrix)).max()

    scatter = [np.sum(np.var(each, axis=0, ddof=1)) for each in g]
    rough = [sum(norm(one - mine) ** 2 for one in each) / (draws - 1) for each, mine in zip(h, curved, strict=True)]
    assert found.gradient == pytest.approx(max(np.linalg.norm(each) for each in own), rel=1e-5)
    assert found.gradient_variance == pytest.approx(4 * max(scatter), rel=1e-4)
    between = np.mean(np.sum((own - own.mean(0)) ** 2, axis=1)) - np.mean(scatter) / 2 / draws
    assert found.gradient_spread == pytest.approx(max(between, 0.0), rel=1e-3, abs=1e-7)
    # Fifteen steps of the power method stop a little below the norm.
    assert found.smoothness == pytest.approx(max(norm(each) for each in curved), rel=0.05)
    assert found.hessian_variance == pytest.approx(4 * max(rough), rel=0.2)
    assert found.hessian_spread == pytest.approx(np.mean([norm(e - curved.mean(0)) ** 2 for e in curved]), rel=0.2)
    batch = [[type(t)(*(type(p)(p.x[k], p.y[k]) for p in t)) for k in range(draws)] for t in tasks]
    meta = [[meta_gradient(model, theta, *one, 0.3, "exact").square().sum().item() for one in c] for c in batch]
    assert found.meta_square == pytest.approx(max(np.mean(each) for each in meta), rel=1e-4)
    values = [
        loss(model, theta - 0.3 * slope(theta, one.support), one.query).item() for client in batch for one in client
    ]
    assert found.gap == pytest.approx(np.mean(values), rel=1e-5)
    assert found.hessian_smoothness > 0.0
    with pytest.raises(ValueError, match="1 draws"):
        estimate_constants(model, [theta], clients, DATA, LEARN, seed=9, draws=1)
