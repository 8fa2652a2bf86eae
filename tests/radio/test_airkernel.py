"""The compiled loops against double-precision models."""

import numpy as np
import pytest
from scipy import stats

from radio import airkernel as air
from radio.airmodel import hear, interpolate
from radio.base import RadioConfig
from radio.ether import Ether
from radio.presets import preset
from radio.render import antenna

CONFIG = RadioConfig(1e6, 915e6, 915e6, 1e6, 60.0)


def band_limited(count: int, edge: float, seed: int) -> np.ndarray:
    """Noise inside +/- edge of the sample rate, rms about 0.2, faded in and out."""
    draw = np.random.default_rng(seed)
    spectrum = draw.standard_normal(count) + 1j * draw.standard_normal(count)
    spectrum[np.abs(np.fft.fftfreq(count)) > edge] = 0.0
    wave = np.fft.ifft(spectrum) * np.minimum(1.0, np.hanning(count) * 40.0)
    return (0.2 * wave / np.sqrt(np.mean(np.abs(wave) ** 2))).astype(np.complex64)


def error_db(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10.0 * np.log10(np.sum(np.abs(found - wanted) ** 2) / np.sum(np.abs(wanted) ** 2)))


def test_fractional_filters_over_the_band():
    table = air.fractional_table().astype(float)
    mu = np.arange(table.shape[0]) / air.PHASES - air.MARGIN
    frequency = np.linspace(-air.BAND, air.BAND, 401)
    tap = np.arange(air.TAPS) - air.TAPS // 2 + 1
    response = table @ np.exp(-2j * np.pi * np.outer(tap, frequency))
    error = np.abs(response - np.exp(-2j * np.pi * np.outer(mu, frequency)))
    assert 20 * np.log10(error.max()) < -60.0  # worst single tone, worst delay
    assert 10 * np.log10((error**2).mean(axis=1).max()) < -80.0  # white signal, worst delay


def test_rotation_is_exact_to_single_precision():
    phase = np.array([0.3, 75.0, 149.5, 149.5])
    rot = air.rotation(phase, np.empty(0, np.float32), phase)
    wanted = np.exp(1j * np.interp(np.arange(3 * air.BLOCK), np.arange(4) * air.BLOCK, phase))
    assert np.abs(rot[0] + 1j * rot[1] - wanted).max() < 2e-6


def test_reference_interpolator_is_exact_on_a_tone():
    tone = np.exp(2j * np.pi * 0.4 * np.arange(2000))
    at = 1000.0 + np.linspace(0.0, 3.0, 50)
    assert np.abs(interpolate(tone, at) - np.exp(2j * np.pi * 0.4 * at)).max() < 1e-5


@pytest.mark.parametrize("edge", [0.4, 0.42])
@pytest.mark.parametrize(
    "changes",
    [
        {"radios": {"server": {"ppm": 25.0}, "a": {"ppm": -25.0}}},
        {"radios": {"server": {"ppm": -25.0}, "a": {"ppm": 25.0}}, "paths_max": 1},
        {"paths_min": 4, "delay_spread_min_s": 90e-9, "doppler_max_hz": 5.0, "drift_ppb_per_s": 25.0},
    ],
)
def test_kernel_agrees_with_the_plain_model(edge, changes):
    # converters and amplifier spread power outside the band of the filters, where no resampler can be right
    options = preset("pluto-stock", seed=11, dac_bits=0, tx_saturation_dbm=float("inf"), **changes)
    ether = Ether(options, ["server", "a"])
    for name in ether.names:
        ether.open(name)
        ether.configure(name, CONFIG)
    ether.transmit("a", band_limited(8000, edge, 5))
    server, node = ether._stations["server"], ether._stations["a"]
    node.tones.clear()  # the model has no carrier leak
    link = ether._link("a", "server")
    burst = node.bursts[0]
    first = server.device_at(burst.begin_s) // air.BLOCK - 1
    re, im = antenna(server, [(node, link)], options, first, 34)
    wanted = hear(server, node, link, burst, first * air.BLOCK, 34 * air.BLOCK)
    assert error_db(re + 1j * im, wanted) < -80.0
    assert np.sum(np.abs(wanted) ** 2) > 0.0


def test_convert_quantises_saturates_and_counts():
    value = np.array([0.0, 0.3, 0.99999, 1.7, -1.0, -3.0], np.float32)
    zero = np.zeros(6, np.float32)
    out = np.empty(6, np.complex64)
    hits = air.convert(value, zero, zero, zero, 0.0, 1.0, 0j, 0j, 2048.0, out)
    assert hits == 3  # 0.99999 is above the top code 2047/2048 as well
    np.testing.assert_array_equal(out.real * 2048, [0, 614, 2047, 2047, -2048, -2048])
    assert air.convert(value, zero, zero, zero, 0.0, 2.0, 0.1j, 0.5 + 0j, 0.0, out) == 0
    np.testing.assert_allclose(out, 2.0 * value + 0.1j * 2.0 * value + 0.5, rtol=1e-6)


def test_receiver_noise_is_normal_white_and_the_same_however_it_is_cut():
    count = 1 << 20
    re, im = np.empty(count, np.float32), np.empty(count, np.float32)
    air.gaussian(12345, 7_000_000_000, re, im)
    for part in (re, im):
        normal = part.astype(float)
        assert abs(normal.mean()) < 5 / np.sqrt(count) and abs(normal.var() - 1.0) < 5 * np.sqrt(2 / count)
        assert abs(np.mean(normal**4) - 3.0) < 5 * np.sqrt(96 / count)
        assert stats.kstest(normal[::16], "norm").pvalue > 1e-4
        spectrum = np.abs(np.fft.rfft(normal)[1:-1]) ** 2 / count  # of white noise: exponential, mean 1
        assert spectrum.max() < np.log(spectrum.size) + 14
    assert abs(np.mean(re.astype(float) * im)) < 5 / np.sqrt(count)
    assert abs(np.mean(re[1:].astype(float) * re[:-1])) < 5 / np.sqrt(count)
    cut = np.empty((2, 1000), np.float32)
    air.gaussian(12345, 7_000_000_500, cut[0], cut[1])
    assert np.array_equal(cut[0], re[500:1500]) and np.array_equal(cut[1], im[500:1500])
    other = np.empty((2, 1000), np.float32)
    air.gaussian(12346, 7_000_000_500, other[0], other[1])
    assert abs(np.corrcoef(other[0], cut[0])[0, 1]) < 0.2
