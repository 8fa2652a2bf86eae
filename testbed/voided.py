"""Keeps what the server received in the last voided rounds, for whoever asks why; a ring of few recordings on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from calibration.captures import Sender, burst_parts, record
from calibration.local import warmth
from radio.capture import SUFFIX, Scalar
from radio.serverlink import ServerLink, Window
from radio.uplink import Peer

__all__ = ["keep"]

#: Recordings kept, and the most that one may take on disk (8 bytes a sample): the first bursts of a long round.
KEPT, LARGEST_BYTES = 8, 16_000_000


def keep(
    folder: Path,
    name: str,
    link: ServerLink,
    windows: Sequence[Window],
    slots: Sequence[int],
    peers: Mapping[str, Peer],
    shifts: Mapping[str, int],
    facts: Mapping[str, Scalar],
) -> Path:
    """Write the bursts of a voided round as one annotated recording, and drop the oldest beyond ``KEPT``.

    Args:
        folder: of these recordings, made if absent.
        name: of the recording.
        link: the server's; its settings are those of the recording.
        windows: what was received, one per burst.
        slots: first slot of each burst's cycle.
        peers: what the server knows of each node that was to send.
        shifts: of their verification pilots.
        facts: what else is worth keeping.

    Raises:
        RadioError: it cannot be written.
    """
    profile = link.profile
    senders = [_sender(node, shifts[node], peers[node]) for node in shifts if node in peers]
    room = max(1, LARGEST_BYTES // (8 * windows[0].capture.samples.size))
    captures = [window.capture for window in windows[:room]]
    parts = [
        part
        for capture, slot in zip(captures, slots, strict=False)
        for part in burst_parts(profile, capture.start + profile.guard_samples, slot, senders)
    ]
    told = {
        "node": "server",
        "waveform": profile.name,
        "bursts": len(windows),
        **facts,
        **warmth(link.radio.temperature_c()),
    }
    begun = datetime.now(UTC)
    path = record(folder, name, captures, link.settings(), link.radio.capabilities, parts, told, begun)
    kept = sorted(folder.glob(f"*{SUFFIX}"), key=lambda found: found.stat().st_mtime_ns)
    for old in kept[:-KEPT]:
        old.with_suffix(".sigmf-data").unlink(missing_ok=True)
        old.unlink()
    return path


def _sender(node: str, shift: int, peer: Peer) -> Sender:
    gain_db = 10 * math.log10(max(peer.power, 1e-30))
    phase_rad = float(np.angle(peer.gain[peer.gain.size // 2]))
    return Sender(node, peer.advance_samples, gain_db, phase_rad, shift=shift)
