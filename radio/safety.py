"""The guard that every radio stands behind: checks every tune and every burst, and writes each down; knows no driver.

What may be sent is told by a profile (``radio.region``). What this cannot know is what happens behind the connector:
the antenna, the cable and the attenuator are as the profile declares them.
"""

from __future__ import annotations

import getpass
import math
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

import numpy as np

from radio.base import Capabilities, Capture, Radio, RadioConfig, Samples, TxReport, Witness
from radio.errors import RadioError, TooLate, UnsafeTransmit
from radio.region import MIN_CONDUCTED_DB, PROFILES, Band, SafetyProfile

__all__ = [
    "MIN_CONDUCTED_DB",
    "PROFILES",
    "Audit",
    "Band",
    "Emission",
    "SafeRadio",
    "SafetyProfile",
    "outside_db",
]

Verdict = Literal["sent", "denied", "failed"]


@dataclass(frozen=True)
class Emission:
    """One line of the audit log: a burst that was sent, refused, or given up by the device; or a tune refused.

    Attributes:
        time: when it was ordered (UTC, ISO 8601).
        verdict: ``denied`` by the profile: nothing was sent; ``failed`` in the device: some of it may have been sent.
        reason: why it was denied or failed.
        start: TX index of the first sample; -1 when it never had one.
        count: samples, 0 for a tune.
        radiated_dbm: modelled EIRP while sending; null when there is no power to tell.
        operator: who answers for it: ``operator`` of the profile, else the account of this machine.
    """

    time: str
    radio: str
    serial: str
    verdict: Verdict
    reason: str
    start: int
    count: int
    duration_s: float
    centre_hz: float
    bandwidth_hz: float
    radiated_dbm: float | None
    operator: str
    licence: str
    profile: str
    digest: str
    conducted: bool


Audit = Callable[[Emission], object]


def outside_db(samples: Samples, share: float) -> float:
    """Measure the power of a burst outside the middle ``share`` of its sampled band, in dB of all its power.

    One transform of the whole burst, so what switching it on and off spreads counts as well: at the burst's own length
    it would hide, as between the samples of that transform.
    """
    from scipy.fft import fft, next_fast_len  # imported late: the command line shows its help without it

    size = next_fast_len(2 * samples.size)
    spectrum = fft(samples, size)
    power = spectrum.real**2 + spectrum.imag**2
    edge = math.floor(0.5 * share * size)  # the last bin inside, on either side of DC
    outside, total = float(power[edge + 1 : size - edge].sum()), float(power.sum())
    return 10.0 * math.log10(outside / total) if outside > 0.0 else -math.inf


class SafeRadio:
    """A radio behind a safety profile: checks every tune and every burst, writes each to the audit, mutes on close.

    Args:
        radio: the driver's radio, already open and muted.
        safety: what it may do.
        audit: takes a record of every emission and every refusal.
        witness: what a simulated air knows of a radio whose driver cannot.
    """

    def __init__(
        self, radio: Radio, safety: SafetyProfile, audit: Audit | None = None, witness: Witness | None = None
    ) -> None:
        self._radio = radio
        self._witness = radio.witness or witness
        self._safety = safety
        self._digest, self._operator = safety.digest, safety.operator or _account()
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
        return self._witness

    @property
    def holder(self) -> subprocess.Popen[bytes] | None:
        """Give the process that the driver runs in; None: this one."""
        return getattr(self._radio, "process", None)

    @property
    def safety(self) -> SafetyProfile:
        """Give the profile in force."""
        return self._safety

    def configure(self, wanted: RadioConfig) -> RadioConfig:
        """Apply settings if the transmit band is allowed, and read them back.

        Raises:
            UnsafeTransmit: the band is not allowed by the profile, or the radio stands on a cable of undeclared
                attenuation; the refusal is in the audit and nothing is changed.
        """
        try:
            self._declared()
            self._band(wanted)
        except UnsafeTransmit as refusal:
            self._record("denied", refusal.message, wanted)
            raise
        taken = self._radio.configure(wanted)
        if self._config is None or self._config.rate_hz != taken.rate_hz:
            self._on_air.clear()
        self._config = taken
        return taken

    def _declared(self) -> None:
        """Refuse a cable nobody measured: a receiver may be damaged. A simulated receiver may not."""
        if self._safety.conducted and self._safety.attenuation_db is None and self._witness is None:
            raise UnsafeTransmit(
                f"{self.name}: profile {self._safety.name} is for radios joined by cables, and no attenuation is "
                f"declared; {MIN_CONDUCTED_DB:g} dB between any two radios is the least",
                "write [safety] attenuation_db = the least attenuation between two radios",
            )

    def _band(self, config: RadioConfig) -> Band:
        safety = self._safety
        band = safety.band_of(config.tx_hz, config.bandwidth_hz)
        if band is None:
            allowed = ", ".join(f"{b.low_hz / 1e6:g}-{b.high_hz / 1e6:g} MHz" for b in safety.bands) or "nothing"
            raise UnsafeTransmit(
                f"{self.name}: {config.tx_hz / 1e6:g} MHz +/- {0.5e-6 * config.bandwidth_hz:g} MHz and a guard of "
                f"{1e-6 * safety.guard_hz:g} MHz is outside profile {safety.name}, which allows {allowed}",
                "tune inside an allowed band, or use the profile of your licence",
            )
        return band

    def now(self) -> int:
        """Give the RX index of the next sample."""
        return self._radio.now()

    def newest(self) -> int:
        """Give the RX index just past the newest sample that has arrived."""
        return self._radio.newest()

    def temperature_c(self) -> float | None:
        """Give the temperature of the device, where it tells one."""
        return self._radio.temperature_c()

    def earliest(self) -> int:
        """Give the first TX index that can still be met."""
        return self._radio.earliest()

    def transmit(self, samples: Samples, start: int | None = None) -> TxReport:
        """Send a burst if band, power, spectrum, length and duty cycle allow it.

        Raises:
            UnsafeTransmit: they do not; the refusal is in the audit and nothing is sent.
        """
        burst, config = _as_sent(samples), self._config
        power_dbm = self._radiated_dbm(burst)
        asked = -1 if start is None else start
        try:
            self._check(burst, start, power_dbm)
        except UnsafeTransmit as refusal:
            self._record("denied", refusal.message, config, asked, burst.size, power_dbm)
            raise
        try:
            report = self._radio.transmit(samples, start)
        except TooLate:
            raise  # nothing was sent
        except RadioError as error:
            self._record("failed", error.message, config, asked, burst.size, power_dbm)
            raise
        assert config is not None
        if not self._safety.conducted:  # in a cable no duty cycle applies, and a run may send millions of bursts
            self._expire(report.start / config.rate_hz)
            self._on_air.append((report.start / config.rate_hz, report.count / config.rate_hz))
        self._record("sent", "", config, report.start, report.count, power_dbm)
        return report

    def _radiated_dbm(self, burst: Samples) -> float:
        """Model the power while sending: padding with zeros does not make a burst weaker."""
        on = int(np.count_nonzero(burst))
        mean = float(np.vdot(burst, burst).real) / on if on else 0.0
        level = -math.inf if mean == 0.0 else 10.0 * math.log10(mean)  # stays not-a-number, and is denied
        attenuation_db = self._config.tx_attenuation_db if self._config else 0.0
        return self._safety.radiated_dbm(self.capabilities.tx_full_scale_dbm, level, attenuation_db)

    def _check(self, burst: Samples, start: int | None, power_dbm: float) -> None:
        config, safety = self._config, self._safety
        if self._closed or config is None:
            state = "closed" if self._closed else "not configured"
            raise UnsafeTransmit(f"{self.name}: transmit was asked of a radio that is {state}", "configure it first")
        trouble = self._trouble() if self._trouble is not None else ""
        if trouble:
            raise UnsafeTransmit(f"{self.name}: {trouble}", "start the program again")
        band = self._band(config)
        duration_s = burst.size / config.rate_hz
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
        self._check_spectrum(burst, config)
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

    def _check_spectrum(self, burst: Samples, config: RadioConfig) -> None:
        """Hold the burst to its declared bandwidth. Declared as wide as the rate, it cannot leave it."""
        if config.bandwidth_hz >= config.rate_hz or not burst.any():
            return
        found_db = outside_db(burst, config.bandwidth_hz / config.rate_hz)
        if found_db > self._safety.outside_db:
            raise UnsafeTransmit(
                f"{self.name}: {found_db:.1f} dB of the burst's power lies outside the declared bandwidth of "
                f"{config.bandwidth_hz / 1e6:g} MHz at {config.rate_hz / 1e6:g} MS/s; {self._safety.name} allows "
                f"{self._safety.outside_db:g} dB",
                "declare the bandwidth that the waveform has, or look for a wrong rate, noise or clipping in it",
            )

    def _expire(self, now_s: float) -> None:
        """Forget bursts that ended before the duty window."""
        while self._on_air and sum(self._on_air[0]) < now_s - self._safety.duty_window_s:
            self._on_air.popleft()

    def _record(
        self,
        verdict: Verdict,
        reason: str,
        config: RadioConfig | None,
        start: int = -1,
        count: int = 0,
        power_dbm: float = math.nan,
    ) -> None:
        if self._audit is None:
            return
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
                radiated_dbm=power_dbm if math.isfinite(power_dbm) else None,
                operator=self._operator,
                licence=self._safety.licence,
                profile=f"{self._safety.name} v{self._safety.version}",
                digest=self._digest,
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


def _as_sent(samples: Any) -> Samples:
    """Give what a converter makes of a burst: one row, held at its rails; not-a-number stays, and is denied.

    An array of a wrong type or shape becomes one not-a-number, too: no driver may get to guess its power.
    """
    array = np.asarray(samples)
    if array.dtype.kind not in "fciu" or array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[0] != 1):
        return np.full(1, np.nan, np.complex64)
    row = np.ascontiguousarray(array.reshape(-1), np.complex64)
    parts = row.view(np.float32)
    if row.size and not (parts.max() <= 1.0 and parts.min() >= -1.0):
        row = np.clip(parts, -1.0, 1.0).view(np.complex64)
    return row


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return ""
