"""How true a calibration is: every estimate against the simulated air's own truth, over presets and seeds.

For each quantity: in how many cases its 95 % interval holds the truth, its errors, and how many lie within what a
calibration is held to. Clean figures need many seeds; one lab of eight nodes takes 20 s on one core.

    python benchmarks/truth.py [--seeds 20] [--nodes 8] [--presets pluto-stock,usrp-ref]
"""

import argparse
import math
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from calibrated_lab import build, run

from calibration.channel import align, raw_gains
from calibration.steps import NAMES
from radio.links import THERMAL_DBM_PER_HZ
from radio.ofdm import demodulate
from radio.presets import PRESETS
from radio.render import render
from radio.sync import estimate_link, sounding

FULL = {"integrity_s": 3, "restarts": 2, "warm_up_s": 60, "oscillator_s": 10}
#: From one beacon of the dense stretch to the next, and from the start of the last one to the end of its capture.
STEP_S, BEACON_S = 0.02, 0.0014
FREE = ("pluto-stock", "usrp-free")
#: How far off an estimate should at most be: absolute, and relative to the truth.
TOLERANCE = {
    "ppm": (0.02, 0.0),
    "adev": (0.0, 0.2),
    "adev of one": (0.0, 0.2),
    "gain dB": (0.17, 0.0),  # 2 % of the amplitude
    "delay samples": (0.02, 0.0),
    "predicted NMSE dB": (1.5, 0.0),
}


def true_ppm(air, name: str, span_s: float) -> float:
    """Frequency against the server's, averaged over one step around the middle beacon of the stretch just heard."""
    beacons = round(span_s / STEP_S)
    middle = air._stations[name].reached_s() - BEACON_S - (beacons - 1 - beacons // 2) * STEP_S
    at = middle + STEP_S * np.array([-0.5, 0.5])
    mine, theirs = (air._stations[each].clock.error_s(at) for each in (name, "server"))
    return float((np.diff(mine) - np.diff(theirs))[0] / STEP_S * 1e6)


def keep_clean(air) -> dict[int, np.ndarray]:
    """Keep what the server would have received without noise and rounding, by RX index of the window."""
    kept, receive = {}, air.receive

    def receive_both(name: str, count: int, start: int | None = None):
        if name == "server" and start is not None:
            server = air._stations[name]
            effects, senders = server.effects, [(air._stations[each], air._link(each, name)) for each in air.names[1:]]
            server.effects = effects.model_copy(update={"noise_figure_db": -300.0, "adc_bits": 0})
            kept[start] = render(server, senders, air.options, server.rx_device(start), count)[0]
            server.effects = effects
        return receive(name, count, start)

    air.receive = receive_both
    return kept


def true_delay(bench, name: str, clean: dict[int, np.ndarray]) -> float:
    """Delay in samples that the soundings just made had, read off what came through the air without noise."""
    profile, task = bench.profile, bench.team.tasks[name].detail
    slots = task["first_slot"] + task["cycle"]["slots"] * np.arange(task["cycles"])
    guard = profile.guard_samples
    starts = [bench.link.rx_index(int(slot), task["at"]) - guard for slot in slots]
    grids = np.array([demodulate(clean[start], profile, 2, guard)[0] for start in starts])
    mean = align(raw_gains(grids, sounding(profile))).mean(axis=0)[None].astype(np.complex64)
    return estimate_link(mean, np.ones(mean.shape, np.complex64), 0.0, profile, "ls").delay_samples


def true_link(air, bench, name: str) -> tuple[float, float]:
    """Mean link gain in dB and SNR per resource element in dB over the soundings just made."""
    offsets_hz = np.asarray(bench.profile.bins) * bench.profile.spacing_hz
    starts = bench.team.starts[name]
    power = np.mean([np.mean(air.amplitude(name, "server", start, offsets_hz) ** 2) for start in starts])
    server = air._stations["server"]
    gain_db = server.config.rx_gain_db - server.effects.rx_fs_offset_dbm
    floor_db = THERMAL_DBM_PER_HZ + server.effects.noise_figure_db + 10 * math.log10(bench.profile.rate_hz) + gain_db
    if server.effects.adc_bits:  # rounding of both parts to 2^-(bits-1)
        floor_db = 10 * math.log10(10 ** (floor_db / 10) + 2 * 4.0 ** (1 - server.effects.adc_bits) / 12)
    gain = 10 * math.log10(power)
    return gain, gain + 20 * math.log10(bench.uplink.full_drive) - floor_db


class Stopped(Exception):
    """A lab whose calibration found something: a fade so deep that it would refuse a node, say."""


def lab(preset: str, seed: int, nodes: int, rows: dict[str, list[tuple[float, float, bool]]]) -> None:
    """Calibrate one lab; adds (estimate, truth, held) by quantity.

    Raises:
        Stopped: the calibration found something; what was measured until then is in ``rows``.
    """
    bench, air = build(preset, nodes, FULL, seed=seed, snr_db=20.0)

    def note(quantity: str, estimate, truth: float) -> None:
        rows[quantity].append((estimate.value, truth, estimate.holds(truth)))

    def steps(first: str, last: str) -> dict[str, dict]:
        found = run(bench, ",".join(NAMES[NAMES.index(first) : NAMES.index(last) + 1]))
        for each in found:
            if each.finding is not None:
                raise Stopped(f"{preset} seed {seed}: {each.step}: {each.finding.text}")
        return {each.radio: each.values for each in found if each.step == last}

    effects = air._stations["node-1"].effects
    pair = math.sqrt(2) * effects.adev if preset in FREE else 0.0
    for name, values in steps("lock", "oscillator").items():
        if name != "server" and values:
            note("ppm", values["ppm"], true_ppm(air, name, FULL["oscillator_s"]))
            note("adev", values["adev"], pair)
            note("drift ppb/s", values["drift_ppb_per_s"], 0.0)
        if "adev_own" in values and pair:
            note("adev of one", values["adev_own"], effects.adev)
    clean = keep_clean(air)
    for name, values in steps("sounding", "sounding").items():
        gain_db, snr_db = true_link(air, bench, name)
        note("gain dB", values["gain_db"], gain_db)
        note("snr dB", values["snr_db"], snr_db)
        note("delay samples", values["delay_samples"], true_delay(bench, name, clean))
    if (total := steps("timing", "sum").get("server")) is not None:
        measured = total["nmse_db"].value
        rows["predicted NMSE dB"].append((total["predicted_db"], measured, abs(total["predicted_db"] - measured) < 1.5))


def main() -> None:
    """Run all labs and print a table."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--seeds", type=int, default=20)
    words.add_argument("--nodes", type=int, default=8)
    words.add_argument("--presets", default=",".join(PRESETS))
    asked = words.parse_args()
    for preset in asked.presets.split(","):
        begun, rows = time.perf_counter(), defaultdict(list)
        for seed in range(1, asked.seeds + 1):
            try:
                lab(preset, seed, asked.nodes, rows)
            except Stopped as stop:
                print(f"  {stop}", flush=True)
        print(f"{preset}: {asked.seeds} labs of {asked.nodes} nodes, {time.perf_counter() - begun:.0f} s")
        print(f"  {'quantity':18} {'cases':>6} {'held':>7} {'rms error':>10} {'95 % below':>11} {'tolerance':>10}")
        for quantity, found in rows.items():
            value, truth, held = np.array(found, float).T
            error = np.abs(value - truth)
            absolute, relative = TOLERANCE.get(quantity, (0.0, 0.0))
            near = error <= absolute + relative * np.abs(truth)
            within = f"{100 * near.mean():.1f}%" if absolute or (relative and np.all(truth)) else ""
            print(
                f"  {quantity:18} {held.size:6d} {100 * held.mean():6.1f}% {np.sqrt(np.mean(error**2)):10.3g} "
                f"{np.quantile(error, 0.95):11.3g} {within:>10}",
                flush=True,
            )


if __name__ == "__main__":
    main()
