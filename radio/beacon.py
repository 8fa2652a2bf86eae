"""The beacon as a receiver uses it: acquire one from nothing, or track the next; knows one beacon at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex64

from radio.ladder import Fit, fit_pairs, ltf_rung, read_header, samples_ratio, stf_rung
from radio.ofdm import Profile
from radio.preamble import RMS, Waveform, beacon, checked_slot, header_bits, waveform
from radio.search import search

__all__ = ["BeaconFix", "acquire", "beacon", "search", "track"]

_LTF_FLOOR = 0.08  # least share of the energy that the LTFs explain; noise alone reaches it less than once in 10^8
_TRACK_FLOOR = 0.04  # a tracked beacon is looked for in a few places only, and its header is known
_DAMAGED_BITS = 2  # one hit DBPSK symbol; code words of the CRC differ in at least four bits


@dataclass(frozen=True)
class BeaconFix:
    """What one beacon told.

    The received beacon is ``g * s((n - index)/ratio) * exp(j*(phase_rad + 2*pi*cfo_hz*(n - reference)/rate_hz))`` at RX
    index n, with ``g > 0``, ``s`` the samples of ``beacon`` and ``ratio`` the receiver's samples per sender's sample.

    Attributes:
        index: RX index of the beacon's first sample, fractional.
        slot: slot number in the header.
        cfo_hz: carrier offset seen, sender minus receiver, in the receiver's own hertz.
        cfo_sigma_hz: its standard deviation.
        phase_rad: phase of the channel at ``reference``, in (-pi, pi].
        phase_sigma_rad: its standard deviation.
        reference: RX index of the middle of all LTF energy, where phase and frequency errors are independent.
        snr_db: beacon power over noise power per sample.
        index_sigma: standard deviation of ``index`` in samples.
        gain: ``g``; its relative standard deviation is ``phase_sigma_rad``.
    """

    index: float
    slot: int
    cfo_hz: float
    cfo_sigma_hz: float
    phase_rad: float
    phase_sigma_rad: float
    reference: float
    snr_db: float
    index_sigma: float
    gain: float


def acquire(
    samples: Complex64[np.ndarray, " sample"], profile: Profile, start: int = 0, *, tuned_offset_hz: float = 0.0
) -> BeaconFix | None:
    """Find the first whole beacon of a capture, knowing neither time nor frequency.

    Args:
        samples: capture.
        profile: waveform.
        start: RX index of ``samples[0]``.
        tuned_offset_hz: receive LO setting minus the sender's setting. Carrier and sample clock share one crystal, so
            the offset seen plus this one gives the sample-clock offset, needed to carry timing across the beacon.

    Returns:
        The fix, or None when no beacon passes every rung and the header's CRC.
    """
    wave = waveform(profile)
    for candidate in search(samples, profile):
        rung = stf_rung(samples, profile, wave, candidate)
        if rung is None:
            continue
        found = ltf_rung(samples, profile, wave, candidate, rung, _LTF_FLOOR)
        if found is None:
            continue
        first, cfo_hz = found
        fit = fit_pairs(samples, profile, wave, first, cfo_hz, tuned_offset_hz, _LTF_FLOOR)
        if fit is None:
            continue
        slot = checked_slot(read_header(samples, profile, wave, fit))
        if slot is not None:
            return _finished(fit, wave, slot, start)
    return None


def track(
    samples: Complex64[np.ndarray, " sample"],
    profile: Profile,
    start: int,
    index: float,
    cfo_hz: float,
    slot: int,
    *,
    tuned_offset_hz: float = 0.0,
) -> BeaconFix | None:
    """Measure a beacon whose place (within ltf/16 samples) and offset (within 200 Hz) are known.

    A header that passes its CRC must carry ``slot``. A damaged one is accepted when at most two bits differ from the
    expected code word, which is what one hit symbol does to DBPSK: valid code words differ in four bits or more, so a
    neighbour's beacon cannot pass, while an interference spike in the header does not cost a fix that the LTFs give.

    Args:
        samples: window that holds the beacon's LTFs and header; it may begin and end anywhere.
        profile: waveform.
        start: RX index of ``samples[0]``.
        index: expected RX index of the beacon's first sample.
        cfo_hz: expected carrier offset.
        slot: expected slot.
        tuned_offset_hz: as for ``acquire``.

    Returns:
        The fix, or None when the window is too short, the correlation too weak or the slot another one.
    """
    wave = waveform(profile)
    first = round(index - start + wave.stf.size * samples_ratio(profile, cfo_hz, tuned_offset_hz))
    fit = fit_pairs(samples, profile, wave, first, cfo_hz, tuned_offset_hz, _TRACK_FLOOR)
    if fit is None:
        return None
    bits = read_header(samples, profile, wave, fit)
    read = checked_slot(bits)
    if read != slot and (read is not None or np.count_nonzero(bits != header_bits(slot)) > _DAMAGED_BITS):
        return None
    return _finished(fit, wave, slot, start)


def _finished(fit: Fit, wave: Waveform, slot: int, start: int) -> BeaconFix:
    return BeaconFix(
        index=start + fit.reference - wave.middle * fit.ratio,
        slot=slot,
        cfo_hz=fit.cfo_hz,
        cfo_sigma_hz=fit.cfo_sigma_hz,
        phase_rad=float(np.angle(fit.gain)),
        phase_sigma_rad=fit.phase_sigma_rad,
        reference=start + fit.reference,
        snr_db=float(10 * np.log10(abs(fit.gain) ** 2 * RMS**2 / fit.noise)),
        index_sigma=fit.place_sigma,
        gain=abs(fit.gain),
    )
