"""The settings of an AD9363 and of the logic around it, as attributes with the checks of the Linux driver.

Knows a paced radio by what it needs of it (``Front``), no socket and no sample. Names, limits, formats and error
numbers are those of the drivers ``ad9361`` and ``cf_axi_*`` in the Linux kernel of the Pluto's firmware.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any, Protocol

from radio.base import RadioConfig
from radio.iiod import Attribute, Channel, Device

LO_MIN_HZ, LO_MAX_HZ = 325_000_000, 3_800_000_000
RATE_MAX_HZ = 61_440_000
ADC_MIN_HZ, ADC_MAX_HZ = 25_000_000, 640_000_000
ATTENUATION_MAX_MDB = 89_750
RX_BANDWIDTH_MAX_HZ, TX_BANDWIDTH_MAX_HZ = 56_000_000, 40_000_000
GAIN_MODES = "manual fast_attack slow_attack hybrid"
ENSM_MODES = "sleep wait alert fdd pinctrl pinctrl_fdd_indep"
CALIB_MODES = "auto manual manual_tx_quad tx_quad rf_dc_offs rssi_gain_step"
RX_PORTS = "A_BALANCED B_BALANCED C_BALANCED A_N A_P B_N B_P C_N C_P TX_MONITOR1 TX_MONITOR2 TX_MONITOR1_2"


class Front(Protocol):
    """What the settings act on: a radio in real time."""

    config: RadioConfig
    manual_gain: bool
    powered: bool

    def set(self, manual_gain: bool | None = None, **changes: Any) -> RadioConfig:
        """Change settings and read them back; raises ``RadioRefused``."""
        ...

    def power(self, on: bool) -> None:
        """Switch the transmit synthesiser."""
        ...


def invalid(text: str) -> OSError:
    """Make the error for a value that the driver does not take."""
    return OSError(errno.EINVAL, text)


def unsigned(text: str) -> int:
    """Read a decimal number without sign or fraction."""
    if not re.fullmatch(r"\+?\d{1,19}", text):
        raise invalid(text)
    return int(text)


def fixed(text: str) -> int:
    """Read a decimal number in millionths; a unit of dB may follow."""
    found = re.fullmatch(r"([+-]?)(\d{1,15})(?:\.(\d{0,6})\d*)?(?: ?dB)?", text)
    if not found:
        raise invalid(text)
    sign, whole, part = found.groups()
    return (-1 if sign == "-" else 1) * (int(whole) * 1_000_000 + int((part or "").ljust(6, "0")))


def switch(text: str) -> bool:
    """Read a truth value."""
    known = {"1": True, "y": True, "Y": True, "on": True, "0": False, "n": False, "N": False, "off": False}
    if text not in known:
        raise invalid(text)
    return known[text]


def constant(text: str) -> Attribute:
    """Make an attribute that never changes."""
    return Attribute(lambda: text)


def failing(number: int) -> Attribute:
    """Make an attribute whose reading fails, as some do on a real device."""

    def read() -> str:
        raise OSError(number, "not available")

    return Attribute(read)


def kept(start: str, check: Callable[[str], Any] = str) -> Attribute:
    """Make an attribute that keeps what is written, after a check that raises ``OSError``."""
    value = [start]

    def write(text: str) -> None:
        check(text)
        value[0] = text

    return Attribute(lambda: value[0], write)


def flag(start: bool) -> Attribute:
    """Make a switch that is only kept."""
    value = [start]

    def write(text: str) -> None:
        value[0] = switch(text)

    return Attribute(lambda: str(int(value[0])), write)


def choice(options: str, start: str) -> Attribute:
    """Make an attribute with a list of values."""

    def check(text: str) -> None:
        if text not in options.split():
            raise invalid(text)

    return kept(start, check)


class Chip:
    """The settings of one transceiver since it was switched on."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.gain_mode = "slow_attack"
        self.tx_bandwidth = self.rx_bandwidth = 18_000_000
        self.rx_taps = self.tx_taps = 0
        self.rx_decimation = self.tx_interpolation = 0
        self.rx_fir = self.tx_fir = False
        self.rx_lo_down = False
        self.loopback = 0
        self.level_db = 115.0  # below full scale, of what was received last

    def rate(self) -> int:
        """Give the sample rate in Hz."""
        return round(self.front.config.rate_hz)

    def set_rate(self, text: str) -> None:
        """Set the sample rate, within what the clock chain can make of it."""
        rate = fixed(text) // 1_000_000
        self._check_rate(rate)
        self.front.set(rate_hz=float(rate))

    def _lowest(self) -> int:
        factor = max(1, self.rx_decimation) if self.rx_fir else 1
        return ADC_MIN_HZ // (12 * factor)

    def _check_rate(self, rate: int) -> None:
        if not self._lowest() <= rate <= RATE_MAX_HZ:
            raise invalid(str(rate))

    def _set_lo(self, which: str, text: str) -> None:
        hz = unsigned(text)
        if not LO_MIN_HZ <= hz <= LO_MAX_HZ:
            raise invalid(text)
        self.front.set(None, **{which: float(hz)})

    def _power_tx(self, text: str) -> None:
        self.front.power(not switch(text))

    def _power_rx(self, text: str) -> None:
        self.rx_lo_down = switch(text)

    def _set_gain_mode(self, text: str) -> None:
        if text not in GAIN_MODES.split():
            raise invalid(text)
        self.front.set(manual_gain=text == "manual")
        self.gain_mode = text

    def _gain_limits(self) -> tuple[int, int]:
        hz = self.front.config.rx_hz
        return (-1, 73) if hz <= 1.3e9 else (-3, 71) if hz <= 4e9 else (-10, 62)

    def _set_gain(self, text: str) -> None:
        gain = int(fixed(text) / 1_000_000)
        if self.gain_mode != "manual":
            raise OSError(errno.EOPNOTSUPP, "the gain is automatic")
        low, high = self._gain_limits()
        if not low <= gain <= high:
            raise invalid(text)
        self.front.set(rx_gain_db=float(gain))

    def _set_attenuation(self, text: str) -> None:
        attenuation_mdb = -fixed(text) // 1000
        if not 0 <= attenuation_mdb <= ATTENUATION_MAX_MDB:
            raise invalid(text)
        self.front.set(tx_attenuation_db=attenuation_mdb // 250 * 0.25)

    def _attenuation(self) -> str:
        db = self.front.config.tx_attenuation_db
        return f"{-db if db else 0.0:.6f} dB"

    def _set_rx_bandwidth(self, text: str) -> None:
        hz = fixed(text) // 1_000_000
        if not 0 <= hz <= RX_BANDWIDTH_MAX_HZ:
            raise invalid(text)
        self.front.set(bandwidth_hz=float(max(hz, 200_000)))
        self.rx_bandwidth = hz

    def _set_tx_bandwidth(self, text: str) -> None:
        hz = fixed(text) // 1_000_000
        if not 0 <= hz <= TX_BANDWIDTH_MAX_HZ:
            raise invalid(text)
        self.tx_bandwidth = hz

    def _set_fir(self, text: str) -> None:
        """Load filter taps; the factors count from the moment the filter is switched on."""
        taps = 0
        for line in text.splitlines():
            if found := re.match(r"RX 3 GAIN (-?\d+) DEC (\d+)", line):
                self.rx_decimation = int(found[2])
            elif found := re.match(r"TX 3 GAIN (-?\d+) INT (\d+)", line):
                self.tx_interpolation = int(found[2])
            elif re.match(r"-?\d+,-?\d+", line):
                taps += 1
        if not taps:
            raise invalid("no taps")
        self.rx_taps = self.tx_taps = taps

    def _fir(self) -> str:
        return f"FIR Rx: {self.rx_taps},{self.rx_decimation} Tx: {self.tx_taps},{self.tx_interpolation}"

    def _enable(self, rx: bool | None, tx: bool | None) -> None:
        before = self.rx_fir, self.tx_fir
        self.rx_fir = before[0] if rx is None else rx
        self.tx_fir = before[1] if tx is None else tx
        try:
            if (self.rx_fir and not self.rx_decimation) or (self.tx_fir and not self.tx_interpolation):
                raise invalid("no filter was loaded")
            self._check_rate(self.rate())
        except OSError:
            self.rx_fir, self.tx_fir = before
            raise

    def _path_rates(self) -> tuple[str, str]:
        """Give the clocks of both chains from the PLL down to the sample rate."""
        rate = self.rate()
        rf = rate * (self.rx_decimation if self.rx_fir else 1)
        adc = next((rf * n for n in (8, 6, 4, 3, 2, 1) if ADC_MIN_HZ <= rf * n <= ADC_MAX_HZ), rf * 12)
        pll = adc * 64
        while pll > 1_430_000_000:
            pll //= 2
        return (
            f"BBPLL:{pll} ADC:{adc} R2:{adc} R1:{adc} RF:{rf} RXSAMP:{rate}",
            f"BBPLL:{pll} DAC:{adc} T2:{adc} T1:{adc} TF:{rf} TXSAMP:{rate}",
        )

    def device(self) -> Device:
        """Describe the transceiver."""
        return Device(
            "iio:device0",
            "ad9361-phy",
            channels=(
                self._lo("altvoltage1", "TX_LO", "tx_hz"),
                self._rx("voltage0", True),
                self._tx("voltage3"),
                self._lo("altvoltage0", "RX_LO", "rx_hz"),
                self._tx("voltage2"),
                Channel("temp0", False, {"input": constant("36842")}),
                self._tx("voltage0"),
                self._rx("voltage2", False),
                Channel(
                    "out",
                    False,
                    {
                        "voltage_filter_fir_en": Attribute(
                            lambda: str(int(self.rx_fir and self.tx_fir)),
                            lambda text: self._enable(switch(text), switch(text)),
                        )
                    },
                ),
            ),
            attributes={
                "calib_mode": choice(CALIB_MODES, "auto"),
                "calib_mode_available": constant(CALIB_MODES),
                "ensm_mode": choice(ENSM_MODES, "fdd"),
                "ensm_mode_available": constant(ENSM_MODES),
                "filter_fir_config": Attribute(self._fir, self._set_fir),
                "rx_path_rates": Attribute(lambda: self._path_rates()[0]),
                "tx_path_rates": Attribute(lambda: self._path_rates()[1]),
                "trx_rate_governor": choice("nominal highest_osr", "nominal"),
                "trx_rate_governor_available": constant("nominal highest_osr"),
            },
            debug={
                "loopback": Attribute(lambda: str(self.loopback), self._set_loopback),
            },
        )

    def _set_loopback(self, text: str) -> None:
        mode = unsigned(text)
        if mode > 2:
            raise invalid(text)
        self.loopback = mode

    def _lo(self, id: str, name: str, which: str) -> Channel:
        transmit = which == "tx_hz"
        return Channel(
            id,
            True,
            {
                "frequency": Attribute(
                    lambda: str(round(getattr(self.front.config, which))), lambda text: self._set_lo(which, text)
                ),
                "frequency_available": constant(f"[{LO_MIN_HZ} 1 {LO_MAX_HZ}]"),
                "powerdown": Attribute(
                    (lambda: str(int(not self.front.powered))) if transmit else (lambda: str(int(self.rx_lo_down))),
                    self._power_tx if transmit else self._power_rx,
                ),
            },
            name=name,
        )

    def _rate_attributes(self) -> dict[str, Attribute]:
        return {
            "sampling_frequency": Attribute(lambda: str(self.rate()), self.set_rate),
            "sampling_frequency_available": Attribute(lambda: f"[{self._lowest()} 1 {RATE_MAX_HZ}]"),
        }

    def _rx(self, id: str, first: bool) -> Channel:
        shared = {
            "bb_dc_offset_tracking_en": flag(True),
            "filter_fir_en": Attribute(lambda: str(int(self.rx_fir)), lambda text: self._enable(switch(text), None)),
            "gain_control_mode_available": constant(GAIN_MODES),
            "quadrature_tracking_en": flag(True),
            "rf_bandwidth": Attribute(lambda: str(self.rx_bandwidth), self._set_rx_bandwidth),
            "rf_bandwidth_available": constant(f"[200000 1 {RX_BANDWIDTH_MAX_HZ}]"),
            "rf_dc_offset_tracking_en": flag(True),
            "rf_port_select_available": constant(RX_PORTS),
            **self._rate_attributes(),
        }
        own: dict[str, Attribute] = {
            "gain_control_mode": Attribute(lambda: self.gain_mode, self._set_gain_mode),
            "hardwaregain": Attribute(lambda: f"{self.front.config.rx_gain_db:.6f} dB", self._set_gain),
            "hardwaregain_available": Attribute(lambda: "[{} 1 {}]".format(*self._gain_limits())),
            "rf_port_select": choice(RX_PORTS, "A_BALANCED"),
            "rssi": Attribute(lambda: f"{self.level_db:.2f} dB"),
        }
        return Channel(id, False, {**shared, **own} if first else shared, shared=frozenset(shared))

    def _tx(self, id: str) -> Channel:
        shared = {
            "filter_fir_en": Attribute(lambda: str(int(self.tx_fir)), lambda text: self._enable(None, switch(text))),
            "rf_bandwidth": Attribute(lambda: str(self.tx_bandwidth), self._set_tx_bandwidth),
            "rf_bandwidth_available": constant(f"[200000 1 {TX_BANDWIDTH_MAX_HZ}]"),
            "rf_port_select_available": constant("A B"),
            **self._rate_attributes(),
        }
        own: dict[str, Attribute] = {}
        if id == "voltage0":
            own = {
                "hardwaregain": Attribute(self._attenuation, self._set_attenuation),
                "hardwaregain_available": constant("[-89.750000 0.250000 0.000000]"),
                "rf_port_select": choice("A B", "A"),
                "rssi": constant("0.00 dB"),
            }
        return Channel(id, True, {**shared, **own}, shared=frozenset(shared))
