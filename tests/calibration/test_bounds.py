"""The estimators in use against their bounds, and the bounds against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.bounds import (
    NODES,
    beacon_bound,
    errors_beacon,
    errors_pilot,
    errors_sounding,
    pilot_bound,
    sounding_bound,
)
from radio.ofdm import PROFILES

PLUTO = PROFILES["pluto-915"]


def over_db(errors, least):
    return 20 * np.log10(np.sqrt(np.mean(errors**2, axis=0)) / np.array(least))


@pytest.mark.parametrize("snr_db", [5.0, 10.0, 20.0, 30.0])
def test_offset_and_delay_stay_within_a_decibel_and_a_half_of_the_bound(snr_db):
    rng, trials = np.random.default_rng([int(snr_db), 1]), 400  # an rms error to 0.3 dB
    ratios = [
        *over_db(errors_beacon(PLUTO, snr_db, trials, rng), beacon_bound(PLUTO, snr_db)),
        over_db(errors_sounding(PLUTO, snr_db, trials, rng), sounding_bound(PLUTO, snr_db)),
        over_db(errors_pilot(PLUTO, snr_db, trials, rng), pilot_bound(PLUTO, snr_db)),
    ]
    assert max(ratios) < 1.5, ratios
    assert min(ratios) > -1.0, ratios  # nothing beats a bound, but for the luck of so many trials


def test_bounds_have_their_closed_forms():
    """Frequency and delay of a known signal: Kay, sections 3.11 and 8.9; a gain is common to all bins of a sounding."""
    gamma, places = 10.0, 500.0 * np.sign(np.arange(512) - 255.5) + np.tile(np.arange(256) - 127.5, 2)
    offset_hz = PLUTO.rate_hz / (2 * np.pi * np.sqrt(2 * gamma * np.sum(places**2)))
    assert beacon_bound(PLUTO, 10.0)[0] == pytest.approx(offset_hz, rel=0.02)  # its envelope is not quite flat
    rate = 2 * np.pi / PLUTO.fft * (np.array(PLUTO.bins) - np.mean(PLUTO.bins))
    assert sounding_bound(PLUTO, 10.0) == pytest.approx(1 / np.sqrt(2 * 2 * gamma * np.sum(rate**2)), rel=1e-9)
    # Other nodes cost little: their pilots are orthogonal but for the delays.
    alone = 1 / np.sqrt(2 * 3 * gamma * np.sum(rate**2))
    assert alone < pilot_bound(PLUTO, 10.0) < 1.3 * alone and NODES == 8
    assert beacon_bound(PLUTO, 10.0, whole=True) < beacon_bound(PLUTO, 10.0)
    assert beacon_bound(PLUTO, 30.0)[0] == pytest.approx(beacon_bound(PLUTO, 10.0)[0] / 10)
