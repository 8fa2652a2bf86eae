"""Sounding of nodes: who is due and why, the order on the air, and what comes of it; knows no update and no round."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from calibration import refuse_coherent
from radio.cycle import Cycle, layout, sounding_samples
from radio.errors import LinkError, SamplesLost
from testbed.messages import Csi, Sent, Sound, as_times

if TYPE_CHECKING:
    from testbed.server import Server

#: Slots of beacons for nodes that must first find the server, and soundings that measure link and phase error.
ACQUIRE_SLOTS, SOUNDINGS = 100, 6
#: A sounding below this SNR per element is no link.
FLOOR_DB = -5.0


def incoherent(server: Server, name: str) -> str | None:
    """Say why a node's waves would not add up; None where they do, or where energies do not ask for it."""
    if server.uplink.precoder == "none":
        return None
    return refuse_coherent(server.uplink.peers[name].phase_variance ** 0.5)


async def due(server: Server, chosen: Sequence[str]) -> dict[str, str]:
    """Name the ready nodes whose links must be measured again before this round, each with the reason.

    A link that is only old can wait until its node is chosen.
    """
    slot = await asyncio.to_thread(server.link.next_slot) if server.uplink.peers else 0
    reasons = {}
    for name, reason in server.uplink.due(slot).items():
        if name in server.ready and (name in chosen or server.uplink.peers[name].flagged):
            reasons[name] = reason
    for name in server.ready & set(server.uplink.peers):
        if hopeless := incoherent(server, name):
            reasons.setdefault(name, hopeless)
    return dict(sorted(reasons.items()))


async def sound(server: Server, reasons: Mapping[str, str], search: bool) -> None:
    """Measure the links of nodes; those that fail leave the ready set with a warning.

    Args:
        server: of the run.
        reasons: why, by node.
        search: the nodes must find the beacons first.
    """
    names = sorted(reasons)
    profile, uplink = server.link.profile, server.uplink
    cycle = layout(
        profile,
        server.lead_samples,
        server.experiment.waveform.beacons_per_cycle,
        len(names) * sounding_samples(profile),
    )
    server.ready -= set(names)
    if search:
        await asyncio.to_thread(server.link.beckon, ACQUIRE_SLOTS)
        heard = await _windows(server, names, cycle, 1, ACQUIRE_SLOTS * profile.slot_samples)
        heard = _audible(server, heard)
        for name, links in heard.items():
            advance = uplink.first_sounding(name, links[0])
            await server.send(
                name,
                Csi(timing_advance_samples=advance, drive=uplink.full_drive, final=False),
                {"gain": links[0].gain},
            )
        names = [name for name in heard if name in uplink.peers]
    heard = _audible(server, await _windows(server, names, cycle, SOUNDINGS, 0)) if names else {}
    if not heard:
        return  # each has its warning, and is sounded again before the next round
    refused = uplink.admit(heard)
    for name, reason in sorted(refused.items()):
        server.warn("refused", f"node {name}: {reason}")
    for name in sorted(set(heard) - set(refused)):
        peer = uplink.peers[name]
        order = Csi(timing_advance_samples=peer.advance_samples, drive=uplink.drive(name))
        if await server.send(name, order, {"gain": peer.gain}):
            server.ready.add(name)
    measured = sorted(server.ready & set(names))
    uplink.confirm(measured, server.link.last_slot)
    server.folder.emit(
        "calibrated",
        round=server.round,
        links={name: uplink.facts(name) for name in measured},
        searched=search,
        reasons=dict(reasons),
    )


def _audible(server: Server, heard: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Leave out nodes of whose soundings half are no link, to be sought anew: it is no weak link, but a lost one."""
    audible = {}
    for name, links in heard.items():
        snr_db = statistics.median(link.snr_db for link in links)
        if snr_db >= FLOOR_DB:
            audible[name] = links
            continue
        server.warn("not-heard", f"node {name}: sounding at {snr_db:.1f} dB")
        server.unlock("not heard", name)
        server.uplink.peers.pop(name, None)
    return audible


async def _windows(
    server: Server, names: Sequence[str], cycle: Cycle, cycles: int, search: int
) -> dict[str, list[Any]]:
    """Order soundings of all ``names`` in shared windows and receive them."""
    first = await asyncio.to_thread(server.link.schedule, cycle, cycles)
    for place, name in enumerate(names):
        where: dict[str, Any] = {"first_slot": first, "cycles": cycles, "cycle": as_times(cycle), "place": place}
        await server.send(name, Sound(**where, drive=server.uplink.full_drive, search_samples=search))
    sent = await server.gather(names, "sent", server.experiment.run.join_timeout_s)
    for place, name in enumerate(names):
        told = sent[name].message if server.timed(name) and name in sent else None
        if isinstance(told, Sent) and (trouble := server.link.off_time(first, cycle, place, told.starts[0])):
            server.warn("pps", f"node {name}: {trouble}")
            del sent[name]
    try:
        windows = [
            await asyncio.to_thread(server.link.sound, first + n * cycle.slots, cycle, len(names))
            for n in range(cycles)
        ]
    except SamplesLost as error:
        await server.slipped(error)
        return {}
    except LinkError as error:  # a receiver that gives zeros: nothing is above its converter's smallest step
        server.warn("not-heard", str(error))
        server.unlock("not heard", *names)
        return {}
    return {name: [row[place] for row in windows] for place, name in enumerate(names) if name in sent}
