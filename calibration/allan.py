"""Allan variances of a time error and what they are worth: covariances between them for given noise; knows no radio.

Time runs in steps of one sample of the series and time errors are divided by the step, so that everything here is a
pure number. A noise process is its generalised covariance s(k): only its combinations with weights that annihilate
constants and straight lines have a meaning, and second differences are such combinations. With it the variance of an
Allan variance is exact for Gaussian noise at every averaging time, overlap and length (C. A. Greenhall and W. J. Riley,
"Uncertainty of stability variances based on finite differences", PTTI 2003); the closed forms of NIST SP 1065, section
5.4, approximate the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64
from scipy.special import xlogy

Lags = Float64[np.ndarray, " *lag"]
Noise = Callable[[Lags], Lags]
_SECOND = ((0, 1.0), (1, -2.0), (2, 1.0))


def white_pm(lag: Lags) -> Lags:
    """White phase noise of variance 1: Allan variance ``3/m^2``."""
    return np.asarray(lag == 0, np.float64)


def white_fm(lag: Lags) -> Lags:
    """White frequency noise, a random walk of phase: Allan variance ``1/m``."""
    return np.asarray(-np.abs(lag) / 2)


def flicker_fm(lag: Lags) -> Lags:
    """Flicker frequency noise: Allan variance 1 at every m (S_y = 1/(2 ln 2 f), IEEE Std 1139-2008, annex B)."""
    return np.asarray(xlogy(lag**2, np.abs(lag)) / (4 * np.log(2)))


def random_walk_fm(lag: Lags) -> Lags:
    """Random walk of frequency: Allan variance ``m/3``."""
    return np.asarray(np.abs(lag) ** 3 / 12)


def octaves(count: int, longest: int) -> tuple[int, ...]:
    """Give averaging factors 1, 2, 4 ... up to ``longest`` that leave at least eight independent differences."""
    return tuple(m for m in (1 << k for k in range(32)) if m <= longest and 8 * m < count)


def cross_variances(
    one: Float64[np.ndarray, " time"], other: Float64[np.ndarray, " time"], multiples: Sequence[int]
) -> tuple[Float64[np.ndarray, " multiple"], Float64[np.ndarray, " multiple"]]:
    """Estimate overlapping Allan cross-variances; of a series with itself they are Allan variances.

    Args:
        one, other: time errors in steps; NaN where a value is missing.
        multiples: averaging factors m.

    Returns:
        the mean products of second differences over ``2 m^2``, and the share of all second differences that is there.
    """
    values, shares = [], []
    for m in multiples:
        product = _differences(one, m) * _differences(other, m)
        there = ~np.isnan(product)
        shares.append(float(np.mean(there)))
        values.append(float(np.mean(product[there])) / (2 * m**2) if there.any() else np.nan)
    return np.array(values), np.array(shares)


def _differences(x: Float64[np.ndarray, " time"], m: int) -> Float64[np.ndarray, " difference"]:
    return np.asarray(x[2 * m :] - 2 * x[m:-m] + x[: -2 * m])


def expected(noise: Noise, multiples: Sequence[int]) -> Float64[np.ndarray, " multiple"]:
    """Give the Allan variances of a noise process."""
    return np.array([_shared(noise, m, m, np.zeros(1))[0] / (2 * m**2) for m in multiples])


def covariance(
    noise: Noise, also: Noise, count: int, multiples: Sequence[int]
) -> Float64[np.ndarray, "multiple multiple"]:
    """Give the covariance of overlapping Allan variances as a bilinear form of two processes.

    For a sum of processes with variances p and q it is ``p^2 c(p, p) + 2 p q c(p, q) + q^2 c(q, q)``.

    Args:
        noise, also: the processes.
        count: values in the series.
        multiples: averaging factors.
    """
    matrix = np.empty((len(multiples), len(multiples)))
    for i, m in enumerate(multiples):
        for j, n in enumerate(multiples[: i + 1]):
            size, width = count - 2 * m, count - 2 * n
            lag = np.arange(1 - size, width, dtype=np.float64)
            pairs = np.minimum(np.minimum(size + lag, width - lag), min(size, width))
            products = _shared(noise, m, n, lag) * _shared(also, m, n, lag)
            # Isserlis: the covariance of two squares of Gaussians is twice their covariance squared.
            matrix[i, j] = matrix[j, i] = 2 * np.dot(pairs, products) / (size * width * 4.0 * m**2 * n**2)
    return matrix


def _shared(noise: Noise, m: int, n: int, lag: Lags) -> Lags:
    """Covariance of a second difference of width m with one of width n that begins ``lag`` later."""
    return np.asarray(sum(a * b * noise(lag + j * n - i * m) for i, a in _SECOND for j, b in _SECOND))


def freedom(noise: Noise, count: int, multiple: int) -> float:
    """Give the equivalent degrees of freedom of one overlapping Allan variance: twice its square over its variance."""
    value = expected(noise, [multiple])[0]
    return float(2 * value**2 / covariance(noise, noise, count, [multiple])[0, 0])
