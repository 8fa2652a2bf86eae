"""What a simulated receiver hears: every burst and leak through its link, noise, and the receiver's own faults.

A pure function of seeds, true time and registered bursts. All work is done on whole blocks of the device's sample
index, in a fixed order, so the result is the same bits however the windows are cut and in whatever order radios are
served.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Complex64, Float32

from radio import airkernel as air
from radio.clock import rng
from radio.impairments import amplitude
from radio.links import THERMAL_DBM_PER_HZ, Link
from radio.presets import EtherOptions
from radio.station import Station

SEGMENT = 64  # blocks worked on at a time, so that the accumulators stay in cache
CHIRP_S = 1.024e-3  # symbol of the chirped interferer
AGC_TARGET = 0.25  # rms that the automatic gain aims at


def hears(receiver: Station, carrier_hz: float) -> bool:
    """Tell if a carrier falls inside a receiver's band."""
    config = receiver.config
    return config is not None and abs(carrier_hz - config.rx_hz) < 0.5 * config.rate_hz


def render(
    receiver: Station, senders: list[tuple[Station, Link]], options: EtherOptions, start: int, count: int
) -> tuple[Complex64[np.ndarray, " sample"], int]:
    """Render ``count`` samples of a receiver from device index ``start``.

    Returns:
        Samples as the converter gives them, and how many of them hit a rail.
    """
    out = np.empty(count, np.complex64)
    clipped = 0
    first = start // air.BLOCK
    last = -(-(start + count) // air.BLOCK)
    for low in range(first, last, SEGMENT):
        blocks = min(SEGMENT, last - low)
        re, im = antenna(receiver, senders, options, low, blocks)
        begin = max(start, low * air.BLOCK)
        end = min(start + count, (low + blocks) * air.BLOCK)
        if not receiver.agc:
            clipped += _convert(receiver, re, im, low * air.BLOCK, begin, end, out[begin - start : end - start], None)
            continue
        for block in range(low, low + blocks):
            a, b = max(begin, block * air.BLOCK), min(end, (block + 1) * air.BLOCK)
            if a < b:
                part = slice((block - low) * air.BLOCK, (block - low + 1) * air.BLOCK)
                power = float(np.mean(re[part] ** 2 + im[part] ** 2)) + _noise_rms(receiver) ** 2 * 2.0
                gain = 10.0 ** (round(20.0 * math.log10(AGC_TARGET / math.sqrt(power))) / 20.0)
                clipped += _convert(receiver, re, im, low * air.BLOCK, a, b, out[a - start : b - start], gain)
    return out, clipped


def _noise_rms(receiver: Station) -> float:
    """Give the receiver noise at the antenna per component, in sqrt(mW)."""
    density = THERMAL_DBM_PER_HZ + receiver.effects.noise_figure_db
    return amplitude(density + 10.0 * math.log10(receiver.rate_hz)) / math.sqrt(2.0)


def _convert(
    receiver: Station,
    re: np.ndarray,
    im: np.ndarray,
    base: int,
    begin: int,
    end: int,
    out: np.ndarray,
    gain: float | None,
) -> int:
    """Run device samples ``begin`` to ``end`` of arrays that start at ``base`` through the receive chain."""
    config, effects, faults = receiver.config, receiver.effects, receiver.faults
    assert config is not None
    noise = np.empty((2, end - begin), np.float32)
    air.gaussian(receiver.noise_key, begin, noise[0], noise[1])
    inside = slice(begin - base, end - base)
    gain = amplitude(config.rx_gain_db - effects.rx_fs_offset_dbm) if gain is None else gain
    levels = float(2 ** (effects.adc_bits - 1)) if effects.adc_bits else 0.0
    return int(
        air.convert(
            re[inside], im[inside], noise[0], noise[1], _noise_rms(receiver), gain, faults.rx_image,
            faults.rx_offset, levels, out,
        )
    )  # fmt: skip


def antenna(
    receiver: Station, senders: list[tuple[Station, Link]], options: EtherOptions, low: int, blocks: int
) -> tuple[Float32[np.ndarray, " sample"], Float32[np.ndarray, " sample"]]:
    """Sum everything that reaches a receiver's mixer over whole blocks, in sqrt(mW) after the mixer, before noise."""
    config = receiver.config
    assert config is not None
    re, im = np.zeros(blocks * air.BLOCK, np.float32), np.zeros(blocks * air.BLOCK, np.float32)
    edges = np.arange(low, low + blocks + 1) * air.BLOCK
    reading = receiver.origin_s + edges / config.rate_hz
    time_s = receiver.clock.instant(reading)
    own = config.rx_hz * receiver.clock.error_s(time_s)  # cycles by which the receive LO is ahead of its nominal
    for sender, link in senders:
        _add_sender(receiver, sender, link, time_s, own, low * air.BLOCK, re, im)
    if options.interferer_dbm != float("-inf") and hears(receiver, options.interferer_hz):
        _add_interferer(options, receiver.contact.gain(time_s), config.rx_hz, time_s, own, re, im)
    grid, at = receiver.rx_pll.at(time_s)
    if grid.size:
        air.turn(re, im, air.rotation(np.zeros(time_s.size), grid, at))
    return re, im


def _add_sender(
    receiver: Station,
    sender: Station,
    link: Link,
    time_s: np.ndarray,
    own: np.ndarray,
    base: int,
    re: np.ndarray,
    im: np.ndarray,
) -> None:
    """Add the bursts and the carrier leak of one transmitter."""
    margin = air.TAPS / receiver.rate_hz + link.delay_s + float(link.path_delay_s.max())
    begin_s, end_s = float(time_s[0]) - margin, float(time_s[-1]) + margin
    bursts = [burst for burst in sender.overlapping(begin_s, end_s) if hears(receiver, burst.carrier_hz)]
    tones = [
        tone for tone in sender.tones if tone.on_s < end_s and tone.off_s > begin_s and hears(receiver, tone.carrier_hz)
    ]
    if not bursts and not tones:
        return
    assert receiver.config is not None
    rx_hz, rate_hz = receiver.config.rx_hz, receiver.config.rate_hz
    ahead_s = sender.clock.error_s(time_s)
    reading = time_s + ahead_s
    grid, at = sender.tx_pll.at(time_s)
    paths = link.gain * link.paths(time_s)
    if sender is not receiver and (sender.contact.loose or receiver.contact.loose):
        paths *= (sender.contact.gain(time_s) * receiver.contact.gain(time_s))[:, None]

    turns: dict[tuple[float, float], np.ndarray] = {}

    def turned(carrier_hz: float, start_rad: float) -> Float32[np.ndarray, "2 sample"]:
        """Give the carrier of this transmitter against the receiver; bursts and leak nearly always share it."""
        key = (carrier_hz, start_rad)
        if key not in turns:
            cycles = (carrier_hz - rx_hz) * time_s + carrier_hz * ahead_s - own
            turns[key] = air.rotation(2.0 * math.pi * cycles + (start_rad + receiver.rx_phase()), grid, at)
        return turns[key]

    table, extra = air.fractional_table(), link.path_delay_s * rate_hz
    for burst in bursts:
        src_re, src_im = burst.at_rate(rate_hz)
        position = ((reading - burst.origin_s) - burst.device_start / burst.rate_hz - link.delay_s) * rate_hz
        turn = turned(burst.carrier_hz, burst.phase_rad)
        air.add_burst(re, im, position, turn, burst.level * paths, extra, table, src_re, src_im)
    for tone in tones:
        begin = max(receiver.device_at(tone.on_s) - base, 0)
        end = re.size if math.isinf(tone.off_s) else min(receiver.device_at(tone.off_s) - base, re.size)
        if begin < end:
            gain = sender.faults.tx_leak * tone.level * paths.sum(axis=1)
            air.add_tone(re, im, turned(tone.carrier_hz, tone.phase_rad), gain, begin, end)


def _add_interferer(
    options: EtherOptions,
    contact: np.ndarray,
    rx_hz: float,
    time_s: np.ndarray,
    own: np.ndarray,
    re: np.ndarray,
    im: np.ndarray,
) -> None:
    """Add chirped bursts, one at a random place in each slot of burst / duty seconds."""
    grid = np.arange(re.size) / air.BLOCK
    edge = np.arange(time_s.size)
    t = np.interp(grid, edge, time_s)
    period_s = options.interferer_burst_s / max(options.interferer_duty, 1e-9)
    slot = np.floor(t / period_s).astype(np.int64)
    on = np.zeros(t.size, np.bool_)
    for number in range(int(slot[0]), int(slot[-1]) + 1):
        wait = rng(options.seed, "interferer", number).uniform() * (period_s - options.interferer_burst_s)
        since = t - number * period_s - wait
        on[(since >= 0.0) & (since < options.interferer_burst_s)] = True
    at = np.flatnonzero(on)
    t, tau = t[at], t[at] % CHIRP_S
    cycles = (options.interferer_hz - rx_hz) * t - np.interp(grid[at], edge, own)
    cycles += options.interferer_bandwidth_hz * (0.5 * tau * tau / CHIRP_S - 0.5 * tau)
    level = amplitude(options.interferer_dbm) * np.interp(grid[at], edge, contact)
    re[at] += (level * np.cos(2.0 * math.pi * cycles)).astype(np.float32)
    im[at] += (level * np.sin(2.0 * math.pi * cycles)).astype(np.float32)
