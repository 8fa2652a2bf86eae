"""The rungs that turn samples into offset, timing and phase; knows one beacon's training fields, nothing of slots.

Each rung resolves the ambiguity of the next: the comb of STF tones gives the offset within half a tone spacing, LTF to
LTF refines it, and pair to pair over 1 ms refines it again.
"""

from __future__ import annotations

import cmath
from dataclasses import dataclass

import numpy as np
import scipy.fft
from jaxtyping import Complex64, Complex128, Float64, UInt8

from radio.ofdm import Profile
from radio.preamble import HEADER_BITS, RMS, Waveform

_NEWTON_STEPS = 2


def samples_ratio(profile: Profile, cfo_hz: float, tuned_offset_hz: float) -> float:
    """Receiver samples per sender's sample: carrier and sample clock come from one crystal."""
    return 1.0 - (cfo_hz + tuned_offset_hz) / profile.beacon_hz


def _turned(
    samples: Complex64[np.ndarray, " sample"], first: int, count: int, profile: Profile, cfo_hz: float, zero: float
) -> tuple[Complex128[np.ndarray, " n"], Complex128[np.ndarray, " n"]]:
    """Take ``count`` samples with the offset removed (phase zero at position ``zero``), and the rotation used."""
    n = np.arange(first, first + count) - zero
    rotation = np.exp((-2j * np.pi * cfo_hz / profile.rate_hz) * n)
    return samples[first : first + count] * rotation, rotation


def stf_rung(
    samples: Complex64[np.ndarray, " sample"], profile: Profile, wave: Waveform, candidate: int
) -> float | None:
    """Estimate the offset from the comb of STF tones: the maximum-likelihood search over a grid, tones added in power.

    A DC offset or an LO leak near it would need an offset beyond half a tone spacing to look like one of the tones.

    Args:
        samples: capture.
        profile: waveform.
        wave: its beacon.
        candidate: where the STF begins, within two periods.

    Returns:
        Offset in Hz, well within 1/(2*ltf) cycles per sample, or None at the capture's end.
    """
    period = profile.stf_period
    length = (profile.stf_repeats - 4) * period
    begin = candidate + 2 * period
    if begin < 0 or begin + length > samples.size:
        return None
    fine = 4 * length
    power = np.abs(scipy.fft.fft(samples[begin : begin + length], fine)) ** 2
    reach = int(1.1 * fine / (2 * period)) + 1
    grid = np.arange(-reach, reach + 1)
    comb = np.zeros(grid.size)
    for harmonic in wave.harmonics:
        comb += power[(grid + harmonic * (fine // period)) % fine]
    top = int(np.argmax(comb[1:-1])) + 1
    return float((grid[top] + _vertex(comb[top - 1 : top + 2])) * profile.rate_hz / fine)


def ltf_rung(
    samples: Complex64[np.ndarray, " sample"],
    profile: Profile,
    wave: Waveform,
    candidate: int,
    cfo_hz: float,
    floor: float,
) -> tuple[int, float] | None:
    """Find the first LTF to a sample, and refine the offset from both pairs at a lag of one LTF.

    Args:
        samples: capture.
        profile: waveform.
        wave: its beacon.
        candidate: where the STF begins, within 3/8 of an LTF.
        cfo_hz: offset from the STF.
        floor: least share of the energy that the pair must explain.

    Returns:
        Position of the first LTF and offset in Hz, or None when nothing correlates or the beacon is cut off.
    """
    ltf = profile.ltf
    margin = 3 * ltf // 8  # below half an LTF, or a neighbouring repeat could win
    begin = candidate + wave.stf.size - margin
    if begin < 0 or begin + 2 * (ltf + margin) > samples.size:
        return None
    sequence = scipy.fft.ifft(wave.spectrum)
    stretch, rotation = _turned(samples, begin, 2 * ltf + 2 * margin, profile, cfo_hz, float(begin))
    stretch -= np.mean(stretch * rotation.conj()) * rotation  # the DC offset: the LTF has nothing near it
    size = scipy.fft.next_fast_len(stretch.size)
    matched = scipy.fft.ifft(scipy.fft.fft(stretch, size) * scipy.fft.fft(sequence, size).conj())
    score = np.abs(matched[: 2 * margin + 1]) ** 2 + np.abs(matched[ltf : ltf + 2 * margin + 1]) ** 2
    top = int(np.argmax(score))
    energy = np.sum(np.abs(stretch[top : top + 2 * ltf]) ** 2) * ltf * RMS**2
    if score[top] <= floor * energy:
        return None
    first = begin + top
    if first + profile.second_ltf + 2 * ltf > samples.size:
        return None
    second, _ = _turned(samples, first + profile.second_ltf, 2 * ltf, profile, cfo_hz, float(begin))
    late = second.reshape(2, ltf) @ sequence.conj()
    lag = matched[top + ltf] * np.conj(matched[top]) + late[1] * np.conj(late[0])
    return first, cfo_hz + float(np.angle(lag)) * profile.rate_hz / (2 * np.pi * ltf)


@dataclass(frozen=True)
class Fit:
    """What two LTF pairs tell; positions count from ``samples[0]``.

    Attributes:
        place: position of the first LTF, fractional, exact at the middle of the pair.
        ratio: receiver samples per sender's sample.
        cfo_hz: carrier offset; ``cfo_sigma_hz`` its standard deviation.
        reference: position of the middle of all LTF energy.
        gain: complex amplitude at ``reference``, relative to ``beacon``.
        offset: the receiver's DC offset.
        noise: noise variance per sample.
        phase_sigma_rad: standard deviation of the gain's phase.
        place_sigma: standard deviation of ``place``.
    """

    place: float
    ratio: float
    cfo_hz: float
    cfo_sigma_hz: float
    reference: float
    gain: complex
    offset: complex
    noise: float
    phase_sigma_rad: float
    place_sigma: float


@dataclass(frozen=True)
class _Windows:
    values: Complex128[np.ndarray, "pair n"]  # offset removed
    rotation: Complex128[np.ndarray, "pair n"]  # what removed it
    delays: Float64[np.ndarray, " pair"]  # fraction of a sample between window and signal


@dataclass(frozen=True)
class _Pairs:
    gains: list[complex]
    drifts: list[complex]  # gain times the delay still missing
    offset: complex
    noise: float
    received: Float64[np.ndarray, " pair"]
    energy: Float64[np.ndarray, " pair"]
    bend: Float64[np.ndarray, " pair"]


def fit_pairs(
    samples: Complex64[np.ndarray, " sample"],
    profile: Profile,
    wave: Waveform,
    first: int,
    cfo_hz: float,
    tuned_offset_hz: float,
    floor: float,
) -> Fit | None:
    """Measure gain, delay and offset from both LTF pairs by least squares.

    Inside a pair the signal is periodic, whatever the channel and the fraction of a sample, so the outer sixteenths
    are left out (0.3 dB) and the delayed reference is exact in the rest. A correlation comes first, which the least
    squares refine. With white noise this is the maximum-likelihood estimate (Kay, "Fundamentals of
    Statistical Signal Processing: Estimation Theory", 1993, sections 3.11 and 8.9).

    Args:
        samples: capture.
        profile: waveform.
        wave: its beacon.
        first: position of the first LTF, within ltf/16 samples.
        cfo_hz: offset, within half of 1/(pair distance): 500 Hz, better 200.
        tuned_offset_hz: receive LO setting minus the sender's.
        floor: least share of each pair's energy that the fit must explain.

    Returns:
        The fit, or None when the pairs reach beyond the capture or explain too little.
    """
    ltf = profile.ltf
    centre = ltf - 0.5  # a delay measured over a pair holds at the pair's middle
    ratio = samples_ratio(profile, cfo_hz, tuned_offset_hz)
    step = profile.second_ltf * ratio
    windows = _windows(samples, profile, float(first), step, cfo_hz)
    if windows is None:
        return None
    slip, turned = _slip(windows, wave, ltf // 16)
    place = first + slip
    cfo_hz += float(np.angle(turned)) * profile.rate_hz / (2 * np.pi * step)
    windows = _windows(samples, profile, place, step, cfo_hz)
    if windows is None:
        return None
    pairs = _solve(windows, wave)
    gains = pairs.gains
    power = abs(gains[0]) ** 2 + abs(gains[1]) ** 2
    explained = np.abs(gains) ** 2 * pairs.energy
    if np.any(explained <= floor * pairs.received):
        return None
    reference = place + centre + step / 2  # where the windows turned the phase to zero
    moved = sum((drift * gain.conjugate()).real for drift, gain in zip(pairs.drifts, gains, strict=True)) / power
    turned = gains[1] * gains[0].conjugate()
    cfo_hz += cmath.phase(turned) * profile.rate_hz / (2 * np.pi * step)
    noise = max(pairs.noise, 1e-12 * power)
    energy = power / 2 * float(pairs.energy.sum())
    bend = power / 2 * float(pairs.bend.sum())
    half = cmath.exp(0.5j * cmath.phase(turned))
    gain = (gains[0] * half + gains[1] / half) / 2 * cmath.exp(2j * np.pi * cfo_hz * moved / profile.rate_hz)
    return Fit(
        place=place + moved,
        ratio=ratio,
        cfo_hz=cfo_hz,
        cfo_sigma_hz=float(np.sqrt(2 * noise / energy)) * profile.rate_hz / (2 * np.pi * step),
        reference=reference + moved,
        gain=gain,
        offset=pairs.offset,
        noise=noise,
        phase_sigma_rad=float(np.sqrt(noise / (2 * energy))),
        place_sigma=float(np.sqrt(noise / (2 * bend))),
    )


def read_header(
    samples: Complex64[np.ndarray, " sample"], profile: Profile, wave: Waveform, fit: Fit
) -> UInt8[np.ndarray, " bit"]:
    """Read the header's bits, each from the turn between two spread symbols.

    Args:
        samples: capture.
        profile: waveform.
        wave: its beacon.
        fit: where the beacon lies.

    Returns:
        48 hard bits, not yet checked.
    """
    begin = round(fit.place) + 2 * profile.ltf
    values, rotation = _turned(samples, begin, (HEADER_BITS + 1) * wave.bit_samples, profile, fit.cfo_hz, fit.reference)
    delayed = scipy.fft.ifft(wave.spectrum * np.exp(-wave.slope * (fit.place - round(fit.place))))
    spread = np.resize(delayed, values.size)  # the header begins a whole number of LTFs after the pair
    symbols = ((values - fit.offset * rotation) * spread.conj()).reshape(-1, wave.bit_samples).sum(axis=1)
    turns = np.real(symbols[1:] * symbols[:-1].conj())
    return np.asarray(turns < 0, dtype=np.uint8)


def _windows(
    samples: Complex64[np.ndarray, " sample"], profile: Profile, place: float, step: float, cfo_hz: float
) -> _Windows | None:
    """Cut the inner part of both pairs and remove the offset."""
    guard, count = profile.ltf // 16, 2 * (profile.ltf - profile.ltf // 16)
    first, second = round(place), round(place + step)
    if first < 0 or second + 2 * profile.ltf > samples.size:
        return None
    n = np.arange(guard, guard + count) + np.array([[first], [second]])
    zero = place + profile.ltf - 0.5 + step / 2
    rotation = np.exp((-2j * np.pi * cfo_hz / profile.rate_hz) * (n - zero))
    return _Windows(samples[n] * rotation, rotation, np.array([place - first, place + step - second]))


def _slip(windows: _Windows, wave: Waveform, guard: int) -> tuple[float, complex]:
    """Find the delay still missing (to a few thousandths) and the turn between the pairs, from folded correlations."""
    ltf = wave.spectrum.size
    whole = np.zeros((2, 2 * ltf), dtype=np.complex128)
    dc = np.mean(windows.values * windows.rotation.conj(), axis=1, keepdims=True)
    whole[:, guard:-guard] = windows.values - dc * windows.rotation
    cross = scipy.fft.fft(whole[:, :ltf] + whole[:, ltf:]) * wave.matched
    lags = scipy.fft.ifft(cross)
    near = np.concatenate([lags[:, -guard - 1 :], lags[:, : guard + 2]], axis=1)
    score = (near.real**2 + near.imag**2).sum(axis=0)
    top = int(np.argmax(score[1:-1])) + 1
    slip = top - guard - 1 + _vertex(score[top - 1 : top + 2])
    # Newton steps on the correlation's power. A parabola alone is off by up to a tenth of a sample, and with multipath
    # the phase depends on where the delay is taken: it must be the summit, whatever the fraction of a sample.
    for _ in range(_NEWTON_STEPS):
        value, slope, bend = ((cross * np.exp(wave.slope * slip)) @ wave.powers).T
        climb = float(np.vdot(value, slope).real)
        curve = float(np.vdot(slope, slope).real + np.vdot(value, bend).real)
        if curve >= 0:
            break
        slip -= min(max(climb / curve, -0.5), 0.5)
    return slip, complex(value[1] * value[0].conj())


def _vertex(three: Float64[np.ndarray, " 3"]) -> float:
    bend = three[0] - 2 * three[1] + three[2]
    return float(0.5 * (three[0] - three[2]) / bend) if bend < 0 else 0.0


def _solve(windows: _Windows, wave: Waveform) -> _Pairs:
    """Solve gain, missing delay and DC offset of each pair together; noise from the difference of the repeats."""
    ltf, count = wave.spectrum.size, windows.values.shape[1]
    guard = ltf - count // 2
    spectra = wave.spectrum * np.exp(-wave.slope * windows.delays[:, None])
    # The delayed sequence and its derivative with respect to delay.
    sequences = scipy.fft.ifft(np.stack([spectra, -wave.slope * spectra], axis=1))
    columns = np.empty((2, 3, count), dtype=np.complex128)
    columns[:, :2, : ltf - guard] = sequences[:, :, guard:]
    columns[:, :2, ltf - guard :] = sequences[:, :, : ltf - guard]
    columns[:, 2] = windows.rotation
    adjoint = columns.conj()
    gram = adjoint @ columns.transpose(0, 2, 1)
    solved = np.linalg.solve(gram, adjoint @ windows.values[:, :, None])[:, :, 0]
    clean = windows.values - solved[:, 2:] * windows.rotation
    # Repeats differ by noise alone, whatever the channel: multipath is never taken for noise.
    repeat = clean[:, ltf:] - clean[:, :-ltf]
    return _Pairs(
        gains=[complex(gain) for gain in solved[:, 0]],
        drifts=[complex(drift) for drift in solved[:, 1]],
        offset=complex(solved[:, 2].mean()),
        noise=float(np.vdot(repeat, repeat).real) / (2 * repeat.size),
        received=np.sum(clean.real**2 + clean.imag**2, axis=1),
        energy=gram[:, 0, 0].real,
        bend=gram[:, 1, 1].real,
    )
