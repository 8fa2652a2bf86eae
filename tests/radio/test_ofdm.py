"""The waveform against plain DFT models, closed forms and its own inverse."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.errors import ConfigError, LinkError, SamplesLost
from radio.ofdm import (
    PROFILES,
    assemble,
    bursts_needed,
    canary,
    capacity,
    clip,
    demodulate,
    drive_for_backoff,
    pack,
    pilot,
    precode,
    split,
    synthesise,
    unpack,
    zadoff_chu,
)

BOTH = [pytest.param(PROFILES[name], id=name) for name in ("pluto-915", "usrp-ref")]
ANY_MODE = replace(PROFILES["pluto-915"], modes=("R", "C"))


def db(ratio):
    return 10 * np.log10(ratio)


def gaussian(rng, shape, power=1.0):
    return (np.sqrt(power / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))).astype(np.complex64)


def plain_modulate(grid, profile):
    """Textbook CP-OFDM in double precision: inverse unitary FFT, last ``cp`` samples in front."""
    spectrum = np.zeros((grid.shape[0], profile.fft), complex)
    spectrum[:, profile.bins] = grid
    body = np.fft.ifft(spectrum, norm="ortho")
    return np.concatenate([body[:, -profile.cp :], body], axis=1).reshape(-1)


def plain_synthesise(grid, profile, times):
    """Direct sum of subcarriers, one instant at a time, in double precision."""
    out = np.zeros(len(times), complex)
    for place, time in enumerate(times):
        symbol = int(np.floor(time / profile.symbol_samples))
        if 0 <= symbol < grid.shape[0]:
            inside = time - symbol * profile.symbol_samples - profile.cp
            out[place] = np.sum(grid[symbol] * np.exp(2j * np.pi * np.array(profile.bins) * inside / profile.fft))
    return out / np.sqrt(profile.fft)


@pytest.mark.parametrize("profile", BOTH)
def test_layout(profile):
    assert profile.burst_symbols == 35
    assert profile.burst_samples == 35 * (profile.fft + profile.cp)
    assert profile.max_nodes == 16
    assert not set(profile.bins) & set(profile.nulls)
    # A null must not be the image of an active bin, nor DC.
    assert not {-k for k in profile.bins} & set(profile.nulls)
    assert 0 not in profile.bins + profile.nulls
    assert max(map(abs, profile.bins + profile.nulls)) < profile.fft // 2


def test_figures_of_the_default_profile():
    profile = PROFILES["pluto-915"]
    assert capacity(profile, "R") == 2976
    assert profile.beacon_samples == 160 + 1000 + 256
    assert profile.spacing_hz == 3906.25
    assert bursts_needed(profile, "R", 2976) == 1
    assert bursts_needed(profile, "R", 2977) == 2
    assert capacity(PROFILES["usrp-ref"], "C") == 2 * 31 * 794


def test_uneven_halves_are_refused():
    with pytest.raises(ConfigError, match="10 data symbols before its middle pilot and 21 after"):
        replace(PROFILES["pluto-915"], data_symbols=(10, 21))


@pytest.mark.parametrize("profile", BOTH)
def test_synthesis_at_integers_is_inverse_fft_with_prefix(profile):
    grid = gaussian(np.random.default_rng(1), (35, len(profile.bins)))
    truth = plain_modulate(grid, profile)
    samples = synthesise(grid, profile, np.arange(profile.burst_samples, dtype=float))
    assert samples.dtype == np.complex64
    assert db(np.mean(np.abs(samples - truth) ** 2) / np.mean(np.abs(truth) ** 2)) < -120


@pytest.mark.parametrize("profile", BOTH)
@pytest.mark.parametrize("ppm", [0.0, 2.0, -20.0])
def test_synthesis_at_the_instants_of_a_clock_is_the_sum_of_subcarriers(profile, ppm):
    grid = gaussian(np.random.default_rng(2), (3, len(profile.bins)))
    times = -50.37 + np.arange(3 * profile.symbol_samples + 100) * (1 + 1e-6 * ppm)
    truth = plain_synthesise(grid, profile, times)
    samples = synthesise(grid, profile, times)
    assert db(np.mean(np.abs(samples - truth) ** 2) / np.mean(np.abs(truth) ** 2)) < -110
    outside = (times < 0) | (times >= 3 * profile.symbol_samples)
    assert outside.any() and not samples[outside].any()


@pytest.mark.parametrize("profile", BOTH)
@pytest.mark.parametrize("delay", [-0.5, -0.25, -0.01, 0.0, 0.01, 0.2, 0.49])
def test_a_delay_within_half_a_prefix_is_a_pure_phase_slope(profile, delay):
    delay_samples = delay * profile.cp
    grid = gaussian(np.random.default_rng(3), (5, len(profile.bins)))
    times = np.arange(5 * profile.symbol_samples, dtype=float) - delay_samples
    received, nulls = demodulate(synthesise(grid, profile, times), profile, 5)
    expected = grid * np.exp(-2j * np.pi * np.array(profile.bins) * delay_samples / profile.fft)
    assert received.dtype == np.complex64 and received.shape == grid.shape
    assert db(np.mean(np.abs(received - expected) ** 2)) < -110
    assert nulls.shape == (5, len(profile.nulls))
    assert db(np.mean(np.abs(nulls) ** 2)) < -110


def test_demodulate_starts_where_it_is_told_and_refuses_short_captures():
    profile = PROFILES["pluto-915"]
    grid = gaussian(np.random.default_rng(4), (2, 96))
    samples = np.concatenate([np.zeros(100, np.complex64), synthesise(grid, profile, np.arange(576.0))])
    np.testing.assert_allclose(demodulate(samples, profile, 2, start=100)[0], grid, atol=2e-5)
    with pytest.raises(SamplesLost, match="take samples 101 to 677, the capture holds 0 to 676"):
        demodulate(samples, profile, 2, start=101)
    with pytest.raises(SamplesLost):
        demodulate(samples, profile, 2, start=-1)


@pytest.mark.parametrize("snr_db", [0, 5, 10, 20])
def test_noise_keeps_its_variance_per_element(snr_db):
    profile = PROFILES["pluto-915"]
    noise = 10 ** (-snr_db / 10)
    samples = gaussian(np.random.default_rng(5), 40 * profile.symbol_samples, noise)
    grid, nulls = demodulate(samples, profile, 40)
    for part in (grid, nulls):
        assert np.mean(np.abs(part) ** 2) == pytest.approx(noise, rel=4 / np.sqrt(part.size))


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 9000),
    mode=st.sampled_from(["R", "C"]),
    seed=st.integers(0, 2**63),
    scale=st.floats(1e-3, 1e3),
)
def test_unpack_inverts_pack_and_sums_stay_sums(length, mode, seed, scale):
    rng = np.random.default_rng(length)
    one, two = (scale * rng.standard_normal((2, length))).astype(np.float32)
    packed = pack(one, ANY_MODE, mode, seed)
    assert packed.dtype == np.complex64
    assert packed.shape == (bursts_needed(ANY_MODE, mode, length), 31, 96)
    tolerance = 1e-5 * scale
    np.testing.assert_allclose(unpack(packed, ANY_MODE, mode, length, seed), one, atol=tolerance)
    np.testing.assert_allclose(np.sum(np.abs(packed) ** 2), np.sum(one**2), rtol=1e-4)
    np.testing.assert_allclose(
        packed + pack(two, ANY_MODE, mode, seed), pack(one + two, ANY_MODE, mode, seed), atol=tolerance
    )


def test_packing_whitens_a_sparse_payload():
    profile = PROFILES["pluto-915"]
    sparse = np.zeros(20_000, np.float32)
    sparse[np.random.default_rng(6).choice(20_000, 800, replace=False)] = 1.0
    elements = pack(sparse, profile, "R", 7).real.ravel()
    assert np.max(np.abs(elements)) < 5.5 * np.std(elements)
    assert np.mean(elements**4) / np.mean(elements**2) ** 2 == pytest.approx(3.0, abs=0.2)
    assert np.max(np.abs(sparse)) > 4.9 * np.std(sparse)
    assert not np.allclose(pack(sparse, profile, "R", 8), pack(sparse, profile, "R", 7))


def test_mode_and_length_mistakes_name_the_numbers():
    with pytest.raises(ConfigError, match="mode 'C' on profile 'pluto-915', which permits R"):
        pack(np.ones(4, np.float32), PROFILES["pluto-915"], "C", 0)
    with pytest.raises(ConfigError, match="2977 reals asked from 1 bursts, which hold 2976"):
        unpack(np.zeros((1, 31, 96), np.complex64), PROFILES["pluto-915"], "R", 2977, 0)


@pytest.mark.parametrize(("root", "length"), [(25, 128), (25, 512), (1, 96), (5, 96), (1, 794), (25, 139)])
def test_zadoff_chu_shifts_are_orthogonal(root, length):
    sequence = zadoff_chu(root, length).astype(complex)
    correlation = np.fft.ifft(np.abs(np.fft.fft(sequence)) ** 2) / length
    np.testing.assert_allclose(np.abs(sequence), 1, atol=1e-6)
    np.testing.assert_allclose(np.abs(correlation), np.eye(1, length)[0], atol=1e-5)


def test_zadoff_chu_refuses_a_common_factor():
    with pytest.raises(ValueError, match="share the factor 6"):
        zadoff_chu(6, 96)


@pytest.mark.parametrize("profile", BOTH)
@pytest.mark.parametrize("nodes", [1, 2, 7, 8, 16])
def test_verification_pilots_are_orthogonal_and_of_unit_modulus(profile, nodes):
    pilots = np.stack([pilot(profile, node, nodes) for node in range(nodes)])
    np.testing.assert_allclose(np.abs(pilots), 1, atol=1e-6)
    np.testing.assert_allclose(pilots @ pilots.conj().T / len(profile.bins), np.eye(nodes), atol=2e-5)


@pytest.mark.parametrize(("node", "nodes"), [(0, 17), (8, 8), (-1, 8)])
def test_more_nodes_than_shifts_are_refused(node, nodes):
    with pytest.raises(ConfigError, match=f"shift {node} of {nodes} .* 16 shifts"):
        pilot(PROFILES["pluto-915"], node, nodes)


@pytest.mark.parametrize("mode", ["R", "C"])
def test_canaries_have_unit_power_and_differ_between_nodes(mode):
    profile = PROFILES["usrp-ref"]
    values = np.stack([canary(profile, 11, node, mode) for node in range(8)])
    np.testing.assert_allclose(np.abs(values), 1, atol=1e-6)
    assert (mode == "C") == bool(np.any(values.imag))
    np.testing.assert_array_equal(values[3], canary(profile, 11, 3, mode))
    likeness = np.abs(values @ values.conj().T / values.shape[1] - np.eye(8))
    assert np.max(likeness) < 5 / np.sqrt(values.shape[1])
    assert not np.array_equal(values[3], canary(profile, 12, 3, mode))


def test_a_burst_comes_apart_as_it_was_assembled():
    rng = np.random.default_rng(8)
    data, verification, known = gaussian(rng, (31, 96)), pilot(PROFILES["pluto-915"], 1, 8), gaussian(rng, 96)
    grid = assemble(data, verification, known)
    assert grid.shape == (35, 96)
    np.testing.assert_array_equal(grid[16], verification)
    pilots, payload, last = split(grid)
    np.testing.assert_array_equal(pilots, np.stack([verification] * 3))
    np.testing.assert_array_equal(payload, data)
    np.testing.assert_array_equal(last, known)


def test_precoders_undo_what_they_promise():
    rng = np.random.default_rng(9)
    grid, gain = gaussian(rng, (35, 96)), gaussian(rng, 96)
    phase = precode(grid, gain, "phase", 0.5)
    np.testing.assert_allclose(phase * gain, 0.5 * np.abs(gain) * grid, atol=1e-5)
    np.testing.assert_allclose(np.abs(phase), 0.5 * np.abs(grid), atol=1e-6)
    np.testing.assert_allclose(precode(grid, gain, "inversion", 0.5) * gain, 0.5 * grid, atol=1e-5)
    np.testing.assert_array_equal(precode(grid, gain, "none", 0.5), 0.5 * grid)
    assert {precode(grid, gain, kind, 0.5).dtype for kind in ("phase", "inversion", "none")} == {np.dtype(np.complex64)}
    gain[[3, 7]] = 0
    assert np.isfinite(precode(grid, gain, "phase", 0.5)).all()
    with pytest.raises(LinkError, match="2 of 96 bins"):
        precode(grid, gain, "inversion", 0.5)
    with pytest.raises(ConfigError, match="'zero-forcing' is unknown"):
        precode(grid, gain, "zero-forcing", 0.5)


@pytest.mark.parametrize("profile", BOTH)
def test_nine_db_of_back_off_keep_clipping_distortion_below_44_db(profile):
    rng = np.random.default_rng(10)
    # Peaks are rare, so the distortion of single bursts spreads over tens of dB: 6,000 symbols and more for a mean.
    bursts, distortion, wanted, level, cut = 2**17 // profile.fft // 3 + 10, 0.0, 0.0, 0.0, 0
    for burst in range(bursts):
        reals = (rng.laplace(size=capacity(profile, "R")) / np.sqrt(2)).astype(np.float32)
        grid = assemble(
            pack(reals, profile, "R", burst)[0], pilot(profile, burst % 8, 8), canary(profile, burst, 0, "R")
        )
        gain = np.exp(-2j * np.pi * np.array(profile.bins) * rng.uniform(-4, 4) / profile.fft).astype(np.complex64)
        grid = precode(grid.astype(np.complex64), gain, "phase", drive_for_backoff(profile))
        samples = synthesise(grid, profile, np.arange(profile.burst_samples, dtype=float))
        limited, clipped = clip(samples)
        received, _ = demodulate(limited, profile, 35)
        scale = np.vdot(grid, received) / np.vdot(grid, grid)
        distortion += float(np.sum(np.abs(received - scale * grid) ** 2))
        wanted += float(np.sum(np.abs(scale * grid) ** 2))
        level += float(np.mean(np.abs(samples) ** 2)) / bursts
        cut += clipped
    assert db(level) == pytest.approx(-9.0, abs=0.1)
    assert cut > 0
    assert db(distortion / wanted) < -44


def test_clip_limits_magnitude_keeps_phase_and_counts():
    samples = np.array([0.5, 2j, -1 - 1j, 1.0], np.complex64)
    limited, count = clip(samples)
    assert count == 2
    np.testing.assert_allclose(limited, [0.5, 1j, -np.sqrt(0.5) * (1 + 1j), 1.0], atol=1e-6)
    untouched, none = clip(samples, limit=3.0)
    assert none == 0
    np.testing.assert_array_equal(untouched, samples)


@pytest.mark.parametrize("mode", ["R", "C"])
@pytest.mark.parametrize("snr_db", [0, 10, 20, 30])
@pytest.mark.parametrize(("sigma", "spread"), [(0.0, 0.0), (0.2, 0.05)])
def test_error_of_a_superposed_payload_follows_the_closed_form(mode, snr_db, sigma, spread):
    """Independent node values, g = (1+e) exp(i theta): bias (1-mu)^2, weight variance, noise (half of it in R mode)."""
    rng, nodes, draws = np.random.default_rng(12), 8, 400
    reals, noise = capacity(ANY_MODE, mode), 10 ** (-snr_db / 10)
    mu = np.exp(-(sigma**2) / 2)
    if mode == "R":
        variance = (1 + spread**2) * (1 + np.exp(-2 * sigma**2)) / 2 - mu**2
        expected = (1 - mu) ** 2 + variance + noise / (2 * nodes)
    else:
        expected = (1 - mu) ** 2 + 1 + spread**2 - mu**2 + noise / nodes
    # Mean power 1 per element: variance 1 (R) or 1/2 (C) per real.
    values = rng.standard_normal((nodes, reals)).astype(np.float32) * np.float32(1 if mode == "R" else np.sqrt(0.5))
    grids = np.stack([pack(value, ANY_MODE, mode, 3) for value in values])
    truth = values.sum(axis=0)
    errors = np.empty(draws)
    for draw in range(draws):
        gains = (1 + spread * rng.standard_normal(nodes)) * np.exp(1j * sigma * rng.standard_normal(nodes))
        received = np.tensordot(gains, grids, 1) + gaussian(rng, grids.shape[1:], noise)
        error = unpack(received.astype(np.complex64), ANY_MODE, mode, reals, 3) - truth
        errors[draw] = np.mean(error**2) / (nodes * (1 if mode == "R" else 0.5))
    # The finite payload has random cross terms between nodes: relative size sqrt(2/reals) on every weight error.
    margin = 4 * (np.std(errors) / np.sqrt(draws) + expected * np.sqrt(2 / reals))
    assert np.mean(errors) == pytest.approx(expected, abs=margin)


@pytest.mark.parametrize("mode", ["R", "C"])
def test_an_outlier_in_the_payload_makes_no_peak_in_time(mode):
    """One large coordinate would be a cosine over the bins, two peaks per symbol, were it not for the second signs."""
    profile = replace(PROFILES["pluto-915"], modes=("R", "C"))
    reals = np.zeros(2000, np.float32)
    reals[137] = 40.0
    grid = pack(reals, profile, mode, seed=3)
    samples = np.concatenate([synthesise(burst, profile, np.arange(31.0 * profile.symbol_samples)) for burst in grid])
    crest_db = 10 * np.log10(np.max(np.abs(samples) ** 2) / np.mean(np.abs(samples) ** 2))
    assert crest_db < 12.5  # a Gaussian signal of 9,000 samples: ln(9000) is 9.6 dB, exceeded by 3 dB once in 1e5
