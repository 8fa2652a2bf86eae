"""The linear maps between real vectors and complex channel symbols; knows nothing of sparsity, clients or channels.

Each mapping is real-linear, R^d -> C^M, and is never built as a matrix: one fast Fourier transform each way. Its rows
are redrawn every round from a seed that all share. Vectors are zero-padded inside to a ``length`` that is even and has
no prime factor above 5 (an FFT of a prime length is five times slower); forward takes and adjoint returns d entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Complex, Float, Int64
from scipy.fft import next_fast_len
from torch import Tensor

from fl_core.seeds import numpy_generator

ROOT_TWO = math.sqrt(2.0)


@dataclass(frozen=True)
class View:
    """Received symbols as real measurements with orthonormal rows, which is what every estimator works on.

    With B the real matrix of ``forward`` (real and imaginary parts stacked): B B^T = I. Vectors have the padded
    ``length``; entries beyond ``dimension`` are zeros that the mapping added.
    """

    values: Complex[Tensor, " rows"]
    noise: float | None  # variance per real measurement; None when nobody knows it
    real_rows: int  # distinct real measurements
    dimension: int
    length: int
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]


@runtime_checkable
class Mapping(Protocol):
    """A family of maps R^d -> C^M, one for each set of rows."""

    name: ClassVar[str]

    @property
    def dimension(self) -> int:
        """Real entries d."""

    @property
    def symbols(self) -> int:
        """Complex symbols M."""

    @property
    def length(self) -> int:
        """Entries after zero padding."""

    def rows(self, seed: int, round: int) -> Int64[Tensor, " rows"]:
        """Draw the rows of one round, ascending; the same for all who hold the seed."""

    def forward(self, vector: Float[Tensor, "*batch d"], rows: Int64[Tensor, " rows"]) -> Complex[Tensor, "*batch M"]:
        """Apply A."""

    def adjoint(self, symbols: Complex[Tensor, "*batch M"], rows: Int64[Tensor, " rows"]) -> Float[Tensor, "*batch d"]:
        """Apply the real adjoint: Re<Ax, y> = <x, adjoint(y)>."""

    def view(self, received: Complex[Tensor, " M"], noise: float | None, rows: Int64[Tensor, " rows"]) -> View:
        """Present received symbols with noise variance ``noise`` per complex symbol to an estimator."""

    def real_rows(self) -> int:
        """Distinct real measurements per round (for ``dft-all``: expected number)."""


def fast_length(minimum: int) -> int:
    """Return the smallest even number >= minimum without a prime factor above 5."""
    return 2 * int(next_fast_len((minimum + 1) // 2, real=True))


def _padded(vector: Tensor, length: int) -> Tensor:
    missing = length - vector.shape[-1]
    return torch.nn.functional.pad(vector, (0, missing)) if missing else vector


def _draw(count: int, of: int, first: int, seed: int, round: int) -> Tensor:
    drawn = numpy_generator(seed, "rows", round).choice(of, count, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(drawn) + first)


def _picked(spectrum: Tensor, bins: Tensor) -> Tensor:
    return spectrum.index_select(-1, bins)


def _half_spectrum(values: Tensor, bins: Tensor, length: int) -> Tensor:
    """Return the real signal whose half spectrum holds ``values`` at ``bins`` (unitary inverse DFT)."""
    spectrum = torch.zeros((*values.shape[:-1], length // 2 + 1), dtype=values.dtype, device=values.device)
    spectrum[..., bins] = values
    signal: Tensor = torch.fft.irfft(spectrum, n=length, norm="ortho")
    return signal


def _used(measure: float, dimension: int, limit: int, top: float, name: str) -> int:
    if not 0.0 < measure <= top:
        raise ValueError(
            f"measure is {measure:g}; mapping '{name}' has {limit} usable symbols for {dimension} parameters, "
            f"choose measure in (0, {top:g}]"
        )
    if limit < 1:
        raise ValueError(f"mapping '{name}' has no usable row for {dimension} parameters; use mapping 'pair'")
    return min(max(1, round(measure * dimension)), limit)


@dataclass(frozen=True)
class Pair:
    """``c = g[:n/2] + j g[n/2:]``: no compression, M = n/2 symbols, n = d or d + 1 (one zero added to an odd d)."""

    name: ClassVar[str] = "pair"
    dimension: int
    symbols: int
    length: int

    @classmethod
    def make(cls, dimension: int, measure: float = 1.0) -> Pair:
        """Build for d entries; ``measure`` does not apply."""
        half = (dimension + 1) // 2
        return cls(dimension, half, 2 * half)

    def rows(self, seed: int, round: int) -> Tensor:
        """Return an empty tensor: nothing is drawn."""
        return torch.empty(0, dtype=torch.int64)

    def forward(self, vector: Tensor, rows: Tensor) -> Tensor:
        """Pair the halves, shape (..., d) -> (..., M)."""
        whole = _padded(vector, self.length)
        return torch.complex(whole[..., : self.symbols].contiguous(), whole[..., self.symbols :].contiguous())

    def adjoint(self, symbols: Tensor, rows: Tensor) -> Tensor:
        """Undo the pairing, shape (..., M) -> (..., d): inverse and adjoint in one."""
        return torch.cat((symbols.real, symbols.imag), dim=-1)[..., : self.dimension]

    def view(self, received: Tensor, noise: float | None, rows: Tensor) -> View:
        """Present the symbols as ``length`` direct real measurements."""
        return View(
            received,
            None if noise is None else noise / 2.0,
            self.length,
            self.dimension,
            self.length,
            lambda x: torch.complex(x[: self.symbols].contiguous(), x[self.symbols :].contiguous()),
            lambda y: torch.cat((y.real, y.imag), dim=-1),
        )

    def real_rows(self) -> int:
        """Return 2 M."""
        return self.length


@dataclass(frozen=True)
class RealDft:
    """M rows of the unitary DFT of a real vector, drawn from bins 1..d/2-1 (no DC, no Nyquist) and scaled by sqrt(2).

    Rows j and n-j of a real vector's DFT are conjugate copies, so one half of the spectrum holds everything. Row j of
    the unitary DFT has real and imaginary parts of squared norm 1/2 each; the factor sqrt(2) makes the 2M stacked real
    rows orthonormal.
    """

    name: ClassVar[str] = "rdft"
    dimension: int
    symbols: int
    length: int

    @classmethod
    def make(cls, dimension: int, measure: float) -> RealDft:
        """Build for d entries and M = round(measure d) <= d/2 - 1 symbols, 0 < measure <= 0.5."""
        return cls(dimension, _used(measure, dimension, dimension // 2 - 1, 0.5, cls.name), fast_length(dimension))

    def rows(self, seed: int, round: int) -> Tensor:
        """Draw M of the bins 1..length/2-1."""
        return _draw(self.symbols, self.length // 2 - 1, 1, seed, round)

    def forward(self, vector: Tensor, rows: Tensor) -> Tensor:
        """Apply A, shape (..., d) -> (..., M)."""
        return _picked(torch.fft.rfft(vector, n=self.length, norm="ortho"), rows) * ROOT_TWO

    def adjoint(self, symbols: Tensor, rows: Tensor) -> Tensor:
        """Apply A^T of the stacked real matrix, shape (..., M) -> (..., d)."""
        return _half_spectrum(symbols / ROOT_TWO, rows, self.length)[..., : self.dimension]

    def view(self, received: Tensor, noise: float | None, rows: Tensor) -> View:
        """Present the symbols as 2 M real measurements."""
        return View(
            received,
            None if noise is None else noise / 2.0,
            2 * self.symbols,
            self.dimension,
            self.length,
            lambda x: _picked(torch.fft.rfft(x, norm="ortho"), rows) * ROOT_TWO,
            lambda y: _half_spectrum(y / ROOT_TWO, rows, self.length),
        )

    def real_rows(self) -> int:
        """Return 2 M."""
        return 2 * self.symbols


@dataclass(frozen=True)
class FullDft:
    """M rows of the whole unitary DFT, conjugate copies and all; for comparison with ``rdft``.

    Two rows j and n-j carry the same real numbers: energy is spent twice on them and the estimator averages the pair.
    """

    name: ClassVar[str] = "dft-all"
    dimension: int
    symbols: int
    length: int

    @classmethod
    def make(cls, dimension: int, measure: float) -> FullDft:
        """Build for d entries and M = round(measure d) symbols, 0 < measure <= 1."""
        return cls(dimension, _used(measure, dimension, dimension, 1.0, cls.name), fast_length(dimension))

    def rows(self, seed: int, round: int) -> Tensor:
        """Draw M of the bins 0..length-1."""
        return _draw(self.symbols, self.length, 0, seed, round)

    def _fold(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(rows > self.length // 2, self.length - rows, rows), rows > self.length // 2

    def forward(self, vector: Tensor, rows: Tensor) -> Tensor:
        """Apply A, shape (..., d) -> (..., M)."""
        bins, mirrored = self._fold(rows)
        values = _picked(torch.fft.rfft(vector, n=self.length, norm="ortho"), bins)
        return torch.where(mirrored, values.conj().resolve_conj(), values)

    def _folded(self, symbols: Tensor, rows: Tensor) -> Tensor:
        bins, mirrored = self._fold(rows)
        upright = torch.where(mirrored, symbols.conj().resolve_conj(), symbols)
        spectrum = torch.zeros((*symbols.shape[:-1], self.length // 2 + 1), dtype=symbols.dtype, device=symbols.device)
        return spectrum.index_add(-1, bins, upright)

    def adjoint(self, symbols: Tensor, rows: Tensor) -> Tensor:
        """Apply Re(A^H y), shape (..., M) -> (..., d)."""
        spectrum = self._folded(symbols, rows)
        spectrum[..., 1:-1] *= 0.5  # the inverse transform of a half spectrum counts each inner bin twice
        signal: Tensor = torch.fft.irfft(spectrum, n=self.length, norm="ortho")
        return signal[..., : self.dimension]

    def view(self, received: Tensor, noise: float | None, rows: Tensor) -> View:
        """Present the distinct measurements, conjugate copies averaged.

        A bin seen twice has half the noise of one seen once; DC and Nyquist give one real measurement each. The
        noise of the view is the mean over its real measurements.
        """
        bins, _ = self._fold(rows)
        real = received.real.dtype
        copies = torch.bincount(bins, minlength=self.length // 2 + 1).to(real)
        seen = copies.nonzero()[:, 0]
        edge = (seen == 0) | (seen == self.length // 2)
        weight = torch.where(edge, torch.tensor(1.0, dtype=real), torch.tensor(ROOT_TWO, dtype=real))
        values = self._folded(received, rows)[seen] / copies[seen] * weight
        values = torch.where(edge, values.real.to(values.dtype), values)
        share = torch.where(edge, 0.5, 1.0) / copies[seen]  # of the noise per symbol, in each real measurement
        counts = torch.where(edge, 1.0, 2.0)
        real_rows = int(counts.sum())
        level = None if noise is None else noise * float((share * counts).sum()) / real_rows
        return View(
            values,
            level,
            real_rows,
            self.dimension,
            self.length,
            lambda x: _picked(torch.fft.rfft(x, norm="ortho"), seen) * weight,
            lambda y: _half_spectrum(y / weight, seen, self.length),
        )

    def real_rows(self) -> int:
        """Return the expected number of distinct real measurements."""
        fraction = self.symbols / self.length
        return round(self.length * (1.0 - (1.0 - fraction) ** 2))


@dataclass(frozen=True)
class PairDft:
    """Pairs the halves as ``pair`` does, then M rows of the complex unitary DFT of length n/2, drawn each round.

    Every bin of a complex vector is a measurement of its own, so M may reach n/2, and the 2M stacked real rows are
    orthonormal without a factor.
    """

    name: ClassVar[str] = "pair-dft"
    dimension: int
    symbols: int
    length: int

    @classmethod
    def make(cls, dimension: int, measure: float) -> PairDft:
        """Build for d entries and M = round(measure d) <= ceil(d/2) symbols, 0 < measure <= 0.5."""
        return cls(dimension, _used(measure, dimension, (dimension + 1) // 2, 0.5, cls.name), fast_length(dimension))

    def rows(self, seed: int, round: int) -> Tensor:
        """Draw M of the bins 0..length/2-1."""
        return _draw(self.symbols, self.length // 2, 0, seed, round)

    def _forward(self, whole: Tensor, rows: Tensor) -> Tensor:
        half = self.length // 2
        paired = torch.complex(whole[..., :half].contiguous(), whole[..., half:].contiguous())
        return _picked(torch.fft.fft(paired, norm="ortho"), rows)

    def _adjoint(self, symbols: Tensor, rows: Tensor) -> Tensor:
        spectrum = torch.zeros((*symbols.shape[:-1], self.length // 2), dtype=symbols.dtype, device=symbols.device)
        spectrum[..., rows] = symbols
        paired = torch.fft.ifft(spectrum, norm="ortho")
        return torch.cat((paired.real, paired.imag), dim=-1)

    def forward(self, vector: Tensor, rows: Tensor) -> Tensor:
        """Apply A, shape (..., d) -> (..., M)."""
        return self._forward(_padded(vector, self.length), rows)

    def adjoint(self, symbols: Tensor, rows: Tensor) -> Tensor:
        """Apply A^T of the stacked real matrix, shape (..., M) -> (..., d)."""
        return self._adjoint(symbols, rows)[..., : self.dimension]

    def view(self, received: Tensor, noise: float | None, rows: Tensor) -> View:
        """Present the symbols as 2 M real measurements."""
        return View(
            received,
            None if noise is None else noise / 2.0,
            2 * self.symbols,
            self.dimension,
            self.length,
            lambda x: self._forward(x, rows),
            lambda y: self._adjoint(y, rows),
        )

    def real_rows(self) -> int:
        """Return 2 M."""
        return 2 * self.symbols


MAPPINGS: dict[str, Callable[[int, float], Mapping]] = {
    "pair": Pair.make,
    "rdft": RealDft.make,
    "dft-all": FullDft.make,
    "pair-dft": PairDft.make,
}
"""Name -> function (dimension d, measure M/d) -> mapping."""


def make_mapping(name: str, dimension: int, measure: float = 0.4) -> Mapping:
    """Build a mapping by name.

    Args:
        name: a name in :data:`MAPPINGS`.
        dimension: real entries d.
        measure: complex symbols per entry, M/d; ``pair`` ignores it.

    Raises:
        ValueError: an unknown name, no entry, or a ``measure`` that the mapping cannot give.
    """
    if name not in MAPPINGS:
        raise ValueError(f"mapping '{name}' is unknown; choose one of {', '.join(MAPPINGS)}")
    if dimension < 1:
        raise ValueError(f"a vector of {dimension} entries cannot be mapped; give at least 1")
    return MAPPINGS[name](dimension, measure)
