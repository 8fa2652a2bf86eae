"""The samples of a beacon and the code of its header; knows what is sent, nothing of receiving.

A beacon is a short training field (STF), a pair of long training sequences (LTF), a header, and a second LTF pair::

    | STF, period p, 20 repeats | LTF LTF | header: 32-bit slot + CRC-16, DBPSK | LTF LTF |
    0                           |<------------- second_ltf (1 ms) ------------->|

Everything is shaped so that nothing lies at DC, where the receiver's offset and all LO leaks are, nor near the band
edges, where filters turn. The STF has odd harmonics only (half a period later it is its own negative), which lets the
search cancel DC. The header spreads each DBPSK symbol over a stretch of the LTF repeated on and on.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from jaxtyping import Complex64, Complex128, Float64, UInt8

from radio.ofdm import Profile

RMS = 0.45  # of full scale: samples stay below 0.7, the signal between them below 0.8
BAND = 0.4  # of the sample rate, either side of DC
HEADER_BITS = 48
_SHAPING_PASSES = 300  # the envelope's crest falls from 5 to 3 dB


@dataclass(frozen=True)
class Waveform:
    """The pieces of a profile's beacon, built once.

    Attributes:
        stf: the whole short training field.
        spectrum: FFT (not normalised) of one LTF.
        slope: ``j*2*pi*k/ltf``, the derivative along time in the frequency domain.
        powers: its powers 0, 1 and 2.
        matched: conjugate of ``spectrum``.
        harmonics: signed multiples of 1/stf_period that carry the STF.
        middle: beacon sample at the middle of all LTF energy.
        bit_samples: samples of one header symbol.
    """

    stf: Complex128[np.ndarray, " stf"]
    spectrum: Complex128[np.ndarray, " ltf"]
    slope: Complex128[np.ndarray, " ltf"]
    powers: Complex128[np.ndarray, "ltf 3"]
    matched: Complex128[np.ndarray, " ltf"]
    harmonics: tuple[int, ...]
    middle: float
    bit_samples: int


def beacon(profile: Profile, slot: int) -> Complex64[np.ndarray, " sample"]:
    """Build the beacon that opens a slot.

    Args:
        profile: waveform.
        slot: slot number, 0 to 2**32 - 1.

    Returns:
        ``profile.beacon_samples`` samples, rms 0.45 where on, magnitude below 0.7 of full scale.

    Raises:
        ValueError: the slot number does not fit 32 bits.
    """
    wave = waveform(profile)
    ltf = scipy.fft.ifft(wave.spectrum)
    samples = np.zeros(profile.beacon_samples, dtype=np.complex128)
    samples[: wave.stf.size] = wave.stf
    first = wave.stf.size
    signs = np.repeat(_signs(header_bits(slot)), wave.bit_samples)
    spread = np.concatenate([np.ones(2 * profile.ltf), signs])
    samples[first : first + spread.size] = spread * np.resize(ltf, spread.size)
    samples[first + profile.second_ltf :] = np.tile(ltf, 2)
    return samples.astype(np.complex64)


@lru_cache(maxsize=8)
def waveform(profile: Profile) -> Waveform:
    """Build the pieces of a profile's beacon (cached)."""
    period, ltf = profile.stf_period, profile.ltf
    odd = tuple(range(1, int(BAND * period) + 1, 2))
    harmonics = tuple(-k for k in reversed(odd)) + odd
    stf = np.zeros(period, dtype=np.complex128)
    count = len(harmonics)
    # Quadratic phase keeps the crest of equal tones low (Schroeder, IEEE Trans. Inf. Theory 16(1), 1970).
    stf[list(harmonics)] = np.exp(-1j * np.pi * np.arange(count) ** 2 / count)
    stf = np.tile(scipy.fft.ifft(stf), profile.stf_repeats)
    spectrum = _ltf_spectrum(profile)
    spectrum *= RMS / np.sqrt(np.mean(np.abs(scipy.fft.ifft(spectrum)) ** 2))
    slope = 2j * np.pi * scipy.fft.fftfreq(ltf)
    return Waveform(
        stf=stf * (RMS / np.sqrt(np.mean(np.abs(stf) ** 2))),
        spectrum=spectrum,
        slope=slope,
        powers=slope[:, None] ** np.arange(3),
        matched=spectrum.conj(),
        harmonics=harmonics,
        middle=stf.size + ltf - 0.5 + profile.second_ltf / 2,
        bit_samples=(profile.second_ltf - 2 * ltf) // (HEADER_BITS + 1),
    )


def _ltf_spectrum(profile: Profile) -> Complex128[np.ndarray, " ltf"]:
    """Shape a Zadoff-Chu spectrum to the band with a hole at DC, then iron its envelope.

    Alternating projections between unit envelope (four times oversampled) and unit magnitude on the active bins,
    started from the Zadoff-Chu phases (Gerchberg & Saxton, Optik 35, 1972).
    """
    ltf = profile.ltf
    edge, hole = int(BAND * ltf), ltf // (2 * profile.stf_period)
    place = np.arange(-edge, edge + 1)
    active = np.abs(place) >= hole
    turns = profile.ltf_root * np.arange(place.size) * np.arange(1, place.size + 1) / (2 * place.size)
    bins = place[active]
    values = np.exp(-2j * np.pi * turns)[active]
    for _ in range(_SHAPING_PASSES):
        fine = np.zeros(4 * ltf, dtype=np.complex128)
        fine[bins] = values
        envelope = scipy.fft.ifft(fine)
        values = scipy.fft.fft(envelope / np.abs(envelope))[bins]
        values /= np.abs(values)
    spectrum = np.zeros(ltf, dtype=np.complex128)
    spectrum[bins] = values
    return spectrum


@lru_cache(maxsize=64)
def header_bits(slot: int) -> UInt8[np.ndarray, " bit"]:
    """Give the 48 header bits, first sent first: slot number, then CRC-16 (ITU-T V.41 polynomial, preset 0xFFFF)."""
    if not 0 <= slot < 1 << 32:
        raise ValueError(f"slot {slot} does not fit 32 bits: number slots from 0 to {(1 << 32) - 1}")
    message = slot.to_bytes(4, "big")
    word = message + crc_hqx(message, 0xFFFF).to_bytes(2, "big")
    return np.unpackbits(np.frombuffer(word, dtype=np.uint8))


def checked_slot(bits: UInt8[np.ndarray, " bit"]) -> int | None:
    """Give the slot number of 48 header bits, or None when the CRC does not fit."""
    word = np.packbits(bits).tobytes()
    return int.from_bytes(word[:4], "big") if crc_hqx(word[:4], 0xFFFF) == int.from_bytes(word[4:], "big") else None


def _signs(bits: UInt8[np.ndarray, " bit"]) -> Float64[np.ndarray, " symbol"]:
    return np.concatenate([[1.0], np.cumprod(1.0 - 2.0 * bits)])
