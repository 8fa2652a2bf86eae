"""How true a calibration is: every estimate against the simulated air's own truth, over presets and seeds.

For each quantity: in how many cases its 95 % interval holds the truth, its errors, and how many lie within what a
calibration is held to. The truth of a spread, and of the mean error of a few sums, is not written anywhere in the air:
it is what the same lab shows on average over some futures, in which all noise is drawn anew from the same instant on.
Each future has its share in that average, so the average is moved away from it as far as its share makes it too near:
intervals that are right hold it 95 times of 100. One lab of eight nodes takes 40 s on one core, and 12 s more for each
future.

    python benchmarks/truth.py [--seeds 20] [--nodes 8] [--presets pluto-stock,usrp-ref] [--futures 8]
"""

import argparse
import json
import math
import os
import sys
import time
from collections import defaultdict
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from calibrated_lab import build, of_one, run

import radio.clock
from calibration.channel import align, raw_gains
from calibration.linksteps import LOCK_BEACONS
from calibration.result import Result
from calibration.steps import NAMES
from calibration.sums import LEVELS
from radio.impairments import amplitude
from radio.links import THERMAL_DBM_PER_HZ
from radio.ofdm import demodulate
from radio.preamble import RMS, waveform
from radio.presets import PRESETS
from radio.render import render
from radio.sync import estimate_link, sounding

FULL = {"integrity_s": 3, "restarts": 2, "warm_up_s": 60, "oscillator_s": 10}
#: From one beacon of the dense stretch to the next, and from the start of the last one to the end of its capture.
STEP_S, BEACON_S = 0.02, 0.0014
FREE = ("pluto-stock", "usrp-free")
AFTER = ("timing", "phase", "balance", "sum")
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


def keep_levels(bench, clean: dict[int, np.ndarray]) -> list[np.ndarray]:
    """Keep at which levels in dB the nodes of every sum arrive, read off what came through the air without noise."""
    kept, uplink, decode = [], bench.uplink, bench.uplink.decode

    def decode_both(windows, *others):
        noise, silent = uplink.noise, []
        for window in windows:
            guard, symbols = bench.profile.guard_samples, len(window.grid)
            grid = demodulate(clean[window.capture.start], bench.profile, symbols, guard)[0]
            silent.append(replace(window, grid=grid))
        kept.append(20 * np.log10(np.abs(decode(silent, *others).gains[:, 0])))
        uplink.noise = noise
        return decode(windows, *others)

    uplink.decode = decode_both
    return kept


def true_snr(air, receiver: str, power: float, drive: float, rate_hz: float) -> float:
    """SNR in dB of a link of that power gain, by the receiver's noise and rounding."""
    station = air._stations[receiver]
    effects = station.effects
    level_db = station.config.rx_gain_db - effects.rx_fs_offset_dbm
    floor = 10 ** ((THERMAL_DBM_PER_HZ + effects.noise_figure_db + 10 * math.log10(rate_hz) + level_db) / 10)
    if effects.adc_bits:  # rounding of both parts to 2^-(bits-1)
        floor += 2 * 4.0 ** (1 - effects.adc_bits) / 12
    return 10 * math.log10(power * drive**2 / floor)


def true_beacons(air, bench, name: str) -> float:
    """Mean SNR in dB per sample of the beacons just followed, as far as one gain and one delay describe their link."""
    profile, link = bench.profile, air._link("server", name)
    server, node = air._stations["server"], air._stations[name]
    lines = np.abs(waveform(profile).spectrum) ** 2
    offsets_hz = np.fft.fftfreq(profile.ltf, 1 / profile.rate_hz)
    # In a fade the delay that fits best lies outside of all paths.
    delays_s = link.path_delay_s[:, None] - np.linspace(-2, 3, 501) * link.path_delay_s.max()
    summed = np.exp(-2j * math.pi * offsets_hz[:, None, None] * delays_s).T @ lines / lines.sum()
    slots = bench.link.last_slot - np.arange(LOCK_BEACONS)
    starts = bench.link.origin + slots[::-1] * profile.slot_samples
    paths = link.paths(np.array([server.instant_s(server.tx_device(int(start))) for start in starts]))
    level = server.level() * link.gain * amplitude(node.config.rx_gain_db - node.effects.rx_fs_offset_dbm)
    powers = level**2 * np.max(np.abs(summed @ paths.T) ** 2, axis=0)
    return float(np.mean([true_snr(air, name, power, RMS, profile.rate_hz) for power in powers]))


def true_link(air, bench, name: str) -> tuple[float, float]:
    """Mean link gain in dB and SNR per resource element in dB over the soundings just made."""
    offsets_hz = np.asarray(bench.profile.bins) * bench.profile.spacing_hz
    starts = bench.team.starts[name]
    power = float(np.mean([air.amplitude(name, "server", start, offsets_hz) ** 2 for start in starts]))
    snr_db = true_snr(air, "server", power, bench.uplink.full_drive, bench.profile.rate_hz)
    return 10 * math.log10(power), snr_db


#: Name of an estimate whose truth is what it is on average -> step, value, and how it is averaged and given back.
AVERAGED = {
    "arrival samples": ("timing", "std_samples", np.square, np.sqrt),
    "phase rad": ("phase", "sigma_rad", np.square, np.sqrt),
    "sum NMSE dB": ("sum", "nmse_db", lambda db: 10 ** (db / 10), lambda ratio: 10 * np.log10(ratio)),
}


def future(bench, air, number: int) -> list[Result]:
    """Run the steps after the sounding in a copy of this process with noise and known values drawn anew.

    What is fixed goes on as it is: links and loops. None if a step finds anything.
    """
    read, write = os.pipe()
    if not os.fork():
        try:
            draw = radio.clock.rng
            radio.clock.rng = lambda seed, *keys: draw(seed, *keys, f"future {number}")
            for station in air._stations.values():
                station.noise_key ^= number << 20
            bench.seed += number << 20
            spent = 2 * radio.clock.CHUNK * radio.clock.STEP_S  # as far as paths may have been drawn already
            bench.listen("", np.arange(0, math.ceil(spent / bench.slot_s), 5))
            found = run(bench, ",".join(AFTER))
            told = [] if any(each.finding for each in found) else [each.to_json() for each in found]
            with os.fdopen(write, "w") as pipe:
                json.dump(told, pipe)
        finally:
            os._exit(0)  # whatever went wrong, the copy must not go on as if it were the original, which finds no JSON
    os.close(write)
    with os.fdopen(read) as pipe:
        found = [Result.from_json(each, {}) for each in json.load(pipe)]
    os.wait()
    return found


class Stopped(Exception):
    """A lab whose calibration found something: a fade so deep that it would refuse a node, say."""


def lab(preset: str, seed: int, nodes: int, futures: int, rows: dict[str, list[tuple[float, float, bool]]]) -> None:
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

    for step in ("noise", "level"):
        for name, values in steps(step, step).items():
            truth = of_one(air._stations[name], bench.link.settings())
            for key in truth.keys() & values.keys():
                note(key, values[key], truth[key])
    effects = air._stations["node-1"].effects
    one = effects.adev if preset in FREE else 0.0
    for name, values in steps("lock", "lock").items():
        note("beacons dB", values["snr_db"], true_beacons(air, bench, name))
    for name, values in steps("oscillator", "oscillator").items():
        if name != "server" and values:
            note("ppm", values["ppm"], true_ppm(air, name, FULL["oscillator_s"]))
            note("adev", values["adev"], math.sqrt(2) * one)
            note("drift ppb/s", values["drift_ppb_per_s"], 0.0)
        if "adev_own" in values:
            note("adev of one", values["adev_own"], one)
    clean = keep_clean(air)
    for name, values in steps("sounding", "sounding").items():
        gain_db, snr_db = true_link(air, bench, name)
        note("gain dB", values["gain_db"], gain_db)
        note("snr dB", values["snr_db"], snr_db)
        note("delay samples", values["delay_samples"], true_delay(bench, name, clean))
    seen = [found for number in range(futures) if (found := future(bench, air, number + 1))]
    for quantity, (step, key, power, root) in AVERAGED.items():
        estimates = defaultdict(list)
        for each in chain.from_iterable(seen):
            if each.step == step:
                estimates[each.radio].append(each.values[key])
        for every in (each for each in estimates.values() if len(each) > 1):  # the others found something
            powers = power(np.array([each.value for each in every]))
            for each, off in zip(every, powers.mean() - powers, strict=True):
                truth = power(each.value) + off * math.sqrt(len(every) / (len(every) - 1))  # as in Bessel's correction
                note(quantity, each, float(root(max(truth, 0.0))))
    steps("timing", "phase")
    levels = keep_levels(bench, clean)
    for place, values in enumerate(steps("balance", "balance").values()):
        note("level dB", values["level_db"], float(np.mean([each[place] for each in levels[-LEVELS:]])))
    if (total := steps("sum", "sum").get("server")) is not None:
        measured = total["nmse_db"].value
        rows["predicted NMSE dB"].append((total["predicted_db"], measured, abs(total["predicted_db"] - measured) < 1.5))


def print_table(rows: dict[str, list[tuple[float, float, bool]]]) -> None:
    """Print how true each quantity is."""
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


def main() -> None:
    """Run all labs and print a table."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--seeds", type=int, default=20)
    words.add_argument("--nodes", type=int, default=8)
    words.add_argument("--presets", default=",".join(PRESETS))
    words.add_argument("--futures", type=int, default=8)
    asked = words.parse_args()
    if asked.futures == 1:
        words.error("--futures 1: one future is its own average; use 0 or at least 2")
    for preset in asked.presets.split(","):
        begun, rows = time.perf_counter(), defaultdict(list)
        for seed in range(1, asked.seeds + 1):
            try:
                lab(preset, seed, asked.nodes, asked.futures, rows)
            except Stopped as stop:
                print(f"  {stop}", flush=True)
        print(f"{preset}: {asked.seeds} labs of {asked.nodes} nodes, {time.perf_counter() - begun:.0f} s")
        print_table(rows)


if __name__ == "__main__":
    main()
