"""A radio in real time on a clock that the test turns: pacing, overflow, underflow, cyclic buffers, faults."""

import math

import numpy as np
import pytest

from radio.base import RadioConfig
from radio.errors import RadioRefused
from radio.ether import Ether
from radio.paced import POWER_UP, PacedRadio, Wall, paced_options
from radio.presets import preset

NAMES = ["server", "n"]
BLOCK = 4096
SETTINGS = {"rate_hz": 1e6, "tx_hz": 915e6, "rx_hz": 915e6, "bandwidth_hz": 1e6, "tx_attenuation_db": 0.0}


class Hand:
    """A clock that moves when told to."""

    def __init__(self):
        self.time_s = 100.0

    def __call__(self):
        return self.time_s


def lab(name="ideal", **changes):
    hand = Hand()
    ether = Ether(paced_options(preset(name, **changes), NAMES), NAMES)
    wall = Wall(hand)
    radios = [PacedRadio(ether, each, wall) for each in NAMES]
    for radio in radios:
        radio.set(**SETTINGS, rx_gain_db=30.0, manual_gain=True)
    hand.time_s += 0.01  # streams restarted
    return hand, ether, radios


def tone(count=BLOCK, size=8000):
    wave = size * np.exp(0.2j * np.arange(count))
    return np.stack([wave.real, wave.imag], axis=1).astype(np.int16)


def test_it_wakes_up_as_a_pluto_does_and_reads_back():
    hand = Hand()
    ether = Ether(paced_options(preset("pluto-stock"), NAMES), NAMES)
    radio = PacedRadio(ether, "n", Wall(hand))
    assert radio.powered and not radio.manual_gain and radio.config.rate_hz == POWER_UP.rate_hz
    taken = radio.set(rx_hz=915e6 + 1.0, tx_attenuation_db=10.1)
    assert abs(taken.rx_hz - 915e6) < 2.4 and taken.tx_attenuation_db == 10.0
    with pytest.raises(RadioRefused):
        radio.set(rx_hz=9e9)
    assert radio.config == taken


def test_blocks_come_when_their_last_sample_has_passed():
    hand, _, (server, _) = lab()
    server.rx_open(BLOCK, 4)
    assert server.rx_wait_s() == pytest.approx(BLOCK / 1e6, abs=2e-6)
    hand.time_s += 0.9 * BLOCK / 1e6
    assert server.rx_wait_s() == pytest.approx(0.1 * BLOCK / 1e6, abs=2e-6)
    hand.time_s += 0.11 * BLOCK / 1e6
    assert server.rx_wait_s() == 0.0
    block = server.rx_take()
    assert block.shape == (BLOCK, 2) and block.dtype == np.int16 and np.abs(block).max() <= 2048
    assert server.rx_wait_s() > 0.0 and not server.overflowed


def test_a_burst_arrives_where_the_queue_put_it():
    hand, _, (server, node) = lab(snr_db=60.0)
    server.rx_open(BLOCK, 16)
    node.tx_open(BLOCK, 4)
    hand.time_s += 0.0005
    for number in range(4):
        assert node.tx_wait_s() <= 2e-6
        node.tx_put(tone() if number == 2 else np.zeros((BLOCK, 2), np.int16))
    assert node.tx_wait_s() == pytest.approx(BLOCK / 1e6, abs=2e-6), "four blocks are all it takes"
    hand.time_s += 0.04
    heard = np.concatenate([server.rx_take() for _ in range(5)]).astype(float) @ [1, 1j]
    loud = np.flatnonzero(np.abs(heard) > 0.5 * np.abs(heard).max())
    assert abs(loud[0] - (500 + 2 * BLOCK)) <= 2 and abs(loud[-1] - (500 + 3 * BLOCK)) <= 2


def test_nobody_reading_loses_samples_and_says_so():
    hand, _, (server, _) = lab()
    server.rx_open(BLOCK, 4)
    hand.time_s += 3.5 * BLOCK / 1e6
    for _ in range(3):
        server.rx_take()
    assert not server.overflowed, "less than four blocks late is no loss"
    hand.time_s += 10 * BLOCK / 1e6
    server.rx_take()
    assert server.overflowed


def test_an_empty_queue_shifts_what_follows():
    hand, ether, (_server, node) = lab(snr_db=60.0)
    node.tx_open(BLOCK, 4)
    node.tx_put(np.zeros((BLOCK, 2), np.int16))
    with ether.hold("n") as station:
        before = station.hidden
    hand.time_s += 2.25 * BLOCK / 1e6
    node.tx_put(tone())
    assert node.underflowed
    with ether.hold("n") as station:
        slipped = station.hidden - before
        assert abs(slipped - 1.25 * BLOCK) <= 2
        assert station.bursts[0].device_start == BLOCK + station.hidden, "host index 4096, later by the slip"


def test_a_cyclic_buffer_goes_on_until_it_is_closed():
    hand, _ether, (server, node) = lab(snr_db=60.0)
    node.tx_open(BLOCK, 1, cyclic=True)
    node.tx_put(tone())
    server.rx_open(BLOCK, 64)
    for _ in range(5):
        hand.time_s += 0.05
        node.tick()
    heard = np.concatenate([server.rx_take() for _ in range(50)]).astype(float) @ [1, 1j]
    assert np.abs(heard).min() > 0.5 * np.abs(heard).max()
    node.tx_close()
    hand.time_s += 0.1
    server.rx_open(BLOCK, 4)
    hand.time_s += 0.005
    after = server.rx_take().astype(float) @ [1, 1j]
    assert np.abs(after).max() < 0.05 * np.abs(heard).max()


def test_a_powered_down_synthesiser_is_silent_and_sticky():
    _hand, ether, (_, node) = lab("pluto-stock")
    node.tx_open(BLOCK, 4)
    node.power(False)
    node.set(tx_hz=916e6)
    node.tx_put(tone())
    with ether.hold("n") as station:
        assert station.muted and not station.bursts
        assert all(math.isfinite(leak.off_s) for leak in station.tones)
    node.power(True)
    node.tx_put(tone())
    with ether.hold("n") as station:
        assert not station.muted and station.bursts


def test_stall_and_unplug():
    hand, _, (server, node) = lab()
    server.rx_open(BLOCK, 4)
    server.stall(0.5)
    hand.time_s += 0.2
    assert server.rx_wait_s() == math.inf
    hand.time_s += 0.31
    assert server.rx_wait_s() == 0.0
    server.rx_take()
    assert server.overflowed
    node.unplug(1.0)
    assert node.gone and node.config.rate_hz == POWER_UP.rate_hz and not node.manual_gain
    hand.time_s += 1.01
    assert not node.gone and node.powered


def test_settings_of_the_lab_survive_in_real_time():
    options = paced_options(preset("pluto-shared-clock", snr_db=7.0, radios={"n": {"ppm": 3.0}}), NAMES)
    assert options.of("n").ppm == 3.0 and options.of("n").shared_reference and options.snr_db == 7.0
    assert options.of("n").one_timeline and options.of("server").turnaround_s == 0.0
    stock = paced_options(preset("pluto-stock"), ["n"])
    assert stock.of("n").one_timeline and not stock.of("server").one_timeline
    assert RadioConfig(**vars(POWER_UP)) == POWER_UP
