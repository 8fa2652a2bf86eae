"""One PlutoSDR as a radio: settings, counters, mute, and the watch that brings it back; knows no library.

Its streams never stop once it is configured, so transmit and receive indices differ by a constant, unknown until it
is measured by leakage (``radio.timeline``) and void after any loss.
"""

from __future__ import annotations

import atexit
import errno
import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Protocol, runtime_checkable

from radio.base import Capabilities, Capture, RadioConfig, Samples, StreamEvent, Tier, TxReport, Witness, checked
from radio.errors import RadioError, RadioRefused
from radio.pairs import to_pairs
from radio.pluto_stream import Port, Streams, TxQueue
from radio.ring import RxRing

DAC_BITS = 12
RX_FULL_SCALE = 2.0**11  # twelve bits, right aligned
MAX_RATE_HZ = 2e6  # both directions over USB 2 without losses
ATTENUATION_STEP_DB = 0.25
#: Settings in the order they are made: each may move the limits of those behind it.
ORDER = ("rate_hz", "bandwidth_hz", "rx_hz", "tx_hz", "rx_gain_db", "tx_attenuation_db")
HOST_MARGIN_S = 15e-3
STALL_S = 0.5
WATCH_S = 0.1
RETRY_S = 0.3
HANG_S = 4.0  # a call into a device that died returns by its own time limit
REMEDY = "check cable, power and USB port; the radio comes back by itself"

_OPEN: weakref.WeakSet[PlutoRadio] = weakref.WeakSet()


@runtime_checkable
class Device(Protocol):
    """What a Pluto offers behind its library; muted when it is made."""

    serial: str
    driver: str
    tier: Tier

    def mute(self) -> None:
        """Silence the transmitter, read back."""
        ...

    def temperature_c(self) -> float:
        """Read the temperature of the transceiver."""
        ...

    def unmute(self, attenuation_db: float) -> None:
        """Bring the transmitter up, read back."""
        ...

    def limits(self) -> dict[str, tuple[float, float]]:
        """Ask what the device can do, field of ``RadioConfig`` -> (lowest, highest)."""
        ...

    def manual_gain(self) -> None:
        """Switch the automatic gain off."""
        ...

    def set(self, setting: str, value: float) -> float:
        """Write one field of ``RadioConfig`` and read back what was taken."""
        ...

    def blocks(self, block: int, buffers: int) -> tuple[Port, Port]:
        """Open the receive and the transmit buffer."""
        ...


class PlutoRadio:
    """One Pluto behind the door that every radio has. Opens on construction, muted.

    Args:
        reopen: opens the device; gets the serial that was seen before, or an empty string.
        block: samples in a block.
        buffers: blocks in the device's transmit queue.
        shared_reference: the lab feeds it a common clock.

    Raises:
        RadioNotFound: it does not answer.
    """

    witness: Witness | None = None

    def __init__(
        self, reopen: Callable[[str], Device], block: int, buffers: int, shared_reference: bool = False
    ) -> None:
        self._reopen, self._block, self._buffers, self._shared = reopen, block, buffers, shared_reference
        self._control = threading.RLock()  # settings, opening and closing, one at a time
        self._closing = threading.Event()
        self._fault = ""
        self._asked: RadioConfig | None = None
        self._taken: RadioConfig | None = None
        self._streams: Streams | None = None
        self._muted, self._quiet_s = True, 0.0
        self._device: Device | None = self._guarded_open("")
        self._told = (self._device.tier, self._device.serial, self._device.driver)
        self.name = f"pluto-{self._device.serial[-6:]}"
        self._ring = RxRing(full_scale=RX_FULL_SCALE, name=self.name)
        self._queue = TxQueue(self.name)
        self._watch = threading.Thread(target=self._keep, name=f"{self.name}-watch", daemon=True)
        _OPEN.add(self)

    def _guarded_open(self, serial: str) -> Device:
        try:
            return self._reopen(serial)
        except OSError as error:
            raise RadioError(f"the Pluto does not answer: {error}", REMEDY) from error

    @property
    def capabilities(self) -> Capabilities:
        """Declare what this Pluto does at its present rate.

        The turnaround holds a block on its way in, the queue of the device and two blocks on their way there, and a
        margin for the host.
        """
        tier, serial, driver = self._told
        rate_hz = self._taken.rate_hz if self._taken else 1e6
        return Capabilities(
            tier=Tier.P3 if self._shared else tier,
            serial=serial,
            driver=driver,
            max_rate_hz=MAX_RATE_HZ,
            turnaround_samples=(self._buffers + 3) * self._block + math.ceil(HOST_MARGIN_S * rate_hz),
            block_samples=self._block,
            one_timeline=False,
            shared_reference=self._shared,
            reports_losses=False,
            real_time=True,
        )

    def _alive(self, configured: bool = True) -> Device:
        """Give the device, or say why there is none."""
        if self._closing.is_set():
            raise RadioError(f"{self.name} is closed", "open it again")
        if self._fault or self._device is None:
            raise RadioError(self._fault or f"{self.name} does not answer", REMEDY)
        if configured and (self._streams is None or self._taken is None):
            raise RadioError(f"{self.name} is not configured", "configure it first")
        return self._device

    def configure(self, wanted: RadioConfig) -> RadioConfig:
        """Apply settings that changed, manual gain first and gains last, and read them back.

        A new rate starts both counters anew at 0; other changes skip the blocks received before they took effect.
        """
        with self._control:
            if self._device is None and not self._fault and not self._closing.is_set():
                self._device = self._guarded_open(self._told[1])
            device = self._alive(configured=False)
            try:
                return self._configure(device, wanted)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    raise RadioRefused(f"{self.name} refused a value of {wanted}", "choose other settings") from error
                self._taken, self._muted = None, True
                self._release()  # the next attempt opens it again
                raise RadioError(f"{self.name} did not take {wanted}: {error}", REMEDY) from error

    def _configure(self, device: Device, wanted: RadioConfig) -> RadioConfig:
        before, asked = self._taken, self._asked
        changed = {
            setting: value
            for setting, value in asdict(wanted).items()
            if before is None or asked is None or value not in (getattr(before, setting), getattr(asked, setting))
        }
        if before and not changed:
            return before
        limits = device.limits()
        for setting, value in changed.items():
            if setting != "rx_gain_db" or "rx_hz" not in changed:  # the limits of the gain depend on the carrier
                self._check(setting, value, limits)
        if before is None:
            device.manual_gain()
        if "rate_hz" in changed:
            self._halt()
        self._taken = None  # until all of it is read back
        taken = asdict(before or wanted)
        for setting in ORDER:
            if setting not in changed:
                continue
            value = changed[setting]
            if setting == "rx_gain_db":
                self._check(setting, value, device.limits())
            if setting == "tx_attenuation_db":
                value = ATTENUATION_STEP_DB * round(value / ATTENUATION_STEP_DB)
            silent = setting == "tx_attenuation_db" and self._muted
            taken[setting] = value if silent else device.set(setting, value)
        self._asked = wanted if asked is None else replace(asked, **changed)
        self._taken = RadioConfig(**taken)
        if self._streams is None:
            self._run(device, 0, 0, seam=False)
        else:
            self._ring.take(0, self._streams.fresh(), STALL_S)
        return self._taken

    def _check(self, setting: str, value: float, limits: dict[str, tuple[float, float]]) -> None:
        low, high = limits[setting]
        if not low <= value <= high:
            raise RadioRefused(
                f"{self.name}: {setting} {value:g} is outside {low:g} to {high:g}, the limits of this device",
                f"choose {setting} within the limits",
            )

    def now(self) -> int:
        """Give the RX index of the next sample."""
        return self._ring.now

    def newest(self) -> int:
        """Give the RX index just past the newest sample that has arrived."""
        return self._ring.newest

    def temperature_c(self) -> float:
        """Read the temperature of the transceiver."""
        with self._control:
            device = self._alive(configured=False)
            try:
                return device.temperature_c()
            except OSError as error:
                raise RadioError(f"{self.name} tells no temperature: {error}", REMEDY) from error

    def earliest(self) -> int:
        """Give the first free TX index that can still be met when ``transmit`` is called within one block's time."""
        return self._queue.earliest(self._block)

    def transmit(self, samples: Samples, start: int | None = None) -> TxReport:
        """Queue a finite burst from TX index ``start``; clips to full scale and counts it.

        The first one after ``mute`` brings the transmitter up first, which takes some milliseconds and draws a new
        LO phase.
        """
        pairs, clipped = to_pairs(checked(samples, self.name), DAC_BITS)
        self._alive()
        if self._muted:
            self._queue.check(start)
            self._unmute()
        begin = self._queue.add(pairs, start)
        events: tuple[StreamEvent, ...] = ()
        if (streams := self._streams) is not None:
            while streams.events:
                events += (streams.events.popleft(),)
        self._alive()
        return TxReport(begin, len(pairs), clipped, events)

    def receive(self, count: int, start: int | None = None) -> Capture:
        """Take ``count`` samples from RX index ``start``, waiting for those that have not arrived."""
        self._alive()
        assert self._taken is not None
        samples, begin, clipped, events = self._ring.take(count, start, 4 * STALL_S)
        return Capture(samples, begin, self._taken.rate_hz, clipped, events)

    def mute(self) -> None:
        """Drop pending bursts, power the transmit LO down and attenuate to the last, read back."""
        with self._control:
            self._queue.clear()
            self._muted = True
            if self._taken:  # blocks handed over are still played, unheard: none may be left when it comes up again
                self._quiet_s = time.monotonic() + (self._buffers + 2) * self._block / self._taken.rate_hz
            device = self._alive(configured=False)
            try:
                device.mute()
            except OSError as error:
                raise RadioError(f"{self.name} could not be muted: {error}", "switch the radio off") from error

    def _unmute(self) -> None:
        with self._control:
            device = self._alive()
            assert self._taken is not None
            time.sleep(max(0.0, self._quiet_s - time.monotonic()))
            try:
                device.unmute(self._taken.tx_attenuation_db)
            except OSError as error:
                raise RadioError(f"{self.name} could not be un-muted: {error}", REMEDY) from error
            self._muted = False

    def close(self) -> None:
        """Mute and release the device. Safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        with self._control:
            try:
                if self._device is not None:
                    self._device.mute()
            except OSError as error:
                raise RadioError(f"{self.name} could not be muted: {error}", "switch the radio off") from error
            finally:
                self._ring.fail(RadioError(f"{self.name} is closed", "open it again"))
                self._release()

    def _run(self, device: Device, index: int, head: int, seam: bool) -> None:
        """Open the buffers and start both threads."""
        assert self._taken is not None
        self._ring.restart(index, seam)
        self._queue.restart(head)
        rx, tx = device.blocks(self._block, self._buffers)
        self._streams = Streams(rx, tx, self._ring, self._queue, self._taken.rate_hz, self._block)
        if self._watch.ident is None:
            self._watch.start()

    def _halt(self) -> None:
        """Stop the threads and let go of the buffers, which must be gone before their context is.

        Raises:
            RadioError: a thread hangs in the device; nothing may be released under it.
        """
        if self._streams is not None and not self._streams.stop(HANG_S):
            raise RadioError(f"{self.name} hangs in its driver", "switch the radio off and on")
        self._streams = None

    def _release(self) -> None:
        self._halt()
        self._device = None

    def _keep(self) -> None:
        """Watch the streams; when they stand still, start over until the radio is back."""
        while not self._closing.wait(WATCH_S):
            streams, taken = self._streams, self._taken
            if streams is None or taken is None:
                continue
            why = streams.trouble(max(STALL_S, 4 * self._block / taken.rate_hz))
            if not why:
                continue
            with self._control:
                if self._streams is streams and not self._closing.is_set():  # not halted on purpose meanwhile
                    self._lose(why)
                    index, head, at_s = self._ring.newest, self._queue.head, streams.fed_s
                    while not self._closing.is_set() and not self._regain(taken, index, head, at_s):
                        self._control.release()
                        time.sleep(RETRY_S)
                        self._control.acquire()

    def _lose(self, why: str) -> None:
        self._fault = f"{self.name}: the stream stopped at RX index {self._ring.newest}: {why}"
        self._ring.fail(RadioError(self._fault, REMEDY))
        self._queue.clear()
        self._muted = True

    def _regain(self, taken: RadioConfig, index: int, head: int, at_s: float) -> bool:
        """Try once to open the device again and to go on where the clock says; it comes back muted."""
        try:
            self._release()
            self._device = device = self._reopen(self._told[1])
            device.manual_gain()
            for setting in ORDER[:-1]:  # the attenuation comes when it is un-muted
                device.set(setting, getattr(taken, setting))
            gone = round((time.monotonic() - at_s) * taken.rate_hz)
            self._run(device, index + gone, head + gone, seam=True)
        except (RadioError, OSError):
            return False
        if self._closing.wait(STALL_S) or self._ring.newest == index + gone:  # it answers, but nothing flows yet
            return False
        self._fault = ""
        return True


@atexit.register
def _close_all() -> None:
    """Close what was left open: the interpreter would take the context apart before the buffers, and crash."""
    for radio in list(_OPEN):
        try:
            radio.close()
        except RadioError:
            continue
