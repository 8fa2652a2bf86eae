"""Estimators against closed forms, numerical integration, and the required figures at known settings."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from fl_core.decode import ESTIMATORS, iht, linear, nmse_db, recoverable, union_fraction
from fl_core.encode import kept_entries, power_scale, top_k
from fl_core.mac import RAYLEIGH_MEAN, RAYLEIGH_SPREAD
from fl_core.mappings import View, make_mapping
from fl_core.oamp import Prior, denoise, oamp


def superposition(
    clients: int,
    snr_db: float,
    seed: int,
    *,
    keep: float = 0.04,
    measure: float = 0.4,
    mapping: str = "rdft",
    d: int = 8192,
    values: str = "top",
    size: float = 1.0,
) -> tuple[View, torch.Tensor, torch.Tensor]:
    """Receive clients' sparse vectors through Rayleigh |h|; return the view, the received sum, and the target sum.

    ``top``: top-k of normal vectors (so no small values); ``normal``: normal values on random supports.
    """
    source = torch.Generator().manual_seed(seed)
    k = kept_entries(keep, d)
    sparse = torch.zeros(clients, d)
    for i in range(clients):
        dense = size * torch.randn(d, generator=source)
        chosen = torch.randperm(d, generator=source)[:k]
        sparse[i] = top_k(dense, k) if values == "top" else torch.zeros(d).index_copy(0, chosen, dense[chosen])
    gains = torch.randn((clients, 2), generator=source).div(math.sqrt(2)).norm(dim=1)
    shape = make_mapping(mapping, d, measure)
    rows = shape.rows(seed, 0)
    symbols = shape.forward(sparse, rows)
    scale = power_scale(symbols.abs().double().square().sum(1).tolist(), shape.symbols)
    variance = 10 ** (-snr_db / 10)
    noise = torch.view_as_complex(torch.randn((shape.symbols, 2), generator=source)) * math.sqrt(variance / 2)
    received = scale * (gains[:, None] * symbols).sum(0) + noise
    total = (gains[:, None] * sparse).sum(0)
    return shape.view(received / scale, variance / scale**2, rows), total, sparse.sum(0)


def median_nmse(estimate, seeds: int = 5, **settings) -> float:
    cases = [superposition(seed=seed, **settings) for seed in range(seeds)]
    return float(np.median([nmse_db(estimate(view), total) for view, total, _ in cases]))


@pytest.mark.parametrize("values", ["top", "normal"])
@pytest.mark.parametrize(("clients", "limit_db"), [(5, -27.0), (10, -28.0)])
def test_oamp_with_a_learned_prior_reaches_the_required_error(clients, limit_db, values):
    assert median_nmse(lambda view: oamp(view).value, clients=clients, snr_db=20, values=values) <= limit_db


@pytest.mark.parametrize("mapping", ["pair-dft", "pair"])
def test_oamp_serves_the_other_mappings_as_well(mapping):
    error = median_nmse(lambda view: oamp(view).value, clients=5, snr_db=20, mapping=mapping, values="normal", seeds=3)
    assert error <= -27.0


def test_oamp_on_the_full_dft_loses_what_the_conjugate_copies_waste():
    half, full = (
        median_nmse(lambda view: oamp(view).value, clients=5, snr_db=20, mapping=name, seeds=3, values="normal")
        for name in ("rdft", "dft-all")
    )
    assert half < full <= -25.0


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 10.0, 40.0])
def test_oamp_is_never_worse_than_linear_and_keeps_its_head_in_noise(snr_db):
    better = median_nmse(lambda view: oamp(view).value, clients=5, snr_db=snr_db, seeds=3)
    plain = median_nmse(linear, clients=5, snr_db=snr_db, seeds=3)
    assert better < plain
    assert better < 0.0  # an estimate of zero would score 0 dB


def test_oamp_learns_an_unknown_noise():
    for snr_db in (5.0, 20.0):
        known, unknown = [], []
        for seed in range(3):
            view, total, _ = superposition(5, snr_db, seed)
            blind = View(view.values, None, view.real_rows, view.dimension, view.length, view.forward, view.adjoint)
            known.append(nmse_db(oamp(view).value, total))
            unknown.append(nmse_db(oamp(blind).value, total))
        assert np.median(unknown) <= np.median(known) + 2.0


def test_oamp_learns_the_sparsity_and_forecasts_its_own_error():
    view, total, _ = superposition(5, 20, 1, values="normal")
    found = oamp(view)
    true_share = float((total != 0).double().mean())
    assert found.prior is not None and found.prior.sparsity == pytest.approx(true_share, rel=0.1)
    error = float((found.value - total).square().mean())
    # The forecast holds for a matrix of infinite size and a true prior: within 1.5 dB here.
    assert abs(10 * math.log10(found.variance / error)) < 1.5


def test_oamp_follows_its_state_evolution():
    d, share, keep, noise = 32768, 0.7, 0.1, 1e-3
    source = torch.Generator().manual_seed(7)
    active = torch.rand(d, generator=source) < keep
    truth = torch.randn(d, generator=source) * active
    shape = make_mapping("rdft", d, share / 2)
    rows = shape.rows(3, 0)
    z = torch.view_as_complex(torch.randn((shape.symbols, 2), generator=source)) * math.sqrt(noise)
    view = shape.view(shape.forward(truth, rows) + z, 2 * noise, rows)
    v2, predicted = keep, math.inf
    for _ in range(30):
        tau2 = (1 - share) / share * v2 + noise / share
        predicted = _bernoulli_gaussian_mmse(keep, 1.0, tau2)
        v2 = predicted * tau2 / (tau2 - predicted)
    measured = float((oamp(view).value - truth).square().mean())
    # One draw of 3277 active entries: 0.5 dB.
    assert abs(10 * math.log10(measured / predicted)) < 0.5


def _bernoulli_gaussian_mmse(sparsity: float, variance: float, tau2: float) -> float:
    """Integrate Var[X | r] over r numerically, from the definition."""
    wide, narrow = math.sqrt(variance + tau2), math.sqrt(tau2)

    def integrand(r: float) -> float:
        on, off = sparsity * norm.pdf(r, scale=wide), (1 - sparsity) * norm.pdf(r, scale=narrow)
        mean = variance / wide**2 * r
        second = mean**2 + variance * tau2 / wide**2
        share = on / (on + off)
        return (on + off) * (share * second - (share * mean) ** 2)

    edge = 10 * wide
    cuts = [5 * narrow, 8 * narrow]
    return 2 * quad(integrand, 0, edge, points=[c for c in cuts if c < edge], limit=500)[0]


@pytest.mark.parametrize(("sparsity", "variance", "tau2"), [(0.1, 1.0, 0.01), (0.4, 2.0, 1.0), (0.9, 0.5, 3.0)])
def test_the_denoiser_is_the_posterior_mean_by_numerical_integration(sparsity, variance, tau2):
    observed = np.linspace(-3, 3, 13)
    found = denoise(torch.tensor(observed), tau2, Prior(sparsity, variance))

    for index, r in enumerate(observed):

        def weight(x: float, r: float = r) -> float:
            return sparsity * norm.pdf(x, scale=math.sqrt(variance)) * norm.pdf(r - x, scale=math.sqrt(tau2))

        spread = math.sqrt(variance * tau2 / (variance + tau2))
        centre = variance / (variance + tau2) * r
        area = [centre - 12 * spread, centre + 12 * spread]
        evidence = quad(weight, *area)[0] + (1 - sparsity) * norm.pdf(r, scale=math.sqrt(tau2))
        mean = quad(lambda x, f=weight: x * f(x), *area)[0] / evidence
        assert float(found.mean[index]) == pytest.approx(mean, abs=1e-8)


def test_the_denoiser_forecasts_the_minimum_error():
    sparsity, variance, tau2, n = 0.2, 1.5, 0.05, 400_000
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(n) * math.sqrt(variance) * (rng.random(n) < sparsity)
    found = denoise(torch.tensor(truth + math.sqrt(tau2) * rng.standard_normal(n)), tau2, Prior(sparsity, variance))
    error = float(((found.mean.numpy() - truth) ** 2).mean())
    expected = _bernoulli_gaussian_mmse(sparsity, variance, tau2)
    # 400,000 draws: 1 % is over 4 standard errors of both means.
    assert error == pytest.approx(expected, rel=0.01) and found.variance == pytest.approx(expected, rel=0.01)
    assert found.prior.sparsity == pytest.approx(sparsity, rel=0.01)
    assert found.prior.variance == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("size", [1e-8, 1e-3, 1e4])
def test_estimators_do_not_care_about_the_unit(size):
    reference, total, _ = superposition(5, 20, 2, d=2048)
    scaled, total_scaled, _ = superposition(5, 20, 2, d=2048, size=size)
    for name in ESTIMATORS:
        expected = nmse_db(ESTIMATORS[name](reference, 400, 20), total)
        # float32 rounds differently at another scale; in dB of an error near -30 that is far below 0.1.
        assert nmse_db(ESTIMATORS[name](scaled, 400, 20), total_scaled) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("mapping", ["rdft", "pair-dft"])
def test_linear_loses_the_unmeasured_share_of_a_spread_out_vector(mapping):
    # 10 log10(1 - 2M/d) = -6.99 dB without noise.
    error = median_nmse(linear, clients=5, snr_db=100, mapping=mapping, values="normal")
    assert error == pytest.approx(10 * math.log10(0.2), abs=0.3)


def test_linear_undoes_pair_exactly():
    vector = torch.randn(101, generator=torch.Generator().manual_seed(1))
    mapping = make_mapping("pair", 101)
    rows = mapping.rows(0, 0)
    assert torch.equal(linear(mapping.view(mapping.forward(vector, rows), 0.0, rows)), vector)


def test_iht_reaches_its_figure_and_fails_later_than_linear():
    error = median_nmse(lambda view: iht(view, 5 * 328, 20), clients=5, snr_db=20, values="normal")
    assert error <= -25.8
    dense = median_nmse(lambda view: iht(view, 10 * 328, 20), clients=10, snr_db=20, values="normal", seeds=3)
    assert dense <= -12.7


@pytest.mark.parametrize("name", ["iht", "oamp"])
def test_sparse_estimators_recover_exactly_without_noise(name):
    mapping = make_mapping("rdft", 1999, 0.4)  # a prime: the mapping pads inside
    source = torch.Generator().manual_seed(4)
    vector = top_k(torch.randn(1999, generator=source), 150)
    rows = mapping.rows(1, 0)
    view = mapping.view(mapping.forward(vector, rows), 0.0, rows)
    estimate = ESTIMATORS[name](view, 150, 200)
    assert estimate.shape == (1999,) and estimate.dtype == torch.float32
    assert nmse_db(estimate, vector) < -90.0  # float32 through some ten transforms


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_silence_gives_zero(name):
    mapping = make_mapping("rdft", 64, 0.4)
    rows = mapping.rows(1, 0)
    view = mapping.view(torch.zeros(mapping.symbols, dtype=torch.complex64), 0.0, rows)
    assert torch.equal(ESTIMATORS[name](view, 5, 20), torch.zeros(64))


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1.0, 1e9])
@pytest.mark.parametrize("d", [4, 5, 50])
def test_oamp_stays_finite_on_tiny_dense_and_absurd_input(d, noise):
    mapping = make_mapping("pair", d)
    rows = mapping.rows(0, 0)
    vector = torch.randn(d, generator=torch.Generator().manual_seed(d))
    found = oamp(mapping.view(mapping.forward(vector, rows), noise, rows))
    assert bool(found.value.isfinite().all())
    assert float(found.value.norm()) <= 1.01 * float(vector.norm())
    if noise == 0.0:
        assert nmse_db(found.value, vector) < -90.0


def test_every_estimator_fails_far_below_two_measurements_and_the_rule_says_so():
    settings = {"clients": 10, "snr_db": 20, "measure": 0.1, "seeds": 2}
    assert median_nmse(lambda view: oamp(view).value, **settings) > -6.0
    reason = recoverable(1638, 8192, 0.04, 10)
    assert "1638" in reason and "measure" in reason and "keep" in reason


def test_the_rule_of_thumb_follows_its_formula():
    assert union_fraction(0.04, 10) == pytest.approx(1 - 0.96**10)
    assert union_fraction(0.04, 10, shared=True) == 0.04
    assert recoverable(6554, 8192, 0.04, 10) == ""
    assert recoverable(8192, 8192, 1.0, 10) == ""
    assert recoverable(6554, 8192, 0.04, 20) != ""
    assert recoverable(6554, 8192, 0.04, 20, shared=True) == ""


def test_following_the_remedy_silences_the_rule():
    reason = recoverable(6554, 8192, 0.2, 8)
    keep = float(reason.rsplit(" ", 1)[1])
    assert recoverable(6554, 8192, keep - 1e-3, 8) == ""


def test_above_ten_db_the_error_against_the_target_is_the_spread_of_the_gains():
    errors = []
    for seed in range(40):
        view, _, target = superposition(8, 40, seed, d=2048, values="normal")
        estimate = oamp(view).value / RAYLEIGH_MEAN
        errors.append(float((estimate - target).square().sum() / target.square().sum()))
    # 320 gains: the mean of (|h|/mu - 1)^2 over them has a standard error of about 0.025.
    assert np.mean(errors) == pytest.approx(RAYLEIGH_SPREAD, abs=0.08)


def test_nmse_by_hand():
    assert nmse_db(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])) == 0.0
    assert nmse_db(torch.tensor([1.1]), torch.tensor([1.0])) == pytest.approx(-20.0, abs=1e-4)
    assert nmse_db(torch.ones(2), torch.ones(2)) == -math.inf
    assert math.isnan(nmse_db(torch.ones(2), torch.zeros(2)))
    assert nmse_db(torch.tensor([1j]), torch.tensor([1.0 + 0j])) == pytest.approx(10 * math.log10(2))
