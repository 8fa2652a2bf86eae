"""How fast a crystal runs, at an instant and over a warm-up, with intervals that know flicker noise; knows no radio.

Frequencies of one crystal are not independent: flicker noise ties those of one minute together and lets them wander
apart over ten. Everything here is generalised least squares under that covariance, so an interval says what the crystal
does to an estimate, and not only what the receiver's noise does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize_scalar
from scipy.stats import chi2, t

from calibration.allan import flicker_fm
from calibration.oscillator import Stability, TimeError
from calibration.result import Z95, Estimate
from radio.errors import CalibrationError

#: How fast a link that moves turns its phase in a quiet room (Hz, rms): it cannot be told from a frequency.
LINK_HZ = 0.02
_SPAN = 50  # slots on either side of an instant that tell its frequency
_SIGNIFICANT = float(chi2.ppf(0.999, 2))  # what amplitude and time constant of a warm-up must explain


@dataclass(frozen=True)
class WarmUp:
    """What a crystal's frequency does over minutes: ``ppm + drift*t + warm_ppm*exp(-t/warm_s)``.

    Attributes:
        drift_ppb_per_s: linear drift.
        warm_ppm: amplitude of the warm-up at the first instant; None where none is significant.
        warm_s: its time constant; None with it.
        ppm: the frequency without the warm-up, at the first instant.
        misfit: root of chi-square per degree of freedom; where chance does not explain it the intervals are
            widened by it.
    """

    drift_ppb_per_s: Estimate
    warm_ppm: Estimate | None
    warm_s: Estimate | None
    ppm: Estimate
    misfit: float


def ppm_at(error: TimeError, noise: Stability, slot: int | None = None) -> Estimate:
    """Estimate a node's frequency against the server's at one instant, averaged over one slot around it.

    The best linear unbiased combination of the time errors within half a second (universal kriging with a straight and
    a curved trend; G. Matheron, Advances in Applied Probability 5, 1973).

    Args:
        error: time error.
        noise: the pair's noise.
        slot: the instant is that of its beacon; default the middle of the series.

    Returns:
        parts per million, positive when the node is fast.

    Raises:
        CalibrationError: fewer than eight beacons around the instant.
    """
    at = error.x_s.size // 2 if slot is None else slot - error.first_slot
    low = int(np.clip(np.floor(at) - _SPAN, 0, max(error.x_s.size - 2 * _SPAN, 0)))
    x = error.x_s[low : low + 2 * _SPAN] / error.step_s
    place = np.flatnonzero(~np.isnan(x)).astype(np.float64)
    if place.size < 8:
        raise CalibrationError(f"{place.size} beacons around slot {slot} tell no frequency", "listen to more beacons")
    x = x[place.astype(int)]
    at -= low
    floor = max(noise.adev.value, 1e-14) ** 2
    white = max(noise.white_rad.value / error.rad, 1e-3 * np.sqrt(floor)) ** 2
    shift = (place - at) / _SPAN
    trend = np.vander(shift, 3, increasing=True)
    ends = np.array([at + 0.5, at - 0.5])
    reach = floor * (flicker_fm(place - ends[0]) - flicker_fm(place - ends[1]))
    goal = np.array([0.0, 1.0 / _SPAN, 0.0])
    system = np.zeros((place.size + 3, place.size + 3))
    system[:-3, :-3] = floor * flicker_fm(place[:, None] - place[None, :]) + white * np.eye(place.size)
    system[:-3, -3:], system[-3:, :-3] = trend * floor, trend.T * floor  # scaled alike, for the solver
    solved = np.linalg.solve(system, np.concatenate([reach, goal * floor]))
    # The target's own generalised variance is -2 s(1), which is zero for flicker.
    variance = max(-float(solved[:-3] @ reach + floor * solved[-3:] @ goal), 0.0)
    sigma = float(np.hypot(np.sqrt(variance), LINK_HZ / error.carrier_hz if error.link_moves else 0.0))
    return Estimate.normal(float(solved[:-3] @ x) * 1e6, sigma * 1e6, "ppm")


def excess(cfo_hz: Float64[np.ndarray, " fix"], sigma_hz: Float64[np.ndarray, " fix"]) -> float:
    """Measure how many times more neighbouring beacons' frequencies differ than by the receiver's noise: PLLs do that.

    Args:
        cfo_hz: offsets of beacons in a row.
        sigma_hz: what the receiver's noise makes of each.
    """
    explained = sigma_hz[1:] ** 2 + sigma_hz[:-1] ** 2
    return float(np.sqrt(np.mean(np.diff(cfo_hz) ** 2) / np.mean(explained)))


def warm_up(
    time_s: Float64[np.ndarray, " instant"],
    ppm: Float64[np.ndarray, " instant"],
    sigma_ppm: Float64[np.ndarray, " instant"],
    adev: float,
    width_s: float = 0.01,
) -> WarmUp:
    """Fit drift, and a warm-up where it shows, to frequencies measured now and then.

    Args:
        time_s: instants, ascending, at least five.
        ppm: frequencies, each an average over ``width_s``.
        sigma_ppm: their measurement noise, independent.
        adev: flicker floor of the pair.
        width_s: what one frequency is averaged over.

    Raises:
        CalibrationError: fewer than five instants.
    """
    if len(time_s) < 5:
        raise CalibrationError(
            f"{len(time_s)} frequencies tell no drift", "watch the frequency at five instants or more"
        )
    since = np.asarray(time_s, np.float64) - time_s[0]
    span = float(since[-1])
    # Mean frequencies are differences of time errors over their width.
    lag = (since[:, None] - since[None, :]) / width_s
    shared = 2 * flicker_fm(lag) - flicker_fm(lag + 1) - flicker_fm(lag - 1)
    noise = (adev * 1e6) ** 2 * shared + np.diag(np.asarray(sigma_ppm, np.float64) ** 2 + 1e-16)
    # The generalised covariance holds for contrasts; a large common variance makes it a covariance proper.
    noise += (10 * float(np.abs(noise).max())) * np.ones_like(noise)
    whiten = np.linalg.inv(np.linalg.cholesky(noise))

    seen = whiten @ ppm
    straight = np.column_stack([np.ones_like(since), since])
    frame = np.linalg.qr(whiten @ straight)[0]
    bent = seen - frame @ (frame.T @ seen)  # what no straight line explains

    def explained(log_s: np.ndarray) -> np.ndarray:
        """What warm-ups of these time constants explain of it, in chi-square."""
        columns = whiten @ np.exp(-since[:, None] / np.exp(log_s))
        columns -= frame @ (frame.T @ columns)
        return np.asarray((bent @ columns) ** 2 / np.sum(columns**2, axis=0))

    columns = straight
    if since.size >= 8:
        grid = np.linspace(np.log(span / 50), np.log(2 * span), 40)
        best = int(np.argmax(explained(grid)))
        ends = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
        found = minimize_scalar(lambda x: -explained(np.array([x]))[0], bounds=ends, method="bounded")
        left = float(bent @ bent + found.fun)
        if -float(found.fun) > _SIGNIFICANT * max(left / (since.size - 4), 1.0):
            warm_s = float(np.exp(found.x))
            decay = np.exp(-since / warm_s)
            amplitude = float(np.linalg.lstsq(whiten @ np.column_stack([straight, decay]), seen, rcond=None)[0][2])
            # Linearised in the time constant as well: its uncertainty enters the others'.
            columns = np.column_stack([straight, decay, amplitude * decay * since / warm_s**2])
    design = whiten @ columns
    parts = np.linalg.lstsq(design, seen, rcond=None)[0]
    left, degrees = float(np.sum((seen - design @ parts) ** 2)), since.size - columns.shape[1]
    misfit = float(np.sqrt(left / degrees))
    chance = left <= chi2.ppf(0.975, degrees)
    wide = Z95 if chance else misfit * float(t.ppf(0.975, degrees))
    reach = wide * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))

    def estimate(place: int, value: float, scale: float, unit: str) -> Estimate:
        return Estimate(
            scale * value, scale * (value - float(reach[place])), scale * (value + float(reach[place])), unit
        )

    return WarmUp(
        drift_ppb_per_s=estimate(1, float(parts[1]), 1e3, "ppb_per_s"),
        warm_ppm=None if columns is straight else estimate(2, float(parts[2]), 1.0, "ppm"),
        warm_s=None if columns is straight else estimate(3, warm_s + float(parts[3]), 1.0, "s"),
        ppm=estimate(0, float(parts[0]), 1.0, "ppm"),
        misfit=misfit,
    )
