"""Turns an update and a memory into a sparse vector and a power scale; knows nothing of mappings, channels or clients.

An update is *old minus new* parameters. The memory keeps what the sparsifier left out (error feedback) and never
learns of fading or noise. All functions accept leading batch dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

SAMPLE_SIZE = 16384
"""Entries looked at to guess the threshold of :func:`top_k`; the answer does not depend on it."""


def kept_entries(keep: float, dimension: int) -> int:
    """Return how many entries a fraction stands for: ``max(1, round(keep * dimension))``.

    Args:
        keep: fraction of entries kept, 0 < keep <= 1.
        dimension: number of entries d.

    Raises:
        ValueError: the fraction is outside (0, 1] or the dimension is not positive.
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep is {keep:g}, outside (0, 1]; choose the fraction of entries to send, for example 0.04")
    if dimension < 1:
        raise ValueError(f"a vector of {dimension} entries cannot be sparsified; give at least 1")
    return max(1, round(keep * dimension))


def _largest(magnitude: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the k largest magnitudes; of equal ones the lower position wins.

    A regular sample bounds the threshold from below, one pass collects the few candidates above it, and only those
    are partitioned: several times cheaper than a selection over the whole vector. The sample steers time alone.
    """
    size = magnitude.size
    if k >= size:
        return np.arange(size)
    stride = max(1, size // SAMPLE_SIZE)
    sample = magnitude[::stride]
    expected = k / stride
    rank = math.ceil(expected + 4.0 * math.sqrt(expected) + 8.0)
    candidates = None
    if rank < sample.size // 2:
        threshold = np.partition(sample, sample.size - rank)[sample.size - rank]
        candidates = np.flatnonzero(magnitude >= threshold)
    if candidates is None or candidates.size < k:
        values = magnitude
        candidates = None
    else:
        values = magnitude[candidates]
    smallest = np.partition(values, values.size - k)[values.size - k]
    above = np.flatnonzero(values > smallest)
    ties = np.flatnonzero(values == smallest)[: k - above.size]
    chosen = np.concatenate((above, ties))
    return chosen if candidates is None else candidates[chosen]


def require_finite(vector: Tensor) -> None:
    """Refuse values that are not finite with a ValueError."""
    if not math.isfinite(float(vector.sum())):
        raise ValueError(
            f"a vector of {vector.shape[-1]} entries holds values that are not finite; lower the rates alpha and eta"
        )


def top_k_positions(vector: Float[Tensor, " d"], k: int) -> Int64[Tensor, " k"]:
    """Return the positions (unordered) of the k entries of largest magnitude; ties go to the lower position.

    Args:
        vector: finite values, shape (d,).
        k: number of positions, 1 <= k <= d.

    Raises:
        ValueError: k is outside 1..d, or the vector holds a value that is not finite.
    """
    size = vector.shape[-1]
    if not 1 <= k <= size:
        raise ValueError(f"{k} of {size} entries cannot be kept; choose k between 1 and {size}")
    require_finite(vector)
    if vector.device.type == "cpu":
        return torch.from_numpy(_largest(vector.detach().abs().numpy(), k))
    magnitude = vector.abs()
    smallest = torch.topk(magnitude, k, sorted=True).values[-1]
    above = torch.nonzero(magnitude > smallest)[:, 0]
    ties = torch.nonzero(magnitude == smallest)[: k - above.numel(), 0]
    return torch.cat((above, ties))


def random_positions(dimension: int, k: int, generator: np.random.Generator) -> Int64[Tensor, " k"]:
    """Return k of ``dimension`` positions, uniform without replacement, in ascending order."""
    if not 1 <= k <= dimension:
        raise ValueError(f"{k} of {dimension} entries cannot be kept; choose k between 1 and {dimension}")
    return torch.from_numpy(np.sort(generator.choice(dimension, k, replace=False, shuffle=False)))


def split_at(
    vector: Float[Tensor, "*batch d"], positions: Int64[Tensor, " k"]
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
    """Split into the part at ``positions`` and the rest; the two add up to the vector exactly.

    Both are copies: entry by entry one of them holds the value and the other holds 0.
    """
    kept = torch.zeros_like(vector).index_copy_(-1, positions, vector.index_select(-1, positions))
    return kept, vector.clone().index_fill_(-1, positions, 0.0)


def split_top_k(
    vector: Float[Tensor, "*batch d"], k: int
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
    """Split each vector into its k entries of largest magnitude and the rest.

    Top-k is a contraction with lambda >= k/d (Stich, Cordonnier, Jaggi, arXiv 1809.07599, Lemma A.1):
    ``|rest|^2 <= (1 - k/d) |vector|^2``.

    Raises:
        ValueError: as :func:`top_k_positions`.
    """
    if vector.ndim == 1:
        return split_at(vector, top_k_positions(vector, k))
    rows = [split_at(row, top_k_positions(row, k)) for row in vector.reshape(-1, vector.shape[-1])]
    kept = torch.stack([row[0] for row in rows]).reshape(vector.shape)
    return kept, torch.stack([row[1] for row in rows]).reshape(vector.shape)


def split_random_k(
    vector: Float[Tensor, "*batch d"], k: int, generator: np.random.Generator
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
    """Split each vector at the same k random positions; the kept part is NOT multiplied by d/k.

    Without rescaling it is a contraction with lambda = k/d on average over the positions. All vectors of a batch, and
    all clients that hold the same generator seed, share the positions: the union of their supports stays k.
    """
    require_finite(vector)
    return split_at(vector, random_positions(vector.shape[-1], k, generator))


def top_k(vector: Float[Tensor, "*batch d"], k: int) -> Float[Tensor, "*batch d"]:
    """Return the vector with all but its k largest magnitudes set to 0; see :func:`split_top_k`."""
    return split_top_k(vector, k)[0]


def rand_k(vector: Float[Tensor, "*batch d"], k: int, generator: np.random.Generator) -> Float[Tensor, "*batch d"]:
    """Return the vector with all but k random positions set to 0; see :func:`split_random_k`."""
    return split_random_k(vector, k, generator)[0]


def _split_random_k(vector: Tensor, k: int, generator: np.random.Generator | None) -> tuple[Tensor, Tensor]:
    if generator is None:
        raise ValueError(f"rand-k of {k} entries needs the generator of the round; pass one that all clients share")
    return split_random_k(vector, k, generator)


Sparsifier = Callable[[Tensor, int, np.random.Generator | None], tuple[Tensor, Tensor]]

SPARSIFIERS: dict[str, Sparsifier] = {
    "top-k": lambda vector, k, generator: split_top_k(vector, k),
    "rand-k": _split_random_k,
}
"""Name -> function (vector, k, generator of the round) -> (kept, rest)."""


def compress(
    update: Float[Tensor, "*batch d"],
    memory: Float[Tensor, ...],
    k: int,
    sparsifier: str = "top-k",
    remember: bool = True,
    generator: np.random.Generator | None = None,
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
    """Sparsify with error feedback: ``u = memory + update; g = C(u); new memory = u - g``.

    Source: Stich, Cordonnier, Jaggi, arXiv 1809.07599, Algorithm 1. C acts on the whole vector, not per layer.

    Args:
        update: old minus new parameters, shape (..., d).
        memory: what earlier rounds left out, same shape; not modified.
        k: entries kept.
        sparsifier: a name in :data:`SPARSIFIERS`.
        remember: without it the update alone is sparsified and the memory is returned as it came.
        generator: source of the random positions of ``rand-k``, shared by all clients of a round.

    Returns:
        The sparse vector g and the new memory, both shape (..., d); with ``remember`` they add up to u exactly.

    Raises:
        ValueError: an unknown sparsifier, unequal shapes, k outside 1..d, values that are not finite.
    """
    if sparsifier not in SPARSIFIERS:
        raise ValueError(f"sparsifier '{sparsifier}' is unknown; choose one of {', '.join(SPARSIFIERS)}")
    if update.shape != memory.shape:
        raise ValueError(f"update {tuple(update.shape)} and memory {tuple(memory.shape)} differ; give equal shapes")
    if k == update.shape[-1]:
        whole = memory + update if remember else update.clone()
        require_finite(whole)
        return whole, torch.zeros_like(memory) if remember else memory
    if not remember:
        return SPARSIFIERS[sparsifier](update, k, generator)[0], memory
    return SPARSIFIERS[sparsifier](memory + update, k, generator)


def energy(symbols: Complex[Tensor, "*batch uses"]) -> Float[Tensor, "*batch"]:
    """Return ``||x||^2`` over the last axis, float64: the one scalar that a client reports for the power rule."""
    parts = torch.view_as_real(symbols.contiguous()).flatten(-2)
    return parts.to(torch.float64).square().sum(-1)


def power_scale(norms_squared: Iterable[float], uses: int, power: float = 1.0) -> float:
    """Return the largest common amplitude that keeps every client within the power limit.

    ``scale = sqrt(power * uses / max_i ||A g_i||^2)``, so that ``(1/uses) ||scale * A g_i||^2 <= power`` with equality
    for the worst client alone (Wen, Xing, Simeone, arXiv 2406.11569, power constraint). This is sqrt(rho)/eta of
    that paper; eta cancels because updates already carry it.

    Args:
        norms_squared: energies of the unscaled symbols of the active clients.
        uses: channel uses M.
        power: P, average power per channel use.

    Returns:
        The amplitude; 1.0 when every energy is 0 (nothing is sent, any amplitude serves).

    Raises:
        ValueError: no client, an energy that is negative or not finite.
    """
    energies = [float(value) for value in norms_squared]
    if not energies:
        raise ValueError("the power rule needs the energy of at least 1 client and got 0; admit a client first")
    if not all(math.isfinite(value) and value >= 0.0 for value in energies):
        raise ValueError(f"symbol energies {energies} must be finite and >= 0; lower the rates alpha and eta")
    worst = max(energies)
    # An energy below the smallest normal float32 is numerically nothing, and its inverse would overflow.
    return math.sqrt(power * uses / worst) if worst > 1e-30 else 1.0
