"""Links between simulated radios: loss, delay and fading paths drawn from seeds; knows no samples and no clocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex128, Float64

from radio.airkernel import tap_gains
from radio.clock import rng
from radio.presets import EtherOptions

WAVES = 8  # sinusoids per scattered path
LIGHT_M_PER_S = 299_792_458.0
THERMAL_DBM_PER_HZ = -174.0
BACK_OFF_DB = 9.0  # level at which ``snr_db`` is defined
FILL = 3.0 / 8.0  # share of the band that the burst of that definition fills


@dataclass(frozen=True)
class Link:
    """One reciprocal link: amplitude gain, common delay, and its paths (fixed part plus sum of sinusoids)."""

    gain: float
    delay_s: float
    path_delay_s: Float64[np.ndarray, " path"]
    fixed: Complex128[np.ndarray, " path"]
    weight: Float64[np.ndarray, " path"]
    doppler_hz: Float64[np.ndarray, "path wave"]
    phase_rad: Float64[np.ndarray, "path wave"]

    def paths(self, time_s: Float64[np.ndarray, " time"]) -> Complex128[np.ndarray, "time path"]:
        """Evaluate the complex gain of every path, without ``gain``; mean total power 1."""
        result: np.ndarray = tap_gains(time_s, self.fixed, self.weight, self.doppler_hz, self.phase_rad)
        return result


def wire(gain: complex, delay_s: float) -> Link:
    """Make a link of one constant path, as a radio's own leakage is."""
    one = np.zeros((1, 1))
    size = abs(gain)
    fixed = np.array([gain / size if size else 1.0], dtype=np.complex128)
    return Link(size, delay_s, np.zeros(1), fixed, np.zeros(1), one, one)


def loss_db(options: EtherOptions, node: str, rate_hz: float) -> float:
    """Work out the path loss between a node and the server that gives the node its SNR per resource element.

    A burst at 9 dB back-off has power tx_fs - 9 dBm spread over 3/8 of ``rate_hz``; its density over the server's noise
    density -174 dBm/Hz + NF is the SNR, whatever the length of the unitary FFT.
    """
    snr_db = options.snr_db - options.spread_db * float(rng(options.seed, node, "spread").uniform())
    noise_dbm_per_hz = THERMAL_DBM_PER_HZ + options.of(options.server).noise_figure_db
    sent_dbm_per_hz = options.of(node).tx_fs_dbm - BACK_OFF_DB - 10.0 * math.log10(FILL * rate_hz)
    return sent_dbm_per_hz - noise_dbm_per_hz - snr_db


def draw_link(options: EtherOptions, one: str, other: str, rate_hz: float) -> Link | None:
    """Draw the link between two different radios, the same both ways; None when they do not hear each other."""
    if options.server in (one, other):
        gain_db = -loss_db(options, other if one == options.server else one, rate_hz)
    else:
        gain_db = options.node_links_db
    if gain_db == float("-inf"):
        return None
    draw = rng(options.seed, *sorted((one, other)), "link")
    turn = complex(np.exp(2j * math.pi * draw.uniform())) if options.link_phase else 1.0 + 0.0j
    distance_m = options.distance_max_m * draw.uniform(0.1, 1.0)
    count = int(draw.integers(options.paths_min, options.paths_max + 1))
    spread_s = float(draw.uniform(options.delay_spread_min_s, options.delay_spread_max_s))
    factor = (
        10.0 ** (0.1 * float(draw.uniform(options.rician_k_min_db, options.rician_k_max_db)))
        if (math.isfinite(options.rician_k_max_db))
        else math.inf
    )
    delay, share = _profile(draw, count, spread_s)
    scattered = 0.0 if math.isinf(factor) else 1.0 / (1.0 + factor)
    fixed = np.zeros(count, dtype=np.complex128)
    fixed[0] = math.sqrt(1.0 - scattered)
    doppler_hz = options.doppler_max_hz * draw.uniform() * np.cos(2.0 * math.pi * draw.uniform(size=(count, WAVES)))
    phase_rad = 2.0 * math.pi * draw.uniform(size=(count, WAVES))
    weight = np.sqrt(scattered * share)
    if scattered == 0.0:
        delay, fixed, weight = delay[:1], fixed[:1], weight[:1]
        doppler_hz, phase_rad = doppler_hz[:1], phase_rad[:1]
    return Link(
        10.0 ** (gain_db / 20.0), distance_m / LIGHT_M_PER_S, delay, fixed * turn, weight, doppler_hz, phase_rad
    )  # fmt: skip


def _profile(draw: np.random.Generator, count: int, spread_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw path delays (first one 0) and power shares, scaled to an rms delay spread of ``spread_s``."""
    if count == 1:
        return np.zeros(1), np.ones(1)
    delay = np.concatenate([[0.0], np.sort(draw.uniform(0.3, 3.0, count - 1))])
    share = np.exp(-delay)
    share /= share.sum()
    rms = math.sqrt(float(share @ delay**2 - (share @ delay) ** 2))
    return delay * spread_s / rms, share
