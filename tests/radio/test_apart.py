"""A driver in a process of its own: what it says arrives, and neither side's death leaves the other one behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from radio.airserver import EtherServer
from radio.apart import ApartRadio
from radio.base import RadioConfig
from radio.errors import RadioError, RadioNotFound, RadioRefused, TooLate
from radio.ether import Ether
from radio.presets import preset

CONFIG = RadioConfig(1e6, 915e6, 915e6, 1e6, 50.0)
BURST = np.full(2000, 0.1, np.complex64)


@pytest.fixture
def air():
    server = EtherServer(Ether(preset("pluto-stock", seed=1), ["server", "n"]), "tcp://127.0.0.1:0")
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.stop()
    thread.join()


def muted(air) -> bool:
    station = air._ether._stations["n"]
    return station.muted and not station.opened


def until(what, seconds=5.0):
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    assert what()


def test_numbers_samples_and_refusals_arrive_as_they_are(air):
    apart = ApartRadio(f"loopback:{air.address}/n")
    taken = apart.configure(CONFIG)
    assert taken.rate_hz == 1e6 and apart.capabilities.serial == "loopback-n"
    report = apart.transmit(BURST, apart.earliest() + 8192)
    with pytest.raises(TooLate) as caught:
        apart.transmit(BURST, report.start)
    assert caught.value.late_samples == apart.earliest() - report.start
    with pytest.raises(RadioRefused, match="rx_gain_db = 1000"):
        apart.configure(RadioConfig(1e6, 915e6, 915e6, 1e6, 1000.0))
    capture = apart.receive(5000, apart.now() + 100)
    assert capture.samples.dtype == np.complex64 and capture.samples.any()
    assert apart.newest() == apart.now() == capture.start + 5000
    apart.close()
    apart.close()
    with pytest.raises(RadioError, match="closed"):
        apart.now()
    assert muted(air)


def test_what_cannot_be_opened_says_why_and_leaves_no_process(air):
    with pytest.raises(RadioNotFound, match="no radio 'nobody'"):
        ApartRadio(f"loopback:{air.address}/nobody")


def test_a_crashed_driver_is_an_error_with_its_code(air):
    apart = ApartRadio(f"loopback:{air.address}/n")
    apart.configure(CONFIG)
    os.kill(apart.process.pid, signal.SIGSEGV)
    with pytest.raises(RadioError, match="ended with code -11"):
        apart.receive(10)
    with pytest.raises(RadioError):
        apart.close()
    apart.close()


def test_a_killed_owner_leaves_a_muted_radio_and_no_process(air):
    program = (
        "import sys, time, numpy as np\n"
        "from radio.apart import ApartRadio\n"
        "from radio.base import RadioConfig\n"
        "r = ApartRadio(sys.argv[1])\n"
        "r.configure(RadioConfig(1e6, 915e6, 915e6, 1e6, 50.0))\n"
        "r.transmit(np.full(2000, 0.1, np.complex64), None)\n"
        "print(r.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, f"loopback:{air.address}/n"], stdout=subprocess.PIPE, text=True
    )
    driver = int(owner.stdout.readline())
    assert not muted(air)
    owner.kill()
    owner.wait()
    until(lambda: muted(air), 1.0)
    until(lambda: not os.path.exists(f"/proc/{driver}") or _ended(driver))


def _ended(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"
