"""The steps that need the link between server and nodes: beacons found and followed, timing."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import chi2

from calibration.bench import Bench, Heard
from calibration.channel import coherence_time
from calibration.result import Estimate, Finding, Result, Value

#: Beacons followed after the search, and the least SNR of one.
LOCK_BEACONS, LOCK_DB = 100, 5.0
#: A level that moves by more than this from one burst to the next is a contact that opens and closes: fading between
#: things that stand still takes seconds.
JUMP_DB = 3.0
#: Beacons of a point of the warm-up, and how many points.
POINT_BEACONS, POINTS = 3, 120
#: Batches of the timing loop, the gain of the loop, and the largest standard deviation of a burst's place in samples.
BATCHES, LOOP_GAIN, TIMING_SAMPLES = 10, 0.5, 0.05


def jumps(level_db: np.ndarray, floor_db: float = 0.0) -> float:
    """Measure by how much a level moves between neighbours, beyond what noise of ``floor_db`` rms explains."""
    moves = np.abs(np.diff(level_db))
    return float(moves.max(initial=0.0) - 4 * floor_db)


def loose(
    step: str, name: str, moved_db: float, values: dict[str, Value], curves: dict[str, np.ndarray]
) -> Result | None:
    """Give the result of a contact that opens and closes, or None."""
    if moved_db < JUMP_DB:
        return None
    text = f"{name}: its level jumps by {moved_db:.0f} dB from one burst to the next"
    remedy = "tighten the connectors of its antenna or cable, or replace the cable"
    return Result(step, name, values, curves, Finding("cable", text, remedy))


def lock(bench: Bench) -> list[Result]:
    """Let all nodes find the beacons and follow them for a second."""
    replies = bench.search("lock", LOCK_BEACONS)
    results = []
    for name in bench.names:
        heard = replies[name].arrays
        slots, snr_db = heard["slot"] - heard["slot"][0], heard["snr_db"]
        residual = _detrended(slots * bench.slot_s, heard["phase_rad"], heard["cfo_hz"])
        place = np.polynomial.Polynomial.fit(slots, heard["index"], 2)(slots)
        values: dict[str, Value] = {
            "snr_db": Estimate.normal(float(snr_db.mean()), float(snr_db.std(ddof=1)) / math.sqrt(snr_db.size), "db"),
            "beacons": LOCK_BEACONS,
            "missed": LOCK_BEACONS - slots.size,
            "cfo_rms_hz": float((heard["cfo_hz"] - np.polyval(np.polyfit(slots, heard["cfo_hz"], 1), slots)).std()),
            "index_rms_samples": float((heard["index"] - place).std()),
        }
        curves = {
            "lock_slot": slots,
            "lock_snr_db": snr_db,
            "lock_cfo_hz": heard["cfo_hz"],
            "lock_residual_rad": residual,
        }
        # A contact stays open for several beacons; of single ones, a weak node has some that noise takes far down.
        steady_db = np.median(np.lib.stride_tricks.sliding_window_view(snr_db, 3), axis=1)
        result = loose("lock", name, jumps(steady_db, float(np.median(np.abs(np.diff(snr_db))))), values, curves)
        if result is None:
            finding = None
            if snr_db.mean() < LOCK_DB:
                finding = Finding(
                    "weak",
                    f"{name}: hears the beacons at {snr_db.mean():.1f} dB, the least is {LOCK_DB:g} dB",
                    "move it closer, raise rx_gain_db, or check its antenna and cable",
                )
            result = Result("lock", name, values, curves, finding)
        results.append(result)
    return results


def _detrended(times_s: np.ndarray, phase_rad: np.ndarray, cfo_hz: np.ndarray) -> np.ndarray:
    """Unwrap phases along the measured offset, and take out a quadratic."""
    steps = np.diff(times_s)
    ahead = 2 * math.pi * (cfo_hz[1:] + cfo_hz[:-1]) / 2 * steps
    moved = ahead + np.angle(np.exp(1j * (np.diff(phase_rad) - ahead)))
    path = np.concatenate([[0.0], np.cumsum(moved)])
    return np.asarray(path - np.polynomial.Polynomial.fit(times_s, path, 2)(times_s))


def timing(bench: Bench) -> list[Result]:
    """Close the timing loop over many bursts: the server measures each delay, the nodes start earlier or later."""
    bench.ready("timing")
    per_batch = max(2, bench.options.timing_bursts // BATCHES)
    series: dict[str, list[np.ndarray]] = {name: [] for name in bench.names}
    seen_db: dict[str, list[np.ndarray]] = {name: [] for name in bench.names}
    instants: dict[str, list[np.ndarray]] = {name: [] for name in bench.names}
    gains: dict[str, list[np.ndarray]] = {name: [] for name in bench.names}
    doubts, noises = dict.fromkeys(bench.names, 0.0), dict.fromkeys(bench.names, 0.0)
    for _ in range(BATCHES):
        for name, heard in bench.sound("timing", per_batch).items():
            tau = np.array([link.delay_samples for link in heard.links])
            series[name].append(tau)
            seen_db[name].append(level_db(heard))
            instants[name].append(heard.times_s)
            gains[name].append(heard.raw)
            noises[name] = heard.noise / (2 * bench.uplink.full_drive**2)
            doubts[name] = delay_sigma(bench, heard)
            peer = bench.uplink.peers[name]
            moved = peer.advance_samples + LOOP_GAIN * float(tau.mean())
            bench.uplink.peers[name] = type(peer)(**{**vars(peer), "advance_samples": moved})
        bench.tell("timing")
    bench.admit("timing")  # the links at the new advance
    results = []
    for name in bench.names:
        batches = np.array(series[name])
        settled = batches[BATCHES // 2 :]
        freedom = settled.size - len(settled)
        seen = float(np.sum((settled - settled.mean(1, keepdims=True)) ** 2)) / freedom
        low, high = (math.sqrt(max(freedom * seen / chi2.ppf(q, freedom), 0.0)) for q in (0.975, 0.025))
        values: dict[str, Value] = {
            "std_samples": Estimate(math.sqrt(seen), low, high, "samples"),
            "noise_samples": doubts[name],
            "advance_samples": bench.uplink.peers[name].advance_samples,
        }
        times_s, raw = np.concatenate(instants[name]), np.concatenate(gains[name])
        changes_s = coherence_time(times_s - times_s[0], raw.astype(np.complex128), noises[name])
        if changes_s is not None:
            values["coherence_time_s"] = changes_s
        curves = {"timing_tau": batches.reshape(-1)}
        result = loose("timing", name, jumps(np.concatenate(seen_db[name])), values, curves)
        if result is None:
            finding = None
            beyond = math.sqrt(max(low**2 - doubts[name] ** 2, 0.0))
            if beyond > TIMING_SAMPLES:
                finding = Finding(
                    "timing",
                    f"{name}: its bursts arrive within {math.sqrt(seen):.3f} samples rms, noise explains "
                    f"{doubts[name]:.3f}, the limit beyond that is {TIMING_SAMPLES}",
                    "look for a stream that slips, or a crystal that jumps with temperature",
                )
            result = Result("timing", name, values, curves, finding)
        results.append(result)
    return results


def level_db(heard: Heard) -> np.ndarray:
    """Give the level of each sounding in dB."""
    return np.asarray(10 * np.log10(np.maximum(np.mean(np.abs(heard.raw) ** 2, axis=1), 1e-30)))


def delay_sigma(bench: Bench, heard: Heard) -> float:
    """Give the Cramer-Rao bound of one delay from two pilot symbols, in samples: what the noise alone causes."""
    profile = bench.profile
    bins = np.asarray(profile.bins)
    rate = 2 * math.pi / profile.fft * (bins - bins.mean())
    power = np.mean(np.abs(heard.raw) ** 2, axis=0) * bench.uplink.full_drive**2
    information = 2 * 2 * float(np.sum(rate**2 * power)) / heard.noise
    return 1 / math.sqrt(max(information, 1e-30))
