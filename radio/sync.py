"""The link estimate: pilots of a sounding to a smooth gain per bin with its delay and its own error; knows no radio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Complex64, Float64
from scipy.fft import ifft

from radio.errors import LinkError
from radio.ofdm import Profile, zadoff_chu

SPREAD_SAMPLES = (
    0.05,
    0.3,
    1.0,
)  # candidate decays of the delay profile: clean line of sight to echoes of a few samples
_ROOTS = (1, 5)  # two different sequences: what leaks between bins does not add up over the two symbols
_FLOOR = 1e-10  # noise below -100 dB of the signal is rounding, not noise


@dataclass(frozen=True)
class Link:
    """One direction between two radios, as measured.

    Attributes:
        gain: smoothed complex gain per active bin.
        delay_samples: delay of the strongest path after the nominal start (negative: early).
        snr_db: mean signal to noise ratio per resource element.
        noise: noise variance per resource element.
        sigma_gain: expected rms error of ``gain`` relative to the rms gain.
    """

    gain: Complex64[np.ndarray, " bin"]
    delay_samples: float
    snr_db: float
    noise: float
    sigma_gain: float


def sounding(profile: Profile) -> Complex64[np.ndarray, "2 bin"]:
    """Give the two known unit-modulus pilot symbols of a sounding."""
    return np.stack([zadoff_chu(root, len(profile.bins)) for root in _ROOTS])


def noise_of(nulls: Complex64[np.ndarray, "symbol null"]) -> float:
    """Estimate the noise variance per resource element from null bins.

    The median of an exponential variable is ``ln 2`` times its mean; it ignores a tone or an image in a minority of the
    bins. The relative error is ``1.44 / sqrt(elements)``.
    """
    return float(np.median(nulls.real**2 + nulls.imag**2) / np.log(2))


def estimate_link(
    grid: Complex64[np.ndarray, "symbol bin"],
    pilots: Complex64[np.ndarray, "symbol bin"],
    noise: float,
    profile: Profile,
    method: Literal["lmmse", "ls"] = "lmmse",
) -> Link:
    """Estimate the gain of a link from received pilots.

    ``ls`` averages the raw per-bin estimates. ``lmmse`` (O. Edfors et al., "OFDM channel estimation by singular value
    decomposition", IEEE Trans. Commun. 46(7), 1998) weighs them with a delay-domain prior: a two-sided exponential
    power profile around the measured delay, two-sided because the strongest path need not be the first. Its decay is
    the candidate under which the measured pilots are most likely: a clean link is smoothed hard and echoes survive.

    Args:
        grid: received pilot symbols.
        pilots: what was sent, unit modulus.
        noise: noise variance per resource element.
        profile: waveform.
        method: estimator.

    Raises:
        LinkError: nothing was received at all.
    """
    raw = np.mean(np.conj(pilots) * grid, axis=0)
    received = float(np.mean(raw.real**2 + raw.imag**2))
    if received == 0:
        raise LinkError("the sounding window holds only zeros", "check that the node transmits and the receiver is on")
    noise = max(noise, _FLOOR * received)
    error = noise / grid.shape[0]
    power = max(received - error, 0.1 * error)
    delay = _delay(raw, profile)
    gain, variance = raw, error
    if method == "lmmse":
        bins = np.asarray(profile.bins)
        ramp = np.exp((-2j * np.pi * delay / profile.fft) * bins).astype(np.complex64)
        aligned = raw * np.conj(ramp)
        fits = [_shrink(aligned, power, error, *_basis(profile, spread)) for spread in SPREAD_SAMPLES]
        _, smooth, variance = max(fits, key=lambda fit: fit[0])
        gain = smooth * ramp
    return Link(
        gain=gain.astype(np.complex64),
        delay_samples=delay,
        snr_db=float(10 * np.log10(power / noise)),
        noise=noise,
        sigma_gain=float(np.sqrt(variance / power)),
    )


def merge_links(links: Sequence[Link]) -> Link:
    """Average estimates of one link whose phases the caller has aligned, each weighed by its precision.

    Raises:
        LinkError: there is nothing to average.
    """
    if not links:
        raise LinkError("no link estimate to merge", "sound the node first")
    precision = np.array([1 / link.sigma_gain**2 for link in links])
    weights = precision / precision.sum()
    return Link(
        gain=np.sum([w * link.gain for w, link in zip(weights, links, strict=True)], axis=0).astype(np.complex64),
        delay_samples=float(np.dot(weights, [link.delay_samples for link in links])),
        snr_db=float(10 * np.log10(np.dot(weights, [10 ** (link.snr_db / 10) for link in links]))),
        noise=float(np.dot(weights, [link.noise for link in links])),
        sigma_gain=float(precision.sum() ** -0.5),
    )


def _delay(raw: Complex64[np.ndarray, " bin"], profile: Profile) -> float:
    """Find the delay of the strongest path within half a prefix: the maximum of ``|sum_k h_k exp(2 pi i k t / N)|``.

    The peak of an eightfold zero-padded transform, then Newton steps on its squared magnitude; for one path in white
    noise this is the maximum-likelihood estimate.
    """
    fine, reach = 8, profile.cp // 2
    bins = np.asarray(profile.bins)
    spectrum = np.zeros(fine * profile.fft, np.complex64)
    spectrum[bins] = raw
    response = np.abs(ifft(spectrum))
    grid = np.arange(-reach * fine, reach * fine + 1)
    delay = float(grid[np.argmax(response[grid])]) / fine
    # Bins relative to their centre keep the derivatives well scaled; a common rotation does not move the magnitude.
    rate = 2 * np.pi / profile.fft * (bins - bins.mean())
    for _ in range(3):
        terms = raw * np.exp(1j * rate * delay)
        total, first, second = terms.sum(), (1j * rate * terms).sum(), (-(rate**2) * terms).sum()
        slope = 2 * np.real(np.conj(total) * first)
        bend = 2 * (np.abs(first) ** 2 + np.real(np.conj(total) * second))
        delay += float(np.clip(-slope / bend, -0.5 / fine, 0.5 / fine)) if bend < 0 else 0.0
    return float(np.clip(delay, -reach, reach))


@lru_cache(maxsize=16)
def _basis(
    profile: Profile, spread_samples: float
) -> tuple[Float64[np.ndarray, "bin rank"], Float64[np.ndarray, " rank"]]:
    """Give eigenvectors and eigenvalues of the gain's correlation over bins for a two-sided exponential delay profile.

    Its Fourier transform is ``1 / (1 + (2 pi spread dk / N)^2)``: real, so the basis is real.
    """
    bins = np.asarray(profile.bins)
    apart = 2 * np.pi * spread_samples / profile.fft * (bins[:, None] - bins[None, :])
    values, vectors = np.linalg.eigh(1 / (1 + apart**2))
    keep = values > 1e-9 * values[-1]
    return vectors[:, keep], values[keep]


def _shrink(
    aligned: Complex64[np.ndarray, " bin"],
    power: float,
    error: float,
    vectors: Float64[np.ndarray, "bin rank"],
    values: Float64[np.ndarray, " rank"],
) -> tuple[float, np.ndarray, float]:
    """Apply the LMMSE filter of one prior.

    Returns:
        log likelihood of the measurement under the prior, smoothed gain, mean error variance per bin.
    """
    signal = power * values
    seen = signal + error
    modes = vectors.T @ aligned
    energy = modes.real**2 + modes.imag**2
    # Directions that the prior rules out hold noise only.
    outside = float(np.sum(np.abs(aligned) ** 2) - energy.sum())
    empty = aligned.size - values.size
    likelihood = -float(np.sum(np.log(seen) + energy / seen)) - outside / error - empty * float(np.log(error))
    return likelihood, vectors @ (modes * (signal / seen)), float(np.sum(signal * error / seen)) / aligned.size
