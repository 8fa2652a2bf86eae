"""If the sample streams of a radio keep their count: losses, repetitions, and what a restart does; knows one radio.

A radio that hears its own transmitter shows every slip of either counter as an echo at another index. A block that
comes twice is the same to the last bit as the one before, which noise never is, so a loss that a repetition hides from
the count is seen as well.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np

from calibration.options import CalibrationOptions
from calibration.result import Finding, Result, Value
from radio.base import Capture, Radio, RadioConfig, Samples
from radio.errors import CalibrationError
from radio.timeline import CODE_SAMPLES, Heard, code, hear_itself, match

CHECK_S = 0.25  # between two bursts while everything is received
GLANCE_S = 1.0  # between two bursts while little is received
VIRTUAL_SAMPLES = 5_000_000  # received without a gap where time is virtual, when the driver reports losses
GAPLESS_SAMPLES = 1_000_000  # the same, when it does not and bursts go on watching
SEARCH_BLOCKS = 2
LOWEST_RATE_HZ = 521e3  # of an AD936x without decimation in its FIR filter
RESTART_SHARE = 0.8
CONSTANT_SAMPLES = 2


class Tally:
    """Counts what happened to the samples of one radio.

    Args:
        radio: configured.
        seed: picks the code of the bursts.
    """

    def __init__(self, radio: Radio, seed: int) -> None:
        self._radio, self._seed = radio, seed
        self._block = radio.capabilities.block_samples
        self._chips = code(seed)
        self._last: Samples | None = None
        self._again = 0  # samples that came twice since the last burst
        self.lost = self.repeated = 0
        self.latency: list[int] = []
        self._heard: Heard | None = None
        with suppress(CalibrationError):
            self._heard = hear_itself(radio, seed)

    @property
    def hears_itself(self) -> bool:
        """Whether slips are seen by echo."""
        return self._heard is not None

    def gapless(self, seconds: float, rate_hz: float) -> int:
        """Receive everything for so many seconds, with a burst now and then; returns the samples taken."""
        radio, block = self._radio, self._block
        first = -(-radio.newest() // block) * block
        radio.receive(0, first)
        self._last, end = None, first + round(seconds * rate_hz)
        at = first
        while at < end:
            echo = self._burst()
            stop = max(at + round(CHECK_S * rate_hz), echo + CODE_SAMPLES + SEARCH_BLOCKS * block)
            stop = -(-stop // block) * block
            capture = radio.receive(stop - at)
            self._take(capture)
            if self._heard is not None:
                self._check(capture, echo)
            at = radio.now()  # further on than planned when a slip had to be measured anew
            if at != stop:
                at = -(-at // block) * block
                radio.receive(0, at)
                self._last = None
        return at - first

    def glance(self, seconds: float, rate_hz: float) -> int:
        """Watch the echo of bursts for so many seconds, and let all other samples go; returns the samples passed."""
        radio = self._radio
        first = radio.now()
        end = first + round(seconds * rate_hz)
        for target in range(first + round(GLANCE_S * rate_hz), end + 1, round(GLANCE_S * rate_hz)):
            radio.receive(0, max(target, radio.now()))
            self.look()
        return radio.now() - first

    def look(self) -> int:
        """Send one burst, listen where it should be heard, and elsewhere if it is not; returns the offset found."""
        echo, reach = self._burst(), SEARCH_BLOCKS * self._block
        begin = max(self._radio.now(), echo - reach)
        stop = max(echo + reach, begin) + CODE_SAMPLES
        self._check(self._radio.receive(stop - begin, begin), echo)
        assert self._heard is not None
        return self._heard.offset

    def _burst(self) -> int:
        """Send the code as early as possible; returns the RX index at which it should be heard."""
        heard, radio = self._heard, self._radio
        if heard is None:
            return radio.now()
        ordered = radio.newest()
        report = radio.transmit((heard.level * self._chips).astype(np.complex64), None)
        self.lost += sum(event.count for event in report.events if event.kind == "underflow")
        echo = report.start - heard.offset
        self.latency.append(echo - ordered)
        return echo

    def _take(self, capture: Capture) -> None:
        """Count what the driver reports, and blocks that are the same as the block before."""
        for event in capture.events:
            if event.kind in ("overflow", "lost"):
                self.lost += event.count
            elif event.kind == "duplicate":
                self.repeated += event.count
        blocks = capture.samples.reshape(-1, self._block)
        before = blocks[:-1] if self._last is None else np.vstack([self._last, blocks[:-1]])
        after = blocks[1:] if self._last is None else blocks
        same = (before == after).all(axis=1) & after.any(axis=1)  # lost samples are zeros, and were counted
        self._again += self._block * int(same.sum())
        self._last = blocks[-1]

    def _check(self, capture: Capture, echo: int) -> None:
        """Find the last burst near the RX index at which it should be; what it slipped by was lost or repeated."""
        assert self._heard is not None
        reach = SEARCH_BLOCKS * self._block
        begin = max(0, echo - reach - capture.start)
        end = max(begin, echo - capture.start + reach) + CODE_SAMPLES
        found = match(capture.samples[begin:end], self._chips)
        if found.clear:
            early = echo - (capture.start + begin + found.lag)
            self._heard = replace(self._heard, offset=self._heard.offset + early)
        else:
            again = hear_itself(self._radio, self._seed)
            early, self._heard = again.offset - self._heard.offset, again
        self.lost += max(0, early + self._again)
        self.repeated += self._again + max(0, -(early + self._again))
        self._again = 0

    def close(self) -> None:
        """Count repetitions that no echo was there to judge."""
        self.repeated += self._again
        self._again = 0


def integrity(radio: Radio, config: RadioConfig, options: CalibrationOptions, seed: int, name: str) -> Result:
    """Watch the streams for samples that are lost or come twice.

    In real time everything is received for ``integrity_s``. Where time is virtual and the driver reports losses, so
    much is received without a gap as is quick; where it does not, bursts through the own leakage go on watching the
    counters until ``integrity_s``.

    Returns:
        ``span_s`` watched, ``gapless_s`` of it received without a gap, ``blocks`` in the span, ``lost`` and
        ``repeated`` samples (a sample sent late shows like a repeated one), ``tested_rate_hz``; ``latency_s``, median
        and curve, from the order of a burst to its echo. ``lost`` is absent when neither driver nor echo can tell.
    """
    able, rate_hz = radio.capabilities, config.rate_hz
    tally = Tally(radio, seed)
    span_s = options.integrity_s
    if not able.real_time:
        few = VIRTUAL_SAMPLES if able.reports_losses or not tally.hears_itself else GAPLESS_SAMPLES
        span_s = min(span_s, few / rate_hz)
    samples = gapless = 0
    silent = ""
    try:
        samples = gapless = tally.gapless(span_s, rate_hz)
        if not able.reports_losses and tally.hears_itself and span_s < options.integrity_s:
            samples += tally.glance(options.integrity_s - span_s, rate_hz)
    except CalibrationError as error:
        silent = error.message
    tally.close()
    blocks = samples // able.block_samples
    values: dict[str, Value] = {
        "span_s": samples / rate_hz,
        "gapless_s": gapless / rate_hz,
        "blocks": blocks,
        "repeated": tally.repeated,
        "tested_rate_hz": rate_hz,
    }
    if able.reports_losses or tally.hears_itself:
        values["lost"] = tally.lost
    curves = {}
    if tally.latency:
        curves["latency_s"] = np.array(tally.latency) / rate_hz
        values["latency_s"] = float(np.median(curves["latency_s"]))
    finding = None
    if silent or tally.lost or tally.repeated:
        told = silent or (
            f"{name} lost {tally.lost} samples and got {tally.repeated} twice or late in {samples / rate_hz:.1f} s at "
            f"{rate_hz / 1e6:g} MS/s ({60.0 * (tally.lost + tally.repeated) / max(samples, 1) * rate_hz:.0f} a minute, "
            f"in blocks of {able.block_samples}); its driver declares {able.max_rate_hz / 1e6:g} MS/s"
        )
        finding = Finding(
            "drops", told, "use a USB port and a host of its own, a lower sample rate, or more buffers in the driver"
        )
    return Result("integrity", name, values, curves, finding)


def restart(radio: Radio, config: RadioConfig) -> None:
    """Start the streams anew: another sample rate and back does it on every device.

    A simulated radio whose time stood still while others went on comes to the present by it.
    """
    other = replace(config, rate_hz=config.rate_hz * RESTART_SHARE)
    if other.rate_hz < LOWEST_RATE_HZ <= config.rate_hz:
        other = replace(config, rate_hz=config.rate_hz / RESTART_SHARE)
    radio.configure(other)
    radio.configure(config)


def offset(radio: Radio, config: RadioConfig, options: CalibrationOptions, seed: int, name: str) -> Result:
    """Restart the streams again and again, and measure the difference of TX and RX count each time.

    Returns:
        ``offset_samples`` (the last), ``spread_samples``, ``constant``, ``restarts``; curve ``offset_samples``. Nothing
        at all when the radio does not hear itself.
    """
    tally = Tally(radio, seed)
    if not tally.hears_itself:
        return Result("offset", name)
    found = [tally.look()]
    for _ in range(options.restarts):
        restart(radio, config)
        # where one timeline is claimed, the echo should be where it was; elsewhere it may be anywhere
        found.append(tally.look() if radio.capabilities.one_timeline else hear_itself(radio, seed).offset)
    spread = max(found) - min(found)
    constant = spread <= CONSTANT_SAMPLES
    finding = None
    if radio.capabilities.one_timeline and not constant:
        finding = Finding(
            "tier",
            f"{name} declares tier {radio.capabilities.tier}, on which TX and RX have one count, but they differed by "
            f"{spread} samples ({1e3 * spread / config.rate_hz:.1f} ms) over {options.restarts} restarts of its stream",
            "install the firmware that this tier needs, or open the radio as one of tier P0",
        )
    values: dict[str, Value] = {
        "offset_samples": found[-1],
        "spread_samples": spread,
        "constant": constant,
        "restarts": options.restarts,
    }
    return Result("offset", name, values, {"offset_samples": np.array(found)}, finding)
