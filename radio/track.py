"""Following a sender between its beacons: carrier phase and slot timing; knows fixes and their errors, no samples.

``PhaseTracker`` is a Kalman filter on phase, frequency and drift. An oscillator at its flicker floor has no finite
state, so the frequency is kept in parts: a constant that drifts, and Ornstein-Uhlenbeck processes with time constants
spread over five decades whose sum has the spectrum of flicker (log-uniform relaxation times give 1/f: van der Ziel,
Advances in Electronics and Electron Physics 49, 1979). With them the filter's own standard deviation is right at every
horizon and spacing; three states with random-walk noise are right at one horizon alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from radio.beacon import BeaconFix

_SPREAD = 8.0  # ratio of neighbouring time constants: the summed spectrum stays within 4 % of 1/f
_TIMES_S = 0.003 * _SPREAD ** np.arange(6)
_DRIFT_S = 300.0  # a warming crystal's drift changes over minutes
_FIRST = 3  # states: phase, frequency, drift, then the parts of the flicker
_STATES = _FIRST + _TIMES_S.size
_PARTS = np.arange(_FIRST, _STATES)
_SEEN = np.array([np.arange(_STATES) == 0, (np.arange(_STATES) == 1) | (np.arange(_STATES) >= _FIRST)], np.float64)


@dataclass(frozen=True)
class Prediction:
    """Downlink phase at some instants; each field has the shape that was asked for.

    Attributes:
        phase_rad: phase, not wrapped, continuous from one update to the next.
        freq_hz: its rate.
        sigma_rad: standard deviation of the phase, oscillators and measurements together.
    """

    phase_rad: Any
    freq_hz: Any
    sigma_rad: Any


class PhaseTracker:
    """Predict a sender's carrier phase from beacon fixes, on the receiver's index.

    Args:
        adev: Allan deviation at the flicker floor of one oscillator.
        rate_hz: sample rate of the receiver.
        carrier_hz: carrier frequency.
        phase_noise_rad: what the LOs add to each phase measurement on top of its own sigma.
        drift_hz_s: standard deviation of the initial frequency drift (20 ppb/s is a warming crystal).
        gate_sigma: a fix further off than this is refused.
        patience: so many refused in a row, and the filter starts again from the last.
        oscillators: independent oscillators in the difference (1 when the sender's reference is far better).

    Attributes:
        rejected: fixes refused since the start.
        epoch: how often the filter started; with ``scale != 1`` predictions of different epochs do not compare.
    """

    def __init__(
        self,
        *,
        adev: float = 3e-10,
        rate_hz: float,
        carrier_hz: float,
        phase_noise_rad: float = 0.005,
        drift_hz_s: float | None = None,
        gate_sigma: float = 5.0,
        patience: int = 3,
        oscillators: int = 2,
    ) -> None:
        for name, value in (("adev", adev), ("rate_hz", rate_hz), ("carrier_hz", carrier_hz)):
            if not value > 0:
                raise ValueError(f"{name} = {value}: give a positive number")
        self.adev, self.rate_hz, self.carrier_hz = adev, rate_hz, carrier_hz
        self.phase_noise_rad, self.gate_sigma = phase_noise_rad, gate_sigma
        self.drift_hz_s = 20e-9 * carrier_hz if drift_hz_s is None else drift_hz_s
        self.patience, self.oscillators = patience, oscillators
        # Flicker floor: ADEV^2 = 2 ln2 h(-1) (IEEE Std 1139-2008, annex B); a density h(-1) of variance per unit of
        # ln(time constant) sums to S_y(f) = h(-1)/f.
        level = oscillators * (adev * carrier_hz) ** 2 / (2 * math.log(2))
        self._variance = np.full(_TIMES_S.size, level * math.log(_SPREAD))
        self.rejected = 0
        self.epoch = 0
        self._refused = 0
        self._reference = math.nan
        self._anchor = 0.0
        self._mean = np.zeros(_STATES)
        self._covariance = np.zeros((_STATES, _STATES))

    @property
    def locked(self) -> bool:
        """Whether a fix has been taken and predictions exist."""
        return self.epoch > 0

    def update(self, fix: BeaconFix) -> bool:
        """Take one beacon's phase and frequency.

        A phase is only worth something if the prediction tells which turn it is on. Where it does not (a long gap, a
        weak start), frequency alone is filtered and the phase begins anew, continuous modulo one turn.

        Args:
            fix: measurement at ``fix.reference``; it must not lie before the last one taken.

        Returns:
            True when the fix was taken, False when it was refused.

        Raises:
            ValueError: the fix is older than the filter.
        """
        phase_variance = fix.phase_sigma_rad**2 + self.phase_noise_rad**2
        if not self.locked:
            self._start(fix, phase_variance)
            return True
        elapsed_s = (fix.reference - self._reference) / self.rate_hz
        if elapsed_s < 0:
            raise ValueError(f"a fix {-elapsed_s:.6f} s older than the last: give fixes in the order of their index")
        step, walked = self._propagation(elapsed_s)
        mean = step @ self._mean
        covariance = step @ self._covariance @ step.T + walked
        rows, noise = _SEEN, np.array([phase_variance, fix.cfo_sigma_hz**2])
        turn = math.remainder(fix.phase_rad - mean[0], 2 * math.pi)
        off = np.array([turn, fix.cfo_hz - rows[1] @ mean])
        crossed = rows @ covariance
        spread = (crossed * rows).sum(axis=1) + noise
        lost = spread[0] > 1.0  # rad^2: the turn is no longer known
        if (not lost and abs(off[0]) > self.gate_sigma * math.sqrt(spread[0])) or abs(
            off[1]
        ) > self.gate_sigma * math.sqrt(spread[1]):
            self.rejected += 1
            self._refused += 1
            if self._refused < self.patience:
                return False
            self._start(fix, phase_variance)
            return True
        if lost:
            rows, noise, off, crossed = rows[1:], noise[1:], off[1:], crossed[1:]
        gain = np.linalg.solve(crossed @ rows.T + np.diag(noise), crossed).T
        keep = np.eye(_STATES) - gain @ rows
        mean = mean + gain @ off
        # Joseph's form stays symmetric and positive over millions of updates.
        covariance = keep @ covariance @ keep.T + (gain * noise) @ gain.T
        if lost:
            mean[0] += math.remainder(fix.phase_rad - mean[0], 2 * math.pi)
            covariance[0, :] = covariance[:, 0] = 0.0
            covariance[0, 0] = phase_variance
            self.epoch += 1
            self._anchor = float(mean[0])
        self._mean, self._covariance = mean, covariance
        self._reference = fix.reference
        self._refused = 0
        return True

    def predict(self, index: float | Float64[np.ndarray, " *instant"], *, scale: float = 1.0) -> Prediction:
        """Predict the downlink phase.

        With frequency-division duplex the uplink carrier is another multiple of the same crystals, so its phase varies
        ``scale = f_UL/f_DL`` times as much as the downlink's, while a constant is free: it belongs to the uplink's
        measured constant C. Only the *variation* since the anchor (the first fix of this ``epoch``) is multiplied::

            phase(t) = anchor + scale * (psi(t) - anchor)

        C must be measured and used within one epoch; with ``scale = 1`` the anchor cancels and epochs do not matter.

        Args:
            index: RX index, a number or an array of any shape; before the last fix, too.
            scale: uplink carrier over downlink carrier.

        Returns:
            Phase, frequency and standard deviation, each of the shape of ``index``.

        Raises:
            ValueError: no fix has been taken.
        """
        if not self.locked:
            raise ValueError("the tracker has no fix: update it with a beacon before predicting")
        asked = np.asarray(index, dtype=np.float64)
        elapsed_s = ((asked - self._reference) / self.rate_hz).ravel()
        reach, decay = _moves(elapsed_s)
        rows = np.empty((elapsed_s.size, _STATES))
        rows[:, 0] = 1.0
        rows[:, 1] = 2 * np.pi * elapsed_s
        rows[:, 2] = np.pi * elapsed_s**2
        rows[:, _FIRST:] = 2 * np.pi * reach
        phase = self._anchor + scale * (rows @ self._mean - self._anchor)
        freq = scale * (self._mean[1] + elapsed_s * self._mean[2] + decay @ self._mean[_FIRST:])
        variance = np.sum((rows @ self._covariance) * rows, axis=1) + _wander(elapsed_s) @ self._variance
        sigma = abs(scale) * np.sqrt(np.maximum(variance, 0.0))
        shape = asked.shape
        if shape == ():
            return Prediction(float(phase[0]), float(freq[0]), float(sigma[0]))
        return Prediction(phase.reshape(shape), freq.reshape(shape), sigma.reshape(shape))

    def state(self) -> dict[str, Any]:
        """Give everything as numbers and lists, exact through JSON."""
        return {
            "adev": self.adev,
            "rate_hz": self.rate_hz,
            "carrier_hz": self.carrier_hz,
            "phase_noise_rad": self.phase_noise_rad,
            "drift_hz_s": self.drift_hz_s,
            "gate_sigma": self.gate_sigma,
            "patience": self.patience,
            "oscillators": self.oscillators,
            "rejected": self.rejected,
            "epoch": self.epoch,
            "refused": self._refused,
            "reference": self._reference if self.locked else None,
            "anchor_rad": self._anchor,
            "mean": self._mean.tolist(),
            "covariance": self._covariance.tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PhaseTracker:
        """Rebuild a tracker from ``state()``."""
        options = ("adev", "rate_hz", "carrier_hz", "phase_noise_rad", "drift_hz_s", "gate_sigma", "patience")
        tracker = cls(**{name: state[name] for name in (*options, "oscillators")})
        tracker.rejected, tracker.epoch, tracker._refused = state["rejected"], state["epoch"], state["refused"]
        tracker._reference = math.nan if state["reference"] is None else float(state["reference"])
        tracker._anchor = float(state["anchor_rad"])
        tracker._mean = np.array(state["mean"], dtype=np.float64)
        tracker._covariance = np.array(state["covariance"], dtype=np.float64)
        return tracker

    def _start(self, fix: BeaconFix, phase_variance: float) -> None:
        self._mean = np.zeros(_STATES)
        self._mean[:2] = fix.phase_rad, fix.cfo_hz
        self._covariance = np.diag([phase_variance, 0.0, self.drift_hz_s**2, *self._variance])
        # What is known is the sum of constant and flicker, so the constant carries minus the flicker's doubt.
        self._covariance[1, 1] = fix.cfo_sigma_hz**2 + float(np.sum(self._variance))
        self._covariance[1, _FIRST:] = self._covariance[_FIRST:, 1] = -self._variance
        self._reference = fix.reference
        self._anchor = fix.phase_rad
        self._refused = 0
        self.epoch += 1

    def _propagation(
        self, elapsed_s: float
    ) -> tuple[Float64[np.ndarray, "state state"], Float64[np.ndarray, "state state"]]:
        """Give what the states become after a while, and the covariance of what comes by chance meanwhile."""
        at = np.array([elapsed_s])
        (reach,), (decay,) = _moves(at)
        step, noise = np.eye(_STATES), np.zeros((_STATES, _STATES))
        step[0, 1] = 2 * np.pi * elapsed_s
        step[0, 2] = np.pi * elapsed_s**2
        step[1, 2] = elapsed_s
        step[0, _FIRST:] = 2 * np.pi * reach
        step[_PARTS, _PARTS] = decay
        noise[0, 0] = float(_wander(at)[0] @ self._variance)
        # The drift walks slowly, so that no number of beacons makes it certain; its share in phase is nothing.
        walk = self.drift_hz_s**2 / _DRIFT_S * elapsed_s
        noise[1:3, 1:3] = [[walk * elapsed_s**2 / 3, walk * elapsed_s / 2], [walk * elapsed_s / 2, walk]]
        # An integrated Ornstein-Uhlenbeck process and its end: covariance v*T*(1-exp(-t/T))^2.
        noise[0, _FIRST:] = noise[_FIRST:, 0] = 2 * np.pi * self._variance * reach * (1 - decay)
        noise[_PARTS, _PARTS] = self._variance * (1 - decay**2)
        return step, noise


def _moves(
    elapsed_s: Float64[np.ndarray, " instant"],
) -> tuple[Float64[np.ndarray, "instant part"], Float64[np.ndarray, "instant part"]]:
    """Give integral and decay of each part's expectation; backwards it runs as forwards, the process is reversible."""
    falls = np.abs(elapsed_s)[:, None] / _TIMES_S
    return -np.sign(elapsed_s)[:, None] * _TIMES_S * np.expm1(-falls), np.exp(-falls)


def _wander(elapsed_s: Float64[np.ndarray, " instant"]) -> Float64[np.ndarray, "instant part"]:
    """Give the variance (rad^2) that a part of unit variance (Hz^2) adds to the phase, unknown at the start."""
    falls = np.abs(elapsed_s)[:, None] / _TIMES_S
    exact = 2 * falls - 3 + 4 * np.exp(-falls) - np.exp(-2 * falls)
    series = falls**3 * (2 / 3 - falls / 2 + 7 * falls**2 / 30)  # where the differences above cancel
    return np.asarray((2 * np.pi * _TIMES_S) ** 2 * np.where(falls < 0.01, series, exact))


class SlotClock:
    """Tell at which RX index a sender's slot begins, from many beacons at a known rate.

    Two states are filtered, the index of the latest slot and what the rate differs from the one the carrier tells.

    Args:
        slot_samples: samples of a slot on the sender's clock.
        rate_sigma: trust in "carrier and sample clock are one crystal", relative (LO synthesis steps, rounding).
        jitter_samples: standard deviation that a beacon's index has beyond its own sigma.
        gate_sigma: a fix further off than this (and a tenth of a sample) is refused.
        patience: so many refused in a row, and the clock starts again from the last.

    Attributes:
        rejected: fixes refused since the start.
    """

    def __init__(
        self,
        slot_samples: int,
        *,
        rate_sigma: float = 3e-8,
        jitter_samples: float = 0.0005,
        gate_sigma: float = 5.0,
        patience: int = 3,
    ) -> None:
        if slot_samples <= 0:
            raise ValueError(f"slot_samples = {slot_samples}: give a positive number")
        self.slot_samples, self.rate_sigma, self.jitter_samples = slot_samples, rate_sigma, jitter_samples
        self.gate_sigma, self.patience = gate_sigma, patience
        self.rejected = 0
        self._refused = 0
        self._slot: int | None = None
        self._ppm = 0.0
        self._index = 0.0
        self._excess = 0.0  # samples per slot beyond what the carrier tells
        self._covariance = np.zeros((2, 2))

    @property
    def locked(self) -> bool:
        """Whether a fix has been taken."""
        return self._slot is not None

    def update(self, fix: BeaconFix, ppm: float) -> bool:
        """Take one beacon's index.

        Args:
            fix: measurement of slot ``fix.slot``.
            ppm: this receiver's clock against the sender's in parts per million, positive when it runs fast:
                ``-(cfo_hz + tuned_offset_hz)/carrier_hz * 1e6``.

        Returns:
            True when the fix was taken, False when it was refused.

        Raises:
            ValueError: the fix is of an earlier slot than the last one taken.
        """
        measured = fix.index_sigma**2 + self.jitter_samples**2
        if self._slot is None:
            self._start(fix, ppm, measured)
            return True
        count = fix.slot - self._slot
        if count < 0:
            raise ValueError(
                f"a fix of slot {fix.slot} after slot {self._slot}: give fixes in the order of their slots"
            )
        index = self._index + count * (self._nominal((self._ppm + ppm) / 2) + self._excess)
        step = np.array([[1.0, count], [0.0, 1.0]])
        covariance = step @ self._covariance @ step.T
        # The excess may change its mind within some hundred slots.
        covariance[1, 1] += count * (self.rate_sigma * self.slot_samples) ** 2 / 500
        off = fix.index - index
        spread = covariance[0, 0] + measured
        if abs(off) > max(self.gate_sigma * math.sqrt(spread), 0.1):
            self.rejected += 1
            self._refused += 1
            if self._refused < self.patience:
                return False
            self._start(fix, ppm, measured)
            return True
        gain = covariance[:, 0] / spread
        self._index = index + gain[0] * off
        self._excess += gain[1] * off
        self._covariance = covariance - np.outer(gain, covariance[0])
        self._slot, self._ppm, self._refused = fix.slot, ppm, 0
        return True

    def index_of(self, slot: int) -> float:
        """Give the RX index, fractional, at which a slot begins.

        Raises:
            ValueError: no fix has been taken.
        """
        last = self._known()
        return self._index + (slot - last) * (self._nominal(self._ppm) + self._excess)

    def sigma_of(self, slot: int) -> float:
        """Give the standard deviation of ``index_of(slot)`` in samples."""
        reach = np.array([1.0, slot - self._known()])
        return math.sqrt(float(reach @ self._covariance @ reach))

    def state(self) -> dict[str, Any]:
        """Give everything as numbers and lists, exact through JSON."""
        return {
            "slot_samples": self.slot_samples,
            "rate_sigma": self.rate_sigma,
            "jitter_samples": self.jitter_samples,
            "gate_sigma": self.gate_sigma,
            "patience": self.patience,
            "rejected": self.rejected,
            "refused": self._refused,
            "slot": self._slot,
            "ppm": self._ppm,
            "index": self._index,
            "excess": self._excess,
            "covariance": self._covariance.tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> SlotClock:
        """Rebuild a clock from ``state()``."""
        options = ("rate_sigma", "jitter_samples", "gate_sigma", "patience")
        clock = cls(state["slot_samples"], **{name: state[name] for name in options})
        clock.rejected, clock._refused, clock._slot = state["rejected"], state["refused"], state["slot"]
        clock._ppm, clock._index, clock._excess = state["ppm"], state["index"], state["excess"]
        clock._covariance = np.array(state["covariance"], dtype=np.float64)
        return clock

    def _known(self) -> int:
        if self._slot is None:
            raise ValueError("the slot clock has no fix: update it with a beacon first")
        return self._slot

    def _nominal(self, ppm: float) -> float:
        return self.slot_samples * (1.0 + ppm * 1e-6)

    def _start(self, fix: BeaconFix, ppm: float, measured: float) -> None:
        self._slot, self._ppm, self._index, self._excess = fix.slot, ppm, fix.index, 0.0
        self._covariance = np.diag([measured, (self.rate_sigma * self.slot_samples) ** 2])
        self._refused = 0
