"""One bit per entry, aligned: the majority of signs from a sum of QPSK symbols; knows no energies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.options import SchemeOptions
from fl_core.schemes.base import UNKNOWN, Csi, Inverting, Plan, mean


def majority(balance: Tensor, size: float, plan: Plan) -> Tensor:
    """Move each parameter by ``size`` the way that most clients voted; not at all in a tie.

    Raises:
        ValueError: nobody voted.
    """
    return size * torch.sign(mean(balance, plan))


@dataclass(frozen=True)
class Obda(Inverting):
    """One-bit broadband digital aggregation (Zhu, Du, Gündüz, Huang, arXiv 2001.05713): signs as QPSK, majority vote.

    Channels are inverted with truncation; the server takes the sign of what it receives. ``step`` eta is the length of
    a vote. With ``memory`` a client keeps the difference between what it had and what its vote says: error feedback, as
    arXiv 2303.11319 proposes for this scheme, in the form of EF-signSGD (Karimireddy et al., arXiv 1901.09847).
    """

    name: ClassVar[str] = "obda"

    @classmethod
    def fit(cls, options: SchemeOptions) -> SchemeOptions:
        """Fix all but the memory."""
        return super().fit(options).model_copy(update={"memory": options.memory})

    def sparsify(self, update: Tensor, memory: Tensor, plan: Plan, csi: Csi = UNKNOWN) -> tuple[Tensor, Tensor]:
        """Return step eta sign(memory + update), and the difference."""
        whole = self.whole(update, memory)
        sent = self.options.step * plan.eta * torch.sign(whole)
        return sent, whole - sent if self.options.memory else memory

    def modulate(self, sparse: Tensor, plan: Plan) -> Tensor:
        """Return +-1 +-j, two votes to a symbol."""
        return super().modulate(torch.sign(sparse), plan)

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Take the majority in each dimension of each symbol."""
        rows = self.mapping.rows(plan.seed, plan.round)
        return majority(self.mapping.adjoint(received, rows), self.options.step * plan.eta, plan)
