"""Phase and slot tracking against oscillators whose truth is known: a flicker generator of the test's own."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from radio.beacon import BeaconFix
from radio.track import PhaseTracker, SlotClock

CARRIER, RATE = 915e6, 1e6
HORIZONS_MS = (5, 10, 20, 50, 100, 200)
# Rms phase error of a pair at 915 MHz, beacon every 10 ms, 5 mrad measurement, three-state filter.
TABLE = {
    1e-10: (0.010, 0.015, 0.026, 0.060, 0.12, 0.27),
    3e-10: (0.020, 0.035, 0.068, 0.18, 0.38, 0.81),
    1e-9: (0.057, 0.11, 0.23, 0.63, 1.4, np.nan),
}


def flicker(adev: float, count: int, step_s: float, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Fractional frequency of one oscillator at its flicker floor, (runs, count): relaxations half an octave apart."""
    ratio = 1.5
    total = np.zeros((count, runs))
    variance = adev**2 / (2 * np.log(2)) * np.log(ratio)
    for time_s in 3e-4 * ratio ** np.arange(38):
        keep = np.exp(-step_s / time_s)
        value = np.sqrt(variance) * rng.standard_normal(runs)
        kicks = np.sqrt(variance * (1 - keep**2)) * rng.standard_normal((count, runs))
        for n in range(count):
            total[n] += value
            value = keep * value + kicks[n]
    return total.T


def phases(adev: float, count: int, runs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frequency (Hz, at the start of each ms) and phase (rad) of two such oscillators' difference, plus a constant."""
    two = [flicker(adev, count, 1e-3, runs, rng) for _ in range(2)]
    freq = CARRIER * (two[0] - two[1]) + rng.uniform(-300, 300, (runs, 1))
    phase = np.cumsum(np.hstack([rng.uniform(-3, 3, (runs, 1)), 2e-3 * np.pi * freq]), axis=1)
    return freq, phase


def fix_at(ms: int, phase: float, freq: float, rng: np.random.Generator, sigma: float = 0.005) -> BeaconFix:
    return BeaconFix(
        index=ms * 1e3 - 787.5,
        slot=ms // 10,
        cfo_hz=freq + 1.6 * rng.standard_normal(),
        cfo_sigma_hz=1.6,
        phase_rad=float(np.angle(np.exp(1j * (phase + sigma * rng.standard_normal())))),
        phase_sigma_rad=sigma,
        reference=ms * 1e3,
        snr_db=16.0,
        index_sigma=0.004,
        gain=1.0,
    )


def tracker(adev: float = 3e-10, **options: float) -> PhaseTracker:
    return PhaseTracker(adev=adev, rate_hz=RATE, carrier_hz=CARRIER, phase_noise_rad=0.0, **options)


def followed(adev: float, at_ms: list[int], horizons_ms: tuple[int, ...], runs: int, seed: int) -> tuple:
    """Track beacons at ``at_ms`` many times; errors (modulo turns at the first horizon), sigmas: (runs, horizons)."""
    rng = np.random.default_rng(seed)
    freq, phase = phases(adev, at_ms[-1] + horizons_ms[-1] + 1, runs, rng)
    errors, sigmas, refused = [], [], 0
    for run in range(runs):
        filter_ = tracker(adev)
        for ms in at_ms:
            filter_.update(fix_at(ms, phase[run, ms], freq[run, ms], rng))
        refused += filter_.rejected
        ahead = np.array([at_ms[-1] + ms for ms in horizons_ms])
        predicted = filter_.predict(ahead * 1e3)
        off = predicted.phase_rad - phase[run, ahead]
        errors.append(off - 2 * np.pi * np.round(off[0] / (2 * np.pi)))
        sigmas.append(predicted.sigma_rad)
    assert refused <= 1e-4 * runs * len(at_ms)  # the gate at five sigma refuses one honest fix in a million
    return np.array(errors), np.array(sigmas)


def test_the_generator_of_this_test_has_a_flat_allan_deviation() -> None:
    rng = np.random.default_rng(0)
    values = flicker(3e-10, 1000, 1e-3, 100, rng)
    for span in (10, 30, 100):
        means = values[:, : 1000 // span * span].reshape(100, -1, span).mean(axis=2)
        adev = np.sqrt(np.mean(np.diff(means, axis=1) ** 2) / 2)
        assert adev == pytest.approx(3e-10, rel=0.1)


@pytest.mark.parametrize("adev", list(TABLE))
def test_prediction_error_matches_the_table_and_its_own_sigma(adev: float) -> None:
    errors, sigmas = followed(adev, list(range(0, 600, 10)), HORIZONS_MS, runs=400, seed=int(adev * 1e12))
    rms = np.sqrt(np.mean(errors**2, axis=0))
    expected = np.array(TABLE[adev])
    ratio = (rms / expected)[np.isfinite(expected)]
    # Better than the three-state filter of the table at the worst crystal, where its one noise figure fits least.
    assert np.all(ratio < 1.15), ratio
    assert np.all(ratio > 0.70), ratio
    assert np.mean(ratio) == pytest.approx(1.0, abs=0.2)
    chi = np.sqrt(np.mean((errors / sigmas) ** 2, axis=0))
    assert np.all(np.abs(chi - 1) < 0.15), chi


def test_irregular_beacons_keep_sigma_true() -> None:
    at_ms = [base + step for base in range(0, 490, 70) for step in (0, 10, 20, 30, 40)]
    assert max(b - a for a, b in pairwise(at_ms)) == 30
    errors, sigmas = followed(3e-10, at_ms, (5, 15, 30), runs=400, seed=5)
    chi = np.sqrt(np.mean((errors / sigmas) ** 2, axis=0))
    assert np.all(np.abs(chi - 1) < 0.2), chi
    assert np.sqrt(np.mean(errors[:, 2] ** 2)) == pytest.approx(0.1, rel=0.25)  # between 0.068 and 0.18 in the table


def test_first_predictions_from_a_weak_start_are_honest() -> None:
    rng = np.random.default_rng(6)
    scaled = []
    for _ in range(300):
        freq, filter_ = rng.uniform(-300, 300), tracker(1e-10)
        for ms in (0, 10, 20):
            weak = fix_at(ms, 2e-3 * np.pi * freq * ms, freq, rng, sigma=0.03)
            filter_.update(BeaconFix(**{**vars(weak), "cfo_sigma_hz": 5.0, "cfo_hz": freq + 5 * rng.standard_normal()}))
        predicted = filter_.predict(30e3)
        off = predicted.phase_rad - 2e-3 * np.pi * freq * 30
        scaled.append((off - 2 * np.pi * np.round(off / (2 * np.pi))) / predicted.sigma_rad)
    assert np.sqrt(np.mean(np.square(scaled))) == pytest.approx(1.0, abs=0.25)


def test_a_gap_too_long_for_the_phase_keeps_the_frequency() -> None:
    rng = np.random.default_rng(7)
    filter_ = tracker(1e-9)
    for ms in range(0, 300, 10):
        filter_.update(fix_at(ms, 0.2 * np.pi * ms, 100.0, rng))
    assert filter_.epoch == 1
    assert filter_.update(fix_at(5_300, 1.0, 100.5, rng))
    assert filter_.epoch == 2 and filter_.rejected == 0
    predicted = filter_.predict(5_300e3)
    assert np.angle(np.exp(1j * (predicted.phase_rad - 1.0))) == pytest.approx(0.0, abs=0.03)
    assert predicted.sigma_rad < 0.01
    assert predicted.freq_hz == pytest.approx(100.0, abs=2.0)


def test_outliers_are_refused_and_a_lasting_change_starts_again() -> None:
    rng = np.random.default_rng(8)
    filter_ = tracker()
    for ms in range(0, 200, 10):
        filter_.update(fix_at(ms, 0.0, 0.0, rng))
    before = filter_.predict(210e3)
    assert not filter_.update(fix_at(200, 2.0, 0.0, rng))
    assert filter_.rejected == 1
    assert filter_.predict(210e3).phase_rad == before.phase_rad
    assert filter_.update(fix_at(210, 0.0, 0.0, rng))
    # A retune: phase and frequency are new for good.
    taken = [filter_.update(fix_at(220 + 10 * n, 2.0 + 0.4 * np.pi * n * 10, 200.0, rng)) for n in range(4)]
    assert taken == [False, False, True, True]
    assert filter_.epoch == 2 and filter_.rejected == 4
    assert filter_.predict(250e3).freq_hz == pytest.approx(200.0, abs=5.0)


def test_drift_of_a_warming_crystal_is_followed() -> None:
    rng = np.random.default_rng(9)
    filter_ = tracker(1e-10)
    slope = 20e-9 * CARRIER  # Hz per second
    for ms in range(0, 1000, 10):
        t = ms * 1e-3
        assert filter_.update(fix_at(ms, 2 * np.pi * (50 * t + slope * t * t / 2), 50 + slope * t, rng))
    ahead = filter_.predict(np.array([1040e3]))
    truth = 2 * np.pi * (50 * 1.04 + slope * 1.04**2 / 2)
    off = (ahead.phase_rad[0] - truth + np.pi) % (2 * np.pi) - np.pi
    assert abs(off) < 3 * ahead.sigma_rad[0] < 0.3


def test_predictions_take_arrays_and_look_back() -> None:
    rng = np.random.default_rng(10)
    filter_ = tracker()
    for ms in range(0, 300, 10):
        filter_.update(fix_at(ms, 0.02 * np.pi * ms, 10.0, rng))
    index = np.linspace(285e3, 330e3, 12).reshape(3, 4)
    many = filter_.predict(index)
    assert many.phase_rad.shape == many.sigma_rad.shape == many.freq_hz.shape == (3, 4)
    for at, phase, sigma in zip(index.ravel(), many.phase_rad.ravel(), many.sigma_rad.ravel(), strict=True):
        one = filter_.predict(float(at))
        assert isinstance(one.phase_rad, float)
        assert one.phase_rad == pytest.approx(phase, abs=1e-9) and one.sigma_rad == pytest.approx(sigma, rel=1e-9)
    np.testing.assert_allclose(
        np.diff(many.phase_rad.ravel()), 2 * np.pi * 10 * np.diff(index.ravel()) / RATE, atol=0.05
    )
    with pytest.raises(ValueError, match="no fix"):
        tracker().predict(0.0)
    with pytest.raises(ValueError, match="older"):
        filter_.update(fix_at(100, 0.0, 10.0, rng))


def test_another_carrier_scales_the_variation_and_not_the_anchor() -> None:
    rng = np.random.default_rng(11)
    filter_ = tracker()
    for ms in range(0, 100, 10):
        filter_.update(fix_at(ms, 1.0 + 0.02 * np.pi * ms, 10.0, rng))
    scale = 905.0 / 915.0
    index = np.array([100e3, 120e3])
    down, up = filter_.predict(index), filter_.predict(index, scale=scale)
    anchor = filter_.state()["anchor_rad"]
    assert anchor == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(up.phase_rad - anchor, scale * (down.phase_rad - anchor), rtol=1e-12)
    np.testing.assert_allclose(up.sigma_rad, scale * down.sigma_rad, rtol=1e-12)
    np.testing.assert_allclose(up.freq_hz, scale * down.freq_hz, rtol=1e-12)


def test_state_goes_through_json_and_continues_bit_for_bit() -> None:
    rng = np.random.default_rng(12)
    assert PhaseTracker.from_state(json.loads(json.dumps(tracker().state()))).locked is False
    one, clock = tracker(1e-10, gate_sigma=6.0), SlotClock(10_000)
    for ms in range(0, 100, 10):
        fix = fix_at(ms, 0.01 * ms, 1.6, rng)
        one.update(fix)
        clock.update(fix, 2.0)
    two = PhaseTracker.from_state(json.loads(json.dumps(one.state())))
    other = SlotClock.from_state(json.loads(json.dumps(clock.state())))
    fix = fix_at(110, 1.1, 1.6, rng)
    assert one.update(fix) == two.update(fix) and one.state() == two.state()
    assert one.predict(130e3) == two.predict(130e3)
    assert clock.update(fix, 2.0) == other.update(fix, 2.0) and clock.state() == other.state()


def test_covariance_stays_sound_over_many_updates() -> None:
    rng = np.random.default_rng(13)
    filter_ = tracker(1e-11)
    for ms in range(0, 60_000, 10):
        filter_.update(fix_at(ms, 0.0, 0.0, rng))
    covariance = np.array(filter_.state()["covariance"])
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-12)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    assert filter_.rejected < 5 and filter_.epoch == 1


def slot_fix(slot: int, index: float, sigma: float, rng: np.random.Generator) -> BeaconFix:
    return BeaconFix(index + sigma * rng.standard_normal(), slot, 0.0, 3.0, 0.0, 0.01, index + 787.5, 10.0, sigma, 1.0)


def test_slot_clock_averages_beacons_and_tells_its_sigma() -> None:
    rng = np.random.default_rng(14)
    errors, scaled = [], []
    for _ in range(300):
        ppm, first = rng.uniform(-50, 50), 3e9 + rng.uniform(0, 1)
        length = 10_000 * (1 + ppm * 1e-6)
        clock = SlotClock(10_000)
        for slot in (100, 101, 102, 103, 104):
            told = ppm + 3.5e-3 * rng.standard_normal()  # one beacon's offset at 10 dB, 3.2 Hz of 915 MHz
            assert clock.update(slot_fix(slot, first + (slot - 100) * length, 0.0067, rng), told)
        errors.append(clock.index_of(108) - first - 8 * length)
        scaled.append((clock.index_of(104) - first - 4 * length) / clock.sigma_of(104))
    assert np.sqrt(np.mean(np.square(errors))) < 0.006
    assert np.max(np.abs(errors)) < 0.02
    assert np.sqrt(np.mean(np.square(scaled))) == pytest.approx(1.0, abs=0.15)


def test_slot_clock_learns_a_rate_that_the_carrier_does_not_tell() -> None:
    rng = np.random.default_rng(15)
    clock = SlotClock(10_000)
    length = 10_000 * (1 + 10.03e-6)
    for slot in range(300):
        assert clock.update(slot_fix(slot, 5.0 + slot * length, 0.007, rng), 10.0)
    assert clock.index_of(320) == pytest.approx(5.0 + 320 * length, abs=0.01)


def test_slot_clock_refuses_outliers_and_starts_again_after_a_jump() -> None:
    rng = np.random.default_rng(16)
    clock = SlotClock(10_000)
    with pytest.raises(ValueError, match="no fix"):
        clock.index_of(3)
    for slot in range(10):
        clock.update(slot_fix(slot, slot * 10_000, 0.007, rng), 0.0)
    assert not clock.update(slot_fix(10, 100_000 + 4, 0.007, rng), 0.0)
    assert clock.index_of(11) == pytest.approx(110_000, abs=0.02)
    taken = [clock.update(slot_fix(slot, slot * 10_000 - 4096, 0.007, rng), 0.0) for slot in (11, 12, 13)]
    assert taken == [False, True, True]
    assert clock.rejected == 3
    assert clock.index_of(20) == pytest.approx(200_000 - 4096, abs=0.05)
    with pytest.raises(ValueError, match="order"):
        clock.update(slot_fix(5, 50_000, 0.007, rng), 0.0)
