"""Estimates a sparse real vector from noisy linear measurements, and scores estimates; knows nothing of clients.

Every estimator takes a :class:`fl_core.mappings.View`, costs a few FFTs per iteration, and returns d real entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fl_core.encode import top_k
from fl_core.mappings import View
from fl_core.oamp import oamp


def linear(view: View) -> Float[Tensor, " d"]:
    """Project back, ``B^T y``: the minimum-norm solution, since the rows of B are orthonormal.

    Of a vector spread evenly over the spectrum it loses the share 1 - real_rows/length of the energy.
    """
    return view.adjoint(view.values)[: view.dimension]


def iht(view: View, support: int, iterations: int = 30) -> Float[Tensor, " d"]:
    """Iterative hard thresholding: ``x <- H_k(x + B^T(y - B x))``.

    Source: Blumensath, Davies, arXiv 0805.0510, equation 10; the unit step is stable because the norm of B is 1.

    Args:
        view: measurements.
        support: entries kept, of all clients together; more than d keeps all.
        iterations: most iterations; it stops early once a step changes less than 1e-6 of the norm.
    """
    kept = min(support, view.dimension)
    estimate = torch.zeros(view.length, device=view.values.device)
    for _ in range(iterations):
        moved = estimate + view.adjoint(view.values - view.forward(estimate))
        moved[view.dimension :] = 0.0  # these entries are padding and known
        following = top_k(moved, kept)
        change = float((following - estimate).norm())
        estimate = following
        if change <= 1e-6 * float(estimate.norm()):
            break
    return estimate[: view.dimension]


Estimator = Callable[[View, int, int], Tensor]

ESTIMATORS: dict[str, Estimator] = {
    "linear": lambda view, support, iterations: linear(view),
    "iht": iht,
    "oamp": lambda view, support, iterations: oamp(view, iterations, _first_guess(view, support)).value,
}
"""Name -> function (view, entries in the union of supports at most, most iterations) -> estimate (d,)."""


def _first_guess(view: View, support: int) -> float:
    # Only where EM starts: what k and the number of clients say, kept off the ends where EM has no gradient.
    return min(max(support / view.length, 1e-3), 0.5)


def nmse_db(estimate: Tensor, truth: Tensor) -> float:
    """Return ``10 log10(|estimate - truth|^2 / |truth|^2)`` in dB, summed in float64.

    ``-inf`` when they are equal, ``nan`` when the truth is all zero and the estimate is not.
    """
    wide = torch.complex128 if truth.is_complex() or estimate.is_complex() else torch.float64
    error = float((estimate.to(wide) - truth.to(wide)).abs().square().sum())
    power = float(truth.to(wide).abs().square().sum())
    if error == 0.0:
        return -math.inf
    return 10.0 * math.log10(error / power) if power > 0.0 else math.nan


def union_fraction(keep: float, clients: int, shared: bool = False) -> float:
    """Return the expected share of entries that at least one client sends.

    Args:
        keep: share k/d sent by each.
        clients: active clients s.
        shared: whether all send the same entries (rand-k); else supports are taken as independent: 1 - (1 - k/d)^s.
    """
    return keep if shared else 1.0 - (1.0 - keep) ** clients


def recoverable(real_rows: int, dimension: int, keep: float, clients: int, shared: bool = False) -> str:
    """Explain why a sparse estimator may fail to recover a sum, if so.

    Rule of thumb: at least two real measurements for each entry of the union of supports, 2M/d >= 2 union. Below it
    every estimator returns little more than the linear one. A dense vector needs real_rows >= dimension.

    Args:
        real_rows: distinct real measurements (2M for ``rdft``).
        dimension: entries d.
        keep: share k/d sent by each client.
        clients: active clients s.
        shared: whether all clients send the same entries.

    Returns:
        An empty string when there is no doubt, else the reason with numbers and a remedy.
    """
    union = union_fraction(keep, clients, shared)
    share = real_rows / dimension
    if share >= min(2.0 * union, 1.0 - 1e-9):
        return ""
    most = share / 2.0 if shared else 1.0 - (1.0 - share / 2.0) ** (1.0 / clients)
    return (
        f"{real_rows} real measurements of {dimension} entries ({share:.2f} each) may not resolve the {union:.2f} of "
        f"all entries that {clients} clients send (2 measurements per sent entry are wanted: {2 * union:.2f}); "
        f"raise measure, or lower keep to {most:.3f}"
    )
