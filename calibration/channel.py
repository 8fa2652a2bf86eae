"""What repeated soundings say of one link: gain per bin, delay, delay profile, coherence; knows grids, no radio.

Soundings differ by a phase that belongs to the oscillators and not to the link, so each is turned to agree with the
others before anything is averaged. Gains by least squares (LS) know nothing beforehand. Gains by minimum mean square
error (MMSE) also use the prior of ``radio.sync.estimate_link``: a delay profile that decays on both sides of the
strongest path. Only ``mmse`` and its error carry that prior; every other value here comes from LS.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Complex64, Complex128, Float64
from scipy.stats import t

from calibration.result import Estimate
from calibration.slow import without_slow
from radio.errors import LinkError
from radio.ofdm import Profile
from radio.sync import estimate_link

#: Least part of the channel's power that a gain still explains within the coherence time.
COHERENT = 0.9
#: Echoes weaker than this below the strongest path are side lobes or noise.
ECHO_DB = 25.0
_FINE = 8  # delay grid: steps per sample
_LEAST = 4  # soundings from which an interval can be told
_HEARD = 3.0  # standard deviations of its own error that the power must exceed

Raw = Complex128[np.ndarray, "repeat bin"]


@dataclass(frozen=True)
class Channel:
    """One direction between two radios.

    Attributes:
        ls: gain per bin, averaged over the soundings, in units of the drive.
        ls_sigma: standard deviation of each (complex: of the magnitude of the error).
        mmse: the same smoothed by the prior, as the nodes use it.
        mmse_sigma: its expected rms error over the bins, from noise alone.
        gain_db: rms gain over bins and soundings.
        snr_db: per resource element, at the drive of the soundings.
        delay_samples: delay of the strongest path, the maximum of ``|sum_k h_k exp(2 pi i k t / N)|`` within half a
            prefix. With echoes closer than the resolution this is the delay of their sum.
        pdp_s, pdp_db: power-delay profile relative to the strongest path.
        resolution_s: width of one path in that profile at half its power; closer echoes are not told apart.
        rms_delay_s: rms delay spread beyond what one path shows; 0 when nothing is resolved.
        coherence_hz: spacing at which two bins agree by half; None when they agree over half the band.
    """

    ls: Complex64[np.ndarray, " bin"]
    ls_sigma: Float64[np.ndarray, " bin"]
    mmse: Complex64[np.ndarray, " bin"]
    mmse_sigma: float
    gain_db: Estimate
    snr_db: Estimate
    delay_samples: Estimate
    pdp_s: Float64[np.ndarray, " delay"]
    pdp_db: Float64[np.ndarray, " delay"]
    resolution_s: float
    rms_delay_s: float
    coherence_hz: float | None


def raw_gains(
    grids: Complex64[np.ndarray, "repeat symbol bin"], pilots: Complex64[np.ndarray, "symbol bin"], drive: float = 1.0
) -> Raw:
    """Give the LS gain of every bin in every sounding.

    Args:
        grids: received soundings.
        pilots: what was sent, unit modulus.
        drive: amplitude it was sent at.
    """
    return np.asarray(np.mean(np.conj(pilots) * grids, axis=1) / drive, np.complex128)


def align(raw: Raw) -> Raw:
    """Turn soundings to agree with each other; their mean keeps its phase.

    The turns are those of the strongest singular vector, the maximum-likelihood estimate for one common shape in white
    noise.
    """
    left = np.linalg.svd(raw, full_matrices=False)[0][:, 0]
    turned = raw * np.exp(-1j * np.angle(left))[:, None]
    return np.asarray(turned * np.exp(1j * np.angle(np.vdot(turned.mean(axis=0), raw.mean(axis=0)))))


def estimate_channel(
    grids: Complex64[np.ndarray, "repeat symbol bin"],
    pilots: Complex64[np.ndarray, "symbol bin"],
    noise: Float64[np.ndarray, " repeat"],
    profile: Profile,
    drive: float = 1.0,
) -> Channel:
    """Estimate a link from soundings made within its coherence time.

    Intervals of SNR and delay come from leaving out one sounding at a time (delete-one jackknife; B. Efron and R.
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11), so they hold for whatever varies from one to the
    next: noise, timing, levels.

    Args:
        grids: received soundings, at least four.
        pilots: what was sent, unit modulus.
        noise: noise variance per resource element, as measured in each sounding.
        profile: waveform.
        drive: amplitude of the pilots, full scale 1.

    Raises:
        LinkError: too few soundings, or nothing heard above the noise.
    """
    count, symbols, bins = grids.shape
    if count < _LEAST:
        raise LinkError(
            f"{count} soundings: {_LEAST} are the fewest that tell how far they scatter", "sound more often"
        )
    noise = np.asarray(noise, np.float64)
    raw = align(raw_gains(grids, pilots, drive))
    error = float(np.mean(noise)) / symbols / drive**2
    power = float(np.mean(np.abs(raw.mean(axis=0)) ** 2)) - error / count
    if power <= _HEARD * error / count * np.sqrt(1 / bins):
        raise LinkError(
            f"nothing heard in {count} soundings: {10 * np.log10(max(power, 1e-30)):.1f} dB of gain, below the noise",
            "check antenna, cable and gains of this node",
        )
    whole = _told(raw, noise, symbols, drive, profile)
    left_out = np.array(
        [_told(np.delete(raw, k, 0), np.delete(noise, k), symbols, drive, profile) for k in range(count)]
    )
    spread = np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0))
    reach = float(t.ppf(0.975, count - 1)) * spread
    snr_db, delay = (
        Estimate(float(value), float(value - r), float(value + r), unit)
        for value, r, unit in zip(whole, reach, ("db", "samples"), strict=True)
    )
    mean = raw.mean(axis=0)
    smooth = estimate_link(
        mean[None].astype(np.complex64), np.ones((1, bins), np.complex64), error / count, profile, "lmmse"
    )
    # Pooled over the bins: noise is the same on all of them, and few soundings tell little of each.
    scatter = float(np.sum(np.abs(raw - mean) ** 2)) / ((count - 1) * bins)
    pdp_s, pdp_db, resolution_s = delay_profile(mean, delay.value, profile)
    return Channel(
        ls=mean.astype(np.complex64),
        ls_sigma=np.full(bins, np.sqrt(scatter / count)),
        mmse=smooth.gain,
        mmse_sigma=smooth.sigma_gain * float(np.sqrt(power)),
        gain_db=_mean_gain(raw, noise / symbols / drive**2),
        snr_db=snr_db,
        delay_samples=delay,
        pdp_s=pdp_s,
        pdp_db=pdp_db,
        resolution_s=resolution_s,
        rms_delay_s=_rms_delay(mean, error / count, delay.value, profile),
        coherence_hz=coherence_bandwidth(mean, error / count, profile),
    )


def _told(
    raw: Raw, noise: Float64[np.ndarray, " repeat"], symbols: int, drive: float, profile: Profile
) -> tuple[float, float]:
    """Give SNR in dB and delay in samples of aligned soundings."""
    mean = raw.mean(axis=0)
    level = float(np.mean(noise))
    error = level / symbols / drive**2 / len(raw)
    power = max(float(np.mean(np.abs(mean) ** 2)) - error, 0.1 * error)
    ones = np.ones((1, mean.size), np.complex64)
    link = estimate_link(mean[None].astype(np.complex64), ones, error, profile, "ls")
    snr_db = 10 * np.log10(power * drive**2 / max(level, 1e-10 * power * drive**2))
    return float(snr_db), link.delay_samples


def _mean_gain(raw: Raw, error: Float64[np.ndarray, " repeat"]) -> Estimate:
    """Give the rms gain in dB over bins and soundings, and how well these soundings tell it.

    What a link does slowly meanwhile is part of that mean and no doubt of it.
    """
    powers = np.mean(np.abs(raw) ** 2, axis=1) - error
    mean = max(float(powers.mean()), 0.1 * float(error.mean()))
    off, freedom = without_slow(powers)
    spread = float(np.sqrt(np.sum(off**2) / freedom / powers.size)) / mean
    reach_db = 10 / np.log(10) * float(t.ppf(0.975, freedom)) * spread
    value = float(10 * np.log10(mean))
    return Estimate(value, value - reach_db, value + reach_db, "db")


def delay_profile(
    gain: Complex128[np.ndarray, " bin"], delay_samples: float, profile: Profile
) -> tuple[Float64[np.ndarray, " delay"], Float64[np.ndarray, " delay"], float]:
    """Give the power-delay profile around the strongest path: Hann window over the band, inverse transform.

    Args:
        gain: gain per bin.
        delay_samples: delay of the strongest path.
        profile: waveform.

    Returns:
        delays in seconds after the strongest path, a prefix either way; power in dB of the strongest; width of a
        single path at half its power in seconds.
    """
    place = np.arange(-profile.cp * _FINE, profile.cp * _FINE + 1) / _FINE
    power = _response(gain, delay_samples + place, profile)
    alone = _response(_steering(delay_samples, profile), delay_samples + place, profile)
    width = np.count_nonzero(alone > alone.max() / 2) / _FINE
    return (
        place / profile.rate_hz,
        np.asarray(10 * np.log10(np.maximum(power / power[place == 0], 1e-12))),
        width / profile.rate_hz,
    )


def _steering(delay_samples: float, profile: Profile) -> Complex128[np.ndarray, " bin"]:
    return np.asarray(np.exp(-2j * np.pi / profile.fft * np.asarray(profile.bins) * delay_samples))


def _response(
    gain: Complex128[np.ndarray, " bin"], delays: Float64[np.ndarray, " delay"], profile: Profile
) -> Float64[np.ndarray, " delay"]:
    """Power of a gain at delays, seen through a Hann window over the active band."""
    bins = np.asarray(profile.bins)
    window = np.sin(np.pi * (bins - bins[0] + 0.5) / (bins[-1] - bins[0] + 1)) ** 2
    turns = np.exp((2j * np.pi / profile.fft) * np.outer(delays, bins))
    return np.asarray(np.abs(turns @ (gain * window)) ** 2 / window.sum() ** 2)


def _rms_delay(gain: Complex128[np.ndarray, " bin"], error: float, delay_samples: float, profile: Profile) -> float:
    """Rms delay spread of the profile above its threshold, less that of one path."""
    place = np.arange(-profile.cp * _FINE, profile.cp * _FINE + 1) / _FINE
    # The window raises the noise to 1.5 of its mean; alone it passes 16 times that once in ten million.
    noise = 24 * error / gain.size

    def variance(response: np.ndarray, floor: float) -> float:
        weight = np.where(response > max(floor, response.max() * 10 ** (-ECHO_DB / 10)), response, 0.0)
        weight = weight / weight.sum()
        return float(weight @ place**2 - (weight @ place) ** 2)

    seen = _response(gain, delay_samples + place, profile)
    alone = _response(_steering(delay_samples, profile), delay_samples + place, profile) * seen.max()
    beyond = variance(seen, noise) - variance(alone, noise)
    return float(np.sqrt(max(beyond, 0.0))) / profile.rate_hz


def coherence_bandwidth(gain: Complex128[np.ndarray, " bin"], error: float, profile: Profile) -> float | None:
    """Give the spacing at which the correlation between bins falls to one half, or None within half the band.

    Args:
        gain: LS gain per bin, with independent errors.
        error: their variance.
        profile: waveform.
    """
    bins = np.asarray(profile.bins)
    width = int(bins[-1] - bins[0]) + 1
    there, values = np.zeros(width), np.zeros(width, np.complex128)
    there[bins - bins[0]], values[bins - bins[0]] = 1.0, gain
    power = float(np.mean(np.abs(gain) ** 2)) - error
    pairs = np.array([there[d:] @ there[: width - d] for d in range(width // 2)])
    agreed = np.array([abs(np.vdot(values[: width - d], values[d:])) for d in range(width // 2)])
    correlation = agreed / np.maximum(pairs, 1) / max(power, 1e-300)
    correlation[0] = 1.0
    return _falls(np.arange(correlation.size) * profile.spacing_hz, correlation, 0.5)


def coherence_time(
    time_s: Float64[np.ndarray, " sounding"], raw: Complex128[np.ndarray, "sounding bin"], error: float
) -> float | None:
    """Give the time after which a gain explains less than ``COHERENT`` of the channel, phases aside.

    The autocorrelation over soundings ``|<h(t), h(t + s)>| / (|h(t)| |h(t + s)|)``, squared: the power that the old
    gain still explains once the common phase, which no one can tell from the oscillators', is taken out. A link that
    fades on all bins alike does not show here.

    Args:
        time_s: instants, ascending.
        raw: LS gains at them.
        error: their noise variance per bin.

    Returns:
        Seconds, or None when nothing decorrelates within half of the series.
    """
    inner = np.abs(np.conj(raw) @ raw.T) ** 2
    energy = np.maximum(np.sum(np.abs(raw) ** 2, axis=1) - raw.shape[1] * error, 1e-300)
    # Noise adds to the squared inner product of two independent measurements: h1 with n2, n1 with h2, n1 with n2.
    bias = error * (energy[:, None] + energy[None, :]) + raw.shape[1] * error**2
    explained = np.clip((inner - bias) / np.outer(energy, energy), 0.0, 1.0)
    apart = np.abs(np.subtract.outer(time_s, time_s))
    span, count = float(apart.max()), max(len(time_s) // 2, 2)
    edges = np.linspace(0, span / 2, count + 1)
    lags, values = [0.0], [1.0]
    for low, high in pairwise(edges):
        inside = (apart > low) & (apart <= high)
        if inside.any():
            lags.append(float(apart[inside].mean()))
            values.append(float(explained[inside].mean()))
    return _falls(np.array(lags), np.array(values), COHERENT)


def _falls(at: Float64[np.ndarray, " lag"], values: Float64[np.ndarray, " lag"], level: float) -> float | None:
    """Where a curve first falls below a level, between points by a straight line."""
    below = np.flatnonzero(values < level)
    if below.size == 0 or below[0] == 0:
        return None
    k = int(below[0])
    share = (values[k - 1] - level) / (values[k - 1] - values[k])
    return float(at[k - 1] + share * (at[k] - at[k - 1]))
