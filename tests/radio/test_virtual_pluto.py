"""The virtual Pluto, attribute by attribute, against the rules of the AD9363 driver; its streams, faults, endpoints."""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin import Client, StandIn

from radio.ad936x import clock_chain
from radio.ether import Ether
from radio.iiod import Attribute, Context
from radio.paced import PacedRadio, Wall, paced_options
from radio.pluto_board import describe
from radio.presets import preset
from radio.virtual_pluto import VirtualPluto, VirtualPlutos

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
    with pytest.raises(OSError):
        pluto.write(f"phy {BOTH} voltage_filter_fir_en", "1")
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


class Served:
    """A virtual Pluto on a stand-in, with a client on its control connection."""

    def __init__(self) -> None:
        self.radio = StandIn()
        self.pluto = VirtualPluto(self.radio, "104473")
        self.plutos = VirtualPlutos([self.pluto])
        self.plutos.start()
        self.client = Client(self.pluto.port)
        assert self.client.write("ad9361-phy INPUT voltage0 sampling_frequency", "61440000") > 0

    def close(self) -> None:
        self.client.close()
        self.plutos.stop()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


def samples(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, "<i2").reshape(-1, 2)


def test_received_blocks_are_contiguous_and_sign_extended(served: Served) -> None:
    assert served.client.number("OPEN cf-ad9361-lpc 3000 00000003") == 0
    got = np.concatenate([samples(served.client.block("cf-ad9361-lpc", 12000)[1]) for _ in range(3)])
    ramp = np.arange(9000) % 2048
    np.testing.assert_array_equal(got, np.stack([ramp, -ramp], axis=1))


@pytest.mark.parametrize(("mask", "channel"), [("00000001", 0), ("00000002", 1)])
def test_one_channel_can_stream_alone(served: Served, mask: str, channel: int) -> None:
    assert served.client.number(f"OPEN cf-ad9361-lpc 100 {mask}") == 0
    got_mask, raw = served.client.block("cf-ad9361-lpc", 200)
    np.testing.assert_array_equal(np.frombuffer(raw, "<i2"), np.arange(100) * (1, -1)[channel])
    assert got_mask == mask
    assert served.client.number(f"OPEN cf-ad9361-dds-core-lpc 100 {mask}") == 0
    assert served.client.put("cf-ad9361-dds-core-lpc", np.full(100, -3, "<i2").tobytes()) == 200
    expected = np.zeros((100, 2))
    expected[:, channel] = -3
    np.testing.assert_array_equal(served.radio.sent[0], expected)


def test_digital_loopback_gives_back_what_was_sent_in_12_bits(served: Served) -> None:
    client = served.client
    assert client.write("ad9361-phy DEBUG loopback", "1") == 2
    assert client.number("OPEN cf-ad9361-dds-core-lpc 256 00000003") == 0
    assert client.number("OPEN cf-ad9361-lpc 300 00000003") == 0
    rng = np.random.default_rng(3)
    sent = rng.integers(-(2**15), 2**15, (512, 2)).astype("<i2")
    for part in (sent[:256], sent[256:]):
        assert client.put("cf-ad9361-dds-core-lpc", part.tobytes()) == 1024
    got = np.concatenate([samples(client.block("cf-ad9361-lpc", 1200)[1]) for _ in range(2)])
    np.testing.assert_array_equal(got[:512], sent // 16)
    assert not got[512:].any(), "silence follows"
    np.testing.assert_array_equal(np.concatenate(served.radio.sent), sent)
    level = client.value("READ ad9361-phy INPUT voltage0 rssi")
    expected_db = -10 * math.log10(np.mean(got[300:].astype(float) ** 2) * 2 / 2**22)
    assert level == f"{round(expected_db * 4) / 4:.2f} dB"


def test_digital_loopback_of_a_cyclic_buffer_never_ends(served: Served) -> None:
    client = served.client
    assert client.write("ad9361-phy DEBUG loopback", "1") == 2
    assert client.number("OPEN cf-ad9361-dds-core-lpc 100 00000003 CYCLIC") == 0
    cycle = (np.arange(200).reshape(100, 2) * 16).astype("<i2")
    assert client.put("cf-ad9361-dds-core-lpc", cycle.tobytes()) == 400
    assert client.number("OPEN cf-ad9361-lpc 64 00000003") == 0
    got = np.concatenate([samples(client.block("cf-ad9361-lpc", 256)[1]) for _ in range(8)])
    np.testing.assert_array_equal(got, np.resize(cycle // 16, (512, 2)))


def test_the_filter_in_the_logic_divides_the_rate_by_eight(served: Served) -> None:
    client = served.client
    path = "cf-ad9361-lpc INPUT voltage0 sampling_frequency"
    assert client.value(f"READ {path}_available") == "61440000 7680000 "
    assert client.write(path, "1000000") == -errno.EINVAL
    assert client.write(path, "7680000") == 8 and client.value(f"READ {path}") == "7680000"
    assert client.number("OPEN cf-ad9361-lpc 16 00000003") == 0
    got = samples(client.block("cf-ad9361-lpc", 64)[1])
    np.testing.assert_array_equal(got[:, 0], np.arange(128).reshape(16, 8).sum(axis=1) // 8)
    path = "cf-ad9361-dds-core-lpc OUTPUT voltage0 sampling_frequency"
    assert client.write(path, "7680000") == 8
    assert client.number("OPEN cf-ad9361-dds-core-lpc 4 00000003") == 0
    assert client.put("cf-ad9361-dds-core-lpc", np.arange(8, dtype="<i2").tobytes()) == 16
    np.testing.assert_array_equal(served.radio.sent[0], np.arange(8).reshape(4, 2).repeat(8, axis=0))


def test_a_receiver_without_lo_hears_nothing(served: Served) -> None:
    assert served.client.write("ad9361-phy OUTPUT RX_LO powerdown", "1") == 2
    assert served.client.number("OPEN cf-ad9361-lpc 64 00000003") == 0
    assert not samples(served.client.block("cf-ad9361-lpc", 256)[1]).any()


def test_overflow_and_underflow_are_latched_until_cleared(served: Served) -> None:
    client = served.client
    for device, name, bit in (("cf-ad9361-lpc", "overflowed", 4), ("cf-ad9361-dds-core-lpc", "underflowed", 1)):
        path = f"{device} DEBUG direct_reg_access"
        assert client.write(path, "0x80000088") > 0 and int(client.value(f"READ {path}"), 0) == 0
        setattr(served.radio, name, True)
        assert int(client.value(f"READ {path}"), 0) == bit
        assert client.write(path, f"0x80000088 {8:#x}") > 0 and int(client.value(f"READ {path}"), 0) == bit
        assert client.write(path, f"0x80000088 {bit:#x}") > 0 and int(client.value(f"READ {path}"), 0) == 0
        assert client.write(path, "everything") == -errno.EINVAL
    path = "ad9361-phy DEBUG direct_reg_access"
    assert client.write(path, "0x37") > 0 and client.value(f"READ {path}") == "0xA"


def test_a_stalled_stream_times_out(served: Served) -> None:
    client = served.client
    assert client.number("TIMEOUT 100") == 0
    assert client.number("OPEN cf-ad9361-lpc 64 00000003") == 0
    assert client.number("OPEN cf-ad9361-dds-core-lpc 64 00000003") == 0
    served.radio.stalled = True
    assert client.number("READBUF cf-ad9361-lpc 256") == -errno.ETIMEDOUT
    assert client.put("cf-ad9361-dds-core-lpc", bytes(256)) == -errno.ETIMEDOUT
    assert client.value("READ ad9361-phy ensm_mode") == "fdd", "settings still answer"


def test_an_unplugged_pluto_is_not_there_and_comes_back_as_switched_on(served: Served) -> None:
    client = served.client
    assert client.write("ad9361-phy INPUT voltage0 gain_control_mode", "manual") > 0
    assert client.number("OPEN cf-ad9361-lpc 64 00000003") == 0
    served.radio.stalled = True
    client.send("READBUF cf-ad9361-lpc 256")
    served.radio.gone = True
    with contextlib.suppress(ConnectionError):
        assert client.file.readline() == b""
    deadline = time.monotonic() + 2.0
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < deadline:
            socket.create_connection(("127.0.0.1", served.pluto.port), timeout=0.5).close()
            time.sleep(0.02)
    while served.radio.opened:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    served.radio.gone = False
    while True:
        try:
            back = Client(served.pluto.port)
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert back.value("READ ad9361-phy INPUT voltage0 gain_control_mode") == "slow_attack"
    back.close()


def test_endpoints_have_a_port_before_they_are_served_and_live_on_this_machine_alone() -> None:
    first, second = VirtualPluto(StandIn(), "first"), VirtualPluto(StandIn(), "second")
    assert first.port != second.port and first.uri == f"ip:127.0.0.1:{first.port}"
    plutos = VirtualPlutos([first, second])
    plutos.start()
    for pluto in (first, second):
        client = Client(pluto.port)
        assert client.file.read(client.number("PRINT")).count(f'"{pluto.serial}"'.encode()) == 1
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", first.port))  # an endpoint on every address would be in the way
    plutos.stop()
    plutos.stop()
    with pytest.raises(ConnectionRefusedError):
        Client(first.port)
    third = VirtualPluto(StandIn(), "3", port=first.port)
    assert third.port == first.port
    VirtualPlutos([third]).stop()


class Air:
    """Two Plutos on one simulated air."""

    def __init__(self) -> None:
        names = ("server", "node-1")
        ether = Ether(paced_options(preset("pluto-stock"), names), names)
        wall = Wall()
        self.radios = [PacedRadio(ether, name, wall) for name in names]
        self.plutos = VirtualPlutos([VirtualPluto(radio, radio.name) for radio in self.radios])
        self.plutos.start()
        self.clients = [Client(pluto.port) for pluto in self.plutos.plutos]
        for client in self.clients:
            fir = FILTER.format(4) + "1,1\n" * 128
            assert client.write("ad9361-phy filter_fir_config", fir) > 0
            assert client.write("ad9361-phy INPUT out voltage_filter_fir_en", "1") > 0
            assert client.write("ad9361-phy INPUT voltage0 sampling_frequency", "1000000") > 0
            assert client.write("ad9361-phy INPUT voltage0 gain_control_mode", "manual") > 0
            for lo in ("RX_LO", "TX_LO"):
                assert client.write(f"ad9361-phy OUTPUT {lo} frequency", "915000000") > 0
            assert client.write("ad9361-phy INPUT voltage0 hardwaregain", "60") > 0
            assert client.write("ad9361-phy OUTPUT voltage0 hardwaregain", "0") > 0

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.plutos.stop()


@pytest.fixture
def air() -> Iterator[Air]:
    air = Air()
    yield air
    air.close()


@pytest.mark.realtime
def test_a_second_of_samples_takes_a_second(air: Air) -> None:
    client = air.clients[0]
    assert client.number("OPEN cf-ad9361-lpc 4096 00000003") == 0
    for _ in range(20):
        client.block("cf-ad9361-lpc", 16384)
    air.radios[0].overflowed = False  # the first block waited for code to be compiled
    before = time.monotonic()
    for _ in range(250):
        client.block("cf-ad9361-lpc", 16384)
    assert time.monotonic() - before == pytest.approx(250 * 4096 / 1e6, rel=0.01)
    assert not air.radios[0].overflowed


@pytest.mark.realtime
def test_a_transmitter_runs_ahead_by_its_buffers_at_most(air: Air) -> None:
    client = air.clients[1]
    assert client.number("SET cf-ad9361-dds-core-lpc BUFFERS_COUNT 3") == 0
    assert client.number("OPEN cf-ad9361-dds-core-lpc 4096 00000003") == 0
    before, ahead = time.monotonic(), []
    for sent in range(1, 251):
        assert client.put("cf-ad9361-dds-core-lpc", bytes(16384)) == 16384
        ahead.append(sent - (time.monotonic() - before) * 1e6 / 4096)
    assert max(ahead) <= 3.0 + 1.0, "three blocks wait while one plays"
    assert ahead[-1] >= 0.0 and not air.radios[1].underflowed


@pytest.mark.realtime
def test_a_tone_goes_through_the_air(air: Air) -> None:
    server, node = air.clients
    turns = np.exp(2j * np.pi * 0.1 * np.arange(4000)) * 2**14
    assert node.number("OPEN cf-ad9361-dds-core-lpc 4000 00000003 CYCLIC") == 0
    tone = np.stack([turns.real, turns.imag], axis=1).round().astype("<i2")
    assert node.put("cf-ad9361-dds-core-lpc", tone.tobytes()) == 16000
    assert server.number("OPEN cf-ad9361-lpc 8192 00000003") == 0

    def spectrum() -> np.ndarray:
        for _ in range(20):  # what was on its way before is gone
            got = samples(server.block("cf-ad9361-lpc", 32768)[1]).astype(float) @ [1, 1j]
        return np.abs(np.fft.fft((got - got.mean()) * np.hanning(8192)))

    loud = spectrum()
    peak = int(np.argmax(loud))
    assert abs(np.fft.fftfreq(8192, 1e-6)[peak] - 100e3) < 25e3, "within the crystals' 20 ppm of 915 MHz"
    assert node.number("CLOSE cf-ad9361-dds-core-lpc") == 0
    assert spectrum()[peak] < 0.03 * loud[peak], "30 dB less once the buffer is closed"
