"""Sparsifiers, error feedback and the power rule against brute force and their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_core.encode import (
    SPARSIFIERS,
    compress,
    energy,
    kept_entries,
    power_scale,
    rand_k,
    random_positions,
    split_random_k,
    split_top_k,
    top_k,
    top_k_positions,
)

VALUES = st.floats(-1e3, 1e3, width=32)
# A handful of levels makes ties the rule rather than the exception.
LEVELS = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


def by_sorting(vector: np.ndarray, k: int) -> set[int]:
    """Return the k positions that a stable sort by falling magnitude puts first."""
    return set(np.argsort(-np.abs(vector), kind="stable")[:k].tolist())


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 200), st.sampled_from([VALUES, LEVELS]))
def test_top_k_is_a_stable_sort_by_falling_magnitude(data, size, values):
    vector = data.draw(hnp.arrays(np.float32, size, elements=values))
    k = data.draw(st.integers(1, size))
    positions = top_k_positions(torch.from_numpy(vector), k)
    assert positions.numel() == k
    assert set(positions.tolist()) == by_sorting(vector, k)


@pytest.mark.parametrize("kind", ["normal", "few levels", "mostly zero", "one block", "periodic", "sorted"])
@pytest.mark.parametrize("keep", [1e-5, 0.001, 0.04, 0.3, 0.9])
def test_top_k_is_exact_on_long_vectors_whatever_the_sample_shows(kind, keep):
    rng = np.random.default_rng(5)
    size = 200_003
    vector = {
        "normal": lambda: rng.standard_normal(size),
        "few levels": lambda: rng.integers(-3, 4, size),
        "mostly zero": lambda: rng.standard_normal(size) * (rng.random(size) < 1e-3),
        "one block": lambda: rng.standard_normal(size) * (np.arange(size) < 500),
        "periodic": lambda: 1.0 * (np.arange(size) % (size // 16384) == 0) + 1e-3 * rng.standard_normal(size),
        "sorted": lambda: np.arange(size, 0, -1),
    }[kind]()
    vector = vector.astype(np.float32)
    k = kept_entries(keep, size)
    assert set(top_k_positions(torch.from_numpy(vector), k).tolist()) == by_sorting(vector, k)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 120), st.sampled_from(sorted(SPARSIFIERS)))
def test_error_feedback_loses_nothing(data, size, sparsifier):
    vectors = [torch.from_numpy(data.draw(hnp.arrays(np.float32, size, elements=VALUES))) for _ in range(2)]
    before = [vector.clone() for vector in vectors]
    k = data.draw(st.integers(1, size))
    sent, memory = compress(*vectors, k, sparsifier, True, np.random.default_rng(1))
    assert torch.equal(sent + memory, vectors[0] + vectors[1])
    assert int((sent != 0).sum()) <= k
    assert not bool(((sent != 0) & (memory != 0)).any())
    assert all(torch.equal(vector, copy) for vector, copy in zip(vectors, before, strict=True))


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 150))
def test_top_k_is_a_contraction_always(data, size):
    vector = torch.from_numpy(data.draw(hnp.arrays(np.float32, size, elements=VALUES)))
    k = data.draw(st.integers(1, size))
    rest = float((top_k(vector, k) - vector).double().square().sum())
    # 1e-12: the two sides are sums of float64 squares of float32 numbers.
    assert rest <= (1 - k / size) * float(vector.double().square().sum()) * (1 + 1e-12)


def test_rand_k_is_a_contraction_on_average():
    rng = np.random.default_rng(2)
    vector = torch.from_numpy(rng.standard_normal(300).astype(np.float32) * np.linspace(0, 3, 300, dtype=np.float32))
    total = float(vector.square().sum())
    errors = np.array([float((rand_k(vector, 60, rng) - vector).square().sum()) / total for _ in range(4000)])
    # Equality on average, 1 - k/d = 0.8; within 4 standard errors.
    assert abs(errors.mean() - 0.8) < 4 * errors.std() / math.sqrt(errors.size)


def test_rand_k_keeps_values_unscaled_at_uniform_positions_shared_by_a_batch():
    batch = torch.arange(1.0, 41.0).repeat(3, 1)
    kept, rest = split_random_k(batch, 10, np.random.default_rng(3))
    assert torch.equal(kept + rest, batch)
    assert torch.equal(kept[0] != 0, kept[2] != 0) and int((kept[0] != 0).sum()) == 10
    counts = np.zeros(20)
    rng = np.random.default_rng(4)
    for _ in range(2000):
        counts[random_positions(20, 5, rng).numpy()] += 1
    # Binomial(2000, 1/4): 5 standard deviations are 97.
    assert np.abs(counts - 500).max() < 97


@pytest.mark.parametrize("sparsifier", sorted(SPARSIFIERS))
def test_a_batch_equals_one_by_one(sparsifier):
    torch.manual_seed(0)
    updates, memories = torch.randn(2, 3, 50), torch.randn(2, 3, 50)
    sent, memory = compress(updates, memories, 7, sparsifier, True, np.random.default_rng(1))
    for i in range(2):
        for j in range(3):
            one = compress(updates[i, j], memories[i, j], 7, sparsifier, True, np.random.default_rng(1))
            assert torch.equal(sent[i, j], one[0]) and torch.equal(memory[i, j], one[1])


def test_without_memory_the_memory_is_returned_untouched():
    update, memory = torch.tensor([3.0, -1.0, 2.0]), torch.tensor([9.0, 9.0, 9.0])
    sent, after = compress(update, memory, 1, remember=False)
    assert sent.tolist() == [3.0, 0.0, 0.0] and after is memory


def test_keeping_everything_empties_the_memory():
    update, memory = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 1.0])
    sent, after = compress(update, memory, 2)
    assert sent.tolist() == [4.0, 0.0] and after.tolist() == [0.0, 0.0]


def test_split_top_k_of_equal_magnitudes_prefers_low_positions():
    kept, rest = split_top_k(torch.tensor([1.0, -1.0, 1.0, -1.0]), 2)
    assert kept.tolist() == [1.0, -1.0, 0.0, 0.0] and rest.tolist() == [0.0, 0.0, 1.0, -1.0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: kept_entries(0.0, 5),
        lambda: kept_entries(1.5, 5),
        lambda: kept_entries(0.5, 0),
        lambda: top_k(torch.ones(3), 4),
        lambda: top_k(torch.ones(3), 0),
        lambda: top_k(torch.tensor([1.0, math.nan]), 1),
        lambda: top_k(torch.tensor([1.0, math.inf]), 1),
        lambda: compress(torch.ones(3), torch.ones(4), 1),
        lambda: compress(torch.ones(3), torch.ones(3), 1, "median-k"),
        lambda: compress(torch.ones(3), torch.ones(3), 1, "rand-k"),
        lambda: random_positions(3, 4, np.random.default_rng(0)),
        lambda: power_scale([], 4),
        lambda: power_scale([1.0, math.nan], 4),
        lambda: power_scale([-1.0], 4),
    ],
)
def test_mistakes_are_refused_with_numbers(call):
    with pytest.raises(ValueError, match=r"\d|unknown|rand-k"):
        call()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=10), st.integers(1, 10**6))
def test_power_rule_meets_the_limit_with_equality_for_the_worst_alone(energies, uses):
    scale = power_scale(energies, uses)
    powers = [scale**2 * value / uses for value in energies]
    assert max(powers) == pytest.approx(1.0, rel=1e-12)
    assert all((power >= 1 - 1e-12) == (value == max(energies)) or value > max(energies) * (1 - 1e-11)
               for power, value in zip(powers, energies, strict=True))  # fmt: skip


def test_power_rule_survives_silence():
    assert power_scale([0.0, 0.0], 8) == 1.0


def test_energy_is_summed_in_float64():
    symbols = torch.full((2, 1_000_000), 1e-3 + 1e-3j, dtype=torch.complex64)
    assert energy(symbols).tolist() == pytest.approx([2.0, 2.0], rel=1e-7)
