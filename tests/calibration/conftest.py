"""A whole calibration made by hand: every step, with values and curves of the kind that real radios give."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.captures import Sender, burst_parts, record
from calibration.report import write_report
from calibration.result import Estimate, Finding, Result
from radio.base import Capabilities, Capture, RadioConfig, Tier
from radio.ofdm import PROFILES, assemble, canary, drive_for_backoff, pilot, synthesise

INTERFERER = Finding(
    "interferer",
    "a carrier 31.2 dB over the noise stands at +120.0 kHz, inside the band",
    "switch its source off, or choose another carrier",
)


def plausible(nodes: int = 8, seed: int = 7) -> list[Result]:
    """Give the results of a calibration of ``nodes`` nodes."""
    rng = np.random.default_rng(seed)
    names = [f"node-{n + 1}" for n in range(nodes)]
    found: list[Result] = []
    for name in ("server", *names):
        found += _alone(name, rng)
    for name in names:
        found += _link(name, rng)
    found.append(_server_oscillator(rng))
    found.append(_sum(nodes, rng))
    return found


def spoilt(results: Sequence[Result], step: str, radio: str, finding: Finding = INTERFERER) -> list[Result]:
    """Give the same results with one finding."""
    return [replace(r, finding=finding) if (r.step, r.radio) == (step, radio) else r for r in results]


def _alone(name: str, rng: np.random.Generator) -> list[Result]:
    hz = np.linspace(-5e5, 5e5, 2048, endpoint=False)
    psd = -118 + 10 * np.log10(rng.gamma(16, 1 / 16, hz.size)) + 25 * np.exp(-((hz - 2e5) ** 2) / 2e5)
    gain = np.arange(0.0, 72.0, 6.0)
    drive = np.arange(-36.0, 0.1, 3.0)
    offset = rng.integers(2000, 30_000, 20) if name != "server" else np.full(20, 17)
    told = {
        "serial": f"1044730a{rng.integers(16**6):06x}",
        "driver": "loopback",
        "tier": "P0",
        "one_timeline": False,
        "shared_reference": False,
        "real_time": False,
        "turnaround_samples": 20_000,
        "block_samples": 4096,
        "max_rate_hz": 2.5e6,
    }
    safe = {
        "centre_hz": 915e6,
        "bandwidth_hz": 1e6,
        "band_low_hz": 902e6,
        "band_high_hz": 928e6,
        "limit_dbm": 0.0,
        "radiated_dbm": -8.5,
        "conducted": True,
        "profile": "cabled",
    }
    noise = -62 + rng.normal(0, 0.5)
    return [
        Result("inventory", name, told),
        Result("preflight", name, safe),
        Result(
            "noise",
            name,
            {
                "noise_dbfs": Estimate.normal(noise, 0.03, "db"),
                "noise_figure_db": Estimate.normal(5 + rng.normal(0, 0.5), 0.3, "db"),
                "dc_dbfs": Estimate.normal(-47 + rng.normal(0, 3), 0.2, "db"),
                "gain_step_db": Estimate.normal(1.0, 0.002, "db"),
            }
            | ({"spur_hz": 915.2e6, "spur_db": 24.6} if name == "server" else {}),
            {
                "psd_hz": hz + 915e6,
                "psd_dbfs": psd if name == "server" else psd - 25 * np.exp(-((hz - 2e5) ** 2) / 2e5),
                "gain_db": gain,
                "gain_noise_dbfs": 10 * np.log10(10 ** ((noise - 40 + gain) / 10) + 10 ** (-7.4)),
            },
        ),
        Result(
            "level",
            name,
            {
                "leak_dbc": Estimate.normal(-50 + rng.normal(0, 2), 0.3, "db"),
                "image_dbc": Estimate.normal(-52 + rng.normal(0, 3), 1.0, "db"),
                "compression_db": Estimate.normal(0.9, 0.02, "db"),
            },
            {
                "am_in_dbfs": drive,
                "am_out_db": -2.5 * np.log10(1 + 10 ** (drive / 10)) + rng.normal(0, 0.01, drive.size),
            },
        ),
        Result(
            "integrity",
            name,
            {"span_s": 60.0, "blocks": 14648, "lost": 0, "repeated": 0, "latency_s": 0.0047},
            {"latency_s": 4e-3 + rng.gamma(2.0, 4e-4, 1000)},
        ),
        Result(
            "offset",
            name,
            {
                "offset_samples": int(offset[-1]),
                "spread_samples": int(np.ptp(offset)),
                "constant": not np.ptp(offset),
                "restarts": 20,
            },
            {"offset_samples": offset},
        ),
    ]


def _server_oscillator(rng: np.random.Generator) -> Result:
    return Result("oscillator", "server", {"adev_own": Estimate(2.9e-10, 2.3e-10, 3.6e-10)})


def _link(name: str, rng: np.random.Generator) -> list[Result]:
    ppm, level, snr_db = rng.uniform(-10, 10), 3e-10 * np.exp(rng.normal(0, 0.4)), rng.uniform(18, 32)
    warm = np.linspace(0, 600, 121)
    tau = 0.01 * 2.0 ** np.arange(10)
    deviation = np.hypot(level, 2e-12 / tau) * np.exp(rng.normal(0, 0.05, tau.size))
    slots = np.arange(200)
    bins = np.arange(8, 104)
    delay, echo = rng.uniform(-0.5, 0.5), 0.2 * np.exp(2j * np.pi * rng.uniform())
    gain = 0.02 * (1 + echo * np.exp(-2j * np.pi * bins * 1.7 / 256)) * np.exp(-2j * np.pi * bins * delay / 256)
    error = 0.02 * 10 ** (-snr_db / 20) / 4
    gain = gain + error * (rng.standard_normal(96) + 1j * rng.standard_normal(96)) / np.sqrt(2)
    lags = np.arange(-8, 24)
    power = 10 * np.log10(np.abs(np.fft.ifft(gain * np.hanning(96), 256))[lags] ** 2)
    tau_series = rng.uniform(-2, 2) * 0.5 ** np.arange(50) + rng.normal(0, 0.01, 50)
    horizon = np.array([5e-3, 10e-3, 20e-3, 50e-3, 100e-3])
    sigma = np.hypot(0.01, 2 * np.pi * 915e6 * level * 1.4 * horizon)
    return [
        Result(
            "oscillator",
            name,
            {
                "ppm": Estimate.normal(ppm, 0.004, "ppm"),
                "drift_ppb_per_s": Estimate.normal(rng.normal(0, 1), 0.2),
                "adev": Estimate(level * 1.4, level * 1.2, level * 1.7),
                "adev_own": Estimate(level, level * 0.8, level * 1.3),
                "white_phase_rad": Estimate.normal(0.005, 0.0002, "rad"),
            },
            {
                "warm_s": warm,
                "warm_ppm": ppm + 2 * np.exp(-warm / 150) + rng.normal(0, 0.004, warm.size),
                "adev_tau_s": tau,
                "adev": deviation,
                "adev_low": deviation * (1 - 0.02 * 2.0 ** (np.arange(10) / 2)),
                "adev_high": deviation * (1 + 0.03 * 2.0 ** (np.arange(10) / 2)),
            },
        ),
        Result(
            "lock",
            name,
            {
                "snr_db": Estimate.normal(snr_db + 6, 0.1, "db"),
                "missed": 0,
                "beacons": 200,
                "cfo_rms_hz": 0.8,
                "index_rms_samples": 0.011,
            },
            {
                "lock_slot": slots + 1000,
                "lock_snr_db": snr_db + 6 + rng.normal(0, 0.3, 200),
                "lock_cfo_hz": rng.normal(0, 0.8, 200),
                "lock_residual_rad": rng.normal(0, 0.02, 200),
            },
        ),
        Result(
            "sounding",
            name,
            {
                "gain_db": Estimate.normal(20 * np.log10(np.sqrt(np.mean(np.abs(gain) ** 2))), 0.03, "db"),
                "snr_db": Estimate.normal(snr_db, 0.1, "db"),
                "delay_samples": Estimate.normal(delay, 0.004, "samples"),
                "rms_delay_s": 6.2e-8,
                "coherence_hz": 2.1e6,
            },
            {
                "bin": bins,
                "gain": gain.astype(np.complex64),
                "gain_sigma": np.full(96, error),
                "pdp_s": lags * 1e-6,
                "pdp_db": power,
            },
        ),
        Result(
            "timing",
            name,
            {
                "std_samples": Estimate(0.0101, 0.0087, 0.0121, "samples"),
                "advance_samples": Estimate.normal(delay, 0.004, "samples"),
                "converged_bursts": 7,
            },
            {"timing_tau": tau_series},
        ),
        Result(
            "phase",
            name,
            {
                "sigma_rad": Estimate(sigma[2], sigma[2] * 0.85, sigma[2] * 1.2, "rad"),
                "horizon_s": 0.0214,
                "null_depth_db": 23.5,
            },
            {
                "phase_horizon_s": horizon,
                "phase_sigma_rad": sigma,
                "phase_series_s": np.arange(48) * 0.05,
                "phase_series_rad": rng.normal(0, sigma[2], 48),
            },
        ),
        Result("balance", name, {"level_db": Estimate.normal(rng.normal(0, 0.15), 0.04, "db")}),
    ]


def _sum(nodes: int, rng: np.random.Generator) -> Result:
    count = np.concatenate([np.arange(1, nodes + 1), np.full(3, nodes)])
    level = np.concatenate([np.zeros(nodes), [-6.0, -12.0, -18.0]])
    noise_db = -23 - 10 * np.log10(count) - level
    nmse = 10 * np.log10(10 ** (noise_db / 10) + 10**-2.9) + rng.normal(0, 0.4, count.size)
    owner = np.repeat(np.arange(nodes), 24)
    turn = np.repeat(rng.normal(0, 0.1, nodes), 24)
    noise = 0.03 * (rng.standard_normal(owner.size) + 1j * rng.standard_normal(owner.size))
    return Result(
        "sum",
        "server",
        {
            "mode": "R",
            "nmse_db": Estimate(-28.4, -29.1, -27.7, "db"),
            "predicted_db": -28.9,
            "bound_db": -10 * np.log10(nodes) - 23,
        },
        {
            "sum_nodes": count,
            "sum_level_db": level,
            "sum_nmse_db": nmse,
            "sum_low_db": nmse - 0.9,
            "sum_high_db": nmse + 0.8,
            "sum_predicted_db": 10 * np.log10(10 ** (noise_db / 10) + 10**-2.9),
            "sum_formula_db": 10 * np.log10(10 ** (noise_db / 10) + 10**-2.88),
            "sum_bound_db": noise_db,
            "iq_pilots": (np.exp(1j * turn) + noise).astype(np.complex64),
            "iq_node": owner,
            "q_sigma_rad": np.abs(rng.normal(0.09, 0.02, 6)),
        },
    )


PROFILE = PROFILES["pluto-915"]
CONFIG = RadioConfig(1e6, 915e6, 915e6, 1e6, 40.0, 10.0)
TOLD = Capabilities(Tier.P0, "1044730a9960000", "pluto 0.38", 4e6, 20_000, 4096, False, False, False, True)
START, BURST_AT = 7_000_000, 5_000  # of the recording, and in it


def recorded(folder: Path, nodes: int = 4, seed: int = 5) -> Path:
    """Record a beacon and the burst of known values that follows it, as a server without multipath hears them."""
    rng = np.random.default_rng(seed)
    samples = 0.001 * (rng.standard_normal(16_000) + 1j * rng.standard_normal(16_000))
    for node in range(nodes):
        data = rng.standard_normal((31, len(PROFILE.bins))).astype(np.complex64)
        grid = assemble(data, pilot(PROFILE, node, nodes), canary(PROFILE, seed, node, "R"))
        level = np.float32(0.05 * drive_for_backoff(PROFILE))
        samples[BURST_AT : BURST_AT + PROFILE.burst_samples] += synthesise(
            level * grid, PROFILE, np.arange(PROFILE.burst_samples, dtype=np.float64)
        )
    senders = [Sender(f"node-{n + 1}", 0.25 * n, -34.5, 0.1 * n, 12) for n in range(nodes)]
    parts = burst_parts(PROFILE, START + BURST_AT, 12, senders)
    facts = {"node": "server", "seed": seed, "waveform": PROFILE.name, "calibration": "4f1c9a"}
    return record(folder, "sum", [Capture(samples.astype(np.complex64), START, 1e6)], CONFIG, TOLD, parts, facts)


VERDICT = {
    "nodes": {"node-1": {"modes": ["R", "non-coherent"]}, "node-2": {"modes": ["R"]}},
    "modes": ["R"],
    "nmse_predicted_db": -28.94,
    "nmse_measured_db": -28.4,
    "largest_burst_symbols": 35,
    "largest_burst_s": 0.01008,
}


@pytest.fixture(scope="session")
def recording() -> Callable[..., Path]:
    """The maker of a recorded burst."""
    return recorded


@pytest.fixture(scope="session")
def calibrated() -> Callable[..., list[Result]]:
    """The maker of a calibration."""
    return plausible


@pytest.fixture(scope="session")
def failing() -> Callable[..., list[Result]]:
    """What puts one finding into a calibration."""
    return spoilt


@pytest.fixture(scope="session")
def whole_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of eight nodes with everything measured and one thing wrong."""
    folder = tmp_path_factory.mktemp("report")
    results = spoilt(plausible(8), "noise", "server")
    burst = recorded(folder / "captures")
    return write_report(folder / "report.html", "bench", results, VERDICT, {"testbed": "0.1.0"}, burst)
