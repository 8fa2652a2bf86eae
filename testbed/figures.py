"""Draws the table of a sweep, and the bounds of theory beside it; it reads rows and knows nothing of who made them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student

from testbed.sweep import FigureOptions, Plan, Point, Row, Table

__all__ = ["against_last", "bound", "draw", "interval", "points", "reduce_rows", "summary"]

Group = tuple[Any, ...]
UNITS = {
    "round": "round",
    "scheme.snr_db": "received SNR per client, P E|h|²/σ² (dB)",
    "scheme.keep": "entries kept, k/d",
    "scheme.measure": "channel uses per parameter, M/d",
    "run.clients_per_round": "active clients s = rn",
    "data.classes_per_client": "classes per client",
    "loss_train_clients": "loss of training clients (nats)",
    "loss_new_clients": "loss of new clients (nats)",
    "accuracy_new_clients": "accuracy of new clients",
    "generalisation_gap": "loss of new minus of training clients (nats)",
    "gradient_norm_squared": "squared gradient norm of the meta-loss",
    "nmse_update_db": "error of the mean update (dB)",
}
BOUNDED = {"convergence": "mean squared gradient", "generalisation": "generalisation gap"}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % confidence interval (Student); nan without two values."""
    count = len(values)
    if count < 2:
        return (float(values[0]) if count else math.nan), math.nan
    half = float(student.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return float(np.mean(values)), half


def reduce_rows(rows: Sequence[Row], column: str, last: float) -> float:
    """Reduce one trial's measurements to one number: the mean over the last share of the rounds, at least the last.

    Args:
        rows: of one point and seed.
        column: what to read.
        last: share of the rounds.
    """
    usable = [row for row in rows if row.get(column) is not None]
    if not usable:
        return math.nan
    end = max(row["round"] for row in usable)
    return float(np.mean([row[column] for row in usable if row["round"] >= min(end, (1.0 - last) * end)]))


def _trials(table: Table, keys: Sequence[str]) -> dict[Group, dict[int, list[Row]]]:
    """Sort rows by the given labels, then by seed; points that failed are left out."""
    groups: dict[Group, dict[int, list[Row]]] = {}
    for row in table.rows:
        if not row["problem"]:
            groups.setdefault(_group(row, keys), {}).setdefault(row["seed"], []).append(row)
    return groups


def _group(row: Mapping[str, Any], keys: Sequence[str]) -> Group:
    return tuple(tuple(row[key]) if isinstance(row[key], list) else row[key] for key in keys)


def _labels(plan: Plan) -> list[str]:
    return [key for key in plan.points[0].labels if key != "seed"]


def summary(plan: Plan, table: Table) -> str:
    """Give the outcome in Markdown: the points, and where there is an x other than rounds, the changes along it."""
    changes = "" if plan.figure.x == "round" else f"\nAgainst the last:\n\n{against_last(plan, table)}"
    return points(plan, table) + changes


def points(plan: Plan, table: Table) -> str:
    """Give a Markdown table: every point of the grid with mean and 95 % interval of the figure's columns."""
    keys, options = _labels(plan), plan.figure
    lines = [" | ".join(["", *keys, *options.y, "trials", ""]).strip()]
    lines.append("|" + " --- |" * (len(keys) + len(options.y) + 1))
    for group, trials in _trials(table, keys).items():
        cells = [str(value) for value in group]
        for column in options.y:
            mean, half = interval([reduce_rows(rows, column, options.last) for rows in trials.values()])
            cells.append(f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {half:.2g}")
        lines.append(" | ".join(["", *cells, str(len(trials)), ""]).strip())
    return "\n".join(lines) + "\n"


def against_last(plan: Plan, table: Table) -> str:
    """Give a Markdown table of changes against the largest x of the same line, seed by seed, with 95 % intervals.

    Seeds share data, tasks and start: their difference has a far smaller interval than the two means.
    """
    options, text = plan.figure, ["", *plan.figure.lines, plan.figure.x, *(f"change of {y}" for y in plan.figure.y), ""]
    groups = _trials(table, (*options.lines, options.x))
    lines = [" | ".join(text).strip(), "|" + " --- |" * (len(text) - 2)]
    for group, trials in groups.items():
        last = max(x for *line, x in groups if tuple(line) == group[:-1])
        if group[-1] == last:
            continue
        cells = [str(value) for value in group]
        others = groups[(*group[:-1], last)]
        for column in options.y:
            both = trials.keys() & others.keys()
            here, there = ({s: reduce_rows(t[s], column, options.last) for s in both} for t in (trials, others))
            mean, half = interval([here[seed] - there[seed] for seed in sorted(both)])
            cells.append(f"{mean:+.3g} ± {half:.2g}")
        lines.append(" | ".join(["", *cells, ""]).strip())
    return "\n".join(lines) + "\n"


def draw(plan: Plan, table: Table, path: Path) -> None:
    """Draw the sweep's figure.

    Args:
        plan: the sweep.
        table: its outcome.
        path: where to write; the suffix chooses the format.
    """
    options = plan.figure
    count = len(options.y) + len(options.theory)
    columns = count if count < 4 else math.ceil(count / 2)
    down = math.ceil(count / columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * down), layout="constrained")
    axes = list(figure.subplots(down, columns, squeeze=False).flat)
    for panel in axes[count:]:
        panel.remove()
    for panel, column in zip(axes, options.y, strict=False):
        _measured(panel, plan, table, column)
    for panel, theory in zip(axes[len(options.y) :], options.theory, strict=False):
        _bounds(panel, plan, table, theory)
    for panel in axes[:count]:
        panel.set_xlabel(UNITS.get(options.x, options.x))
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="small")
        if options.x == "scheme.snr_db":
            _second_snr(panel, plan)
    if options.title:
        figure.suptitle(options.title)
    figure.savefig(path, dpi=130)


def _measured(panel: Axes, plan: Plan, table: Table, column: str) -> None:
    options = plan.figure
    panel.set_ylabel(UNITS.get(column, column))
    if options.log:
        panel.set_yscale("log")
    for label, curve in _curves(options, table, column).items():
        x = sorted(curve)
        if options.band == "trials":
            low, middle, high = np.array([np.quantile(curve[at], (0.025, 0.5, 0.975)) for at in x]).T
        else:
            middle, half = np.array([interval(curve[at]) for at in x]).T
            low, high = middle - np.nan_to_num(half), middle + np.nan_to_num(half)
        (line,) = panel.plot(x, middle, marker="" if options.x == "round" else "o", label=label or None)
        panel.fill_between(x, low, high, alpha=0.2, color=line.get_color())


def _curves(options: FigureOptions, table: Table, column: str) -> dict[str, dict[float, list[float]]]:
    """Collect line label -> x -> one value per trial."""
    curves: dict[str, dict[float, list[float]]] = {}
    keys = options.lines if options.x == "round" else (*options.lines, options.x)
    for group, trials in _trials(table, keys).items():
        curve = curves.setdefault(_name(options.lines, group), {})
        for rows in trials.values():
            if options.x == "round":
                for row in rows:
                    if row[column] is not None:
                        curve.setdefault(row["round"], []).append(row[column])
            else:
                curve.setdefault(group[-1], []).append(reduce_rows(rows, column, options.last))
    return curves


def _name(keys: Sequence[str], group: Group) -> str:
    values = group[: len(keys)]
    return ", ".join(
        str(value) if isinstance(value, str) else f"{key.rsplit('.', 1)[-1]} = {value}"
        for key, value in zip(keys, values, strict=True)
    )


def _bounds(panel: Axes, plan: Plan, table: Table, theory: str) -> None:
    """Draw the bound of each setting of the grid: a trend, in units of its own."""
    options = plan.figure
    panel.set_ylabel(f"bound on the {BOUNDED[theory]}")
    panel.set_title("read the trend: its size says nothing", fontsize="medium")
    panel.set_yscale("log")
    used = {_group(row, tuple(plan.points[0].labels)): row["channel_uses"] for row in table.rows if not row["problem"]}
    curves: dict[tuple[str, str], dict[float, float]] = {}
    for point in plan.points:
        label = _name(options.lines, _group(point.labels, options.lines))
        rounds = point.experiment.run.rounds
        uses = round(used.get(_group(point.labels, tuple(point.labels)), 0.0) / rounds)
        ends = [rounds] if options.x != "round" else sorted({max(1, rounds * k // 40) for k in range(1, 41)})
        for end in ends:
            for part, value in bound(point, theory, table.constants.get(point.key), end, uses).items():
                curve = curves.setdefault((label, part), {})
                curve[end if options.x == "round" else point.labels[options.x]] = value
    names = dict.fromkeys(_name(options.lines, _group(point.labels, options.lines)) for point in plan.points)
    colours = {label: f"C{number}" for number, label in enumerate(names)}  # those of the measured lines
    for (label, part), line in curves.items():
        name, style = ", ".join(filter(None, (label, part))), ":" if part else "--"
        x = sorted(line)
        panel.plot(x, [line[at] for at in x], style, color=colours[label], label=name or None)


def bound(point: Point, theory: str, constants: Mapping[str, float] | None, rounds: int, uses: int) -> dict[str, float]:
    """Evaluate the figure's bound for one point; empty where none applies.

    Args:
        point: its settings.
        theory: which bound.
        constants: of ``fl_core.theory.Constants``; None when they were not estimated.
        rounds: T.
        uses: channel uses of a round.

    Returns:
        Name of a part, or "" for the whole -> value.
    """
    from fl_core.theory import Constants, System, convergence_bound, generalisation_bound, linear

    experiment = point.experiment
    data, learn, scheme, active = experiment.data, experiment.learn, experiment.scheme, experiment.run.clients_per_round
    ideal = scheme.name == "ideal"
    if theory == "convergence" and constants is not None:
        support, query, hessian = (data.ways * count for count in (data.shots, data.queries, data.hessian_shots))
        system = System(
            clients=data.clients,
            active=active,
            local_steps=learn.local_steps,
            alpha=learn.alpha,
            eta=learn.eta,
            contraction=scheme.keep,
            snr_db=math.inf if ideal else scheme.snr_db,
            support=support,
            query=query,
            hessian=hessian,
        )
        system = replace(system, gain_spread=0.0) if ideal or scheme.fading != "rayleigh" else system
        found = convergence_bound(Constants(**constants), system, rounds)
        return {"": found.total, "start and channel alone": found.start + found.channel}
    if theory == "generalisation" and not ideal:
        return {"": generalisation_bound(data.clients, active, rounds, uses, linear(scheme.snr_db))}
    return {}


def _second_snr(panel: Axes, plan: Plan) -> None:
    """Show the other definition on top: the SNR of the sum."""
    active = {point.experiment.run.clients_per_round for point in plan.points}
    if len(active) == 1:
        shift = 10.0 * math.log10(active.pop())
        ways = (lambda x: np.add(x, shift), lambda x: np.subtract(x, shift))
        panel.secondary_xaxis("top", functions=ways).set_xlabel("aggregate, s P κ/σ² (dB)")
