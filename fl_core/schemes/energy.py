"""Energies instead of waveforms: no phase is known, the server squares what it receives; knows no precoding."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from fl_core.options import SchemeOptions
from fl_core.schemes.base import UNKNOWN, Carrier, Csi, Dense, Plan, Precoder, mean
from fl_core.schemes.signs import majority
from fl_core.seeds import numpy_generator


def own_phases(update: Float[Tensor, "*batch d"], count: int, plan: Plan) -> Complex[Tensor, "*batch count"]:
    """Draw each client's random QPSK phases; nobody else has to know them, so what it sends is the key."""
    rows = update.reshape(-1, update.shape[-1]).numpy()
    drawn = [
        numpy_generator(plan.seed, "phases", plan.round, zlib.crc32(np.ascontiguousarray(row).tobytes())).integers(
            4, size=count
        )
        for row in rows
    ]
    quarters = torch.from_numpy(np.array(drawn)).reshape(*update.shape[:-1], count)
    return torch.tensor([1 + 1j, -1 + 1j, -1 - 1j, 1 - 1j], dtype=torch.complex64)[quarters] / 2**0.5


def pairs(vector: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch elements"]:
    """Lay positive and negative parts on neighbouring elements, where a channel is most alike: (..., 2 d), >= 0."""
    return torch.stack((vector.clamp_min(0.0), (-vector).clamp_min(0.0)), -1).flatten(-2)


@dataclass(frozen=True)
class Energetic(Dense):
    """A base for schemes whose symbols are amplitudes with random phases.

    Sums of energies hold only on average: the cross terms of clients with independent phases have mean 0, and a
    single round shows them as noise as large as the energy itself.
    """

    carrier: ClassVar[Carrier] = "energy"
    elements: ClassVar[int] = 2

    @property
    def symbols(self) -> int:
        """Elements of a round."""
        return self.elements * self.dimension

    @property
    def precoder(self) -> Precoder:
        """Nothing is known, nothing is undone."""
        return "none"

    def amplitudes(self, sparse: Tensor, plan: Plan) -> Tensor:
        """Return what each element carries: roots of positive and negative parts."""
        return pairs(sparse).sqrt()

    def encode(self, update: Tensor, memory: Tensor, csi: Csi, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return amplitudes with random phases, and the new memory."""
        sparse, remaining = self.sparsify(update, memory, plan, csi)
        return self.amplitudes(sparse, plan) * own_phases(update, self.symbols, plan), remaining

    def energies(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Return sums of squared amplitudes in the unit of ``amplitudes``, shape (d, elements), noise included."""
        return received.abs().square().reshape(-1, self.elements) / self._unit(csi, plan)

    def _unit(self, csi: Csi, plan: Plan) -> float:
        return plan.scale**2 * (csi.gain_mean**2 if csi.gain_power is None else csi.gain_power)


@dataclass(frozen=True)
class FskMv(Energetic):
    """FSK majority vote (Sahin, arXiv 2111.01850, 2209.09954): energy on one of two elements, by the sign of an entry.

    The server compares the two: no channel knowledge anywhere, no phase, no power control. Entries below ``silence``
    times the client's root mean square are not voted on. ``step`` eta is the length of a vote.
    """

    name: ClassVar[str] = "fsk-mv"

    def sparsify(self, update: Tensor, memory: Tensor, plan: Plan, csi: Csi = UNKNOWN) -> tuple[Tensor, Tensor]:
        """Return step eta sign(update) where it is large enough; the memory stays."""
        whole = self.whole(update, memory)
        quiet = self.options.silence * whole.square().mean(-1, keepdim=True).sqrt()
        return self.options.step * plan.eta * torch.sign(whole) * (whole.abs() >= quiet), memory

    def amplitudes(self, sparse: Tensor, plan: Plan) -> Tensor:
        """Return one or nothing."""
        return pairs(torch.sign(sparse))

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Compare energies."""
        power = self.energies(received, csi, plan)
        return majority(power[:, 0] - power[:, 1], self.options.step * plan.eta, plan)


@dataclass(frozen=True)
class Reed(Energetic):
    """Paired energies of positive and negative parts (REED; Chen, Bozorgasl, arXiv 2605.07263).

    ``E|y+|^2 - E|y-|^2 = scale^2 E|h|^2 sum u_i``: an unbiased mean, from which the noise power drops out by itself.
    """

    name: ClassVar[str] = "reed"

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Subtract energies."""
        power = self.energies(received, csi, plan)
        return mean(power[:, 0] - power[:, 1], plan)


@dataclass(frozen=True)
class NcAirFl(Energetic):
    """NCAirFL (Wen, Michelusi, Simeone, Xing, arXiv 2411.13000): energies of entries that agree with a shared sign.

    With v in {-1, +1}^d drawn anew each round: g = max((m + Delta) v, 0) entry by entry, x = scale sqrt(g), the server
    takes v (|y|^2 - sigma^2)/(scale^2 E|h|^2). The memory keeps m + Delta - v g, about half of the entries each round.
    """

    name: ClassVar[str] = "ncairfl"
    elements: ClassVar[int] = 1

    @classmethod
    def fit(cls, options: SchemeOptions) -> SchemeOptions:
        """Fix all but the memory."""
        return super().fit(options).model_copy(update={"memory": options.memory})

    def signs(self, plan: Plan) -> Float[Tensor, " d"]:
        """Draw v, the same for all."""
        drawn = numpy_generator(plan.seed, "dither", plan.round).integers(2, size=self.dimension)
        return torch.from_numpy(2.0 * drawn - 1.0).float()

    def sparsify(self, update: Tensor, memory: Tensor, plan: Plan, csi: Csi = UNKNOWN) -> tuple[Tensor, Tensor]:
        """Return the entries that agree with v, and the others."""
        whole = self.whole(update, memory)
        agree = whole * self.signs(plan) > 0
        sent = torch.where(agree, whole, 0.0)
        return sent, torch.where(agree, 0.0, whole) if self.options.memory else memory

    def amplitudes(self, sparse: Tensor, plan: Plan) -> Tensor:
        """Return roots; the sign is known."""
        return sparse.abs().sqrt()

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Subtract the noise power, if it is known, and give back the signs."""
        noise = (csi.noise or 0.0) / self._unit(csi, plan)
        return mean(self.signs(plan) * (self.energies(received, csi, plan)[:, 0] - noise), plan)
