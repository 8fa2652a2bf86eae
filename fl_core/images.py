"""Knows the form in which every data set hands over its images, and scikit-learn's digits; knows nothing of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A labelled image set.

    Attributes:
        images: grey values in 0..1, ink is 1.
        labels: base class of each image, 0 .. len(names)-1.
        names: name of each base class.
        groups: group of each base class (a digit, an alphabet); a group is never shared by training and new clients.
        held_out: groups that the data set itself keeps for evaluation; empty when the seed should choose.
    """

    images: Float[Tensor, "n 1 row column"]
    labels: Int[Tensor, " n"]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    held_out: frozenset[str] = frozenset()


@lru_cache(maxsize=1)
def digits() -> Images:
    """Load the 1,797 handwritten digits of 8x8 pixels that scikit-learn ships (UCI optical recognition, test part)."""
    from sklearn.datasets import load_digits  # imported late: it takes a second, and only this data set needs it

    values, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(values).float().view(-1, 1, 8, 8) / 16.0
    # 6 and 9 are turned copies of each other, so with rotations they must fall on the same side.
    groups = tuple("6 and 9" if digit in (6, 9) else str(digit) for digit in range(10))
    return Images(images, torch.from_numpy(labels).long(), tuple(str(digit) for digit in range(10)), groups)
