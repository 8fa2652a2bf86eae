"""Knows the form in which every data set hands over its images, and scikit-learn's digits; knows nothing of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A labelled image set.

    Attributes:
        images: values in 0..1, or bytes; of drawings ink is 1.
        labels: base class of each image, 0 .. len(names)-1.
        names: name of each base class.
        groups: group of each base class (a digit, an alphabet); a group is never shared by training and new clients.
        held_out: groups that the data set itself keeps for evaluation; empty when the seed should choose.
    """

    images: Shaped[Tensor, "n channel row column"]
    labels: Int[Tensor, " n"]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    held_out: frozenset[str] = frozenset()


@lru_cache(maxsize=1)
def digits() -> Images:
    """Load the 1,797 handwritten digits of 8x8 pixels that scikit-learn ships (UCI optical recognition, test part)."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ValueError("data.name = 'digits' needs scikit-learn, which is not installed; pip install scikit-learn")
    # The file alone: importing scikit-learn's loader takes every node longer than a hundred of its rounds.
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    labels = table[:, -1].astype(np.int64)
    images = torch.from_numpy(table[:, :-1]).float().view(-1, 1, 8, 8) / 16.0
    # 6 and 9 are turned copies of each other, so with rotations they must fall on the same side.
    groups = tuple("6 and 9" if digit in (6, 9) else str(digit) for digit in range(10))
    return Images(images, torch.from_numpy(labels), tuple(str(digit) for digit in range(10)), groups)
