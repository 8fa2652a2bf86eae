"""What a round says of itself: per-node pilots, checksums, quadrature meter, and a verdict; knows no updates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Complex64, Complex128, Float, Float32, Float64, Int8

from radio.errors import ConfigError
from radio.ofdm import Profile, pilot

Status = Literal["ok", "missing", "phase", "timing", "cfo", "gain"]
Action = Literal["accept", "partial", "void"]
FALSE_ALARM_DB = 11.4  # 10 log10(ln(1e6)): an exponential variable exceeds this over its mean once in a million
_STEP_SAMPLES = 0.5  # coarse delay grid; the least squares take it from there
_PASSES = 3


@dataclass(frozen=True)
class Verification:
    """What the verification pilots of one or more bursts say of each node.

    Attributes:
        gain: effective gain at band centre, 1 for a healthy node; a column per pilot: V0, M, V1 of each burst in order.
        slope_samples: delay after the nominal instant; 0 for a node that was not heard.
        tilt: relative change of amplitude from band centre to the upper edge; 0 for a node that was not heard.
        power_db: least pilot correlation power over its noise.
        noise: noise variance per resource element.
        cfo_drift_rad: phase change from V0 to V1, bursts combined.
        sigma_rad: phase error of one entry of ``gain`` that the noise alone causes.
        sigma_samples: error of ``slope_samples`` that the noise alone causes.
        rogue_db: strongest power in an unused shift over its noise; None when every shift is used.
        rogue_gain: amplitude in that shift, on the scale of ``gain``.
        pilots: verification pilots per burst.
    """

    gain: Complex64[np.ndarray, "node pilot"]
    slope_samples: Float64[np.ndarray, " node"]
    tilt: Float64[np.ndarray, " node"]
    power_db: Float64[np.ndarray, " node"]
    noise: float
    cfo_drift_rad: Float64[np.ndarray, " node"]
    sigma_rad: Float64[np.ndarray, " node"]
    sigma_samples: Float64[np.ndarray, " node"]
    rogue_db: float | None
    rogue_gain: float
    pilots: int


@dataclass(frozen=True)
class Limits:
    """Where a node stops being healthy.

    Phase, timing, CFO and gain limits are widened by ``guard`` times the error that the noise alone causes, so that low
    SNR raises no alarms.

    Attributes:
        power_db: least pilot power over noise of a node that is there (one false alarm in a million).
        gain_present: least ``|gain|`` of a node that is there.
        phase_rad: largest phase in R mode.
        phase_rad_complex: largest phase in C mode, where it mixes unrelated values.
        timing_samples: largest delay.
        lost_samples: delay that costs the whole round.
        cfo_drift_rad: largest phase change within a burst.
        gain_db: largest amplitude error.
        rogue_db: least power over noise of a transmitter that nobody invited.
        rogue_gain: least amplitude of it; keeps leakage of strong nodes through echoes from raising the alarm.
        off_fraction: the round is void when more than this part of the nodes is out of phase, timing or CFO.
        present_fraction: the round is void when less than this part of the nodes is there.
        guard: standard deviations of noise granted.
    """

    power_db: float = FALSE_ALARM_DB
    gain_present: float = 0.5
    phase_rad: float = 0.35
    phase_rad_complex: float = 0.15
    timing_samples: float = 0.1
    lost_samples: float = 8.0
    cfo_drift_rad: float = 0.2
    gain_db: float = 0.5
    rogue_db: float = FALSE_ALARM_DB
    rogue_gain: float = 0.1
    off_fraction: float = 0.25
    present_fraction: float = 0.5
    guard: float = 3.0


@dataclass(frozen=True)
class Verdict:
    """One status per node, and what to do with the round.

    Attributes:
        nodes: status in the order of the shifts. ``missing`` leaves the admitted weight; ``phase`` asks for a new
            sounding; ``timing`` for a new timing advance; ``cfo`` for a new beacon lock; ``gain`` for a new amplitude.
        rogue: somebody else transmits: stop.
        action: ``accept`` the sum, use it as ``partial`` (over the nodes that were there), or ``void`` the round.
        reasons: one line per finding.
    """

    nodes: tuple[Status, ...]
    rogue: bool
    action: Action
    reasons: tuple[str, ...]


def verify(
    grids: Complex64[np.ndarray, "burst pilot bin"],
    shifts: tuple[int, ...],
    nodes_max: int,
    noise: float,
    profile: Profile,
    drive: float | Float[np.ndarray, " node"] = 1.0,
) -> Verification:
    """Measure gain and delay of every node from superposed pilots.

    Joint least squares of ``(gain, gain * delay)`` per node on each pilot symbol, linearised around the node's delay: a
    coarse search inside the node's shift window first, then Gauss-Newton steps. One symbol of 96 bins reaches the bound
    ``sigma_phase = 1/sqrt(2 * bins * snr)`` for up to 16 nodes.

    Args:
        grids: received verification pilots, any number of bursts and pilots.
        shifts: shift index of each node that should be there.
        nodes_max: how many shifts the pilots were made for.
        noise: noise variance per resource element.
        profile: waveform.
        drive: amplitude at which a healthy node's pilot arrives, common or per node.

    Raises:
        ConfigError: shifts repeat or lie outside ``range(nodes_max)``.
    """
    if len(set(shifts)) != len(shifts) or not shifts or not 0 <= min(shifts) <= max(shifts) < nodes_max:
        raise ConfigError(f"verification shifts {shifts} of {nodes_max}", f"use different shifts below {nodes_max}")
    bursts, pilots, bins = grids.shape
    received = grids.reshape(bursts * pilots, bins)
    rate, templates, delays, steering = _templates(profile, nodes_max)
    noise = max(noise, 1e-12 * float(np.mean(np.abs(received) ** 2)), 1e-30)
    limit = 10 ** (FALSE_ALARM_DB / 10)

    used = templates[list(shifts)]
    coarse = _windows(received, used, steering) * (bins / noise)
    heard = coarse.max(axis=1) > limit
    slope = np.where(heard, delays[np.argmax(coarse, axis=1)], 0.0)
    fit = _fit(received, used, rate, slope)
    for _ in range(_PASSES):
        (gain, turn), spread, _ = fit
        # A strong neighbour's side lobe can pass for an absent node until both are fitted together; what then looks
        # absent is measured at its nominal instant, where noise alone is exponential with a known false alarm rate.
        heard &= np.mean(np.abs(gain) ** 2, axis=1) > limit * noise * spread
        step = np.sum(np.real(np.conj(gain) * turn), axis=1) / np.maximum(np.sum(np.abs(gain) ** 2, axis=1), 1e-30)
        slope = np.where(heard, np.clip(slope + np.clip(step, -0.5, 0.5), delays[0], delays[-1]), 0.0)
        fit = _fit(received, used, rate, slope)
    (gain, turn), spread, residual = fit
    # A further delay d turns by rate * d; an imaginary one is a slope of the amplitude.
    lean = np.sum(np.imag(np.conj(gain) * turn), axis=1) / np.maximum(np.sum(np.abs(gain) ** 2, axis=1), 1e-30)
    amplitude = np.broadcast_to(np.asarray(drive, np.float64), (len(shifts),))
    power = np.abs(gain) ** 2 / (noise * spread[:, None])

    free = [shift for shift in range(nodes_max) if shift not in shifts]
    rogue = float(_windows(residual, templates[free], steering).max()) if free else 0.0
    first, last = gain.reshape(-1, bursts, pilots)[:, :, 0], gain.reshape(-1, bursts, pilots)[:, :, -1]
    strength = np.maximum(np.sum(np.abs(gain) ** 2, axis=1), 1e-30)
    return Verification(
        gain=(gain / amplitude[:, None]).astype(np.complex64),
        slope_samples=slope,
        tilt=np.where(heard, -lean * rate[-1], 0.0),
        power_db=10 * np.log10(np.maximum(power.min(axis=1), 1e-6)),
        noise=noise,
        cfo_drift_rad=np.angle(np.sum(last * np.conj(first), axis=1)),
        sigma_rad=np.sqrt(noise * spread / 2 * bursts * pilots / strength),
        sigma_samples=np.sqrt(noise / (2 * strength * np.sum(rate**2))),
        rogue_db=float(10 * np.log10(max(rogue * bins / noise, 1e-6))) if free else None,
        rogue_gain=float(np.sqrt(rogue) / amplitude.mean()),
        pilots=pilots,
    )


def without_phases(limits: Limits) -> Limits:
    """Lift the limits that matter only where waves must add up in phase."""
    return replace(limits, phase_rad=math.inf, phase_rad_complex=math.inf, cfo_drift_rad=math.inf)


def judge(verification: Verification, mode: str, limits: Limits | None = None) -> Verdict:
    """Turn measurements into a status per node and an action.

    A node that falls silent inside a burst voids the round: its weight differs between symbols, so no renormalisation
    is right. A node that is absent throughout leaves a clean sum of the others.
    """
    limits = limits or Limits()
    found = [_node(verification, node, mode, limits) for node in range(verification.gain.shape[0])]
    nodes = tuple(status for status, _, _ in found)
    reasons = [f"node in place {index}: {reason}" for index, (_, reason, _) in enumerate(found) if reason]
    void = any(fatal for _, _, fatal in found)
    off = sum(status in ("phase", "timing", "cfo") for status in nodes)
    missing = nodes.count("missing")
    if off > limits.off_fraction * len(nodes):
        void = True
        reasons.append(f"{off} of {len(nodes)} nodes are misaligned")
    if len(nodes) - missing < limits.present_fraction * len(nodes):
        void = True
        reasons.append(f"{missing} of {len(nodes)} nodes are missing")
    rogue_db = verification.rogue_db
    rogue = rogue_db is not None and rogue_db > limits.rogue_db and verification.rogue_gain > limits.rogue_gain
    if rogue:
        reasons.append(f"a transmitter in an unused shift, {rogue_db:.1f} dB over noise")
    action: Action = "void" if void or rogue else "partial" if off or missing else "accept"
    return Verdict(nodes=nodes, rogue=rogue, action=action, reasons=tuple(reasons))


def checksum_signs(seed: int, count: int, length: int) -> Int8[np.ndarray, "count length"]:
    """Draw the shared sign vectors of the linear checksums."""
    return np.random.default_rng([seed, 3]).integers(0, 2, (count, length), np.int8) * np.int8(2) - np.int8(1)


def checksums(
    values: Float[np.ndarray, " length"], signs: Int8[np.ndarray, "count length"]
) -> Float32[np.ndarray, " count"]:
    """Form ``r^T x / sqrt(length)`` for every sign vector r.

    Sent as numbers beside the air they reveal every error of the sum; sent inside the payload they suffer the same
    weights as the payload and stay blind to constant gain and phase errors.
    """
    # Row by row: a float copy of all signs would take four times the memory of the largest array here.
    sums = [np.dot(row.astype(np.float32), values) for row in signs]
    return np.asarray(np.array(sums) / np.sqrt(signs.shape[1]), np.float32)


def checksum_nmse_db(
    sum_estimate: Float[np.ndarray, " length"],
    checks_sum: Float[np.ndarray, " count"],
    signs: Int8[np.ndarray, "count length"],
) -> float:
    """Estimate the NMSE of a sum from the sum of its checksums.

    The residual of one check has the variance of the error of one coordinate. With ``count`` checks the estimate of one
    round is good to ``4.3 * sqrt(2/count)`` dB; average the ratios over rounds.
    """
    residual = checksums(sum_estimate, signs) - checks_sum
    power = float(np.mean(np.square(sum_estimate, dtype=np.float64)))
    return float(10 * np.log10(max(float(np.mean(np.square(residual, dtype=np.float64))), 1e-30) / max(power, 1e-30)))


def q_meter(data_grid: Complex64[np.ndarray, "*element bin"], noise: float, nodes: int, power: float) -> float:
    """Measure the rms phase error over nodes from the unused quadrature of R-mode data.

    ``sigma^2 = (mean Im(y)^2 - noise/2) / (nodes * power)`` for uncorrelated node values; use the canary symbol when
    the updates are correlated.

    Args:
        data_grid: received elements.
        noise: noise variance per element.
        nodes: nodes in the sum.
        power: received power of one node per element.

    Returns:
        sigma in rad; 0 when the noise explains everything. Large errors saturate: the meter sees the sine.
    """
    across = float(np.mean(np.square(data_grid.imag, dtype=np.float64)))
    return float(np.sqrt(max(across - noise / 2, 0.0) / (nodes * power)))


def _node(verification: Verification, node: int, mode: str, limits: Limits) -> tuple[Status, str, bool]:
    """Give status, reason and whether the finding voids the round, the root cause first."""
    gain = verification.gain[node].astype(np.complex128)
    sigma = float(verification.sigma_rad[node])
    bursts = gain.size // verification.pilots
    present = np.abs(gain) >= limits.gain_present
    if verification.power_db[node] < limits.power_db or not present.all():
        level = f"{verification.power_db[node]:.1f} dB over noise, |gain| {np.abs(gain).min():.2f}"
        died = bool(present.any() and not present.all())
        return "missing", f"fell silent ({level})" if died else f"missing ({level})", died
    slope = float(verification.slope_samples[node])
    if abs(slope) > limits.timing_samples + limits.guard * float(verification.sigma_samples[node]):
        return "timing", f"late by {slope:.3f} samples", abs(slope) >= limits.lost_samples
    drift = float(verification.cfo_drift_rad[node])
    if abs(drift) > limits.cfo_drift_rad + limits.guard * sigma * np.sqrt(2 / bursts):
        return "cfo", f"phase drifts {drift:.3f} rad within a burst", False
    phases = np.angle(gain.reshape(bursts, -1).mean(axis=1))
    worst = float(phases[np.argmax(np.abs(phases))])
    limit = limits.phase_rad_complex if mode == "C" else limits.phase_rad
    if abs(worst) > limit + limits.guard * sigma / np.sqrt(verification.pilots):
        return "phase", f"phase {worst:.3f} rad", False
    level_db = float(20 * np.log10(np.abs(gain).mean()))
    if abs(level_db) > limits.gain_db + limits.guard * 20 / np.log(10) * sigma / np.sqrt(gain.size):
        return "gain", f"gain {level_db:.2f} dB", False
    return "ok", "", False


@lru_cache(maxsize=16)
def _templates(
    profile: Profile, nodes_max: int
) -> tuple[
    Float64[np.ndarray, " bin"],
    Complex128[np.ndarray, "shift bin"],
    Float64[np.ndarray, " delay"],
    Complex64[np.ndarray, "bin delay"],
]:
    """Give the phase rate per bin (rad per sample of delay, about band centre), the pilots of all shifts, the coarse
    delays of one shift window, and their steering vectors."""
    bins = np.asarray(profile.bins)
    rate = -2 * np.pi / profile.fft * (bins - bins.mean())
    pilots = np.stack([pilot(profile, node, nodes_max) for node in range(nodes_max)]).astype(np.complex128)
    # Half a window on either side belongs to this node; beyond half a prefix the symbols overlap anyway.
    width = profile.fft * (len(bins) // nodes_max) / len(bins)
    reach = int(min(width / 2, profile.cp / 2) / _STEP_SAMPLES)
    delays = np.arange(-reach, reach + 1) * _STEP_SAMPLES
    return rate, pilots, delays, np.exp(-1j * rate[:, None] * delays).astype(np.complex64)


def _windows(
    received: Complex64[np.ndarray, "pilot bin"],
    templates: Complex128[np.ndarray, "node bin"],
    steering: Complex64[np.ndarray, "bin delay"],
) -> Float64[np.ndarray, "node delay"]:
    """Correlate with each node's pilot at each coarse delay: mean power over the pilots, in units of ``gain``."""
    turned = np.conj(templates).astype(np.complex64)[:, None, :] * received[None]
    response = turned @ steering / np.float32(received.shape[1])
    return np.asarray(np.mean(response.real**2 + response.imag**2, axis=1), np.float64)


def _fit(
    received: Complex64[np.ndarray, "pilot bin"],
    templates: Complex128[np.ndarray, "node bin"],
    rate: Float64[np.ndarray, " bin"],
    slope: Float64[np.ndarray, " node"],
) -> tuple[
    tuple[Complex128[np.ndarray, "node pilot"], Complex128[np.ndarray, "node pilot"]],
    Float64[np.ndarray, " node"],
    Complex64[np.ndarray, "pilot bin"],
]:
    """Solve for ``(gain, gain * further delay)`` of all nodes at once.

    Returns:
        both solutions, the variance of each gain per unit of noise, and what the nodes do not explain.
    """
    level = templates * np.exp(1j * rate * slope[:, None])
    model = np.concatenate([level, 1j * rate * level]).T
    inverse = np.linalg.inv(np.conj(model.T) @ model)
    solution = inverse @ (np.conj(model.T) @ received.T)
    gain, turn = np.split(solution, 2)
    residual = (received - (model @ solution).T).astype(np.complex64)
    return (gain, turn), np.real(np.diag(inverse))[: len(templates)], residual
