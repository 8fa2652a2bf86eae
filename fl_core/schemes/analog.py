"""Analog sums of whole updates: phase-only, truncated inversion, and a precoder agreed in advance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.encode import energy, power_scale
from fl_core.mac import Channel, fading_mac, least_error_amplitude
from fl_core.schemes.base import Csi, Dense, Inverting, Plan


@dataclass(frozen=True)
class Gbma(Dense):
    """Gradient-based multiple access (Sery, Cohen, arXiv 1908.07463): x = sqrt(E) e^{-j arg h} u.

    The server takes y/(s mu_h). The spread of |h| and the noise both remain, the noise as 1/(s^2 mu_h^2 SNR).
    """

    name: ClassVar[str] = "gbma"


@dataclass(frozen=True)
class TruncatedInversion(Inverting):
    """Broadband analog aggregation (Zhu, Wang, Huang, arXiv 1812.11494): aligned amplitudes, silence in deep fades.

    A client takes part with probability e^{-threshold} under Rayleigh fading; the server divides by the expected
    number of those who do, which keeps the mean unbiased. What a silent client had to say is lost.

    With ``inversion = mse`` nobody is silent: clients below an amplitude a send at full power, the others are aligned
    to a, and a minimises the mean squared error (:func:`fl_core.mac.least_error_amplitude`).
    """

    name: ClassVar[str] = "truncated-inversion"

    def check_waveform(self) -> None:
        """Refuse the power control that takes every client's gain at once."""
        super().check_waveform()
        if self.options.inversion == "mse":
            raise ValueError(
                "scheme.inversion = 'mse' exists in simulation alone: no node knows the gains of the others; leave "
                "scheme.inversion unset"
            )

    def arriving(self, gains: Tensor, channel: Channel) -> tuple[Tensor, float]:
        """Return the gains after precoding under ``mse``, and the amplitude of those that are aligned."""
        if gains.ndim > 1:
            raise ValueError(
                f"inversion 'mse' takes block fading; leave coherence unset instead of {channel.coherence}"
            )
        amplitude = least_error_amplitude(gains, channel.noise)
        return gains.abs().clamp_max(amplitude).to(gains.dtype), amplitude

    def spent(self, symbols: Tensor, gains: Tensor, channel: Channel) -> Tensor:
        """Count the share of full power that each client uses."""
        if self.options.inversion == "truncated":
            return super().spent(symbols, gains, channel)
        share = self.arriving(gains, channel)[0].abs() / gains.abs()
        return energy(symbols) * share.double().square()

    def superpose(
        self, symbols: Tensor, gains: Tensor, heard: list[int], channel: Channel, generator: torch.Generator
    ) -> tuple[Tensor, Csi]:
        """Add after precoding."""
        if self.options.inversion == "truncated":
            return super().superpose(symbols, gains, heard, channel, generator)
        effective, amplitude = self.arriving(gains, channel)
        received = fading_mac(symbols[heard], effective[heard], channel.noise, generator)
        return received, Csi(amplitude, channel.noise)


@dataclass(frozen=True)
class Cotaf(Inverting):
    """COTAF (Sery, Shlezinger, Cohen, Eldar, arXiv 2009.12787): x = sqrt(p_t) u, aligned channels.

    ``p_t = P M / max_i E||u_i||^2`` is agreed in advance. Updates shrink with the outer rate, so with ``update_norm`` U
    the amplitude is sqrt(M)/(U eta_t) and the noise on the mean falls as eta_t^2. It is never more than the energies of
    the round allow, so a radio is safe from an optimistic U.
    """

    name: ClassVar[str] = "cotaf"

    def scale(self, norms_squared: Iterable[float], plan: Plan) -> float:
        """Return the amplitude agreed for this round, at most what its energies allow."""
        allowed = power_scale(norms_squared, self.symbols, self.limit())
        if self.options.update_norm is None:
            return allowed
        return min(allowed, math.sqrt(self.limit() * self.symbols) / (self.options.update_norm * plan.eta))
