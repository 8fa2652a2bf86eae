"""The steps that every radio does by itself, the server's and the nodes' together, and what only all of them show."""

from __future__ import annotations

from dataclasses import replace

from calibration.bench import Bench, Kept
from calibration.result import Finding, Result
from calibration.tasks import Task, measure
from radio.capture import Part

#: How much of the server's noise is kept.
NOISE_S = 0.02


def everybody(bench: Bench, step: str) -> list[Result]:
    """Let the nodes run a step on their own radios, then the server on its own: nobody disturbs the other's."""
    detail = {"step": step, "options": bench.options.model_dump(mode="json")}
    replies = bench.ask(
        step, {name: Task("measure", {**detail, "name": name}) for name in bench.names}, bench.options.integrity_s
    )
    mine = measure(step, bench.link.radio, bench.link.settings(), bench.options, bench.seed, "server")
    if step == "noise":
        heard = bench.link.radio.receive(round(NOISE_S * bench.profile.rate_hz))
        bench.kept[step] = Kept([heard], (Part(heard.start, heard.samples.size, "noise"),))
    bench.locked = False
    return [mine, *(Result.from_json(replies[name].told, replies[name].arrays) for name in bench.names)]


def inventory(bench: Bench) -> list[Result]:
    """Ask what each radio is, and see that no two are one."""
    results = everybody(bench, "inventory")
    owners: dict[str, list[str]] = {}
    for result in results:
        owners.setdefault(str(result.values["serial"]), []).append(result.radio)
    twins = {name: (serial, names) for serial, names in owners.items() if len(names) > 1 for name in names}
    checked = []
    for result in results:
        if result.radio in twins:
            serial, names = twins[result.radio]
            text = f"{' and '.join(names)} are one radio, serial {serial}"
            result = replace(
                result, finding=Finding("serial", text, "give every machine a radio of its own in lab.toml")
            )
        checked.append(result)
    return checked
