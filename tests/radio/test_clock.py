"""Oscillator model against closed forms and the definition of the Allan deviation."""

import numpy as np
import pytest

from radio.clock import CHUNK, STEP_S, Clock, FlickerPath, PhaseNoise, rng


def overlapping_adev(path_s: np.ndarray, step_s: float, multiple: int) -> float:
    """IEEE Std 1139-2008, overlapping estimate."""
    second = path_s[2 * multiple :] - 2.0 * path_s[multiple:-multiple] + path_s[: -2 * multiple]
    return float(np.sqrt(np.mean(second**2) / 2.0) / (multiple * step_s))


def test_flicker_floor_is_flat_and_as_asked():
    asked = 3e-10
    spans = [FlickerPath(asked, seed, "crystal").span(0.0, 400.0)[0][0] for seed in range(4)]
    for tau_s in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        found = np.sqrt(np.mean([overlapping_adev(x, STEP_S, round(tau_s / STEP_S)) ** 2 for x in spans]))
        assert found == pytest.approx(asked, rel=0.15), tau_s


def test_path_slope_is_the_derivative_and_joins_at_chunks():
    grid, first = FlickerPath(1e-9, 3, "a").span(1.9, 6.3)
    assert first == 0
    step = np.diff(grid[0])
    middle = 0.5 * STEP_S * (grid[1][1:] + grid[1][:-1])
    # process and integral are drawn jointly: the trapezium misses only what the fastest processes do inside one step
    assert np.std(step - middle) < 0.3 * np.std(step)
    assert np.max(np.abs(step - middle)) < 6.0 * np.std(step - middle)


def test_path_does_not_depend_on_how_it_is_asked_for():
    one, other = (Clock(0, 0, 1, 0, 1e-9, 7, "x") for _ in range(2))
    late = other.error_s(np.array([300.0]))  # straight to the far end
    near = np.concatenate([one.error_s(np.array([t])) for t in np.arange(0.0, 300.1, 0.5)])
    assert near[-1] == late[0]
    assert other.error_s(np.array([12.5]))[0] == near[25]  # and back, after the chunk has been dropped


def test_deterministic_parts_have_their_closed_forms():
    clock = Clock(10.0, 3.0, 150.0, 2.0, 0.0, 0, "x")
    t = np.array([0.0, 1.0, 60.0, 600.0])
    wanted = 10e-6 * t + 3e-6 * 150.0 * (1.0 - np.exp(-t / 150.0)) + 0.5 * 2e-9 * t**2
    np.testing.assert_allclose(clock.error_s(t), wanted, rtol=1e-12, atol=1e-18)


def test_instant_inverts_reading():
    clock = Clock(-25.0, 3.0, 150.0, 25.0, 1e-9, 4, "x")
    reading = np.linspace(500.0, 500.01, 50)
    t = clock.instant(reading)
    np.testing.assert_allclose(t + clock.error_s(t), reading, rtol=0, atol=3e-13)


@pytest.mark.parametrize("ppm", [-25.0, 25.0])
def test_an_instant_far_from_the_last_one_is_found_to_the_same_bits(ppm):
    """Around a seam of the path, where a guess from long ago looks into the wrong piece of it."""
    walking, jumping = (Clock(ppm, 0, 1, 0, 1e-9, 7, "x") for _ in range(2))
    for number in range(-40, 41, 4):
        reading = 500 * CHUNK * STEP_S + number * STEP_S
        jumping.instant_at(0.0)
        walking.instant_at(reading)
        found = jumping.instant_at(reading)
        assert found == walking.instant_at(reading)
        assert found + walking.error_s(np.array([found]))[0] == pytest.approx(reading, abs=1e-12)


def test_phase_noise_has_the_asked_rms_and_is_keyed_by_time():
    noise = PhaseNoise(5e-3, 1, "a/tx")
    grid, at = noise.at(np.linspace(0.0, 0.9, 400_000))
    values = np.interp(at, np.arange(grid.size), grid)
    assert values.std() == pytest.approx(5e-3, rel=0.02)
    again, place = PhaseNoise(5e-3, 1, "a/tx").at(np.array([0.8, 0.8001]))
    assert again[int(place[0])] == grid[int(0.8 / 20e-6)]
    assert PhaseNoise(0.0, 1, "a/tx").at(np.array([0.0, 1.0]))[0].size == 0


def test_rng_depends_on_every_key():
    draws = {float(rng(*key).uniform()) for key in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a0"))}
    assert len(draws) == 6
    assert rng(5, "x", 2).uniform() == rng(5, "x", 2).uniform()
