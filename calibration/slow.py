"""What moves slowly in a series of repeats, as a link does, and what does not; knows numbers only."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from numpy.polynomial.legendre import legvander

#: Degree of the curve that a slow movement may draw over the repeats.
SLOW = 2


def without_slow(series: Float64[np.ndarray, "*any repeat"]) -> tuple[Float64[np.ndarray, "*any repeat"], int]:
    """Take the best curve of degree ``SLOW`` out of evenly spaced repeats, at least four.

    Returns:
        what is left, and its degrees of freedom.
    """
    repeats = series.shape[-1]
    curves = np.linalg.qr(legvander(np.linspace(-1.0, 1.0, repeats), SLOW))[0]
    return np.asarray(series - series @ curves @ curves.T), repeats - SLOW - 1
