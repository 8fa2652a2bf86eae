"""Links between simulated radios: loss, delay and fading paths drawn from seeds; knows no samples and no clocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex128, Float64

from radio.airkernel import tap_gains
from radio.clock import Chunks, rng
from radio.presets import EtherOptions, LinkFacts

WAVES = 8  # sinusoids per scattered path
CONTACTS = 256  # states of a connector drawn at a time
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


class Contact:
    """A loose connector: attenuates what passes it, now and then.

    In each slot of 1 / ``often_hz`` seconds a state is drawn, and the instant inside the slot from which it holds.

    Args:
        loss_db: attenuation while it has no contact; 0 makes it sound.
        often_hz: draws per second.
        seed, name: what the draws are keyed by.
    """

    def __init__(self, loss_db: float, often_hz: float, seed: int, name: str) -> None:
        self.loose = loss_db > 0.0
        self._floor, self._often_hz = 10.0 ** (-loss_db / 20.0), often_hz
        self._draws = Chunks(lambda k: rng(seed, name, "contact", k).uniform(size=(2, CONTACTS)), CONTACTS)

    def gain(self, time_s: Float64[np.ndarray, " time"]) -> Float64[np.ndarray, " time"]:
        """Give the amplitude gain at rising true times."""
        if not self.loose:
            return np.ones(time_s.size)
        position = time_s * self._often_hz
        slot = np.floor(position).astype(np.int64)
        (since, state), first = self._draws.span(int(slot[0]) - 1, int(slot[-1]))
        at = slot - first
        holds = np.where(position - slot < since[at], state[at - 1], state[at])
        return np.where(holds < 0.5, self._floor, 1.0)


def wire(gain: complex, delay_s: float) -> Link:
    """Make a link of one constant path, as a radio's own leakage is."""
    one = np.zeros((1, 1))
    size = abs(gain)
    fixed = np.array([gain / size if size else 1.0], dtype=np.complex128)
    return Link(size, delay_s, np.zeros(1), fixed, np.zeros(1), one, one)


def loss_db(options: EtherOptions, node: str, rate_hz: float) -> float:
    """Work out the path loss between a node and the server that gives the node its SNR per resource element.

    A burst at 9 dB back-off has power tx_fs - 9 dBm spread over 3/8 of ``rate_hz``; its density over the server's noise
    density -174 dBm/Hz + NF is the SNR, whatever the length of the unitary FFT. ``link_loss_db`` of the node comes on
    top, whether its SNR is drawn or measured.
    """
    facts, effects = options.links.get(node, LinkFacts()), options.of(node)
    if facts.gain_db is not None:
        return effects.link_loss_db - facts.gain_db
    drawn_db = options.snr_db - options.spread_db * float(rng(options.seed, node, "spread").uniform())
    snr_db = drawn_db if facts.snr_db is None else facts.snr_db
    noise_dbm_per_hz = THERMAL_DBM_PER_HZ + options.of(options.server).noise_figure_db
    sent_dbm_per_hz = effects.tx_fs_dbm - BACK_OFF_DB - 10.0 * math.log10(FILL * rate_hz)
    return sent_dbm_per_hz - noise_dbm_per_hz - snr_db + effects.link_loss_db


def draw_link(options: EtherOptions, one: str, other: str, rate_hz: float) -> Link | None:
    """Draw the link between two different radios, the same both ways; None when they do not hear each other.

    Measured facts of a link to the server go before what is drawn, which stays the same for everything else.
    """
    facts = LinkFacts()
    if options.server in (one, other):
        node = other if one == options.server else one
        gain_db, facts = -loss_db(options, node, rate_hz), options.links.get(node, facts)
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
    fixed *= turn
    if facts.taps:
        delay, fixed, weight = _measured(facts)
        waves = (delay.size, WAVES)
        doppler_hz = facts.doppler_hz * np.cos(2.0 * math.pi * draw.uniform(size=waves))
        phase_rad = 2.0 * math.pi * draw.uniform(size=waves)
    delay_s = distance_m / LIGHT_M_PER_S if facts.delay_s is None else facts.delay_s
    return Link(10.0 ** (gain_db / 20.0), delay_s, delay, fixed, weight, doppler_hz, phase_rad)


def _measured(facts: LinkFacts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give delays, fixed gains and scattered weights of measured taps, scaled to a mean total power of 1."""
    delay, re, im = np.array(facts.taps).T
    shape = re + 1j * im
    shape /= np.linalg.norm(shape)
    return delay, math.sqrt(1.0 - facts.scattered) * shape, math.sqrt(facts.scattered) * np.abs(shape)


def _profile(draw: np.random.Generator, count: int, spread_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw path delays (first one 0) and power shares, scaled to an rms delay spread of ``spread_s``."""
    if count == 1:
        return np.zeros(1), np.ones(1)
    delay = np.concatenate([[0.0], np.sort(draw.uniform(0.3, 3.0, count - 1))])
    share = np.exp(-delay)
    share /= share.sum()
    rms = math.sqrt(float(share @ delay**2 - (share @ delay) ** 2))
    return delay * spread_s / rms, share
