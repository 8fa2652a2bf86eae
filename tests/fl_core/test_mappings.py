"""Mappings against dense matrices, the definition of an adjoint, and orthonormality."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.mappings import MAPPINGS, fast_length, make_mapping

SIZES = [4, 7, 8, 31, 64, 97, 100]


def dense(mapping, rows) -> np.ndarray:
    """Build the complex (M, d) matrix from the definition: rows of the DFT matrix of the padded length."""
    length, d = mapping.length, mapping.dimension
    if mapping.name == "pair":
        half = length // 2
        return np.hstack([np.eye(half), 1j * np.eye(half)])[:, :d]
    size = length // 2 if mapping.name == "pair-dft" else length
    fourier = np.exp(-2j * np.pi * np.outer(rows.numpy(), np.arange(size)) / size) / np.sqrt(size)
    if mapping.name == "pair-dft":
        return np.hstack([fourier, 1j * fourier])[:, :d]
    return fourier[:, :d] * (np.sqrt(2) if mapping.name == "rdft" else 1.0)


def measure_of(name: str) -> float:
    return {"pair": 1.0, "rdft": 0.3, "dft-all": 0.7, "pair-dft": 0.3}[name]


@pytest.mark.parametrize("name", sorted(MAPPINGS))
@pytest.mark.parametrize("d", SIZES)
def test_forward_and_adjoint_equal_the_dense_matrix(name, d):
    mapping = make_mapping(name, d, measure_of(name))
    rows = mapping.rows(11, 3)
    matrix = dense(mapping, rows)
    rng = np.random.default_rng(d)
    x = rng.standard_normal((2, 3, d))
    y = rng.standard_normal((2, mapping.symbols)) + 1j * rng.standard_normal((2, mapping.symbols))
    forward = mapping.forward(torch.from_numpy(x), rows).numpy()
    adjoint = mapping.adjoint(torch.from_numpy(y), rows).numpy()
    assert forward.shape == (2, 3, mapping.symbols)
    # Both sides run in float64; 1e-12 is a few hundred roundings.
    np.testing.assert_allclose(forward, x @ matrix.T, atol=1e-12)
    np.testing.assert_allclose(adjoint, (y @ matrix.conj()).real, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(MAPPINGS)), st.integers(4, 300), st.integers(0, 2**31), st.floats(0.01, 0.5))
def test_adjoint_identity_in_float32(name, d, seed, measure):
    mapping = make_mapping(name, d, measure)
    rows = mapping.rows(seed, 0)
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(d, generator=source)
    y = torch.view_as_complex(torch.randn((mapping.symbols, 2), generator=source))
    left = float((mapping.forward(x, rows).conj() * y).real.sum())
    right = float((x * mapping.adjoint(y, rows)).sum())
    assert mapping.forward(x, rows).dtype == torch.complex64 and mapping.adjoint(y, rows).dtype == torch.float32
    # float32 inner products: relative to the norms, 1e-5.
    assert abs(left - right) <= 1e-5 * float(x.norm()) * float(y.norm())


@pytest.mark.parametrize("name", sorted(MAPPINGS))
@pytest.mark.parametrize("d", SIZES)
def test_the_view_has_orthonormal_real_rows(name, d):
    mapping = make_mapping(name, d, measure_of(name))
    rows = mapping.rows(5, 1)
    view = mapping.view(torch.zeros(mapping.symbols, dtype=torch.complex128), 2.0, rows)
    columns = [view.forward(column) for column in torch.eye(view.length, dtype=torch.float64)]
    stacked = torch.view_as_real(torch.stack(columns, dim=1)).permute(2, 0, 1).flatten(0, 1)
    stacked = stacked[stacked.abs().amax(1) > 1e-9]  # DC and Nyquist measure no imaginary part
    assert stacked.shape[0] == view.real_rows
    torch.testing.assert_close(stacked @ stacked.T, torch.eye(view.real_rows, dtype=torch.float64), atol=1e-12, rtol=0)
    back = view.adjoint(view.forward(torch.linspace(0, 1, view.length, dtype=torch.float64)))
    expected = stacked.T @ (stacked @ torch.linspace(0, 1, view.length, dtype=torch.float64))
    torch.testing.assert_close(back, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", sorted(MAPPINGS))
def test_the_view_states_the_noise_per_real_measurement(name):
    mapping = make_mapping(name, 2000, measure_of(name))
    rows = mapping.rows(5, 1)
    source = torch.Generator().manual_seed(1)
    noise = torch.view_as_complex(torch.randn((mapping.symbols, 2), generator=source)) * np.sqrt(0.35)
    view = mapping.view(noise, 0.7, rows)
    measured = float(view.values.abs().square().sum()) / view.real_rows
    # Chi-square over at least 1200 real numbers: 5 standard deviations of the mean are below 21 %.
    assert measured == pytest.approx(view.noise, rel=5 * np.sqrt(2 / view.real_rows))
    assert mapping.view(noise, None, rows).noise is None


def test_real_rows_of_the_full_dft_are_close_to_their_expectation():
    mapping = make_mapping("dft-all", 5000, 0.6)
    counts = [
        mapping.view(torch.zeros(mapping.symbols, dtype=torch.complex64), 1.0, mapping.rows(1, r)).real_rows
        for r in range(20)
    ]
    # The standard deviation of one draw is below 40 rows.
    assert np.mean(counts) == pytest.approx(mapping.real_rows(), abs=40)


@pytest.mark.parametrize("name", ["rdft", "dft-all", "pair-dft"])
def test_rows_are_shared_by_seed_and_redrawn_each_round(name):
    mapping = make_mapping(name, 1000, 0.3)
    again = make_mapping(name, 1000, 0.3)
    first = mapping.rows(1, 0)
    assert torch.equal(first, again.rows(1, 0)) and first.unique().numel() == mapping.symbols == 300
    assert not torch.equal(first, mapping.rows(1, 1)) and not torch.equal(first, mapping.rows(2, 0))


def test_rdft_draws_neither_dc_nor_nyquist():
    mapping = make_mapping("rdft", 64, 0.5)
    assert mapping.symbols == 31
    assert mapping.rows(0, 0).tolist() == list(range(1, 32))


def test_rows_are_uniform():
    mapping = make_mapping("rdft", 42, 0.25)
    counts = np.zeros(mapping.length // 2 + 1)
    for round_number in range(3000):
        counts[mapping.rows(9, round_number).numpy()] += 1
    inner = counts[1 : mapping.length // 2]
    share = mapping.symbols / inner.size
    assert counts[0] == counts[mapping.length // 2] == 0
    assert np.abs(inner - 3000 * share).max() < 5 * np.sqrt(3000 * share * (1 - share))


@pytest.mark.parametrize("minimum", [1, 2, 3, 97, 8191, 999_983])
def test_fast_length_is_even_smooth_and_close(minimum):
    length = fast_length(minimum)
    remaining = length
    for factor in (2, 3, 5):
        while remaining % factor == 0:
            remaining //= factor
    assert remaining == 1 and length % 2 == 0 and minimum <= length <= max(4, 1.2 * minimum)


@pytest.mark.parametrize(
    ("name", "d", "measure", "text"),
    [
        ("rdft", 100, 0.6, "0.6"),
        ("pair-dft", 100, 0.51, "0.51"),
        ("rdft", 3, 0.4, "pair"),
        ("dft-all", 100, 0.0, "measure is 0"),
        ("hadamard", 100, 0.4, "rdft"),
        ("pair", 0, 0.4, "0 entries"),
    ],
)
def test_mistakes_are_refused_with_a_remedy(name, d, measure, text):
    with pytest.raises(ValueError, match=text):
        make_mapping(name, d, measure)
