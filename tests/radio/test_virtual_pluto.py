"""The streams, faults and endpoints of virtual Plutos, line by line, on a stand-in and on a simulated air."""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
from standin import Client, Served, StandIn

from radio.ether import Ether
from radio.paced import PacedRadio, Wall, paced_options
from radio.presets import preset
from radio.virtual_pluto import VirtualPluto, VirtualPlutos


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    assert served.client.write("ad9361-phy INPUT voltage0 sampling_frequency", "61440000") > 0
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
    served.radio.set(rate_hz=1e6)  # a client that had not noticed; the chip needs a filter for that, and has none yet
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
            fir = "RX 3 GAIN -6 DEC 4\nTX 3 GAIN 0 INT 4\n" + "1,1\n" * 128
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
