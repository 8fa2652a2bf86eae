"""Orthogonal approximate message passing with a prior learned from the data; knows a view, nothing of its mapping.

Source: Ma, Ping, *Orthogonal AMP*, IEEE Access 2017 (arXiv 1602.06509), for measurement matrices with orthonormal
rows; the prior is fitted by expectation maximisation (Vila, Schniter, arXiv 1207.3107).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fl_core.mappings import View

FLOOR = 1e-12
"""Smallest variance, as a share of the signal's power: float32 carries nothing finer."""


@dataclass(frozen=True)
class Prior:
    """Bernoulli-Gaussian: 0 with probability 1 - sparsity, else normal with zero mean and this variance."""

    sparsity: float
    variance: float


@dataclass(frozen=True)
class Recovery:
    """What OAMP found.

    Attributes:
        value: estimate, shape (d,).
        iterations: how many it took.
        variance: its own forecast of the error per entry.
        noise: variance per real measurement that it used in the end.
        prior: the learned prior; None when nothing was received.
    """

    value: Float[Tensor, " d"]
    iterations: int
    variance: float
    noise: float
    prior: Prior | None


@dataclass(frozen=True)
class Posterior:
    """Posterior mean per entry, its mean variance, and the prior refitted to it."""

    mean: Float[Tensor, " n"]
    variance: float
    prior: Prior


def denoise(noisy: Float[Tensor, " n"], tau2: float, prior: Prior) -> Posterior:
    """Estimate X from ``noisy = X + normal noise of variance tau2`` under a Bernoulli-Gaussian prior.

    Closed form of E[X | r] and Var[X | r], and one EM step of sparsity and variance (Vila, Schniter, arXiv
    1207.3107, equations 19-32 with zero mean).

    Args:
        noisy: r, shape (n,).
        tau2: noise variance, > 0.
        prior: current prior.
    """
    total = prior.variance + tau2
    gain = prior.variance / total
    odds = math.log(prior.sparsity / (1.0 - prior.sparsity)) + 0.5 * math.log(tau2 / total)
    squares = noisy.square()
    active = torch.sigmoid(squares * (0.5 * (1.0 / tau2 - 1.0 / total)) + odds)
    weighted = active * squares
    # Var = active * spread + active (1 - active) (gain r)^2, summed without storing it.
    active_sum = float(active.sum())
    second = gain * gain * float(weighted.sum())
    spread = gain * tau2 * active_sum
    variance = (spread + second - gain * gain * float((weighted * active).sum())) / noisy.numel()
    floor = 0.5 / noisy.numel()
    sparsity = min(max(active_sum / noisy.numel(), floor), 1.0 - floor)
    fitted = Prior(sparsity, max((spread + second) / max(active_sum, 1e-30), FLOOR))
    return Posterior(active.mul_(noisy).mul_(gain), max(variance, 0.0), fitted)


def oamp(view: View, iterations: int = 30, sparsity: float = 0.1) -> Recovery:
    """Estimate the sparse vector behind a view.

    Repeats, with m = real_rows/length and B the view's matrix: ``r = x + B^T(y - B x)/m``, error variance of r
    ``tau2 = (1-m)/m v2 + noise/m``, posterior mean e and variance p of the denoiser, and the divergence-free
    ``x = (e - c r)/(1 - c)`` with c = p/tau2 and ``v2 = p tau2/(tau2 - p)``. The error variance v2 is measured from
    the residual as well, ``|y - B x|^2/real_rows - noise``, and the larger is believed: the recursion forgets that
    the prior is only a model. Nothing of the truth is told: sparsity, variance and, when unknown, noise are learned.

    Args:
        view: measurements with orthonormal rows; a ``noise`` of None in it is learned as well.
        iterations: most iterations.
        sparsity: first guess of the fraction of non-zero entries.

    Returns:
        The posterior mean e of the iteration with the smallest forecast error, not the divergence-free x.
    """
    power = float(view.values.abs().square().sum()) / view.real_rows
    if power <= 0.0 or not math.isfinite(power):
        return Recovery(torch.zeros(view.dimension, device=view.values.device), 0, 0.0, 0.0, None)
    unit = math.sqrt(power)
    measured = view.values / unit  # float32 stays far from its limits whatever the size of an update
    share = min(view.real_rows / view.length, 1.0)
    level = 0.01 if view.noise is None else min(view.noise / power, 1.0)
    prior = Prior(sparsity, max(1.0 - level, 0.01) / sparsity)
    estimate = torch.zeros(view.length, device=view.values.device)
    best: tuple[float, Tensor, Prior] | None = None
    residual, v2 = measured, max(1.0 - level, FLOOR)
    used = 0
    while used < iterations:
        used += 1
        tau2 = max(((1.0 - share) * v2 + level) / share, FLOOR)
        noisy = estimate.add_(view.adjoint(residual), alpha=1.0 / share)
        posterior = denoise(noisy, tau2, prior)
        previous = prior
        prior = posterior.prior
        if best is None or posterior.variance < best[0]:
            best = (posterior.variance, posterior.mean.clone(), prior)
        ratio = posterior.variance / tau2
        if ratio >= 1.0:
            break
        estimate = (posterior.mean - ratio * noisy).div_(1.0 - ratio)
        residual = measured - view.forward(estimate)
        misfit = float(residual.abs().square().sum()) / view.real_rows
        if view.noise is None:
            fit = measured - view.forward(posterior.mean)
            level = max(float(fit.abs().square().sum()) / view.real_rows, FLOOR)
        forecast = posterior.variance / (1.0 - ratio)
        new = max(misfit - level, forecast, FLOOR)
        settled = abs(new - v2) < 1e-3 * v2 and abs(prior.sparsity - previous.sparsity) < 1e-3 * prior.sparsity
        v2 = new
        if settled:
            break
    assert best is not None
    variance, value, prior = best
    learned = Prior(prior.sparsity, prior.variance * power)
    return Recovery(value[: view.dimension].mul_(unit), used, variance * power, level * power, learned)
