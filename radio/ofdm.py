"""The waveform profile: resource elements to samples and back; knows frames and pilots, nothing of radios or links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


def _span(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


def _both_sides(first: int, last: int) -> tuple[int, ...]:
    return _span(-last, -first) + _span(first, last)


@dataclass(frozen=True)
class Profile:
    """A waveform that all radios of a lab agree on.

    Attributes:
        name: key in ``PROFILES``.
        rate_hz: sample rate.
        carrier_hz: default carrier frequency.
        bandwidth_hz: analogue filter bandwidth (two-sided).
        fft: FFT length.
        cp: cyclic prefix in samples.
        bins: active FFT bins, signed, ascending.
        nulls: signed bins that nobody uses, where the receiver measures noise.
        modes: permitted mappings, ``R`` (one real per element) and ``C`` (two).
        data_symbols: data symbols before and after the middle verification pilot.
        guard_samples: silence before and after a burst or a sounding.
        slot_samples: distance between slot starts.
        stf_period: period of the short training field in samples.
        stf_repeats: repeats of that period.
        ltf: length of one long training sequence in samples; it is sent twice.
        ltf_root: Zadoff-Chu root of the long training sequence.
        second_ltf: samples from the first to the second pair of long training sequences.
    """

    name: str
    rate_hz: float
    carrier_hz: float
    bandwidth_hz: float
    fft: int
    cp: int
    bins: tuple[int, ...]
    nulls: tuple[int, ...]
    modes: tuple[str, ...]
    data_symbols: tuple[int, int] = (15, 16)
    guard_samples: int = 64
    slot_samples: int = 10_000
    stf_period: int = 8
    stf_repeats: int = 20
    ltf: int = 128
    ltf_root: int = 25
    second_ltf: int = 1_000

    @property
    def symbol_samples(self) -> int:
        """Samples of one OFDM symbol, prefix included."""
        return self.fft + self.cp

    @property
    def burst_symbols(self) -> int:
        """Symbols of a burst: V0, data, M, data, V1, canary."""
        return sum(self.data_symbols) + 4

    @property
    def burst_samples(self) -> int:
        """Samples of a burst without its guards."""
        return self.burst_symbols * self.symbol_samples

    @property
    def beacon_samples(self) -> int:
        """Samples of a beacon, from its first to the end of the second long training pair."""
        return self.stf_period * self.stf_repeats + self.second_ltf + 2 * self.ltf

    @property
    def max_nodes(self) -> int:
        """Nodes that one verification pilot can tell apart (six bins each, at most 16)."""
        return min(16, len(self.bins) // 6)

    @property
    def spacing_hz(self) -> float:
        """Subcarrier spacing."""
        return self.rate_hz / self.fft


# One side of DC only: DC offset, LO leaks (which lie at each node's uncorrected CFO) and IQ images fall outside the band.
# Noise is measured on +-(106..121): the mirror image of an active bin k falls on -k, so bins -103..-8 would show the
# image of a strong sum as noise. Two bins of distance keep leakage of a residual CFO out.
_PLUTO = Profile(
    name="pluto-915",
    rate_hz=1e6,
    carrier_hz=915e6,
    bandwidth_hz=1e6,
    fft=256,
    cp=32,
    bins=_span(8, 103),
    nulls=_both_sides(106, 121),
    modes=("R",),
)

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "pluto-915": _PLUTO,
        "pluto-cable": Profile(**{**vars(_PLUTO), "name": "pluto-cable"}),
        # Both sides of DC: a shared reference keeps leaks at DC, and images add to data bins at the image ratio.
        "usrp-ref": Profile(
            name="usrp-ref",
            rate_hz=5e6,
            carrier_hz=915e6,
            bandwidth_hz=5e6,
            fft=1024,
            cp=96,
            bins=_both_sides(4, 400),
            nulls=_both_sides(408, 455),
            modes=("R", "C"),
            guard_samples=320,
            slot_samples=50_000,
            stf_period=32,
            ltf=512,
            second_ltf=5_000,
        ),
    }
)
