"""The server's slot clock against the counts of radios on a common pulse."""

import pytest

from radio.cell import Cell
from radio.cycle import layout, sounding_samples
from radio.ether import Ether
from radio.loopback import LoopbackRadio
from radio.ofdm import PROFILES
from radio.presets import preset
from radio.serverlink import ServerLink

NAMES = ["node-1", "node-2"]


def opened(name, profile):
    ether = Ether(preset(name, snr_db=30.0, seed=1), ["server", *NAMES])
    return ServerLink(LoopbackRadio("server", ether), profile, 50.0, 1), ether


def test_a_count_from_another_second_is_told_and_a_right_one_is_not():
    profile = PROFILES["usrp-ref"]
    link, _ = opened("usrp-ref", profile)
    link.open()
    cycle, slot = layout(profile, 1000, 3, 5000), link.next_slot()
    start = link.origin + slot * profile.slot_samples + cycle.burst_at + sounding_samples(profile)
    right = start + profile.guard_samples + 60
    assert link.off_time(slot, cycle, 1, right) == ""
    assert "+1.000012 s off" in link.off_time(slot, cycle, 1, right + round(profile.rate_hz))
    assert "-2.999988 s off" in link.off_time(slot, cycle, 1, right - 3 * round(profile.rate_hz))


def test_free_running_radios_have_no_common_count():
    link, _ = opened("pluto-stock", PROFILES["pluto-915"])
    link.open()
    assert link.off_time(5, layout(link.profile, 1000, 3, 5000), 0, 10**9) == ""


@pytest.mark.parametrize("place", [0, 1])
def test_nodes_on_the_pulse_sound_where_the_server_counts(place):
    profile = PROFILES["usrp-ref"]
    ether = Ether(preset("usrp-ref", snr_db=30.0, seed=1), ["server", *NAMES])
    cell = Cell(LoopbackRadio("server", ether), {n: LoopbackRadio(n, ether) for n in NAMES}, profile, "C")
    cell.open()
    sent = []
    transmit = cell.links[NAMES[place]].radio.transmit
    cell.links[NAMES[place]].radio.transmit = lambda samples, start: sent.append(start) or transmit(samples, start)
    first = cell.link.next_slot
    slots = []
    cell.link.next_slot = lambda: slots.append(first()) or slots[-1]
    assert cell.join() == {}
    cycle = layout(profile, cell.lead_samples, cell.before, 2 * sounding_samples(profile))
    assert cell.link.off_time(slots[1], cycle, place, sent[0]) == ""
    assert "off the server's" in cell.link.off_time(slots[1] + 1, cycle, place, sent[0]), "a slot is 10 ms"
