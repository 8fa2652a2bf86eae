"""The constant between a radio's TX and RX counters, measured by its own leakage; knows the Radio protocol only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex64, Float64
from scipy.fft import fft, ifft, next_fast_len

from radio.base import Radio
from radio.errors import CalibrationError, SamplesLost

CODE_SAMPLES = 2048
#: Amplitudes tried in turn: far below the rails of a receiver that hears its transmitter at -55 dB. The last is tried
#: again, as a stream may slip in the middle of a burst.
LEVELS = (0.01, 0.1, 0.1, 0.1)
SEARCH_S = 0.08  # pipeline delay beyond the turnaround that is searched
PEAK_OVER_MEAN = 40.0  # a noise-only search of 2^17 lags exceeds this with probability 2^17 exp(-40) = 6e-13
PEAK_OVER_NEXT = 4.0
ECHO_OVER_CHANCE = 30.0


def code(seed: int) -> Complex64[np.ndarray, " sample"]:
    """Make the burst: random QPSK symbols of unit amplitude, one per sample."""
    draw = np.random.default_rng([seed, 0x7E1])
    quarters = draw.integers(0, 4, CODE_SAMPLES)
    result: np.ndarray = np.exp(0.5j * np.pi * (quarters + 0.5)).astype(np.complex64)
    return result


@dataclass(frozen=True)
class Match:
    """Where a burst lies in samples.

    Attributes:
        lag: index of its first sample.
        amplitude: of the burst as received, per unit of the amplitude of the chips.
        over_mean: power of the correlation over its mean.
        clear: it stands out of noise and of its own side lobes.
    """

    lag: int
    amplitude: float
    over_mean: float
    clear: bool


def match(samples: Complex64[np.ndarray, " sample"], chips: Complex64[np.ndarray, " chip"]) -> Match:
    """Find the best match of a burst in samples that hold it as a whole."""
    power = _correlate(samples, chips)
    peak = int(np.argmax(power))
    away = np.abs(np.arange(power.size) - peak) > 4
    seen = float(power[peak] / (power.mean() + 1e-30))
    clear = seen > PEAK_OVER_MEAN and bool(power[peak] > PEAK_OVER_NEXT * power[away].max())
    return Match(peak, float(np.sqrt(power[peak])) / float(np.vdot(chips, chips).real), seen, clear)


@dataclass(frozen=True)
class Heard:
    """How a radio hears itself.

    Attributes:
        offset: TX index = RX index + offset; the delay of the leakage path (0 to 3 samples) is part of it, as it is of
            every later measurement of the same radio.
        gain: amplitude of the leakage, full scale to full scale, at the present settings.
        level: amplitude of a burst that is heard well.
    """

    offset: int
    gain: float
    level: float


def hear_itself(radio: Radio, seed: int) -> Heard:
    """Send a burst and find it in the radio's own receive stream, whatever its timelines are.

    Args:
        radio: a configured radio whose transmit carrier lies in its receive band; its receive stream is advanced.
        seed: picks the code; give every radio of a lab its own, so that neighbours are not mistaken for the leakage.

    Raises:
        CalibrationError: no clear peak at any level.
    """
    chips = code(seed)
    seen = 0.0
    for level in LEVELS:
        report = radio.transmit((level * chips).astype(np.complex64), None)
        begin = radio.newest()
        settled = radio.capabilities.turnaround_samples + 2 * radio.capabilities.block_samples
        first = radio.receive(CODE_SAMPLES, begin)  # its rate tells how many samples the search spans
        rest = radio.receive(settled + round(SEARCH_S * first.rate_hz) + CODE_SAMPLES)
        found = match(np.concatenate([first.samples, rest.samples]), chips)
        seen = found.over_mean
        if found.clear:
            return Heard(report.start - (begin + found.lag), found.amplitude / level, level)
    raise CalibrationError(
        f"{radio.name}: no clear echo of its own burst; best peak {seen:.1f} times the mean, needed {PEAK_OVER_MEAN:g}",
        "raise rx_gain_db, lower tx_attenuation_db, and tune TX inside the receive band",
    )


def measure_offset(radio: Radio, seed: int) -> int:
    """Measure the integer ``offset`` such that TX index = RX index + offset; 0, untouched, for a radio of one timeline.

    A burst sent at TX index n appears in the radio's own receive stream at RX index n - offset. The result holds until
    the stream restarts or samples are lost. Arguments and errors are those of ``hear_itself``.
    """
    return 0 if radio.capabilities.one_timeline else hear_itself(radio, seed).offset


class Echo:
    """Whether a radio hears itself where its TX-RX offset says; a radio with one timeline is not asked."""

    def __init__(self, radio: Radio) -> None:
        self._radio, self._heard = radio, False

    def forget(self) -> None:
        """Begin anew: the offset was measured again."""
        self._heard = False

    def check(self, sent: Complex64[np.ndarray, " sample"], start: int) -> None:
        """Listen for ``sent`` at RX index ``start``, where the offset puts its first sample.

        Raises:
            SamplesLost: the radio heard itself before, and now does not: a stream has slipped.
        """
        if self._radio.capabilities.one_timeline:
            return
        heard = echoes(self._radio, sent, start)
        if heard is False and self._heard:
            raise SamplesLost(
                f"{self._radio.name}: what it sent did not echo at RX index {start}: a stream has slipped",
                "its offset is measured again; if this repeats, use a lower sample rate or a faster host",
            )
        self._heard = self._heard or heard is True


def echoes(radio: Radio, sent: Complex64[np.ndarray, " sample"], start: int) -> bool | None:
    """Tell if a radio heard itself sending ``sent`` from RX index ``start`` on, within a sample.

    The correlation at the right lag is compared with what chance gives there: a signal that is not in the capture
    leaves an exponentially distributed power, above the limit once in 1e13.

    Returns:
        None when those samples are gone: they were received before, or left the buffer.
    """
    part = sent[:CODE_SAMPLES]
    if start - 1 < radio.now():
        return None
    heard = radio.receive(part.size + 2, start - 1).samples
    flat = heard - heard.mean()
    matched = [abs(np.vdot(part, flat[lag : lag + part.size])) ** 2 for lag in range(3)]
    chance = float(np.vdot(part, part).real) * float(np.mean(np.abs(flat) ** 2))
    return bool(max(matched) > ECHO_OVER_CHANCE * chance)


def _correlate(
    samples: Complex64[np.ndarray, " sample"], chips: Complex64[np.ndarray, " chip"]
) -> Float64[np.ndarray, " lag"]:
    """Correlate with the code at every whole lag, after taking the mean (the receiver's DC) out; returns powers."""
    flat = samples - samples.mean()
    size = next_fast_len(flat.size)  # one circular correlation: the lags that wrap around are cut off
    lags = ifft(fft(flat, size) * np.conj(fft(chips, size)))[: flat.size - chips.size + 1]
    power: np.ndarray = np.abs(lags).astype(np.float64) ** 2
    return power
