"""The end to end steps: how evenly nodes arrive, and how right sums of known values are, for 1 to all nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import t

from calibration.bench import Bench, decibels
from calibration.predict import CLIPPING_AT_9_DB, Mode, NodeBudget, predict_nmse_db, signal_power
from calibration.result import Estimate, Finding, Result, Value
from calibration.tasks import known_symbols
from radio.payload import Payload
from radio.uplink import Aggregate

#: A node that arrives further off than this from what is expected of it, burst after burst, is out of balance.
BALANCE_DB = 0.5
#: More than this above what the measured phases, amplitudes and noise explain is a defect.
LOSS_DB = 2.0
#: Bursts that tell how evenly nodes arrive, and lower drives at which the sum of all is measured, in dB.
LEVELS, SWEEP_DB = 6, (-10.0, -20.0)


def balance(bench: Bench) -> list[Result]:
    """Let all nodes send at once and compare how strong each arrives with what is expected of it.

    The first bursts let the slow power control settle as in a run. It goes on in the others, and each takes back what
    noise made of the one before, so their spread says little of their mean; the noise of the pilots does.
    """
    bench.ready("balance")
    bench.admit("balance")  # what the steps before it took their time for has moved the links
    rows, variances = [], []
    for number in range(2 * LEVELS):
        aggregate = _decoded(bench, "balance", bench.names, bench.seed + 104729 + number, 1.0)
        if number >= LEVELS:
            rows.append(np.abs(aggregate.gains).mean(1))
            variances.append(aggregate.verification.sigma_rad**2 / aggregate.verification.pilots)
    levels_db = 20 * np.log10(np.maximum(np.array(rows), 1e-6))
    sigmas_db = 20 / math.log(10) * np.sqrt(np.sum(variances, axis=0)) / LEVELS
    results = []
    for place, name in enumerate(bench.names):
        series = levels_db[:, place]
        level = Estimate.normal(float(series.mean()), float(sigmas_db[place]), "db")
        finding = None
        if series.min() > BALANCE_DB or series.max() < -BALANCE_DB:  # every time: fading alone comes and goes
            text = f"{name}: arrives {level.value:+.2f} dB from what is expected, the limit is {BALANCE_DB} dB"
            finding = Finding("balance", text, "look for a loose connector or a moving antenna, and measure again")
        results.append(Result("balance", name, {"level_db": level}, {"level_db": series}, finding))
    return results


def sums(bench: Bench) -> list[Result]:
    """Measure sums of known values for 1 to all nodes, and of all nodes at lower power, beside what is predicted."""
    bench.ready("sum")
    mode: Mode = "C" if bench.mode == "C" else "R"
    rows = []
    everybody = len(bench.names)
    # From all to one: a node that has paused is known as it was before its pause, and links fade.
    plan = [(count, 0.0) for count in range(everybody, 0, -1)] + [(everybody, level_db) for level_db in SWEEP_DB]
    whole: list[Aggregate] = []
    for number, (count, level_db) in enumerate(plan):
        names, drive = bench.names[:count], 10 ** (level_db / 20)
        seeds = [bench.seed + 15485863 + 1000 * number + burst for burst in range(bench.options.sums)]
        if level_db:
            bench.admit("sum")
        seen, table = [], []
        for seed in seeds:
            budgets, noise = _budgets(bench, names), bench.uplink.noise / (bench.uplink.level * drive) ** 2
            predicted = 10 ** (predict_nmse_db(mode, budgets, noise) / 10)
            bound = noise / (2 if mode == "R" else 1) / signal_power(budgets)
            expected = {name: bench.uplink.arrival(name) * bench.uplink.shape(name) for name in names}
            seen.append(_decoded(bench, "sum", names, seed, drive))
            table.append((*_errors(bench, expected, seen[-1], seed), predicted, bound))
        found = np.array(table)
        error, formula, signal, predicted, bound = found.mean(0)
        clipping = CLIPPING_AT_9_DB[mode] if drive == 1.0 else 0.0
        ratios = error / signal, predicted, formula / signal + clipping, bound
        rows.append((count, level_db, *(decibels(ratio) for ratio in ratios), *interval_db(found[:, 0], found[:, 2])))
        if number == 0:
            whole, kept = seen, bench.kept["sum"]
    bench.kept["sum"] = kept  # the samples worth keeping are those of all nodes at full power
    results = np.array(rows)
    full = results[0]
    loss = full[2] - full[4]
    finding = None
    if full[6] - full[4] > LOSS_DB:
        finding = Finding(
            "sum",
            f"the sum of {everybody} nodes is {loss:.1f} dB worse than the measured phases, levels and noise "
            f"explain, the limit is {LOSS_DB:g} dB",
            "look for clipping, lost samples or another transmitter; then measure again from step noise",
        )
    values: dict[str, Value] = {
        "nmse_db": Estimate(float(full[2]), float(full[6]), float(full[7]), "db"),
        "predicted_db": float(full[3]),
        "formula_db": float(full[4]),
        "bound_db": float(full[5]),
        "loss_db": float(loss),
        "mode": mode,
    }
    names = ("sum_nodes", "sum_level_db", "sum_nmse_db", "sum_predicted_db", "sum_formula_db", "sum_bound_db")
    curves = {key: results[:, column] for column, key in enumerate((*names, "sum_low_db", "sum_high_db"))}
    gains = [aggregate.verification.gain for aggregate in whole]
    curves["iq_pilots"] = np.concatenate([gain.reshape(-1) for gain in gains])
    curves["iq_node"] = np.concatenate([np.repeat(np.arange(len(gain)), gain.shape[1]) for gain in gains])
    if mode == "R":
        curves["q_sigma_rad"] = np.array([aggregate.q_sigma_rad for aggregate in whole])
    return [Result("sum", "server", values, curves, finding)]


def interval_db(errors: np.ndarray, signals: np.ndarray) -> tuple[float, float]:
    """Give the 95 % interval in dB of the mean error of bursts over their mean power, from its spread over bursts.

    Other values would have other powers, too: what counts is how far each error is from the same ratio to its power
    (ratio estimator, Cochran 1977, Sampling Techniques, eq. 6.13).
    """
    ratio = float(errors.mean() / signals.mean())
    spread = (errors - ratio * signals).std(ddof=1) / signals.mean()
    half = float(t.ppf(0.975, errors.size - 1) * spread) / math.sqrt(errors.size)
    return decibels(max(ratio - half, 0.1 * ratio)), decibels(ratio + half)


def _budgets(bench: Bench, names: Sequence[str]) -> list[NodeBudget]:
    peers, uplink = bench.uplink.peers, bench.uplink
    return [NodeBudget(uplink.arrival(name) ** 2, math.sqrt(peers[name].phase_variance), 0.0) for name in names]


def _decoded(bench: Bench, step: str, names: Sequence[str], seed: int, drive: float) -> Aggregate:
    """Let nodes send known values, decode their sum in units of what arrives at this drive, and follow the links.

    The slow loops take up what the pilots show, as they do after every round of a run.
    """
    window = bench.burst(step, names, [seed], "phase", {}, drive)[0]
    shifts = [bench.names.index(name) for name in names]
    count, noise = known_symbols(bench.profile, bench.mode, 0, 0).size, bench.uplink.noise
    payload = Payload(bench.profile, bench.mode, count, seed, appended=False)
    scaled = replace(window, grid=window.grid / np.float32(drive), nulls=window.nulls / np.float32(drive))
    aggregate = bench.uplink.decode([scaled], names, payload, seed, shifts)
    bench.uplink.absorb(names, aggregate, dict.fromkeys(names, 1.0))
    if drive != 1.0:
        bench.uplink.noise = noise  # what was scaled is not the receiver's noise
    return aggregate


def _errors(
    bench: Bench, expected: Mapping[str, np.ndarray], aggregate: Aggregate, seed: int
) -> tuple[float, float, float]:
    """Give the mean square error of one sum, what its own pilots and noise explain of it, and the sum's power.

    The target of node k is its values times the amplitude at which it arrives, as the pilots show it.
    """
    exact = bench.mode == "C"
    target = np.zeros(aggregate.elements[0].shape, np.complex128)
    formula = aggregate.noise if exact else aggregate.noise / 2
    for place, (name, arrival) in enumerate(expected.items()):
        shift = bench.names.index(name)
        symbols = known_symbols(bench.profile, bench.mode, seed, shift)
        grid = Payload(bench.profile, bench.mode, symbols.size, seed, appended=False).fill(symbols)[0]
        size = arrival * float(np.abs(aggregate.gains[place].mean()))
        target += size * grid
        angle = float(np.angle(aggregate.gains[place].mean()))
        formula += float(np.mean(size**2)) * (abs(np.exp(1j * angle) - 1) ** 2 if exact else (1 - math.cos(angle)) ** 2)
    off = aggregate.elements[0] - target
    part = off if exact else off.real
    whole = target if exact else target.real
    return float(np.mean(np.abs(part) ** 2)), formula, float(np.mean(np.abs(whole) ** 2))
