"""The intervals of spreads and of few bursts, against many draws whose truth is known."""

import numpy as np
import pytest

from calibration.coherence import own_variances
from calibration.sums import interval_db

TRIALS = 2000


@pytest.mark.parametrize(
    "variances", [[0.01] * 8, np.linspace(0.001, 0.02, 8), [0.0004, 0.01, 0.01, 0.01], [0.01] * 2], ids=len
)
def test_phases_of_each_node_alone_have_true_variances_and_intervals(variances):
    """What all nodes share is nine times their own; links turn by a radian meanwhile."""
    draw = np.random.default_rng(1)
    moved = np.linspace(-0.5, 0.5, 12) * np.arange(len(variances))[:, None]
    found = []
    for _ in range(TRIALS):
        own = draw.normal(size=(len(variances), 12)) * np.sqrt(variances)[:, None]
        found.append(own_variances(own + moved + 0.3 * draw.normal(size=12)))
    value, low, high = np.moveaxis(found, 1, 0)
    assert np.all(np.abs(value.mean(0) - variances) < 4 * value.std(0) / np.sqrt(TRIALS))
    held = np.mean((low <= variances) & (variances <= high), axis=0)
    assert held.min() > 0.92 and held.max() < 0.99


def test_a_node_alone_shows_no_phase_of_its_own():
    assert own_variances(np.random.default_rng(2).normal(size=(1, 12))) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("freedom", [8, 200])
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["noise", "phase"])
def test_the_mean_error_of_a_few_bursts_has_a_true_interval(freedom, share):
    """Phases of eight nodes make errors as uneven as chi-squared of eight degrees, noise of a whole burst even ones.

    The known values have another power in every burst, which what phases do to them goes along with.
    """
    draw = np.random.default_rng(3)
    powers = draw.chisquare(400, (TRIALS, 6)) / 400
    errors = draw.chisquare(freedom, (TRIALS, 6)) / freedom * powers**share
    ends = np.array([interval_db(each, power) for each, power in zip(errors, powers, strict=True)])
    held = np.mean((ends[:, 0] <= 0.0) & (ends[:, 1] >= 0.0))
    assert 0.9 < held < 0.97
