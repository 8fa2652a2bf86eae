"""The server's knowledge of every uplink and the decoding of a superposition; knows sums, never one node's data.

Amplitudes are full scale to full scale. The common level A is the amplitude per resource element at which every admitted node
should arrive; received grids are divided by it, so a symbol of mean power 1 is one unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from jaxtyping import Complex64, Float32, Float64

from radio.ofdm import Profile, canary, drive_for_backoff, split
from radio.payload import CHECKS, Payload
from radio.serverlink import Window
from radio.sync import Link, merge_links, noise_of
from radio.verify import Limits, Verdict, Verification, checksum_nmse_db, checksum_signs, judge, q_meter, verify

#: Gains of the slow loops per round: phase, timing, mean power, phase variance.
PHASE_GAIN, DELAY_GAIN, POWER_GAIN, SPREAD_GAIN = 0.2, 0.2, 0.1, 0.1
#: A node whose link amplitude is below this fraction of the strongest would set the level for all: it is not admitted.
WEAKEST = 0.1
#: Total rms of the sum at the server's converter, in dBFS: 10 dB of OFDM peaks and 4 dB of margin.
HEADROOM_DBFS = -14.0


@dataclass(frozen=True)
class Peer:
    """What the server knows of one node's uplink.

    Attributes:
        gain: complex64 (bin,), C(f) at the timing advance in use.
        power: slow mean of |C|^2 over bins and rounds (large-scale path loss).
        advance_samples: timing advance that the node applies.
        phase_variance: slow mean square of its phase error at burst time, rad^2.
        sigma_eps: relative error of ``gain``.
        flagged: whether its last verification asks for a new sounding.
    """

    gain: Complex64[np.ndarray, " bin"]
    power: float
    advance_samples: float
    phase_variance: float
    sigma_eps: float
    flagged: bool = False


@dataclass(frozen=True)
class Innovation:
    """What a node must absorb after a burst: turn and stretch its link estimate, shift its timing advance."""

    turn_rad: float
    stretch: float
    delay_samples: float


@dataclass(frozen=True)
class Aggregate:
    """One decoded round.

    Attributes:
        symbols: complex64 (symbol,), the received sum in units of the scaled symbols.
        elements: complex64 (burst, data, bin), the same before unpacking.
        verifications: one per burst.
        verdict: the worst over the bursts.
        noise: noise variance per resource element in units of the level.
        canary_nmse_db: measured error of the known canary sum.
        checksum_nmse_db: error seen by the appended checksums, None without them.
        phase_rms_rad: rms phase error of the nodes after the common phase is taken out.
        q_sigma_rad: phase error seen on the unused quadrature (R-mode), else None.
        clipped: samples at the server's converter rails.
        lost: samples that the radio reported spoiled.
    """

    symbols: Complex64[np.ndarray, " symbol"]
    elements: Complex64[np.ndarray, "burst data bin"]
    verifications: tuple[Verification, ...]
    verdict: Verdict
    noise: float
    canary_nmse_db: float
    checksum_nmse_db: float | None
    phase_rms_rad: float
    q_sigma_rad: float | None
    clipped: int
    lost: int


@dataclass
class Uplink:
    """All uplinks of a server."""

    profile: Profile
    mode: str
    precoder: str
    nodes_max: int
    backoff_db: float = 9.0
    limits: Limits = field(default_factory=Limits)
    peers: dict[str, Peer] = field(default_factory=dict)
    noise: float = 0.0

    @property
    def full_drive(self) -> float:
        """Amplitude per element of a node that uses all its back-off allows."""
        return drive_for_backoff(self.profile, self.backoff_db)

    @property
    def level(self) -> float:
        """Common receive amplitude A: what the weakest admitted node reaches, within the server's headroom."""
        if not self.peers:
            return 0.0
        weakest = min(math.sqrt(peer.power) for peer in self.peers.values())
        bins = len(self.profile.bins)
        room = 10 ** (HEADROOM_DBFS / 20) * math.sqrt(self.profile.fft / (bins * len(self.peers)))
        return min(self.full_drive * weakest, room)

    def drive(self, name: str) -> float:
        """Give the drive for ``name``'s precoder: transmit amplitude, or the level itself under inversion."""
        if self.precoder == "inversion":
            return self.level
        return self.level / math.sqrt(self.peers[name].power)

    def _shape(self, name: str) -> Float64[np.ndarray, " bin"]:
        """Arrival amplitude of ``name`` over the bins, of mean 1; flat under inversion."""
        if self.precoder == "inversion":
            return np.ones(len(self.profile.bins))
        amplitude = np.abs(self.peers[name].gain).astype(np.float64)
        return cast(np.ndarray, amplitude / amplitude.mean())

    def gain_mean(self, names: Sequence[str]) -> float:
        """Mean arrival amplitude in units of the level: mu_h of the decoder, 1 under inversion."""
        if self.precoder == "inversion":
            return 1.0
        return float(np.mean([np.abs(self.peers[n].gain).mean() / math.sqrt(self.peers[n].power) for n in names]))

    def first_sounding(self, name: str, link: Link) -> float:
        """Take the first look at a node: returns the timing advance that it must apply before the next soundings."""
        gain = (link.gain / self.full_drive).astype(np.complex64)
        self.peers[name] = Peer(gain, float(np.mean(np.abs(gain) ** 2)), link.delay_samples, 0.0, link.sigma_gain)
        return link.delay_samples

    def admit(self, soundings: Mapping[str, Sequence[Link]]) -> dict[str, str]:
        """Turn repeated soundings into link estimates and measured phase errors.

        The spread of a node's phase over the soundings, each predicted over the same horizon as a burst, is its phase error;
        the part common to all nodes (the server's own oscillator) is taken out as in a burst.

        Returns:
            Names not admitted, each with the reason.
        """
        phases = {}
        for name, links in soundings.items():
            merged = merge_links(links)
            turns = np.array([np.angle(np.vdot(merged.gain, link.gain)) for link in links])
            phases[name] = turns
            gain = (merged.gain / self.full_drive).astype(np.complex64)
            peer = self.peers[name]
            self.peers[name] = replace(
                peer, gain=gain, power=float(np.mean(np.abs(gain) ** 2)), sigma_eps=merged.sigma_gain
            )
            self.noise = merged.noise
        table = np.array([phases[name] for name in soundings])
        if len(table) > 1:
            table = table - table.mean(0)
        freedom = max(1, (table.shape[1] - 1) * max(1, len(table) - 1))
        pooled = float(np.sum((table - table.mean(1, keepdims=True)) ** 2)) / freedom
        strongest = max(math.sqrt(peer.power) for peer in self.peers.values())
        refused = {}
        for name in soundings:
            amplitude = math.sqrt(self.peers[name].power)
            if amplitude < WEAKEST * strongest:
                del self.peers[name]
                refused[name] = (
                    f"its link is {20 * math.log10(strongest / amplitude):.1f} dB below the strongest, the limit is "
                    f"{-20 * math.log10(WEAKEST):.0f} dB: move it closer or add gain"
                )
            else:
                self.peers[name] = replace(self.peers[name], phase_variance=pooled)
        return refused

    def decode(
        self, windows: Sequence[Window], names: Sequence[str], payload: Payload, canary_seed: int, shifts: Sequence[int]
    ) -> Aggregate:
        """Decode the superposition of one round's bursts.

        Args:
            windows: one per burst.
            names: nodes that were ordered to transmit.
            payload: the round's layout.
            canary_seed: seed of the known canary values.
            shifts: verification shift of each node, in the order of ``names``.
        """
        level = np.float32(self.level)
        noise = float(np.mean([noise_of(window.nulls) for window in windows])) / float(level) ** 2
        verifications, elements, errors, expected_power = [], [], 0.0, 0.0
        residual_phases = []
        shapes = [self._shape(name) for name in names]
        canaries = [canary(self.profile, canary_seed, shift, self.mode) for shift in shifts]
        for window in windows:
            pilots, data, known = split(window.grid / level, self.profile)
            seen = verify(pilots, tuple(shifts), self.nodes_max, noise, self.profile)
            mean = seen.gain.mean(1)
            common = np.angle(mean.sum())
            # Under phase precoding the sum aims at |a_k| x_k: what the pilots show of |a_k| is the target, not an error.
            arrival = np.ones(len(names)) if self.precoder == "inversion" else np.abs(mean)
            target = np.sum([a * shape * c for a, shape, c in zip(arrival, shapes, canaries, strict=True)], axis=0)
            turn = np.complex64(np.exp(-1j * common))
            verifications.append(replace(seen, gain=seen.gain * turn))
            residual_phases.append(np.angle(mean * turn))
            elements.append(data * turn)
            known = known * turn
            off = (known.real - target.real) if self.mode == "R" else known - target
            errors += float(np.sum(np.abs(off) ** 2))
            expected_power += float(np.sum(np.abs(target) ** 2))
        grid = np.stack(elements)
        symbols, checks = payload.read(grid)
        self.noise = 0.9 * self.noise + 0.1 * noise * float(level) ** 2 if self.noise else noise * float(level) ** 2
        return Aggregate(
            symbols=symbols,
            elements=grid,
            verifications=tuple(verifications),
            verdict=judge(verifications, self.mode, self.limits),
            noise=noise,
            canary_nmse_db=10 * math.log10(max(errors, 1e-30) / expected_power),
            checksum_nmse_db=checksum_error(payload, symbols, checks) if payload.appended else None,
            phase_rms_rad=float(np.sqrt(np.mean(np.square(residual_phases)))),
            q_sigma_rad=q_meter(grid, noise, len(names), 1.0) if self.mode == "R" else None,
            clipped=sum(window.capture.clipped for window in windows),
            lost=sum(event.count for window in windows for event in window.capture.events if event.kind != "clipped"),
        )

    def absorb(self, names: Sequence[str], aggregate: Aggregate) -> dict[str, Innovation]:
        """Feed verification back into the slow loops; returns what each node must absorb likewise."""
        innovations = {}
        bins = np.asarray(self.profile.bins)
        centre = float(bins.mean()) / self.profile.fft
        for place, name in enumerate(names):
            gains = np.array([seen.gain[place].mean() for seen in aggregate.verifications])
            phase = float(np.angle(gains.mean()))
            delay = float(np.mean([seen.slope_samples[place] for seen in aggregate.verifications]))
            status = aggregate.verdict.nodes[place]
            peer = self.peers[name]
            if status == "missing":
                self.peers[name] = replace(peer, flagged=True)
                continue
            shift = DELAY_GAIN * delay
            turn = PHASE_GAIN * phase + 2 * math.pi * centre * shift
            # The pilots' own estimation error is no phase error of the link.
            seen_variance = float(np.mean(np.angle(gains) ** 2)) - aggregate.noise / (2 * bins.size * 3)
            # Under phase precoding |gain| only shapes expectations; under inversion the node must absorb it, too.
            stretch = float(np.abs(gains.mean())) ** (PHASE_GAIN if self.precoder == "inversion" else 1.0)
            if self.precoder != "inversion":
                stretch *= math.sqrt(peer.power) / float(np.abs(peer.gain).mean())
            arrival = float(np.mean(np.abs(gains) ** 2))
            self.peers[name] = replace(
                peer,
                gain=(peer.gain * (stretch * np.exp(1j * turn))).astype(np.complex64),
                power=peer.power * (1 + POWER_GAIN * (arrival - 1)),
                advance_samples=peer.advance_samples + shift,
                phase_variance=(1 - SPREAD_GAIN) * peer.phase_variance + SPREAD_GAIN * max(seen_variance, 0.0),
                flagged=status in ("phase", "timing", "cfo"),
            )
            innovations[name] = Innovation(turn, stretch, shift)
        return innovations

    def state(self) -> dict[str, Any]:
        """Give everything needed to go on after a restart, as plain JSON values."""
        return {
            "noise": self.noise,
            "peers": {
                name: {
                    **{k: v for k, v in vars(peer).items() if k != "gain"},
                    "gain": [[float(g.real), float(g.imag)] for g in peer.gain],
                }
                for name, peer in sorted(self.peers.items())
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state saved by ``state``."""
        self.noise = state["noise"]
        self.peers = {
            name: Peer(gain=np.array([complex(*g) for g in saved["gain"]], np.complex64), **_without_gain(saved))
            for name, saved in state["peers"].items()
        }


def _without_gain(saved: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in saved.items() if key != "gain"}


def checksum_error(
    payload: Payload, symbols: Complex64[np.ndarray, " symbol"], checks: Float32[np.ndarray, " check"]
) -> float:
    """NMSE in dB that checksums show: their residual against the checks of the decoded sum."""
    reals = np.ascontiguousarray(symbols).view(np.float32)
    return checksum_nmse_db(reals, checks, checksum_signs(payload.seed, CHECKS, reals.size))
