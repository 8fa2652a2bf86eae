"""The schemes: how an update becomes channel symbols and a received sum becomes the mean update, and their table.

Knows encoders, mappings and estimators; knows nothing of radios, data sets or who the clients are. A new scheme is one
class with the members of :class:`Scheme`, one line in :data:`SCHEMES`, and its name in ``options.SCHEME_NAMES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from fl_core.decode import ESTIMATORS, recoverable
from fl_core.encode import compress, kept_entries, power_scale
from fl_core.mappings import Mapping, Pair, make_mapping
from fl_core.options import SchemeOptions
from fl_core.seeds import numpy_generator

Precoder = Literal["phase", "inversion", "none"]


@dataclass(frozen=True)
class Plan:
    """What all clients and the server agree on for one round.

    Attributes:
        round: counted from 0.
        seed: shared by all; rows and random supports come from (seed, round).
        clients: how many add up in the received sum. When fewer arrive than were planned, decode with their number.
        eta: outer rate of the round (updates already carry it).
        scale: common amplitude, sqrt(rho)/eta; 1.0 until every energy is known.
    """

    round: int
    seed: int
    clients: int
    eta: float = 1.0
    scale: float = 1.0


@dataclass(frozen=True)
class Csi:
    """What the receiver knows of the channel.

    Attributes:
        gain_mean: mean gain of a client after precoding: mu_h, or 1.0 on a calibrated link without amplitude spread.
        noise: variance per complex symbol, in units where a symbol is ``scale * encode(...)``; None lets the
            estimator learn it.
    """

    gain_mean: float = 1.0
    noise: float | None = None


@runtime_checkable
class Scheme(Protocol):
    """An aggregation scheme. ``encode`` and ``sparsify`` accept leading batch dimensions."""

    name: ClassVar[str]
    over_air: ClassVar[bool]

    @property
    def dimension(self) -> int:
        """Entries d of an update."""

    @property
    def symbols(self) -> int:
        """Complex channel uses M of a round."""

    @property
    def precoder(self) -> Precoder:
        """What a node undoes of its link: the phase, all of it, or nothing."""

    def sparsify(
        self, update: Float[Tensor, "*batch d"], memory: Float[Tensor, "*batch d"], plan: Plan
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
        """Return the part of memory + update that will be sent, and the new memory."""

    def encode(
        self, update: Float[Tensor, "*batch d"], memory: Float[Tensor, "*batch d"], csi: Csi, plan: Plan
    ) -> tuple[Complex[Tensor, "*batch M"], Float[Tensor, "*batch d"]]:
        """Return unscaled symbols and the new memory. Neither argument is modified; the memory knows no channel."""

    def scale(self, norms_squared: Iterable[float], plan: Plan) -> float:
        """Return the common amplitude for which no client exceeds mean power 1 and the worst reaches it."""

    def decode(self, received: Complex[Tensor, " M"], csi: Csi, plan: Plan) -> Float[Tensor, " d"]:
        """Estimate the mean update of ``plan.clients`` clients from the sum of their symbols, times ``plan.scale``."""

    def recoverable(self, clients: int) -> str:
        """Return why a sum of so many clients cannot be recovered, with a remedy; empty when it can."""


def _sparsified(options: SchemeOptions, update: Tensor, memory: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Apply the options' sparsifier with memory; rand-k draws the same positions for every client of a round."""
    generator = numpy_generator(plan.seed, "support", plan.round) if options.sparsifier == "rand-k" else None
    kept = kept_entries(options.keep, update.shape[-1])
    return compress(update, memory, kept, options.sparsifier, options.memory, generator)


def _mean(total: Tensor, plan: Plan) -> Tensor:
    if plan.clients < 1:
        raise ValueError(f"a sum of {plan.clients} clients has no mean; void the round instead of decoding it")
    return total / plan.clients


@dataclass(frozen=True)
class AirMetaPfl:
    """Air-meta-pFL (Wen, Xing, Simeone, arXiv 2406.11569): sparsify with memory, compress linearly, add in the air.

    Transmit ``x = scale * exp(-j arg h) * A g`` with the largest common scale that the power limit allows; receive
    ``y = sum h x + z``; estimate ``E(y / (scale * mu_h)) / clients``. The spread of |h| stays as multiplicative noise.
    With ``precoder = inversion`` a client sends A g/h instead.
    """

    options: SchemeOptions
    mapping: Mapping
    name: ClassVar[str] = "air-meta-pfl"
    over_air: ClassVar[bool] = True

    @classmethod
    def make(cls, options: SchemeOptions, dimension: int) -> AirMetaPfl:
        """Build for updates of ``dimension`` entries; raises ValueError when the mapping cannot give M symbols."""
        return cls(options, make_mapping(options.mapping, dimension, options.measure))

    @property
    def dimension(self) -> int:
        """Entries d of an update."""
        return self.mapping.dimension

    @property
    def symbols(self) -> int:
        """Complex channel uses M of a round."""
        return self.mapping.symbols

    @property
    def precoder(self) -> Precoder:
        """The phase alone, unless the options say otherwise."""
        return self.options.precoder or "phase"

    def sparsify(self, update: Tensor, memory: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return g = C(memory + update) and the new memory, shapes (..., d)."""
        return _sparsified(self.options, update, memory, plan)

    def encode(self, update: Tensor, memory: Tensor, csi: Csi, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return A g, shape (..., M), and the new memory; ``csi`` is not used."""
        sparse, remaining = self.sparsify(update, memory, plan)
        return self.mapping.forward(sparse, self.mapping.rows(plan.seed, plan.round)), remaining

    def scale(self, norms_squared: Iterable[float], plan: Plan) -> float:
        """Return sqrt(M / max_i ||A g_i||^2); see :func:`fl_core.encode.power_scale`."""
        return power_scale(norms_squared, self.symbols)

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Undo scale and mean gain, estimate the sparse sum, divide by the number of clients."""
        unit = plan.scale * csi.gain_mean
        noise = None if csi.noise is None else csi.noise / unit**2
        view = self.mapping.view(received / unit, noise, self.mapping.rows(plan.seed, plan.round))
        kept = kept_entries(self.options.keep, self.dimension)
        support = kept if self.options.sparsifier == "rand-k" else kept * plan.clients
        return _mean(ESTIMATORS[self.options.estimator](view, support, self.options.iterations), plan)

    def recoverable(self, clients: int) -> str:
        """Apply the rule of thumb of :func:`fl_core.decode.recoverable`."""
        shared = self.options.sparsifier == "rand-k"
        return recoverable(self.mapping.real_rows(), self.dimension, self.options.keep, clients, shared)


@dataclass(frozen=True)
class Ideal:
    """Error-free mean: symbols are the entries themselves, two to a symbol, and never go on the air.

    ``keep``, ``sparsifier`` and ``memory`` apply as in the other schemes, so that a comparison isolates the channel;
    ``keep = 1`` gives meta-pFL without any compression.
    """

    options: SchemeOptions
    mapping: Pair
    name: ClassVar[str] = "ideal"
    over_air: ClassVar[bool] = False

    @classmethod
    def make(cls, options: SchemeOptions, dimension: int) -> Ideal:
        """Build for updates of ``dimension`` entries."""
        return cls(options, Pair.make(dimension))

    @property
    def dimension(self) -> int:
        """Entries d of an update."""
        return self.mapping.dimension

    @property
    def symbols(self) -> int:
        """Numbers exchanged, in pairs."""
        return self.mapping.symbols

    @property
    def precoder(self) -> Precoder:
        """Nothing to undo."""
        return "none"

    def sparsify(self, update: Tensor, memory: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return g = C(memory + update) and the new memory, shapes (..., d)."""
        return _sparsified(self.options, update, memory, plan)

    def encode(self, update: Tensor, memory: Tensor, csi: Csi, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return g as pairs, and the new memory."""
        sparse, remaining = self.sparsify(update, memory, plan)
        return self.mapping.forward(sparse, torch.empty(0)), remaining

    def scale(self, norms_squared: Iterable[float], plan: Plan) -> float:
        """Return 1.0: numbers on a wire have no power limit."""
        return 1.0

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Return the sum divided by the number of clients."""
        return _mean(self.mapping.adjoint(received, torch.empty(0)) / plan.scale, plan)

    def recoverable(self, clients: int) -> str:
        """Return nothing: the sum is exact."""
        return ""


SCHEMES: dict[str, Callable[[SchemeOptions, int], Scheme]] = {
    "air-meta-pfl": AirMetaPfl.make,
    "ideal": Ideal.make,
}
"""Name -> function (options, dimension d) -> scheme."""


def make_scheme(options: SchemeOptions, dimension: int) -> Scheme:
    """Build the scheme that ``options.name`` names, for updates of ``dimension`` entries.

    Raises:
        ValueError: an unknown name, or options that do not fit the dimension.
    """
    if options.name not in SCHEMES:
        raise ValueError(f"scheme '{options.name}' is unknown; choose one of {', '.join(SCHEMES)}")
    return SCHEMES[options.name](options, dimension)
