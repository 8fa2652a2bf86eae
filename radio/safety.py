"""What may be sent, and the guard that every radio stands behind; knows bands, power and time on air, no driver.

Everything is denied that a profile does not allow. The profiles here are engineering defaults, not legal advice:
whoever operates a transmitter answers for it.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from radio.base import Capabilities, Capture, Radio, RadioConfig, Samples, TxReport, Witness
from radio.errors import UnsafeTransmit

MIN_CONDUCTED_DB = 40.0


class Band(BaseModel):
    """One allowed band, its cap on radiated power and its share of time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low_hz: Annotated[float, Field(gt=0)]
    high_hz: Annotated[float, Field(gt=0)]
    eirp_dbm: float
    duty_cycle: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _order(self) -> Band:
        if self.low_hz >= self.high_hz:
            raise ValueError(f"low_hz {self.low_hz:g} must be below high_hz {self.high_hz:g}")
        return self


class SafetyProfile(BaseModel):
    """Where, how strong and how long a radio may transmit, and the set-up that turns its level into radiated power.

    ``conducted`` declares that the radios are joined by cables through at least ``attenuation_db``; what then could
    leak out is taken as the power after that attenuation, and the duty cycle, a rule for antennas, is not applied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int = Field(default=1, ge=1)
    bands: tuple[Band, ...] = ()
    guard_hz: float = Field(default=0.0, ge=0)
    conducted: bool = False
    attenuation_db: float = Field(
        default=0.0, ge=0, description="declared attenuation between radios in conducted mode"
    )
    antenna_gain_dbi: float = 0.0
    cable_loss_db: float = Field(default=0.0, ge=0)
    tx_full_scale_dbm: float = Field(default=7.0, description="power of a full-scale tone at no attenuation")
    max_burst_s: float = Field(default=1.0, gt=0)
    duty_window_s: float = Field(default=3600.0, gt=0)

    @model_validator(mode="after")
    def _declared(self) -> SafetyProfile:
        if self.conducted and self.attenuation_db < MIN_CONDUCTED_DB:
            raise ValueError(
                f"conducted mode needs attenuation_db of at least {MIN_CONDUCTED_DB:g}, not {self.attenuation_db:g}: "
                "a receiver may be damaged"
            )
        return self

    @property
    def digest(self) -> str:
        """Give a short hash of the whole profile, for logs and for a server to compare."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def band_of(self, centre_hz: float, bandwidth_hz: float) -> Band | None:
        """Find the allowed band that holds centre +/- half the occupied bandwidth +/- guard."""
        reach = 0.5 * bandwidth_hz + self.guard_hz
        for band in self.bands:
            if band.low_hz <= centre_hz - reach and centre_hz + reach <= band.high_hz:
                return band
        return None

    def radiated_dbm(self, level_dbfs: float, attenuation_db: float) -> float:
        """Model the radiated power (EIRP) of a burst from its rms level and the transmit attenuation."""
        power = self.tx_full_scale_dbm + level_dbfs - attenuation_db - self.cable_loss_db + self.antenna_gain_dbi
        return power - self.attenuation_db if self.conducted else power


_ISM = (
    Band(low_hz=902e6, high_hz=928e6, eirp_dbm=-1.25),
    Band(low_hz=2400e6, high_hz=2483.5e6, eirp_dbm=-1.25),
)
PROFILES: dict[str, SafetyProfile] = {
    # cables and attenuators: the first experiment, and every simulated lab
    "conducted": SafetyProfile(name="conducted", bands=_ISM, conducted=True, attenuation_db=60.0),
    # 47 CFR 15.249: 50 mV/m at 3 m is -1.25 dBm EIRP by E^2 d^2 / 30
    "us-15.249": SafetyProfile(name="us-15.249", bands=_ISM, guard_hz=100e3),
    # ERC Recommendation 70-03 annex 1: 10 mW e.r.p. at 10 % and 25 mW e.r.p. at 1 %; e.i.r.p. is 2.15 dB more
    "eu-srd": SafetyProfile(
        name="eu-srd",
        bands=(
            Band(low_hz=433.05e6, high_hz=434.79e6, eirp_dbm=12.15, duty_cycle=0.1),
            Band(low_hz=868.0e6, high_hz=868.6e6, eirp_dbm=16.1, duty_cycle=0.01),
        ),
    ),
}


@dataclass(frozen=True)
class Emission:
    """One line of the audit log: a burst that was sent, or one that was refused and why."""

    time: str
    radio: str
    serial: str
    verdict: Literal["sent", "denied"]
    reason: str
    start: int
    count: int
    duration_s: float
    centre_hz: float
    bandwidth_hz: float
    radiated_dbm: float
    profile: str
    digest: str
    conducted: bool


Audit = Callable[[Emission], None]


class SafeRadio:
    """A radio behind a safety profile: checks every tune and every burst, writes each to the audit, mutes on close.

    Args:
        radio: the driver's radio, already open and muted.
        safety: what it may do.
        audit: takes a record of every emission and every refusal.
    """

    def __init__(self, radio: Radio, safety: SafetyProfile, audit: Audit | None = None) -> None:
        self._radio = radio
        self._safety = safety
        self._audit = audit
        self._config: RadioConfig | None = None
        self._on_air: deque[tuple[float, float]] = deque()  # start and duration in device seconds, for the duty cycle
        self._closed = False
        self._trouble: Callable[[], str] | None = None
        self._released: Callable[[], None] | None = None

    def watched(self, trouble: Callable[[], str], released: Callable[[], None]) -> None:
        """Put this radio under a guard: nothing is sent while ``trouble`` tells of any.

        Args:
            trouble: says why the guard guards no more, or nothing.
            released: called once the radio is muted and closed.
        """
        self._trouble, self._released = trouble, released

    @property
    def name(self) -> str:
        """Give the radio's name."""
        return self._radio.name

    @property
    def capabilities(self) -> Capabilities:
        """Give what the radio declares."""
        return self._radio.capabilities

    @property
    def witness(self) -> Witness | None:
        """Give what a simulated air knows, or None."""
        return self._radio.witness

    @property
    def safety(self) -> SafetyProfile:
        """Give the profile in force."""
        return self._safety

    def configure(self, wanted: RadioConfig) -> RadioConfig:
        """Apply settings if the transmit band is allowed, and read them back.

        Raises:
            UnsafeTransmit: the band is not allowed by the profile; nothing is changed.
        """
        self._band(wanted)
        taken = self._radio.configure(wanted)
        if self._config is None or self._config.rate_hz != taken.rate_hz:
            self._on_air.clear()
        self._config = taken
        return taken

    def _band(self, config: RadioConfig) -> Band:
        band = self._safety.band_of(config.tx_hz, config.bandwidth_hz)
        if band is None:
            allowed = ", ".join(f"{b.low_hz / 1e6:g}-{b.high_hz / 1e6:g} MHz" for b in self._safety.bands) or "nothing"
            raise UnsafeTransmit(
                f"{self.name}: {config.tx_hz / 1e6:g} MHz +/- {0.5e-6 * config.bandwidth_hz:g} MHz and a guard of "
                f"{1e-6 * self._safety.guard_hz:g} MHz is outside profile {self._safety.name}, which allows {allowed}",
                "tune inside an allowed band, or use the profile of your licence",
            )
        return band

    def now(self) -> int:
        """Give the RX index of the next sample."""
        return self._radio.now()

    def newest(self) -> int:
        """Give the RX index just past the newest sample that has arrived."""
        return self._radio.newest()

    def earliest(self) -> int:
        """Give the first TX index that can still be met."""
        return self._radio.earliest()

    def transmit(self, samples: Samples, start: int | None = None) -> TxReport:
        """Send a burst if band, power, length and duty cycle allow it.

        Raises:
            UnsafeTransmit: they do not; the refusal is in the audit and nothing is sent.
        """
        power_dbm = self._radiated_dbm(samples)
        try:
            self._check(samples, start, power_dbm)
        except UnsafeTransmit as refusal:
            self._record("denied", refusal.message, -1 if start is None else start, samples, power_dbm)
            raise
        report = self._radio.transmit(samples, start)
        assert self._config is not None
        if not self._safety.conducted:  # in a cable no duty cycle applies, and a run may send millions of bursts
            self._expire(report.start / self._config.rate_hz)
            self._on_air.append((report.start / self._config.rate_hz, report.count / self._config.rate_hz))
        self._record("sent", "", report.start, samples, power_dbm)
        return report

    def _radiated_dbm(self, samples: Samples) -> float:
        """Model the power while sending: padding with zeros does not make a burst weaker."""
        array = np.asarray(samples)
        power = np.abs(array[array != 0].astype(np.complex128)) ** 2 if array.size else np.zeros(0)
        mean = float(np.minimum(power, 2.0).mean()) if power.size else 0.0
        level = -math.inf if mean == 0.0 else 10.0 * math.log10(mean)  # stays not-a-number, and is denied
        return self._safety.radiated_dbm(level, self._config.tx_attenuation_db if self._config else 0.0)

    def _check(self, samples: Samples, start: int | None, power_dbm: float) -> None:
        config, safety = self._config, self._safety
        if self._closed or config is None:
            state = "closed" if self._closed else "not configured"
            raise UnsafeTransmit(f"{self.name}: transmit was asked of a radio that is {state}", "configure it first")
        trouble = self._trouble() if self._trouble is not None else ""
        if trouble:
            raise UnsafeTransmit(f"{self.name}: {trouble}", "start the program again")
        band = self._band(config)
        duration_s = np.asarray(samples).shape[-1] / config.rate_hz if np.ndim(samples) else 0.0
        if duration_s > safety.max_burst_s:
            raise UnsafeTransmit(
                f"{self.name}: {duration_s:.3f} s is longer than the {safety.max_burst_s:g} s of {safety.name}",
                "send shorter bursts",
            )
        if power_dbm > band.eirp_dbm or math.isnan(power_dbm):
            raise UnsafeTransmit(
                f"{self.name}: {power_dbm:.1f} dBm radiated is above the {band.eirp_dbm:g} dBm of {safety.name} at "
                f"{config.tx_hz / 1e6:g} MHz",
                f"raise tx_attenuation_db by {max(power_dbm - band.eirp_dbm, 0.0):.1f} dB",
            )
        if safety.conducted or band.duty_cycle >= 1.0:
            return
        begin_s = (self.earliest() if start is None else start) / config.rate_hz
        self._expire(begin_s)
        used_s = sum(length for _, length in self._on_air) + duration_s
        if used_s > band.duty_cycle * safety.duty_window_s:
            raise UnsafeTransmit(
                f"{self.name}: {used_s:.2f} s on air within {safety.duty_window_s:g} s is above the duty cycle of "
                f"{100 * band.duty_cycle:g} % in {safety.name}",
                "wait, or send less",
            )

    def _expire(self, now_s: float) -> None:
        """Forget bursts that ended before the duty window."""
        while self._on_air and sum(self._on_air[0]) < now_s - self._safety.duty_window_s:
            self._on_air.popleft()

    def _record(
        self, verdict: Literal["sent", "denied"], reason: str, start: int, samples: Samples, power_dbm: float
    ) -> None:
        if self._audit is None:
            return
        config = self._config
        count = int(np.asarray(samples).shape[-1]) if np.ndim(samples) else 0
        self._audit(
            Emission(
                time=datetime.now(UTC).isoformat(),
                radio=self.name,
                serial=self.capabilities.serial,
                verdict=verdict,
                reason=reason,
                start=start,
                count=count,
                duration_s=count / config.rate_hz if config else 0.0,
                centre_hz=config.tx_hz if config else 0.0,
                bandwidth_hz=config.bandwidth_hz if config else 0.0,
                radiated_dbm=power_dbm,
                profile=f"{self._safety.name} v{self._safety.version}",
                digest=self._safety.digest,
                conducted=self._safety.conducted,
            )
        )

    def receive(self, count: int, start: int | None = None) -> Capture:
        """Take ``count`` samples from RX index ``start``."""
        return self._radio.receive(count, start)

    def mute(self) -> None:
        """Drop pending bursts and switch the transmitter off."""
        self._radio.mute()

    def close(self) -> None:
        """Mute and release the device, the second even when the first fails. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            self._radio.mute()
        finally:
            self._radio.close()
        if self._released is not None:
            self._released()

    def __enter__(self) -> SafeRadio:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
