"""Complex samples as pairs of int16, in one compiled pass; knows rails and steps, no device."""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex64, Int16
from numba import njit

__all__ = ["IQ", "to_pairs"]

IQ = Int16[np.ndarray, "sample 2"]


def to_pairs(samples: Complex64[np.ndarray, " sample"], bits: int = 16) -> tuple[IQ, int]:
    """Round to the converter's bits at the top of int16, saturating.

    A device of fewer bits drops the low ones, which would turn rounding into a constant offset: they are left empty.

    Args:
        samples: finite, full scale 1.0.
        bits: of the converter.

    Returns:
        The pairs, and how many samples hit the rails.
    """
    floats = np.ascontiguousarray(samples).view(np.float32)
    pairs = np.empty(floats.size, np.int16)
    full, step = np.float32(2.0 ** (bits - 1)), np.float32(2.0 ** (16 - bits))
    return pairs.reshape(-1, 2), int(_pack(floats, pairs, full, step))


# with its types written down it is compiled, or read from the cache, on import: no first burst waits for the compiler
@njit("int64(float32[::1], int16[::1], float32, float32)", cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _pack(floats: np.ndarray, pairs: np.ndarray, full: np.float32, step: np.float32) -> int:
    one, over, clipped = np.float32(1.0), np.int32(0), 0
    for at in range(floats.size):
        over += np.int32(abs(floats[at]) > one)
    for at in range(floats.size):
        value = np.rint(floats[at] * full)
        pairs[at] = np.int16(np.int32(min(max(value, -full), full - one) * step))
    if over:  # rare, and slow: neighbours are looked at together
        for at in range(0, floats.size, 2):
            clipped += (abs(floats[at]) > one) | (abs(floats[at + 1]) > one)
    return clipped
