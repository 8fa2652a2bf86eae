"""What the Pluto driver does with a device: order, read-back, refusals, mute, and coming back; before a fake one."""

import errno
import time
from collections.abc import Iterator

import numpy as np
import pytest

from radio.base import RadioConfig, Tier
from radio.errors import RadioError, RadioNotFound, RadioRefused, TooLate
from radio.pluto_radio import PlutoRadio

CONFIG = RadioConfig(1e6, 915e6, 915e6, 1e6, 40.0, 10.1)
BLOCK = 4096


def wave(count: int) -> np.ndarray:
    return (0.1 * np.exp(0.3j * np.arange(count))).astype(np.complex64)


class FakePort:
    buffers = 4

    def __init__(self, device):
        self.device, self.block, self.count, self.cancelled = device, np.zeros((BLOCK, 2), np.int16), 0, False

    def refill(self):
        while self.device.stands and not self.cancelled:
            time.sleep(1e-3)
        if self.device.gone or self.cancelled:
            raise OSError(19, "No such device")
        time.sleep(BLOCK / 1e6)
        self.block[:] = self.device.level
        self.count += 1

    push = refill

    def cancel(self):
        self.cancelled = True

    def samples(self):
        return self.block

    def close(self):
        self.device.log.append(("closed",))


class FakeDevice:
    serial, driver, tier = "1044fake", "fake", Tier.P0

    def __init__(self, log):
        self.log, self.gone, self.stands, self.level, self.sticks = log, False, False, 1, False
        self.refuses, self.away = "", False

    def _say(self, *words):
        if self.gone:
            raise OSError(19, "No such device")
        if words[0] == self.refuses:
            raise OSError(errno.EINVAL, "Invalid argument")
        self.log.append(words)

    def mute(self):
        self._say("mute")

    def unmute(self, attenuation_db):
        if self.sticks:
            raise RadioError("the transmitter does not come up", "switch it off and on")
        self._say("unmute", attenuation_db)

    def limits(self):
        return {
            "rate_hz": (521e3, 61.44e6), "rx_hz": (325e6, 3.8e9), "tx_hz": (325e6, 3.8e9),
            "bandwidth_hz": (2e5, 4e7), "rx_gain_db": (-1.0, 73.0), "tx_attenuation_db": (0.0, 89.75),
        }  # fmt: skip

    def manual_gain(self):
        self._say("manual gain")

    def set(self, setting, value):
        self._say(setting, value)
        return value + (1.0 if setting == "rx_hz" else 0.0)  # a synthesiser has steps

    def blocks(self, block, buffers):
        self._say("blocks", block, buffers)
        return FakePort(self), FakePort(self)


@pytest.fixture
def fake() -> Iterator[tuple[PlutoRadio, list[FakeDevice], list]]:
    devices, log = [], []

    def reopen(serial):
        if devices and devices[-1].away:
            raise RadioNotFound("nothing there")
        log.append(("open", serial))
        devices.append(FakeDevice(log))
        return devices[-1]

    opened = PlutoRadio(reopen, BLOCK, 4)
    yield opened, devices, log
    opened.close()


def test_settings_are_made_in_order_and_read_back(fake):
    opened, _, log = fake
    taken = opened.configure(CONFIG)
    assert taken == RadioConfig(1e6, 915e6, 915e6 + 1, 1e6, 40.0, 10.0)  # a step of the LO, and of the attenuator
    assert log == [
        ("open", ""), ("manual gain",), ("rate_hz", 1e6), ("bandwidth_hz", 1e6), ("rx_hz", 915e6), ("tx_hz", 915e6),
        ("rx_gain_db", 40.0), ("blocks", 4096, 4),
    ]  # fmt: skip
    log.clear()
    for same in (CONFIG, taken):
        assert opened.configure(same) == taken
    assert log == []
    opened.configure(RadioConfig(1e6, 915e6, 915e6 + 1, 1e6, 41.0, 10.0))
    assert log == [("rx_gain_db", 41.0)]
    log.clear()
    opened.configure(RadioConfig(2e6, 915e6, 915e6, 1e6, 41.0, 10.0))
    assert log == [("closed",), ("closed",), ("rate_hz", 2e6), ("blocks", 4096, 4)]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rate_hz": 5e5}, "rate_hz 500000 is outside 521000 to 6.144e\\+07"),
        ({"tx_hz": 3e8}, "tx_hz 3e\\+08 is outside 3.25e\\+08"),
        ({"rx_gain_db": 1000.0}, "rx_gain_db 1000 is outside -1 to 73"),
        ({"tx_attenuation_db": 90.0}, "tx_attenuation_db 90 is outside 0 to 89.75"),
    ],
)
def test_what_the_device_cannot_do_is_refused_before_anything_changes(fake, change, text):
    opened, _, log = fake
    taken = opened.configure(CONFIG)
    log.clear()
    with pytest.raises(RadioRefused, match=text):
        opened.configure(RadioConfig(**{**vars(CONFIG), **change}))
    assert log == [] and opened.configure(CONFIG) == taken


def test_a_changed_setting_discards_blocks_received_before_it(fake):
    opened, devices, _ = fake
    opened.configure(CONFIG)
    opened.receive(BLOCK)
    devices[0].level = 2
    opened.configure(RadioConfig(**{**vars(CONFIG), "rx_gain_db": 50.0}))
    assert opened.newest() >= opened.now()
    levels = set(np.unique(opened.receive(20 * BLOCK).samples.real * 2048))
    assert 2 in levels and 1 not in levels


def test_transmit_brings_the_transmitter_up_once_and_only_when_in_time(fake):
    opened, devices, log = fake
    opened.configure(CONFIG)
    log.clear()
    with pytest.raises(TooLate):
        opened.transmit(wave(10), -5)
    assert log == []
    opened.transmit(wave(10))
    opened.transmit(wave(10))
    opened.mute()
    opened.transmit(wave(10))
    assert log == [("unmute", 10.0), ("mute",), ("unmute", 10.0)]
    opened.mute()
    devices[0].sticks = True
    before = opened.earliest()
    with pytest.raises(RadioError, match="does not come up"):
        opened.transmit(wave(100_000))
    assert opened.earliest() < before + 100_000  # nothing was queued


@pytest.mark.realtime
@pytest.mark.parametrize("how", ["gone", "stands"])
def test_it_comes_back_by_itself(fake, how):
    opened, devices, log = fake
    taken = opened.configure(CONFIG)
    opened.transmit(wave(10))
    start = opened.receive(BLOCK).start
    log.clear()
    begin = time.monotonic()
    devices[0].away = True
    setattr(devices[0], how, True)
    with pytest.raises(RadioError, match="the stream stopped at RX index"):
        opened.receive(1 << 22)
    assert time.monotonic() - begin < 1.5
    for _ in range(3):
        with pytest.raises(RadioError, match="the stream stopped at RX index"):
            opened.transmit(wave(10))
    devices[0].away = False
    while True:
        try:
            got = opened.receive(BLOCK)
            break
        except RadioError:
            assert time.monotonic() - begin < 10.0
            time.sleep(0.05)
    assert [event.kind for event in got.events] == ["lost"]
    assert log[:4] == [("closed",), ("closed",), ("open", "1044fake"), ("manual gain",)] and ("rx_gain_db", 40.0) in log
    assert opened.newest() - start == pytest.approx((time.monotonic() - begin) * 1e6, abs=0.2e6)  # as the clock says
    assert opened.configure(CONFIG) == taken
    log.clear()
    opened.transmit(wave(10))  # it came back muted
    assert log == [("unmute", 10.0)]


def test_a_radio_that_stays_away_can_still_be_closed(fake):
    opened, devices, _ = fake
    opened.configure(CONFIG)
    devices[0].gone = devices[0].away = True
    time.sleep(0.5)
    with pytest.raises(RadioError, match="No such device"):
        opened.receive(1)
    begin = time.monotonic()
    opened.close()
    assert time.monotonic() - begin < 2.0


def test_a_value_that_only_the_device_refuses_leaves_a_radio_to_be_configured(fake):
    opened, devices, _ = fake
    opened.configure(CONFIG)
    devices[0].refuses = "tx_hz"
    with pytest.raises(RadioRefused, match="refused a value"):
        opened.configure(RadioConfig(**{**vars(CONFIG), "tx_hz": 916e6}))
    with pytest.raises(RadioError, match="not configured"):
        opened.receive(10)
    devices[0].refuses = ""
    assert opened.configure(CONFIG).tx_hz == 915e6
    assert opened.receive(10).samples.any()


def test_a_device_lost_while_it_is_configured_is_opened_again(fake):
    opened, devices, log = fake
    devices[0].gone = True
    with pytest.raises(RadioError, match="did not take"):
        opened.configure(CONFIG)
    opened.configure(CONFIG)
    assert len(devices) == 2 and ("open", "1044fake") in log
    assert opened.receive(10).samples.any()
