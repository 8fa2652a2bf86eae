"""What every radio must do, whatever its driver: one file of tests over a list of ways to open a radio.

A driver joins by adding a factory to FACTORIES: a context manager that yields a radio and settings for it. Drivers of
hardware stand in REAL_TIME as well: their samples flow whether or not anybody asks. Radios whose libraries want an
environment of their own take the tests from here and bring fixtures.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import parts
import pytest
from pluto_air import PlutoAir

import radio
from radio.airserver import EtherServer
from radio.base import EventKind
from radio.capture import About, write
from radio.errors import RadioError, RadioRefused, TestbedError, TooLate, UnsafeTransmit
from radio.ether import Ether
from radio.presets import preset
from radio.timeline import measure_offset

CONFIG = radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 50.0)
SAFE = radio.PROFILES["conducted"].model_copy(update={"attenuation_db": 60.0})
Opened = AbstractContextManager[tuple[radio.SafeRadio, radio.RadioConfig]]


def in_process(name: str) -> Callable[[], Opened]:
    @contextmanager
    def make() -> Iterator[tuple[radio.SafeRadio, radio.RadioConfig]]:
        ether = Ether(preset(name, seed=1), ["server", "n"])
        with radio.open("loopback:n", SAFE, ether=ether) as opened:
            yield opened, CONFIG

    return make


def over_tcp(name: str, apart: bool = False) -> Callable[[], Opened]:
    @contextmanager
    def make() -> Iterator[tuple[radio.SafeRadio, radio.RadioConfig]]:
        server = EtherServer(Ether(preset(name, seed=1), ["server", "n"]), "tcp://127.0.0.1:0")
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            with radio.open(f"loopback:{server.address}/n", SAFE, apart=apart) as opened:
                yield opened, CONFIG
        finally:
            server.stop()
            thread.join()

    return make


@contextmanager
def replayed() -> Iterator[tuple[radio.SafeRadio, radio.RadioConfig]]:
    with tempfile.TemporaryDirectory() as folder, in_process("pluto-stock")() as (source, config):
        taken = source.configure(config)
        captures = (source.receive(100_000) for _ in range(5))
        path = write(Path(folder) / "it.sigmf-meta", captures, About(taken, source.capabilities))
        with radio.open(f"replay:{path}", SAFE) as opened:
            yield opened, taken


@contextmanager
def virtual_pluto() -> Iterator[tuple[radio.SafeRadio, radio.RadioConfig]]:
    air = PlutoAir(2, "pluto-stock", seed=1)
    try:
        with radio.open(f"pluto:{air.uris[1]}", SAFE) as opened:
            yield opened, CONFIG
    finally:
        air.close()


FACTORIES: dict[str, Callable[[], Opened]] = {
    "loopback ideal": in_process("ideal"),
    "loopback pluto-stock": in_process("pluto-stock"),
    "loopback pluto-shared-clock": in_process("pluto-shared-clock"),
    "loopback usrp-free": in_process("usrp-free"),
    "loopback usrp-ref": in_process("usrp-ref"),
    "loopback over tcp, pluto-stock": over_tcp("pluto-stock"),
    "loopback over tcp, usrp-ref": over_tcp("usrp-ref"),
    "loopback over tcp, in a process of its own": over_tcp("pluto-stock", apart=True),
    "replay": replayed,
    "virtual pluto": virtual_pluto,
}
REAL_TIME = {"virtual pluto": (pytest.mark.realtime, parts.libiio)}
#: Hear their own transmitter through its leakage.
HEARING = FACTORIES.keys() - {"loopback ideal", "replay"}


def named(*names: str) -> list[object]:
    return [pytest.param(name, marks=REAL_TIME.get(name, ())) for name in names]


@pytest.fixture(params=named(*FACTORIES))
def fresh(request: pytest.FixtureRequest) -> Iterator[tuple[radio.SafeRadio, radio.RadioConfig]]:
    with FACTORIES[request.param]() as made:
        yield made


@pytest.fixture
def ready(fresh) -> radio.SafeRadio:
    fresh[0].configure(fresh[1])
    return fresh[0]


@pytest.fixture(params=named(*REAL_TIME))
def flowing(request: pytest.FixtureRequest) -> Iterator[radio.SafeRadio]:
    with FACTORIES[request.param]() as (opened, config):
        opened.configure(config)
        yield opened


@pytest.fixture(params=named(*sorted(HEARING)))
def hearing(request: pytest.FixtureRequest) -> Iterator[radio.SafeRadio]:
    with FACTORIES[request.param]() as (opened, config):
        opened.configure(config)
        yield opened


def ahead(opened: radio.SafeRadio) -> int:
    """Give a TX index that can be met by a host that is busy for a moment."""
    return opened.earliest() + (200_000 if opened.capabilities.real_time else 4096)


def wave(count: int, size: float = 0.01) -> np.ndarray:
    return (size * np.exp(0.3j * np.arange(count))).astype(np.complex64)


def test_it_is_a_radio(ready):
    assert isinstance(ready, radio.Radio)
    told = ready.capabilities
    assert told.serial and told.driver and isinstance(told.tier, radio.Tier)
    assert told.max_rate_hz > 0 and told.turnaround_samples >= 0 and told.block_samples > 0
    temperature_c = ready.temperature_c()
    assert temperature_c is None or 0 < temperature_c < 100


def test_settings_are_needed_first(fresh):
    opened, _ = fresh
    with pytest.raises(RadioError):
        opened.receive(10)
    with pytest.raises(UnsafeTransmit):
        opened.transmit(wave(10))


def test_configure_reads_back_and_is_idempotent(fresh):
    opened, config = fresh
    taken = opened.configure(config)
    assert taken.rate_hz == pytest.approx(config.rate_hz, rel=1e-6)
    assert taken.tx_hz == pytest.approx(config.tx_hz, abs=5) and taken.rx_hz == pytest.approx(config.rx_hz, abs=5)
    assert taken.rx_gain_db == pytest.approx(config.rx_gain_db, abs=1)
    before = opened.now()
    assert opened.configure(taken) == taken
    assert opened.now() == before
    with pytest.raises(RadioRefused):
        opened.configure(radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 1000.0))
    assert opened.configure(taken) == taken


def test_receive_counts_samples(ready):
    begin = ready.now()
    one = ready.receive(1000)
    two = ready.receive(777, begin + 5000)
    assert (one.start, one.samples.shape, one.samples.dtype) == (begin, (1000,), np.complex64)
    assert (two.start, ready.now(), two.rate_hz) == (begin + 5000, begin + 5777, one.rate_hz)
    assert np.isfinite(one.samples).all() and one.samples.any()
    with pytest.raises(RadioRefused):
        ready.receive(10, begin)
    assert ready.receive(0).samples.size == 0


def test_transmit_keeps_to_its_time(ready):
    begin = ahead(ready)
    report = ready.transmit(wave(3000), begin)
    assert (report.start, report.count, report.clipped) == (begin, 3000, 0)
    assert ready.earliest() >= begin + 3000
    late = ready.earliest() - 1
    with pytest.raises(TooLate) as caught:
        ready.transmit(wave(100), late)
    assert caught.value.late_samples >= 1
    as_soon = ready.transmit(wave(100))
    assert as_soon.start >= late + 1
    moved = ready.earliest()
    ready.receive(60_000)
    assert ready.earliest() >= moved


def test_bursts_neither_overlap_nor_go_back_in_time(ready):
    first = ready.transmit(wave(3000), ahead(ready))
    for start, least in ((first.start + 100, 2900), (first.start - 1_000_000, 1_000_000), (-(10**12), 10**12)):
        with pytest.raises(TooLate) as caught:
            ready.transmit(wave(100), start)
        assert caught.value.late_samples >= least
    assert ready.transmit(wave(100), ahead(ready)).events == ()  # a refusal spoils nothing


def test_receive_reaches_into_the_future(ready):
    begin = ready.newest() + 30_000
    assert begin >= ready.now() + 30_000
    taken = ready.receive(1000, begin)
    assert (taken.start, taken.samples.size, ready.now()) == (begin, 1000, begin + 1000)
    assert ready.newest() >= ready.now()


def test_events_lie_in_the_capture_they_spoil(ready):
    for _ in range(5):
        taken = ready.receive(20_000)
        for event in taken.events:
            assert event.kind in get_args(EventKind)
            assert event.index < taken.start + 20_000 and event.index + max(event.count, 1) > taken.start


def test_transmit_settings_are_read_back_and_disturb_no_stream(ready):
    before = ready.receive(100)
    taken = ready.configure(replace(CONFIG, tx_attenuation_db=20.1))
    assert taken.tx_attenuation_db == pytest.approx(20.1, abs=0.26)
    assert ready.configure(taken) == taken
    assert (taken.rate_hz, taken.rx_gain_db) == pytest.approx((CONFIG.rate_hz, CONFIG.rx_gain_db))
    assert ready.now() >= before.start + 100
    with pytest.raises(RadioRefused):
        ready.receive(10, before.start)


def test_clipping_is_counted_not_wrapped(ready):
    loud = wave(1000, 0.5)
    loud[100:110] = 3.0 - 2.0j
    assert ready.transmit(loud).clipped == 10


def test_wrong_samples_are_refused(ready):
    for bad in (np.zeros(10), np.zeros((2, 10), np.complex64), np.array([0.1, np.inf], np.complex64)):
        with pytest.raises(RadioError):
            ready.transmit(bad)


def test_band_outside_the_profile_is_denied(ready):
    with pytest.raises(UnsafeTransmit):
        ready.configure(radio.RadioConfig(1e6, 500e6, 915e6, 1e6, 50.0))


def test_mute_and_close_may_be_repeated(ready):
    ready.transmit(wave(100))
    ready.mute()
    ready.mute()
    ready.transmit(wave(100))
    ready.close()
    ready.close()
    for use in (lambda: ready.transmit(wave(100)), lambda: ready.receive(10), lambda: ready.configure(CONFIG)):
        with pytest.raises(TestbedError):
            use()


def tone_heard(opened: radio.SafeRadio, start: int) -> tuple[float, bool]:
    """Measure the amplitude of ``wave`` in 19800 samples of the radio's own receiver, and whether any were spoiled."""
    taken = opened.receive(19_800, start + 100)
    amplitude = abs(np.vdot(wave(19_800, 1.0), taken.samples)) / 19_800
    return float(amplitude), bool(taken.events)


def test_muting_silences_what_is_pending_and_the_next_burst_is_on_the_air_again(hearing):
    offset = measure_offset(hearing, 7)
    first = hearing.transmit(wave(20_000, 0.1), ahead(hearing))
    loud, _ = tone_heard(hearing, first.start - offset)
    dropped = hearing.transmit(wave(20_000, 0.1), ahead(hearing))
    hearing.mute()
    silent, _ = tone_heard(hearing, dropped.start - offset)
    again = hearing.transmit(wave(20_000, 0.1), ahead(hearing))
    assert silent < 0.05 * loud
    assert tone_heard(hearing, again.start - offset)[0] == pytest.approx(loud, rel=0.1)


def test_time_goes_on_by_itself(flowing):
    rate_hz = flowing.receive(100).rate_hz
    begin, now, began_s = flowing.newest(), flowing.now(), time.monotonic()
    time.sleep(0.5)
    flowed, passed_s = flowing.newest() - begin, time.monotonic() - began_s
    block = 2 * flowing.capabilities.block_samples
    assert flowed == pytest.approx(passed_s * rate_hz, abs=0.05 * rate_hz + block)
    assert flowing.now() == now  # nothing is taken from a reader that comes late
    assert flowing.receive(1000).start == now
    waited_s = time.monotonic()
    flowing.receive(1000, flowing.newest() + round(0.3 * rate_hz))
    assert time.monotonic() - waited_s == pytest.approx(0.3, abs=0.2)


def test_an_index_is_an_instant(flowing):
    """A late reader gets what was there at the time, or is told that it is spoiled."""
    for _ in range(5):
        offset = measure_offset(flowing, 7)
        report = flowing.transmit(wave(20_000, 0.1), ahead(flowing))
        begin = report.start - offset
        while flowing.newest() < begin + 400_000:
            time.sleep(0.05)
        then, spoiled = tone_heard(flowing, begin)
        after, spoiled_too = tone_heard(flowing, begin + 30_000)
        gaps = flowing.transmit(wave(100), ahead(flowing)).events  # what became of the stream that carried the burst
        if not (spoiled or spoiled_too or gaps):
            assert then > 20 * after
            return
    pytest.fail("five of five bursts were spoiled: this machine is too busy for 1 MS/s")


def test_one_thread_sends_while_another_receives(flowing):
    sent: list[radio.TxReport] = []

    def send() -> None:
        for _ in range(20):
            sent.append(flowing.transmit(wave(500), ahead(flowing)))

    thread = threading.Thread(target=send)
    thread.start()
    begin = flowing.now()
    taken = [flowing.receive(50_000) for _ in range(10)]
    thread.join()
    assert [each.start for each in taken] == [begin + 50_000 * number for number in range(10)]
    assert all(before.start + 500 <= after.start for before, after in pairwise(sent))
    assert len(sent) == 20


def test_closing_ends_a_wait(flowing):
    ended: list[Exception] = []

    def wait() -> None:
        try:
            flowing.receive(1000, flowing.newest() + 60_000_000)
        except RadioError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    flowing.close()
    thread.join(3.0)
    assert not thread.is_alive() and len(ended) == 1
