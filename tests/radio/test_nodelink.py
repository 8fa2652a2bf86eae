"""What a node sends is turned by the phase that its tracker predicts, sample by sample."""

import numpy as np
import pytest

from radio.base import TxReport
from radio.beacon import BeaconFix
from radio.ether import Ether
from radio.loopback import LoopbackRadio
from radio.nodelink import NodeLink, Wave
from radio.ofdm import PROFILES
from radio.presets import preset
from radio.track import PhaseTracker

PROFILE = PROFILES["pluto-915"]


def test_the_phase_drawn_between_knots_is_the_predicted_one_at_full_drift(monkeypatch):
    """A kilohertz per second, far above what crystals do: 1.3e-5 rad at most, and rounding of single precision."""
    rate, drift_hz_s = PROFILE.rate_hz, 1e3
    tracker = PhaseTracker(adev=1e-9, rate_hz=rate, carrier_hz=PROFILE.beacon_hz, drift_hz_s=drift_hz_s)
    for slot in range(20):
        t = slot * PROFILE.slot_samples / rate
        tracker.update(
            BeaconFix(
                index=t * rate,
                slot=slot,
                cfo_hz=300 + drift_hz_s * t,
                cfo_sigma_hz=1.0,
                phase_rad=float(np.angle(np.exp(2j * np.pi * (300 * t + drift_hz_s * t * t / 2)))),
                phase_sigma_rad=0.005,
                reference=t * rate,
                snr_db=20.0,
                index_sigma=0.01,
                gain=1.0,
            )
        )
    sent = []
    radio = LoopbackRadio("node-1", Ether(preset("ideal"), ("server", "node-1")))
    monkeypatch.setattr(radio, "transmit", lambda samples, start: sent.append(samples) or TxReport(start, 0, 0))
    link = NodeLink(radio, PROFILE, 60.0, 1e-9, seed=1, tracker=tracker, residue_hz=7.0)
    index = np.arange(215_000, 215_000 + PROFILE.burst_samples + 1, dtype=np.float64)
    link.send(Wave(index, np.full(index.size, 0.5, np.complex64)))
    exact = tracker.predict(index).phase_rad - 2 * np.pi * 7.0 / rate * index
    error = np.angle(sent[0] * np.exp(-1j * exact))
    bent_hz = np.ptp(tracker.predict(index[[0, -1]]).freq_hz)
    assert bent_hz == pytest.approx(drift_hz_s * index.size / rate, rel=0.2), "the tracker saw the drift"
    assert np.abs(error).max() < 1.4e-5
