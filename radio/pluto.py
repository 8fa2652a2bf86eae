"""The PlutoSDR through libiio and pyadi-iio: attributes, buffers, finding it again; knows nothing of what is sent.

``pluto:usb:1.5.5``, ``pluto:ip:192.168.2.1``, ``pluto:ip:127.0.0.1:50901`` and ``pluto:serial=1044...`` open one, with
options behind a question mark: ``?block=8192&buffers=8`` for a slow host, ``?reference=external`` where a common clock
feeds it. The libraries are imported when a radio is opened, not before.
"""

from __future__ import annotations

import ctypes
import errno
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import numpy as np

if TYPE_CHECKING:
    from radio.air import Air

from radio.base import Discovered, Tier
from radio.errors import ConfigError, RadioError, RadioNotFound
from radio.pairs import IQ
from radio.pluto_radio import PlutoRadio

OPENS_MUTED = True
REAL_TIME = True  # its streams do not wait for a busy interpreter
RX_BUFFERS = 32  # a deep queue delays nothing on the receive side, and bridges what holds the host up

PHY, ADC, DAC, TDD = "ad9361-phy", "cf-ad9361-lpc", "cf-ad9361-dds-core-lpc", "iio-axi-tdd-0"
LOWEST_RATE_HZ = 521e3  # with the interpolating filter that pyadi-iio loads
MUTED_DB = -89.75
ATTRIBUTE_TIMEOUT_MS = 3000  # a change of rate runs calibrations
APT = "apt-get install -y --no-install-recommends libiio0"
PIP = "pip install pyadi-iio 'pylibiio>=0.25,<1'"  # 1.x wants a library that distributions do not carry


def libraries() -> tuple[Any, Any]:
    """Import libiio's binding and pyadi-iio.

    Raises:
        RadioNotFound: one of them, or the C library below, is missing or of another generation.
    """
    try:
        import adi
        import iio
    except ImportError as error:
        raise RadioNotFound(f"a Pluto needs pyadi-iio and pylibiio 0.25: {error}", PIP) from error
    except (AttributeError, OSError) as error:  # pylibiio without its C library stumbles over missing symbols
        raise RadioNotFound(f"a Pluto needs the C library libiio 0.x: {error}", APT) from error
    return iio, adi


def warm() -> None:
    """Pay for the imports ahead of time."""
    libraries()


@dataclass(frozen=True)
class Address:
    """What follows ``pluto:``; either ``uri`` or ``serial`` is given."""

    uri: str
    serial: str
    shared_reference: bool
    block: int
    buffers: int


def address(rest: str) -> Address:
    """Read what follows ``pluto:``.

    Raises:
        ConfigError: it is no address, or an option or its value is not known.
    """
    place, _, query = rest.partition("?")
    options = {"reference": "internal", "block": "4096", "buffers": "4", **dict(parse_qsl(query, True))}
    numbers = [options["block"], options["buffers"]]
    if (
        not re.fullmatch(r"usb:[\d.]+|ip:[^\s?]+|serial=\w+", place)
        or len(options) != 3
        or options["reference"] not in ("internal", "external")
        or not all(number.isdecimal() for number in numbers)
        or not 256 <= int(numbers[0]) <= 1 << 20
        or not 2 <= int(numbers[1]) <= 64
    ):
        raise ConfigError(
            f"pluto:{rest} is no address of a Pluto",
            "write pluto:usb:1.5.5, pluto:ip:192.168.2.1 or pluto:serial=1044..., then if needed "
            "?block=256..1048576&buffers=2..64&reference=internal|external",
        )
    serial = place.removeprefix("serial=") if place.startswith("serial=") else ""
    return Address("" if serial else place, serial, options["reference"] == "external", *map(int, numbers))


def _scan_usb(iio: Any) -> dict[str, str]:
    """Ask the USB backend alone for contexts, URI -> description; the module has no public way to do so."""
    scanner, listed = iio._create_scan_context(b"usb", 0), iio._POINTER(iio._ContextInfoPtr)()
    try:
        count = iio._get_context_info_list(scanner, ctypes.byref(listed))
        told = [(iio._context_info_get_uri(each), iio._context_info_get_description(each)) for each in listed[:count]]
        iio._context_info_list_free(listed)
    finally:
        iio._destroy_scan_context(scanner)
    return {uri.decode(): text.decode() for uri, text in told}


def scan() -> dict[str, str]:
    """List the Plutos on USB and on the network, URI -> serial."""
    iio, _ = libraries()
    found: dict[str, str] = {}
    try:
        found = iio.scan_contexts()
    except OSError:  # it fails whole where no Avahi daemon runs, which only the search of the network needs
        with suppress(OSError):
            found = _scan_usb(iio)
    serials = {uri: re.search(r"serial=(\w+)", text) for uri, text in found.items() if "Pluto" in text}
    return {uri: match[1] if match else "" for uri, match in serials.items()}


def _context(iio: Any, where: Address) -> Any:
    """Open the context of an address, by scan where only the serial is known."""
    uri = where.uri
    if not uri:
        found = scan()
        uri = next((uri for uri, serial in found.items() if serial == where.serial), "")
        if not uri:
            raise RadioNotFound(f"no Pluto has serial {where.serial}; found {found or 'none'}", "run: testbed devices")
    try:
        context = iio.Context(uri)
        context.set_timeout(ATTRIBUTE_TIMEOUT_MS)
    except OSError as error:
        remedies = {
            errno.EACCES: "allow this user to open USB devices: install libiio's udev rules",
            errno.EBUSY: "close the program that has it open",
        }
        remedy = remedies.get(error.errno or 0, "check cable and power, then run: testbed devices")
        raise RadioNotFound(f"no Pluto answers at {uri}: {error.strerror or error}", remedy) from error
    for name in (PHY, ADC, DAC):
        if context.find_device(name) is None:
            raise RadioNotFound(f"{uri} is no Pluto: it has no device {name}", "run: testbed devices")
    return context


def _number(text: str) -> float:
    return float(text.split()[0])


def _silence(context: Any) -> None:
    """Power the transmit LO down, attenuate to the last, stop the test tones, and read it back.

    Raises:
        RadioError: the device says otherwise.
    """
    phy, dac = context.find_device(PHY), context.find_device(DAC)
    down, gain = (
        phy.find_channel("altvoltage1", True).attrs["powerdown"],
        phy.find_channel("voltage0", True).attrs["hardwaregain"],
    )
    down.value = "1"
    gain.value = str(MUTED_DB)
    for channel in dac.channels:
        if "raw" in channel.attrs:
            channel.attrs["raw"].value = "0"
    told = (int(down.value), _number(gain.value))
    if told != (1, MUTED_DB):
        raise RadioError(
            f"the transmitter is not silent: LO power-down reads {told[0]}, attenuation {told[1]:g} dB",
            "switch the radio off",
        )


def silence(rest: str) -> None:
    """Mute the Pluto of an address whose owner has died.

    Raises:
        RadioNotFound, RadioError: it does not answer, or is not silent.
    """
    iio, _ = libraries()
    try:
        _silence(_context(iio, address(rest)))
    except OSError as error:
        raise RadioError(f"pluto:{rest} could not be muted: {error}", "switch the radio off") from error


class Block:
    """One direction of DMA: libiio's buffer, and its memory as an array."""

    def __init__(self, iio: Any, device: Any, output: bool, block: int, buffers: int) -> None:
        device.set_kernel_buffers_count(buffers)  # before the buffer exists, on the device that makes it
        for name in ("voltage0", "voltage1"):
            device.find_channel(name, output).enabled = True
        self.buffers = buffers
        self._buffer = iio.Buffer(device, block)
        self._begin = iio._buffer_start  # the public read() copies
        self._type = ctypes.c_int16 * (2 * block)
        self._address = -1
        self._view: IQ = np.zeros((0, 2), np.int16)

    def refill(self) -> None:
        """Wait for the next block received."""
        self._buffer.refill()

    def push(self) -> None:
        """Hand the block over, always whole: partial blocks fail."""
        self._buffer.push()

    def cancel(self) -> None:
        """Wake the thread that waits in this buffer."""
        self._buffer.cancel()

    def samples(self) -> IQ:
        """View the memory, which may move with every block."""
        begin = self._begin(self._buffer._buffer)
        if begin != self._address:
            self._address = begin
            self._view = np.ctypeslib.as_array(self._type.from_address(begin)).reshape(-1, 2)
        return self._view

    def close(self) -> None:
        """Destroy the buffer, which must be gone before its context is: the library crashes otherwise."""
        self._buffer = None


class Device:
    """An open context and what is set through it. Muted from the start."""

    def __init__(self, where: Address) -> None:
        self._iio, adi = libraries()
        self._context = _context(self._iio, where)
        self._radio = adi.Pluto(uri_ctx=self._context)  # handed over: pyadi-iio swallows the cause when it cannot open
        phy = self._context.find_device(PHY)
        self._tx_power = phy.find_channel("altvoltage1", True).attrs["powerdown"]
        self._rx, self._tx = phy.find_channel("voltage0", False), phy.find_channel("voltage0", True)
        self._temperature = phy.find_channel("temp0", False).attrs["input"]
        self._los = [phy.find_channel(name, True) for name in ("altvoltage0", "altvoltage1")]
        told = self._context.attrs
        self.serial = told.get("hw_serial", "")
        self.detail = {"model": told.get("hw_model", ""), "firmware": told.get("fw_version", "")}
        libraries_here = f"libiio {'.'.join(map(str, self._iio.version[:2]))}, pyadi-iio {adi.__version__}"
        # The firmware belongs to what a calibration holds for, as the libraries do.
        self.driver = f"pluto, firmware {self.detail['firmware'] or 'unknown'} ({libraries_here})"
        self.tier = Tier.P1 if self._context.find_device(TDD) is not None else Tier.P0
        self.mute()

    def mute(self) -> None:
        """Silence the transmitter, read back."""
        _silence(self._context)

    def temperature_c(self) -> float:
        """Read the temperature of the transceiver, which the driver gives in thousandths of a degree."""
        return int(self._temperature.value) / 1000

    def unmute(self, attenuation_db: float) -> None:
        """Clear the power-down, which setting the LO does not, and bring the attenuation back; read back.

        Raises:
            RadioError: the device says otherwise.
        """
        self._radio.tx_hardwaregain_chan0 = -attenuation_db
        self._tx_power.value = "0"
        told = (int(self._tx_power.value), -float(self._radio.tx_hardwaregain_chan0))
        if told != (0, attenuation_db):
            raise RadioError(
                f"the transmitter does not come up: LO power-down reads {told[0]}, attenuation {told[1]:g} dB, "
                f"wanted {attenuation_db:g} dB",
                "switch the radio off and on",
            )

    def limits(self) -> dict[str, tuple[float, float]]:
        """Ask what the device can do at its present settings, setting -> (lowest, highest)."""

        def span(channel: Any, name: str) -> tuple[float, float]:
            low, _, high = channel.attrs[f"{name}_available"].value.strip("[] \n").split()
            return float(low), float(high)

        wide, narrow = span(self._rx, "rf_bandwidth"), span(self._tx, "rf_bandwidth")
        attenuation = span(self._tx, "hardwaregain")
        return {
            "rate_hz": (LOWEST_RATE_HZ, span(self._rx, "sampling_frequency")[1]),
            "rx_hz": span(self._los[0], "frequency"),
            "tx_hz": span(self._los[1], "frequency"),
            "bandwidth_hz": (max(wide[0], narrow[0]), min(wide[1], narrow[1])),
            "rx_gain_db": span(self._rx, "hardwaregain"),
            "tx_attenuation_db": (-attenuation[1], -attenuation[0]),
        }

    def manual_gain(self) -> None:
        """Switch the automatic gain off: until then a gain that is set is ignored without a word."""
        self._radio.gain_control_mode_chan0 = "manual"
        if self._radio.gain_control_mode_chan0 != "manual":
            raise RadioError("the automatic gain control stays on", "switch the radio off and on")

    def set(self, setting: str, value: float) -> float:
        """Write one setting, in the type that the binding insists on, and read back what was taken."""
        radio, whole = self._radio, round(value)
        if setting == "rate_hz":
            radio.sample_rate = whole  # loads the filter that rates below 2.083 MS/s need
            return float(radio.sample_rate)
        if setting == "bandwidth_hz":
            radio.rx_rf_bandwidth = radio.tx_rf_bandwidth = whole
            return float(radio.rx_rf_bandwidth)
        if setting == "rx_hz":
            radio.rx_lo = whole
            return float(radio.rx_lo)
        if setting == "tx_hz":
            radio.tx_lo = whole
            return float(radio.tx_lo)
        if setting == "rx_gain_db":
            radio.rx_hardwaregain_chan0 = float(whole)
            return float(radio.rx_hardwaregain_chan0)
        radio.tx_hardwaregain_chan0 = -float(value)
        return -float(radio.tx_hardwaregain_chan0)

    def blocks(self, block: int, buffers: int) -> tuple[Block, Block]:
        """Open both directions; what is returned must be let go of before this device."""
        adc, dac = (self._context.find_device(name) for name in (ADC, DAC))
        return Block(self._iio, adc, False, block, RX_BUFFERS), Block(self._iio, dac, True, block, buffers)


def reopen(where: Address, serial: str) -> Device:
    """Open a Pluto seen before: by its address, or wherever its serial is found, as the USB number may change."""
    if where.uri and serial:
        try:
            device = Device(where)
            if device.serial == serial:
                return device
            del device  # another Pluto took the number
        except RadioNotFound:
            if where.uri.startswith("ip:"):
                raise
        where = replace(where, uri="", serial=serial)
    return Device(where)


def connect(rest: str, ether: Air | None) -> PlutoRadio:
    """Open the Pluto of a ``pluto:`` URI, ``rest`` being what follows the colon; it is muted.

    Raises:
        ConfigError: the address cannot be read.
        RadioNotFound: nothing answers there, or a library is missing.
    """
    where = address(rest)
    return PlutoRadio(lambda serial: reopen(where, serial), where.block, where.buffers, where.shared_reference)


def discover() -> list[Discovered]:
    """List the Plutos in reach, with firmware and model where they can be opened; none without the libraries."""
    try:
        iio, _ = libraries()
    except RadioNotFound:
        return []
    listed = []
    for uri, serial in scan().items():
        detail: dict[str, str] = {}
        tier = Tier.P0
        try:
            context = _context(iio, address(uri))
            detail = {"model": context.attrs.get("hw_model", ""), "firmware": context.attrs.get("fw_version", "")}
            tier = Tier.P1 if context.find_device(TDD) is not None else Tier.P0
        except RadioNotFound as error:  # another program has it open
            detail = {"problem": error.message}
        listed.append(Discovered(f"pluto:{uri}", serial, tier, detail))
    return listed
