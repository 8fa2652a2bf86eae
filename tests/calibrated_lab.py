"""A lab in this process as the steps of a calibration see it."""

import json
from typing import Any

from calibration.bench import Bench, InProcess
from calibration.options import CalibrationOptions
from calibration.result import Result
from calibration.steps import choose, run_steps
from calibration.tasks import Task
from radio.ether import Ether
from radio.loopback import LoopbackRadio
from radio.nodelink import NodeLink
from radio.ofdm import PROFILES
from radio.presets import preset
from radio.safety import PROFILES as SAFETY
from radio.safety import SafeRadio
from radio.serverlink import ServerLink

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


class Watched(InProcess):
    """A team that remembers its last soundings: what was asked, and where they began in TX indices."""

    def __init__(self, links):
        super().__init__(links)
        self.starts: dict[str, list[int]] = {}
        self.tasks: dict[str, Task] = {}

    def ask(self, tasks, span_s):
        replies = super().ask(tasks, span_s)
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
