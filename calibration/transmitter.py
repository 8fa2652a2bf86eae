"""What a transmitter does to a tone, heard by the radio itself: compression, LO leak, images; knows no other radio.

The receive carrier is tuned below the transmit carrier, so that every fault has a frequency of its own: the tone, its
image by the transmitter, the transmitter's carrier, the receiver's DC, and the images of all by the receiver. One
crystal makes all clocks of a radio, so these frequencies are known, but for the rounding of what a carrier is read back
as.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.fft import rfft

from calibration.options import CalibrationOptions
from calibration.result import Z95, Estimate, Finding, Result, Value
from radio.base import Radio, RadioConfig
from radio.errors import CalibrationError, RadioRefused
from radio.safety import SafeRadio
from radio.timeline import Heard, hear_itself

LEAK_LIMIT_DBC, COMPRESSION_LIMIT_DB = -35.0, 1.0
#: Drive in dB below full scale and samples of each; the first is the reference of the curve, and shows the image.
DRIVE_DB = (-20.0, -40.0, -30.0, -15.0, -10.0, -6.0, -3.0, -1.0, 0.0)
SAMPLES = (32768, 8192, 8192, 4096, 4096, 4096, 4096, 4096, 8192)
SILENCE = 32768  # behind the tone; the carrier leaks on
SETTLE = 64  # samples at either end of a level that are not looked at
TUNED_BELOW = 0.125  # of the rate, receive under transmit carrier
TONE, TONE_SPREAD = 0.07, 0.03  # of the rate, above the transmit carrier; by seed
FULL_DRIVE_DBFS = -10.0  # where the tone at full drive is to be received
RAIL_DBFS = -2.0
GAIN_STEP_DB = 6.0
FLOOR_DB = -150.0
TRIES = 5  # until streams do not slip in between
REST_OVER_NOISE, REST_OVER_TONE, SILENT = 3.0, 0.1, 0.01
CONVERTER_STEPS = 2048  # in full scale, of 12 bits: no radio here has fewer
GRAIN = 64  # divides what is left of every level
AROUND = slice(3, 43)  # bins of a spectrum from the line, whose noise is that of the line


@dataclass(frozen=True)
class Lines:
    """Complex amplitudes of lines in samples, the standard deviation of each, and the rms of all that is no line."""

    size: dict[str, complex]
    sigma: dict[str, float]
    rest: float

    def dbc(self, line: str, reference: float) -> Estimate:
        """Give a line against a reference amplitude."""
        sizes = (abs(self.size[line]) + sign * Z95 * self.sigma[line] for sign in (0.0, -1.0, 1.0))
        value, low, high = (max(FLOOR_DB, 20.0 * math.log10(max(size / reference, 1e-12))) for size in sizes)
        return Estimate(value, low, high, "db")


def lines(samples: np.ndarray, cycles: dict[str, float]) -> Lines:
    """Fit lines of known frequencies (cycles per sample) together; what is left around each tells its error.

    ``samples`` are a multiple of GRAIN. Only what is left in phase with a line changes its amplitude: phase noise of
    a strong line does not.
    """
    turn = 2j * np.pi * np.array(list(cycles.values()))
    rows = samples.astype(np.complex128).reshape(-1, GRAIN)  # a line is the product of a row and a column: all is small
    fine = np.exp(np.outer(turn, np.arange(GRAIN)))
    coarse = np.exp(np.outer(turn, GRAIN * np.arange(len(rows))))
    gram = (fine.conj() @ fine.T) * (coarse.conj() @ coarse.T)
    size = np.linalg.solve(gram, np.sum((rows @ fine.conj().T).T * coarse.conj(), axis=1))
    rest = rows - (coarse.T * size) @ fine
    # what is around each line, shifted to zero; the mean over a grain leaves white noise white
    shifted = (rest @ fine.conj().T).T / GRAIN * coarse.conj()
    in_phase = (shifted * np.exp(-1j * np.angle(size))[:, None]).real
    window = np.hanning(in_phase.shape[1])
    density = np.abs(rfft(in_phase * window, axis=1)[:, AROUND]) ** 2 / np.sum(window**2)
    sigma = dict(zip(cycles, np.sqrt(density.mean(axis=1) / window.size).tolist(), strict=True))
    return Lines(dict(zip(cycles, size.tolist(), strict=True)), sigma, float(np.sqrt(np.mean(np.abs(rest) ** 2))))


def level(radio: Radio, config: RadioConfig, options: CalibrationOptions, seed: int, name: str) -> Result:
    """Measure gain against drive, LO leak and images.

    Returns:
        ``compression_db`` of the gain at full drive, ``leak_dbc`` of the idle carrier against a tone at full scale,
        ``image_dbc`` and ``rx_image_dbc`` of transmitter and receiver against the tone, ``echo_db`` (the leakage into
        the own receiver, full scale to full scale, at the given settings); curves ``am_in_dbfs`` and ``am_out_db``
        (gain against that at a drive of -20 dBFS). Nothing at all when the radio does not hear itself, or when its
        streams slip in every try, which the step ``integrity`` names.
    """
    tone = _scale(config) * (TONE + TONE_SPREAD * np.random.default_rng([seed, 0x70E]).uniform())
    for _ in range(TRIES):
        radio.configure(config)
        try:
            heard = hear_itself(radio, seed)
        except CalibrationError:
            return Result("level", name)
        taken = _arrange(radio, config, heard)
        parts = _staircase(radio, heard.offset, tone)
        carrier = (taken.tx_hz - taken.rx_hz) / taken.rate_hz
        cycles = _cycles(carrier + _missed(parts[0], _cycles(carrier, tone)), tone)
        fits = [lines(part, cycles) for part in parts]
        if not _slipped(fits):
            return _judge(config, taken, name, parts, fits)
    return Result("level", name)


def _cycles(carrier: float, tone: float) -> dict[str, float]:
    """Name the lines that a tone shows, in cycles per sample."""
    cycles = {"tone": carrier + tone, "image": carrier - tone, "leak": carrier}
    return cycles | {f"rx {line}": -frequency for line, frequency in cycles.items()} | {"dc": 0.0}


def _missed(samples: np.ndarray, cycles: dict[str, float]) -> float:
    """Measure by how much a carrier misses what was read back, which is rounded: the tone turns between two halves."""
    half = samples.size // 2
    first, second = (lines(part, cycles).size["tone"] for part in (samples[:half], samples[half : 2 * half]))
    turned = second * np.exp(-2j * np.pi * cycles["tone"] * half) / first
    return float(np.angle(turned)) / (2.0 * math.pi * half)


def _slipped(fits: list[Lines]) -> bool:
    """Tell if a level holds much that is neither line nor noise, a piece of another level or a jump of the phase, or
    the silence holds the tone."""
    *levels, silence = fits
    if abs(silence.size["tone"]) > SILENT * abs(levels[-1].size["tone"]):
        return True
    noise = REST_OVER_NOISE * silence.rest
    return any(fit.rest > math.hypot(noise, REST_OVER_TONE * abs(fit.size["tone"])) for fit in levels)


def _judge(config: RadioConfig, taken: RadioConfig, name: str, parts: list[np.ndarray], fits: list[Lines]) -> Result:
    steps = [
        (drive, fit)
        for drive, part, fit in zip(DRIVE_DB, parts[:-1], fits[:-1], strict=True)
        if np.abs(part).max() < 10.0 ** (RAIL_DBFS / 20.0)
    ]
    if not steps or steps[0][0] != DRIVE_DB[0]:
        raise CalibrationError(
            f"{name}: its own tone at {DRIVE_DB[0]:g} dBFS reaches {20 * math.log10(np.abs(parts[0]).max()):.1f} dBFS "
            "in its receiver at its lowest gain",
            "raise tx_attenuation_db",
        )
    gains = {drive: abs(fit.size["tone"]) / 10.0 ** (drive / 20.0) for drive, fit in steps}
    errors = {drive: _error_db(drive, fit) for drive, fit in steps}
    full_scale = gains[DRIVE_DB[0]]
    curve = {drive: 20.0 * math.log10(gain / full_scale) for drive, gain in sorted(gains.items())}
    values: dict[str, Value] = {
        "leak_dbc": fits[-1].dbc("leak", full_scale),
        "image_dbc": fits[0].dbc("image", abs(fits[0].size["tone"])),
        "rx_image_dbc": fits[0].dbc("rx tone", abs(fits[0].size["tone"])),
        "echo_db": 20.0 * math.log10(full_scale)
        + (config.rx_gain_db - taken.rx_gain_db)
        - (config.tx_attenuation_db - taken.tx_attenuation_db),
    }
    if 0.0 in curve:
        values["compression_db"] = Estimate.normal(-curve[0.0], math.hypot(errors[0.0], errors[DRIVE_DB[0]]), "db")
    curves = {"am_in_dbfs": np.array(list(curve)), "am_out_db": np.array(list(curve.values()))}
    return Result("level", name, values, curves, _finding(values, name))


def _error_db(drive: float, fit: Lines) -> float:
    """Give the standard deviation of the tone's level in dB: noise, and the rounding of its transmitter's converter.

    A uniform quantiser with steps of 1 passes a tone of amplitude A with a gain wrong by up to
    (2 / pi A) |J_1(2 pi A)|, about 0.2 A^-1.5.
    """
    rounding = 0.2 * (CONVERTER_STEPS * 10.0 ** (drive / 20.0)) ** -1.5
    return 20.0 / math.log(10.0) * math.hypot(fit.sigma["tone"] / abs(fit.size["tone"]), rounding)


def _scale(config: RadioConfig) -> float:
    """Shrink all offsets when filters are narrower than half the rate."""
    return min(1.0, 2.0 * config.bandwidth_hz / config.rate_hz)


def _arrange(radio: Radio, config: RadioConfig, heard: Heard) -> RadioConfig:
    """Tune receive below transmit, attenuate to what may be radiated at full drive, and set the gain for it."""
    extra_db = 0.0
    if isinstance(radio, SafeRadio):
        band = radio.safety.band_of(config.tx_hz, config.bandwidth_hz)
        full_dbm = radio.capabilities.tx_full_scale_dbm
        if band is not None:
            over_db = radio.safety.radiated_dbm(full_dbm, 0.0, config.tx_attenuation_db) - band.eirp_dbm
            extra_db = max(0.0, math.ceil(over_db + 0.01))
    below_hz = TUNED_BELOW * _scale(config) * config.rate_hz
    wanted = replace(config, rx_hz=config.tx_hz - below_hz, tx_attenuation_db=config.tx_attenuation_db + extra_db)
    change_db = FULL_DRIVE_DBFS - (20.0 * math.log10(heard.gain) - extra_db)
    while True:
        try:
            return radio.configure(replace(wanted, rx_gain_db=float(round(config.rx_gain_db + change_db))))
        except RadioRefused:
            if abs(change_db) < 0.5:
                raise
            # a device's limits are not told: approach the gain that it has taken before
            change_db = math.copysign(max(0.0, abs(change_db) - GAIN_STEP_DB), change_db)


def _staircase(radio: Radio, offset: int, tone: float) -> list[np.ndarray]:
    """Send the tone at all levels in one burst, and cut what is received into levels and the silence behind them."""
    ends = np.cumsum(SAMPLES)
    size = np.repeat(10.0 ** (np.array(DRIVE_DB) / 20.0), SAMPLES)
    wave = (size * np.exp(2j * np.pi * tone * np.arange(ends[-1]))).astype(np.complex64)
    begin = radio.transmit(wave, None).start - offset
    heard = radio.receive(int(ends[-1]) + SILENCE, begin).samples
    return [part[SETTLE:-SETTLE] for part in np.split(heard, ends)]


def _finding(values: dict[str, Value], name: str) -> Finding | None:
    leak, compression = values["leak_dbc"], values.get("compression_db")
    if isinstance(leak, Estimate) and leak.value > LEAK_LIMIT_DBC:
        return Finding(
            "leak",
            f"{name} radiates its carrier at {leak.value:.1f} dBc of full scale while it sends nothing; "
            f"{LEAK_LIMIT_DBC:g} dBc pass",
            "let its driver calibrate the transmitter anew, or repair the radio",
        )
    if isinstance(compression, Estimate) and compression.value > COMPRESSION_LIMIT_DB:
        return Finding(
            "clip",
            f"{name}: its gain at full drive is {compression.value:.2f} dB below that at {DRIVE_DB[0]:g} dBFS; "
            f"{COMPRESSION_LIMIT_DB:g} dB pass",
            "raise tx_attenuation_db, or look for an amplifier that is driven too far",
        )
    return None
