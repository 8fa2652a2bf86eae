"""Knows how to derive independent random streams from one seed and a path of keys; knows nothing of their use."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch


def derive(seed: int, *keys: int | str) -> int:
    """Derive a 64-bit seed from a seed and a path of keys, the same in every process and on every machine.

    Args:
        seed: any integer.
        keys: what the stream is for, e.g. ``("task", client, round)``. The integer 1 and the string "1" differ.

    Returns:
        An integer in 0 .. 2**64 - 1.
    """
    return int(_sequence(seed, keys).generate_state(1, np.uint64)[0])


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """Make a torch generator for the stream named by ``keys``.

    The CPU generator of torch is a Mersenne twister that reads the low 32 bits of its seed, so two of N streams
    coincide with probability about N^2 / 2^33.
    """
    return torch.Generator().manual_seed(derive(seed, *keys))


def numpy_generator(seed: int, *keys: int | str) -> np.random.Generator:
    """Make a NumPy generator for the stream named by ``keys``."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, keys)))


def _sequence(seed: int, keys: tuple[int | str, ...]) -> np.random.SeedSequence:
    # Python's hash() of strings changes between processes; a digest of an unambiguous spelling does not.
    spelling = json.dumps([int(seed), *(key if isinstance(key, str) else int(key) for key in keys)])
    return np.random.SeedSequence(int.from_bytes(hashlib.sha256(spelling.encode()).digest(), "little"))
