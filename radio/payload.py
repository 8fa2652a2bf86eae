"""How a round's symbols lie on the air: symbols and checksums to resource elements and back; knows no link.

Symbols that must add up in phase are spread over all elements. Symbols without a phase, whose energies the server
reads, lie on elements of their own: pairs of neighbours stay neighbours, and pairs are shuffled, so that large ones do
not meet in one OFDM symbol.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Complex64, Float32

from radio.ofdm import Profile, bursts_needed, pack, unpack
from radio.verify import checksum_nmse_db, checksum_signs, checksums

Symbols = Complex64[np.ndarray, " symbol"]
#: Sign vectors of a checksum: enough for an error estimate within about 2 dB.
CHECKS = 16


@dataclass(frozen=True)
class Payload:
    """The shared layout of one round.

    Attributes:
        profile: waveform.
        mode: R or C.
        symbols: complex symbols that the scheme hands over.
        seed: shared by all nodes of the round.
        appended: whether checksums ride behind the payload (the analog variant; spread symbols alone).
        spread: whether symbols are spread, which takes aligned phases; else one complex symbol lies on each element,
            in both modes.
    """

    profile: Profile
    mode: str
    symbols: int
    seed: int
    appended: bool
    spread: bool = True

    @property
    def scale(self) -> float:
        """Amplitude on the air per unit of a symbol: elements of mean power 1 in both modes."""
        return math.sqrt(2.0) if self.real else 1.0

    @property
    def real(self) -> bool:
        """Whether an element carries one real, and the noise on the other half of it stays out."""
        return self.spread and self.mode == "R"

    @property
    def uses(self) -> int:
        """Resource elements that the payload needs, checksums included."""
        return self.reals if self.real else self.reals // 2

    @property
    def reals(self) -> int:
        """Reals on the air, checksums included."""
        return 2 * self.symbols + (CHECKS if self.appended else 0)

    @property
    def bursts(self) -> int:
        """Bursts that hold them."""
        if self.spread:
            return bursts_needed(self.profile, self.mode, self.reals)
        return -(-self.symbols // self._elements)

    @property
    def _elements(self) -> int:
        return sum(self.profile.data_symbols) * len(self.profile.bins)

    def _places(self) -> np.ndarray:
        """Draw the place of each symbol among the elements of all bursts."""
        pairs = np.random.default_rng([self.seed, 4]).permutation(self.bursts * self._elements // 2)
        return cast(np.ndarray, (2 * pairs[:, None] + np.arange(2)).reshape(-1)[: self.symbols])

    def checks(self, symbols: Symbols) -> Float32[np.ndarray, " check"]:
        """Form the linear checksums of symbols: shared-seed sign vectors, so that checks of sums are sums of checks."""
        reals = np.ascontiguousarray(symbols, np.complex64).view(np.float32)
        return checksums(reals, checksum_signs(self.seed, CHECKS, reals.size))

    def fill(self, symbols: Symbols) -> Complex64[np.ndarray, "burst data bin"]:
        """Lay symbols (mean power at most 1) and checksums out on resource elements."""
        if not self.spread:
            elements = np.zeros(self.bursts * self._elements, np.complex64)
            elements[self._places()] = symbols
            return elements.reshape(self.bursts, -1, len(self.profile.bins))
        reals = np.ascontiguousarray(symbols, np.complex64).view(np.float32)
        if self.appended:
            reals = np.concatenate([reals, self.checks(symbols)])
        return pack(reals * np.float32(self.scale), self.profile, self.mode, self.seed)

    def read(self, grid: Complex64[np.ndarray, "burst data bin"]) -> tuple[Symbols, Float32[np.ndarray, " check"]]:
        """Take symbols and appended checksums (empty when none ride along) off received resource elements."""
        if not self.spread:
            return grid.reshape(-1)[self._places()], np.zeros(0, np.float32)
        reals = unpack(grid, self.profile, self.mode, self.reals, self.seed) / np.float32(self.scale)
        body = np.ascontiguousarray(reals[: 2 * self.symbols])
        return body.view(np.complex64), reals[2 * self.symbols :]

    def checksum_nmse_db(self, symbols: Symbols, checks: Float32[np.ndarray, " check"]) -> float:
        """Estimate the error of decoded symbols from the sum of the nodes' checksums."""
        reals = np.ascontiguousarray(symbols, np.complex64).view(np.float32)
        return checksum_nmse_db(reals, checks, checksum_signs(self.seed, CHECKS, reals.size))
