"""The process that draws figures meanwhile: it draws what the report would, may die, and outlives nobody."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from calibration.report import SECTIONS, draw
from testbed.artist import Artist

#: Starts an artist and says which process it is; spawned processes import no main module that came by ``-c``.
ALONE = """
import signal
import time
from multiprocessing import active_children
from testbed.artist import Artist
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without
with Artist() as artist:
    artist.draw("noise", [], None)
    artist.pictures()
    print(active_children()[0].pid, flush=True)
    time.sleep(60)
"""


def test_an_artist_draws_what_the_report_would(calibrated, recording, tmp_path) -> None:
    results, burst = calibrated(3), recording(tmp_path)
    with Artist() as artist:
        for step in SECTIONS:
            artist.draw(step, results, burst)
        drawn = artist.pictures()
    assert drawn == {step: draw(step, results, burst) for step in SECTIONS}
    assert sum(len(pictures) for pictures in drawn.values()) > 20


def test_what_a_dead_artist_leaves_undone_is_missing(calibrated) -> None:
    results = calibrated(3)
    with Artist() as artist:
        artist.draw("noise", results, None)
        assert set(artist.pictures()) == {"noise"}
        for process in active_children():
            process.kill()
        artist.draw("level", results, None)
        assert set(artist.pictures()) == {"noise"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_artist_ends_with_whoever_started_it(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", ALONE], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        artist = Path("/proc") / owner.stdout.readline().strip()
        assert (artist / "stat").read_text().split()[18] == "19"  # its nice value: it gives way to every other
        os.kill(owner.pid, number)
        owner.wait(10)
    for _ in range(100):
        if not artist.exists():
            return
        time.sleep(0.05)
    raise AssertionError("the artist lives on")
