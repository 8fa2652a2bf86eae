"""Channel estimates against links whose truth is known, at low and at high SNR."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.channel import (
    align,
    coherence_bandwidth,
    coherence_time,
    delay_profile,
    estimate_channel,
    raw_gains,
)
from radio.errors import LinkError
from radio.ofdm import PROFILES
from radio.sync import estimate_link, sounding

PLUTO, USRP = PROFILES["pluto-915"], PROFILES["usrp-ref"]
DRIVE, REPEATS = 0.5, 16
ONE_PATH, ECHOES, ROOM = ((0.0, 1.0),), ((0.0, 1.0), (1.0, 0.5), (2.0, 0.3)), ((0.0, 1.0), (0.1, 0.3), (0.2, 0.2))


def link(rng, taps, profile=PLUTO):
    """Taps of random phase at delays in samples, all late by up to half a prefix."""
    late = rng.uniform(-profile.cp / 4, profile.cp / 4)
    bins = np.array(profile.bins)
    return late, sum(a * np.exp(2j * np.pi * (rng.random() - bins * (late + d) / profile.fft)) for d, a in taps)


def soundings(rng, gain, snr_db, repeats=REPEATS, profile=PLUTO, jitter_samples=0.0, jitter=0.0):
    """Grids with a random phase each, and the noise that null bins would tell."""
    noise = DRIVE**2 * np.mean(np.abs(gain) ** 2) * 10 ** (-snr_db / 10)
    one = (repeats, 1, 1)
    late = jitter_samples * rng.standard_normal(one)
    turn = np.exp(2j * np.pi * (rng.random(one) - np.array(profile.bins) * late / profile.fft))
    grids = DRIVE * (1 + jitter * rng.standard_normal(one)) * turn * gain * sounding(profile)
    grids = grids + np.sqrt(noise / 2) * (rng.standard_normal(grids.shape) + 1j * rng.standard_normal(grids.shape))
    return grids.astype(np.complex64), noise * (1 + 0.18 * rng.standard_normal(repeats))


def estimated(rng, gain, snr_db, **options):
    profile = options.get("profile", PLUTO)
    grids, noise = soundings(rng, gain, snr_db, **options)
    return estimate_channel(grids, sounding(profile), noise, profile, DRIVE)


def turned(found, truth):
    return found * np.exp(-1j * np.angle(np.vdot(truth, found)))


@pytest.mark.parametrize("taps", [ONE_PATH, ROOM, ECHOES], ids=["one path", "room", "echoes"])
@pytest.mark.parametrize("snr_db", [-5.0, 5.0, 20.0])
def test_gain_snr_and_delay_lie_in_their_intervals(taps, snr_db):
    """With echoes the true delay is the estimator's own definition on the link without noise."""
    held, off, trials = np.zeros(4), [], 50
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        late, gain = link(rng, taps)
        found = estimated(rng, gain, snr_db, jitter_samples=0.002, jitter=0.01)
        clean = estimate_link(gain[None].astype(np.complex64), np.ones((1, 96), np.complex64), 0.0, PLUTO, "ls")
        if taps is ONE_PATH:
            assert clean.delay_samples == pytest.approx(late, abs=1e-3)
        gain_db = 10 * np.log10(np.mean(np.abs(gain) ** 2))
        held += [
            found.gain_db.holds(gain_db),
            found.snr_db.holds(snr_db),
            found.delay_samples.holds(clean.delay_samples),
            np.mean(np.abs(turned(found.ls, gain) - gain) < np.sqrt(np.log(20)) * found.ls_sigma),  # 95 % of Rayleigh
        ]
        off.append([found.gain_db.value - gain_db, found.delay_samples.value - clean.delay_samples])
    share = held / trials
    assert np.all(share >= 0.86) and 0.9 <= share.mean() <= 0.99, share  # 50 of each, 200 in all
    if snr_db >= 20:
        gain_off, delay_off = np.quantile(np.abs(off), 0.95, axis=0)
        assert gain_off < 0.17  # 2 %
        assert delay_off < 0.02


def test_the_prior_smooths_noise_and_its_error_is_the_one_it_tells():
    ratio, gained = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        _, gain = link(rng, ROOM)
        found = estimated(rng, gain, 10.0)
        error = np.mean(np.abs(turned(found.mmse, gain) - gain) ** 2)
        ratio.append(error / found.mmse_sigma**2)
        gained.append(np.mean(np.abs(turned(found.ls, gain) - gain) ** 2) / error)
    assert 0.5 < np.mean(ratio) < 1.5
    assert np.median(gained) > 10


def test_soundings_are_turned_to_agree_whatever_their_phases():
    rng = np.random.default_rng(1)
    _, gain = link(rng, ECHOES)
    grids, _ = soundings(rng, gain, 20.0)
    raw = raw_gains(grids, sounding(PLUTO), DRIVE)
    mean = align(raw).mean(axis=0)
    assert np.mean(np.abs(turned(mean, gain) - gain) ** 2) < 0.01 * np.mean(np.abs(gain) ** 2)
    assert np.angle(np.vdot(mean, raw.mean(axis=0))) == pytest.approx(0, abs=1e-9)


def test_silence_and_too_few_soundings_are_errors():
    rng = np.random.default_rng(2)
    noise = (rng.standard_normal((8, 2, 96)) + 1j * rng.standard_normal((8, 2, 96))).astype(np.complex64)
    with pytest.raises(LinkError, match="nothing heard in 8 soundings"):
        estimate_channel(noise, sounding(PLUTO), np.full(8, 2.2), PLUTO)
    with pytest.raises(LinkError, match="3 soundings"):
        estimate_channel(noise[:3], sounding(PLUTO), np.full(3, 2.0), PLUTO)


@pytest.mark.parametrize("profile", [PLUTO, USRP], ids=lambda profile: profile.name)
def test_the_delay_profile_shows_echoes_that_it_resolves(profile):
    rng = np.random.default_rng(3)
    _, gain = link(rng, ((0.0, 1.0), (8.0, 0.5)), profile)
    found = estimated(rng, gain, 30.0, profile=profile)
    at = np.argmin(np.abs(found.pdp_s - 8.0 / profile.rate_hz))
    assert found.pdp_db[at] == pytest.approx(20 * np.log10(0.5), abs=0.7)
    assert found.pdp_db[np.argmin(np.abs(found.pdp_s))] == 0.0
    span = (profile.bins[-1] - profile.bins[0] + 1) * profile.spacing_hz
    assert found.resolution_s == pytest.approx(1.44 * np.sqrt(2) / 1.414 / span, rel=0.4)
    # Two paths of power 1 and 1/4: the spread is 8 samples times sqrt(4)/5.
    assert found.rms_delay_s * profile.rate_hz == pytest.approx(8 * 2 / 5, rel=0.1)


def test_one_path_has_no_spread_and_no_coherence_bandwidth():
    rng = np.random.default_rng(4)
    late, gain = link(rng, ONE_PATH)
    found = estimated(rng, gain, 20.0)
    assert found.rms_delay_s * PLUTO.rate_hz < 0.15 and found.coherence_hz is None
    assert delay_profile(gain, late, PLUTO)[1].max() == pytest.approx(0, abs=1e-6)


def test_two_equal_paths_agree_by_half_at_the_known_spacing():
    bins = np.array(PLUTO.bins)
    gain = 1 + np.exp(-2j * np.pi * bins * 16 / PLUTO.fft)  # correlation |cos(pi 16 d / 256)|: half at d = 16/3
    assert coherence_bandwidth(gain, 0.0, PLUTO) == pytest.approx(16 / 3 * PLUTO.spacing_hz, rel=0.1)


@pytest.mark.parametrize("snr_db", [5.0, 30.0])
def test_coherence_time_is_that_of_a_fading_echo(snr_db):
    """One path, and an echo of power p that turns at f: the old gain explains |1 + p e^jx|^2/(1 + p)^2, x = 2 pi f s.

    With p = 1/4 that falls to 0.9 where 1 - cos x = 0.1 (1 + p)^2/(2 p).
    """
    rng = np.random.default_rng(5)
    at, bins, turns_hz = np.arange(120) * 0.05, np.array(PLUTO.bins), 0.5
    echo = 0.5 * np.exp(2j * np.pi * (turns_hz * at[:, None] - bins * 8 / PLUTO.fft))
    gains = (1 + echo) * np.exp(2j * np.pi * rng.random((120, 1)))
    error = 1.25 * 10 ** (-snr_db / 10)
    noise = np.sqrt(error / 2) * (rng.standard_normal(gains.shape) + 1j * rng.standard_normal(gains.shape))
    x = np.arccos(1 - 0.1 * 1.25**2 / 0.5)
    assert coherence_time(at, gains + noise, error) == pytest.approx(x / (2 * np.pi * turns_hz), rel=0.08)
    still = np.tile(gains[:1], (120, 1)) * np.exp(2j * np.pi * rng.random((120, 1)))
    assert coherence_time(at, still + noise, error) is None
