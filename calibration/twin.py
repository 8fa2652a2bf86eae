"""The digital twin: options of the simulated air that make it behave as a calibrated lab; measures nothing.

Levels are relative: nobody knows the power of full scale. The server is given the noise figure of a good receiver,
which fixes what its full scale is, and with it the loss of every link; a node's noise figure follows from the SNR of
its beacons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Complex64, Float64

from calibration.record import Record
from calibration.result import Result
from radio.clock import PLL_STEP_S
from radio.errors import CalibrationError
from radio.links import THERMAL_DBM_PER_HZ
from radio.ofdm import Profile
from radio.preamble import RMS
from radio.presets import EtherOptions, LinkFacts, preset

__all__ = ["twin_options"]

#: Noise figure of the server's receiver, dB: a convention, see above.
NOISE_FIGURE_DB = 5.0
#: Own leakage of a radio that needs it to find its TX-RX offset, where it was not measured, in dB.
SELF_LEAK_DB = -55.0
#: Most paths of a link, and how close they must come to the measured response, against its error.
PATHS, CLOSE = 4, 1.3
#: What holds the paths' amplitudes down, relative to the response: inside the band they must not cancel each other.
RIDGE = 1e-3
Records = Mapping[tuple[str, str], Record]


def twin_options(records: Records, profile: Profile, seed: int = 0) -> EtherOptions:
    """Build the air of a lab from what was measured of it.

    Taken over: serial, tier, turnaround, blocks, highest rate and hidden latency of every radio; clock error, drift,
    Allan deviation and PLL noise; noise level, DC, images, LO leak, compression and own leakage; gain, delay and
    response of every link. Links stand still, and the phases of a radio's faults come from ``seed``.

    Args:
        records: newest record by step and radio, of steps up to ``sounding``.
        profile: waveform of the calibration.
        seed: of the air.

    Raises:
        CalibrationError: a radio or link lacks what the twin cannot do without.
    """
    nodes = sorted(radio for step, radio in records if step == "sounding")
    if not nodes:
        raise CalibrationError("no link was sounded: nothing to build a twin of", "calibrate up to the step sounding")
    server = _Radio(records, "server")
    floor_dbm = THERMAL_DBM_PER_HZ + 10 * math.log10(profile.rate_hz)
    top_dbm = server.full_scale_dbm(floor_dbm + NOISE_FIGURE_DB)
    crystal = _crystals(records, nodes)
    delays = {name: _Radio(records, name).link["delay_samples"] for name in nodes}
    first = min(delays.values())
    radios: dict[str, dict[str, Any]] = {
        "server": {
            **server.effects(top_dbm, profile),
            "noise_figure_db": NOISE_FIGURE_DB,
            "ppm": 0.0,
            "adev": crystal["server"],
        }
    }
    links: dict[str, LinkFacts] = {}
    for name in nodes:
        node = _Radio(records, name)
        loss_db = server.key.tx_attenuation_db
        gain_db = node.link["gain_db"] + node.key.tx_attenuation_db + top_dbm - server.key.rx_gain_db
        taps, shape_db = _paths(node.sounding, profile)
        figure_db = NOISE_FIGURE_DB
        if "snr_db" in (lock := node.values("lock")):
            heard_dbm = gain_db - loss_db + 20 * math.log10(RMS)
            figure_db = max(heard_dbm - lock["snr_db"] - floor_dbm, 0.0)
        radios[name] = {
            **node.effects(node.full_scale_dbm(floor_dbm + figure_db), profile),
            "noise_figure_db": figure_db,
            "ppm": node.values("oscillator").get("ppm", 0.0),
            "drift_ppb_per_s": node.values("oscillator").get("drift_ppb_per_s", 0.0),
            "adev": crystal[name],
            "phase_noise_deg": _pll_deg(node, profile),
        }
        links[name] = LinkFacts(
            gain_db=min(gain_db + shape_db, 0.0), delay_s=(delays[name] - first) / profile.rate_hz, taps=taps
        )
    return preset("ideal", seed=seed, link_phase=True, radios=radios, links=links)


class _Radio:
    """What was measured of one radio."""

    def __init__(self, records: Records, name: str) -> None:
        self.name, self._records = name, records
        self.key = self._record("noise").key

    def _record(self, step: str) -> Record:
        record = self._records.get((step, self.name))
        if record is None:
            raise CalibrationError(
                f"{self.name}: no record of the step {step}, which the twin needs", f"testbed calibrate --steps {step}"
            )
        return record

    def values(self, step: str) -> dict[str, float]:
        """Give the numbers of a step; none when it was not done."""
        record = self._records.get((step, self.name))
        if record is None:
            return {}
        numbers = [name for name, value in record.result.values.items() if not isinstance(value, str)]
        return {name: record.result.number(name) for name in numbers}

    @property
    def sounding(self) -> Result:
        """The link to the server.

        Raises:
            CalibrationError: it was not sounded, or not heard.
        """
        result = self._record("sounding").result
        if "gain" not in result.curves:
            raise CalibrationError(f"{self.name}: its link was not measured", "testbed calibrate --steps sounding")
        return result

    @property
    def link(self) -> dict[str, float]:
        """Numbers of the link to the server."""
        return self.values(self.sounding.step)

    def full_scale_dbm(self, noise_dbm: float) -> float:
        """Give the power at the antenna that is full scale, at no gain, when the noise per sample is so strong."""
        noise_dbfs = self._record("noise").result.number("noise_dbfs")
        return noise_dbm + self.key.rx_gain_db - noise_dbfs

    def effects(self, top_dbm: float, profile: Profile) -> dict[str, Any]:
        """Give what is wrong with the radio, as fields of ``RadioEffects``."""
        inventory, level, key = self._record("inventory").result, self.values("level"), self.key
        told = inventory.values
        found: dict[str, Any] = {
            "serial": told["serial"],
            "tier": told["tier"],
            "max_rate_hz": told["max_rate_hz"],
            "block_samples": told["block_samples"],
            "turnaround_s": inventory.number("turnaround_samples") / profile.rate_hz,
            "start_spread_s": 0.0 if told["shared_reference"] else 0.05,
            "lo_start_phase": True,
            "rx_fs_offset_dbm": top_dbm,
        }
        if not told["one_timeline"]:
            offsets = np.abs(self._record("offset").result.curves["offset_samples"])
            found["tx_latency_max_s"] = float(offsets.max()) / profile.rate_hz
            found["self_leak_db"] = SELF_LEAK_DB
        if "echo_db" in level:
            found["self_leak_db"] = level["echo_db"] + key.tx_attenuation_db - key.rx_gain_db + top_dbm
        names = {"leak_dbc": "tx_leak_dbc", "image_dbc": "tx_image_dbc", "rx_image_dbc": "rx_image_dbc"}
        found |= {field: level[name] for name, field in names.items() if name in level}
        if "dc_dbfs" in (noise := self.values("noise")):
            found["rx_dc_dbfs"] = noise["dc_dbfs"]
        if level.get("compression_db", 0.0) > 0.01:
            # Rapp's model of smoothness 2: compression 5 log10(1 + (a/s)^4) dB at amplitude a, here full scale, 0 dBm
            found["tx_saturation_dbm"] = -5 * math.log10(10 ** (level["compression_db"] / 5) - 1)
        return found


def _crystals(records: Records, nodes: list[str]) -> dict[str, float]:
    """Give every radio's own Allan deviation: as measured, else an equal share of its pair's."""
    own = {name: _Radio(records, name).values("oscillator") for name in ("server", *nodes)}
    pairs = [values["adev"] / math.sqrt(2) for values in own.values() if "adev" in values]
    server = own["server"].get("adev_own", float(np.median(pairs)) if pairs else 0.0)
    found = {"server": server}
    for name in nodes:
        rest = max(own[name].get("adev", 0.0) ** 2 - server**2, 0.0)  # pairs and the server leave this to the node
        found[name] = own[name].get("adev_own", math.sqrt(rest))
    return found


def _pll_deg(node: _Radio, profile: Profile) -> float:
    """Give the phase noise of one LO, rms: what the receiver's noise does not explain in the phases of beacons.

    The four long sequences of a beacon average it, and two LOs share it.
    """
    white, lock = node.values("oscillator").get("white_phase_rad"), node.values("lock").get("snr_db")
    if white is None or lock is None:
        return 0.0
    samples = 4 * profile.ltf
    rest = white**2 - 10 ** (-lock / 10) / (2 * samples)
    return min(math.degrees(math.sqrt(max(rest, 0.0) * samples / (profile.rate_hz * PLL_STEP_S) / 2)), 5.0)


def _paths(sounding: Result, profile: Profile) -> tuple[tuple[tuple[float, float, float], ...], float]:
    """Fit the fewest paths that give the measured response in its band.

    Returns:
        Paths as in ``LinkFacts``, and the gain in dB of their powers' sum against the mean response in the band.
    """
    response = np.asarray(sounding.curves["gain"])
    error = float(np.sqrt(np.mean(np.asarray(sounding.curves["gain_sigma"]) ** 2)))
    bins = np.asarray(sounding.curves["bin"], dtype=np.float64)
    size = float(np.sqrt(np.mean(np.abs(response) ** 2)))
    # The delay is known apart: without it the response is that of paths around the first.
    flat = response / size * np.exp(2j * np.pi * bins / profile.fft * sounding.number("delay_samples"))
    for count in range(1, PATHS + 1):
        taps, fitted = _fit(flat.astype(np.complex64), bins / profile.fft, count)
        if np.sqrt(np.mean(np.abs(flat - fitted) ** 2)) <= CLOSE * error / size:
            break
    inside = float(np.mean(np.abs(fitted) ** 2))
    paths = tuple((n / profile.rate_hz, float(tap.real), float(tap.imag)) for n, tap in enumerate(taps))
    return paths, 10 * math.log10(float(np.sum(np.abs(taps) ** 2)) / inside)


def _fit(
    response: Complex64[np.ndarray, " bin"], cycles: Float64[np.ndarray, " bin"], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fit paths one sample apart to a response; returns them and their response."""
    model = np.exp(-2j * np.pi * np.outer(cycles, np.arange(count)))
    normal = model.conj().T @ model + RIDGE * cycles.size * np.eye(count)
    taps = np.linalg.solve(normal, model.conj().T @ response)
    return taps, model @ taps
