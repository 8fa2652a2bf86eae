"""The method itself, Air-meta-pFL, with its ablations as options; knows no other scheme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fl_core.decode import ESTIMATORS, recoverable
from fl_core.encode import kept_entries
from fl_core.schemes.base import Base, Csi, Plan, mean


@dataclass(frozen=True)
class AirMetaPfl(Base):
    """Air-meta-pFL (Wen, Xing, Simeone, arXiv 2406.11569): sparsify with memory, compress linearly, add in the air.

    Transmit ``x = scale * exp(-j arg h) * A g`` with the largest common scale that the power limit allows; receive
    ``y = sum h x + z``; estimate ``E(y / (scale * mu_h)) / clients``. The spread of |h| stays as multiplicative noise.
    With ``precoder = inversion`` a client sends A g/h instead.
    """

    name: ClassVar[str] = "air-meta-pfl"

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Undo scale and mean gain, estimate the sparse sum, divide by the number of clients."""
        unit = plan.scale * csi.gain_mean
        noise = None if csi.noise is None else csi.noise / unit**2
        view = self.mapping.view(received / unit, noise, self.mapping.rows(plan.seed, plan.round))
        kept = kept_entries(self.options.keep, self.dimension)
        support = kept if self.options.sparsifier == "rand-k" else kept * plan.clients
        return mean(ESTIMATORS[self.options.estimator](view, support, self.options.iterations), plan)

    def recoverable(self, clients: int) -> str:
        """Apply the rule of thumb of :func:`fl_core.decode.recoverable`."""
        shared = self.options.sparsifier == "rand-k"
        return recoverable(self.mapping.real_rows(), self.dimension, self.options.keep, clients, shared)
