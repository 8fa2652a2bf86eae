"""The USRP driver on a fake of UHD: times, bursts, losses, errors and every known fault of UHD that it works round."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import fake_uhd
import numpy as np
import pytest

import radio
from radio import usrp, usrp_clock, usrp_stream
from radio.base import RadioConfig, StreamEvent, Tier
from radio.errors import ConfigError, RadioError, RadioNotFound, RadioRefused, TooLate
from radio.pairs import to_pairs

CONFIG = RadioConfig(1e6, 915e6, 915e6, 1e6, 30.0, 10.0)
SAFE = radio.PROFILES["conducted"]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_uhd.Device:
    made = fake_uhd.Device()
    monkeypatch.setattr(usrp, "library", lambda: fake_uhd.module(made))
    monkeypatch.setattr(usrp_clock, "LOCK_S", 0.1)
    monkeypatch.setattr(usrp, "STALL_S", 0.3)
    monkeypatch.setattr(usrp_stream, "STALL_S", 0.3)
    return made


@pytest.fixture
def opened(device: fake_uhd.Device) -> Iterator[usrp.UsrpRadio]:
    made = usrp.connect("serial=30F", None)
    made.configure(CONFIG)
    yield made
    device.alive = True
    made.close()


def until(true, patience_s: float = 3.0) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def burst(count: int = 1000) -> np.ndarray:
    return np.full(count, 0.5 - 0.25j, np.complex64)


def test_time_is_the_devices_own_though_samples_come_late(device, monkeypatch):
    """As they do while another call into libuhd holds the interpreter; bursts were late by as much."""
    receive = fake_uhd.RXStreamer.recv

    def late(self, np_array, metadata, timeout=0.1):
        due_s = ((self._tick or 0) + np_array.shape[1]) / device.rate + 0.2
        time.sleep(max(0.0, due_s - device.now_s()))
        return receive(self, np_array, metadata, timeout)

    monkeypatch.setattr(fake_uhd.RXStreamer, "recv", late)
    made = usrp.connect("serial=30F", None)
    made.configure(CONFIG)
    made.receive(1000)
    assert made._streams.ticks() == pytest.approx(1e6 * device.now_s(), abs=50_000)
    made.close()


# --- finding and opening


def test_opens_muted_and_reads_back(device):
    made = usrp.connect("serial=30F", None)
    try:
        assert device.tx_gain == 0.0
        taken = made.configure(replace(CONFIG, tx_attenuation_db=10.1))
        assert taken == replace(CONFIG, tx_attenuation_db=10.0)
        assert device.tx_gain == 0.0  # settings alone do not un-mute
        assert "agc False" in device.calls
        assert made.temperature_c() == 41.5
    finally:
        made.close()


def test_a_wide_fixed_filter_does_not_widen_what_is_declared(opened):
    assert opened.configure(CONFIG).bandwidth_hz == CONFIG.rate_hz


@pytest.mark.parametrize("rest", ["", "30F", "serial=", "=30F", "serial=30F,,"])
def test_a_malformed_address_is_the_users_mistake(rest):
    with pytest.raises(ConfigError, match="write usrp:serial"):
        usrp.connect(rest, None)


def test_not_found_lists_what_was_found(device):
    with pytest.raises(RadioNotFound, match=r"no USRP answers to serial=XX; found usrp:serial=30F"):
        usrp.connect("serial=XX", None)
    device.found.append({**device.found[0], "serial": "31A"})
    with pytest.raises(RadioNotFound, match=r"2 USRP answers to type=b200; found usrp:serial=30F, usrp:serial=31A"):
        usrp.connect("type=b200", None)


def test_one_device_is_not_opened_twice(opened):
    with pytest.raises(RadioRefused, match="30F cannot be opened"):
        usrp.connect("serial=30F", None)


def test_discovery_names_uris(device):
    device.found.append({"serial": "E1", "type": "e3xx", "addr": "127.0.0.2"})
    assert [each.uri for each in usrp.discover()] == ["usrp:serial=30F", "usrp:addr=127.0.0.2,type=e3xx"]


# --- clock and time


def test_tier_u1_needs_both_references(device):
    for extra, tier in (("", Tier.U0), (",clock_source=external", Tier.U0)):
        made = usrp.connect("serial=30F" + extra, None)
        assert (made.capabilities.tier, made.capabilities.shared_reference) == (tier, bool(extra))
        made.close()
    made = usrp.connect("serial=30F,clock_source=external,time_source=external", None)
    assert made.capabilities.tier is Tier.U1 and made.capabilities.one_timeline and made.capabilities.real_time
    made.close()
    assert {call for call in device.calls if call.startswith("open")} == {"open serial=30F"}
    assert device.calls[-2:] == ["clock external", "time external"]


def test_the_pps_sets_the_same_second_in_every_radio(device):
    made = usrp.connect("serial=30F,clock_source=external,time_source=external", None)
    try:
        made.configure(CONFIG)
        second, fraction = made.last_pps()
        assert fraction == 0.0
        assert abs(second - time.time() % 86400) < 2.5
    finally:
        made.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"locked": False}, "10 MHz reference is not locked after 0.1 s"),
        ({"board_sensors": []}, "does not tell if its reference is locked"),
        ({"sources": ["internal"]}, r"no clock source external; it has \['internal'\]"),
        ({"time_runs": False}, "its time stands still"),
    ],
)
def test_a_bad_reference_is_refused(device, change, why):
    vars(device).update(change)
    with pytest.raises(RadioRefused, match=why):
        usrp.connect("serial=30F,clock_source=external,time_source=external", None)
    vars(device).update(vars(fake_uhd.Device()))
    usrp.connect("serial=30F", None).close()  # it was let go


def test_a_missing_pps_is_refused(device):
    device.pps = False
    made = usrp.connect("serial=30F,clock_source=external,time_source=external", None)
    with pytest.raises(RadioRefused, match="PPS is not locked"):
        made.configure(CONFIG)
    made.close()


# --- settings


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rate_hz": 50e6}, "rate_hz 5e.07 is outside 200000 to 1e.07"),
        ({"rx_hz": 1e6}, "rx_hz 1e.06 is outside 5e.07 to 6e.09"),
        ({"tx_hz": 7e9}, "tx_hz 7e.09"),
        ({"rx_gain_db": 80.0}, "rx_gain_db 80 is outside 0 to 76"),
        ({"tx_attenuation_db": 95.0}, "tx_attenuation_db 95 is outside 0 to 89.75"),
    ],
)
def test_settings_outside_the_range_are_refused_with_numbers(opened, change, told):
    with pytest.raises(RadioRefused, match=told):
        opened.configure(replace(CONFIG, **change))
    assert opened.configure(CONFIG).rx_gain_db == 30.0


def test_unequal_rates_are_refused(device):
    device.tx_rate_step = 1.0
    made = usrp.connect("serial=30F", None)
    with pytest.raises(RadioRefused, match="for receive and"):
        made.configure(CONFIG)
    made.close()


def test_unchanged_settings_do_not_retune(opened, device):
    tunes = len(device.rx_tunes)
    opened.configure(replace(CONFIG, rx_gain_db=31.0, tx_attenuation_db=3.0))
    assert (len(device.rx_tunes), device.rx_gain) == (tunes, 31.0)


# --- samples


def test_receive_counts_in_device_time(opened):
    one, two = opened.receive(3000), opened.receive(2000)
    assert two.start == one.start + 3000 and one.events == two.events == ()
    assert opened.newest() >= two.start + 2000


@pytest.mark.parametrize(("kind", "told"), [("overflow", "overflow"), ("sequence", None), ("bad_packet", None)])
def test_losses_are_events_at_their_index(opened, device, kind, told):
    opened.receive(5000)
    device.incidents.append((kind, 12_345))
    events = opened.receive(200_000).events
    kinds = {event.kind: event for event in events}
    assert set(kinds) == {"lost", told} - {None}
    assert all(event.count == 12_345 and event.index == events[0].index for event in events)


def test_a_late_start_is_commanded_again(opened, device):
    device.incidents.append(("late", 0))
    opened.receive(100_000)
    assert device.calls.count("start_cont") == 2


def test_bursts_are_timed_begun_and_ended(opened, device):
    start = opened.earliest() + 20_000
    report = opened.transmit(burst(50_000), start)
    until(lambda: device.bursts and device.bursts[0]["ended"])
    sent = device.bursts[0]
    assert (report.start, sent["start"], len(sent["samples"])) == (start, start, 50_000)
    assert sent["samples"][0] == [16384, -8192] and sent["gain"] == 79.75
    with pytest.raises(TooLate) as late:
        opened.transmit(burst(), start)
    assert late.value.late_samples > 0


def test_a_burst_is_not_handed_over_before_its_time_and_a_mute_drops_it(opened, device):
    opened.transmit(burst(), opened.earliest() + 300_000)
    time.sleep(0.1)
    assert not device.bursts
    opened.mute()
    assert device.tx_gain == 0.0
    time.sleep(0.5)
    assert not device.bursts
    opened.transmit(burst())
    until(lambda: device.bursts)
    assert device.bursts[0]["gain"] == 79.75


def test_a_gain_that_does_not_follow_is_an_error(opened, device):
    device.gain_stuck = True
    with pytest.raises(RadioError, match=r"transmit gain reads 0 dB, wanted 79.75 dB"):
        opened.transmit(burst())


def test_what_the_device_says_of_a_burst_comes_with_the_next_report(opened, device):
    codes = fake_uhd.TXMetadataEventCode
    first = opened.transmit(burst(1000))
    until(lambda: device.bursts)
    for code in (codes.burst_ack, codes.time_error, codes.underflow, codes.seq_error):
        device.messages.append((code, first.start + 400))
    until(lambda: not device.messages)
    time.sleep(0.05)
    assert opened.transmit(burst()).events == (
        StreamEvent("late", first.start, 1000),
        StreamEvent("underflow", first.start + 400, 600),
        StreamEvent("lost", first.start + 400, 600),
    )


def test_scaling_saturates_and_counts():
    pairs, clipped = to_pairs(np.array([1 + 0j, -1 - 1j, 1.5 - 2j, 0.25 / 2**15], np.complex64))
    assert pairs.tolist() == [[32767, 0], [-32768, -32768], [32767, -32768], [0, 0]] and clipped == 1


# --- the end


def test_a_dead_device_is_an_error_everywhere(opened, device):
    opened.receive(1000)
    device.alive = False
    with pytest.raises(RadioError, match=r"stopped at RX index \d+: no samples for 0.3 s"):
        opened.receive(3_000_000)
    for use in (lambda: opened.transmit(burst()), opened.earliest, lambda: opened.receive(10)):
        with pytest.raises(RadioError, match="stopped at RX index"):
            use()
    with pytest.raises(RadioError, match="does not do what it is asked: rpc::timeout"):
        opened.mute()


def test_a_device_that_takes_no_samples_is_an_error(opened, device):
    device.tx_takes = False
    opened.transmit(burst())
    with pytest.raises(RadioError, match="is not taken after 0 samples"):
        opened.receive(3_000_000)


def test_closing_stops_the_stream_and_lets_another_open(device):
    for _ in range(2):
        made = usrp.connect("serial=30F", None)
        made.configure(CONFIG)
        made.close()
        made.close()
        assert device.calls[-1] == "stop_cont" and device.tx_gain == 0.0 and not device.streamers
        with pytest.raises(RadioError, match="closed"):
            made.configure(CONFIG)
        with pytest.raises(RadioError):
            made.receive(1)
        with pytest.raises(RadioError):
            made.transmit(burst())


def test_silence_lowers_the_gain_of_a_dead_owners_device(device):
    usrp.silence("serial=30F")
    assert device.tx_gain == 0.0
    device.found[0]["claimed"] = "True"
    with pytest.raises(RadioRefused, match="another program has it"):
        usrp.connect("serial=30F", None)


# --- known faults of UHD and the way round each


def test_uhd_592_no_time_is_ever_one_float(opened, device):
    """The fake refuses a TimeSpec of one float; a day of samples keeps its exact index."""
    index = 86_399 * 1_000_000 + 123_457
    assert opened._streams._spec(index).to_ticks(1e6) == index


def test_uhd_664_a_start_time_reaches_the_device(opened, device):
    """``send_waveform`` ignores its start: the driver sets the time in the metadata of the first packet itself."""
    start = opened.transmit(burst(), opened.earliest() + 10_000).start
    until(lambda: device.bursts)
    assert device.bursts[0]["start"] == start


def test_uhd_620_nothing_is_tuned_at_a_time():
    assert not hasattr(fake_uhd.MultiUSRP, "set_command_time")  # and the fake has all that the driver calls


def test_uhd_892_a_b2xx_is_tuned_away_and_back_after_its_streamer_exists(opened, device):
    home, away, back = device.rx_tunes
    assert home == back == 915e6 and abs(away - home) > 200e6


def test_other_devices_are_tuned_once(device):
    device.name = "X310"
    made = usrp.connect("serial=30F", None)
    made.configure(CONFIG)
    assert device.rx_tunes == [915e6]
    made.close()


def test_a_new_rate_lets_go_of_the_old_streamer_first(opened, device):
    """Two receive streamers on one channel: "Attempting to reconnect output port". The fake asserts it."""
    assert opened.configure(replace(CONFIG, rate_hz=2e6)).rate_hz == 2e6
    assert len(device.streamers) == 1
    assert opened.receive(1000).rate_hz == 2e6


# --- without UHD, or with one that would crash


def run(code: str, *paths: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {list(paths)!r}\n{code}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HIDE = (
    "import sys, importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'uhd' else f(n, *a)\n"
)
ASK = """
import radio.usrp
from radio.errors import RadioNotFound
assert radio.usrp.discover() == []
try:
    radio.usrp.connect("serial=1", None)
except RadioNotFound as error:
    print(error)
assert "uhd" not in sys.modules
"""


def test_without_uhd_nothing_is_found_and_the_remedy_names_the_package():
    assert "apt-get install -y --no-install-recommends python3-uhd" in run(HIDE + ASK)


def test_a_binding_for_an_older_numpy_is_probed_elsewhere_and_never_imported(tmp_path):
    """Debian's UHD 4.3 under NumPy 2: the import complains and goes on, ``recv`` crashes the process."""
    (tmp_path / "uhd").mkdir()
    (tmp_path / "uhd" / "__init__.py").write_text("import sys; print('_ARRAY_API not found', file=sys.stderr)")
    probed = "import subprocess, numpy, radio.usrp; numpy.__version__ = '2.4.6'; path = sys.path[0]\n" + (
        "real = subprocess.run\n"
        "def found(args, **kw): return real(args, env={'PYTHONPATH': path}, **kw)\n"
        "subprocess.run = found\n"
    )
    told = run(probed + ASK, str(tmp_path))
    assert re.search(r"built for NumPy 1 and crashes under NumPy 2.4.6.*numpy<2", told)
