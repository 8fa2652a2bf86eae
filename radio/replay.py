"""The radio that plays a recording back; knows the Radio protocol and recordings, and never radiates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from radio.base import Capture, Discovered, RadioConfig, Samples, TxReport, checked
from radio.capture import SUFFIX, Recording
from radio.errors import RadioError, RadioRefused, TooLate

OPENS_MUTED = True  # nothing that a replay sends goes anywhere


class ReplayRadio:
    """A radio that receives what was recorded, with the indices of then. What it sends goes nowhere.

    Its transmit time is its receive time, and nothing is radiated: bursts are checked, counted and forgotten.

    Args:
        recording: what to play.
    """

    witness = None

    def __init__(self, recording: Recording) -> None:
        self._recording: Recording | None = recording
        self._config: RadioConfig | None = None
        self._cursor = self._free = recording.start
        told = recording.about.capabilities
        self.name = recording.path.stem
        self.capabilities = replace(told, driver=f"replay of {told.driver}", one_timeline=True, real_time=False)

    def configure(self, wanted: RadioConfig) -> RadioConfig:
        """Accept the settings of the recording; transmit settings are free.

        Raises:
            RadioRefused: rate, centre or gain differ from those of the recording.
        """
        have = self._playing().about.config
        for key, tolerance in (("rate_hz", 1e-6 * have.rate_hz), ("rx_hz", 5.0), ("rx_gain_db", 1.0)):
            asked, made = getattr(wanted, key), getattr(have, key)
            if abs(asked - made) > tolerance:  # never, for a gain that nobody wrote down
                raise RadioRefused(
                    f"{self.name}: {key} {asked:.10g} was asked of a recording made at {made:.10g}",
                    f"set {key} to {made:.10g}",
                )
        gain_db = wanted.rx_gain_db if math.isnan(have.rx_gain_db) else have.rx_gain_db
        self._config = replace(have, rx_gain_db=gain_db, tx_hz=wanted.tx_hz, tx_attenuation_db=wanted.tx_attenuation_db)
        return self._config

    def now(self) -> int:
        """Give the RX index of the next sample."""
        return self._cursor

    def newest(self) -> int:
        """Give ``now()``: nothing arrives before it is asked for."""
        return self._cursor

    def temperature_c(self) -> None:
        """Tell nothing: nothing here gets warm."""

    def earliest(self) -> int:
        """Give the first TX index that is still free."""
        return max(self._cursor + self.capabilities.turnaround_samples, self._free)

    def transmit(self, samples: Samples, start: int | None = None) -> TxReport:
        """Check and count a burst that goes nowhere.

        Raises:
            TooLate: ``start`` is earlier than ``earliest()``.
        """
        self._playing()
        samples = checked(samples, self.name)
        early = self.earliest()
        begin = early if start is None else int(start)
        if begin < early:
            raise TooLate(
                f"{self.name}: TX index {begin} is {early - begin} samples too early, the next free one is {early}",
                "plan bursts further ahead",
                early - begin,
            )
        self._free = begin + samples.size
        clipped = int(((np.abs(samples.real) > 1.0) | (np.abs(samples.imag) > 1.0)).sum())
        return TxReport(begin, int(samples.size), clipped)

    def receive(self, count: int, start: int | None = None) -> Capture:
        """Take ``count`` samples from RX index ``start``.

        Raises:
            RadioRefused: ``start`` lies before ``now()``.
            RadioError: the recording ends before that, or the radio is not configured.
        """
        recording = self._playing()
        if self._config is None:
            raise RadioError(f"{self.name}: receive was asked of a radio that is not configured", "configure it first")
        begin = self._cursor if start is None else int(start)
        if begin < self._cursor:
            raise RadioRefused(
                f"{self.name}: RX index {begin} was asked for, but {self._cursor} is the next", "ask for later samples"
            )
        taken = recording.read(begin, int(count))
        self._cursor = begin + int(count)
        return taken

    def mute(self) -> None:
        """Do nothing: a replay never radiates."""

    def close(self) -> None:
        """Let the file go. Safe to call twice."""
        self._recording = None

    def _playing(self) -> Recording:
        if self._recording is None:
            raise RadioError(f"{self.name} is closed", "open it again")
        return self._recording


def connect(rest: str, ether: object | None) -> ReplayRadio:
    """Open the recording of a ``replay:`` URI, ``rest`` being the path that follows the colon."""
    return ReplayRadio(Recording(Path(rest)))


def silence(rest: str) -> None:
    """Do nothing: a replay never radiates."""


def discover() -> list[Discovered]:
    """List nothing: recordings lie in folders that only the user knows, see ``find``."""
    return []


def find(folder: Path) -> Iterator[Discovered]:
    """List the recordings of a folder that can be replayed, by name."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            found = Recording(path, verify=False)
        except RadioError:
            continue
        told, config = found.about.capabilities, found.about.config
        span_s = (found.end - found.start) / config.rate_hz
        detail = {"driver": told.driver, "rate_hz": config.rate_hz, "rx_hz": config.rx_hz, "seconds": span_s}
        yield Discovered(f"replay:{path}", told.serial, told.tier, detail)
