"""One simulated radio as the air sees it: settings, counters, clock, LO phases, bursts; knows no other radio."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float32

from radio.base import Capabilities, RadioConfig
from radio.clock import Clock, PhaseNoise, rng
from radio.errors import RadioRefused
from radio.impairments import BlockMap, Faults, amplitude, draw_faults, step_phase
from radio.links import Contact
from radio.presets import EtherOptions, RadioEffects

RESTART_GAP_S = 1e-3  # a stream that restarts loses this much time


@dataclass
class Burst:
    """Samples that one radio put on the air; ``level`` is the amplitude of full scale in sqrt(mW)."""

    begin_s: float
    end_s: float
    device_start: int
    origin_s: float
    rate_hz: float
    carrier_hz: float
    phase_rad: float
    level: float
    stream: int
    re: Float32[np.ndarray, " sample"]
    im: Float32[np.ndarray, " sample"]
    converted: dict[float, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def at_rate(self, rate_hz: float) -> tuple[np.ndarray, np.ndarray]:
        """Give the samples at a receiver's nominal rate: the kernel only follows differences of parts per million."""
        if rate_hz == self.rate_hz:
            return self.re, self.im
        if rate_hz not in self.converted:
            from scipy.signal import resample_poly  # imported late: it takes half a second, and few labs mix rates

            ratio = Fraction(rate_hz / self.rate_hz).limit_denominator(1000)
            self.converted[rate_hz] = (
                resample_poly(self.re, ratio.numerator, ratio.denominator).astype(np.float32),
                resample_poly(self.im, ratio.numerator, ratio.denominator).astype(np.float32),
            )
        return self.converted[rate_hz]


@dataclass
class Tone:
    """A carrier that leaks from ``on_s`` to ``off_s`` while a transmitter is not muted."""

    on_s: float
    off_s: float
    carrier_hz: float
    phase_rad: float
    level: float


class Station:
    """State of one radio name on the air. Only ``radio.ether`` touches it, under its lock."""

    def __init__(self, name: str, options: EtherOptions, reference: Clock) -> None:
        self.name = name
        self.seed = options.seed
        self.effects: RadioEffects = options.of(name)
        self.faults: Faults = draw_faults(self.effects, self.seed, name)
        e = self.effects
        self.clock = (
            reference
            if e.shared_reference
            else Clock(self.faults.ppm, e.warm_up_ppm, e.warm_up_s, e.drift_ppb_per_s, e.adev, self.seed, name)
        )
        rms_rad = math.radians(e.phase_noise_deg)
        self.tx_pll = PhaseNoise(rms_rad, self.seed, f"{name}/tx")
        self.rx_pll = PhaseNoise(rms_rad, self.seed, f"{name}/rx")
        self.contact = Contact(e.contact_loss_db, e.contact_hz, self.seed, name)
        self.opened = self.adoptable = self.gone = self.agc = False
        self.muted = True
        self.owner = ""
        self.session = self.streams = self.tx_tunes = self.rx_tunes = 0
        self.config: RadioConfig | None = None
        self.origin_s = 0.0
        self.cursor = self.fresh = self.head = self.hidden = 0
        self.bursts: list[Burst] = []
        self.tones: list[Tone] = []
        self._phases: dict[tuple[str, int, int, int], float] = {}
        self._reached: tuple[tuple[int, int, int], float] = ((-1, -1, -1), 0.0)
        self._renew()

    def _renew(self) -> None:
        """Rebuild what is keyed by the stream: loss maps and receiver noise."""
        e, key = self.effects, (self.name, self.session, self.streams)
        per_block = e.block_samples / self.rate_hz / 60.0
        over = max(0.0, 1.0 - e.max_rate_hz / self.rate_hz)  # USB cannot carry more: the rest of the blocks is lost
        drop = e.drop_probability + over + e.overflows_per_min * per_block
        slips = not e.reports_losses
        self.rx_map = BlockMap(drop, e.duplicate_probability, slips, self.seed, *key, "rx-blocks")
        self.tx_map = BlockMap(e.underflows_per_min * per_block, 0.0, slips, self.seed, *key, "tx-blocks")
        self.noise_key = int(rng(self.seed, *key, "noise").integers(1 << 62))

    @property
    def rate_hz(self) -> float:
        """Sample rate, or 1 MS/s before the first configuration."""
        return 1e6 if self.config is None else self.config.rate_hz

    def capabilities(self) -> Capabilities:
        """Give what the driver declares at the present rate."""
        e = self.effects.as_declared()
        return Capabilities(
            tier=e.tier,
            serial=e.serial or f"loopback-{self.name}",
            driver="loopback 1",
            max_rate_hz=e.max_rate_hz,
            turnaround_samples=round(e.turnaround_s * self.rate_hz),
            block_samples=e.block_samples,
            one_timeline=e.one_timeline,
            shared_reference=e.shared_reference,
            reports_losses=e.reports_losses,
        )

    def taken(self, wanted: RadioConfig) -> RadioConfig:
        """Give the settings that the device would take.

        Raises:
            RadioRefused: one lies outside what it can do.
        """
        e = self.effects

        def near(value: float, step: float) -> float:
            return round(value / step) * step if step else float(value)

        limits = (
            ("rate_hz", wanted.rate_hz, 1e3, 61.44e6),
            ("tx_hz", wanted.tx_hz, e.tune_min_hz, e.tune_max_hz),
            ("rx_hz", wanted.rx_hz, e.tune_min_hz, e.tune_max_hz),
            ("bandwidth_hz", wanted.bandwidth_hz, 1e2, 61.44e6),
            ("rx_gain_db", wanted.rx_gain_db, e.rx_gain_min_db, e.rx_gain_max_db),
            ("tx_attenuation_db", wanted.tx_attenuation_db, 0.0, e.tx_attenuation_max_db),
        )
        for key, value, low, high in limits:
            if not (math.isfinite(value) and low <= value <= high):
                raise RadioRefused(
                    f"{self.name}: {key} = {value:g} is outside what the device can do, {low:g} to {high:g}",
                    f"set {key} inside these limits",
                )
        return RadioConfig(
            rate_hz=float(wanted.rate_hz),
            tx_hz=near(wanted.tx_hz, e.lo_step_hz),
            rx_hz=near(wanted.rx_hz, e.lo_step_hz),
            bandwidth_hz=float(wanted.bandwidth_hz),
            rx_gain_db=near(wanted.rx_gain_db, e.rx_gain_step_db),
            tx_attenuation_db=near(wanted.tx_attenuation_db, e.tx_attenuation_step_db),
        )

    def start_stream(self, time_s: float) -> None:
        """Start counting anew at a true time: new counters, new hidden TX latency, old blocks at the head."""
        e = self.effects
        self.streams += 1
        if e.shared_reference:
            self.origin_s = 0.0
            self.cursor = math.ceil(self.clock.reading(time_s) * self.rate_hz)
        else:
            self.origin_s = self.clock.reading(time_s)
            self.cursor = 0
        self.head = self.cursor
        self.fresh = self.cursor + e.kernel_buffers * e.block_samples
        latest = 0 if e.one_timeline else round(e.tx_latency_max_s * self.rate_hz)
        self.hidden = int(rng(self.seed, self.name, "tx-latency", self.session, self.streams).integers(0, latest + 1))
        self._renew()

    def instant_s(self, device: int | float) -> float:
        """Give the true time of a device sample index."""
        return self.clock.instant_at(self.origin_s + device / self.rate_hz)

    def device_at(self, time_s: float) -> int:
        """Give the first device sample index at or after a true time."""
        return math.ceil((self.clock.reading(time_s) - self.origin_s) * self.rate_hz)

    def rx_device(self, index: int) -> int:
        """Convert an RX index of the host to a device sample index."""
        block = self.effects.block_samples
        return index + block * self.rx_map.slip(index // block)

    def tx_device(self, index: int) -> int:
        """Convert a TX index of the host to a device sample index."""
        block = self.effects.block_samples
        return index + self.hidden + block * self.tx_map.slip(index // block)

    def reached_s(self) -> float:
        """Give the true time up to which this radio has received; 0 before it is configured."""
        if self.config is None:
            return 0.0
        key = (self.cursor, self.streams, self.session)
        if self._reached[0] != key:  # asked of every radio whenever one receives
            self._reached = (key, self.instant_s(self.rx_device(self.cursor)))
        return self._reached[1]

    def earliest(self) -> int:
        """Give the first TX index that can still be met."""
        e = self.effects
        device = self.rx_device(self.cursor) + round(e.turnaround_s * self.rate_hz)
        if self.bursts and self.bursts[-1].stream == self.streams:
            device = max(device, self.bursts[-1].device_start + self.bursts[-1].re.size)
        index = device - self.hidden
        for _ in range(4):
            index += device - self.tx_device(index)
        index = max(index, 0)
        # without timed transmit, samples enter the stream a block at a time
        return index if e.one_timeline else -(-index // e.block_samples) * e.block_samples

    def segments(self, start: int, count: int) -> Iterator[tuple[int, int, int, bool]]:
        """Cut RX indices into runs that are contiguous on the device: (host start, device start, count, lost)."""
        block = self.effects.block_samples
        if start < self.fresh:
            taken = min(count, self.fresh - start)
            yield start, start - (self.fresh - self.head) - block, taken, False
            start, count = start + taken, count - taken
        while count > 0:
            end = start + count if self.rx_map.perfect else min(start + count, (start // block + 1) * block)
            lost = not self.rx_map.slips and self.rx_map.lost(start // block)
            yield start, self.rx_device(start), end - start, lost
            count -= end - start
            start = end

    def _phase(self, side: str, tunes: int, steps: int, limit_deg: float) -> float:
        """Give the constant phase of one side: gain setting plus LO start phase (taken off on the receive side)."""
        key = (side, self.session, tunes, steps)
        if key not in self._phases:
            start = rng(self.seed, self.name, "lo", side, self.session, tunes).uniform() * 2.0 * math.pi
            setting = step_phase(self.seed, self.name, side, steps, limit_deg)
            self._phases[key] = setting + (start if self.effects.lo_start_phase else 0.0) * (1 if side == "tx" else -1)
        return self._phases[key]

    def tx_phase(self) -> float:
        """Give the constant transmit phase in rad."""
        assert self.config is not None
        e = self.effects
        steps = round(self.config.tx_attenuation_db / e.tx_attenuation_step_db)
        return self._phase("tx", self.tx_tunes, steps, e.tx_step_phase_deg)

    def rx_phase(self) -> float:
        """Give the constant receive phase in rad."""
        assert self.config is not None
        e = self.effects
        steps = round(self.config.rx_gain_db / e.rx_gain_step_db)
        return self._phase("rx", self.rx_tunes, steps, e.rx_step_phase_deg)

    def level(self) -> float:
        """Give the amplitude of a full-scale sample at the antenna, in sqrt(mW)."""
        assert self.config is not None
        return amplitude(self.effects.tx_fs_dbm - self.config.tx_attenuation_db)

    def leak_from(self, time_s: float) -> None:
        """Let the carrier leak with the present settings from a true time on, ending any earlier leak there."""
        self.leak_until(time_s)
        assert self.config is not None
        if self.faults.tx_leak:
            self.tones.append(Tone(time_s, math.inf, self.config.tx_hz, self.tx_phase(), self.level()))

    def leak_until(self, time_s: float) -> None:
        """End the carrier leak at a true time."""
        for tone in self.tones:
            tone.off_s = min(tone.off_s, time_s)

    def silence(self, time_s: float) -> None:
        """Mute at a true time: later bursts are dropped, a running one is cut, the leak ends."""
        self.cut(time_s)
        self.leak_until(time_s)
        self.muted = True

    def cut(self, time_s: float) -> None:
        """Drop what was to be sent after a true time."""
        kept = []
        for burst in self.bursts:
            if burst.begin_s >= time_s:
                continue
            if burst.end_s > time_s:
                length = max(1, self.device_at(time_s) - burst.device_start)
                burst.re, burst.im, burst.end_s = burst.re[:length].copy(), burst.im[:length].copy(), time_s
                burst.converted.clear()
            kept.append(burst)
        self.bursts = kept

    def overlapping(self, begin_s: float, end_s: float) -> list[Burst]:
        """List the bursts that touch a span of true time; bursts of one radio never overlap each other."""
        first = bisect.bisect_left(self.bursts, begin_s, key=lambda burst: burst.end_s)
        last = bisect.bisect_right(self.bursts, end_s, key=lambda burst: burst.begin_s)
        return self.bursts[first:last]

    def forget(self, time_s: float) -> None:
        """Drop bursts and leaks that ended before a true time."""
        del self.bursts[: bisect.bisect_left(self.bursts, time_s, key=lambda burst: burst.end_s)]
        self.tones = [tone for tone in self.tones if tone.off_s >= time_s]

    _KEPT = ("opened", "gone", "agc", "muted", "session", "streams", "tx_tunes", "rx_tunes", "origin_s", "cursor",
             "fresh", "head", "hidden")  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Give everything that must survive a restart, as JSON-able values; bursts on the air do not."""
        kept = {key: getattr(self, key) for key in self._KEPT}
        # JSON has no infinity: an open-ended tone is written with off_s absent
        tones = [{k: v for k, v in asdict(tone).items() if v != math.inf} for tone in self.tones]
        return {**kept, "config": asdict(self.config) if self.config else None, "tones": tones}

    def restore(self, state: dict[str, Any]) -> None:
        """Take a state back. A radio that was open waits to be adopted by the next to open it."""
        for key in self._KEPT:
            setattr(self, key, state[key])
        self.config = RadioConfig(**state["config"]) if state["config"] else None
        self.tones = [Tone(**{"off_s": math.inf, **tone}) for tone in state["tones"]]
        self.bursts = []
        self.adoptable = self.opened
        self._renew()
