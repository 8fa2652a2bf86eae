"""The least error that any unbiased estimator can have, and how near the estimators in use come; knows no radio.

Every bound here is the Cramer-Rao bound of a known signal with unknown parameters in white noise of variance N: the
covariance of the parameters is at least ``N/2 inv(Re(J^H J))``, J the derivatives of the signal (S. M. Kay,
"Fundamentals of Statistical Signal Processing: Estimation Theory", 1993, section 15.7).
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from jaxtyping import Complex128, Float64

from radio.beacon import beacon, track
from radio.ofdm import Profile, pilot
from radio.preamble import RMS, waveform
from radio.sync import estimate_link, sounding
from radio.verify import verify

#: Nodes whose verification pilots arrive on top of each other.
NODES = 8
_PAD = 64  # samples of silence around a beacon
_OFF_HZ, _OFF_SAMPLES = 200.0, 3.0  # how far a tracked beacon may be from where it is expected


def bound(derivatives: Complex128[np.ndarray, "element parameter"], noise: float) -> Float64[np.ndarray, " parameter"]:
    """Give the least standard deviations of parameters.

    Args:
        derivatives: of the signal with respect to each real parameter.
        noise: variance per complex element.
    """
    inverse = np.linalg.inv(np.real(np.conj(derivatives.T) @ derivatives))
    return np.asarray(np.sqrt(noise / 2 * np.diag(inverse)))


def beacon_bound(profile: Profile, snr_db: float, whole: bool = False) -> tuple[float, float]:
    """Bound the errors of a beacon's carrier offset in Hz and of its place in samples.

    Unknown besides these: gain, phase, and the receiver's DC offset.

    Args:
        profile: waveform.
        snr_db: beacon power over noise power per sample.
        whole: from all samples, the short training field and a known header included; otherwise from both pairs of long
            training sequences alone.
    """
    sent = np.pad(beacon(profile, 1).astype(np.complex128), _PAD)
    turns = scipy.fft.fftfreq(sent.size)
    late = -scipy.fft.ifft(2j * np.pi * turns * scipy.fft.fft(sent))
    index = np.arange(sent.size)
    if not whole:
        wave = waveform(profile)
        first = _PAD + wave.stf.size
        index = (first + np.arange(2 * profile.ltf) + np.array([[0], [profile.second_ltf]])).ravel()
        # Inside the pairs the sequence repeats, so its derivative knows nothing of what lies outside.
        late = np.resize(-scipy.fft.ifft(wave.slope * wave.spectrum), index.size)
        sent = sent[index]
    columns = [sent, 1j * sent, late, 2j * np.pi * (index - index.mean()) / profile.rate_hz * sent]
    dc = np.ones(sent.size, np.complex128)
    errors = bound(np.stack([*columns, dc, 1j * dc], axis=1), RMS**2 * 10 ** (-snr_db / 10))
    return float(errors[3]), float(errors[2])


def sounding_bound(profile: Profile, snr_db: float) -> float:
    """Bound the error of the delay in samples that one sounding of a link with one path tells."""
    bins = np.asarray(profile.bins)
    rate = -2j * np.pi / profile.fft * (bins - bins.mean())
    one = np.ones(bins.size, np.complex128)
    columns = np.stack([one, 1j * one, rate], axis=1)
    return float(bound(columns, 10 ** (-snr_db / 10) / len(sounding(profile)))[2])


def pilot_bound(profile: Profile, snr_db: float, pilots: int = 3) -> float:
    """Bound the error of the delay in samples that the pilots of a burst tell of each of ``NODES`` nodes at once.

    The gain of every node is free on every pilot, its delay is common to all; the worst node counts.
    """
    bins = np.asarray(profile.bins)
    rate = -2j * np.pi / profile.fft * (bins - bins.mean())
    shapes = np.stack([pilot(profile, node, NODES) for node in range(NODES)]).astype(np.complex128)
    columns = np.zeros((pilots, bins.size, (2 * pilots + 1) * NODES), np.complex128)
    for node, shape in enumerate(shapes):
        for place in range(pilots):
            gain = 2 * (node * pilots + place)
            columns[place, :, gain], columns[place, :, gain + 1] = shape, 1j * shape
            columns[place, :, 2 * pilots * NODES + node] = rate * shape
    errors = bound(columns.reshape(pilots * bins.size, -1), 10 ** (-snr_db / 10))
    return float(errors[2 * pilots * NODES :].max())


def errors_beacon(
    profile: Profile, snr_db: float, trials: int, rng: np.random.Generator
) -> Float64[np.ndarray, "trial 2"]:
    """Measure the errors of ``radio.beacon.track``: carrier offset in Hz, place in samples."""
    errors = np.empty((trials, 2))
    sent = scipy.fft.fft(np.pad(beacon(profile, 1).astype(np.complex128), _PAD))
    turns = scipy.fft.fftfreq(sent.size)
    n = np.arange(sent.size)
    level = RMS * 10 ** (-snr_db / 20) / np.sqrt(2)
    for trial in range(trials):
        late, cfo_hz = rng.uniform(-0.5, 0.5), rng.uniform(-_OFF_HZ, _OFF_HZ)
        heard = scipy.fft.ifft(sent * np.exp(-2j * np.pi * turns * late))
        heard *= np.exp(2j * np.pi * (cfo_hz * n / profile.rate_hz + rng.random()))
        heard += level * (rng.standard_normal(n.size) + 1j * rng.standard_normal(n.size))
        guess = late + rng.uniform(-_OFF_SAMPLES, _OFF_SAMPLES)
        # Both sample clocks run alike here, as an expected offset of zero says.
        fix = track(heard.astype(np.complex64), profile, -_PAD, guess, 0.0, 1)
        errors[trial] = (np.nan, np.nan) if fix is None else (fix.cfo_hz - cfo_hz, fix.index - late)
    return errors


def errors_sounding(
    profile: Profile, snr_db: float, trials: int, rng: np.random.Generator
) -> Float64[np.ndarray, " trial"]:
    """Measure the error in samples of the delay that ``radio.sync.estimate_link`` tells of a link with one path."""
    pilots, bins, noise = sounding(profile), np.asarray(profile.bins), 10 ** (-snr_db / 10)
    errors = np.empty(trials)
    for trial in range(trials):
        late = rng.uniform(-profile.cp / 4, profile.cp / 4)
        gain = np.exp(2j * np.pi * (rng.random() - bins * late / profile.fft))
        link = estimate_link(_noisy(gain * pilots, noise, rng), pilots, noise, profile)
        errors[trial] = link.delay_samples - late
    return errors


def errors_pilot(
    profile: Profile, snr_db: float, trials: int, rng: np.random.Generator, pilots: int = 3
) -> Float64[np.ndarray, " trial"]:
    """Measure the errors in samples of the delays that ``radio.verify.verify`` tells of ``NODES`` nodes at once."""
    bins, noise = np.asarray(profile.bins), 10 ** (-snr_db / 10)
    shapes = np.stack([pilot(profile, node, NODES) for node in range(NODES)])
    errors = np.empty((-(-trials // NODES), NODES))
    for row in errors:
        late = rng.uniform(-0.1, 0.1, (NODES, 1))
        turn = np.exp(2j * np.pi * (rng.random((pilots, NODES, 1)) - (bins - bins.mean()) * late / profile.fft))
        grid = _noisy((turn * shapes).sum(axis=1), noise, rng)
        row[:] = verify(grid[None], tuple(range(NODES)), NODES, noise, profile).slope_samples - late[:, 0]
    return errors.ravel()


def _noisy(grid: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    draw = rng.standard_normal(grid.shape) + 1j * rng.standard_normal(grid.shape)
    return np.asarray(grid + np.sqrt(noise / 2) * draw, np.complex64)
