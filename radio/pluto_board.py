"""A Pluto as libiio sees it: transceiver, converter cores, monitor and their streams; knows no socket, no thread."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int16

from radio.ad936x import Chip, Front
from radio.iiod import Attribute, Channel, Context, Device
from radio.iiovalue import constant, fixed, flag, invalid, kept, unsigned

IQ = Int16[np.ndarray, "sample 2"]

HALF_BAND_FACTOR = 8  # of the filters in the logic, behind the transceiver
STATUS = 0x80000088  # register of the converter cores that latches overflow (bit 2) and underflow (bit 0)
PRODUCT_ID = 0x37
FIRMWARE, KERNEL = "v0.38", "5.15.0-virtual"
XADC = {
    "voltage5": ("vccoddr", 1856), "voltage0": ("vccint", 1387), "voltage4": ("vccpaux", 2453),
    "voltage7": ("vrefn", 14), "voltage1": ("vccaux", 2455), "voltage2": ("vccbram", 1383),
    "voltage3": ("vccpint", 1387), "voltage6": ("vrefp", 1721),
}  # fmt: skip


@runtime_checkable
class Paced(Front, Protocol):
    """A radio in real time with the DMA queues of a Pluto. Nothing of it waits."""

    @property
    def gone(self) -> bool:
        """Whether its cable is out."""
        ...

    overflowed: bool
    underflowed: bool

    def power_up(self) -> None:
        """Take the state of a radio just switched on."""
        ...

    def rx_open(self, block: int, buffers: int) -> None:
        """Start receiving."""
        ...

    def rx_wait_s(self) -> float:
        """Give the seconds until a block is full."""
        ...

    def rx_take(self) -> IQ:
        """Take a block, full scale 2**11."""
        ...

    def rx_close(self) -> None:
        """Stop receiving."""
        ...

    def tx_open(self, block: int, buffers: int, cyclic: bool = False) -> None:
        """Prepare to send."""
        ...

    def tx_wait_s(self) -> float:
        """Give the seconds until there is room for a block."""
        ...

    def tx_put(self, samples: IQ) -> None:
        """Queue a block, full scale 2**15."""
        ...

    def tx_close(self) -> None:
        """Stop sending."""
        ...

    def tick(self) -> None:
        """Keep a cyclic buffer going."""
        ...


class Echo:
    """What the digital loopback carries from the transmit to the receive side: as much as the DMA can hold."""

    def __init__(self) -> None:
        self._blocks: deque[IQ] = deque()
        self._cyclic = False
        self._at = 0  # in the first block

    def begin(self, buffers: int, cyclic: bool) -> None:
        """Start a transmission."""
        self._blocks, self._cyclic, self._at = deque(maxlen=buffers), cyclic, 0

    def put(self, samples: IQ) -> None:
        """Take what was sent, 16-bit values."""
        self._blocks.append(samples >> 4)

    def take(self, count: int) -> IQ:
        """Give the next ``count`` samples, 12-bit values, zeros where nothing was sent."""
        out, done = np.zeros((count, 2), np.int16), 0
        while done < count and self._blocks:
            part = self._blocks[0][self._at : self._at + count - done]
            out[done : done + len(part)] = part
            done, self._at = done + len(part), self._at + len(part)
            if self._at == len(self._blocks[0]):
                self._at = 0
                if not self._cyclic:
                    self._blocks.popleft()
        return out


class Core:
    """What the converter cores of both directions have in common: the filter in the logic, and registers."""

    def __init__(self, radio: Paced, chip: Chip, echo: Echo) -> None:
        self.radio, self.chip, self.echo = radio, chip, echo
        self.factor = 1
        self.channels: Sequence[int] = (0, 1)
        self._register = 0

    def rate(self) -> str:
        """Give the rate on this side of the filter."""
        return str(self.chip.rate_hz() // self.factor)

    def set_rate(self, text: str) -> None:
        """Switch the filter by choosing one of the two rates."""
        rates = {self.chip.rate_hz(): 1, self.chip.rate_hz() // HALF_BAND_FACTOR: HALF_BAND_FACTOR}
        factor = rates.get(fixed(text) // 1_000_000)
        if factor is None:
            raise invalid(text)
        self.factor = factor

    def rate_attributes(self) -> dict[str, Attribute]:
        """List the attributes that set the filter."""
        return {
            "sampling_frequency": Attribute(self.rate, self.set_rate),
            "sampling_frequency_available": Attribute(
                lambda: f"{self.chip.rate_hz()} {self.chip.rate_hz() // HALF_BAND_FACTOR} "
            ),
        }

    def register(self) -> str:
        """Read the register that was chosen last."""
        return hex(self.status()) if self._register == STATUS else "0x0"

    def set_register(self, text: str) -> None:
        """Choose a register, or write one: ones clear the latched bits."""
        numbers = [int(word, 0) for word in re.findall(r"0[xX][0-9a-fA-F]+|\d+", text)]
        if not 1 <= len(numbers) <= 2:
            raise invalid(text)
        self._register = numbers[0]
        if len(numbers) == 2 and self._register == STATUS:
            self.clear(numbers[1])

    def status(self) -> int:
        """Give the latched bits."""
        raise TypeError("a core has a direction")

    def clear(self, bits: int) -> None:
        """Clear latched bits."""
        raise TypeError("a core has a direction")


class RxCore(Core):
    """The receive side: blocks of 12-bit values, right aligned."""

    def open(self, block: int, channels: Sequence[int], buffers: int, cyclic: bool) -> None:
        """Start; a receiver has no use for the word cyclic."""
        self.channels = channels
        self.radio.rx_open(block * self.factor, buffers)

    def wait_s(self) -> float:
        """Give the seconds until a block is full."""
        return self.radio.rx_wait_s()

    def take(self) -> memoryview:
        """Take a block of the channels that are streamed."""
        block = self.radio.rx_take()
        if self.chip.loopback == 1:
            block = self.echo.take(len(block))
        elif self.chip.deaf:
            block = np.zeros_like(block)
        if self.factor > 1:
            block = (block.reshape(-1, self.factor, 2).sum(axis=1) // self.factor).astype(np.int16)
        self.chip.heard = block
        if len(self.channels) == 1:
            block = block[:, self.channels[0]]
        return np.ascontiguousarray(block, "<i2").data.cast("B")

    def put(self, block: bytes) -> None:
        """Refuse: nothing is written to a receiver."""
        raise invalid("a receiver")

    def close(self) -> None:
        """Stop."""
        self.radio.rx_close()

    def status(self) -> int:
        """Give the overflow bit."""
        return 4 * self.radio.overflowed

    def clear(self, bits: int) -> None:
        """Clear the overflow bit."""
        if bits & 4:
            self.radio.overflowed = False


class TxCore(Core):
    """The transmit side: blocks of 16-bit values."""

    def open(self, block: int, channels: Sequence[int], buffers: int, cyclic: bool) -> None:
        """Start."""
        self.channels = channels
        self.echo.begin(buffers, cyclic)
        self.radio.tx_open(block * self.factor, buffers, cyclic)

    def wait_s(self) -> float:
        """Give the seconds until there is room for a block."""
        return self.radio.tx_wait_s()

    def put(self, block: bytes) -> None:
        """Queue a block; a channel that is not streamed sends zeros."""
        samples = np.frombuffer(block, "<i2", len(block) // 2).astype(np.int16, copy=False)
        if len(self.channels) == 1:
            pair = np.zeros((samples.size, 2), np.int16)
            pair[:, self.channels[0]] = samples
        else:
            pair = samples[: samples.size // 2 * 2].reshape(-1, 2)
        if self.factor > 1:
            pair = pair.repeat(self.factor, axis=0)
        if self.chip.loopback == 1:
            self.echo.put(pair)
        self.radio.tx_put(pair)

    def take(self) -> memoryview:
        """Refuse: nothing is read from a transmitter."""
        raise invalid("a transmitter")

    def close(self) -> None:
        """Stop; what was not played is lost."""
        self.echo.begin(1, False)
        self.radio.tx_close()

    def status(self) -> int:
        """Give the underflow bit."""
        return int(self.radio.underflowed)

    def clear(self, bits: int) -> None:
        """Clear the underflow bit."""
        if bits & 1:
            self.radio.underflowed = False


def _correction(*names: str) -> dict[str, Attribute]:
    return {name: kept("1.000000" if name == "calibscale" else "0.000000", fixed) for name in names}


def _adc(core: RxCore) -> Device:
    rate = core.rate_attributes()
    channels = tuple(
        Channel(
            f"voltage{index}",
            False,
            {"calibbias": kept("0", fixed), **_correction("calibphase", "calibscale"), **rate},
            scan=(index, "le:S12/16>>0"),
            shared=frozenset(rate),
        )
        for index in (0, 1)
    )
    return Device("iio:device3", "cf-ad9361-lpc", channels, buffer=_buffer(), debug=_registers(core), stream=core)


def _dac(core: TxCore) -> Device:
    rate = core.rate_attributes()
    channels = [
        Channel(
            f"voltage{index}",
            True,
            {**_correction("calibphase", "calibscale"), **rate},
            scan=(index, "le:S16/16>>0"),
            shared=frozenset(rate),
        )
        for index in (0, 1)
    ]
    for index, name in ((3, "TX1_Q_F2"), (1, "TX1_I_F2"), (0, "TX1_I_F1"), (2, "TX1_Q_F1")):
        tone = {
            "frequency": kept("9279985", unsigned),
            "phase": kept("90000" if "_I_" in name else "0", unsigned),
            "raw": flag(),
            "sampling_frequency": rate["sampling_frequency"],
            "scale": kept("0.000000", fixed),
        }
        channels.append(Channel(f"altvoltage{index}", True, tone, name, shared=frozenset(rate)))
    return Device(
        "iio:device2", "cf-ad9361-dds-core-lpc", tuple(channels), buffer=_buffer(), debug=_registers(core), stream=core
    )


def _buffer() -> dict[str, Attribute]:
    return {
        "data_available": constant("0"),
        "length_align_bytes": constant("8"),
        "watermark": kept("2048", unsigned),
    }


def _registers(core: Core) -> dict[str, Attribute]:
    return {"direct_reg_access": Attribute(core.register, core.set_register)}


def _chip_registers() -> dict[str, Attribute]:
    """Make the register door of the transceiver, behind which only its name can be read."""
    value = [0]

    def read() -> str:
        return "0xA" if value[0] == PRODUCT_ID else "0x0"

    def write(text: str) -> None:
        value[0] = int(text.split()[0], 0) if re.fullmatch(r"(0[xX][0-9a-fA-F]+|\d+)( .*)?", text) else 0

    return {"direct_reg_access": Attribute(read, write)}


def _monitor() -> Device:
    channels = [
        Channel(id, False, {"raw": constant(str(raw)), "scale": constant("0.732421875")}, name)
        for id, (name, raw) in XADC.items()
    ]
    channels.append(Channel("voltage8", False, {"raw": constant("3296"), "scale": constant("0.244140625")}))
    temperature = {"offset": constant("-2219"), "raw": constant("2700"), "scale": constant("123.040771484")}
    channels.append(Channel("temp0", False, temperature))
    return Device("iio:device1", "xadc", tuple(channels), {"sampling_frequency": constant("961538")})


def describe(radio: Paced, serial: str, address: str) -> Context:
    """Describe a Pluto that has just been switched on.

    Args:
        radio: the radio behind it.
        serial: hardware serial.
        address: IP address on which it is served.
    """
    chip, echo = Chip(radio), Echo()
    return Context(
        f"{address} Linux (none) {KERNEL} armv7l",
        {
            "hw_model": "Analog Devices PlutoSDR Rev.C (Z7010-AD9363A)",
            "hw_model_variant": "0",
            "hw_serial": serial,
            "fw_version": FIRMWARE,
            "ad9361-phy,xo_correction": "40000000",
            "ad9361-phy,model": "ad9363a",
            "local,kernel": KERNEL,
        },
        (
            chip.device(_chip_registers()),
            _monitor(),
            _dac(TxCore(radio, chip, echo)),
            _adc(RxCore(radio, chip, echo)),
        ),
    )
