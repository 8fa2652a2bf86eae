"""Knows how a run looks in a terminal: a live bar, plain lines in a log, a table at the end; it only reads events."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from testbed.sweep import Progress as SweepStand

__all__ = ["JsonReader", "SweepBar", "Terminal", "verdict_table"]

Event = Mapping[str, Any]


class JsonReader:
    """Writes every event as one JSON line to standard output, for other programs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        sys.stdout.write(json.dumps(dict(event), separators=(",", ":")) + "\n")
        sys.stdout.flush()


class Terminal:
    """Follows a run: a bar that moves on a terminal, one line per event elsewhere, and the final table.

    Args:
        console: where to draw.
        folder: name of the run folder, shown last.
    """

    def __init__(self, console: Console, folder: str) -> None:
        self._console = console
        self._folder = folder
        self._accuracy: float | None = None
        self._progress = Progress(
            TextColumn("[bold]round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, facts="the nodes are joining")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        kind = event.get("kind")
        if kind == "run-started":
            self._progress.update(self._task, total=event.get("rounds"), completed=event.get("first_round", 0))
            count = len(event.get("clients", ()))
            self._line(
                f"run {event.get('run')}: {count} clients, scheme {event.get('scheme')}, "
                f"{event.get('profile')} {event.get('mode')}-mode, {event.get('dimension')} parameters"
            )
        elif kind == "round-finished":
            self._round(event)
        elif kind == "evaluated":
            self._accuracy = event.get("accuracy_new_clients")
            self._line(f"round {_one(event)}: accuracy of new clients {_percent(self._accuracy)}")
        elif kind == "warning":
            self._line(f"[yellow]warning[/]: {_plain(event.get('text', event))}", always=True)
        elif kind == "node-changed" and event.get("state") != "ready":
            self._line(f"node {event.get('node')}: {event.get('state')}", always=True)
        elif kind == "run-finished":
            self._finish(event)

    def _round(self, event: Event) -> None:
        measured, canary, predicted = (_db(event.get(f"nmse_{key}_db")) for key in ("sum", "canary", "predicted"))
        facts = f"NMSE {measured} dB (canary {canary}, predicted {predicted})"
        if self._accuracy is not None:
            facts += f", accuracy {_percent(self._accuracy)}"
        self._progress.update(self._task, completed=_one(event), facts=facts)
        voided = " VOIDED" if event.get("voided") else ""
        if not self._console.is_terminal:
            self._line(f"round {_one(event)}{voided}: {facts}, {len(event.get('clients', ()))} clients")
        elif voided:
            why = ", ".join(f"{loss.get('node')} {loss.get('reason')}" for loss in event.get("losses") or ())
            self._line(f"[yellow]round {_one(event)} voided[/]: {_plain(why or 'no usable sum')}", always=True)

    def _finish(self, event: Event) -> None:
        self._progress.stop()
        if event.get("outcome") != "finished":
            self._line(f"run {_plain(event.get('outcome'))}: {_plain(event.get('reason'))}", always=True)
        table = Table(title="Accuracy of clients never seen in training", title_justify="left")
        table.add_column("trained with")
        table.add_column("before", justify="right")
        table.add_column("after one fine-tuning step", justify="right")
        for key, label in (
            ("trained", "over the air"),
            ("error_free", "error-free aggregation, same seeds"),
            ("untrained", "no training"),
        ):
            row = event.get(key)
            if isinstance(row, Mapping):
                before, after = row.get("accuracy_new_clients_before"), row.get("accuracy_new_clients")
                table.add_row(label, _percent(before), _percent(after))
        if table.row_count:
            self._console.print(table)
        medians = [
            (label, event[key])
            for key, label in (
                ("median_nmse_sum_db", "measured"),
                ("median_nmse_canary_db", "canary"),
                ("median_nmse_predicted_db", "predicted"),
            )
            if event.get(key) is not None
        ]
        if medians:
            text = ", ".join(f"{label} {_db(value)} dB" for label, value in medians)
            voided = event.get("voided", 0)
            self._console.print(f"NMSE of the sum, median over {event.get('rounds')} rounds: {text}; {voided} voided")
        self._console.print(f"run folder: {self._folder}", soft_wrap=True, highlight=False)

    def _line(self, text: str, always: bool = False) -> None:
        """Print a line: on a terminal only what must not scroll out of sight unseen, in a log everything."""
        if always or not self._console.is_terminal:
            self._console.print(text, soft_wrap=True, highlight=False)


def _one(event: Event) -> int:
    """Rounds count from 0 in events and from 1 for people."""
    return int(event.get("round", 0)) + 1


def _db(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "-"


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "-"


def _plain(value: Any) -> str:
    """Text of others, with the brackets that rich would take for markup made harmless."""
    return str(value).replace("[", r"\[")


class SweepBar:
    """Follows a sweep: a bar that moves on a terminal, one line per point elsewhere.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]point"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, facts="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Show a line above the bar."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def __call__(self, stand: SweepStand) -> None:
        """Take the state of the sweep after a point."""
        facts = f"{stand.kept} from before, largest worker {stand.peak_mb:.0f} MB"
        if stand.failed:
            facts += f", {stand.failed} failed"
        self._bar.update(self._task, total=stand.total, completed=stand.done, facts=facts)
        if stand.problem is not None:
            self.say(f"a point failed: {stand.problem}")
        if not self._console.is_terminal:
            self.say(f"point {stand.done}/{stand.total}: {facts}")


#: Heading, field of a node's verdict, and format of its value.
VERDICT = (
    ("tier", "tier", ""),
    ("ppm", "ppm", ".3f"),
    ("ADEV", "adev", ".1e"),
    ("SNR dB", "snr_db", ".1f"),
    ("timing", "timing_samples", ".3f"),
    ("phase rad", "sigma_rad", ".3f"),
)


def verdict_table(found: Mapping[str, Any]) -> str:
    """Give the verdict of a calibration as text: a line per node, and what follows for the lab."""
    table = Table(box=None, pad_edge=False)
    for heading in ("node", *(heading for heading, _, _ in VERDICT), "modes"):
        table.add_column(heading, justify="left" if heading in ("node", "modes") else "right")
    for name, node in found["nodes"].items():
        cells = ["-" if node[key] is None else format(node[key], form) for _, key, form in VERDICT]
        table.add_row(name, *cells, ", ".join(node["modes"]))
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(table)
    lines = [console.export_text().rstrip()]
    told = (
        ("predicted error of the sum", "nmse_predicted_db", "{:.1f} dB"),
        ("measured", "nmse_measured_db", "{:.1f} dB"),
        ("largest useful burst", "largest_burst_s", "{:.3f} s"),
    )
    facts = [f"{label} {form.format(found[key])}" for label, key, form in told if found[key] is not None]
    lines.append(", ".join([f"permitted modes {', '.join(found['modes'])}", *facts]))
    lines.append("every step passed" if found["passed"] else f"{len(found['findings'])} found wrong")
    return "\n".join(lines)
