"""The waveform profile: resource elements to samples and back; knows frames and pilots, nothing of radios or links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd
from types import MappingProxyType
from typing import cast

import numpy as np
from jaxtyping import Complex64, Float32, Float64, Int64
from scipy.fft import dct, fft, idct, ifft

from radio.errors import ConfigError, LinkError, SamplesLost


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
        carrier_hz: carrier of the uplink, and of the beacons unless ``downlink_hz`` is given.
        bandwidth_hz: analogue filter bandwidth (two-sided).
        fft: FFT length.
        cp: cyclic prefix in samples.
        bins: active FFT bins, signed, ascending.
        nulls: signed bins that nobody uses, where the receiver measures noise.
        modes: permitted mappings, ``R`` (one real per element) and ``C`` (two).
        data_symbols: data symbols before and after the middle verification pilot: halves, the second may be one longer.
        guard_samples: silence before and after a burst or a sounding.
        slot_samples: distance between slot starts.
        stf_period: period of the short training field in samples.
        stf_repeats: repeats of that period.
        ltf: length of one long training sequence in samples; it is sent twice.
        ltf_root: Zadoff-Chu root of the long training sequence.
        second_ltf: samples from the first to the second pair of long training sequences.
        downlink_hz: carrier of the beacons with frequency-division duplex; None: one carrier, time-division duplex.
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
    downlink_hz: float | None = None

    def __post_init__(self) -> None:
        before, after = self.data_symbols
        if after - before not in (0, 1):
            raise ConfigError(
                f"profile {self.name!r} has {before} data symbols before its middle pilot and {after} after it",
                "use two halves; the second may be one longer",
            )

    @property
    def beacon_hz(self) -> float:
        """Carrier of the beacons."""
        return self.carrier_hz if self.downlink_hz is None else self.downlink_hz

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


# One side of DC only: DC offset, LO leaks (which lie at each node's uncorrected CFO) and IQ images fall outside it.
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
        "pluto-cable": replace(_PLUTO, name="pluto-cable"),
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


def capacity(profile: Profile, mode: str) -> int:
    """Count the reals that one burst carries.

    Raises:
        ConfigError: the profile does not permit ``mode``.
    """
    if mode not in profile.modes:
        raise ConfigError(
            f"mode {mode!r} on profile {profile.name!r}, which permits {', '.join(profile.modes)}",
            f"set the mode to {profile.modes[0]!r}, or choose a profile with a shared reference",
        )
    return sum(profile.data_symbols) * len(profile.bins) * (2 if mode == "C" else 1)


def bursts_needed(profile: Profile, mode: str, reals: int) -> int:
    """Count the bursts that carry ``reals`` values; at least one."""
    return max(1, -(-reals // capacity(profile, mode)))


def pack(
    reals: Float32[np.ndarray, " real"], profile: Profile, mode: str, seed: int
) -> Complex64[np.ndarray, "burst symbol bin"]:
    """Spread reals over the resource elements of as few bursts as hold them.

    The zero-padded vector gets shared random signs, then one orthonormal DCT-II over its whole length, then signs
    again: a sparse or peaky payload becomes Gaussian-like, and losing one symbol costs every coordinate a little. The
    second signs matter: without them one outlier is a cosine over the bins, which is a pair of peaks in time. Every
    step is linear and norm-preserving, so sums over nodes stay sums.

    Args:
        reals: payload, any length of at least one. Scale it to variance 1 (R) or 1/2 (C) for elements of mean power 1.
        profile: waveform.
        mode: ``R`` puts one real on I of each element, ``C`` puts two on I and Q.
        seed: shared by all nodes of the round.

    Raises:
        ConfigError: the profile does not permit ``mode``.
    """
    count = bursts_needed(profile, mode, reals.size) * capacity(profile, mode)
    padded = np.zeros(count, np.float32)
    padded[: reals.size] = reals
    before, after = _signs(seed, count)
    mixed = dct(padded * before, norm="ortho") * after
    elements = mixed.view(np.complex64) if mode == "C" else mixed.astype(np.complex64)
    return cast(np.ndarray, elements.reshape(-1, sum(profile.data_symbols), len(profile.bins)))


def unpack(
    grid: Complex64[np.ndarray, "burst symbol bin"], profile: Profile, mode: str, count: int, seed: int
) -> Float32[np.ndarray, " real"]:
    """Undo ``pack``: the first ``count`` reals. R reads I only, so half the noise power stays out.

    Raises:
        ConfigError: the profile does not permit ``mode``, or the grid holds fewer than ``count`` reals.
    """
    held = grid.shape[0] * capacity(profile, mode)
    if count > held:
        raise ConfigError(
            f"{count} reals asked from {grid.shape[0]} bursts, which hold {held} in mode {mode}",
            f"receive {bursts_needed(profile, mode, count)} bursts",
        )
    flat = np.ascontiguousarray(grid, np.complex64).reshape(-1)
    mixed = flat.view(np.float32) if mode == "C" else np.ascontiguousarray(flat.real)
    before, after = _signs(seed, held)
    return cast(np.ndarray, idct(mixed * after, norm="ortho") * before)[:count]


def zadoff_chu(root: int, length: int) -> Complex64[np.ndarray, " length"]:
    """Build a Zadoff-Chu sequence: unit modulus, all cyclic shifts orthogonal (D. C. Chu, IEEE Trans. IT 18, 1972).

    Raises:
        ValueError: ``root`` and ``length`` share a factor, which breaks the orthogonality.
    """
    if gcd(root, length) != 1:
        raise ValueError(f"root {root} and length {length} share the factor {gcd(root, length)}; they must be coprime")
    index = np.arange(length)
    # Integer arithmetic modulo the period keeps the phase exact for long sequences.
    return phasor(-(root * index * (index + length % 2) % (2 * length)) / (2 * length))


def pilot(profile: Profile, node: int, nodes: int) -> Complex64[np.ndarray, " bin"]:
    """Give the verification pilot of one node: a Zadoff-Chu sequence over the bins, cyclically shifted per node.

    Root 1, because a cyclic shift by m of root u is a delay of u*m: only root 1 keeps the nodes' delay windows as far
    apart as their shifts when ``nodes`` does not divide the number of bins. It is also a chirp of low crest factor.

    Raises:
        ConfigError: more nodes than the profile can tell apart, or ``node`` outside ``range(nodes)``.
    """
    if not 0 <= node < nodes <= profile.max_nodes:
        raise ConfigError(
            f"verification shift {node} of {nodes} on profile {profile.name!r}, which has {profile.max_nodes} shifts",
            f"use at most {profile.max_nodes} nodes",
        )
    bins = len(profile.bins)
    return np.roll(zadoff_chu(1, bins), node * (bins // nodes))


def canary(profile: Profile, seed: int, node: int, mode: str) -> Complex64[np.ndarray, " bin"]:
    """Give the values of one node's canary symbol, known to the server.

    ``seed`` is a non-negative integer of the round. Random signs (R) or QPSK (C) rather than Gaussian values: every
    node has exactly mean power 1, so the measured error weighs all nodes alike, and the sum is still near Gaussian.
    """
    draw = np.random.default_rng([seed, 2, node]).integers(0, 2, (2, len(profile.bins))) * 2 - 1
    if mode == "R":
        return cast(np.ndarray, draw[0].astype(np.complex64))
    return cast(np.ndarray, ((draw[0] + 1j * draw[1]) / np.sqrt(2)).astype(np.complex64))


def assemble(
    data: Complex64[np.ndarray, "data bin"], pilot: Complex64[np.ndarray, " bin"], canary: Complex64[np.ndarray, " bin"]
) -> Complex64[np.ndarray, "symbol bin"]:
    """Lay out a burst: V0, first half of the data, M, second half, V1, canary."""
    half = data.shape[0] // 2
    return np.concatenate([pilot[None], data[:half], pilot[None], data[half:], pilot[None], canary[None]])


def data_rows(symbols: int) -> Int64[np.ndarray, " data"]:
    """Give the places of the data among the symbols of a burst."""
    middle = (symbols - 4) // 2 + 1
    return np.concatenate([np.arange(1, middle), np.arange(middle + 1, symbols - 2)])


def split(
    grid: Complex64[np.ndarray, "symbol bin"],
) -> tuple[Complex64[np.ndarray, "3 bin"], Complex64[np.ndarray, "data bin"], Complex64[np.ndarray, " bin"]]:
    """Take a burst apart: verification pilots (V0, M, V1), data, canary."""
    middle = (grid.shape[0] - 4) // 2 + 1
    return grid[[0, middle, -2]], grid[data_rows(grid.shape[0])], grid[-1]


def drive_for_backoff(profile: Profile, backoff_db: float = 9.0) -> float:
    """Give the amplitude of a resource element at which a burst of unit-power elements has rms ``-backoff_db`` dBFS.

    Samples of a full grid have rms ``drive * sqrt(bins/fft)`` under the unitary transform.
    """
    return float(10 ** (-backoff_db / 20) * np.sqrt(profile.fft / len(profile.bins)))


def precode(
    grid: Complex64[np.ndarray, "symbol bin"], gain: Complex64[np.ndarray, " bin"], kind: str, drive: float
) -> Complex64[np.ndarray, "symbol bin"]:
    """Undo the link before it happens.

    Args:
        grid: resource elements of mean power 1.
        gain: link gain per bin, as the server last measured it.
        kind: ``phase`` turns phases only, ``inversion`` equalises amplitudes too, ``none`` leaves the link as it is.
        drive: amplitude of an element on the air (``phase``, ``none``) or at the receiver (``inversion``).

    Raises:
        LinkError: inversion of a link with dead bins.
        ConfigError: an unknown ``kind``.
    """
    if kind not in ("phase", "inversion", "none"):
        raise ConfigError(f"precoder {kind!r} is unknown", "choose phase, inversion or none")
    dead = int(np.count_nonzero(gain == 0))
    if kind == "inversion" and dead:
        raise LinkError(f"{dead} of {gain.size} bins have no link gain to invert", "sound the node again")
    weight = np.ones_like(gain) if kind == "none" else 1 / gain if kind == "inversion" else np.exp(-1j * np.angle(gain))
    return grid * (drive * weight).astype(np.complex64)


def synthesise(
    grid: Complex64[np.ndarray, "symbol bin"], profile: Profile, times: Float64[np.ndarray, " sample"]
) -> Complex64[np.ndarray, " sample"]:
    """Evaluate the CP-OFDM signal of ``grid`` at the instants of a clock; at integers: inverse FFT plus prefix.

    A node whose sample clock runs off by some ppm computes each sample at the true instant of its own clock, so clock
    offset and fractional timing advance are exact and no resampler is needed. Within one symbol the instants leave a
    unit grid by hundredths of a sample at most: the signal and its first two derivatives on that grid, each an inverse
    FFT, give it by Taylor's series to -110 dB at 20 ppm.

    Args:
        grid: resource elements.
        profile: waveform.
        times: instants in nominal samples from the first sample of the first prefix, rising by equal steps close to 1.

    Returns:
        One sample per instant; zero outside ``[0, symbols * symbol_samples)``.
    """
    symbols, length = grid.shape[0], profile.symbol_samples
    samples = np.zeros(times.size, np.complex64)
    bounds = np.searchsorted(times, length * np.arange(symbols + 1))
    counts = np.diff(bounds)
    step = (times[-1] - times[0]) / (times.size - 1) if times.size > 1 else 1.0
    bins = np.asarray(profile.bins)
    inside = times[np.minimum(bounds[:-1], times.size - 1)] - length * np.arange(symbols) - profile.cp
    shift = inside + 0.5 * (counts - 1) * (step - 1.0)  # of the unit grid that is right in the middle of each symbol
    spectrum = np.zeros((3, symbols, profile.fft), np.complex64)
    spectrum[:, :, bins] = grid * phasor(np.outer(shift / profile.fft, bins))
    slope = (2j * np.pi / profile.fft) * bins
    spectrum[1, :, bins] *= slope[:, None]
    spectrum[2, :, bins] *= 0.5 * slope[:, None] ** 2
    wave = ifft(spectrum, norm="ortho")
    for number in np.flatnonzero(counts):
        place = np.arange(counts[number])
        off = ((place - 0.5 * (counts[number] - 1)) * (step - 1.0)).astype(np.float32)
        level, first, second = wave[:, number, place % profile.fft]
        samples[bounds[number] : bounds[number + 1]] = level + off * (first + off * second)
    return samples


def demodulate(
    samples: Complex64[np.ndarray, " sample"], profile: Profile, symbols: int, start: int = 0
) -> tuple[Complex64[np.ndarray, "symbol bin"], Complex64[np.ndarray, "symbol null"]]:
    """Turn samples into resource elements and null bins by the unitary FFT.

    The window opens half a prefix early and the phase ramp of that is taken out: links up to half a prefix early or
    late keep their orthogonality, and a burst that sits exactly at ``start`` has no phase slope.

    Args:
        samples: capture.
        profile: waveform.
        symbols: symbols to take.
        start: position of the first prefix sample in ``samples``.

    Raises:
        SamplesLost: the capture does not hold all symbols.
    """
    length = profile.symbol_samples
    end = start + symbols * length
    if start < 0 or samples.size < end:
        raise SamplesLost(
            f"{symbols} symbols take samples {start} to {end}, the capture holds 0 to {samples.size}",
            "capture a longer window around the burst",
        )
    early = profile.cp // 2
    opening = profile.cp - early
    windows = samples[start:end].reshape(symbols, length)[:, opening : opening + profile.fft]
    spectrum = fft(windows, axis=1, norm="ortho")
    active, nulls = np.asarray(profile.bins), np.asarray(profile.nulls)
    return spectrum[:, active] * phasor(active * (early / profile.fft)), spectrum[:, nulls]


def clip(samples: Complex64[np.ndarray, " sample"], limit: float = 1.0) -> tuple[Complex64[np.ndarray, " sample"], int]:
    """Limit magnitudes to ``limit``, keep phases, and count the samples that were cut."""
    magnitude = np.abs(samples)
    over = magnitude > limit
    count = int(np.count_nonzero(over))
    if not count:
        return samples, 0
    limited = samples.copy()
    limited[over] *= (limit / magnitude[over]).astype(np.float32)
    return limited, count


def _signs(seed: int, count: int) -> Float32[np.ndarray, "2 real"]:
    # The second word keeps this stream apart from the canary's (2) and the checksums' (3) of the same seed.
    return np.random.default_rng([seed, 1]).integers(0, 2, (2, count), np.int8).astype(np.float32) * 2 - 1


def phasor(cycles: np.ndarray) -> np.ndarray:
    """Give exp(2 pi i cycles) in complex64; whole turns are removed in double precision first."""
    angle = ((cycles - np.rint(cycles)) * (2 * np.pi)).astype(np.float32)
    out = np.empty(angle.shape, np.complex64)
    np.cos(angle, out=out.real)
    np.sin(angle, out=out.imag)
    return out
