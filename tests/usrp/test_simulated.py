"""The USRP driver through real libuhd on simulated E320s: found, tuned, streamed, timed, broken, several at once."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from bridge import Bridge
from simulated import Simulated, SimulatedLab

import radio
from radio import usrp
from radio.base import RadioConfig, Tier
from radio.errors import RadioError, RadioNotFound, RadioRefused, TooLate
from radio.ether import Ether
from radio.paced import paced_options
from radio.presets import preset
from radio.timeline import code

CONFIG = RadioConfig(1e6, 915e6, 915e6, 1e6, 30.0, 10.0)
SAFE = radio.PROFILES["conducted"].model_copy(update={"attenuation_db": 60.0})
REFERENCE = ",clock_source=external,time_source=external"
AHEAD = 300_000  # samples: this test may share its processor with others
pytestmark = pytest.mark.realtime


def opened(rest: str, extra: str = "") -> usrp.UsrpRadio:
    made = usrp.connect(rest + extra, None)
    try:
        made.configure(CONFIG)
    except RadioError:
        made.close()
        raise
    return made


@pytest.fixture(scope="module")
def looped() -> Iterator[usrp.UsrpRadio]:
    with Simulated(12) as device:
        made = opened(device.rest)
        yield made
        made.close()


def noise(count: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed).uniform(-0.9, 0.9, (count, 2)).astype(np.float32)
    return draw.view(np.complex64)[:, 0]


def test_found_opened_and_described(looped):
    uhd = usrp.library()
    found = usrp._find(uhd, {"addr": "127.0.0.12", "type": "e3xx"})
    assert [(each["serial"], each["product"], each["claimed"]) for each in found] == [("SIM0012", "e320", "True")]
    told = looped.capabilities
    assert (told.tier, told.serial, told.real_time, told.one_timeline) == (Tier.U0, "SIM0012", True, True)
    with pytest.raises(RadioRefused, match="SIM0012 cannot be opened: another program has it, or this one twice"):
        usrp.connect("addr=127.0.0.12,type=e3xx", None)


def test_nothing_there_is_said():
    with pytest.raises(RadioNotFound, match=r"no USRP answers to addr=127\.0\.0\.250,type=e3xx"):
        usrp.connect("addr=127.0.0.250,type=e3xx", None)


def test_settings_are_taken_and_read_back(looped):
    wanted = RadioConfig(1e6, 868e6, 2.41e9, 1e6, 42.0, 20.1)
    taken = looped.configure(wanted)
    assert (taken.rate_hz, taken.rx_hz, taken.tx_hz, taken.rx_gain_db) == (1e6, 2.41e9, 868e6, 42.0)
    assert taken.tx_attenuation_db == pytest.approx(20.0, abs=0.13)
    assert looped.configure(CONFIG).tx_attenuation_db == 10.0
    with pytest.raises(RadioRefused, match="rx_gain_db 77 is outside 0 to 76"):
        looped.configure(RadioConfig(1e6, 915e6, 915e6, 1e6, 77.0))


@pytest.mark.parametrize("count", [1, 370, 371, 5000, 40_000, 300_000])
def test_a_burst_comes_back_to_the_bit_at_its_tick(looped, count):
    sent = noise(count, count)
    looped.transmit(noise(1, 1))  # takes the events of earlier bursts
    report = looped.transmit(sent, looped.earliest() + AHEAD)
    heard = looped.receive(count + 2000, report.start - 1000)
    assert heard.events == looped.transmit(noise(1, 1)).events == ()
    assert np.abs((heard.samples[1000 : 1000 + count] - sent).view(np.float32)).max() <= 0.5 / 2**15 + 1e-9
    assert not heard.samples[:1000].any() and not heard.samples[1000 + count :].any()


def test_what_libuhd_says_of_a_late_burst_is_an_event(looped):
    with pytest.raises(TooLate):
        looped.transmit(noise(100, 1), looped.newest())
    begin = looped._streams.ticks() - 50_000  # past the driver's own check
    looped._streams.add(np.ones((1000, 2), np.int16), begin)
    time.sleep(0.5)
    events = looped.transmit(noise(100, 1)).events
    assert [(each.kind, each.index, each.count) for each in events] == [("late", begin, 1000)]


def test_a_mute_is_the_lowest_gain_and_drops_what_waits(looped):
    waits = looped.transmit(noise(1000, 2), looped.earliest() + AHEAD)
    looped.mute()
    assert looped._usrp.get_tx_gain(0) == 0.0
    assert not looped.receive(1000, waits.start).samples.any()
    again = looped.transmit(noise(1000, 3), looped.earliest() + AHEAD)
    assert looped._usrp.get_tx_gain(0) == 79.75
    assert looped.receive(1000, again.start).samples.any()


def test_ten_seconds_at_one_megasample_without_a_gap():
    """The device sends its own tick numbers: any sample lost, doubled or misplaced shows itself."""
    with Simulated(13, "counter") as device:
        made = opened(device.rest)
        begin, began_s = made.now(), time.monotonic()
        for at in range(begin, begin + 10_000_000, 250_000):
            taken = made.receive(250_000)
            assert (taken.start, taken.events) == (at, ())
            words = np.rint(taken.samples.view(np.float32) * 2**15).astype(np.int64)
            assert np.array_equal(words[::2] | words[1::2] << 15, np.arange(at, at + 250_000) % 2**30)
        assert 9.5 < time.monotonic() - began_s < 11.0  # in real time
        made.close()


def test_an_overflow_is_an_event_and_the_index_stays_true():
    with Simulated(14, "counter") as device:
        made = opened(device.rest)
        made.receive(100_000)
        device.process.send_signal(signal.SIGUSR1)
        taken = made.receive(1_000_000)
        made.close()
    (overflow,) = (event for event in taken.events if event.kind == "overflow")
    begin = overflow.index - taken.start
    words = np.rint(taken.samples.view(np.float32) * 2**15).astype(np.int64)
    right = (words[::2] | words[1::2] << 15) == np.arange(taken.start, taken.start + 1_000_000) % 2**30
    lost = np.zeros(1_000_000, bool)
    lost[begin : begin + overflow.count] = True
    assert np.array_equal(right, ~lost) and not taken.samples[lost].any()


def test_opened_three_times_each_with_two_rates():
    with Simulated(15) as device:
        for _ in range(3):
            made = opened(device.rest)
            for rate_hz in (2e6, 1e6):
                taken = made.configure(RadioConfig(rate_hz, 915e6, 915e6, 1e6, 30.0))
                assert (taken.rate_hz, made.receive(100_000).rate_hz) == (rate_hz, rate_hz)
            made.close()


def test_two_radios_on_a_common_pps_share_one_index():
    """Through the simulated air with a common reference: what one sends at an index, the other hears at that index."""
    with SimulatedLab(2, "usrp-ref", first=16) as lab:
        made = [opened(rest, REFERENCE) for rest in lab.rests]
        assert {each.capabilities.tier for each in made} == {Tier.U1}
        while made[0].last_pps() != (told := made[1].last_pps()):
            time.sleep(0.05)  # an edge between the two questions
        assert told[1] == 0.0
        for sender, hearer in (made, made[::-1]):
            chips = (0.3 * code(5)).astype(np.complex64)
            start = sender.transmit(chips, sender.earliest() + AHEAD).start
            heard = hearer.receive(12_000, start - 5000).samples
            power = np.abs(np.correlate(heard - heard.mean(), chips, "valid"))
            assert abs(int(power.argmax()) - 5000) <= 1 and power.max() > 20 * np.median(power)
        for each in made:
            each.close()


def test_a_reference_that_never_locks_is_refused(monkeypatch):
    monkeypatch.setattr("radio.usrp_clock.LOCK_S", 0.3)
    with Simulated(18, "loop", "--unlocked") as device:
        with pytest.raises(RadioRefused, match=r"10 MHz reference is not locked after 0\.3 s"):
            opened(device.rest, REFERENCE)
        opened(device.rest).close()


def test_a_device_whose_time_stands_still_is_refused():
    with (
        Simulated(19, "loop", "--no-clock") as device,
        pytest.raises(RadioRefused, match="its time stands still at 0 s"),
    ):
        opened(device.rest)


def test_a_device_that_dies_is_an_error_and_may_come_back():
    with Simulated(20) as device:
        made = opened(device.rest)
        made.receive(1000)
        device.stop()
        with pytest.raises(RadioError, match="no samples for 1 s"):
            made.receive(3_000_000)
        with pytest.raises(RadioError):
            made.close()  # it could not be muted, and says so
    with Simulated(20) as device:
        again = opened(device.rest)
        assert again.receive(1000).start > 0
        again.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


OWNER = """
import sys, time
import numpy as np
from radio import usrp
from radio.base import RadioConfig
made = usrp.connect(sys.argv[1], None)
made.configure(RadioConfig(1e6, 915e6, 915e6, 1e6, 30.0, 10.0))
made.transmit(np.ones(1000, np.complex64))
print("sent", flush=True)
time.sleep(60)
"""


def test_silence_reaches_a_device_whose_owner_was_killed():
    bridge = Bridge(Ether(paced_options(preset("usrp-free", seed=1), ["server"]), ["server"]))
    with Simulated(21, bridge.address) as device:
        owner = subprocess.Popen([sys.executable, "-c", OWNER, device.rest], stdout=subprocess.PIPE)
        assert owner.stdout is not None and owner.stdout.readline() == b"sent\n"
        told = bridge.seats[device.serial].told
        until(lambda: told["set_gain TX1"] == 79.75)  # told over a socket
        owner.kill()
        owner.communicate()
        usrp.silence(device.rest)
        until(lambda: told["set_gain TX1"] == 0.0)
    bridge.stop()


def test_a_radio_behind_its_safety_profile(looped):
    """The loop has no antenna: opening by URI, and a refusal."""
    with Simulated(22) as device:
        radio.DRIVERS.setdefault("usrp", "radio.usrp")
        with radio.open(f"usrp:{device.rest}", SAFE) as safe:
            safe.configure(CONFIG)
            assert isinstance(safe, radio.Radio) and safe.transmit(noise(1000, 4) * np.float32(0.1)).count == 1000
