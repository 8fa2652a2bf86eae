"""Arrays that radios leave for a witness, of which only sums ever leave; knows names and keys, no air."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from radio.errors import RadioError

KEPT = 64  # keys; the oldest go first


class Deposits:
    """What radios deposited, by key and name."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, dict[str, np.ndarray]]] = {}

    def leave(self, key: str, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep copies of arrays of ``name`` under ``key``."""
        self._kept.setdefault(key, {})[name] = {field: np.array(value) for field, value in arrays.items()}
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]

    def take(self, key: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Sum over ``names``, in their order, and forget the key.

        Raises:
            RadioError: a name left nothing, or one name alone of several is asked for, which would be no sum.
        """
        found = self._kept.get(key, {})
        names = tuple(dict.fromkeys(names))
        missing = sorted(set(names) - set(found))
        if missing or not names:
            raise RadioError(f"{missing} left nothing under {key!r}, only {sorted(found)} did", "deposit first")
        if len(names) == 1 < len(found):
            raise RadioError(
                f"{names[0]} alone was asked of {len(found)} deposits under {key!r}", "ask for several names"
            )
        del self._kept[key]
        total = {field: np.array(value) for field, value in found[names[0]].items()}
        for name in names[1:]:
            for field, value in found[name].items():
                total[field] = total[field] + value
        return total
