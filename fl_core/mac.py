"""The channel at symbol level, ``y = sum h x + z``: block fading with complex noise, and the perfect one.

Knows gains and noise; knows nothing of updates, schemes or samples. Reductions over clients run in the given (sorted)
order, so a sum does not depend on who computes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

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
    """

    fading: Fading = "rayleigh"
    snr_db: float = 20.0

    @property
    def noise(self) -> float:
        """Variance sigma^2 of the noise per complex use."""
        return math.exp(-self.snr_db / 10.0 * math.log(10.0))


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


def after_precoding(gains: Complex[Tensor, " client"], precoder: str) -> Complex[Tensor, " client"]:
    """Return the gains that symbols see: ``phase`` |h|, ``inversion`` 1, ``none`` h.

    Raises:
        ValueError: unknown precoder.
    """
    if precoder == "phase":
        return gains.abs().to(gains.dtype)
    if precoder == "inversion":
        return torch.ones_like(gains)
    if precoder == "none":
        return gains
    raise ValueError(f"precoder '{precoder}' is unknown; choose one of phase, inversion, none")


def transmit_energy(
    norms_squared: Float[Tensor, " client"], gains: Complex[Tensor, " client"], precoder: str
) -> Float[Tensor, " client"]:
    """Return the energy a client spends to send symbols of this energy: divided by |h|^2 under ``inversion``."""
    return norms_squared / gains.abs().double().square() if precoder == "inversion" else norms_squared


def mean_gain(fading: str, precoder: str) -> float:
    """Return mu_h = E of the gain after precoding, as the server knows it (1 where the phase is left to chance)."""
    return RAYLEIGH_MEAN if precoder == "phase" and fading != "none" else 1.0


def ideal_mac(symbols: Complex[Tensor, "client symbol"]) -> Complex[Tensor, " symbol"]:
    """Add without error: h = 1, no noise."""
    return symbols.sum(0)


def fading_mac(
    symbols: Complex[Tensor, "client symbol"],
    gains: Complex[Tensor, " gain"],
    noise: float,
    generator: torch.Generator,
) -> Complex[Tensor, " symbol"]:
    """Add through one coefficient per client, with circular Gaussian noise: ``y = sum_i h_i x_i + z``.

    Args:
        symbols: transmitted, shape (client, symbol).
        gains: after precoding, shape (client,).
        noise: sigma^2, variance per complex symbol; 0 draws nothing.
        generator: source of the noise.

    Raises:
        ValueError: as many gains as clients are needed, and noise >= 0.
    """
    if gains.shape[0] != symbols.shape[0] or noise < 0.0:
        raise ValueError(
            f"{symbols.shape[0]} clients need as many gains and noise >= 0, got {gains.shape[0]} gains and {noise:g}"
        )
    received = (gains[:, None] * symbols).sum(0)
    if noise > 0.0:
        parts = torch.randn((symbols.shape[1], 2), generator=generator) * math.sqrt(noise / 2.0)
        received = received + torch.view_as_complex(parts)
    return received
