"""The settings of an AD9363 as attributes, with the checks of its Linux driver; knows no socket and no sample.

Limits, formats, error numbers and the search for a clock chain are those of ``drivers/iio/adc/ad9361.c`` in the kernel
of the Pluto's firmware; what the driver takes without a word is taken here without a word as well.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int16

from radio.base import RadioConfig
from radio.iiod import Attribute, Channel, Device
from radio.iiovalue import constant, fixed, flag, invalid, kept, signed, switch, unsigned

LO_MIN_HZ, LO_MAX_HZ = 325_000_000, 3_800_000_000
RATE_MAX_HZ = 61_440_000
ADC_MIN_HZ, ADC_MAX_HZ, DAC_MAX_HZ = 25_000_000, 640_000_000, 320_000_000
RF_MAX_HZ, TF_MAX_HZ, PLL_MAX_HZ = 245_760_000, 160_000_000, 1_430_000_000
BANDWIDTH_MAX_HZ = 20_000_000
ATTENUATION_MAX_MDB = 89_750
TAPS_MAX, TAPS_STEP = 128, 16
#: Dividers between the converter and the filter: the whole, and each of three stages.
DIVIDERS = ((12, 3, 2, 2), (8, 2, 2, 2), (6, 3, 1, 2), (4, 2, 2, 1), (3, 3, 1, 1), (2, 2, 1, 1), (1, 1, 1, 1))
GAIN_MODES = "manual fast_attack slow_attack hybrid"
ENSM_MODES = "sleep wait alert fdd pinctrl pinctrl_fdd_indep"
CALIB_MODES = "auto manual manual_tx_quad tx_quad rf_dc_offs rssi_gain_step"
RX_PORTS = "A_BALANCED B_BALANCED C_BALANCED A_N A_P B_N B_P C_N C_P TX_MONITOR1 TX_MONITOR2 TX_MONITOR1_2"
GOVERNORS = "nominal highest_osr"
QUIET_DB = 115.0  # RSSI of nothing at all

Write = Callable[[str], None]


@runtime_checkable
class Front(Protocol):
    """What the settings act on: a radio in real time."""

    config: RadioConfig

    def set(self, manual_gain: bool | None = None, **changes: Any) -> RadioConfig:
        """Change settings and read them back; raises ``RadioRefused``."""
        ...

    def power(self, on: bool) -> None:
        """Switch the transmit synthesiser."""
        ...


def clock_chain(
    rate_hz: int, decimation: int, interpolation: int, nominal: bool
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Find the clocks of the receive and the transmit path for a sample rate, each from the PLL to the samples.

    Args:
        rate_hz: sample rate of both paths.
        decimation, interpolation: factors of the programmable filters, 1 when they are bypassed.
        nominal: prefer a total divider of 8 to the largest possible.

    Returns:
        PLL, converter, three half-band stages, samples, in Hz, for either path; or None when no dividers fit.
    """
    rf_hz, tf_hz = rate_hz * decimation, rate_hz * interpolation
    if not 0 < rate_hz <= RATE_MAX_HZ or rf_hz > RF_MAX_HZ or tf_hz > TF_MAX_HZ:
        return None
    first = 1 if nominal and rf_hz * 8 >= ADC_MIN_HZ else 0
    for divider in DIVIDERS[first:]:
        adc_hz = rf_hz * divider[0]
        if not ADC_MIN_HZ <= adc_hz <= ADC_MAX_HZ:
            continue
        dac_hz = adc_hz if adc_hz <= DAC_MAX_HZ else adc_hz // 2
        interpolators = [row for row in DIVIDERS if row[0] * tf_hz == dac_hz]
        if not interpolators:
            continue
        pll_hz = adc_hz * 64
        while pll_hz > PLL_MAX_HZ:
            pll_hz //= 2
        paths = []
        for converter_hz, row in ((adc_hz, divider), (dac_hz, interpolators[0])):
            stage, clocks = converter_hz, [pll_hz, converter_hz]
            for part in row[1:]:
                stage //= part
                clocks.append(stage)
            paths.append((*clocks, rate_hz))
        return paths[0], paths[1]
    return None


class Chip:
    """The settings of one transceiver since it was switched on."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.loopback = 0
        self.heard: Int16[np.ndarray, "sample 2"] | None = None  # the last block received, for the RSSI
        self._gain_mode = "slow_attack"
        self._ensm, self._calibration, self._governor = "fdd", "auto", "nominal"
        self._rx_lo_down = self._tx_lo_down = False
        self._rx_bandwidth_hz = self._tx_bandwidth_hz = 18_000_000
        self._taps, self._decimation, self._interpolation = 0, 0, 0
        self._filter_rate_hz = 0  # some filters bring their own rate
        self._rx_fir = self._tx_fir = False
        self._clocks = self._chain(self.rate_hz())

    @property
    def deaf(self) -> bool:
        """Whether the receive path is off."""
        return self._rx_lo_down or self._ensm != "fdd"

    def rate_hz(self) -> int:
        """Give the sample rate."""
        return round(self.front.config.rate_hz)

    def _chain(self, rate_hz: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        chain = clock_chain(
            rate_hz,
            self._decimation if self._rx_fir else 1,
            self._interpolation if self._tx_fir else 1,
            self._governor == "nominal",
        )
        if chain is None:
            raise invalid(str(rate_hz))
        return chain

    def _set_rate(self, text: str) -> None:
        rate_hz = int(fixed(text) / 1e6)
        clocks = self._chain(rate_hz)
        self.front.set(rate_hz=float(rate_hz))
        self._clocks = clocks

    def _set_rx_lo(self, text: str) -> None:
        self._check_lo(text)
        low, high = _gain_limits(float(text))  # another band has another gain table
        self.front.set(rx_hz=float(text), rx_gain_db=min(max(self.front.config.rx_gain_db, low), high))

    def _set_tx_lo(self, text: str) -> None:
        self._check_lo(text)
        self.front.set(tx_hz=float(text))  # a powered-down LO stays down

    @staticmethod
    def _check_lo(text: str) -> None:
        if not LO_MIN_HZ <= unsigned(text) <= LO_MAX_HZ:
            raise invalid(text)

    def _power(self) -> None:
        self.front.power(not self._tx_lo_down and self._ensm == "fdd")

    def _power_tx_lo(self, text: str) -> None:
        self._tx_lo_down = switch(text)
        self._power()

    def _power_rx_lo(self, text: str) -> None:
        self._rx_lo_down = switch(text)

    def _set_ensm(self, text: str) -> None:
        if text in ("tx", "rx"):
            raise invalid(text)  # states of time-division mode, in which a Pluto is not set up
        states = {"sleep": "sleep", "wait": "wait", "pinctrl": "wait", "alert": "alert", "fdd": "fdd"}
        self._ensm = states.get("fdd" if text == "pinctrl_fdd_indep" else text, self._ensm)
        self._power()

    def _set_calibration(self, text: str) -> None:
        if text in ("auto", "manual", "manual_tx_quad"):  # other words start a calibration, or do nothing
            self._calibration = text

    def _set_governor(self, text: str) -> None:
        if text not in GOVERNORS.split():
            raise invalid(text)
        self._governor = text

    def _set_gain_mode(self, text: str) -> None:
        if text not in GAIN_MODES.split():
            raise invalid(text)
        self.front.set(manual_gain=text == "manual")
        self._gain_mode = text

    def _set_gain(self, text: str) -> None:
        gain_db = int(fixed(text) / 1e6)
        if self._gain_mode != "manual":
            raise OSError(errno.EOPNOTSUPP, "the gain is automatic")
        low, high = _gain_limits(self.front.config.rx_hz)
        if gain_db > high:
            raise invalid(text)
        self.front.set(rx_gain_db=float(max(gain_db, low)))

    def _set_attenuation(self, text: str) -> None:
        attenuation_mdb = -fixed(text) / 1000
        if not 0 <= attenuation_mdb <= ATTENUATION_MAX_MDB:
            raise invalid(text)
        self.front.set(tx_attenuation_db=attenuation_mdb // 250 * 0.25)

    def _set_rx_bandwidth(self, text: str) -> None:
        self._rx_bandwidth_hz = _bandwidth(text)
        self.front.set(bandwidth_hz=float(max(self._rx_bandwidth_hz, 200_000)))

    def _set_tx_bandwidth(self, text: str) -> None:
        self._tx_bandwidth_hz = _bandwidth(text)

    def _load_fir(self, text: str) -> None:
        """Load a filter as the design tools write it: a line for each path, then taps."""
        factors: dict[str, int] = {}
        taps = rate_hz = 0
        for line in text.splitlines():
            if found := re.match(r"\s*([RT]X)\s+[123]\s+GAIN\s+-?\d+\s+(DEC|INT)\s+(\d+)", line):
                factors[found[1]] = int(found[3])
            elif found := re.match(r"\s*RTX((?:\s+\d+){6})", line):
                rate_hz = int(found[1].split()[-1])
            elif re.match(r"\s*-?\d+", line):
                taps += 1
        if factors.keys() != {"RX", "TX"} or not 0 < taps <= TAPS_MAX or taps % TAPS_STEP:
            raise invalid("filter")
        self._taps, self._decimation, self._interpolation = taps, factors["RX"], factors["TX"]
        self._filter_rate_hz = rate_hz

    def _enable_fir(self, rx: bool | None, tx: bool | None) -> None:
        """Switch the programmable filters; when that fails they are off, whatever was asked."""
        before = self._rx_fir, self._tx_fir
        self._rx_fir = before[0] if rx is None else rx
        self._tx_fir = before[1] if tx is None else tx
        if (self._rx_fir, self._tx_fir) == before:
            return
        try:
            rate_hz = self._filter_rate_hz if self._rx_fir and self._tx_fir else 0
            self._fit_fir(rate_hz or self.rate_hz())
        except OSError:
            self._rx_fir = self._rx_fir and rx is None
            self._tx_fir = self._tx_fir and tx is None
            raise

    def _fit_fir(self, rate_hz: int) -> None:
        if self._rx_fir and self._decimation not in (1, 2, 4):
            raise invalid("decimation")
        if self._tx_fir and (self._interpolation not in (1, 2, 4) or (self._interpolation == 1 and self._taps > 64)):
            raise invalid("interpolation")
        rx, tx = clocks = self._chain(rate_hz)
        if self._tx_fir and self._taps > tx[1] // tx[-1] * 16:
            raise invalid("taps")
        if self._rx_fir and self._taps > rx[1] // (1 if rx[1] == rx[2] else 2) // rx[-1] * 16:
            raise invalid("taps")
        if rate_hz != self.rate_hz():
            self.front.set(rate_hz=float(rate_hz))
        self._clocks = clocks

    def _rates(self, path: int, names: str) -> str:
        return " ".join(f"{name}:{hz}" for name, hz in zip(names.split(), self._clocks[path], strict=True))

    def _rate_limits(self, factor: int, stage_max_hz: int) -> str:
        high = stage_max_hz // 4 if factor == 4 else RATE_MAX_HZ
        return f"[{ADC_MIN_HZ // (12 * factor)} 1 {high}]"

    def _rssi(self) -> str:
        """Give how far the last block lies below full scale, in quarters of a dB."""
        if self.heard is None:
            return f"{QUIET_DB:.2f} dB"
        power = float(np.mean(np.square(self.heard, dtype=np.float32))) / 2**21 + 1e-12
        return f"{min(QUIET_DB, max(0.0, round(-40.0 * math.log10(power)) / 4)):.2f} dB"

    def _set_loopback(self, text: str) -> None:
        if unsigned(text) > 2:
            raise invalid(text)
        self.loopback = unsigned(text)

    def _awake(self, write: Write | None) -> Write | None:
        """Let a sleeping chip refuse to be set."""
        if write is None:
            return None

        def checked(text: str) -> None:
            if self._ensm == "sleep":
                raise invalid("asleep")
            write(text)

        return checked

    def _channel(
        self,
        id: str,
        output: bool,
        shared: dict[str, Attribute],
        own: dict[str, Attribute] | None = None,
        name: str = "",
    ) -> Channel:
        attributes = {
            key: Attribute(attribute.read, self._awake(attribute.write))
            for key, attribute in {**shared, **(own or {})}.items()
        }
        return Channel(id, output, attributes, name, shared=frozenset(shared))

    def device(self, debug: dict[str, Attribute]) -> Device:
        """Describe the transceiver; ``debug`` adds attributes of the register door."""
        rx_lo = {
            "frequency": Attribute(lambda: _even(self.front.config.rx_hz), self._set_rx_lo),
            "powerdown": Attribute(lambda: str(int(self._rx_lo_down)), self._power_rx_lo),
        }
        tx_lo = {
            "frequency": Attribute(lambda: _even(self.front.config.tx_hz), self._set_tx_lo),
            "powerdown": Attribute(lambda: str(int(self._tx_lo_down)), self._power_tx_lo),
        }
        for lo in (rx_lo, tx_lo):
            lo["frequency_available"] = constant(f"[{LO_MIN_HZ} 1 {LO_MAX_HZ}]")
            lo["external"] = Attribute(lambda: "0", _no_device)
        rx = {
            "bb_dc_offset_tracking_en": flag(),
            "filter_fir_en": Attribute(
                lambda: str(int(self._rx_fir)), lambda text: self._enable_fir(switch(text), None)
            ),
            "gain_control_mode_available": constant(GAIN_MODES),
            "quadrature_tracking_en": flag(),
            "rf_bandwidth": Attribute(lambda: str(self._rx_bandwidth_hz), self._set_rx_bandwidth),
            "rf_bandwidth_available": constant("[200000 1 56000000]"),
            "rf_dc_offset_tracking_en": flag(),
            "rf_port_select_available": constant(RX_PORTS),
            "sampling_frequency": Attribute(lambda: str(self.rate_hz()), self._set_rate),
            "sampling_frequency_available": Attribute(
                lambda: self._rate_limits(self._decimation if self._rx_fir else 1, RF_MAX_HZ)
            ),
        }
        rx_own = {
            "gain_control_mode": Attribute(lambda: self._gain_mode, self._set_gain_mode),
            "hardwaregain": Attribute(lambda: f"{self.front.config.rx_gain_db:.6f} dB", self._set_gain),
            "hardwaregain_available": Attribute(lambda: "[{} 1 {}]".format(*_gain_limits(self.front.config.rx_hz))),
            "rf_port_select": kept("A_BALANCED", _only("A_BALANCED")),
            "rssi": Attribute(self._rssi),
        }
        tx = {
            "filter_fir_en": Attribute(
                lambda: str(int(self._tx_fir)), lambda text: self._enable_fir(None, switch(text))
            ),
            "rf_bandwidth": Attribute(lambda: str(self._tx_bandwidth_hz), self._set_tx_bandwidth),
            "rf_bandwidth_available": constant("[200000 1 40000000]"),
            "rf_port_select_available": constant("A B"),
            "sampling_frequency": Attribute(lambda: str(self.rate_hz()), self._set_rate),
            "sampling_frequency_available": Attribute(
                lambda: self._rate_limits(self._interpolation if self._tx_fir else 1, TF_MAX_HZ)
            ),
        }
        tx_own = {
            "hardwaregain": Attribute(
                lambda: f"{0.0 - self.front.config.tx_attenuation_db:.6f} dB", self._set_attenuation
            ),
            "hardwaregain_available": constant("[-89.750000 0.250000 0.000000]"),
            "rf_port_select": kept("A", _only("A")),
            "rssi": constant("0.00 dB"),
        }
        both = {
            "voltage_filter_fir_en": Attribute(
                lambda: str(int(self._rx_fir and self._tx_fir)),
                lambda text: self._enable_fir(switch(text), switch(text)),
            )
        }
        aux = {"raw": constant("306"), "scale": constant("1.000000")}
        return Device(
            "iio:device0",
            "ad9361-phy",
            channels=(
                self._channel("altvoltage1", True, {}, tx_lo, "TX_LO"),
                self._channel("voltage0", False, rx, rx_own),
                self._channel("voltage3", True, tx, aux),
                self._channel("altvoltage0", True, {}, rx_lo, "RX_LO"),
                self._channel("voltage2", True, tx, aux),
                self._channel("temp0", False, {}, {"input": constant("36842")}),
                self._channel("voltage0", True, tx, tx_own),
                self._channel(
                    "voltage2",
                    False,
                    rx,
                    {"offset": constant("57"), "raw": constant("975"), "scale": constant("0.305250")},
                ),
                self._channel("out", False, {}, both),
            ),
            attributes={
                "calib_mode": Attribute(lambda: self._calibration, self._awake(self._set_calibration)),
                "calib_mode_available": constant(CALIB_MODES),
                "ensm_mode": Attribute(lambda: self._ensm, self._set_ensm),
                "ensm_mode_available": constant(ENSM_MODES),
                "filter_fir_config": Attribute(
                    lambda: f"FIR Rx: {self._taps},{self._decimation} Tx: {self._taps},{self._interpolation}",
                    self._load_fir,
                ),
                "rx_path_rates": Attribute(lambda: self._rates(0, "BBPLL ADC R2 R1 RF RXSAMP")),
                "trx_rate_governor": Attribute(lambda: self._governor, self._awake(self._set_governor)),
                "trx_rate_governor_available": constant(GOVERNORS),
                "tx_path_rates": Attribute(lambda: self._rates(1, "BBPLL DAC T2 T1 TF TXSAMP")),
            },
            debug={"loopback": Attribute(lambda: str(self.loopback), self._set_loopback), **debug},
        )


def _gain_limits(lo_hz: float) -> tuple[int, int]:
    """Give the gains of the full gain table of a band, in dB."""
    return (-1, 73) if lo_hz <= 1.3e9 else (-3, 71)


def _even(hz: float) -> str:
    """Write a carrier as the driver does, which counts in steps of 2 Hz."""
    return str(round(hz) // 2 * 2)


def _bandwidth(text: str) -> int:
    hz = signed(text)
    return min(hz, BANDWIDTH_MAX_HZ) if hz >= 0 else BANDWIDTH_MAX_HZ


def _only(value: str) -> Callable[[str], None]:
    """Make a check that takes what is soldered, and nothing else."""

    def check(text: str) -> None:
        if text != value:
            raise invalid(text)

    return check


def _no_device(text: str) -> None:
    raise OSError(errno.ENODEV, "an AD9363 has no input for an external LO")
