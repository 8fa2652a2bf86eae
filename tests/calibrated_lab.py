"""A lab in this process as the steps of a calibration see it."""

import json
import math
from typing import Any

from calibration.bench import Bench
from calibration.options import CalibrationOptions
from calibration.result import Result
from calibration.steps import choose, run_steps
from calibration.tasks import Reply, Task, carry_out
from radio.base import RadioConfig
from radio.errors import CalibrationError, LinkError, RadioError, TooLate
from radio.ether import Ether
from radio.links import THERMAL_DBM_PER_HZ
from radio.loopback import LoopbackRadio
from radio.nodelink import NodeLink
from radio.ofdm import PROFILES
from radio.presets import preset
from radio.safety import PROFILES as SAFETY
from radio.safety import SafeRadio
from radio.serverlink import ServerLink
from radio.station import Station

QUICK = {
    "integrity_s": 3,
    "restarts": 3,
    "warm_up_s": 2,
    "oscillator_s": 3,
    "soundings": 6,
    "timing_bursts": 20,
    "phase_bursts": 4,
    "sums": 2,
}


class Watched:
    """A team of nodes in this process, whose tasks run one after the other.

    It remembers its last soundings: what was asked, and where they began in TX indices.
    """

    def __init__(self, links: dict[str, NodeLink]):
        self.links = links
        self.starts: dict[str, list[int]] = {}
        self.tasks: dict[str, Task] = {}

    def ask(self, tasks, span_s):
        replies = {}
        for name, task in tasks.items():
            try:
                replies[name] = carry_out(self.links[name], task)
            except (RadioError, LinkError, CalibrationError) as error:
                late = error.late_samples if isinstance(error, TooLate) else 0
                replies[name] = Reply(failure=error.message, late_samples=late)
        sounded = [name for name, task in tasks.items() if task.what == "sound" and "starts" in replies[name].arrays]
        self.tasks |= {name: tasks[name] for name in sounded}
        self.starts |= {name: replies[name].arrays["starts"].tolist() for name in sounded}
        return replies


def build(
    name: str,
    nodes: int = 2,
    options: dict[str, float] = QUICK,
    profile: str = "pluto-915",
    mode: str = "R",
    **changes: Any,
):
    """Give the bench of a simulated lab, and its air."""
    names = tuple(f"node-{number}" for number in range(1, nodes + 1))
    air = Ether(preset(name, **{"seed": 1, "history_s": 7200.0, **changes}), ["server", *names])
    radios = {each: SafeRadio(LoopbackRadio(each, air), SAFETY["conducted"]) for each in ("server", *names)}
    waveform = PROFILES[profile]
    links = {each: NodeLink(radios[each], waveform, 60.0, 3e-10, 2 + place) for place, each in enumerate(names)}
    bench = Bench(
        ServerLink(radios["server"], waveform, 60.0, 1), names, Watched(links), CalibrationOptions(**options), mode
    )
    bench.lead_samples = max(radios[each].capabilities.lead_samples for each in names)
    return bench, air


def run(bench: Bench, steps: str = "", last: str = "") -> list[Result]:
    """Run steps by name, or all; gives the results of those that ran, each as it comes back from a message."""
    found: list[Result] = []
    chosen = choose(None, [step for step in steps.split(",") if step])
    run_steps(bench, chosen, lambda bench, step, results: found.extend(results))
    return [Result.from_json(json.loads(json.dumps(each.to_json())), each.curves) for each in found]


def findings(results: list[Result]) -> set[tuple[str, str]]:
    """Give what was found wrong: (radio, thing)."""
    return {(each.radio, each.finding.thing) for each in results if each.finding is not None}


def of_one(station: Station, config: RadioConfig) -> dict[str, float]:
    """Give the truth of what one radio measures by itself, by the name of the value."""
    effects = station.effects
    power = 10 ** ((THERMAL_DBM_PER_HZ + effects.noise_figure_db + config.rx_gain_db - effects.rx_fs_offset_dbm) / 10)
    power *= config.rate_hz * (1 + 10 ** (effects.rx_image_dbc / 10))
    power += 2.0 ** (1 - 2 * effects.adc_bits) * 4 / 12 if effects.adc_bits else 0.0
    rapp = 1 + 10 ** (0.2 * (effects.tx_fs_dbm - effects.tx_saturation_dbm))
    return {
        "noise_dbfs": 10 * math.log10(power),
        "dc_dbfs": effects.rx_dc_dbfs,
        "leak_dbc": effects.tx_leak_dbc,
        "image_dbc": effects.tx_image_dbc,
        "rx_image_dbc": effects.rx_image_dbc,
        "compression_db": 5 * math.log10(rapp),
    }
