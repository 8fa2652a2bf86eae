"""Streams a virtual Pluto in both directions for minutes through the real libiio, and checks every sample's place.

A tone is sent without pause, in bursts that touch, and heard through the radio's own leakage: both run off one crystal,
so a sample lost or doubled anywhere turns the phase of all that follows by 0.23 rad or more. Usage:
``python benchmarks/soak.py [SECONDS]``.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from radio import pluto
from radio.base import RadioConfig
from tests.pluto_air import PlutoAir

RATE_HZ, PIECE, TURN = 2e6, 1 << 18, 0.0371  # TURN: cycles per sample of the tone


def resident_mb() -> float:
    """Give this process's memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main(seconds: float) -> None:
    """Stream, and print what happened."""
    air = PlutoAir(1, "ideal", self_leak_db=-55.0, seed=3)
    radio = pluto.connect(f"{air.uris[0]}?block=16384&buffers=16", None)
    try:
        radio.configure(RadioConfig(RATE_HZ, 915e6, 915e6, 2e6, 40.0))
        filled = first = radio.earliest() + 40 * 16384
        begin = radio.newest()
        phases, events, marks, received = [], [], [], 0
        started_s = time.monotonic()
        while received < seconds * RATE_HZ:
            turns = TURN * np.arange(filled - first, filled - first + PIECE, dtype=np.float64)
            radio.transmit((0.3 * np.exp(2j * np.pi * (turns % 1.0))).astype(np.complex64), filled)
            filled += PIECE
            if len(phases) == 0 and filled - first < 4 * PIECE:
                continue
            got = radio.receive(PIECE, begin)
            begin += PIECE
            events += got.events
            turned = got.samples * np.exp(-2j * np.pi * ((TURN * np.arange(received, received + PIECE)) % 1.0))
            received += PIECE
            phases.append(turned.reshape(-1, 4096).mean(axis=1))
            if received // int(RATE_HZ * 10) > len(marks):
                marks.append(resident_mb())
        mean = np.concatenate(phases)
        on = mean[np.abs(mean) > 0.5 * np.median(np.abs(mean))][2:]
        elapsed_s = time.monotonic() - started_s
        print(f"received {received / 1e6:.0f} M samples in {elapsed_s:.1f} s, sent {(filled - first) / 1e6:.0f} M")
        print(f"events: {len(events)} {[str(event) for event in events[:5]]}")
        turn = float(np.abs(np.angle(on / on[0])).max())
        print(f"largest turn of the tone: {turn:.4f} rad over {on.size * 4096 / 1e6:.0f} M samples")
        print(f"memory: {marks[0]:.1f} MB after 10 s, {marks[-1]:.1f} MB at the end, {max(marks):.1f} MB at most")
        print(f"air: overflowed {air.ask(0, 'overflowed')}, underflowed {air.ask(0, 'underflowed')}")
    finally:
        radio.close()
        air.close()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 600.0)
