"""The step that sounds every link: gain per bin, delay and echoes, with their errors; knows no estimator's inside."""

from __future__ import annotations

import numpy as np

from calibration.bench import Bench, Heard
from calibration.channel import estimate_channel
from calibration.linksteps import jumps, level_db, loose
from calibration.result import Finding, Result, Value
from radio.errors import LinkError
from radio.sync import sounding as pilots_of

#: The least SNR of a link per resource element.
SOUNDING_DB = 0.0
#: Largest part of the cyclic prefix that echoes may fill, strongest path to last.
PREFIX_SHARE = 0.5
#: Echoes weaker than this below the strongest path do no harm.
ECHO_DB = 20.0


def sounding(bench: Bench) -> list[Result]:
    """Sound every link many times."""
    bench.ready("sounding")
    heard = bench.admit("sounding", bench.options.soundings)
    return [_link(bench, name, each) for name, each in heard.items()]


def _link(bench: Bench, name: str, heard: Heard) -> Result:
    profile = bench.profile
    try:
        found = estimate_channel(heard.grids, pilots_of(profile), heard.noises, profile, bench.uplink.full_drive)
    except LinkError as error:
        return Result("sounding", name, finding=Finding("weak", f"{name}: {error.message}", error.remedy))
    values: dict[str, Value] = {
        "gain_db": found.gain_db,
        "snr_db": found.snr_db,
        "delay_samples": found.delay_samples,
        "rms_delay_s": found.rms_delay_s,
        "resolution_s": found.resolution_s,
    }
    if found.coherence_hz is not None:
        values["coherence_hz"] = found.coherence_hz
    curves = {
        "bin": np.asarray(profile.bins),
        "gain": found.ls,
        "gain_sigma": found.ls_sigma,
        "gain_mmse": found.mmse,
        "pdp_s": found.pdp_s,
        "pdp_db": found.pdp_db,
    }
    result = loose("sounding", name, jumps(level_db(heard)), values, curves)
    if result is not None:
        return result
    finding = None
    echoes = found.pdp_s[found.pdp_db > -ECHO_DB]
    reach_s = float(echoes.max() - echoes.min()) - found.resolution_s
    if found.snr_db.value < SOUNDING_DB:
        finding = Finding(
            "weak",
            f"{name}: arrives at {found.snr_db.value:.1f} dB per resource element, the least is {SOUNDING_DB:g} dB",
            "move it closer, lower its tx_attenuation_db, or check its antenna and cable",
        )
    elif reach_s > PREFIX_SHARE * profile.cp / profile.rate_hz:
        finding = Finding(
            "dispersion",
            f"{name}: echoes above -{ECHO_DB:g} dB reach over {1e6 * reach_s:.1f} us, half of the cyclic prefix is "
            f"{0.5e6 * profile.cp / profile.rate_hz:.1f} us",
            "use a waveform with a longer prefix, or a smaller room",
        )
    return Result("sounding", name, values, curves, finding)
