"""Verification against its bounds, the verdict table, and the checks of a sum against known errors."""

from dataclasses import replace

import numpy as np
import pytest

from radio.errors import ConfigError
from radio.ofdm import PROFILES, assemble, canary, capacity, demodulate, pack, pilot, split, synthesise, unpack
from radio.sync import noise_of
from radio.verify import Limits, checksum_nmse_db, checksum_signs, checksums, judge, q_meter, verify

PLUTO = PROFILES["pluto-915"]
BINS = np.array(PLUTO.bins)
RATE = -2 * np.pi / PLUTO.fft * (BINS - BINS.mean())


def gaussian(rng, shape, power=1.0):
    return (np.sqrt(power / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))).astype(np.complex64)


def received(rng, gains, shifts, nodes_max, noise, delays=0.0):
    """Superposed pilots: ``gains`` (node, pilot), delays in samples about band centre; one burst."""
    pilots = np.stack([pilot(PLUTO, shift, nodes_max) for shift in shifts])
    slopes = np.exp(1j * RATE * np.broadcast_to(delays, len(shifts))[:, None])
    grid = np.asarray(gains).T @ (pilots * slopes)
    return (grid + gaussian(rng, grid.shape, noise)).astype(np.complex64)[None]


def all_nodes(count):
    return tuple(range(count))


@pytest.mark.parametrize("nodes", [8, 16])
@pytest.mark.parametrize(("snr_db", "phase_mrad", "timing"), [(20, 7, 0.011), (10, 23, 0.034), (5, 40, 0.060)])
def test_one_pilot_symbol_reaches_the_bound_for_phase_and_timing(nodes, snr_db, phase_mrad, timing):
    rng, trials, noise = np.random.default_rng(1), 2400 // nodes, 10 ** (-snr_db / 10)
    turned, late = np.empty((trials, nodes)), np.empty((trials, nodes))
    for trial in range(trials):
        gains = np.exp(2j * np.pi * rng.random((nodes, 1)))
        delays = rng.uniform(-0.3, 0.3, nodes)
        result = verify(
            received(rng, gains, all_nodes(nodes), nodes, noise, delays), all_nodes(nodes), nodes, noise, PLUTO
        )
        turned[trial] = np.angle(result.gain[:, 0] * np.conj(gains[:, 0]))
        late[trial] = result.slope_samples - delays
    phase_bound, timing_bound = np.sqrt(noise / (2 * 96)), np.sqrt(noise / (2 * np.sum(RATE**2)))
    assert 1e3 * phase_bound == pytest.approx(phase_mrad, abs=0.65)
    assert timing_bound == pytest.approx(timing, abs=0.0005)
    spread = 4 / np.sqrt(2 * turned.size)
    assert np.std(turned) == pytest.approx(phase_bound, rel=spread)
    assert np.std(late) == pytest.approx(timing_bound, rel=spread)
    assert np.mean(result.sigma_rad) == pytest.approx(phase_bound, rel=0.1)
    assert np.mean(result.sigma_samples) == pytest.approx(timing_bound, rel=0.1)


@pytest.mark.parametrize("nodes", [1, 3, 7, 13])
def test_node_counts_that_do_not_divide_the_band_work_as_well(nodes):
    rng, noise = np.random.default_rng(2), 0.1
    errors = []
    for _ in range(600 // nodes):
        gains = np.exp(2j * np.pi * rng.random((nodes, 1)))
        result = verify(received(rng, gains, all_nodes(nodes), nodes, noise), all_nodes(nodes), nodes, noise, PLUTO)
        errors.extend(np.angle(result.gain[:, 0] * np.conj(gains[:, 0])))
    assert np.std(errors) == pytest.approx(np.sqrt(noise / 192), rel=4 / np.sqrt(2 * len(errors)))


@pytest.mark.parametrize(("nodes", "reach"), [(8, 15.0), (16, 7.5)])
@pytest.mark.parametrize("snr_db", [0, 10, 20])
def test_large_delays_are_found_within_the_window_of_a_shift(nodes, reach, snr_db):
    rng, noise = np.random.default_rng(3), 10 ** (-snr_db / 10)
    for _ in range(20):
        delays = np.zeros(nodes)
        delays[2] = rng.choice([-1, 1]) * rng.uniform(1.0, reach)
        result = verify(
            received(rng, np.ones((nodes, 3)), all_nodes(nodes), nodes, noise, delays),
            all_nodes(nodes),
            nodes,
            noise,
            PLUTO,
        )
        assert np.max(np.abs(result.slope_samples - delays)) < 6 * timing_sigma(noise, pilots=3)
        verdict = judge(result, "R")
        assert verdict.nodes[2] == "timing"
        assert verdict.action == ("void" if abs(result.slope_samples[2]) >= 8 else "partial")


def timing_sigma(noise, pilots):
    return np.sqrt(noise / (2 * pilots * np.sum(RATE**2)))


@pytest.mark.parametrize("snr_db", [0, 5, 10, 20])
def test_a_missing_node_is_found_and_no_healthy_one_is_accused(snr_db):
    rng, noise, shifts = np.random.default_rng(4), 10 ** (-snr_db / 10), all_nodes(8)
    for _ in range(150):
        gains = np.exp(0.05j * rng.standard_normal((8, 1))) * np.ones((1, 3))
        healthy = judge(verify(received(rng, gains, shifts, 8, noise), shifts, 8, noise, PLUTO), "R")
        assert healthy.nodes == ("ok",) * 8 and healthy.action == "accept" and healthy.reasons == ()
        gains[5] = 0
        result = verify(received(rng, gains, shifts, 8, noise), shifts, 8, noise, PLUTO)
        verdict = judge(result, "R")
        assert verdict.nodes == ("ok",) * 5 + ("missing",) + ("ok",) * 2
        assert verdict.action == "partial" and "place 5: missing" in verdict.reasons[0]
        assert np.sum(np.abs(result.gain[5])) < 12 * np.sqrt(noise / 96)


@pytest.mark.parametrize("snr_db", [0, 20])
def test_the_presence_statistic_of_an_absent_node_is_exponential(snr_db):
    """False alarms at threshold t happen with probability exp(-t); measured at 1 in 20 and 1 in 100."""
    rng, noise, shifts, trials = np.random.default_rng(5), 10 ** (-snr_db / 10), all_nodes(8), 3000
    gains = np.ones((8, 1), complex)
    gains[3] = 0
    grids = (verify(received(rng, gains, shifts, 8, noise), shifts, 8, noise, PLUTO) for _ in range(trials))
    power = 10 ** (np.array([result.power_db[3] for result in grids]) / 10)
    for probability in (0.05, 0.01):
        rate = np.mean(power > np.log(1 / probability))
        assert rate == pytest.approx(probability, abs=4 * np.sqrt(probability / trials))


@pytest.mark.parametrize("snr_db", [0, 5, 10, 20])
@pytest.mark.parametrize("alive", [(1, 0, 0), (1, 1, 0), (0, 1, 1)])
def test_a_node_that_dies_inside_the_burst_voids_it(snr_db, alive):
    rng, noise, shifts = np.random.default_rng(6), 10 ** (-snr_db / 10), all_nodes(8)
    gains = np.ones((8, 3), complex)
    gains[1] = alive
    for _ in range(60):
        verdict = judge(verify(received(rng, gains, shifts, 8, noise), shifts, 8, noise, PLUTO), "R")
        assert verdict.nodes == ("ok", "missing") + ("ok",) * 6
        assert verdict.action == "void" and "fell silent" in verdict.reasons[0]


@pytest.mark.parametrize("snr_db", [0, 5, 10, 20, 40])
def test_an_uninvited_transmitter_is_seen_and_echoes_are_not(snr_db):
    rng, noise, shifts = np.random.default_rng(7), 10 ** (-snr_db / 10), (0, 1, 3, 6)
    for _ in range(60):
        echoes = [0.3 * np.exp(2j * np.pi * rng.random((4, 1))) * np.ones((1, 3)), np.ones((4, 3))]
        clean = received(rng, echoes[1], shifts, 8, noise)
        clean = clean + received(rng, echoes[0], shifts, 8, 0.0, 1.0)
        result = verify(clean, shifts, 8, noise, PLUTO)
        assert not judge(result, "R").rogue
        rogue = clean + received(rng, 0.5 * np.exp(2j * np.pi * rng.random((1, 3))), (4,), 8, 0.0, rng.uniform(-2, 2))
        result = verify(rogue, shifts, 8, noise, PLUTO)
        verdict = judge(result, "R")
        assert verdict.rogue and verdict.action == "void" and "unused shift" in verdict.reasons[-1]
        assert result.rogue_gain == pytest.approx(0.5, abs=0.12 + 4 * np.sqrt(noise / 192))


def test_a_full_house_has_no_unused_shift():
    rng = np.random.default_rng(8)
    result = verify(received(rng, np.ones((8, 3)), all_nodes(8), 8, 0.01), all_nodes(8), 8, 0.01, PLUTO)
    assert result.rogue_db is None and not judge(result, "R").rogue


def turned(phases):
    gains = np.ones((8, 3), complex)
    for node, phase in phases.items():
        gains[node] *= np.exp(1j * phase)
    return gains


DRIFT = np.array([-0.2, 0.0, 0.2])
TABLE = [  # gains (node, pilot), delays, mode -> statuses that differ from ok, action
    (turned({}), {}, "R", {}, "accept"),
    (turned({2: 0.5}), {}, "R", {2: "phase"}, "partial"),
    (turned({2: -0.5}), {}, "R", {2: "phase"}, "partial"),
    (turned({2: 0.3}), {}, "R", {}, "accept"),
    (turned({2: 0.3}), {}, "C", {2: "phase"}, "partial"),
    (turned({0: 0.5, 2: 0.5, 7: -0.6}), {}, "R", {0: "phase", 2: "phase", 7: "phase"}, "void"),
    (turned({}), {4: 0.3}, "R", {4: "timing"}, "partial"),
    (turned({}), {4: -12.0}, "R", {4: "timing"}, "void"),
    (turned({6: DRIFT}), {}, "R", {6: "cfo"}, "partial"),
    (turned({6: DRIFT / 4}), {}, "R", {}, "accept"),
    (turned({}) * np.array([[1.12] + [1] * 7]).T, {}, "R", {0: "gain"}, "accept"),
    (turned({}) * np.array([[1.03] + [1] * 7]).T, {}, "R", {}, "accept"),
    (turned({}) * np.array([[0] * 3 + [1] * 5]).T, {}, "R", {0: "missing", 1: "missing", 2: "missing"}, "partial"),
    (turned({}) * np.array([[0] * 5 + [1] * 3]).T, {}, "R", dict.fromkeys(range(5), "missing"), "void"),
]


@pytest.mark.parametrize(("gains", "delays", "mode", "expected", "action"), TABLE)
@pytest.mark.parametrize("snr_db", [20, 30])
def test_verdict_table(gains, delays, mode, expected, action, snr_db):
    rng, noise, shifts = np.random.default_rng(9), 10 ** (-snr_db / 10), all_nodes(8)
    late = np.array([delays.get(node, 0.0) for node in range(8)])
    verdict = judge(verify(received(rng, gains, shifts, 8, noise, late), shifts, 8, noise, PLUTO), mode)
    assert verdict.nodes == tuple(expected.get(node, "ok") for node in range(8))
    assert verdict.action == action
    assert len(verdict.reasons) >= len(expected)


def test_limits_are_the_callers():
    rng, shifts = np.random.default_rng(10), all_nodes(8)
    result = verify(received(rng, turned({1: 0.3}), shifts, 8, 0.001), shifts, 8, 0.001, PLUTO)
    assert judge(result, "R").nodes[1] == "ok"
    assert judge(result, "R", Limits(phase_rad=0.2)).nodes[1] == "phase"


def test_one_bad_burst_of_three_is_not_averaged_away():
    rng, shifts = np.random.default_rng(11), all_nodes(8)
    good = [received(rng, turned({}), shifts, 8, 0.01) for _ in range(2)]
    for gains, status in ((turned({3: 0.5}), "phase"), (turned({}) * np.eye(8)[3, :, None], "missing")):
        grids = np.concatenate([good[0], received(rng, gains, shifts, 8, 0.01), good[1]])
        result = verify(grids, shifts, 8, 0.01, PLUTO)
        assert result.gain.shape == (8, 9)
        assert status in judge(result, "R").nodes


def test_gains_are_relative_to_the_drive_of_each_node():
    rng, drive = np.random.default_rng(12), np.linspace(0.5, 2.0, 8)
    grids = received(rng, drive[:, None] * np.ones((1, 3)), all_nodes(8), 8, 1e-3)
    result = verify(grids, all_nodes(8), 8, 1e-3, PLUTO, drive)
    assert np.max(np.abs(result.gain - 1)) < 0.04
    assert judge(result, "R").nodes == ("ok",) * 8


@pytest.mark.parametrize("shifts", [(0, 0), (8,), (-1,), ()])
def test_impossible_shifts_are_refused(shifts):
    with pytest.raises(ConfigError, match="verification shifts"):
        verify(np.zeros((1, 3, 96), np.complex64), shifts, 8, 0.1, PLUTO)


@pytest.mark.parametrize("mode", ["R", "C"])
def test_a_whole_burst_of_eight_nodes_through_samples(mode):
    """Timing, phase and gain errors put in at the nodes come out per node; the payload error is the weights' error."""
    profile = replace(PLUTO, modes=("R", "C"))
    rng, snr_db = np.random.default_rng(13), 20
    noise, reals = 10 ** (-snr_db / 10), capacity(profile, mode)
    delays, phases, sizes = (
        0.02 * rng.standard_normal(8),
        0.1 * rng.standard_normal(8),
        1 + 0.02 * rng.standard_normal(8),
    )
    times = np.arange(profile.burst_samples, dtype=float)
    samples = gaussian(rng, times.size, noise)
    values = (rng.standard_normal((8, reals)) * (1 if mode == "R" else np.sqrt(0.5))).astype(np.float32)
    known = np.zeros(96, np.complex64)
    for node in range(8):
        canaries = canary(profile, 77, node, mode)
        known += canaries
        grid = assemble(pack(values[node], profile, mode, 5)[0], pilot(profile, node, 8), canaries)
        samples += sizes[node] * np.exp(1j * phases[node]) * synthesise(grid, profile, times - delays[node])
    grid, nulls = demodulate(samples.astype(np.complex64), profile, 35)
    pilots, data, last = split(grid)
    result = verify(pilots[None], all_nodes(8), 8, noise_of(nulls), profile)
    assert result.noise == pytest.approx(noise, rel=4 * 1.44 / np.sqrt(nulls.size))
    assert judge(result, mode).nodes == ("ok",) * 8
    gain = result.gain.mean(axis=1)
    centre = phases - 2 * np.pi * BINS.mean() * delays / profile.fft
    sigma = np.sqrt(noise / (2 * 96 * 3))
    assert np.max(np.abs(np.angle(gain) - centre)) < 4.5 * sigma
    assert np.max(np.abs(np.abs(gain) - sizes)) < 4.5 * sigma
    assert np.max(np.abs(result.slope_samples - delays)) < 4.5 * timing_sigma(noise, pilots=3)
    # NMSE from the true weights: the closed form with these phases and sizes in place of their averages.
    weights = sizes * np.exp(1j * centre)
    if mode == "R":
        expected = np.mean((weights.real - 1) ** 2) + noise / 16
        truth = known.real
        seen = last.real
    else:
        expected = np.mean(np.abs(weights - 1) ** 2) + noise / 8
        truth, seen = known, last
    error = unpack(data[None], profile, mode, reals, 5) - values.sum(axis=0)
    measured = np.sum(error**2) / np.sum(values**2)
    assert 10 * np.log10(measured / expected) == pytest.approx(0, abs=0.5)
    in_band = np.sum(np.abs(seen - truth) ** 2) / (8 * 96)
    assert in_band == pytest.approx(expected, rel=4 * np.sqrt(2 / 96))


def test_checksums_see_what_the_channel_did():
    """K=8, sigma=.3, N0=.01, real values on I: true error per value .0507, digital residual .0508, analog .0101."""
    rng, nodes, length, count, draws, sigma, noise = np.random.default_rng(14), 8, 256, 16, 3000, 0.3, 0.01
    signs = checksum_signs(3, count, length)
    assert signs.dtype == np.int8 and set(np.unique(signs)) == {-1, 1}
    true, digital, analog = np.empty(draws), np.empty(draws), np.empty(draws)
    for draw in range(draws):
        values = rng.standard_normal((nodes, length)).astype(np.float32)
        checks = (values @ signs.T.astype(np.float32)) / np.float32(np.sqrt(length))
        weights = np.cos(sigma * rng.standard_normal(nodes)).astype(np.float32)
        estimate = weights @ values + np.sqrt(noise / 2) * rng.standard_normal(length).astype(np.float32)
        aired = weights @ checks + np.sqrt(noise / 2) * rng.standard_normal(count).astype(np.float32)
        own = checksums(estimate.astype(np.float32), signs)
        true[draw] = np.mean((estimate - values.sum(axis=0)) ** 2)
        digital[draw] = np.mean((own - checks.sum(axis=0)) ** 2)
        analog[draw] = np.mean((own - aired) ** 2)
    np.testing.assert_allclose(checks[2], checksums(values[2], signs), rtol=1e-4, atol=1e-5)
    mu = np.exp(-(sigma**2) / 2)
    closed_form = nodes * ((1 - mu) ** 2 + (1 + np.exp(-2 * sigma**2)) / 2 - mu**2) + noise / 2
    for expected in (closed_form, 0.0507):  # 0.0501, and an earlier Monte Carlo run
        assert np.mean(true) == pytest.approx(expected, abs=4 * np.std(true) / np.sqrt(draws))
    paired = np.std(digital - true) / np.sqrt(draws)
    assert np.mean(digital) == pytest.approx(np.mean(true), abs=4 * paired)
    assert np.mean(analog) == pytest.approx(noise, abs=4 * np.std(analog) / np.sqrt(draws))
    assert noise == pytest.approx(0.0101, abs=0.0002)


def test_checksum_nmse_agrees_with_the_true_nmse_and_sees_an_index_slip():
    rng, length = np.random.default_rng(15), 5000
    signs = checksum_signs(4, 16, length)
    ratios = []
    for _ in range(100):
        truth = rng.standard_normal(length).astype(np.float32)
        error = 0.1 * rng.standard_normal(length).astype(np.float32)
        told = checksum_nmse_db(truth + error, checksums(truth, signs), signs)
        ratios.append(10 ** (told / 10) / 0.01)
    assert np.mean(ratios) == pytest.approx(1.0, abs=4 * np.sqrt(2 / 16 / 100) + 0.01)
    assert checksum_nmse_db(np.roll(truth, 1), checksums(truth, signs), signs) > 0
    assert checksum_nmse_db(truth, checksums(truth, signs), signs) < -100


@pytest.mark.parametrize("snr_db", [0, 5, 10, 20])
@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_q_meter_reads_the_phase_error_from_the_unused_quadrature(snr_db, sigma):
    rng, nodes, power, draws = np.random.default_rng(16), 8, 0.25, 60
    noise = power * 10 ** (-snr_db / 10)
    squares, spread = [], noise / 2 * np.sqrt(2 / (31 * 96)) / (nodes * power)
    for _ in range(draws):
        phases = sigma * rng.standard_normal(nodes)
        phases *= sigma / np.sqrt(np.mean(np.sin(phases) ** 2))
        values = np.sqrt(power) * rng.standard_normal((nodes, 31, 96))
        grid = np.tensordot(np.exp(1j * phases), values, 1) + gaussian(rng, (31, 96), noise)
        squares.append(q_meter(grid.astype(np.complex64), noise, nodes, power) ** 2 - np.mean(np.sin(phases) ** 2))
    # Noise and the finite payload scatter the reading; below zero it is cut to zero, which the noise term bounds.
    margin = 4 * (spread + sigma**2 * np.sqrt(2 / 2976)) / np.sqrt(draws) + spread
    assert np.mean(squares) == pytest.approx(0, abs=margin)


def test_q_meter_is_zero_when_noise_explains_everything():
    grid = gaussian(np.random.default_rng(17), (31, 96), 1.0)
    assert q_meter(grid, 1.2, 8, 1.0) == 0.0
