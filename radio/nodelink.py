"""A node's side of the link: lock to beacons, follow phase and time, send bursts that arrive aligned; no learning.

Two-way tracking: the downlink phase psi(t) is a constant minus the uplink phase, so a burst turned by ``exp(j psi(t))``
arrives with the slow constant C(f) only, which the server measures and sends back. A retune or restart makes it void.
With frequency-division duplex the same crystals turn both carriers, so psi varies by the ratio of the carriers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Complex64, Float32, Float64

from radio.base import Radio, RadioConfig, TxReport
from radio.beacon import BeaconFix, acquire, track
from radio.cycle import Cycle
from radio.errors import LinkError, RadioRefused, SamplesLost
from radio.ofdm import Profile, clip, data_rows, phasor, precode, synthesise
from radio.timeline import Echo, measure_offset
from radio.track import PhaseTracker, SlotClock

Grid = Complex64[np.ndarray, "symbol bin"]

#: Samples on either side of an expected beacon that a tracking capture takes in.
MARGIN = 48
#: A coarse LO offset above this is tuned away once, so that the LO leak lands inside the empty bins around DC.
COARSE_HZ = 500.0
#: Allan deviation between radios on one reference: what is left is their synthesisers' noise.
SHARED_ADEV = 3e-12
#: A tracked phase bends so little that it is evaluated this far apart and drawn straight in between: 1 kHz/s of drift
#: makes it 1e-5 rad.
KNOT_SAMPLES = 128
#: Beacons missed in a row before the lock is given up.
MISSES = 3


@dataclass(frozen=True)
class Wave:
    """A burst but for its phase: complex64 samples, and the RX index at which each is to leave."""

    index: Float64[np.ndarray, " sample"]
    samples: Complex64[np.ndarray, " sample"]


@dataclass(frozen=True)
class Csi:
    """What the server told this node about its uplink: the slow constant and how to use it.

    Attributes:
        gain: complex64 (bin,), C(f) full scale to full scale, referenced to the tracked downlink phase.
        advance_samples: timing advance in server samples.
        drive: transmit amplitude per resource element (``phase``), or target amplitude at the server (``inversion``).
    """

    gain: Complex64[np.ndarray, " bin"]
    advance_samples: float
    drive: float

    def nudged(self, turn_rad: float, stretch: float, delay_samples: float) -> Csi:
        """Absorb the phase, amplitude and delay that the server measured on verification pilots."""
        turn = np.complex64(stretch * complex(math.cos(turn_rad), math.sin(turn_rad)))
        return replace(self, gain=self.gain * turn, advance_samples=self.advance_samples + delay_samples)


@dataclass
class NodeLink:
    """Everything a node knows about time and phase. One owner, one thread."""

    radio: Radio
    profile: Profile
    rx_gain_db: float
    adev: float
    seed: int
    tx_attenuation_db: float = 0.0
    offset: int = 0
    tuned_hz: float = 0.0
    cfo_hz: float = 0.0
    snr_db: float = float("nan")
    missed: int = 0
    residue_hz: float = 0.0
    epoch: int | None = None
    csi: Csi | None = None
    sent: tuple[int, np.ndarray] | None = field(default=None, repr=False)
    echo: Echo = field(init=False, repr=False)
    tracker: PhaseTracker | None = field(default=None, repr=False)
    clock: SlotClock | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.echo = Echo(self.radio)

    def open(self) -> None:
        """Configure the radio; nothing is radiated."""
        self._tune(self.tuned_hz)

    @property
    def scale(self) -> float:
        """Uplink carrier over downlink carrier."""
        return self.profile.carrier_hz / self.profile.beacon_hz

    def _measure(self) -> None:
        """Measure the TX-RX offset, with the transmitter in the receive band for as long as it takes."""
        self._tune(self.tuned_hz, echo=True)
        self.offset = measure_offset(self.radio, self.seed)
        self._tune(self.tuned_hz)
        self.sent = None
        self.echo.forget()

    def _tune(self, shift_hz: float, echo: bool = False) -> None:
        """Tune by ``shift_hz`` off the downlink carrier, and by as many parts per million off the uplink's."""
        profile = self.profile
        wanted = self.settings(shift_hz)
        taken = self.radio.configure(replace(wanted, tx_hz=wanted.rx_hz) if echo else wanted)
        self.tuned_hz = taken.rx_hz - profile.beacon_hz
        # Synthesiser steps keep the two shifts from being exactly one ratio; what is left turns at a known rate.
        self.residue_hz = taken.tx_hz - profile.carrier_hz - self.scale * self.tuned_hz

    def settings(self, shift_hz: float = 0.0) -> RadioConfig:
        """Give the radio's settings, tuned by ``shift_hz`` off the downlink carrier."""
        return RadioConfig(
            rate_hz=self.profile.rate_hz,
            tx_hz=self.profile.carrier_hz + self.scale * shift_hz,
            rx_hz=self.profile.beacon_hz + shift_hz,
            bandwidth_hz=self.profile.bandwidth_hz,
            rx_gain_db=self.rx_gain_db,
            tx_attenuation_db=self.tx_attenuation_db,
        )

    def acquire(self, budget_samples: int, from_slot: int = 0) -> int:
        """Search for the server's beacons, tune the LO once, and start the trackers.

        A radio without one timeline may have slipped before, so its TX-RX offset is measured first.

        Args:
            budget_samples: how long to search.
            from_slot: first slot of the train of beacons sent for this search. A node that fell behind still hears
                earlier cycles, whose beacons have gaps; it skips ahead.

        Returns:
            Slot number of the beacon that the lock stands on.

        Raises:
            LinkError: no beacon within the budget.
        """
        self.csi = self.epoch = None
        self._measure()
        fix = self._search(budget_samples, from_slot)
        if abs(fix.cfo_hz) > COARSE_HZ:
            self._tune(self.tuned_hz + fix.cfo_hz)
            fix = self._search(budget_samples, from_slot)
        adev = SHARED_ADEV if self.radio.capabilities.shared_reference else self.adev
        self.tracker = PhaseTracker(adev=adev, rate_hz=self.profile.rate_hz, carrier_hz=self.profile.beacon_hz)
        self.clock = SlotClock(self.profile.slot_samples)
        self.missed = 0
        self._absorb(fix)
        return fix.slot

    def _search(self, budget_samples: int, from_slot: int) -> BeaconFix:
        chunk = self.profile.slot_samples + 2 * self.profile.beacon_samples
        start: int | None = self.radio.newest()  # what lies before was not sent for this search
        for _ in range(max(1, budget_samples // chunk)):
            capture = self.radio.receive(chunk, start)
            start = None
            fix = acquire(capture.samples, self.profile, capture.start, tuned_offset_hz=self.tuned_hz)
            if fix is None:
                continue
            if fix.slot >= from_slot:
                return fix
            ahead = (from_slot - fix.slot) * self.profile.slot_samples - self.profile.beacon_samples
            start = max(self.radio.now(), int(fix.index) + ahead)
        raise LinkError(
            f"{self.radio.name}: no beacon in {budget_samples / self.profile.rate_hz:.2f} s at "
            f"{self.profile.beacon_hz / 1e6:.3f} MHz",
            "check that the server is running, the antenna or cable, and the carrier of both radios",
        )

    def _absorb(self, fix: BeaconFix) -> None:
        assert self.tracker is not None and self.clock is not None
        self.tracker.update(fix)
        self.cfo_hz, self.snr_db = fix.cfo_hz, fix.snr_db
        self.clock.update(fix, self.ppm)

    @property
    def ppm(self) -> float:
        """This node's clock against the server's, in parts per million (positive: the node runs fast)."""
        return -(self.cfo_hz + self.tuned_hz) / self.profile.beacon_hz * 1e6

    def listen(self, slot: int) -> BeaconFix | None:
        """Track the beacon of ``slot``; beacons already past are skipped.

        Returns:
            What the beacon told; None when it was not found.

        Raises:
            LinkError: the lock is lost (several beacons missed in a row).
        """
        if self.clock is None:
            raise LinkError(f"{self.radio.name}: not locked to the beacons", "sound this node again")
        expected = self.clock.index_of(slot)
        start = int(expected) - MARGIN
        try:
            capture = self.radio.receive(self.profile.beacon_samples + 2 * MARGIN, start)
        except RadioRefused:
            return None
        fix = track(
            capture.samples,
            self.profile,
            capture.start,
            expected,
            self.cfo_hz,
            slot,
            tuned_offset_hz=self.tuned_hz,
        )
        if fix is None:
            self.missed += 1
            if self.missed >= MISSES:
                self.clock = self.tracker = self.csi = None
                raise LinkError(
                    f"{self.radio.name}: {MISSES} beacons missed in a row, the last in slot {slot}",
                    "the node is sounded again; if this repeats, look for lost samples or an interferer",
                )
            return None
        self.missed = 0
        self._absorb(fix)
        return fix

    def follow(self, first_slot: int, cycle: Cycle, grid: Grid, at: int | None = None) -> tuple[TxReport, float]:
        """Run one cycle: track its beacons and send ``grid`` so that it arrives at ``at`` (default ``burst_at``).

        Returns:
            The radio's report (``clipped`` counts samples limited here, too), and the predicted phase error in rad.
        """
        self._check_echo()
        for slot in range(first_slot, first_slot + cycle.before - 1):
            self.listen(slot)
        wave = self.shape(first_slot, cycle.burst_at if at is None else at, grid)
        self.listen(first_slot + cycle.before - 1)
        sent = self.send(wave)
        for slot in range(first_slot + cycle.before, first_slot + cycle.beacons):
            self.listen(slot)
        return sent

    def _check_echo(self) -> None:
        """Hear the last burst through this radio's own leakage, at the place where the TX-RX offset puts it.

        This comes with the next order, not with the burst: by then every other burst is on the air as well.

        Raises:
            SamplesLost: a stream has slipped, and the lock with it.
        """
        if self.sent is None or self.profile.beacon_hz != self.profile.carrier_hz:
            return
        (start, samples), self.sent = self.sent, None
        try:
            self.echo.check(samples, start - self.offset)
        except SamplesLost:
            self.clock = self.tracker = self.csi = None
            raise

    def shape(self, slot: int, at: float, grid: Grid) -> Wave:
        """Compute ``grid`` so that it reaches the server ``at`` server samples after the start of ``slot``.

        The signal is computed at this radio's own sample instants, so clock offset and fractional advance are exact.
        It takes most of the time that a burst takes to make, and waits for no phase: the last beacon before the burst
        comes after it.

        Raises:
            LinkError: no lock.
        """
        if self.clock is None:
            raise LinkError(f"{self.radio.name}: not locked to the beacons", "sound this node again")
        ratio = 1 + self.ppm * 1e-6
        advance = self.csi.advance_samples if self.csi is not None else 0.0
        slot_index = self.clock.index_of(slot)
        first = math.ceil(slot_index + (at - advance) * ratio)
        index = first + np.arange(int(len(grid) * self.profile.symbol_samples * ratio), dtype=np.float64)
        return Wave(index, synthesise(grid, self.profile, (index - slot_index) / ratio - at + advance))

    def send(self, wave: Wave) -> tuple[TxReport, float]:
        """Turn a wave by the tracked phase and transmit it.

        Raises:
            TooLate: the instant can no longer be met; nothing is sent.
            LinkError: no lock, or the phase was lost on the way from one beacon to the next.
        """
        if self.tracker is None:
            raise LinkError(f"{self.radio.name}: not locked to the beacons", "sound this node again")
        if self.epoch is None:
            self.epoch = self.tracker.epoch
        if self.scale != 1 and self.epoch != self.tracker.epoch:
            # A whole turn of the downlink is none of the uplink: what the server measured holds no longer.
            self.clock = self.tracker = self.csi = None
            raise LinkError(f"{self.radio.name}: the phase was lost between beacons", "the node is sounded again")
        knots = np.append(wave.index[::KNOT_SAMPLES], wave.index[-1])
        cycles = self.tracker.predict(knots, scale=self.scale).phase_rad / (2 * math.pi)
        cycles -= (self.residue_hz / self.profile.rate_hz) * knots
        samples, clipped = clip(wave.samples * phasor(np.interp(wave.index, knots, cycles)))
        report = self.radio.transmit(samples, int(wave.index[0]) + self.offset)
        self.sent = (report.start, samples)
        middle = self.tracker.predict(float(wave.index[wave.index.size // 2]), scale=self.scale)
        return replace(report, clipped=report.clipped + clipped), float(middle.sigma_rad)

    def precode(self, grid: Grid, kind: str, floor: float = 0.0) -> Grid:
        """Apply the link estimate to a burst: ``phase``, ``inversion`` or ``none``; the drive sets the amplitude.

        Pilots and canary always keep the phase, since they are how the server follows the link: under ``none`` the data
        alone go out as they are, and with a ``floor`` the data alone are silent on bins whose link is weaker.
        """
        if self.csi is None:
            raise LinkError(f"{self.radio.name}: no link estimate", "sound this node again")
        gain, drive, data = self.csi.gain, self.csi.drive, data_rows(grid.shape[0])
        sent = precode(grid, gain, "phase" if kind == "none" else kind, drive)
        if kind == "none":
            sent[data] = precode(grid[data], gain, kind, drive)
        sent[data] *= self.audible(floor)
        return sent

    def audible(self, floor: float) -> Float32[np.ndarray, " bin"]:
        """Give 1 on the bins whose link amplitude reaches a floor, 0 on the others."""
        if self.csi is None:
            raise LinkError(f"{self.radio.name}: no link estimate", "sound this node again")
        return np.asarray(np.abs(self.csi.gain) >= floor, np.float32)

    def state(self) -> dict[str, Any]:
        """Give everything needed to go on after a restart, as plain JSON values."""
        csi = self.csi
        return {
            "offset": self.offset,
            "tuned_hz": self.tuned_hz,
            "cfo_hz": self.cfo_hz,
            "missed": self.missed,
            "epoch": self.epoch,
            "tracker": self.tracker.state() if self.tracker else None,
            "clock": self.clock.state() if self.clock else None,
            "csi": None
            if csi is None
            else {
                "gain": [[float(g.real), float(g.imag)] for g in csi.gain],
                "advance_samples": csi.advance_samples,
                "drive": csi.drive,
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state saved by ``state`` on a radio that kept running."""
        self.offset = state["offset"]
        self.cfo_hz, self.missed, self.epoch = state["cfo_hz"], state["missed"], state["epoch"]
        self._tune(state["tuned_hz"])
        self.tracker = PhaseTracker.from_state(state["tracker"]) if state["tracker"] else None
        self.clock = SlotClock.from_state(state["clock"]) if state["clock"] else None
        if state["csi"]:
            gain = np.array([complex(*pair) for pair in state["csi"]["gain"]], np.complex64)
            self.csi = Csi(gain, state["csi"]["advance_samples"], state["csi"]["drive"])
