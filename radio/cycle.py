"""When things happen on the air: beacons, then one burst, counted in server samples; knows no radio and no process.

A cycle starts at a slot. Beacons stand at the starts of its first slots. The burst follows when every node had time to
turn the last of the ``before`` beacons into samples; the beacons in between keep the trackers fed for the next cycle.
"""

from __future__ import annotations

from dataclasses import dataclass

from radio.ofdm import Profile

#: Host time in seconds between a node's last beacon and its transmit order, beyond the radio's own turnaround.
COMPUTE_S = 0.5e-3


@dataclass(frozen=True)
class Cycle:
    """One cycle in server samples from its first slot.

    Attributes:
        before: beacons that a node uses for this cycle's burst.
        beacons: all beacons of the cycle, at the starts of slots 0..beacons-1.
        burst_at: sample at which the burst's first symbol should reach the server.
        slots: length of the cycle in slots.
    """

    before: int
    beacons: int
    burst_at: int
    slots: int


def layout(profile: Profile, lead_samples: int, before: int, length_samples: int) -> Cycle:
    """Lay out a cycle for the slowest node.

    Args:
        profile: waveform.
        lead_samples: longest ``Capabilities.lead_samples`` among the nodes.
        before: beacons to track ahead of the burst, at least 1.
        length_samples: length of the burst, or of the sounding window.
    """
    guard = profile.guard_samples
    heard = (before - 1) * profile.slot_samples + profile.beacon_samples + guard
    burst_at = heard + lead_samples + int(COMPUTE_S * profile.rate_hz) + guard
    room = burst_at - guard - profile.beacon_samples - guard
    beacons = max(before, room // profile.slot_samples + 1)
    slots = -(-(burst_at + length_samples + guard) // profile.slot_samples)
    return Cycle(before=before, beacons=beacons, burst_at=burst_at, slots=slots)


def sounding_samples(profile: Profile) -> int:
    """Length of one node's place in a sounding window: two pilot symbols and a guard on either side."""
    return 2 * profile.symbol_samples + 2 * profile.guard_samples
