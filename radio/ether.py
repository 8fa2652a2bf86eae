"""The simulated air: all radios of a lab on one virtual time; knows true time and every fault, lets no radio see them.

Time is virtual: ``transmit`` registers a burst, ``receive`` renders a window. Nothing sleeps; results depend on seeds
alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Complex64

from radio.base import Capabilities, Capture, RadioConfig, StreamEvent, TxReport
from radio.clock import Clock, rng
from radio.deposits import Deposits
from radio.errors import ConfigError, RadioError, RadioNotFound, RadioRefused, TooLate
from radio.impairments import amplitude, send
from radio.links import Link, draw_link, wire
from radio.presets import EtherOptions
from radio.render import hears, render
from radio.station import RESTART_GAP_S, Burst, Station


class Ether:
    """The air between the radios of one lab. Safe to call from several threads.

    Args:
        options: every effect, link and seed.
        names: the radios of the lab; ``options.server`` should be one of them.

    Raises:
        ConfigError: a radio is named twice, or an override names an unknown radio.
    """

    def __init__(self, options: EtherOptions, names: Iterable[str]) -> None:
        self.options = options
        self.names = tuple(names)
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"radios are named twice in {list(self.names)}", "give every radio its own name")
        for table, named in (("ether.radios", options.radios), ("ether.links", options.links)):
            if unknown := sorted(set(named) - set(self.names)):
                raise ConfigError(
                    f"{table} has overrides for {unknown}, but the lab has {list(self.names)}", "rename them"
                )
        e = options
        reference = Clock(0.0, e.warm_up_ppm, e.warm_up_s, e.drift_ppb_per_s, e.adev, e.seed, "reference")
        self._stations = {name: Station(name, options, reference) for name in self.names}
        self._links: dict[tuple[str, str], Link | None] = {}
        self._reference_rate_hz = options.reference_rate_hz
        self._forgotten_s = 0.0
        self._deposits = Deposits()
        self._lock = threading.RLock()

    def _station(self, name: str, configured: bool = True) -> Station:
        station = self._stations.get(name)
        if station is None:
            raise RadioNotFound(f"no radio {name!r} on this air, which has {', '.join(self.names)}", "use one of these")
        if station.gone:
            raise RadioError(f"radio {name} stopped answering: its cable is out", "open it again")
        if not station.opened:
            raise RadioError(f"radio {name} is not open", "open it first")
        if configured and station.config is None:
            raise RadioRefused(f"radio {name} has no settings yet", "call configure first")
        return station

    @contextmanager
    def hold(self, name: str) -> Iterator[Station]:
        """Give the state of an open radio, with the air standing still, to what drives it in real time."""
        with self._lock:
            yield self._station(name, configured=False)

    def _link(self, one: str, other: str) -> Link | None:
        key = (min(one, other), max(one, other))
        if key not in self._links:
            if one == other:
                station = self._stations[one]
                delay_s = station.faults.self_delay_samples / station.rate_hz
                return wire(station.faults.self_gain, delay_s) if station.faults.self_gain else None
            rate_hz = self._reference_rate_hz or 1e6
            self._links[key] = draw_link(self.options, *key, rate_hz)
        return self._links[key]

    def _present_s(self) -> float:
        return max(station.reached_s() for station in self._stations.values())

    def _heard_until_s(self, sender: Station, carriers: Iterable[float]) -> float:
        """Give the true time (at the sender) up to which someone has already received what these carriers bring."""
        latest = 0.0
        for name in self.names:
            other = self._stations[name]
            if other is sender or other.config is None or not any(hears(other, hz) for hz in carriers):
                continue
            link = self._link(sender.name, name)
            if link is not None:
                latest = max(latest, other.reached_s() - link.delay_s)
        return latest

    def open(self, name: str, owner: str = "") -> None:
        """Take a radio for one owner. A radio restored open is adopted as it stands.

        Raises:
            RadioNotFound: no such radio.
            RadioRefused: somebody has it open.
        """
        with self._lock:
            station = self._stations.get(name)
            if station is None:
                raise RadioNotFound(
                    f"no radio {name!r} on this air, which has {', '.join(self.names)}", "use one of these"
                )
            if station.opened and not station.adoptable:
                raise RadioRefused(
                    f"radio {name} is already open by another program", "close it there, or use another name"
                )
            if not station.adoptable:
                station.session += 1
                station.config = None
                station.streams = 0
                station.muted, station.agc, station.gone = True, True, False
            station.opened, station.adoptable, station.owner = True, False, owner

    def owner(self, name: str) -> str | None:
        """Give who holds a radio open, or None."""
        station = self._stations.get(name)
        return station.owner if station is not None and station.opened and not station.adoptable else None

    def capabilities(self, name: str) -> Capabilities:
        """Give what a radio declares of itself at its present rate."""
        with self._lock:
            return self._station(name, configured=False).capabilities()

    def configure(self, name: str, wanted: RadioConfig, manual_gain: bool = True) -> tuple[RadioConfig, int]:
        """Apply settings; a changed rate restarts the stream, a changed carrier draws a new LO phase.

        Args:
            name: the radio.
            wanted: settings.
            manual_gain: switches the automatic gain off, which is on in a radio just opened, as in the AD936x driver.

        Returns:
            The settings taken, and how many samples from ``now()`` on are old and must be flushed by the driver.
        """
        with self._lock:
            station = self._station(name, configured=False)
            taken = station.taken(wanted)
            before = station.config
            station.agc = not manual_gain
            if before == taken:
                return taken, 0
            station.config = before or taken
            now_s = max(station.reached_s(), self._heard_until_s(station, {station.config.tx_hz})) if before else 0.0
            present_s = self._present_s()
            station.config = taken
            if before is None or before.tx_hz != taken.tx_hz:
                station.tx_tunes += 1
            if before is None or before.rx_hz != taken.rx_hz:
                station.rx_tunes += 1
            if name == self.options.server and self._reference_rate_hz is None:
                self._reference_rate_hz = taken.rate_hz
                self._links.clear()
            if before is None or before.rate_hz != taken.rate_hz:
                self._restart(station, present_s, before is None)
                return taken, station.fresh - station.cursor
            if not station.muted:
                station.leak_from(now_s)
            return taken, 0

    def _restart(self, station: Station, now_s: float, first: bool) -> None:
        """Start a stream: the first of a lab near time zero, a later one at the present."""
        e = station.effects
        if not first:
            station.silence(now_s)
            station.start_stream(now_s + RESTART_GAP_S)
            return
        begin_s = 0.0
        if station.session > 1:
            station.config, config = None, station.config
            begin_s = self._present_s()
            station.config = config
        elif not e.shared_reference:
            begin_s = e.start_spread_s * float(rng(station.seed, station.name, "start").uniform())
        station.start_stream(begin_s)

    def now(self, name: str) -> int:
        """Give the RX index of the next sample a radio would receive."""
        with self._lock:
            return self._station(name).cursor

    def earliest(self, name: str) -> int:
        """Give the first TX index that a radio can still meet."""
        with self._lock:
            return self._station(name).earliest()

    def unmute(self, name: str) -> None:
        """Power the transmit LO up, which gives it a new phase; the leak begins with the next burst."""
        with self._lock:
            station = self._station(name)
            if station.muted:
                station.muted = False
                station.tx_tunes += 1

    def transmit(
        self, name: str, samples: Complex64[np.ndarray, " sample"], start: int | None = None, *, unmute: bool = False
    ) -> TxReport:
        """Register a burst of a radio from TX index ``start`` (None: as early as possible); ``unmute`` it before.

        Raises:
            TooLate: ``start`` cannot be met any more.
        """
        with self._lock:
            station = self._station(name)
            config = station.config
            assert config is not None
            if unmute:
                self.unmute(name)
            earliest = station.earliest()
            start = earliest if start is None else int(start)
            if start < earliest:
                raise TooLate(
                    f"{name}: TX index {start} is {earliest - start} samples too early; first is {earliest}",
                    "schedule bursts further ahead",
                    late_samples=earliest - start,
                )
            re, im, clipped = send(samples, station.effects, station.faults)
            events: list[StreamEvent] = []
            if station.effects.quirk_underflow_bit:
                events.append(StreamEvent("underflow", start, 0))
            if station.muted and not station.effects.quirk_sticky_mute:
                self.unmute(name)
            if not station.muted and re.size:
                self._radiate(station, config, re, im, start, events)
            return TxReport(start, int(re.size), clipped, tuple(events))

    def _radiate(
        self,
        station: Station,
        config: RadioConfig,
        re: np.ndarray,
        im: np.ndarray,
        start: int,
        events: list[StreamEvent],
    ) -> None:
        """Put a burst on the air in pieces contiguous on the device; who has received that time already misses it."""
        heard_s = self._heard_until_s(station, {config.tx_hz})
        block = station.effects.block_samples
        at = 0
        while at < re.size:
            index = start + at
            end = re.size if station.tx_map.perfect else min(re.size, at + block - index % block)
            if not station.tx_map.slips and station.tx_map.lost(index // block):
                events.append(StreamEvent("underflow", index, end - at))
                at = end
                continue
            device = station.tx_device(index)
            cut = max(0, min(station.device_at(heard_s) - device, end - at)) if heard_s > 0.0 else 0
            if cut:
                events.append(StreamEvent("late", index, cut))
            begin_s = station.instant_s(device)
            if all(tone.off_s != math.inf for tone in station.tones):
                station.leak_from(begin_s)
            station.bursts.append(
                Burst(
                    begin_s, station.instant_s(device + end - at), device, station.origin_s, config.rate_hz,
                    config.tx_hz, station.tx_phase(), station.level(), station.streams, re[at:end], im[at:end],
                )
            )  # fmt: skip
            at = end

    def receive(self, name: str, count: int, start: int | None = None) -> Capture:
        """Render ``count`` samples of a radio from RX index ``start`` (None: from where it is); earlier ones are gone.

        Raises:
            RadioRefused: ``start`` was already received, or ``count`` is negative.
            RadioError: the radio was unplugged before the last sample.
        """
        with self._lock:
            station = self._station(name)
            start = station.cursor if start is None else int(start)
            if start < station.cursor or count < 0:
                raise RadioRefused(
                    f"{name}: {count} samples from RX index {start} were asked, the stream is at {station.cursor}",
                    "receive in rising order",
                )
            e = station.effects
            if e.unplug_at is not None and station.session == 1 and start + count > e.unplug_at:
                station.silence(
                    max(station.reached_s(), self._heard_until_s(station, {tone.carrier_hz for tone in station.tones}))
                )
                station.opened, station.gone = False, True
                raise RadioError(
                    f"radio {name} stopped answering at RX index {e.unplug_at}", "plug it in and open it again"
                )
            senders = [
                (self._stations[other], link)
                for other in sorted(self.names)
                if (link := self._link(other, name)) is not None
            ]
            out = np.empty(count, np.complex64)
            clipped, events = 0, []
            for at, device, length, lost in station.segments(start, count):
                part = slice(at - start, at - start + length)
                if lost:
                    out[part] = 0.0
                    events.append(StreamEvent("overflow", at, length))
                    continue
                out[part], hits = render(station, senders, self.options, device, length)
                clipped += hits
            begin_s = station.reached_s() if start == station.cursor else station.instant_s(station.rx_device(start))
            if count and begin_s < self._forgotten_s:
                events.append(StreamEvent("overflow", start, count))
            self._transient(station, start, out)
            station.cursor = start + count
            self._forget()
            return Capture(out, start, station.rate_hz, clipped, tuple(events))

    def _transient(self, station: Station, start: int, out: np.ndarray) -> None:
        length = station.effects.quirk_transient_samples
        since = start - station.fresh
        if 0 <= since < length:
            index = np.arange(since, min(length, since + out.size))
            out[: index.size] += (0.5 * np.exp(-5.0 * index / length)).astype(np.float32)

    def _forget(self) -> None:
        """Drop bursts that every radio has passed, and those older than the history that is kept."""
        reached = [station.reached_s() for station in self._stations.values()]
        horizon_s = max(reached) - self.options.history_s
        self._forgotten_s = max(self._forgotten_s, horizon_s)
        for station in self._stations.values():
            station.forget(max(min(reached) - RESTART_GAP_S, horizon_s))

    def mute(self, name: str) -> None:
        """Switch a transmitter off now: bursts that nobody has received yet are dropped, the leak ends."""
        with self._lock:
            station = self._station(name, configured=False)
            if station.config is None:
                return
            carriers = {station.config.tx_hz} | {burst.carrier_hz for burst in station.bursts}
            station.silence(max(station.reached_s(), self._heard_until_s(station, carriers)))

    def close(self, name: str) -> None:
        """Mute a radio and give it back. Safe to call twice."""
        with self._lock:
            station = self._stations.get(name)
            if station is not None and station.opened:
                self.mute(name)
                station.opened = station.adoptable = False

    def deposit(self, key: str, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Leave arrays of radio ``name`` under ``key``; they stay here, only sums leave."""
        with self._lock:
            self._deposits.leave(key, name, arrays)

    def collect(self, key: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Take the sums over ``names`` of everything deposited under ``key``, and forget all of it.

        Raises:
            RadioError: a name left nothing, or one name alone of several is asked for, which would be no sum.
        """
        with self._lock:
            return self._deposits.take(key, names)

    def amplitude(self, sender: str, receiver: str, start: int, offsets_hz: np.ndarray) -> np.ndarray:
        """Give the true |H| from sender to receiver, full scale to full scale, at TX index ``start`` of the sender."""
        with self._lock:
            source, sink = self._stations.get(sender), self._stations.get(receiver)
            if source is None or sink is None or source.config is None or sink.config is None:
                raise RadioError(f"{sender} and {receiver} must both have been configured", "configure both radios")
            link = self._link(sender, receiver)
            offsets_hz = np.asarray(offsets_hz, dtype=np.float64)
            if link is None:
                return np.zeros(offsets_hz.shape)
            time_s = source.instant_s(source.tx_device(start))
            turns = np.exp(-2j * math.pi * np.multiply.outer(offsets_hz, link.path_delay_s))
            at = np.array([time_s])
            gain = amplitude(sink.config.rx_gain_db - sink.effects.rx_fs_offset_dbm) * source.level() * link.gain
            if source is not sink:
                gain *= float((source.contact.gain(at) * sink.contact.gain(at))[0])
            result: np.ndarray = gain * np.abs(turns @ link.paths(at)[0])
            return result

    def _fingerprint(self) -> str:
        text = json.dumps([self.options.model_dump(mode="json"), self.names], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def state(self) -> dict[str, Any]:
        """Give what a restarted ether needs to continue bit for bit, JSON-able. Bursts on the air are lost."""
        with self._lock:
            radios = {name: station.state() for name, station in self._stations.items()}
            # sealed: a checkpoint passes through code that must not come to read true time or hidden counters from it
            sealed = base64.b64encode(json.dumps([self._reference_rate_hz, radios]).encode()).decode()
            return {"version": 1, "options": self._fingerprint(), "sealed": sealed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state. Radios that were open wait, configured as they were, to be opened again.

        Raises:
            ConfigError: the state is of another version, or of an air with other options.
        """
        with self._lock:
            if state.get("version") != 1 or state.get("options") != self._fingerprint():
                raise ConfigError(
                    f"the saved air (version {state.get('version')}, options {state.get('options')}) is not this one "
                    f"(version 1, options {self._fingerprint()})",
                    "resume with the lab file and seed of the run",
                )
            self._reference_rate_hz, radios = json.loads(base64.b64decode(state["sealed"]))
            self._links.clear()
            for name, kept in radios.items():
                self._stations[name].restore(kept)
