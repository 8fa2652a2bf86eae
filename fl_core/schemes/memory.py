"""Truncated inversion that remembers what fading cut off; knows no sparsifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from fl_core.mac import audible
from fl_core.options import SchemeOptions
from fl_core.schemes.base import UNKNOWN, Csi, Inverting, Plan


@dataclass(frozen=True)
class AirFlMem(Inverting):
    """AirFL-Mem (Wen, Xing, Simeone, arXiv 2310.16606): send where |h|^2 >= threshold, keep the rest for later.

    Where the channel fades within a round (``coherence``) single symbols are cut, else whole clients; on a radio single
    subcarriers, over all of which the waveform spreads every entry. The fading is
    the sparsifier: a contraction with lambda = e^{-threshold}. The server divides by all clients. Ablations:
    ``memory = false``, and ``memory_term = short``, which keeps only what was cut off the last update.
    """

    name: ClassVar[str] = "airfl-mem"

    @classmethod
    def fit(cls, options: SchemeOptions) -> SchemeOptions:
        """Fix all but the memory: whole updates, inverted channels."""
        return super().fit(options).model_copy(update={"memory": options.memory, "precoder": "inversion"})

    @property
    def remembers(self) -> bool:
        """Only the long memory holds all that was not sent."""
        return self.options.memory and self.options.memory_term == "long"

    @property
    def recalls(self) -> bool:
        """Yes, and with the ablation without memory the server divides by all clients, too."""
        return True

    def late(self, update: Tensor, memory: Tensor, lost: Callable[[Tensor], Tensor], plan: Plan) -> Tensor:
        """Keep what was cut off: of all there was to send, or of the last update."""
        if not self.options.memory:
            return memory
        meant = self.whole(update, memory) if self.remembers else update
        return self.mapping.adjoint(lost(self.modulate(meant, plan)), self.mapping.rows(plan.seed, plan.round))

    def heard(self, csi: Csi) -> Bool[Tensor, ...]:
        """Tell which entries get through, shape (..., 1) or (..., d)."""
        if csi.gains is None:
            return torch.ones(1, dtype=torch.bool)
        through = audible(csi.gains, self.threshold)
        return through if through.shape[-1] == 1 else torch.cat((through, through), -1)[..., : self.dimension]

    def sparsify(self, update: Tensor, memory: Tensor, plan: Plan, csi: Csi = UNKNOWN) -> tuple[Tensor, Tensor]:
        """Split at the fades."""
        whole, heard = self.whole(update, memory), self.heard(csi)
        sent = torch.where(heard, whole, 0.0)
        if not self.options.memory:
            return sent, memory
        return sent, torch.where(heard, 0.0, whole if self.remembers else update)

    def encode(self, update: Tensor, memory: Tensor, csi: Csi, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return symbols of all of it, since the power rule is about what would be sent, and the new memory."""
        whole = self.whole(update, memory)
        return self.modulate(whole, plan), self.sparsify(update, memory, plan, csi)[1]
