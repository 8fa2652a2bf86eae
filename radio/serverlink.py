"""The server's side of the link: the slot clock, beacons, sounding windows and burst windows; decodes no update.

Slot n begins at TX index ``origin + n * slot_samples`` of the server's radio; all it expects is counted from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Complex64

from radio.base import Capture, Radio, RadioConfig
from radio.beacon import beacon
from radio.cycle import Cycle, sounding_samples
from radio.errors import TooLate
from radio.ofdm import Profile, demodulate
from radio.sync import Link, estimate_link, noise_of, sounding
from radio.timeline import Echo, measure_offset
from radio.urgency import urgent

Grid = Complex64[np.ndarray, "symbol bin"]


#: Beacons sent that are kept in mind, to be listened for.
REMEMBERED = 256
#: Times of radios on one pulse agree within the longest way through cables, air and filters.
COMMON_S = 1e-3
#: Time in seconds that an order takes to its node, where time does not stand still meanwhile.
ORDER_S = 0.05
#: How often the server starts over with beacons that its own busy host made it miss.
STARTS = 5


@dataclass(frozen=True)
class Window:
    """One received window: ``grid`` (symbol, bin) and ``nulls`` (symbol, null bin), full scale 1.0, and its capture."""

    grid: Grid
    nulls: Complex64[np.ndarray, "symbol null"]
    capture: Capture


@dataclass
class ServerLink:
    """The server's radio and its slot clock. One owner, one thread."""

    radio: Radio
    profile: Profile
    rx_gain_db: float
    seed: int
    tx_attenuation_db: float = 0.0
    offset: int = 0
    origin: int = 0
    last_slot: int = -1
    unheard: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED), repr=False)
    echo: Echo = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.echo = Echo(self.radio)

    def open(self) -> None:
        """Configure the radio, measure its TX-RX offset and start the slot clock."""
        self.remeasure()
        self.origin, self.last_slot = self.radio.earliest(), -1
        self.unheard.clear()

    def remeasure(self) -> None:
        """Measure the TX-RX offset again: it is void after any gap in a stream. The slot clock counts TX and stays.

        With frequency-division duplex the transmitter visits the receive band meanwhile, which costs its phase.
        """
        self._configure(self.profile.carrier_hz)
        self.offset = measure_offset(self.radio, self.seed)
        self.echo.forget()
        self._configure(self.profile.beacon_hz)

    def settings(self) -> RadioConfig:
        """Give the radio's settings while it sends beacons and receives bursts."""
        return RadioConfig(
            rate_hz=self.profile.rate_hz,
            tx_hz=self.profile.beacon_hz,
            rx_hz=self.profile.carrier_hz,
            bandwidth_hz=self.profile.bandwidth_hz,
            rx_gain_db=self.rx_gain_db,
            tx_attenuation_db=self.tx_attenuation_db,
        )

    def _configure(self, tx_hz: float) -> None:
        self.radio.configure(replace(self.settings(), tx_hz=tx_hz))

    def next_slot(self) -> int:
        """First slot whose beacon can still be ordered, with its order still ahead of it when it reaches the nodes."""
        able, first = self.radio.capabilities, self.radio.earliest()
        if able.real_time:
            present = self.radio.newest() + self.offset
            first = max(first, present + able.lead_samples + round(ORDER_S * self.profile.rate_hz))
        room = first - self.origin
        return max(self.last_slot + 1, -(-room // self.profile.slot_samples))

    def send_beacons(self, first_slot: int, count: int) -> None:
        """Order the beacons of ``count`` slots.

        Raises:
            TooLate: the first of them can no longer be met.
        """
        for slot in range(first_slot, first_slot + count):
            self.radio.transmit(beacon(self.profile, slot), self.origin + slot * self.profile.slot_samples)
            self.unheard.append(slot)
        self.last_slot = max(self.last_slot, first_slot + count - 1)

    def beckon(self, slots: int) -> int:
        """Order a beacon in each of the next ``slots`` slots and return the first.

        Raises:
            TooLate: this host is held up for longer than orders can be given ahead, again and again.
        """
        return self._from_next(lambda first: self.send_beacons(first, slots))

    def schedule(self, cycle: Cycle, count: int) -> int:
        """Order the beacons of ``count`` cycles in a row and return the first slot.

        Raises:
            TooLate: as ``beckon``.
        """

        def order(first: int) -> None:
            for number in range(count):
                self.send_beacons(first + number * cycle.slots, cycle.beacons)

        first = self._from_next(order)
        self.last_slot = first + count * cycle.slots - 1
        return first

    def _from_next(self, order: Callable[[int], None]) -> int:
        """Order beacons from the next slot on that can be met; one that goes by meanwhile costs a new start."""
        with urgent() if self.radio.capabilities.real_time else nullcontext():
            for _ in range(STARTS - 1):
                with suppress(TooLate):
                    order(first := self.next_slot())
                    return first
            order(first := self.next_slot())
            return first

    def rx_index(self, slot: int, at: int = 0) -> int:
        """RX index of the sample ``at`` after the start of ``slot``."""
        return self.origin + slot * self.profile.slot_samples + at - self.offset

    def window(self, slot: int, at: int, symbols: int) -> Window:
        """Receive ``symbols`` OFDM symbols expected to start ``at`` samples after the start of ``slot``.

        The last beacon before it is listened for first, through this radio's own leakage.

        Raises:
            SamplesLost: a stream has slipped; ``remeasure`` before the next cycle.
        """
        guard = self.profile.guard_samples
        count = symbols * self.profile.symbol_samples + 2 * guard
        start = self.rx_index(slot, at) - guard
        self._check_echo(start)
        capture = self.radio.receive(count, start)
        grid, nulls = demodulate(capture.samples, self.profile, symbols, guard)
        return Window(grid, nulls, capture)

    def _check_echo(self, before: int) -> None:
        last = None
        while self.unheard and self.rx_index(self.unheard[0]) + self.profile.beacon_samples < before:
            last = self.unheard.popleft()
        if last is not None and self.profile.beacon_hz == self.profile.carrier_hz:
            self.echo.check(beacon(self.profile, last), self.rx_index(last))

    def sound(self, slot: int, cycle: Cycle, places: int) -> list[Link]:
        """Receive one sounding window and estimate the link of the node in each of its ``places``.

        The estimate holds for a pilot of amplitude 1 per element; the caller divides by the drive.
        """
        length = sounding_samples(self.profile)
        pilots = sounding(self.profile)
        links = []
        for place in range(places):
            at = cycle.burst_at + place * length + self.profile.guard_samples
            window = self.window(slot, at, 2)
            links.append(estimate_link(window.grid, pilots, noise_of(window.nulls), self.profile))
        return links

    def off_time(self, slot: int, cycle: Cycle, place: int, start: int) -> str:
        """Compare a node's count with the server's, where both begin at the second of a common pulse (PPS).

        Every node aims its sounding at a place in the server's count. On a common clock its own index is the same but
        for the way through both radios; a device that took another pulse for the same second is off by whole seconds.

        Args:
            slot: first of the cycle.
            cycle: of the sounding.
            place: of the node.
            start: TX index at which the node sent.

        Returns:
            What is wrong, or nothing.
        """
        able = self.radio.capabilities
        at = cycle.burst_at + place * sounding_samples(self.profile) + self.profile.guard_samples
        off_s = (start - self.origin - slot * self.profile.slot_samples - at) / self.profile.rate_hz
        if not (able.one_timeline and able.shared_reference) or abs(off_s) < COMMON_S:
            return ""
        return f"its time is {off_s:+.6f} s off the server's, so they do not count from the same PPS: check its cable"

    def state(self) -> dict[str, Any]:
        """Give everything needed to go on after a restart, as plain JSON values."""
        return {"offset": self.offset, "origin": self.origin, "last_slot": self.last_slot}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state saved by ``state`` on a radio that kept running."""
        self._configure(self.profile.beacon_hz)
        self.offset, self.origin, self.last_slot = state["offset"], state["origin"], state["last_slot"]
