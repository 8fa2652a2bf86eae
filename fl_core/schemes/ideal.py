"""Error-free means over the control link: meta-learning with and without compression, FedAvg, Per-FedAvg."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fl_core.options import LearnOptions, SchemeOptions
from fl_core.schemes.base import Base, Carrier, Dense, Plan, Precoder


@dataclass(frozen=True)
class Ideal(Base):
    """Error-free mean: symbols are the entries themselves, two to a symbol, and never go on the air.

    ``keep``, ``sparsifier`` and ``memory`` apply as in the other schemes, so that a comparison isolates the channel;
    ``keep = 1`` gives meta-pFL without any compression.
    """

    name: ClassVar[str] = "ideal"
    carrier: ClassVar[Carrier] = "wire"

    @classmethod
    def fit(cls, options: SchemeOptions) -> SchemeOptions:
        """Fix the mapping: nothing is compressed."""
        return options.model_copy(update={"mapping": "pair"})

    @property
    def precoder(self) -> Precoder:
        """Nothing to undo."""
        return "none"

    def scale(self, norms_squared: Iterable[float], plan: Plan) -> float:
        """Return 1.0: numbers on a wire have no power limit."""
        return 1.0


@dataclass(frozen=True)
class PerFedAvg(Dense, Ideal):
    """Per-FedAvg (Fallah, Mokhtari, Ozdaglar, arXiv 2002.07948, Algorithm 1): the mean of whole meta-updates."""

    name: ClassVar[str] = "per-fedavg"


@dataclass(frozen=True)
class FedAvg(PerFedAvg):
    """FedAvg (McMahan et al., arXiv 1602.05629, Algorithm 1): the mean of whole updates of plain local SGD.

    Clients train with alpha = 0; new clients still fine-tune with the alpha of the options when they are evaluated.
    """

    name: ClassVar[str] = "fedavg"

    def learning(self, learn: LearnOptions) -> LearnOptions:
        """Take the meta out: plain local gradients."""
        return learn.model_copy(update={"alpha": 0.0})
