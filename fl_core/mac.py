"""The channel at symbol level, ``y = sum h x + z``: block fading with complex noise, and the perfect one.

Knows gains and noise; knows nothing of updates, schemes or samples. Reductions over clients run in the given (sorted)
order, so a sum does not depend on who computes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float
from scipy.special import exp1
from torch import Tensor

from fl_core.encode import energy

Fading = Literal["rayleigh", "unit", "none"]

RAYLEIGH_MEAN = math.sqrt(math.pi) / 2.0
"""mu_h = E|h| of Rayleigh fading with E|h|^2 = 1."""
RAYLEIGH_SPREAD = 4.0 / math.pi - 1.0
"""Var|h| / mu_h^2 of Rayleigh fading."""


@dataclass(frozen=True)
class Channel:
    """One simulated multiple-access channel.

    Attributes:
        fading: ``rayleigh`` draws h ~ CN(0, 1) per client and round; ``unit`` draws the same phases with |h| forced to
            the Rayleigh mean; ``none`` is h = 1.
        snr_db: P E|h|^2/sigma^2 of one client per complex use with P = 1 and E|h|^2 = 1 (so ``unit`` has the noise of
            ``rayleigh``); ``inf`` for no noise.
        coherence: neighbouring symbols that share a coefficient; None: all of a round (block fading).
    """

    fading: Fading = "rayleigh"
    snr_db: float = 20.0
    coherence: int | None = None

    @property
    def noise(self) -> float:
        """Variance sigma^2 of the noise per complex use."""
        return math.exp(-self.snr_db / 10.0 * math.log(10.0))

    @property
    def mean_power(self) -> float:
        """E|h|^2."""
        return RAYLEIGH_MEAN**2 if self.fading == "unit" else 1.0

    def draw(self, clients: int, uses: int, antennas: int, generator: torch.Generator) -> Complex[Tensor, ...]:
        """Draw a round's coefficients: (client,), (client, symbol) with a ``coherence``, or (client, antenna).

        Raises:
            ValueError: several antennas with a ``coherence``, which no scheme needs together.
        """
        if antennas > 1 and self.coherence is not None:
            raise ValueError(f"{antennas} antennas fade as blocks; leave coherence unset instead of {self.coherence}")
        if antennas > 1:
            return draw_gains(self.fading, clients * antennas, generator).reshape(clients, antennas)
        if self.coherence is None:
            return draw_gains(self.fading, clients, generator)
        blocks = -(-uses // self.coherence)
        drawn = draw_gains(self.fading, clients * blocks, generator).reshape(clients, blocks)
        return drawn.repeat_interleave(self.coherence, dim=1)[:, :uses]


def draw_gains(fading: str, clients: int, generator: torch.Generator) -> Complex[Tensor, " client"]:
    """Draw one coefficient per client, constant over the round's symbols (block fading).

    ``rayleigh`` and ``unit`` take the same numbers from the generator and share their phases.

    Raises:
        ValueError: unknown fading.
    """
    if fading == "none":
        return torch.ones(clients, dtype=torch.complex64)
    if fading not in ("rayleigh", "unit"):
        raise ValueError(f"fading '{fading}' is unknown; choose one of rayleigh, unit, none")
    parts = torch.randn((clients, 2), generator=generator) / math.sqrt(2.0)
    gains = torch.view_as_complex(parts)
    return gains if fading == "rayleigh" else RAYLEIGH_MEAN * gains / gains.abs()


def audible(gains: Complex[Tensor, "*shape"], threshold: float) -> Bool[Tensor, "*shape"]:
    """Tell where |h|^2 reaches the truncation threshold: where a client sends at all."""
    return gains.abs().square() >= threshold


def after_precoding(gains: Complex[Tensor, "*shape"], precoder: str, threshold: float = 0.0) -> Complex[Tensor, ...]:
    """Return the gains that symbols see: ``phase`` |h|, ``inversion`` 1 (0 below the threshold), ``none`` h.

    Raises:
        ValueError: unknown precoder.
    """
    if precoder == "phase":
        return gains.abs().to(gains.dtype)
    if precoder == "inversion":
        return audible(gains, threshold).to(gains.dtype)
    if precoder == "none":
        return gains
    raise ValueError(f"precoder '{precoder}' is unknown; choose one of phase, inversion, none")


def transmit_energy(
    symbols: Complex[Tensor, "client symbol"],
    gains: Complex[Tensor, ...],
    precoder: str,
    threshold: float = 0.0,
) -> Float[Tensor, " client"]:
    """Return the energy each client spends, float64: under ``inversion`` over |h|^2, and 0 below the threshold."""
    if precoder != "inversion":
        return energy(symbols)
    heard, power = audible(gains, threshold), gains.abs().double().square()
    if gains.ndim == 1:
        return energy(symbols) * heard / power
    return (symbols.abs().double().square() * heard / power).sum(1)


def least_error_amplitude(gains: Complex[Tensor, " client"], noise: float) -> float:
    """Return the arrival amplitude a that minimises ``sum_i (min(|h_i|, a)/a - 1)^2 + noise/a^2``.

    Clients with |h_i| < a send at full power, the others are aligned to a. Source: Cao, Zhu, Xu, Huang, *Optimized
    Power Control for Over-the-Air Computation in Fading Channels*, IEEE Trans. Wireless Commun. 2020: the smallest of
    the stationary points with the k weakest at full power.
    """
    sizes = torch.sort(gains.abs().double()).values
    return float(((noise + sizes.square().cumsum(0)) / sizes.cumsum(0)).min())


def participation(fading: str, threshold: float) -> float:
    """Return P(|h|^2 >= threshold): e^{-threshold} for ``rayleigh`` (Zhu, Wang, Huang, arXiv 1812.11494)."""
    if fading == "rayleigh":
        return math.exp(-threshold)
    return 1.0 if threshold <= (RAYLEIGH_MEAN**2 if fading == "unit" else 1.0) else 0.0


def inversion_power(fading: str, threshold: float) -> float:
    """Return E[1{|h|^2 >= threshold}/|h|^2], the mean power of inversion: E_1(threshold) for ``rayleigh``.

    Raises:
        ValueError: no threshold under ``rayleigh``, where inversion of every fade takes infinite power.
    """
    if fading != "rayleigh":
        return participation(fading, threshold) / (RAYLEIGH_MEAN**2 if fading == "unit" else 1.0)
    if threshold <= 0.0:
        raise ValueError(f"inverting Rayleigh fades down to {threshold:g} takes infinite power; set threshold above 0")
    return float(exp1(threshold))


def mean_gain(fading: str, precoder: str, threshold: float = 0.0) -> float:
    """Return E of the gain after precoding, as the server knows it (1 where the phase is left to chance)."""
    if precoder == "inversion":
        return participation(fading, threshold)
    return RAYLEIGH_MEAN if precoder == "phase" and fading != "none" else 1.0


def ideal_mac(symbols: Complex[Tensor, "client symbol"]) -> Complex[Tensor, " symbol"]:
    """Add without error: h = 1, no noise."""
    return symbols.sum(0)


def fading_mac(
    symbols: Complex[Tensor, "client symbol"],
    gains: Complex[Tensor, ...],
    noise: float,
    generator: torch.Generator,
) -> Complex[Tensor, " symbol"]:
    """Add with circular Gaussian noise: ``y = sum_i h_i x_i + z``.

    Args:
        symbols: transmitted, shape (client, symbol).
        gains: after precoding, shape (client,), or (client, symbol) where the channel changes within the round.
        noise: sigma^2, variance per complex symbol; 0 draws nothing.
        generator: source of the noise.

    Raises:
        ValueError: as many gains as clients are needed, and noise >= 0.
    """
    if gains.shape[0] != symbols.shape[0] or noise < 0.0:
        raise ValueError(
            f"{symbols.shape[0]} clients need as many gains and noise >= 0, got {gains.shape[0]} gains and {noise:g}"
        )
    received = ((gains[:, None] if gains.ndim == 1 else gains) * symbols).sum(0)
    return received + circular(received.shape, noise, generator) if noise > 0.0 else received


def antenna_mac(
    symbols: Complex[Tensor, "client symbol"],
    gains: Complex[Tensor, "client antenna"],
    noise: float,
    generator: torch.Generator,
) -> Complex[Tensor, "antenna symbol"]:
    """Add at several antennas, each with gains and noise of its own."""
    received = gains.T @ symbols
    return received + circular(received.shape, noise, generator) if noise > 0.0 else received


def circular(shape: Sequence[int], variance: float, generator: torch.Generator) -> Complex[Tensor, ...]:
    """Draw circular complex Gaussian noise of a variance per complex entry."""
    return torch.view_as_complex(torch.randn((*shape, 2), generator=generator) * math.sqrt(variance / 2.0))
