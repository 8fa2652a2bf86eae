"""The step that watches crystals: minutes of warm-up, and seconds without a pause; knows no estimator's inside."""

from __future__ import annotations

import numpy as np

from calibration.bench import Bench
from calibration.frequency import excess, ppm_at, warm_up
from calibration.oscillator import TimeError, each_own, phase_sigma, stability, time_error
from calibration.predict import COHERENT_LIMIT_RAD
from calibration.result import Finding, Result, Value
from radio.errors import CalibrationError

#: Slots from one beacon of the dense stretch to the next.
EVERY = 2
#: Instants of the warm-up: every so many seconds, within these numbers; and beacons at each.
SPACING_S, LEAST, MOST, BEACONS = 7.5, 8, 120, 2
#: What a crystal may be off by, and how fast it may move, before a run: what the search for beacons takes, and what the
#: trackers are laid out for.
PPM, DRIFT_PPB_S = 50.0, 25.0


def oscillator(bench: Bench) -> list[Result]:
    """Measure the frequencies, the drift and the stability of all crystals against the server's."""
    if not bench.locked:
        bench.search("oscillator", BEACONS)
    instants = min(max(int(bench.options.warm_up_s / SPACING_S), LEAST), MOST)
    spacing = max(int(bench.options.warm_up_s / bench.slot_s / instants), BEACONS + 1)
    sparse = (np.arange(instants)[:, None] * spacing + np.arange(BEACONS)).reshape(-1)
    warm = bench.listen("oscillator", sparse)
    dense = bench.listen("oscillator", np.arange(int(bench.options.oscillator_s / bench.slot_s / EVERY)) * EVERY)
    errors: dict[str, TimeError] = {}
    results = []
    for name in bench.names:
        try:
            errors[name] = _time_error(bench, dense[name])
        except CalibrationError as error:
            results.append(
                Result("oscillator", name, finding=Finding("crystal", f"{name}: {error.message}", error.remedy))
            )
    own = each_own(errors) or {}
    horizon_s = bench.burst_horizon_s
    for name, seen in errors.items():
        noise = stability(seen)
        ppm = ppm_at(seen, noise)
        slots, seen_ppm, sigma_ppm = _frequencies(bench, warm[name], spacing)
        sigma_ppm *= excess(dense[name]["cfo_hz"], dense[name]["cfo_sigma_hz"])
        course = warm_up(slots * bench.slot_s, seen_ppm, sigma_ppm, noise.adev.value, BEACONS * bench.slot_s)
        predicted = phase_sigma(
            max(noise.adev.value, 1e-14),
            horizon_s,
            bench.profile.carrier_hz,
            phase_rad=max(noise.white_rad.value, 1e-4),
        )
        values: dict[str, Value] = {
            "ppm": ppm,
            "drift_ppb_per_s": course.drift_ppb_per_s,
            "adev": noise.adev,
            "white_phase_rad": noise.white_rad,
            "predicted_sigma_rad": float(predicted[0]),
        }
        if course.warm_ppm is not None and course.warm_s is not None:
            values |= {"warm_ppm": course.warm_ppm, "warm_s": course.warm_s}
        if name in own:
            values["adev_own"] = own[name]
        curves = {
            "warm_s": slots * bench.slot_s,
            "warm_ppm": seen_ppm,
            "adev_tau_s": noise.tau_s,
            "adev": noise.curve,
            "adev_low": noise.low,
            "adev_high": noise.high,
        }
        results.append(
            Result("oscillator", name, values, curves, _finding(name, values, float(predicted[0]), horizon_s))
        )
    if "server" in own:
        results.append(Result("oscillator", "server", {"adev_own": own["server"]}))
    return _blamed(results)


def _time_error(bench: Bench, heard: dict[str, np.ndarray]) -> TimeError:
    return time_error(
        (heard["slot"] // EVERY).astype(np.int64),
        heard["reference"],
        heard["phase_rad"],
        heard["cfo_hz"],
        heard["gain"],
        rate_hz=bench.profile.rate_hz,
        carrier_hz=bench.profile.beacon_hz,
        slot_s=EVERY * bench.slot_s,
        tuned_hz=float(heard["tuned_hz"][0]),
    )


def _frequencies(bench: Bench, heard: dict[str, np.ndarray], spacing: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average the frequencies of the beacons of each instant; returns slots, ppm and their standard deviations."""
    carrier_hz = bench.profile.beacon_hz
    each_ppm = -(heard["cfo_hz"] + heard["tuned_hz"]) / carrier_hz * 1e6
    instant = (heard["slot"] // spacing).astype(int)
    _, place = np.unique(instant, return_inverse=True)
    count = np.bincount(place)
    mean = np.bincount(place, each_ppm) / count
    sigma = np.sqrt(np.bincount(place, (heard["cfo_sigma_hz"] / carrier_hz * 1e6) ** 2)) / count
    return np.bincount(place, heard["slot"]) / count, mean, sigma


def _finding(name: str, values: dict[str, Value], predicted_rad: float, horizon_s: float) -> Finding | None:
    result = Result("oscillator", name, values)
    remedy = "let it warm up, shield it from draughts, use a better crystal or a shared reference"
    if predicted_rad > COHERENT_LIMIT_RAD:
        text = (
            f"{name}: with an Allan deviation of {result.number('adev'):.1e} its phase is uncertain by "
            f"{predicted_rad:.2f} rad {1e3 * horizon_s:.0f} ms after a beacon, the limit is {COHERENT_LIMIT_RAD} rad"
        )
        return Finding("crystal", text, remedy)
    if abs(result.number("ppm")) > PPM:
        return Finding("crystal", f"{name}: off by {result.number('ppm'):.1f} ppm, the limit is {PPM:g} ppm", remedy)
    if abs(result.number("drift_ppb_per_s")) > DRIFT_PPB_S:
        drift = result.number("drift_ppb_per_s")
        return Finding("crystal", f"{name}: drifts by {drift:.1f} ppb/s, the limit is {DRIFT_PPB_S:g} ppb/s", remedy)
    return None


def _blamed(results: list[Result]) -> list[Result]:
    """Where every node looks bad, the crystal that they have in common is the server's."""
    nodes = [result for result in results if result.radio != "server"]
    if len(nodes) < 2 or any(result.passed for result in nodes):
        return results
    worst = nodes[0].finding
    assert worst is not None
    text = f"server: its crystal disturbs all {len(nodes)} nodes alike; {worst.text}"
    cleared = [Result(r.step, r.radio, r.values, r.curves) for r in nodes]
    mine = next((r for r in results if r.radio == "server"), Result("oscillator", "server"))
    blame = Finding("crystal", text, worst.remedy)
    return [*cleared, Result("oscillator", "server", mine.values, mine.curves, blame)]
