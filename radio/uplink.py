"""The server's knowledge of every uplink and the decoding of a superposition; knows sums, never one node's data.

Amplitudes are full scale to full scale. The common level A is the amplitude per resource element at which every
admitted node should arrive; received grids are divided by it, so a symbol of mean power 1 is one unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, cast

import numpy as np
from jaxtyping import Complex64, Float64

from radio.ofdm import Profile, canary, drive_for_backoff, split
from radio.payload import Payload
from radio.serverlink import Window
from radio.sync import Link, merge_links, noise_of
from radio.verify import Limits, Verdict, Verification, judge, q_meter, verify, without_phases

#: Gains of the slow loops per round: phase, timing, slope of the amplitude, mean power, error variances, noise.
PHASE_GAIN, DELAY_GAIN, TILT_GAIN, POWER_GAIN, SPREAD_GAIN, NOISE_GAIN = 0.4, 0.2, 0.2, 0.1, 0.1, 0.2
#: Of the amplitude under inversion: no oscillator disturbs it, so it follows fading faster than the phase can.
STRETCH_GAIN = 0.7
#: The canary against the prediction: gain of the running ratio, and the ratio (1.5 dB) that asks for new soundings.
EXCESS_GAIN, EXCESS_LIMIT = 0.15, 1.41
#: An innovation further off than this many of its standard deviations is a jump and no drift: it is not absorbed, and
#: the node is sounded again. Below ``GATE_RAD`` and ``GATE_SAMPLES`` no error is worth a sounding. In 10,560 bursts
#: over healthy links the largest was 5.3.
GATE_SIGMA, GATE_RAD, GATE_SAMPLES = 6.0, 0.1, 0.2
#: A link estimate that no sounding and no burst has confirmed for so long is refreshed before it is used.
HOLDS_S = 30.0
#: A node whose link amplitude is below this fraction of the strongest would set the level for all: it is not admitted.
WEAKEST = 0.1
#: Total rms of the sum at the server's converter, in dBFS: 10 dB of OFDM peaks and 4 dB of margin.
HEADROOM_DBFS = -14.0
#: Appended checksums come over the air as the payload does: what they differ by holds its error, and their own.
TWICE_DB = 10 * math.log10(2.0)


@dataclass(frozen=True)
class Peer:
    """What the server knows of one node's uplink.

    Attributes:
        gain: complex64 (bin,), C(f) at the timing advance in use.
        power: slow mean of |C|^2 over bins and rounds (large-scale path loss).
        advance_samples: timing advance that the node applies.
        phase_variance: slow mean square of its phase error at burst time, rad^2.
        sigma_eps: relative error of ``gain``; under inversion, of the arriving amplitude as the pilots show it.
        flagged: why a new sounding is asked for; empty when none is.
        slot: of the server, up to which soundings and bursts have confirmed ``gain``.
    """

    gain: Complex64[np.ndarray, " bin"]
    power: float
    advance_samples: float
    phase_variance: float
    sigma_eps: float
    flagged: str = ""
    slot: int = 0


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
        verification: what the pilots said, common phase taken out.
        gains: mean pilot gain per node and burst, relative to what was expected of the node; 1 is perfect.
        verdict: a status per node and what to do with the round.
        noise: noise variance per resource element in units of the level.
        signal: mean power of the received sum per symbol, noise taken out.
        canary_nmse_db: error measured on the known canary sum, relative to ``signal``: updates may be correlated,
            canaries are not.
        checksum_nmse_db: error seen by the appended checksums, None without them.
        phase_rms_rad: rms phase error of the nodes after the common phase is taken out.
        q_sigma_rad: phase error seen on the unused quadrature (R-mode), else None.
        clipped: samples at the server's converter rails.
        lost: samples that the radio reported spoiled.
    """

    symbols: Complex64[np.ndarray, " symbol"]
    elements: Complex64[np.ndarray, "burst data bin"]
    verification: Verification
    gains: Complex64[np.ndarray, "node burst"]
    verdict: Verdict
    noise: float
    signal: float
    canary_nmse_db: float
    checksum_nmse_db: float | None
    phase_rms_rad: float
    q_sigma_rad: float | None
    clipped: int
    lost: int


@dataclass
class Uplink:
    """All uplinks of a server. ``priors`` are known phase variances (rad^2) and relative amplitude errors by node."""

    profile: Profile
    mode: str
    precoder: str
    nodes_max: int
    threshold: float = 0.0
    backoff_db: float = 9.0
    limits: Limits = field(default_factory=Limits)
    peers: dict[str, Peer] = field(default_factory=dict)
    priors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    noise: float = 0.0
    excess: float = 1.0
    rho: float | None = None

    @property
    def full_drive(self) -> float:
        """Amplitude per element of a node that uses all its back-off allows."""
        return drive_for_backoff(self.profile, self.backoff_db)

    @property
    def level(self) -> float:
        """Common receive amplitude A, within the server's headroom.

        Under inversion every node must reach it, so the weakest sets it. Otherwise the median node does: stronger
        nodes hold back, weaker ones send all they have and arrive with ``|a_k| < 1``, which the sum then keeps.
        """
        if not self.peers:
            return 0.0
        sizes = [math.sqrt(peer.power) for peer in self.peers.values()]
        reached = self.full_drive * (min(sizes) if self.precoder == "inversion" else median(sizes))
        return min(reached, 10 ** (HEADROOM_DBFS / 20) * math.sqrt(self.profile.fft / (len(self._bins) * len(sizes))))

    @property
    def _bins(self) -> np.ndarray:
        return np.asarray(self.profile.bins)

    def drive(self, name: str) -> float:
        """Give the drive for ``name``'s precoder: transmit amplitude, or the level itself under inversion."""
        if self.precoder == "inversion":
            return self.level
        return min(self.full_drive, self.level / math.sqrt(self.peers[name].power))

    def shape(self, name: str) -> Float64[np.ndarray, " bin"]:
        """Arrival amplitude of ``name`` over the bins, of mean 1; flat under inversion."""
        if self.precoder == "inversion":
            return np.ones(self._bins.size)
        amplitude = np.abs(self.peers[name].gain).astype(np.float64)
        return cast(np.ndarray, amplitude / amplitude.mean())

    def arrival(self, name: str) -> float:
        """Mean amplitude at which ``name`` is expected to arrive, in units of the level; 1 under inversion."""
        if self.precoder == "inversion":
            return 1.0
        return float(np.abs(self.peers[name].gain).mean()) * self.drive(name) / self.level

    def floor(self, name: str) -> float:
        """Link amplitude below which ``name`` is silent under inversion: |h|^2 = threshold, as |h|^2 has mean 1."""
        return math.sqrt(self.threshold * self.peers[name].power) if self.precoder == "inversion" else 0.0

    def share(self, name: str) -> float:
        """Share of the bins on which ``name`` sends."""
        return float((np.abs(self.peers[name].gain) >= self.floor(name)).mean())

    def gain_mean(self, names: Sequence[str]) -> float:
        """Mean arrival amplitude in units of the level: mu_h of the decoder; under inversion the share that is sent."""
        return float(np.mean([self.arrival(name) * self.share(name) for name in names]))

    def gain_power(self, names: Sequence[str]) -> float:
        """Mean square of the arrival amplitude in units of the level, over nodes and bins."""
        if self.precoder == "inversion":
            return 1.0
        return float(np.mean([np.mean((np.abs(self.peers[n].gain) * self.drive(n) / self.level) ** 2) for n in names]))

    def first_sounding(self, name: str, link: Link) -> float:
        """Take the first look at a node: returns the timing advance that it must apply before the next soundings."""
        gain = (link.gain / self.full_drive).astype(np.complex64)
        self.peers[name] = Peer(gain, float(np.mean(np.abs(gain) ** 2)), link.delay_samples, 0.0, 0.0)
        return link.delay_samples

    def facts(self, name: str) -> dict[str, float]:
        """Tell what is known of a node's link: gain in dB, timing advance in samples, phase error in rad."""
        peer = self.peers[name]
        return {
            "link_gain_db": round(10 * math.log10(peer.power), 3),
            "advance_samples": round(peer.advance_samples, 4),
            "phase_rms_rad": round(peer.phase_variance**0.5, 5),
        }

    def admit(self, soundings: Mapping[str, Sequence[Link]]) -> dict[str, str]:
        """Turn repeated soundings into link estimates and measured phase errors.

        The spread of a node's phase over the soundings, each predicted over a burst's horizon, is its phase error; the
        part common to all nodes (the server's own oscillator) is taken out as in a burst.

        A node known before keeps its phase and amplitude errors: verification of every burst measures them better.

        Returns:
            Names not admitted, each with the reason.
        """
        phases = {}
        noises = []
        for name, links in soundings.items():
            merged = merge_links(links)
            turns = np.array([np.angle(np.vdot(merged.gain, link.gain)) for link in links])
            phases[name] = turns
            gain = (merged.gain / self.full_drive).astype(np.complex64)
            peer = self.peers[name]
            power = float(np.mean(np.abs(gain) ** 2))
            if peer.phase_variance:
                power = (1 - POWER_GAIN) * peer.power + POWER_GAIN * power
            error = max(merged.sigma_gain, peer.sigma_eps, self.priors.get(name, (0.0, 0.0))[1])
            self.peers[name] = replace(peer, gain=gain, power=power, sigma_eps=error, flagged="")
            noises.append(merged.noise)
        self.noise = float(np.mean(noises))  # one node's few null bins alone would be 0.3 dB off
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
            elif not self.peers[name].phase_variance:
                known = self.priors.get(name, (0.0, 0.0))[0]  # six soundings tell less than a calibration
                self.peers[name] = replace(self.peers[name], phase_variance=max(pooled, known))
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
        parts = [split(window.grid / level) for window in windows]
        expected = np.array([self.arrival(name) for name in names])
        seen = verify(
            np.stack([pilots for pilots, _, _ in parts]), tuple(shifts), self.nodes_max, noise, self.profile, expected
        )
        # The phase error that all nodes share is the server's own oscillator's: one rotation per burst undoes it.
        gains = seen.gain.reshape(len(names), len(windows), seen.pilots)
        common = np.exp(-1j * np.angle((expected[:, None] * gains.mean(2)).sum(0))).astype(np.complex64)
        gains = gains * common[None, :, None]
        seen = replace(seen, gain=gains.reshape(len(names), -1))
        grid = np.stack([data for _, data, _ in parts]) * common[:, None, None]
        known = np.stack([symbol for _, _, symbol in parts]) * common[:, None]
        # Under phase precoding the sum aims at |a_k| x_k: what the pilots show of |a_k| is the target, not an error.
        arrival = np.ones(len(names)) if self.precoder == "inversion" else expected * np.abs(gains.mean((1, 2)))
        target = np.sum(
            [
                size * self.shape(name) * canary(self.profile, canary_seed, shift, self.mode)
                for size, name, shift in zip(arrival, names, shifts, strict=True)
            ],
            axis=0,
        )
        off = known.real - target.real if self.mode == "R" else known - target
        symbols, checks = payload.read(grid)
        # In both modes a symbol has the mean power of an element; R-mode elements carry half of the noise into it.
        inside = noise / 2 if payload.real else noise
        signal = max(float(np.mean(np.abs(symbols) ** 2)) - inside, inside)
        self.noise += NOISE_GAIN * (noise * float(level) ** 2 - self.noise)
        return Aggregate(
            symbols=symbols,
            elements=grid,
            verification=seen,
            gains=gains.mean(2),
            verdict=judge(seen, self.mode, self.limits if self.precoder != "none" else without_phases(self.limits)),
            noise=noise,
            signal=signal,
            canary_nmse_db=10 * math.log10(float(np.mean(np.abs(off) ** 2)) / signal),
            checksum_nmse_db=payload.checksum_nmse_db(symbols, checks) - TWICE_DB if payload.appended else None,
            phase_rms_rad=float(np.sqrt(np.mean(np.angle(gains.mean(2)) ** 2))),
            q_sigma_rad=q_meter(grid, noise, len(names), 1.0) if payload.real else None,
            clipped=sum(window.capture.clipped for window in windows),
            lost=sum(event.count for window in windows for event in window.capture.events if event.kind != "clipped"),
        )

    def absorb(self, names: Sequence[str], aggregate: Aggregate, powers: Mapping[str, float]) -> dict[str, Innovation]:
        """Feed verification back into the slow loops; returns what each node must absorb likewise.

        A node that was not heard is flagged for a new sounding and gets no innovation, nor does one whose phase or time
        is off by more than its link allows (``GATE_SIGMA``): the loops follow drifts, a jump is measured anew.

        Args:
            names: nodes that were ordered to transmit.
            aggregate: what was decoded.
            powers: mean power of each node's symbols.
        """
        innovations = {}
        seen = aggregate.verification
        self._learn_correlation(names, aggregate, powers)
        centre = float(self._bins.mean()) / self.profile.fft
        for place, name in enumerate(names):
            peer, status = self.peers[name], aggregate.verdict.nodes[place]
            if status == "missing":
                self.peers[name] = replace(peer, flagged=status)
                continue
            gains = aggregate.gains[place]
            size = float(np.abs(gains.mean()))
            # Under phase precoding |gain| only says what to expect; under inversion the node divides by it.
            stretch = size**STRETCH_GAIN if self.precoder == "inversion" else size
            late, off = float(seen.slope_samples[place]), float(np.angle(gains.mean()))
            shift = DELAY_GAIN * late
            # An earlier start turns the band centre, too: the turn holds the pilots' phase and that part.
            turn = PHASE_GAIN * off + 2 * math.pi * centre * shift
            # The pilots' own estimation error is no phase error of the link.
            doubt = float(seen.sigma_rad[place]) ** 2 / seen.pilots
            variance = float(np.mean(np.angle(gains) ** 2)) - doubt
            allowed = max(GATE_SIGMA * math.sqrt(peer.phase_variance + doubt), GATE_RAD)
            if self.precoder == "none":
                allowed = math.inf  # phases are nobody's concern
            if abs(off) > allowed or abs(late) > GATE_SAMPLES + GATE_SIGMA * float(seen.sigma_samples[place]):
                # Should this go on, it is how the link is: the gate widens.
                spread = peer.phase_variance + SPREAD_GAIN * (min(variance, allowed**2) - peer.phase_variance)
                reason = f"a jump of {off:.2f} rad, {late:.2f} samples"
                self.peers[name] = replace(peer, flagged=reason, phase_variance=max(spread, 0.0))
                continue
            # Mean square over the band of an error in size and one that grows with distance from band centre.
            uneven = max((size - 1) ** 2 - doubt + float(seen.tilt[place]) ** 2 / 3, 0.0)
            known = peer.sigma_eps**2
            if self.precoder == "inversion":
                known += SPREAD_GAIN * (uneven - known)
            power = float(np.mean(np.abs(peer.gain) ** 2)) * size**2
            self.peers[name] = replace(
                peer,
                gain=(peer.gain * self._lean(name, float(seen.tilt[place])) * (stretch * np.exp(1j * turn))).astype(
                    np.complex64
                ),
                power=(1 - POWER_GAIN) * peer.power + POWER_GAIN * power,
                advance_samples=peer.advance_samples + shift,
                phase_variance=(1 - SPREAD_GAIN) * peer.phase_variance + SPREAD_GAIN * max(variance, 0.0),
                sigma_eps=math.sqrt(known),
                flagged=status if status in ("phase", "timing", "cfo") else "",
            )
            innovations[name] = Innovation(turn, stretch, shift)
        return innovations

    def _lean(self, name: str, tilt: float) -> Float64[np.ndarray, " bin"]:
        """Give the factor that brings the slope of ``name``'s amplitude over the band nearer to the measured ``tilt``.

        Slow fading of near echoes changes the slope first. The node need not know: it corrects phases only. Under
        inversion it would have to, so there the canary's excess asks for new soundings instead.
        """
        place = self._bins - self._bins.mean()
        place = place / place[-1]
        if self.precoder == "inversion":
            return np.ones(place.size)
        known = float(place @ self.shape(name) / (place @ place))
        return cast(np.ndarray, 1 + TILT_GAIN * (tilt - known) * place)

    def _learn_correlation(self, names: Sequence[str], aggregate: Aggregate, powers: Mapping[str, float]) -> None:
        sizes = [math.sqrt(powers[name]) * self.arrival(name) for name in names]
        alone = math.fsum(size**2 for size in sizes)
        together = math.fsum(sizes) ** 2
        if len(names) > 1 and alone > 0:
            now = min(max((aggregate.signal - alone) / (together - alone), 0.0), 1.0)
            self.rho = now if self.rho is None else self.rho + NOISE_GAIN * (now - self.rho)

    def watch(self, canary_nmse_db: float, predicted_nmse_db: float) -> bool:
        """Compare the canary with the prediction, round after round; True when the link estimates have aged.

        Then every node is flagged: only a new sounding shows how a link changed over the band.
        """
        self.excess += EXCESS_GAIN * (10 ** ((canary_nmse_db - predicted_nmse_db) / 10) - self.excess)
        if self.excess < EXCESS_LIMIT:
            return False
        self.excess = 1.0
        self.peers = {name: replace(peer, flagged="canary") for name, peer in self.peers.items()}
        return True

    def confirm(self, names: Iterable[str], slot: int) -> None:
        """Note that the link estimates of these nodes were right up to a slot, unless they are flagged."""
        for name in names:
            if name in self.peers and not self.peers[name].flagged:
                self.peers[name] = replace(self.peers[name], slot=slot)

    def due(self, slot: int, holds_s: float = HOLDS_S) -> dict[str, str]:
        """Name the nodes whose links must be measured again before they are used in a slot, each with the reason."""
        slot_s = self.profile.slot_samples / self.profile.rate_hz
        reasons = {}
        for name, peer in self.peers.items():
            age_s = (slot - peer.slot) * slot_s
            if peer.flagged:
                reasons[name] = peer.flagged
            elif age_s > holds_s:
                reasons[name] = f"not confirmed for {age_s:.0f} s"
        return reasons

    def state(self) -> dict[str, Any]:
        """Give everything needed to go on after a restart, as plain JSON values."""
        return {
            "noise": self.noise,
            "excess": self.excess,
            "rho": self.rho,
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
        self.noise, self.excess, self.rho = state["noise"], state["excess"], state["rho"]
        self.peers = {
            name: Peer(gain=np.array([complex(*g) for g in saved["gain"]], np.complex64), **_without_gain(saved))
            for name, saved in state["peers"].items()
        }


def _without_gain(saved: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in saved.items() if key != "gain"}
