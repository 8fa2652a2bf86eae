"""The Pluto driver through real libiio against virtual Plutos in another process; and what needs no library."""

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import parts
import pytest
from pluto_air import PlutoAir

import radio
from radio import pluto
from radio.base import RadioConfig, Tier
from radio.errors import ConfigError, RadioError, RadioNotFound, RadioRefused
from radio.pluto_radio import PlutoRadio
from radio.timeline import code, measure_offset

CONFIG = RadioConfig(1e6, 915e6, 915e6, 1e6, 40.0, 10.1)
BLOCK = 4096
IDEAL = {"self_leak_db": -55.0, "seed": 3, "snr_db": 60.0}


def wave(count: int, size: float = 0.1, turns: float = 0.05) -> np.ndarray:
    return (size * np.exp(2j * np.pi * turns * np.arange(count))).astype(np.complex64)


# --- what needs no library ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "wanted"),
    [
        ("usb:1.5.5", pluto.Address("usb:1.5.5", "", False, 4096, 4)),
        ("ip:192.168.2.1", pluto.Address("ip:192.168.2.1", "", False, 4096, 4)),
        ("ip:127.0.0.1:50901?block=8192&buffers=8", pluto.Address("ip:127.0.0.1:50901", "", False, 8192, 8)),
        ("serial=1044abc?reference=external", pluto.Address("", "1044abc", True, 4096, 4)),
    ],
)
def test_addresses(rest, wanted):
    assert pluto.address(rest) == wanted


@pytest.mark.parametrize("rest", ["", "usb", "serial=", "ip:", "ip:a?block=9", "ip:a?speed=1", "ip:a?reference=gps"])
def test_wrong_addresses_are_refused(rest):
    with pytest.raises(ConfigError, match="no address of a Pluto"):
        pluto.address(rest)


@pytest.mark.parametrize(
    ("trouble", "remedy"),
    [
        ("raise ImportError('No module named adi')", "pip install pyadi-iio 'pylibiio>=0.25,<1'"),
        ("raise AttributeError('undefined symbol: iio_get_backends_count')", "libiio0"),
        ("raise OSError('libiio.so.0: cannot open shared object file')", "libiio0"),
    ],
)
def test_a_missing_library_is_one_clear_error(tmp_path, monkeypatch, trouble, remedy):
    for name in ("iio", "adi"):
        (tmp_path / f"{name}.py").write_text(trouble)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RadioNotFound) as caught:
        pluto.connect("ip:127.0.0.1:1", None)
    assert remedy in caught.value.remedy
    assert pluto.discover() == []
    for name in ("iio", "adi"):
        sys.modules.pop(name, None)


class Stuck:
    """An attribute that takes what is written, or does not."""

    def __init__(self, value: str, sticks: bool = False) -> None:
        self._value, self._sticks = value, sticks

    @property
    def value(self) -> str:
        return self._value

    @value.setter
    def value(self, text: str) -> None:
        if not self._sticks:
            self._value = text


class Parts:
    """A context, device and channel in one, of the attributes that are muted."""

    def __init__(self, **attrs: Stuck) -> None:
        self.attrs, self.channels = attrs, [self]

    def find_device(self, name: str) -> "Parts":
        return self

    def find_channel(self, name: str, output: bool) -> "Parts":
        return self


@pytest.mark.parametrize("sticks", ["", "powerdown", "hardwaregain"])
def test_mute_believes_only_what_is_read_back(sticks):
    start = {"powerdown": "0", "hardwaregain": "-10.000000 dB", "raw": "1"}
    board = Parts(**{name: Stuck(value, name == sticks) for name, value in start.items()})
    if sticks:
        with pytest.raises(RadioError, match="the transmitter is not silent"):
            pluto._silence(board)
    else:
        pluto._silence(board)
        assert board.attrs["raw"].value == "0"  # the test tones, too


def test_another_pluto_under_the_same_number_is_not_taken(monkeypatch):
    plugged = {"usb:1.5.5": "aaa", "usb:1.7.5": "bbb"}
    asked = []

    class Opened(pluto.Device):
        def __init__(self, where):
            uri = where.uri or next(uri for uri, serial in plugged.items() if serial == where.serial)
            asked.append(uri)
            self.serial = plugged[uri]

    monkeypatch.setattr(pluto, "Device", Opened)
    assert pluto.reopen(pluto.address("usb:1.5.5"), "bbb").serial == "bbb"
    assert asked == ["usb:1.5.5", "usb:1.7.5"]


# --- through libiio ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def air() -> Iterator[PlutoAir]:
    made = PlutoAir(2, "ideal", **IDEAL)
    yield made
    made.close()


@pytest.fixture
def pair(air) -> Iterator[list[PlutoRadio]]:
    opened = [pluto.connect(f"{uri}?buffers=16", None) for uri in air.uris]  # test runners are slow hosts
    yield opened
    for each in opened:
        each.close()


def through_libiio(test):
    return parts.libiio(pytest.mark.realtime(test))


def arrival(samples: np.ndarray, sent: np.ndarray) -> int:
    """Where ``sent`` starts in ``samples``."""
    return int(np.argmax(np.abs(np.correlate(samples, sent, "valid"))))


@through_libiio
def test_it_opens_muted_and_mutes_again(air, pair):
    first = pair[0]
    told = first.capabilities
    assert told.serial == "1044" + 28 * "0" and told.tier is Tier.P0 and told.real_time and not told.one_timeline
    assert told.driver.startswith("pluto, firmware v0.38 (libiio 0.")
    assert not air.ask(0, "powered") and air.ask(0, "config")["tx_attenuation_db"] == 89.75
    assert first.configure(CONFIG).tx_attenuation_db == 10.0
    assert not air.ask(0, "powered") and air.ask(0, "config")["tx_attenuation_db"] == 89.75
    for _ in range(2):
        first.transmit(wave(100))
        assert air.ask(0, "powered") and air.ask(0, "config")["tx_attenuation_db"] == 10.0
        first.mute()
        assert not air.ask(0, "powered") and air.ask(0, "config")["tx_attenuation_db"] == 89.75


@through_libiio
def test_settings_reach_the_device_and_are_read_back(air, pair):
    taken = pair[0].configure(CONFIG)
    assert pair[0].temperature_c() == 36.842  # as in the dump of a real one
    told = air.ask(0, "config")
    assert {**vars(taken), "tx_attenuation_db": 89.75} == told
    assert taken == RadioConfig(1e6, 915e6, 915e6, 1e6, 40.0, 10.0) and air.ask(0, "manual_gain")
    faster = pair[0].configure(RadioConfig(3e6, 868e6, 868.3e6, 2e6, 20.0, 3.25))
    assert faster.rate_hz == pytest.approx(3e6, abs=2) and air.ask(0, "config")["rx_gain_db"] == 20.0
    assert pair[0].receive(10_000).rate_hz == faster.rate_hz
    with pytest.raises(RadioRefused, match=r"rx_hz 4e\+09 is outside 3.25e\+08 to 3.8e\+09"):
        pair[0].configure(RadioConfig(1e6, 915e6, 4e9, 1e6, 40.0))


@through_libiio
def test_the_count_of_kernel_buffers_reaches_the_device(air):
    opened = pluto.connect(f"{air.uris[0]}?block=2048&buffers=7", None)
    try:
        opened.configure(CONFIG)
        opened.receive(2048)
        assert (air.ask(0, "_tx_block"), air.ask(0, "_tx_buffers")) == (2048, 7)
        assert opened.capabilities.block_samples == 2048
    finally:
        opened.close()


@through_libiio
def test_bursts_arrive_on_their_index_and_at_their_level(air, pair):
    sender, hearer = pair
    taken = [each.configure(CONFIG) for each in pair]
    measure_offset(sender, 0)  # the first one imports what it needs, and the streams wait for the imports
    offset = measure_offset(sender, 1)
    assert measure_offset(sender, 2) == offset
    sent, apart = code(5)[:1500], set()
    for gap in (1, 4095, 5000, 12_345):
        begin = sender.newest(), hearer.newest()
        start = sender.earliest() + 2 * BLOCK + gap
        assert sender.transmit((0.1 * sent).astype(np.complex64), start).start == start
        own = sender.receive(150_000, begin[0])
        assert own.start + arrival(own.samples, sent) == start - offset
        far = hearer.receive(150_000, begin[1])
        at = arrival(far.samples, sent)
        apart.add(far.start + at - start)
        level = abs(np.vdot(sent, far.samples[at : at + len(sent)])) / len(sent)
        assert own.events == far.events == () and own.clipped == far.clipped == 0
        wanted = 0.1 * air.ask(0, "amplitude", 1, start)
        assert 20 * np.log10(level / wanted) == pytest.approx(0.0, abs=0.1)
    assert len(apart) == 1
    assert taken[0].tx_attenuation_db == 10.0


@through_libiio
def test_rails_are_counted_on_both_ends(pair):
    sender, hearer = pair
    for each in pair:
        each.configure(RadioConfig(1e6, 915e6, 915e6, 1e6, 73.0, 0.0))
    loud = wave(20_000, 0.9)
    loud[100:110] = 3.0 - 2.0j
    begin = hearer.newest()
    assert sender.transmit(loud).clipped == 10
    heard = hearer.receive(160_000, begin)
    assert 10_000 < heard.clipped <= 20_100
    assert np.abs(heard.samples.view(np.float32)).max() <= 1.0


@through_libiio
def test_full_duplex_at_two_megasamples_has_no_gap(air):
    both = [pluto.connect(f"{uri}?block=16384&buffers=16", None) for uri in air.uris]
    turns, seconds, piece = (0.0371, 0.0437), 5, 1 << 17
    try:
        taken = [each.configure(RadioConfig(2e6, 915e6, 915e6, 2e6, 30.0)) for each in both]
        begin = [each.newest() for each in both]
        heard: list[list[np.ndarray]] = [[], []]
        filled = [each.earliest() + 40 * 16384 for each in both]
        first = list(filled)
        for step in range(seconds * 2_000_000 // piece + 8):
            for number, each in enumerate(both):
                phase = turns[number] * np.arange(
                    filled[number] - first[number], filled[number] - first[number] + piece
                )
                tone = (0.3 * np.exp(2j * np.pi * (phase % 1.0))).astype(np.complex64)
                each.transmit(tone, filled[number])
                filled[number] += piece
            if step:
                for number, each in enumerate(both):
                    got = each.receive(piece, begin[number])
                    assert got.events == ()
                    begin[number] += piece
                    heard[number].append(got.samples)
        for number, hears in ((0, 1), (1, 0)):
            samples = np.concatenate(heard[hears])
            turned = samples * np.exp(-2j * np.pi * ((turns[number] * np.arange(samples.size)) % 1.0))
            mean = turned[: turned.size // 1024 * 1024].reshape(-1, 1024).mean(axis=1)
            on = mean[np.abs(mean) > 0.5 * np.median(np.abs(mean))][2:-2]
            assert on.size * 1024 > (seconds - 0.5) * 2e6
            # one sample lost or doubled would turn all that follows by 0.23 rad or more
            assert np.abs(np.angle(on / on[0])).max() < 0.05
        assert taken[0].rate_hz == pytest.approx(2e6, abs=2)
    finally:
        for each in both:
            each.close()


@through_libiio
@pytest.mark.parametrize(("fault", "lasts_s"), [("unplug", 1.0), ("stall", 2.0)])
def test_a_fault_is_told_with_its_index_and_healed(air, pair, fault, lasts_s):
    first = pair[0]
    first.configure(CONFIG)
    first.transmit(wave(100))
    first.receive(BLOCK)
    begin = time.monotonic()
    air.ask(0, fault, lasts_s)
    with pytest.raises(RadioError, match=r"stopped at RX index \d+"):
        first.receive(1 << 22)
    assert time.monotonic() - begin < 1.5
    with pytest.raises(RadioError, match=r"stopped at RX index \d+"):
        first.transmit(wave(100))
    while True:
        try:
            got = first.receive(BLOCK)
            break
        except RadioError:
            assert time.monotonic() - begin < 10.0
            time.sleep(0.05)
    assert [event.kind for event in got.events] == ["lost"]
    assert not air.ask(0, "powered") and air.ask(0, "manual_gain")
    assert air.ask(0, "config") == {**vars(first.configure(CONFIG)), "tx_attenuation_db": 89.75}
    measure_offset(first, 4)  # both directions work again
    assert air.ask(0, "powered")


@through_libiio
def test_a_lost_block_of_the_host_is_told_by_counting(air, monkeypatch):
    sleepy = pluto.connect(air.uris[0], None)
    try:
        sleepy.configure(CONFIG)
        sleepy.receive(2_500_000)
        refill, slept = pluto.Block.refill, []

        def dozes(self):
            if not slept:
                slept.append(time.sleep(0.2))
            refill(self)

        monkeypatch.setattr(pluto.Block, "refill", dozes)
        got = sleepy.receive(500_000)
        lost = [event for event in got.events if event.kind == "lost"]
        assert len(lost) == 1 and lost[0].count == pytest.approx(0.2e6, abs=0.05e6)
        assert not got.samples[lost[0].index - got.start :][: lost[0].count].any()
    finally:
        sleepy.close()


@through_libiio
def test_silence_from_another_process_is_fast_and_seen_by_the_device(air):
    owner = pluto.connect(air.uris[1], None)
    try:
        owner.configure(CONFIG)
        owner.transmit(wave(100))
        assert air.ask(1, "powered")
        begin = time.monotonic()
        pluto.silence(air.uris[1])
        assert time.monotonic() - begin < 0.5
        assert not air.ask(1, "powered") and air.ask(1, "config")["tx_attenuation_db"] == 89.75
    finally:
        owner.close()


ENDINGS = {
    "an exception": ("raise ValueError('stop here')", 1),
    "an exit code": ("sys.exit(7)", 7),
    "the end": ("", 0),
    "a cycle": ("opened.me = opened; frame = sys._getframe(); raise ValueError", 1),
    "a thread that fails": ("threading.Thread(target=lambda: 1 / 0).start(); sys.exit(9)", 9),
}


@through_libiio
@pytest.mark.parametrize("ending", list(ENDINGS))
def test_a_program_that_ends_with_the_radio_open_ends_with_its_own_code(air, ending):
    last, wanted = ENDINGS[ending]
    lines = (
        "import sys, threading, numpy as np",
        "from radio import pluto",
        "from radio.base import RadioConfig",
        f"opened = pluto.connect({air.uris[0]!r}, None)",
        f"opened.configure(RadioConfig(*{tuple(vars(CONFIG).values())}))",
        "opened.transmit(np.full(100_000, 0.1, np.complex64))",
        "opened.receive(10_000)",
        last,
    )
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == wanted, ended.stderr  # a context taken down before its buffers ends with -11
    assert not air.ask(0, "powered")


@parts.libiio
def test_nobody_there_is_told_with_what_was_found():
    with pytest.raises(RadioNotFound, match=r"no Pluto answers at ip:127\.0\.0\.1:1: Connection refused"):
        pluto.connect("ip:127.0.0.1:1", None)
    with pytest.raises(RadioNotFound, match="no Pluto has serial 1044nothere; found"):
        pluto.connect("serial=1044nothere", None)


@parts.libiio
def test_usb_is_searched_where_the_network_cannot_be(monkeypatch):
    iio, _ = pluto.libraries()
    assert isinstance(pluto._scan_usb(iio), dict)

    def no_avahi():
        raise OSError(26, "Text file busy")

    monkeypatch.setattr(iio, "scan_contexts", no_avahi)
    monkeypatch.setattr(pluto, "_scan_usb", lambda _: {"usb:1.5.5": "(PlutoSDR (ADALM-PLUTO)), serial=1044abc"})
    assert pluto.scan() == {"usb:1.5.5": "1044abc"}


@through_libiio
def test_a_serial_is_found_by_scanning_and_listed(air, monkeypatch):
    iio, _ = pluto.libraries()
    text = "192.168.2.1 (Analog Devices PlutoSDR Rev.C (Z7010-AD9363A)), serial={}"
    found = {air.uris[number]: text.format(f"1044{number:028x}") for number in range(2)}
    monkeypatch.setattr(iio, "scan_contexts", lambda: {**found, "usb:1.2.3": "some other device"})
    opened = pluto.connect(f"serial=1044{1:028x}?reference=external", None)
    assert opened.capabilities.serial.endswith("1") and opened.capabilities.tier is Tier.P3
    assert opened.capabilities.shared_reference
    opened.close()
    listed = pluto.discover()
    assert [(each.uri, each.serial, each.tier) for each in listed] == [
        (f"pluto:{uri}", f"1044{number:028x}", Tier.P0) for number, uri in enumerate(air.uris)
    ]
    assert all(each.detail["firmware"] for each in listed)


@through_libiio
def test_it_is_a_radio_like_any_other(air):
    cabled = radio.PROFILES["conducted"].model_copy(update={"attenuation_db": 60.0})
    with radio.SafeRadio(pluto.connect(air.uris[0], None), cabled) as opened:
        assert isinstance(opened, radio.Radio)
        opened.configure(CONFIG)
        before = opened.now()
        assert opened.configure(CONFIG) and opened.now() == before
        got = opened.receive(777, before + 5000)
        assert (got.start, opened.now()) == (before + 5000, before + 5777)
        with pytest.raises(RadioRefused):
            opened.receive(10, before)
        report = opened.transmit(wave(3000), opened.earliest() + BLOCK)
        assert opened.earliest() >= report.start + 3000
    with pytest.raises(RadioError):
        opened.receive(1)
