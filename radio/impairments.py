"""Faults of one simulated radio that act on its samples and counters: converters, leaks, gain steps, lost blocks.

Knows baseband samples and block numbers; nothing of time, links or other radios.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex64, Float32

from radio.clock import rng
from radio.presets import RadioEffects

DRAWN = 512  # blocks drawn at a time


def amplitude(level_db: float) -> float:
    """Convert a level to an amplitude ratio; -inf dB gives 0."""
    return 0.0 if level_db == float("-inf") else float(10.0 ** (level_db / 20.0))


@dataclass(frozen=True)
class Faults:
    """Constants of one radio, drawn once: clock error, image and leak phasors, own leakage."""

    ppm: float
    tx_image: complex
    rx_image: complex
    tx_leak: complex
    rx_offset: complex
    self_gain: complex
    self_delay_samples: int


def draw_faults(effects: RadioEffects, seed: int, name: str) -> Faults:
    """Draw a radio's constants: levels from ``effects``, phases uniform."""
    draw = rng(seed, name, "faults")

    def phasor(level_db: float) -> complex:
        return amplitude(level_db) * complex(np.exp(2j * math.pi * draw.uniform()))

    ppm = float(draw.uniform(-effects.ppm_max, effects.ppm_max))
    return Faults(
        ppm if effects.ppm is None else effects.ppm,
        phasor(effects.tx_image_dbc),
        phasor(effects.rx_image_dbc),
        phasor(effects.tx_leak_dbc),
        phasor(effects.rx_dc_dbfs),
        phasor(effects.self_leak_db),
        int(draw.integers(0, effects.self_leak_delay_max_samples + 1)),
    )


def step_phase(seed: int, name: str, knob: str, steps: int, limit_deg: float) -> float:
    """Give the phase in rad of a gain setting ``steps`` steps from zero: the sum of one uniform jump per step."""
    jumps = rng(seed, name, "step", knob).uniform(-limit_deg, limit_deg, 1024)
    return float(np.deg2rad(jumps[: abs(steps)].sum()))


def send(
    samples: Complex64[np.ndarray, " sample"], effects: RadioEffects, faults: Faults
) -> tuple[Float32[np.ndarray, " sample"], Float32[np.ndarray, " sample"], int]:
    """Pass a burst through DAC, IQ modulator and amplifier, at full scale 1.

    Returns:
        Real part, imaginary part, and the count of samples that a rail clipped (in I or Q).

    The amplifier is Rapp's model with smoothness 2 (C. Rapp, 2nd European Conf. on Satellite Communications, 1991).
    """
    re, im = samples.real.astype(np.float32), samples.imag.astype(np.float32)
    clipped = int(np.count_nonzero((np.abs(re) > 1.0) | (np.abs(im) > 1.0)))
    if clipped and effects.dac_wraps:
        re, im = ((part + 1.0) % 2.0 - 1.0 for part in (re, im))
    elif clipped:
        re, im = np.clip(re, -1.0, 1.0), np.clip(im, -1.0, 1.0)
    if effects.dac_bits:
        steps = np.float32(2 ** (effects.dac_bits - 1))
        re, im = (np.minimum(np.rint(part * steps), steps - 1.0) / steps for part in (re, im))
    if faults.tx_image:
        p, q = np.float32(faults.tx_image.real), np.float32(faults.tx_image.imag)
        re, im = re + p * re + q * im, im + q * re - p * im
    limit = (
        amplitude(effects.tx_saturation_dbm - effects.tx_fs_dbm) if math.isfinite(effects.tx_saturation_dbm) else 0.0
    )
    if limit:
        power = (re * re + im * im) / np.float32(limit**2)
        shrink = (1.0 / np.sqrt(np.sqrt(1.0 + power * power))).astype(np.float32)
        re, im = re * shrink, im * shrink
    return np.ascontiguousarray(re, np.float32), np.ascontiguousarray(im, np.float32), clipped


class BlockMap:
    """Which device block stands behind each block that the host counts, when some are lost or come twice.

    Args:
        drop, duplicate: probability per block.
        slips: the host's index slips with every loss (no timestamps); otherwise lost blocks keep their place.
        seed, keys: what the losses are keyed by.
    """

    def __init__(self, drop: float, duplicate: float, slips: bool, seed: int, *keys: str | int) -> None:
        self._drop, self._duplicate, self.slips = min(drop, 1.0), min(duplicate, 1.0), slips
        self.perfect = drop <= 0.0 and duplicate <= 0.0
        self._seed, self._keys = seed, keys
        self._starts = [0]  # device block of the first host block of each drawn stretch
        self._last: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None

    def _stretch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Give, for one stretch of host blocks, the extra device blocks skipped up to each, and the loss flags."""
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        draw = rng(self._seed, *self._keys, number).uniform(size=DRAWN)
        lost = draw < self._drop
        again = (draw > 1.0 - self._duplicate) & ~lost
        if number == 0:
            lost[0] = again[0] = False
        self._last = (number, (np.cumsum(lost.astype(np.int64) - again), lost))
        return self._last[1]

    def lost(self, block: int) -> bool:
        """Tell if the samples of a host block are lost (or follow a loss, when the index slips)."""
        return not self.perfect and bool(self._stretch(block // DRAWN)[1][block % DRAWN])

    def slip(self, block: int) -> int:
        """Count by how many blocks the device is ahead of the host at a host block."""
        if self.perfect or not self.slips or block < 0:
            return 0
        number = block // DRAWN
        while len(self._starts) <= number:
            self._starts.append(self._starts[-1] + int(self._stretch(len(self._starts) - 1)[0][-1]))
        return self._starts[number] + int(self._stretch(number)[0][block % DRAWN])
