"""Compiles the inner loops before anybody waits for them, on a throwaway air; knows which paths a run takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radio.base import RadioConfig
from radio.beacon import acquire, beacon
from radio.ether import Ether
from radio.loopback import LoopbackRadio
from radio.ofdm import PROFILES, Profile
from radio.presets import EtherOptions
from radio.search import search


def warm_receiver(profile: Profile) -> None:
    """Find one beacon in silence, so that every part of the search is loaded."""
    quiet = np.zeros(profile.slot_samples, np.complex64)
    acquire(np.concatenate([quiet, beacon(profile, 0), quiet]), profile)


def warm(options: EtherOptions, names: Sequence[str]) -> None:
    """Send one burst from the second radio to the first one, and search it for beacons.

    The compiler takes ten seconds on the first run after installation and keeps its work on disk. Done once, by the
    process that starts first, every node finds it there.

    Args:
        options: the simulated air, so that the loops of its impairments are among those compiled.
        names: of its radios.
    """
    world, profile = Ether(options, list(names)), PROFILES["pluto-915"]
    wanted = RadioConfig(profile.rate_hz, profile.carrier_hz, profile.carrier_hz, profile.bandwidth_hz, 60.0)
    radios = [LoopbackRadio(name, world) for name in names[:2]]
    for radio in radios:
        radio.configure(wanted)
    radios[-1].transmit(np.full(profile.slot_samples, 0.1, np.complex64), None)
    search(radios[0].receive(4 * profile.slot_samples, None).samples, profile)
    for radio in radios:
        radio.close()
