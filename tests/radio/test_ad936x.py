"""The settings of the virtual transceiver, attribute by attribute, against the rules of the AD9363's Linux driver."""

from __future__ import annotations

import errno
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin import StandIn

from radio.ad936x import clock_chain
from radio.iiod import Attribute, Context
from radio.pluto_board import describe

RX, TX = "INPUT voltage0", "OUTPUT voltage0"
RX_LO, TX_LO = "OUTPUT altvoltage0", "OUTPUT altvoltage1"
BOTH = "INPUT out"
FILTER = "RX 3 GAIN -6 DEC {0}\nTX 3 GAIN 0 INT {0}\n"


class Settings:
    """The attributes of a Pluto just switched on, without a server."""

    def __init__(self) -> None:
        self.radio = StandIn()
        self.context: Context = describe(self.radio, "123", "127.0.0.1")

    def find(self, path: str) -> Attribute:
        device, *rest = path.split()
        found = self.context.device({"phy": "ad9361-phy", "adc": "cf-ad9361-lpc"}.get(device, device))
        if rest[0] == "DEBUG":
            return found.debug[rest[1]]
        if len(rest) == 1:
            return found.attributes[rest[0]]
        direction, channel, name = rest
        (only,) = [c for c in found.channels if c.id == channel and c.output == (direction == "OUTPUT")]
        return only.attributes[name]

    def read(self, path: str) -> str:
        return self.find(path).read()

    def write(self, path: str, text: str) -> None:
        write = self.find(path).write
        assert write is not None, f"{path} can not be written"
        write(text)

    def load(self, factor: int, taps: int = 128) -> None:
        self.write("phy filter_fir_config", FILTER.format(factor) + "1,1\n" * taps)


@pytest.fixture
def pluto() -> Settings:
    return Settings()


@pytest.mark.parametrize(
    ("path", "written", "read"),
    [
        (f"{RX_LO} frequency", "2402000001", "2402000000"),  # the driver counts in steps of 2 Hz
        (f"{RX_LO} frequency", "325000000", "325000000"),
        (f"{TX_LO} frequency", "3800000000", "3800000000"),
        (f"{TX_LO} powerdown", "1", "1"),
        (f"{RX_LO} powerdown", "yes", "1"),
        (f"{TX} hardwaregain", "-10.3", "-10.250000 dB"),
        (f"{TX} hardwaregain", "-0.1", "0.000000 dB"),
        (f"{TX} hardwaregain", "-0.25 dB", "-0.250000 dB"),
        (f"{TX} hardwaregain", "-89.75", "-89.750000 dB"),
        (f"{TX} hardwaregain", "0", "0.000000 dB"),
        (f"{RX} sampling_frequency", "2083334", "2083334"),
        (f"{TX} sampling_frequency", "61440000.9", "61440000"),
        (f"{RX} rf_bandwidth", "1000000", "1000000"),
        (f"{TX} rf_bandwidth", "56000000", "20000000"),  # what an AD9363 can do, whatever *_available says
        (f"{RX} rf_bandwidth", "-1", "20000000"),
        (f"{RX} gain_control_mode", "fast_attack", "fast_attack"),
        (f"{RX} quadrature_tracking_en", "0", "0"),
        (f"{RX} rf_port_select", "A_BALANCED", "A_BALANCED"),
        ("ensm_mode", "alert", "alert"),
        ("ensm_mode", "pinctrl_fdd_indep", "fdd"),
        ("ensm_mode", "nonsense", "fdd"),  # taken without a word, as the driver does
        ("calib_mode", "manual", "manual"),
        ("calib_mode", "tx_quad", "auto"),
        ("trx_rate_governor", "highest_osr", "highest_osr"),
        ("DEBUG loopback", "1", "1"),
    ],
)
def test_values_are_read_back_as_the_driver_rounds_them(pluto: Settings, path: str, written: str, read: str) -> None:
    pluto.write(f"phy {path}", written)
    assert pluto.read(f"phy {path}") == read


@pytest.mark.parametrize(
    ("path", "written", "number"),
    [
        (f"{RX_LO} frequency", "324999999", errno.EINVAL),
        (f"{TX_LO} frequency", "3800000001", errno.EINVAL),
        (f"{TX_LO} frequency", "9.15e8", errno.EINVAL),
        (f"{TX_LO} frequency", "-915000000", errno.EINVAL),
        (f"{TX_LO} frequency", "", errno.EINVAL),
        (f"{TX_LO} external", "1", errno.ENODEV),
        (f"{TX_LO} powerdown", "2", errno.EINVAL),
        (f"{TX} hardwaregain", "0.01", errno.EINVAL),
        (f"{TX} hardwaregain", "-90", errno.EINVAL),
        (f"{TX} hardwaregain", "loud", errno.EINVAL),
        (f"{RX} hardwaregain", "30", errno.EOPNOTSUPP),
        (f"{RX} sampling_frequency", "2083333", errno.EINVAL),
        (f"{RX} sampling_frequency", "61440001", errno.EINVAL),
        (f"{RX} sampling_frequency", "-1", errno.EINVAL),
        (f"{RX} gain_control_mode", "automatic", errno.EINVAL),
        (f"{RX} rf_port_select", "B_BALANCED", errno.EINVAL),
        (f"{RX} rf_bandwidth", "wide", errno.EINVAL),
        (f"{BOTH} voltage_filter_fir_en", "1", errno.EINVAL),
        ("filter_fir_config", "1,1\n" * 128, errno.EINVAL),
        ("filter_fir_config", FILTER.format(4) + "1,1\n" * 100, errno.EINVAL),
        ("filter_fir_config", FILTER.format(4) + "1,1\n" * 144, errno.EINVAL),
        ("ensm_mode", "tx", errno.EINVAL),
        ("trx_rate_governor", "fast", errno.EINVAL),
        ("DEBUG loopback", "3", errno.EINVAL),
    ],
)
def test_values_outside_the_rules_are_refused(pluto: Settings, path: str, written: str, number: int) -> None:
    before = pluto.read(f"phy {path}")
    with pytest.raises(OSError) as refused:
        pluto.write(f"phy {path}", written)
    assert refused.value.errno == number and pluto.read(f"phy {path}") == before


def test_gain_follows_the_table_of_the_band(pluto: Settings) -> None:
    pluto.write(f"phy {RX} gain_control_mode", "manual")
    assert pluto.radio.manual_gain
    assert pluto.read(f"phy {RX} hardwaregain_available") == "[-3 1 71]"
    pluto.write(f"phy {RX_LO} frequency", "915000000")
    assert pluto.read(f"phy {RX} hardwaregain_available") == "[-1 1 73]"
    pluto.write(f"phy {RX} hardwaregain", "73")
    with pytest.raises(OSError):
        pluto.write(f"phy {RX} hardwaregain", "74")
    pluto.write(f"phy {RX} hardwaregain", "31.9")
    assert pluto.read(f"phy {RX} hardwaregain") == "31.000000 dB" and pluto.radio.config.rx_gain_db == 31.0
    pluto.write(f"phy {RX} hardwaregain", "-20")
    assert pluto.read(f"phy {RX} hardwaregain") == "-1.000000 dB", "too little becomes the least"
    pluto.write(f"phy {RX} hardwaregain", "73")
    pluto.write(f"phy {RX_LO} frequency", "2400000000")
    assert pluto.read(f"phy {RX} hardwaregain") == "71.000000 dB", "another band, another table"


def test_settings_reach_the_radio(pluto: Settings) -> None:
    pluto.write(f"phy {TX_LO} frequency", "915000000")
    pluto.write(f"phy {TX} hardwaregain", "-20.5")
    pluto.write(f"phy {RX} sampling_frequency", "4000000")
    pluto.write(f"phy {RX} rf_bandwidth", "1000000")
    config = pluto.radio.config
    assert (config.tx_hz, config.tx_attenuation_db, config.rate_hz, config.bandwidth_hz) == (915e6, 20.5, 4e6, 1e6)


def test_a_powered_down_lo_stays_down_until_it_is_powered_up(pluto: Settings) -> None:
    pluto.write(f"phy {TX_LO} powerdown", "1")
    assert not pluto.radio.powered
    pluto.write(f"phy {TX_LO} frequency", "915000000")
    pluto.write(f"phy {TX} hardwaregain", "0")
    assert not pluto.radio.powered
    pluto.write("phy ensm_mode", "alert")
    pluto.write(f"phy {TX_LO} powerdown", "0")
    assert not pluto.radio.powered, "the state machine has the transmitter off as well"
    pluto.write("phy ensm_mode", "fdd")
    assert pluto.radio.powered


def test_a_sleeping_chip_refuses_to_be_set(pluto: Settings) -> None:
    pluto.write("phy ensm_mode", "sleep")
    for path in (f"{TX_LO} frequency", f"{TX} hardwaregain", "trx_rate_governor"):
        with pytest.raises(OSError):
            pluto.write(f"phy {path}", pluto.read(f"phy {path}"))
    pluto.write("phy ensm_mode", "fdd")
    pluto.write(f"phy {TX_LO} frequency", "915000000")


def test_low_rates_need_the_filter(pluto: Settings) -> None:
    """Follow libad9361 and pyadi-iio: load while off, check the room for taps, switch on, set the rate."""
    pluto.load(4)
    assert pluto.read("phy filter_fir_config") == "FIR Rx: 128,4 Tx: 128,4"
    with pytest.raises(OSError):
        pluto.write(f"phy {RX} sampling_frequency", "1000000")
    pluto.write(f"phy {RX} sampling_frequency", "3000000")
    pluto.write(f"phy {BOTH} voltage_filter_fir_en", "1")
    assert [pluto.read(f"phy {path} filter_fir_en") for path in (RX, TX)] == ["1", "1"]
    assert pluto.read(f"phy {RX} sampling_frequency_available") == "[520833 1 61440000]"
    assert pluto.read(f"phy {TX} sampling_frequency_available") == "[520833 1 40000000]"
    pluto.write(f"phy {RX} sampling_frequency", "1000000")
    assert pluto.radio.config.rate_hz == 1e6
    rx, tx = (pluto.read(f"phy {path}_path_rates") for path in ("rx", "tx"))
    assert rx == "BBPLL:1024000000 ADC:32000000 R2:16000000 R1:8000000 RF:4000000 RXSAMP:1000000"
    assert tx == "BBPLL:1024000000 DAC:32000000 T2:16000000 T1:8000000 TF:4000000 TXSAMP:1000000"
    with pytest.raises(OSError):
        pluto.write(f"phy {BOTH} voltage_filter_fir_en", "0")
    assert pluto.read(f"phy {BOTH} voltage_filter_fir_en") == "0", "the driver says off though it failed"
    assert pluto.radio.config.rate_hz == 1e6


def test_the_filter_has_no_more_taps_than_the_converter_allows(pluto: Settings) -> None:
    pluto.load(2)
    pluto.write(f"phy {RX} sampling_frequency", "61440000")
    for path in (f"{BOTH} voltage_filter_fir_en", f"{RX} filter_fir_en", f"{TX} filter_fir_en"):
        with pytest.raises(OSError):
            pluto.write(f"phy {path}", "1")
        assert [pluto.read(f"phy {side} filter_fir_en") for side in (RX, TX)] == ["0", "0"]
    pluto.load(2, 64)
    pluto.write(f"phy {BOTH} voltage_filter_fir_en", "1")
    pluto.write(f"phy {BOTH} voltage_filter_fir_en", "0")
    pluto.load(1, 128)
    with pytest.raises(OSError):
        pluto.write(f"phy {TX} filter_fir_en", "1")
    pluto.load(3, 64)
    with pytest.raises(OSError):
        pluto.write(f"phy {RX} filter_fir_en", "1")


def test_a_filter_file_may_bring_its_rate(pluto: Settings) -> None:
    rates = "RTX 980000000 98000000 49000000 24500000 12250000 3062500\n"
    pluto.write("phy filter_fir_config", "# made by hand\n" + rates + FILTER.format(4) + "7,-7\n" * 128)
    pluto.write(f"phy {BOTH} voltage_filter_fir_en", "1")
    assert pluto.read(f"phy {RX} sampling_frequency") == "3062500"


def test_the_dump_of_a_real_pluto_has_the_same_clocks() -> None:
    chain = clock_chain(30_720_000, 1, 1, True)
    assert chain is not None
    assert chain[0] == (983_040_000, 245_760_000, 122_880_000, 61_440_000, 30_720_000, 30_720_000)


@given(
    rate=st.integers(0, 70_000_000),
    decimation=st.sampled_from([1, 2, 4]),
    interpolation=st.sampled_from([1, 2, 4]),
    nominal=st.booleans(),
)
def test_a_clock_chain_divides_down_to_the_rate(rate: int, decimation: int, interpolation: int, nominal: bool) -> None:
    chain = clock_chain(rate, decimation, interpolation, nominal)
    if chain is None:
        return
    for path, factor, limit in ((chain[0], decimation, 640_000_000), (chain[1], interpolation, 320_000_000)):
        pll, *stages, filtered, samples = path
        assert 715_000_000 <= pll <= 1_430_000_000 and pll % stages[0] == 0
        assert math.log2(pll // stages[0]).is_integer()
        assert filtered == samples * factor and samples == rate
        for before, after in zip([*stages, filtered], [*stages[1:], filtered], strict=False):
            assert before % after == 0 and before // after in (1, 2, 3)
        assert 12_500_000 <= stages[0] <= limit
    assert chain[0][1] // chain[1][1] in (1, 2)


@pytest.mark.parametrize(("factor", "lowest"), [(1, 2_083_333), (2, 1_041_666), (4, 520_833)])
def test_every_rate_down_to_the_lowest_can_be_made(factor: int, lowest: int) -> None:
    assert clock_chain(lowest, factor, factor, True) is None
    for rate in range(lowest + 1, 61_440_000, 1_234_567):
        assert clock_chain(rate, factor, factor, True) or rate * factor > 160_000_000, rate
