"""The door every radio stands behind: protocol, capabilities, configuration, captures; knows no driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Complex64

from radio.errors import RadioRefused

Samples = Complex64[np.ndarray, " sample"]


class Tier(StrEnum):
    """What a radio can do about time and phase. A driver declares its tier; nothing probes for it."""

    P0 = "P0"  # Pluto, stock: two free counters, constant unknown TX-RX offset, free-running crystal
    P1 = "P1"  # Pluto with the stock TDD engine: deterministic frame counter
    P2 = "P2"  # Pluto with timestamp firmware: sample-exact timed transmit
    P3 = "P3"  # Pluto on a shared reference and trigger
    P4 = "P4"  # Pluto with phase-rotating gateware
    U0 = "U0"  # USRP without reference: timed transmit on its own clock
    U1 = "U1"  # USRP on 10 MHz and PPS


@dataclass(frozen=True)
class Capabilities:
    """What a radio declares of itself.

    Attributes:
        tier: timing and phase ability.
        serial: hardware serial, unique in a lab.
        driver: name of the driver and its version.
        max_rate_hz: highest safe full-duplex sample rate.
        turnaround_samples: a transmission can start no earlier than this many samples after the last sample received,
            at the configured rate.
        block_samples: samples move in blocks of this size.
        one_timeline: transmit indices count on the receive timeline. When false the two counters differ by an integer
            that stays constant until the stream restarts, and must be measured (``radio.timeline.measure_offset``).
        shared_reference: sample clock and LO are locked to a common reference.
        reports_losses: lost samples are reported as events; when false they must be found by counting.
        real_time: samples flow whether or not anybody asks, so orders must be given ahead of time.
        tx_full_scale_dbm: power of a full-scale tone at no attenuation, for the model of radiated power; a device that
            may give more declares it. The default is what an AD936x gives.
    """

    tier: Tier
    serial: str
    driver: str
    max_rate_hz: float
    turnaround_samples: int
    block_samples: int
    one_timeline: bool
    shared_reference: bool
    reports_losses: bool
    real_time: bool = False
    tx_full_scale_dbm: float = 7.0

    @property
    def lead_samples(self) -> int:
        """Samples to plan between the last sample received and a burst: without timed transmit, a block more."""
        return self.turnaround_samples + (0 if self.one_timeline else self.block_samples)


@dataclass(frozen=True)
class RadioConfig:
    """Settings of one radio. ``configure`` returns what the hardware took, which may differ by its step size."""

    rate_hz: float
    tx_hz: float
    rx_hz: float
    bandwidth_hz: float
    rx_gain_db: float
    tx_attenuation_db: float = 0.0


EventKind = Literal["overflow", "underflow", "duplicate", "stale", "lost", "late", "clipped"]


@dataclass(frozen=True)
class StreamEvent:
    """Something that spoils ``count`` samples from ``index`` on (the stream's own index)."""

    kind: EventKind
    index: int
    count: int


@dataclass(frozen=True)
class Capture:
    """Samples received: ``samples`` complex64 of shape (sample,), full scale 1.0, the first at RX index ``start``."""

    samples: Samples
    start: int
    rate_hz: float
    clipped: int = 0
    events: tuple[StreamEvent, ...] = ()


@dataclass(frozen=True)
class TxReport:
    """Where a burst went: TX index of its first sample, samples sent, samples that hit the rails."""

    start: int
    count: int
    clipped: int = 0
    events: tuple[StreamEvent, ...] = ()


@runtime_checkable
class Witness(Protocol):
    """What only a simulated air can know: sums of what was sent, true links. Hardware has none.

    Nodes deposit arrays; only their *sums* over nodes can be collected, so no update of one client ever comes back.
    """

    def deposit(self, key: str, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Leave arrays of radio ``name`` under ``key`` (for example ``round-7``)."""
        ...

    def collect(self, key: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Take the sums over ``names`` of everything deposited under ``key``, and forget them all."""
        ...

    def amplitude(self, sender: str, receiver: str, start: int, offsets_hz: np.ndarray) -> np.ndarray:
        """Give the true link amplitude |H| from sender to receiver, full scale to full scale, at the sender's TX
        index ``start``, at each baseband offset in Hz; float64 of the shape of ``offsets_hz``."""
        ...

    def state(self) -> dict[str, Any]:
        """Give all that the simulated air needs to continue bit for bit after a restart, as JSON values."""
        ...


@runtime_checkable
class Radio(Protocol):
    """One radio. Samples are complex64, |x| <= 1 is full scale; indices are integer sample counts of this radio.

    ``transmit`` indices count on the TX timeline, ``receive`` and ``now`` on the RX timeline
    (one and the same when ``capabilities.one_timeline``).
    """

    @property
    def name(self) -> str:
        """Name of the radio."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it declares of itself, at the present settings."""
        ...

    @property
    def witness(self) -> Witness | None:
        """What a simulated air knows; None on hardware."""
        ...

    def configure(self, wanted: RadioConfig) -> RadioConfig:
        """Apply settings and read back what was taken. Unchanged settings are left alone (no retune).

        Raises:
            RadioRefused: a setting is outside what the device can do.
            UnsafeTransmit: the transmit band is not allowed.
        """
        ...

    def now(self) -> int:
        """RX index of the next sample that ``receive`` without ``start`` would return."""
        ...

    def newest(self) -> int:
        """RX index just past the newest sample that has arrived; ``now()`` where time is virtual.

        In real time samples arrive whether or not they are taken: ``now()`` lags behind, and moves on by itself when
        samples nobody took leave the buffer.
        """
        ...

    def temperature_c(self) -> float | None:
        """Temperature of the device in degrees Celsius; None where it tells none."""
        ...

    def earliest(self) -> int:
        """TX index before which ``transmit`` raises ``TooLate`` at this moment."""
        ...

    def transmit(self, samples: Samples, start: int | None = None) -> TxReport:
        """Send a finite burst from TX index ``start`` (None: as early as possible).

        Raises:
            TooLate: ``start`` is earlier than ``earliest()``; nothing is sent.
            UnsafeTransmit: the safety profile forbids it; nothing is sent.
        """
        ...

    def receive(self, count: int, start: int | None = None) -> Capture:
        """Take ``count`` samples from RX index ``start`` (None: from ``now()``); samples before it are discarded.

        Raises:
            RadioRefused: ``start`` lies before ``now()``.
            RadioError: the device stopped answering.
        """
        ...

    def mute(self) -> None:
        """Stop radiating: drop pending bursts, switch the transmitter off; the next transmit un-mutes."""
        ...

    def close(self) -> None:
        """Mute and release the device. Safe to call twice."""
        ...


def checked(samples: Any, name: str) -> Samples:
    """Give the samples of one antenna as every driver takes them: complex64 of shape (sample,), finite.

    Raises:
        RadioRefused: they are something else.
    """
    array = np.asarray(samples)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 1 or array.dtype != np.complex64:
        raise RadioRefused(
            f"{name}: samples are {array.dtype} of shape {array.shape}, wanted complex64 of shape (sample,)",
            "convert with numpy.complex64 and one antenna",
        )
    if not np.isfinite(array).all():
        raise RadioRefused(f"{name}: the burst holds values that are not finite", "check the waveform")
    return array


@dataclass(frozen=True)
class Discovered:
    """One radio that a driver can see."""

    uri: str
    serial: str
    tier: Tier
    detail: Mapping[str, Any] = field(default_factory=dict)
