"""How stable two crystals are, from the carrier phase of many beacons: time error, Allan deviation, ppm; no radio.

Every beacon tells the phase of the server's carrier against the node's. Beacons leave at equal steps of the server's
clock, so the node's time error stands on a uniform grid of slots, whatever the node's own clock shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import chi2

from calibration.allan import covariance, cross_variances, expected, flicker_fm, octaves, white_pm
from calibration.result import Z95, Estimate
from radio.beacon import BeaconFix
from radio.errors import CalibrationError
from radio.track import PhaseTracker

#: A gap over which the phase is predicted worse than this (rad) leaves the turn unknown: pi is then 3 sigma away.
TURN_RAD = 1.05
#: Fewest beacons whose Allan deviation is worth an interval.
FEWEST = 128
#: Averaging times up to so many steps enter the fit (0.64 s of beacons every 10 ms): beyond them crystals wander with
#: temperature, and flicker is no longer what they do.
LONGEST = 64
_WINDOWS = (2, 6, 18, 54)  # fixes whose frequencies predict the phase over one gap
#: What 95 of 100 links of a quiet room add to the Allan deviation below a second (paths that turn by up to 0.1 Hz, 3 to
#: 10 dB below a fixed one): no crystal is told to be above 0 by less, if its link moves.
LINK_ADEV = 5e-12
_MOVES = 2.0  # standard deviations by which a level's neighbours are more alike than noise would make them
_FLATNESS = 0.03  # relative: no crystal's floor is exactly flat, so no Allan variance is trusted to say more
_MISSED = 0.1
_ADEV_MIN = 1e-14  # below any crystal: keeps filters of perfect clocks regular


@dataclass(frozen=True)
class TimeError:
    """Time error of a node against the server on the grid of slots, up to a constant.

    Attributes:
        first_slot: slot of ``x_s[0]``.
        step_s: duration of a slot.
        carrier_hz: carrier that it was measured on.
        x_s: node's time minus server's in seconds; NaN where a beacon was missed.
        heard: beacons given, of which some may lie outside the stretch in which all turns of the phase are known.
        link_moves: the beacons' level moves by more than noise explains. What surrounds a link then turns its phase as
            well, which one link cannot tell from a crystal. Cables keep still.
    """

    first_slot: int
    step_s: float
    carrier_hz: float
    x_s: Float64[np.ndarray, " slot"]
    heard: int
    link_moves: bool

    @property
    def rad(self) -> float:
        """Carrier phase per step of time error."""
        return 2 * math.pi * self.carrier_hz * self.step_s

    @property
    def link_adev(self) -> float:
        """Allan deviation that may be the link's."""
        return LINK_ADEV if self.link_moves else 0.0


@dataclass(frozen=True)
class Stability:
    """Noise of a pair of oscillators.

    Attributes:
        adev: Allan deviation of the flicker floor, around 0.1 s; its interval reaches to 0 when the white noise
            hides the floor.
        white_rad: white phase noise of one beacon's phase: receiver noise and PLL noise.
        tau_s, curve, low, high: overlapping Allan deviation over averaging times, with 95 % intervals.
        misfit: chi-square per degree of freedom of flicker and white noise together; far above 1 it is something else.
    """

    adev: Estimate
    white_rad: Estimate
    tau_s: Float64[np.ndarray, " tau"]
    curve: Float64[np.ndarray, " tau"]
    low: Float64[np.ndarray, " tau"]
    high: Float64[np.ndarray, " tau"]
    misfit: float


def time_error(
    slot: Int64[np.ndarray, " fix"],
    reference: Float64[np.ndarray, " fix"],
    phase_rad: Float64[np.ndarray, " fix"],
    cfo_hz: Float64[np.ndarray, " fix"],
    gain: Float64[np.ndarray, " fix"],
    *,
    rate_hz: float,
    carrier_hz: float,
    slot_s: float,
    tuned_hz: float = 0.0,
) -> TimeError:
    """Unwrap the carrier phase of beacon fixes and give the node's time error.

    The offsets of the fixes around a gap predict the phase across it. Few of them follow the crystal best, many hold
    the receiver's noise down; the number that predicts this series best is taken. Where a gap is too long for the turn
    to be known, the longest stretch without such a gap is kept.

    Args:
        slot: slot numbers, ascending.
        reference, phase_rad, cfo_hz, gain: as in ``radio.beacon.BeaconFix``; reference in receiver samples.
        rate_hz: the receiver's sample rate.
        carrier_hz: the sender's carrier.
        slot_s: duration of a slot.
        tuned_hz: receive LO minus the sender's.

    Raises:
        CalibrationError: too few beacons, or a crystal whose phase cannot be followed from one to the next.
    """
    slot = np.asarray(slot, np.int64)
    if slot.size < 3:
        raise CalibrationError(f"{slot.size} beacons heard: too few to follow a phase", "check the beacon lock first")
    reference, phase_rad, cfo_hz = (np.asarray(each, np.float64) for each in (reference, phase_rad, cfo_hz))
    elapsed_s = (reference - reference[0]) / rate_hz
    gaps = np.diff(slot)
    best, spread = None, math.inf
    for window in _WINDOWS:
        predicted = 2 * np.pi * _between(cfo_hz, window) * np.diff(elapsed_s)
        off = np.angle(np.exp(1j * (np.diff(phase_rad) - predicted)))
        # Per slot, from the middle two thirds of all: a wrong turn somewhere does not spoil the choice.
        scaled = float(np.quantile(np.abs(off) / gaps, 0.6827))
        if scaled < spread:
            best, spread = predicted + off, scaled
    assert best is not None
    if spread > TURN_RAD:
        raise CalibrationError(
            f"the carrier phase moves by {spread:.2f} rad from beacon to beacon, unpredictably (above {TURN_RAD} rad "
            "its turns cannot be counted)",
            "use radios with better crystals, a shared reference, or a lower carrier",
        )
    first, last = _longest(spread * gaps <= TURN_RAD)
    kept = slice(first, last + 1)
    turned = np.concatenate([[0.0], np.cumsum(best[first:last])])
    elapsed_s = elapsed_s[kept] - elapsed_s[first]
    x_s = -(turned / (2 * np.pi) + tuned_hz * elapsed_s) / carrier_hz
    # The phase was measured where the receiver took the beacon's middle to be, which is off by the timing noise; the
    # carrier knows better when the server's slot began.
    place = (slot[kept] - slot[first]) * slot_s
    late_s = elapsed_s - place - x_s
    x_s = x_s - np.polyfit(place, x_s, 1)[0] * (late_s - late_s.mean())
    grid = np.full(int(slot[last] - slot[first]) + 1, np.nan)
    grid[slot[kept] - slot[first]] = x_s
    return TimeError(int(slot[first]), slot_s, carrier_hz, grid, slot.size, _moves(np.log(gain[kept])))


def _moves(level: Float64[np.ndarray, " fix"]) -> bool:
    """Tell if neighbours are more alike than independent noise makes them.

    J. von Neumann, "Distribution of the ratio of the mean square successive difference to the variance", Annals of
    Mathematical Statistics 12, 1941: of n independent values the sum of squared steps over that of squared deviations
    is 2 on average, with variance 4 (n - 2)/(n^2 - 1).
    """
    off = level - level.mean()
    least = 2 - _MOVES * 2 * math.sqrt((off.size - 2) / (off.size**2 - 1))
    return bool(np.sum(np.diff(off) ** 2) < least * np.sum(off**2))


def _between(values: Float64[np.ndarray, " fix"], window: int) -> Float64[np.ndarray, " gap"]:
    """Average the ``window`` values around each gap, fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(1, values.size)
    low, high = np.maximum(middle - window // 2, 0), np.minimum(middle + window // 2, values.size)
    return np.asarray((total[high] - total[low]) / (high - low))


def _longest(known: np.ndarray) -> tuple[int, int]:
    """First and last fix of the longest run of known gaps."""
    edges = np.concatenate([[-1], np.flatnonzero(~known), [known.size]])
    top = int(np.argmax(np.diff(edges)))
    return int(edges[top]) + 1, int(edges[top + 1])


@dataclass(frozen=True)
class _Fit:
    """Weights that turn Allan variances into (white, flicker) variances, and the covariance of the result."""

    multiples: tuple[int, ...]
    weights: Float64[np.ndarray, "2 multiple"]
    forms: Float64[np.ndarray, "2 3"]  # variance of each result: a w^2 + b w f + c f^2

    def quadratic(self, part: int, other: float) -> tuple[float, float, float]:
        """Variance of one result as a polynomial of its own true value, the other one given: constant term first."""
        a, b, c = self.forms[part]
        return (c * other**2, b * other, a) if part == 0 else (a * other**2, b * other, c)


@lru_cache(maxsize=64)
def _moments(count: int, multiples: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    design = np.stack([expected(white_pm, multiples), expected(flicker_fm, multiples)], axis=1)
    pairs = ((white_pm, white_pm), (white_pm, flicker_fm), (flicker_fm, flicker_fm))
    spreads = np.stack([covariance(one, other, count, multiples) for one, other in pairs])
    spreads[1] *= 2
    spreads[2] += _FLATNESS**2 * np.eye(len(multiples))
    return design, spreads


def _mixed(spreads: np.ndarray, white: float, flicker: float) -> np.ndarray:
    return np.asarray(np.tensordot([white**2, white * flicker, flicker**2], spreads, 1))


def _fit(count: int, multiples: tuple[int, ...], white: float, flicker: float, share: float) -> _Fit:
    """Weigh Allan variances by generalised least squares for noise of the given variances."""
    design, spreads = _moments(count, multiples)
    spreads = spreads / share
    inverse = np.linalg.inv(_mixed(spreads, white, flicker))
    weights = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse)
    forms = np.einsum("pi,kij,pj->pk", weights, spreads, weights)
    return _Fit(multiples, weights, forms)


def _detrended(error: TimeError) -> Float64[np.ndarray, " slot"]:
    """Take out frequency, drift and its change (a crystal that warms up), and divide by the step."""
    place = np.linspace(-1.0, 1.0, error.x_s.size)
    there = ~np.isnan(error.x_s)
    scaled = error.x_s / error.step_s
    return np.asarray(scaled - np.polyval(np.polyfit(place[there], scaled[there], 3), place))


def _held(value: float, quadratic: tuple[float, float, float]) -> tuple[float, float]:
    """Give the variances t >= 0 that an estimate does not contradict: ``|value - t| <= 1.96 sqrt(a + b t + c t^2)``."""
    a, b, c = (Z95**2 * each for each in quadratic)
    roots = np.roots([1 - c, -(2 * value + b), value**2 - a])
    if c >= 1 or np.iscomplexobj(roots):
        return 0.0, math.inf
    return max(float(roots.min()), 0.0), max(float(roots.max()), 0.0)


def _root(value: float, ends: tuple[float, float], scale: float, unit: str, beside: float = 0.0) -> Estimate:
    """Turn a variance and its interval into a deviation; a variance ``beside`` it may be none of its own."""
    low, high = scale * math.sqrt(max(ends[0] - beside, 0.0)), scale * math.sqrt(ends[1])
    return Estimate(scale * math.sqrt(max(value, 0.0)), low, high, unit)


def stability(error: TimeError) -> Stability:
    """Measure white phase noise and flicker floor of a pair, with the overlapping Allan deviation.

    The Allan variances up to ``LONGEST`` steps are fitted by ``3 sigma_x^2/tau^2 + floor^2``, weighed by their exact
    covariances under the fit itself. An interval holds every value that the estimate does not contradict. Frequency,
    drift and its change are removed first.

    Raises:
        CalibrationError: too few beacons.
    """
    x = _detrended(_enough(error))
    count = x.size
    multiples = octaves(count, LONGEST)
    found, shares = cross_variances(x, x, multiples)
    white, flicker, fit = _iterate(count, multiples, found, float(shares.min()))
    design, spreads = _moments(count, multiples)
    off = found - design @ [white, flicker]
    strength = np.linalg.inv(_mixed(spreads / float(shares.min()), *_kept(white, flicker)))
    misfit = float(off @ strength @ off) / max(len(multiples) - 2, 1)

    every = octaves(count, count // 4)
    curve, shares = cross_variances(x, x, every)
    design, spreads = _moments(count, every)
    truth = _kept(white, flicker)
    degrees = np.maximum(2 * (design @ truth) ** 2 / np.diag(_mixed(spreads, *truth)) * shares, 1.0)
    return Stability(
        adev=_root(flicker, _held(flicker, fit.quadratic(1, max(white, 0.0))), 1.0, "", error.link_adev**2),
        white_rad=_root(white, _held(white, fit.quadratic(0, max(flicker, 0.0))), error.rad, "rad"),
        tau_s=np.array(every) * error.step_s,
        curve=np.sqrt(curve),
        low=np.sqrt(curve * degrees / chi2.ppf(0.975, degrees)),
        high=np.sqrt(curve * degrees / chi2.ppf(0.025, degrees)),
        misfit=misfit,
    )


def _enough(error: TimeError) -> TimeError:
    there = int(np.count_nonzero(~np.isnan(error.x_s)))
    if there < max(FEWEST, error.x_s.size // 2):
        raise CalibrationError(
            f"{there} beacons in a row of {error.x_s.size} slots tell no Allan deviation: {FEWEST} are the fewest, and "
            "half of all",
            "listen longer, or improve the beacon's SNR",
        )
    return error


def _kept(white: float, flicker: float) -> tuple[float, float]:
    """Keep both variances positive, and far enough apart from nothing for a covariance to be regular."""
    largest = max(white, flicker, _ADEV_MIN**2)
    return max(white, 1e-4 * largest), max(flicker, 1e-4 * largest)


def _iterate(
    count: int, multiples: tuple[int, ...], found: np.ndarray, share: float, rounds: int = 6
) -> tuple[float, float, _Fit]:
    white, flicker = float(found[0]) / 3, float(found[-1])
    for _ in range(rounds):
        fit = _fit(count, multiples, *_kept(white, flicker), share)
        white, flicker = (float(each) for each in fit.weights @ found)
    return white, flicker, fit


def each_own(errors: Mapping[str, TimeError], server: str = "server") -> dict[str, Estimate] | None:
    """Tell the flicker floor of every single oscillator, the server's included, from nodes that hear one server.

    What two nodes see alike is the server's noise, what each sees alone is its own (the N-cornered hat; J. E. Gray and
    D. W. Allan, "A method for estimating the frequency stability of an individual oscillator", 28th Symposium on
    Frequency Control, 1974). All Allan variances and cross-variances are fitted together by generalised least squares.

    Args:
        errors: time errors against the server by node, measured over the same slots.
        server: name of the server in the result.

    Returns:
        Allan deviations by name, without nodes that missed a tenth of the slots; None when fewer than two are left, or
        fewer than half of the slots were heard by all.
    """
    names = sorted(name for name, error in errors.items() if np.mean(np.isnan(error.x_s)) < _MISSED)
    if len(names) < 2:
        return None
    first = max(errors[name].first_slot for name in names)
    end = min(errors[name].first_slot + errors[name].x_s.size for name in names)
    if end - first < FEWEST:
        return None
    cut = [replace(errors[n], x_s=errors[n].x_s[first - errors[n].first_slot :][: end - first]) for n in names]
    # Only slots that all of them heard: what they see alike then cancels to the last digit.
    missed = np.any([np.isnan(error.x_s) for error in cut], axis=0)
    if np.mean(missed) > 0.5:
        return None
    series = [np.where(missed, np.nan, _detrended(error)) for error in cut]
    multiples = octaves(end - first, LONGEST)
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1)]
    rows, shares = zip(*(cross_variances(series[i], series[j], multiples) for i, j in pairs), strict=True)
    share = float(np.min(shares))
    fits = [_iterate(end - first, multiples, rows[pairs.index((i, i))], share) for i in range(len(names))]
    white, flicker = (float(np.median([fit[part] for fit in fits])) for part in (0, 1))
    # One set of weights for all, so that variances and cross-variances are one bilinear form.
    fit = _fit(end - first, multiples, *_kept(white, flicker), share)
    found = np.array(rows) @ fit.weights.T
    # Unknowns: every node, then the server, which enters all entries.
    design = np.array([[float(i == j == k) for k in range(len(names))] + [1.0] for i, j in pairs])
    parts = np.linalg.lstsq(design, found, rcond=None)[0]
    for _ in range(3):
        weights = _combined(design, pairs, parts, fit)
        parts = weights @ found
    links = [error.link_adev for error in cut]
    result = {}
    for place, (name, link_adev) in enumerate(zip([*names, server], [*links, max(links)], strict=True)):
        spread = [_part_variance(weights[place], pairs, parts, fit, place, own) for own in (0.0, 1.0, -1.0)]
        quadratic = (spread[0], (spread[1] - spread[2]) / 2, (spread[1] + spread[2]) / 2 - spread[0])
        value = float(parts[place, 1])
        scale = _scale_of(parts)
        held = _held(value, (quadratic[0], quadratic[1] / scale, quadratic[2] / scale**2))
        result[name] = _root(value, held, 1.0, "", link_adev**2)
    return result


def _scale_of(parts: Float64[np.ndarray, "radio 2"]) -> float:
    return max(float(np.max(parts[:, 1])), _ADEV_MIN**2)


def _between_pairs(pairs: Sequence[tuple[int, int]], parts: np.ndarray, fit: _Fit) -> Float64[np.ndarray, "pair pair"]:
    """Covariance of the flicker part of all (cross-)variances, from the variances of every radio."""
    nodes = len(parts) - 1
    white, flicker = (np.diag(parts[:nodes, part]) + parts[nodes, part] for part in (0, 1))
    i, j = np.array(pairs).T
    a, b, c = fit.forms[1]

    def product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (
            np.asarray(
                one[np.ix_(i, i)] * other[np.ix_(j, j)]
                + one[np.ix_(j, j)] * other[np.ix_(i, i)]
                + one[np.ix_(i, j)] * other[np.ix_(j, i)]
                + one[np.ix_(j, i)] * other[np.ix_(i, j)]
            )
            / 4
        )

    return np.asarray(a * product(white, white) + b * product(white, flicker) + c * product(flicker, flicker))


def _combined(design: np.ndarray, pairs: Sequence[tuple[int, int]], parts: np.ndarray, fit: _Fit) -> np.ndarray:
    """Weights of generalised least squares for the noise of every radio."""
    largest = np.maximum(parts.max(axis=0), _ADEV_MIN**2)
    inverse = np.linalg.inv(_between_pairs(pairs, np.maximum(parts, 0.01 * largest), fit))
    return np.asarray(np.linalg.solve(design.T @ inverse @ design, design.T @ inverse))


def _part_variance(
    weights: np.ndarray, pairs: Sequence[tuple[int, int]], parts: np.ndarray, fit: _Fit, place: int, own: float
) -> float:
    """Variance of one radio's flicker variance if its true value were ``own`` times the largest of all."""
    assumed = np.maximum(parts, 0.0)
    assumed[place, 1] = own * _scale_of(parts)
    return float(weights @ _between_pairs(pairs, assumed, fit) @ weights)


@lru_cache(maxsize=256)
def _settled(adev: float, carrier_hz: float, phase_rad: float, slot_s: float) -> PhaseTracker:
    rate_hz = 1e6
    tracker = PhaseTracker(
        adev=max(adev, _ADEV_MIN), rate_hz=rate_hz, carrier_hz=carrier_hz, phase_noise_rad=0.0, oscillators=1
    )
    for slot in range(300):
        # The covariance does not depend on what is measured; a frequency that says nothing leaves the phase alone.
        at = slot * slot_s * rate_hz
        tracker.update(BeaconFix(at, slot, 0.0, 1.0, 0.0, phase_rad, at, 20.0, 0.0, 1.0))
    return tracker


def phase_sigma(
    adev: float,
    horizon_s: float | Float64[np.ndarray, " horizon"],
    carrier_hz: float,
    *,
    phase_rad: float = 0.005,
    slot_s: float = 0.01,
) -> Float64[np.ndarray, " horizon"]:
    """Predict how wrong the phase will be some time after the last beacon, as the nodes' own filter predicts it.

    About ``2 pi f_c adev horizon``; the covariance of ``radio.track.PhaseTracker`` after three seconds of beacons.

    Args:
        adev: flicker floor of the *pair* (``sqrt(2)`` times one oscillator's, when both are alike).
        horizon_s: times after the last beacon.
        carrier_hz: carrier.
        phase_rad: error of one beacon's phase.
        slot_s: time from beacon to beacon.

    Returns:
        Standard deviations in rad, in the shape of ``horizon_s`` (at least one dimension).
    """
    tracker = _settled(adev, carrier_hz, phase_rad, slot_s)
    last = 299 * slot_s * tracker.rate_hz
    return np.asarray(tracker.predict(last + np.atleast_1d(horizon_s) * tracker.rate_hz).sigma_rad)
