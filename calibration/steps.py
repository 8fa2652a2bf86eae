"""The table of calibration steps in their order, and the loop that runs them; measures nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from calibration.alone import everybody, inventory
from calibration.bench import Again, Bench, Failed
from calibration.coherence import phase
from calibration.linksteps import lock, timing
from calibration.oscillate import oscillator
from calibration.result import Finding, Result
from calibration.sounded import sounding
from calibration.sums import balance, sums
from radio.errors import ConfigError, SamplesLost, TestbedError

#: How often a step is tried when something that passes came between.
TRIES = 3


@dataclass(frozen=True)
class Step:
    """One step: its name, what it is about, and the function that measures."""

    name: str
    title: str
    run: Callable[[Bench], list[Result]]


def _alone(name: str, title: str) -> Step:
    return Step(name, title, partial(everybody, step=name))


STEPS: tuple[Step, ...] = (
    Step("inventory", "what each radio is", inventory),
    _alone("preflight", "what each radio may send"),
    _alone("noise", "noise, gain line-up, spurs and interferers"),
    _alone("level", "compression, LO leak and image of each transmitter"),
    _alone("integrity", "lost and repeated samples"),
    _alone("offset", "TX-RX offset over restarts"),
    Step("lock", "beacons found and followed", lock),
    Step("oscillator", "warm-up, frequency and stability of the crystals", oscillator),
    Step("sounding", "gain, delay and echoes of each link", sounding),
    Step("timing", "timing loop", timing),
    Step("phase", "phase error against horizon, and pairs that cancel", phase),
    Step("balance", "how evenly the nodes arrive", balance),
    Step("sum", "sums of known values", sums),
)
NAMES = tuple(step.name for step in STEPS)


def choose(first: str | None, wanted: Sequence[str]) -> tuple[Step, ...]:
    """Give the steps from ``first`` on, or those that are named, in the order of the table.

    Raises:
        ConfigError: there is no such step.
    """
    for name in [*([first] if first else []), *wanted]:
        if name not in NAMES:
            raise ConfigError(f"no calibration step {name!r}", f"use one of: {', '.join(NAMES)}")
    start = NAMES.index(first) if first else 0
    return tuple(step for step in STEPS[start:] if not wanted or step.name in wanted)


def run_steps(bench: Bench, steps: Sequence[Step], keep: Callable[[Bench, Step, list[Result]], None]) -> None:
    """Run steps in their order; the first that finds something wrong is the last.

    Args:
        bench: the lab.
        steps: from ``choose``.
        keep: takes the results of every step as soon as there are any.
    """
    for step in steps:
        results = _tried(bench, step)
        bench.results.update({(result.step, result.radio): result for result in results})
        keep(bench, step, results)
        if any(not result.passed for result in results):
            return


def _tried(bench: Bench, step: Step) -> list[Result]:
    """Run one step, again when a stream slipped or a node was late, which happens in real time."""
    for left in reversed(range(TRIES)):
        bench.tries = left
        try:
            return step.run(bench)
        except Failed as failure:
            return failure.results
        except (Again, SamplesLost) as error:
            bench.locked = False
            bench.say(f"{step.name} once more: {error}")
            if not left:
                return [Result(step.name, "server", finding=Finding("lost", str(error), "use a faster host"))]
        except TestbedError as error:
            return [Result(step.name, "server", finding=Finding("lost", error.message, error.remedy))]
    raise AssertionError("a step is tried at least once")
