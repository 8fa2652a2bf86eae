"""What every scheme offers, and the one base that they share; knows encoders and mappings, no single scheme."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from fl_core.encode import compress, energy, kept_entries, power_scale, require_finite
from fl_core.mac import Channel, after_precoding, fading_mac, inversion_power, mean_gain, transmit_energy
from fl_core.mappings import Mapping, make_mapping
from fl_core.options import LearnOptions, SchemeOptions
from fl_core.seeds import numpy_generator

Precoder = Literal["phase", "inversion", "none"]
Carrier = Literal["sum", "energy", "wire", "simulated"]


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
    """What one end knows of the channel.

    Attributes:
        gain_mean: mean gain of a client after precoding: mu_h, or 1.0 on a calibrated link without amplitude spread.
        noise: variance per complex symbol, in units where a symbol is ``scale * encode(...)``; None lets the
            estimator learn it.
        gains: at a client its own coefficients, shape (..., 1) or (..., symbol); None where the radio takes care of
            them. At the server what the scheme's receiver knows, if anything.
        gain_power: mean of |gain|^2 after precoding, for those who receive energies; None: the square of ``gain_mean``.
        offsets: at the server of ``misaligned`` alone: the clients' arrival times, in symbol durations.
    """

    gain_mean: float = 1.0
    noise: float | None = None
    gains: Complex[Tensor, ...] | None = None
    gain_power: float | None = None
    offsets: Float[Tensor, " client"] | None = None


UNKNOWN = Csi()
"""What a client knows whose radio precodes for it."""


@runtime_checkable
class Scheme(Protocol):
    """An aggregation scheme. ``encode`` and ``sparsify`` accept leading batch dimensions."""

    name: ClassVar[str]
    carrier: ClassVar[Carrier]

    @property
    def over_air(self) -> bool:
        """Whether symbols travel through a channel; else they go over the control link and are added there."""

    @property
    def dimension(self) -> int:
        """Entries d of an update."""

    @property
    def symbols(self) -> int:
        """Complex symbols that ``encode`` returns and ``decode`` takes."""

    @property
    def uses(self) -> int:
        """Complex channel uses M of a round: as many as symbols, except where bits are sent instead."""

    @property
    def precoder(self) -> Precoder:
        """What a node undoes of its link: the phase, all of it, or nothing."""

    @property
    def threshold(self) -> float:
        """|h|^2 below which an inverting client is silent; 0 for none."""

    @property
    def remembers(self) -> bool:
        """Whether the memory holds all that was not sent."""

    @property
    def recalls(self) -> bool:
        """Whether what fades cut off is late and not lost: the server divides by all clients, and ``late`` tells it."""

    @property
    def averages(self) -> bool:
        """Whether a client may exceed the power limit in a round: it holds over the fading, or for all together."""

    @property
    def antennas(self) -> int:
        """Receive antennas."""

    def wired_power(self, clients: int) -> float:
        """Return the mean power per channel use of a client whose symbols do not go through the channel."""

    def learning(self, learn: LearnOptions) -> LearnOptions:
        """Return how clients compute their updates."""

    def sparsify(
        self, update: Float[Tensor, "*batch d"], memory: Float[Tensor, "*batch d"], plan: Plan, csi: Csi = UNKNOWN
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
        """Return the part of memory + update that will be sent, and the new memory."""

    def encode(
        self, update: Float[Tensor, "*batch d"], memory: Float[Tensor, "*batch d"], csi: Csi, plan: Plan
    ) -> tuple[Complex[Tensor, "*batch M"], Float[Tensor, "*batch d"]]:
        """Return unscaled symbols and the new memory. Neither argument is modified."""

    def scale(self, norms_squared: Iterable[float], plan: Plan) -> float:
        """Return the common amplitude for which no client exceeds mean power 1 and the worst reaches it."""

    def spent(
        self, symbols: Complex[Tensor, "client symbol"], gains: Tensor, channel: Channel
    ) -> Float[Tensor, " client"]:
        """Return the energy that each client spends on its unscaled symbols."""

    def limited(
        self, symbols: Complex[Tensor, "client symbol"], spent: Float[Tensor, " client"]
    ) -> Float[Tensor, " client"]:
        """Return the energies of unscaled symbols that the power rule limits, for ``scale``."""

    def superpose(
        self,
        symbols: Complex[Tensor, "client symbol"],
        gains: Tensor,
        heard: list[int],
        channel: Channel,
        generator: torch.Generator,
    ) -> tuple[Tensor, Csi]:
        """Precode scaled symbols, and add those of the clients that are heard, as the simulated air does.

        Returns what is received and what the server knows.
        """

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Float[Tensor, " d"]:
        """Estimate the mean update of ``plan.clients`` clients from what ``superpose`` or a radio received."""

    def late(
        self, update: Float[Tensor, " d"], memory: Float[Tensor, " d"], lost: Callable[[Tensor], Tensor], plan: Plan
    ) -> Float[Tensor, " d"]:
        """Return the new memory of a radio node, which learns after ``encode`` what fades cut off its waveform.

        ``lost`` is linear: symbols to the part of them that is not sent.
        """

    def check_waveform(self) -> None:
        """Refuse with a ValueError what no waveform carries."""

    def recoverable(self, clients: int) -> str:
        """Return why a sum of so many clients cannot be recovered, with a remedy; empty when it can."""


def mean(total: Tensor, plan: Plan) -> Tensor:
    """Divide a sum by the number of clients in it.

    Raises:
        ValueError: nobody is in it.
    """
    if plan.clients < 1:
        raise ValueError(f"a sum of {plan.clients} clients has no mean; void the round instead of decoding it")
    return total / plan.clients


@dataclass(frozen=True)
class Base:
    """A linear scheme: sparsify with memory, map, add, undo the map.

    A subclass names itself and overrides what it does differently: most often ``fit`` (which options it fixes),
    ``modulate`` and ``decode``.

    Attributes:
        options: settings, after ``fit``.
        mapping: between d real entries and complex symbols.
        name: in ``scheme.name``.
        carrier: what carries the symbols. ``sum``: any waveform that adds phase-aligned symbols. ``energy``: elements
            that are neither precoded nor spread; the server squares them. ``wire``: the control link. ``simulated``:
            the symbol-level channel alone.
    """

    options: SchemeOptions
    mapping: Mapping
    name: ClassVar[str]
    carrier: ClassVar[Carrier] = "sum"

    @classmethod
    def make(cls, options: SchemeOptions, dimension: int) -> Base:
        """Build for updates of ``dimension`` entries; raises ValueError when the options do not fit it."""
        fitted = cls.fit(options)
        return cls(fitted, make_mapping(fitted.mapping, dimension, fitted.measure))

    @classmethod
    def fit(cls, options: SchemeOptions) -> SchemeOptions:
        """Return the options with those replaced that the scheme does not leave open."""
        return options

    @property
    def over_air(self) -> bool:
        """Whether symbols travel through a channel."""
        return self.carrier != "wire"

    @property
    def dimension(self) -> int:
        """Entries d of an update."""
        return self.mapping.dimension

    @property
    def symbols(self) -> int:
        """Complex symbols of a round."""
        return self.mapping.symbols

    @property
    def uses(self) -> int:
        """Complex channel uses of a round."""
        return self.symbols

    @property
    def precoder(self) -> Precoder:
        """The phase alone, unless the options say otherwise."""
        return self.options.precoder or "phase"

    @property
    def threshold(self) -> float:
        """No truncation."""
        return 0.0

    @property
    def remembers(self) -> bool:
        """By option."""
        return self.options.memory

    @property
    def recalls(self) -> bool:
        """No: what is not sent is lost, or in the memory already."""
        return False

    def late(self, update: Tensor, memory: Tensor, lost: Callable[[Tensor], Tensor], plan: Plan) -> Tensor:
        """Return what ``encode`` does: the memory knows nothing of the channel."""
        return self.sparsify(update, memory, plan)[1]

    @property
    def averages(self) -> bool:
        """Only where the clients share it."""
        return self.options.power == "shared"

    @property
    def antennas(self) -> int:
        """One."""
        return 1

    def wired_power(self, clients: int) -> float:
        """Return 0: the control link costs the radio nothing."""
        return 0.0

    def learning(self, learn: LearnOptions) -> LearnOptions:
        """Leave it as it is: meta-learning."""
        return learn

    def whole(self, update: Tensor, memory: Tensor) -> Tensor:
        """Return what there is to send: the update, and the memory if there is one; refuse what is not finite."""
        total = memory + update if self.options.memory else update
        require_finite(total)
        return total

    def sparsify(self, update: Tensor, memory: Tensor, plan: Plan, csi: Csi = UNKNOWN) -> tuple[Tensor, Tensor]:
        """Return g = C(memory + update) and the new memory, shapes (..., d).

        rand-k draws the same positions for every client of a round.
        """
        options = self.options
        generator = numpy_generator(plan.seed, "support", plan.round) if options.sparsifier == "rand-k" else None
        kept = kept_entries(options.keep, update.shape[-1])
        return compress(update, memory, kept, options.sparsifier, options.memory, generator)

    def modulate(self, sparse: Tensor, plan: Plan) -> Tensor:
        """Return the symbols of what is sent: (..., d) -> (..., M)."""
        return self.mapping.forward(sparse, self.mapping.rows(plan.seed, plan.round))

    def encode(self, update: Tensor, memory: Tensor, csi: Csi, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return A g, shape (..., M), and the new memory."""
        sparse, remaining = self.sparsify(update, memory, plan, csi)
        return self.modulate(sparse, plan), remaining

    def scale(self, norms_squared: Iterable[float], plan: Plan) -> float:
        """Return sqrt(M / max_i ||A g_i||^2); see :func:`fl_core.encode.power_scale`."""
        return power_scale(norms_squared, self.symbols)

    def gain_mean(self, channel: Channel) -> float:
        """Return the mean gain that the server divides by."""
        return 1.0 if self.recalls else mean_gain(channel.fading, self.precoder, self.threshold)

    def spent(self, symbols: Tensor, gains: Tensor, channel: Channel) -> Tensor:
        """Count what precoding costs."""
        return transmit_energy(symbols, gains, self.precoder, self.threshold)

    def limited(self, symbols: Tensor, spent: Tensor) -> Tensor:
        """Limit what each client spends, or the mean of it."""
        return spent.mean(0, keepdim=True) if self.options.power == "shared" else spent

    def superpose(
        self, symbols: Tensor, gains: Tensor, heard: list[int], channel: Channel, generator: torch.Generator
    ) -> tuple[Tensor, Csi]:
        """Add through one antenna, after precoding."""
        effective = after_precoding(gains, self.precoder, self.threshold)
        received = fading_mac(symbols[heard], effective[heard], channel.noise, generator)
        power = 1.0 if self.precoder == "inversion" else channel.mean_power
        return received, Csi(self.gain_mean(channel), channel.noise, gain_power=power)

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Undo scale, mean gain and mapping, and divide by the number of clients."""
        rows = self.mapping.rows(plan.seed, plan.round)
        return mean(self.mapping.adjoint(received / (plan.scale * csi.gain_mean), rows), plan)

    def check_waveform(self) -> None:
        """Refuse with a ValueError what no waveform carries."""
        if self.carrier == "simulated":
            raise ValueError(f"scheme '{self.name}' exists in simulation alone; run it with fl_core.simulate")
        if self.carrier == "sum" and self.precoder == "none":
            raise ValueError(
                f"scheme '{self.name}' adds symbols that must arrive in phase, and scheme.precoder = 'none' leaves "
                "phases to chance; leave scheme.precoder unset"
            )
        if self.carrier != "wire" and self.options.power != "round":
            raise ValueError(
                f"scheme.power = '{self.options.power}' exists in simulation alone; a radio keeps its limit in every "
                "round: leave scheme.power unset"
            )

    def recoverable(self, clients: int) -> str:
        """Return nothing: a linear scheme without compression has no limit."""
        return ""


@dataclass(frozen=True)
class Dense(Base):
    """A base for schemes that send all of an update, two entries to a symbol, and need no memory."""

    @classmethod
    def fit(cls, options: SchemeOptions) -> SchemeOptions:
        """Fix what the scheme does not leave open."""
        return options.model_copy(update={"keep": 1.0, "mapping": "pair", "memory": False})


@dataclass(frozen=True)
class Inverting(Dense):
    """A base for truncated channel inversion: silent where |h|^2 < threshold, else p = sqrt(rho) h*/|h|^2.

    Under ``power = average`` the limit holds on average over the fading, rho = P/E_1(threshold) for Rayleigh (Zhu,
    Wang, Huang, arXiv 1812.11494); else in every round.
    """

    @property
    def precoder(self) -> Precoder:
        """All of the channel, unless the options say otherwise."""
        return self.options.precoder or "inversion"

    @property
    def threshold(self) -> float:
        """Of the options."""
        return self.options.threshold

    @property
    def over_fading(self) -> bool:
        """Whether the limit holds on average over the fading: by option, where there is something to invert."""
        return self.options.power == "average" and self.precoder == "inversion"

    @property
    def averages(self) -> bool:
        """Over the fading, or among the clients."""
        return self.over_fading or super().averages

    def limited(self, symbols: Tensor, spent: Tensor) -> Tensor:
        """Limit symbols before inversion where fading averages it out."""
        return energy(symbols) if self.over_fading else super().limited(symbols, spent)

    def limit(self) -> float:
        """Return the mean power allowed to symbols before inversion (``average``), or to what is sent."""
        return 1.0 / inversion_power(self.options.fading, self.threshold) if self.over_fading else 1.0

    def scale(self, norms_squared: Iterable[float], plan: Plan) -> float:
        """Return the largest common amplitude within :meth:`limit`."""
        return power_scale(norms_squared, self.symbols, self.limit())
