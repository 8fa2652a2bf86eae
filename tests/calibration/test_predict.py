"""The NMSE formula against Monte Carlo of its own model, in both modes."""

import dataclasses
import math

import numpy as np
import pytest

from calibration import NodeBudget, predict_nmse_db, refuse_coherent
from radio.ofdm import PROFILES, capacity, clip, drive_for_backoff, pack


@pytest.mark.parametrize("mode", ["R", "C"])
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("gamma_db", [0.0, 10.0, 30.0])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_formula_matches_monte_carlo(mode, sigma, gamma_db, rho):
    rng = np.random.default_rng(3)
    nodes, elements, rounds, sigma_eps = 8, 64, 3000, 0.03
    noise = 10 ** (-gamma_db / 10)
    common = rng.standard_normal((rounds, 1, elements)) + 1j * rng.standard_normal((rounds, 1, elements))
    own = rng.standard_normal((rounds, nodes, elements)) + 1j * rng.standard_normal((rounds, nodes, elements))
    x = (math.sqrt(rho) * common + math.sqrt(1 - rho) * own) / math.sqrt(2)
    if mode == "R":
        x = x.real * math.sqrt(2)
    gain = (1 + sigma_eps * rng.standard_normal((rounds, nodes, 1))) * np.exp(
        1j * sigma * rng.standard_normal((rounds, nodes, 1))
    )
    noise_samples = rng.standard_normal((rounds, elements)) + 1j * rng.standard_normal((rounds, elements))
    y = (gain * x).sum(1) + math.sqrt(noise / 2) * noise_samples
    if mode == "R":
        y = y.real
    s = x.sum(1)
    measured = 10 * math.log10(np.sum(np.abs(y - s) ** 2) / np.sum(np.abs(s) ** 2))
    predicted = predict_nmse_db(mode, [NodeBudget(1.0, sigma, sigma_eps)] * nodes, noise, rho)
    assert predicted == pytest.approx(measured, abs=0.3)


def test_unequal_powers_weigh_the_errors_of_the_strong():
    strong_is_bad = [NodeBudget(1.0, 0.4, 0.0), NodeBudget(0.01, 0.0, 0.0)]
    weak_is_bad = [NodeBudget(1.0, 0.0, 0.0), NodeBudget(0.01, 0.4, 0.0)]
    assert predict_nmse_db("R", strong_is_bad, 1e-6) > predict_nmse_db("R", weak_is_bad, 1e-6) + 15


def test_coherent_mode_is_refused_above_half_a_radian():
    assert refuse_coherent(0.49) is None
    assert "0.61 rad" in (refuse_coherent(0.61) or "")


def test_no_power_is_an_error_not_a_number():
    with pytest.raises(ValueError, match="total power 0"):
        predict_nmse_db("R", [NodeBudget(0.0, 0.1, 0.0)], 1.0)


@pytest.mark.parametrize("mode", ["R", "C"])
def test_clipping_is_counted_as_bursts_show_it(mode):
    profile = dataclasses.replace(PROFILES["pluto-915"], modes=("R", "C"))
    rng = np.random.default_rng(11)
    bins = np.asarray(profile.bins)
    drive = drive_for_backoff(profile, 9.0)
    off = sent = 0.0
    for burst in range(600):
        reals = rng.standard_normal(capacity(profile, mode)).astype(np.float32)
        data = pack(reals / np.float32(1 if mode == "R" else math.sqrt(2)), profile, mode, burst)[0]
        turn = np.exp(2j * np.pi * (bins * rng.uniform(-1, 1) / profile.fft + rng.uniform()))  # a precoder's
        spectrum = np.zeros((len(data), profile.fft), np.complex64)
        spectrum[:, bins] = drive * data * turn
        samples, _ = clip(np.fft.ifft(spectrum, norm="ortho").astype(np.complex64).ravel())
        seen = np.fft.fft(samples.reshape(spectrum.shape), norm="ortho")[:, bins] / (drive * turn)
        error = seen - data
        off += float(np.sum(error.real**2 if mode == "R" else np.abs(error) ** 2))
        sent += float(np.sum(np.abs(data) ** 2))
    nothing_else = predict_nmse_db(mode, [NodeBudget(1.0, 0.0, 0.0)], 0.0)
    # Few samples clip, and hard: over 600 bursts the mean has a standard error of 8 % (C) and 10 % (R), 0.4 dB.
    assert nothing_else == pytest.approx(10 * math.log10(off / sent), abs=1.0)
