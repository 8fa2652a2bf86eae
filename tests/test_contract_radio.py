"""What every radio must do, whatever its driver: one file of tests over a list of ways to open a radio.

A driver joins by adding a factory to FACTORIES: a context manager that yields a radio and settings for it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest

import radio
from radio.airserver import EtherServer
from radio.errors import RadioError, RadioRefused, TooLate, UnsafeTransmit
from radio.ether import Ether
from radio.presets import preset

CONFIG = radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 50.0)
Opened = AbstractContextManager[tuple[radio.SafeRadio, radio.RadioConfig]]


def in_process(name: str) -> Callable[[], Opened]:
    @contextmanager
    def make() -> Iterator[tuple[radio.SafeRadio, radio.RadioConfig]]:
        ether = Ether(preset(name, seed=1), ["server", "n"])
        with radio.open("loopback:n", radio.PROFILES["conducted"], ether=ether) as opened:
            yield opened, CONFIG

    return make


def over_tcp(name: str) -> Callable[[], Opened]:
    @contextmanager
    def make() -> Iterator[tuple[radio.SafeRadio, radio.RadioConfig]]:
        server = EtherServer(Ether(preset(name, seed=1), ["server", "n"]), "tcp://127.0.0.1:0")
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            with radio.open(f"loopback:{server.address}/n", radio.PROFILES["conducted"]) as opened:
                yield opened, CONFIG
        finally:
            server.stop()
            thread.join()

    return make


FACTORIES: dict[str, Callable[[], Opened]] = {
    "loopback ideal": in_process("ideal"),
    "loopback pluto-stock": in_process("pluto-stock"),
    "loopback pluto-shared-clock": in_process("pluto-shared-clock"),
    "loopback usrp-free": in_process("usrp-free"),
    "loopback usrp-ref": in_process("usrp-ref"),
    "loopback over tcp, pluto-stock": over_tcp("pluto-stock"),
    "loopback over tcp, usrp-ref": over_tcp("usrp-ref"),
}


@pytest.fixture(params=list(FACTORIES))
def fresh(request: pytest.FixtureRequest) -> Iterator[tuple[radio.SafeRadio, radio.RadioConfig]]:
    with FACTORIES[request.param]() as made:
        yield made


@pytest.fixture
def ready(fresh) -> radio.SafeRadio:
    fresh[0].configure(fresh[1])
    return fresh[0]


def wave(count: int, size: float = 0.01) -> np.ndarray:
    return (size * np.exp(0.3j * np.arange(count))).astype(np.complex64)


def test_it_is_a_radio(ready):
    assert isinstance(ready, radio.Radio)
    told = ready.capabilities
    assert told.serial and told.driver and isinstance(told.tier, radio.Tier)
    assert told.max_rate_hz > 0 and told.turnaround_samples >= 0 and told.block_samples > 0


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
    early = ready.earliest()
    report = ready.transmit(wave(3000), early + 4096)
    assert (report.start, report.count, report.clipped) == (early + 4096, 3000, 0)
    assert ready.earliest() >= early + 4096 + 3000
    late = ready.earliest() - 1
    with pytest.raises(TooLate) as caught:
        ready.transmit(wave(100), late)
    assert caught.value.late_samples >= 1
    as_soon = ready.transmit(wave(100))
    assert as_soon.start >= late + 1
    moved = ready.earliest()
    ready.receive(60_000)
    assert ready.earliest() >= moved


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
    with pytest.raises(RadioError):
        ready.transmit(wave(100))
