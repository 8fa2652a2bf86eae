"""USRPs through UHD: reception that never stops, bursts at exact ticks, one counter for both; knows no waveform.

``usrp:serial=30F...`` and ``usrp:addr=192.168.10.2,type=x300`` open one: UHD's device arguments, and
``clock_source=external,time_source=external`` where a common 10 MHz and PPS feed it. An index is the device's time in
samples. UHD is imported when a radio is opened, not before.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import math
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from radio.air import Air

from radio.base import Capabilities, Capture, Discovered, RadioConfig, Samples, Tier, TxReport, checked
from radio.errors import ConfigError, RadioError, RadioNotFound, RadioRefused, TooLate
from radio.pairs import to_pairs
from radio.ring import RxRing
from radio.urgency import calm
from radio.usrp_clock import last_pps, lock_reference, set_time, wait
from radio.usrp_stream import FULL_SCALE, REMEDY, STALL_S, Streams

OPENS_MUTED = True
REAL_TIME = POLLS = True  # its streams do not wait for a busy interpreter; UHD's control thread asks without a pause

SAFE_RATE_HZ = 10e6  # what one Python process keeps up with in both directions
FULL_SCALE_DBM = 20.0  # at the highest gain, the most that common daughterboards give: B2xx 10 to 17, UBX and SBX 20
LEAD_S = 0.05  # a burst reaches the device this long before its time: less comes late under load
LAG_S = 0.02  # a sample reaches the caller within this time, from the antenna through block, network and ring
CLAIM_S = 15.0  # a network USRP lets go of a dead owner after some 5 s
HOP_HZ = 250e6
CONTROL_THREAD = "uhd_ctrl_ep"  # of UHD, one per network device: it asks the socket for answers without a pause
APT = "apt-get install -y --no-install-recommends python3-uhd, then link its folder uhd into this environment"
NUMPY = "pip install 'numpy<2' in this environment"

_open: weakref.WeakValueDictionary[str, UsrpRadio] = weakref.WeakValueDictionary()  # UHD lends a device out twice


def library() -> Any:
    """Import UHD, after a look from another process where it could bring this one down.

    Raises:
        RadioNotFound: UHD's binding is missing, or was built for an older NumPy than the one installed.
    """
    if "uhd" not in sys.modules:
        if importlib.util.find_spec("uhd") is None:
            raise RadioNotFound("a USRP needs UHD and its Python binding, which is not visible here", APT)
        # its losses are events here, its banner says nothing
        for name, value in (("UHD_LOG_CONSOLE_LEVEL", "warning"), ("UHD_LOG_FASTPATH_DISABLE", "1")):
            os.environ.setdefault(name, value)
        if int(np.__version__.split(".")[0]) >= 2:  # a binding for NumPy 1 imports, complains, and crashes in recv
            told = subprocess.run([sys.executable, "-c", "import uhd"], capture_output=True, text=True, check=False)
            if told.returncode or "_ARRAY_API" in told.stderr:
                raise RadioNotFound(f"UHD here was built for NumPy 1 and crashes under NumPy {np.__version__}", NUMPY)
    try:
        import uhd
    except (ImportError, OSError) as error:
        raise RadioNotFound(f"a USRP needs UHD and its Python binding: {error}", APT) from error
    return uhd


def warm() -> None:
    """Pay for the imports ahead of time."""
    library()


def address(rest: str) -> tuple[dict[str, str], str, str]:
    """Read what follows ``usrp:``: UHD's device arguments, clock source, time source.

    Raises:
        ConfigError: it is no list of key=value.
    """
    pairs = [part.partition("=") for part in rest.split(",")]
    if not all(key and value for key, _, value in pairs):
        raise ConfigError(f"usrp:{rest} addresses no USRP", "write usrp:serial=30F... or usrp:addr=HOST,type=x300")
    arguments = {key.strip(): value.strip() for key, _, value in pairs}
    clock = arguments.pop("clock_source", "internal")
    return arguments, clock, arguments.pop("time_source", "internal")


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Turn what UHD raises into an error with a remedy."""
    try:
        yield
    except RuntimeError as error:
        raise RadioError(f"{name} does not do what it is asked: {str(error).splitlines()[0]}", REMEDY) from error


def _find(uhd: Any, arguments: dict[str, str]) -> list[dict[str, str]]:
    with _asking("the search for USRPs"):
        return [found.to_dict() for found in uhd.find(uhd.types.DeviceAddr(arguments))]


def _uri(found: dict[str, str]) -> str:
    named = f"addr={found['addr']},type={found.get('type', '')}" if "addr" in found else None
    return f"usrp:{named or 'serial=' + found.get('serial', '')}"


def discover() -> list[Discovered]:
    """List the USRPs on USB and on the local networks; none where UHD is missing or unsafe."""
    try:
        devices = _find(library(), {})
    except RadioError:
        return []
    return [Discovered(_uri(found), found.get("serial", ""), Tier.U0, found) for found in devices]


def _make(uhd: Any, arguments: dict[str, str], patience_s: float = 0.0) -> tuple[Any, dict[str, str]]:
    """Find and claim exactly one device.

    Raises:
        RadioNotFound, RadioRefused: there is none, there are several, or somebody has it.
    """
    gc.collect()  # a device that was refused may live on in a traceback, and would be taken for one in use
    wanted = ",".join(f"{key}={value}" for key, value in arguments.items())
    found = _find(uhd, arguments)
    if len(found) != 1:
        listed = ", ".join(_uri(other) for other in (found or _find(uhd, {}))) or "none"
        count = len(found) or "no"
        raise RadioNotFound(f"{count} USRP answers to {wanted}; found {listed}", "write the serial of one of them")
    serial = found[0].get("serial", wanted)
    deadline = time.monotonic() + patience_s
    while True:
        if serial not in _open and found[0].get("claimed") != "True":
            try:
                usrp = uhd.usrp.MultiUSRP(wanted)
                calm(CONTROL_THREAD)
                return usrp, found[0]
            except RuntimeError as error:
                why = str(error).splitlines()[0]
        else:
            why = "another program has it, or this one twice"
        if time.monotonic() >= deadline:
            raise RadioRefused(f"USRP {serial} cannot be opened: {why}", "close it there, or switch it off and on")
        time.sleep(0.2)
        found = _find(uhd, arguments) or found


def silence(rest: str) -> None:
    """Set the transmit gain of a USRP whose owner has died to its lowest.

    It sends nothing since its last burst ended, but its carrier may leak. A device on a network belongs to its dead
    owner for some seconds: this waits.

    Raises:
        RadioNotFound, RadioRefused, RadioError: it does not answer.
    """
    uhd = library()
    with _asking(f"usrp:{rest}"):
        usrp, _ = _make(uhd, address(rest)[0], CLAIM_S)
        usrp.set_tx_gain(usrp.get_tx_gain_range(0).start(), 0)


class UsrpRadio:
    """One USRP, first channel. Opens on construction, muted.

    Args:
        arguments: UHD's device arguments.
        clock: clock source.
        pulse: time source.

    Raises:
        RadioNotFound, RadioRefused: no such device, in use, without a time of its own, or its reference does not lock.
    """

    witness = None

    def __init__(self, arguments: dict[str, str], clock: str, pulse: str) -> None:
        self._uhd = library()
        self._clock, self._pulse = clock, pulse
        self._usrp, found = _make(self._uhd, arguments)
        self.serial = found.get("serial", "")
        self.name = f"usrp-{self.serial}"
        self._ring = RxRing(full_scale=FULL_SCALE, name=self.name)
        self._config: RadioConfig | None = None
        self._wanted: RadioConfig | None = None
        self._streams: Streams | None = None
        self._end, self._muted = 0, True
        _open[self.serial] = self
        try:
            with _asking(self.name):
                self.mute()  # it may leak from an earlier life, and a reference takes its time
                lock_reference(self._usrp, self.name, self._clock, self._pulse)
                self._max_rate_hz = min(SAFE_RATE_HZ, self._usrp.get_rx_rates(0).stop())
        except (RadioError, KeyboardInterrupt):
            self.close()
            raise

    def last_pps(self) -> tuple[int, float]:
        """Give the device's time at the last PPS edge, whole seconds and fraction.

        Nodes that share a PPS read the same whole second between two edges, with fraction 0: compare before trusting.
        """
        with _asking(self.name):
            return last_pps(self._usrp)

    @property
    def capabilities(self) -> Capabilities:
        """Declare the tier: common time where both clock and PPS come from outside."""
        shared = self._clock != "internal"
        version = getattr(self._uhd, "get_version_string", lambda: "4.3 or older")()
        return Capabilities(
            tier=Tier.U1 if shared and self._pulse != "internal" else Tier.U0,
            serial=self.serial,
            driver=f"usrp (UHD {version})",
            max_rate_hz=self._max_rate_hz,
            turnaround_samples=math.ceil((LEAD_S + LAG_S) * (self._config.rate_hz if self._config else 1e6)),
            block_samples=self._streams.block if self._streams else 1,
            one_timeline=True,
            shared_reference=shared,
            reports_losses=True,
            real_time=True,
            tx_full_scale_dbm=FULL_SCALE_DBM,
        )

    def _check(self, wanted: RadioConfig) -> None:
        usrp = self._usrp
        power = usrp.get_tx_gain_range(0)
        limits = {
            "rate_hz": (usrp.get_rx_rates(0).start(), self._max_rate_hz),
            "rx_hz": (usrp.get_rx_freq_range(0).start(), usrp.get_rx_freq_range(0).stop()),
            "tx_hz": (usrp.get_tx_freq_range(0).start(), usrp.get_tx_freq_range(0).stop()),
            "rx_gain_db": (usrp.get_rx_gain_range(0).start(), usrp.get_rx_gain_range(0).stop()),
            "tx_attenuation_db": (0.0, power.stop() - power.start()),
        }
        for setting, (low, high) in limits.items():
            value = getattr(wanted, setting)
            if not low <= value <= high:
                raise RadioRefused(
                    f"{self.name}: {setting} {value:g} is outside {low:g} to {high:g}", f"set {setting} within these"
                )

    def configure(self, wanted: RadioConfig) -> RadioConfig:
        """Apply settings in UHD's order, gain by hand, and read them back; a new rate restarts time and streams."""
        old, asked = self._config, self._wanted
        self._still_open()
        if old is not None and wanted in (old, asked):
            return old

        def new(setting: str) -> bool:
            return old is None or getattr(wanted, setting) not in (getattr(old, setting), getattr(asked, setting))

        with _asking(self.name):
            self._check(wanted)
            usrp, self._config, self._wanted = self._usrp, None, wanted
            if new("rate_hz"):
                self._stop_streams()
                usrp.set_rx_rate(wanted.rate_hz, 0)
                usrp.set_tx_rate(wanted.rate_hz, 0)
                if usrp.get_rx_rate(0) != usrp.get_tx_rate(0):
                    raise RadioRefused(
                        f"{self.name}: rate {wanted.rate_hz:g} became {usrp.get_rx_rate(0):g} for receive and "
                        f"{usrp.get_tx_rate(0):g} for transmit",
                        "choose a rate that divides the master clock",
                    )
                set_time(self._uhd, self._usrp, self.name, self._pulse)
            if new("rx_hz"):
                self._tune_rx(wanted.rx_hz)
            if new("tx_hz"):
                usrp.set_tx_freq(self._uhd.types.TuneRequest(wanted.tx_hz), 0)
                if "lo_locked" in usrp.get_tx_sensor_names(0):
                    wait(lambda: usrp.get_tx_sensor("lo_locked", 0).to_bool(), STALL_S, f"{self.name}: the transmit LO")
            if new("bandwidth_hz"):
                usrp.set_rx_bandwidth(wanted.bandwidth_hz, 0)
                usrp.set_tx_bandwidth(wanted.bandwidth_hz, 0)
            with suppress(RuntimeError, NotImplementedError):  # a daughterboard without automatic gain
                usrp.set_rx_agc(False, 0)
            usrp.set_rx_gain(wanted.rx_gain_db, 0)
            power = usrp.get_tx_gain_range(0)
            self._config = taken = replace(
                wanted,
                rate_hz=usrp.get_rx_rate(0),
                rx_hz=usrp.get_rx_freq(0),
                tx_hz=usrp.get_tx_freq(0),
                # a filter may be wider than anything sent, and one that cannot be asked reads 0
                bandwidth_hz=min(max(usrp.get_tx_bandwidth(0), wanted.bandwidth_hz), usrp.get_tx_rate(0)),
                rx_gain_db=usrp.get_rx_gain(0),
                tx_attenuation_db=power.stop() - power.clip(power.stop() - wanted.tx_attenuation_db, True),
            )
            if not self._muted:
                self._unmute(taken)
            if self._streams is None:
                self._start_streams(taken)
        return taken

    def _tune_rx(self, hz: float) -> None:
        """Tune now and wait for the LO. Shifts of a burst are the host's: timed DSP tunes get lost (uhd issue 620)."""
        usrp = self._usrp
        usrp.set_rx_freq(self._uhd.types.TuneRequest(hz), 0)
        if "lo_locked" in usrp.get_rx_sensor_names(0):
            wait(lambda: usrp.get_rx_sensor("lo_locked", 0).to_bool(), STALL_S, f"{self.name}: the receive LO")

    def _start_streams(self, config: RadioConfig) -> None:
        self._streams = Streams(self._uhd, self._usrp, self._ring, config.rate_hz, self.name)
        self._end = 0
        if self._usrp.get_mboard_name(0).upper().startswith("B2"):
            # until it was tuned far away and back, a hidden offset takes up to 0.7 of full scale (uhd issue 892)
            far = config.rx_hz + (HOP_HZ if config.rx_hz < 3e9 else -HOP_HZ)
            self._tune_rx(far)
            self._tune_rx(config.rx_hz)
        self._streams.start()

    def _stop_streams(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams.stop()

    def _still_open(self) -> None:
        if self._usrp is None:
            raise RadioError(f"{self.name} is closed", "open it again")

    def _running(self) -> Streams:
        self._still_open()
        if self._streams is None or self._config is None:
            raise RadioError(f"{self.name} has no settings yet", "configure it first")
        if self._streams.error is not None:
            raise self._streams.error
        return self._streams

    def _unmute(self, config: RadioConfig) -> None:
        """Bring the gain back and read it."""
        wanted = self._usrp.get_tx_gain_range(0).stop() - config.tx_attenuation_db
        self._usrp.set_tx_gain(wanted, 0)
        taken = self._usrp.get_tx_gain(0)
        if abs(taken - wanted) > 0.01:
            raise RadioError(f"{self.name}: transmit gain reads {taken:g} dB, wanted {wanted:g} dB", "open it again")
        self._muted = False

    def transmit(self, samples: Samples, start: int | None = None) -> TxReport:
        """Queue a finite burst for TX index ``start``; its report carries what the device said of earlier ones.

        The first one after ``mute`` waits for the end of a burst that was muted, which must not be heard now; its own
        samples are on their way while the gain comes back.

        Raises:
            TooLate: less than the lead is left, or the gain took longer than that.
        """
        pairs, clipped = to_pairs(checked(samples, self.name))
        streams = self._running()
        if self._muted:
            with _asking(self.name):
                streams.play_out()
        first = self.earliest()
        start = first if start is None else start
        if start < first:
            raise self._late(start, first)
        self._end = start + len(pairs)
        events = streams.add(pairs, start)
        if self._muted and self._config is not None:
            try:
                with _asking(self.name):
                    self._unmute(self._config)
                if start < (now := streams.ticks()):
                    raise self._late(start, now)
            except RadioError:
                streams.drop()
                self._end = 0
                raise
        return TxReport(start, len(pairs), clipped, events)

    def _late(self, start: int, first: int) -> TooLate:
        text = f"{self.name}: TX index {start} is {first - start} samples before the earliest, {first}"
        return TooLate(text, "plan further ahead", first - start)

    def earliest(self) -> int:
        """Give the first TX index that is free and a lead away from the device's time."""
        streams = self._running()
        with _asking(self.name):
            return max(streams.ticks() + math.ceil(LEAD_S * streams.rate_hz), self._end)

    def now(self) -> int:
        """Give the RX index of the next sample."""
        return self._ring.now

    def newest(self) -> int:
        """Give the RX index just past the newest sample."""
        return self._ring.newest

    def temperature_c(self) -> float | None:
        """Read the temperature of the transceiver, which not every daughterboard tells."""
        self._still_open()
        with _asking(self.name):
            there = "temp" in self._usrp.get_rx_sensor_names(0)
            return float(self._usrp.get_rx_sensor("temp", 0).to_real()) if there else None

    def receive(self, count: int, start: int | None = None) -> Capture:
        """Take ``count`` samples from RX index ``start``."""
        self._running()
        assert self._config is not None
        samples, begin, clipped, events = self._ring.take(count, start, 2 * STALL_S)
        return Capture(samples, begin, self._config.rate_hz, clipped, events)

    def mute(self) -> None:
        """Stop bursts and set the lowest gain; UHD has no way to power an LO down."""
        if self._usrp is None:
            return
        if self._streams is not None:
            self._streams.drop()
        self._end = 0
        with _asking(self.name):
            lowest = self._usrp.get_tx_gain_range(0).start()
            self._usrp.set_tx_gain(lowest, 0)
            if self._usrp.get_tx_gain(0) > lowest:
                raise RadioError(f"{self.name}: transmit gain reads {self._usrp.get_tx_gain(0):g} dB", "switch it off")
        self._muted = True

    def close(self) -> None:
        """Mute, let go of the streamers, then of the device. Safe to call twice.

        A device that vanished from its network holds UHD, and this process, for 20 s more.
        """
        if self._usrp is None:
            return
        try:
            self.mute()
        finally:
            with suppress(RuntimeError):
                self._stop_streams()
            self._ring.fail(RadioError(f"{self.name} is closed", "open it again"))
            self._usrp = self._config = None
            _open.pop(self.serial, None)


@atexit.register
def _close_all() -> None:
    """Let go in order: UHD's threads abort a process that ends under them."""
    for radio in list(_open.values()):
        with suppress(RadioError):
            radio.close()


def connect(rest: str, ether: Air | None) -> UsrpRadio:
    """Open the USRP of a ``usrp:`` URI, ``rest`` being what follows the colon."""
    return UsrpRadio(*address(rest))
