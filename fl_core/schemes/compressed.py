"""A-DSGD: every client at full power, the sum of their scales on a symbol of its own, AMP at the server."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fl_core.decode import recoverable
from fl_core.encode import kept_entries
from fl_core.oamp import Prior, denoise
from fl_core.options import SchemeOptions
from fl_core.schemes.base import Base, Csi, Inverting, Plan, mean
from fl_core.seeds import numpy_generator

LARGEST = 10**8
"""Entries of the shared matrix, 400 MB."""


@lru_cache(maxsize=1)
def gaussian(rows: int, columns: int, seed: int) -> Float[Tensor, "rows columns"]:
    """Draw the matrix that all share, entries N(0, 1/rows)."""
    drawn = numpy_generator(seed, "gaussian").standard_normal((rows, columns), dtype="float32")
    return torch.from_numpy(drawn) / math.sqrt(rows)


def amp(
    matrix: Float[Tensor, "m n"], values: Float[Tensor, " m"], sparsity: float, iterations: int
) -> Float[Tensor, " n"]:
    """Estimate a sparse vector from ``values = matrix x + noise`` by approximate message passing.

    Source: Donoho, Maleki, Montanari, arXiv 0907.3574, with the posterior mean of a Bernoulli-Gaussian prior, fitted by
    expectation maximisation, in place of the soft threshold (Vila, Schniter, arXiv 1207.3107).

    Args:
        matrix: independent entries of variance 1/m.
        values: measurements.
        sparsity: first guess of the share of non-zero entries.
        iterations: most iterations; it stops once the estimate of the error changes by less than 1e-4.
    """
    rows, columns = matrix.shape
    power = float(values.square().mean())
    estimate = torch.zeros(columns)
    if power == 0.0:
        return estimate
    prior = Prior(sparsity, power * rows / columns / sparsity)
    residual, tau2 = values, power
    for _ in range(iterations):
        posterior = denoise(estimate + residual @ matrix, tau2, prior)
        estimate, prior = posterior.mean, posterior.prior
        onsager = posterior.variance / tau2 * columns / rows
        residual = values - matrix @ estimate + onsager * residual
        before, tau2 = tau2, max(float(residual.square().mean()), 1e-12 * power)
        if abs(tau2 - before) < 1e-4 * before:
            break
    return estimate


@dataclass(frozen=True)
class ADsgd(Inverting):
    """A-DSGD (Amiri, Gündüz, arXiv 1901.00844, 1907.09769): ``x = sqrt(a) [A g/eta; 1]``, a = P M/||.||^2.

    g is the top-k of the update with memory and A a Gaussian matrix of M - 1 complex rows that all share. The last
    symbol adds up the sqrt(a), so the server can take ``AMP(y / y_last)``: a mean in which a client with a small update
    weighs more. M = ``measure`` d. It knows no gains: those of a phase-only precoder would weigh alike.
    """

    name: ClassVar[str] = "a-dsgd"

    @classmethod
    def fit(cls, options: SchemeOptions) -> SchemeOptions:
        """Leave sparsifier, memory and ``measure`` open."""
        return options.model_copy(update={"mapping": "pair"})

    @classmethod
    def make(cls, options: SchemeOptions, dimension: int) -> Base:
        """Build for updates of ``dimension`` entries.

        Raises:
            ValueError: the shared matrix would not fit memory.
        """
        made = super().make(options, dimension)
        size = 2 * (made.symbols - 1) * dimension
        if size > LARGEST:
            raise ValueError(
                f"the Gaussian matrix of a-dsgd has {size:.1e} entries for {dimension} parameters, the limit is "
                f"{LARGEST:.0e}; lower measure to {options.measure * LARGEST / size:.2g}, or use air-meta-pfl"
            )
        return made

    @property
    def symbols(self) -> int:
        """Complex channel uses M, at least 2."""
        return max(2, round(self.options.measure * self.dimension))

    def matrix(self, plan: Plan) -> Float[Tensor, "rows d"]:
        """Give the matrix of the run."""
        return gaussian(2 * (self.symbols - 1), self.dimension, plan.seed)

    def modulate(self, sparse: Tensor, plan: Plan) -> Tensor:
        """Project, append 1, and normalise to energy M."""
        rows = sparse.reshape(-1, self.dimension) / plan.eta
        matrix = self.matrix(plan)
        projected = torch.stack([matrix @ row for row in rows]).reshape(*sparse.shape[:-1], -1)
        half = self.symbols - 1
        symbols = torch.complex(projected[..., :half].contiguous(), projected[..., half:].contiguous())
        whole = torch.cat((symbols, torch.ones_like(symbols[..., :1])), -1)
        norm = whole.abs().double().square().sum(-1, keepdim=True).sqrt()
        return (whole * (math.sqrt(self.symbols) / norm)).to(torch.complex64)

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Divide by the sum of scales, and recover; nothing where noise drowns that sum."""
        weight = float(received[-1].real)
        if weight <= math.sqrt(csi.noise or 0.0):
            return mean(torch.zeros(self.dimension), plan)
        values = torch.cat((received[:-1].real, received[:-1].imag)) / weight
        kept = kept_entries(self.options.keep, self.dimension)
        guess = min(max(kept * max(plan.clients, 1) / self.dimension, 1e-3), 0.5)
        found = amp(self.matrix(plan), values, guess, self.options.iterations)
        return mean(found * plan.eta * plan.clients, plan)

    def recoverable(self, clients: int) -> str:
        """Apply the rule of thumb of :func:`fl_core.decode.recoverable`."""
        shared = self.options.sparsifier == "rand-k"
        return recoverable(2 * (self.symbols - 1), self.dimension, self.options.keep, clients, shared)
