"""The report of a calibration as one HTML page that needs nothing else; shows what was measured, decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from calibration.cells import ABSENT, Column, number
from calibration.result import Finding, Result, Value
from radio.disk import write_whole

if TYPE_CHECKING:
    from calibration.figures import Picture, Scene

__all__ = ["SECTIONS", "Section", "draw", "write_report"]


@dataclass(frozen=True)
class Section:
    """One step's place in the report: its heading, and what it asks."""

    title: str
    question: str


SECTIONS: Mapping[str, Section] = {
    "inventory": Section("Inventory", "Which radios are these, and what do their drivers promise?"),
    "preflight": Section("Preflight", "May they transmit where and as loud as they are set to?"),
    "noise": Section("Noise and interference", "What does each receiver hear while nobody sends?"),
    "level": Section("Level, leak and image", "How clean and how linear is each transmitter?"),
    "integrity": Section("Integrity", "Does every sample arrive, once and in order?"),
    "offset": Section("TX-RX offset", "Do transmit and receive counters keep their distance over restarts?"),
    "oscillator": Section("Oscillators", "How far off, how warm and how stable are the crystals?"),
    "lock": Section("Beacon lock", "How well do nodes follow the server's beacons?"),
    "sounding": Section("Sounding", "What does the way from each node to the server do to a wave?"),
    "timing": Section("Timing", "How exactly do bursts arrive at their place?"),
    "phase": Section("Phase", "How well is the phase known when a burst arrives?"),
    "balance": Section("Balance", "Does each node arrive as loud as expected?"),
    "sum": Section("Sum", "How wrong is the sum of known values?"),
}
#: Columns of the verdict's table: heading, step and name of the value.
OVERVIEW = (
    ("tier", "inventory", "tier"),
    ("ppm", "oscillator", "ppm"),
    ("ADEV at 0.1 s", "oscillator", "adev"),
    ("SNR (dB)", "sounding", "snr_db"),
    ("timing spread (samples)", "timing", "std_samples"),
    ("phase error (rad)", "phase", "sigma_rad"),
)

STYLE = """
:root { --ink: #1c2630; --soft: #5a6672; --line: #d9dee3; --good: #1b7f3b; --bad: #b3261e; --blue: #0b3d63; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: #fff;
  font: 1rem/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: 0; color: var(--blue); line-height: 1.25; }
h2 { font-size: 1.25rem; margin: 0 0 .2rem; color: var(--blue); }
h3 { font-size: 1rem; margin: 0 0 .2rem; }
p { margin: .3rem 0; }
a { color: var(--blue); }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.status { font-weight: 600; font-size: .9rem; white-space: nowrap; }
.passed { color: var(--good); }
.failed { color: var(--bad); }
.absent { color: var(--soft); }
.banner { margin: 1rem 0; padding: .8rem 1rem; border-left: .4rem solid; background: #f5f7f9; }
.banner.passed { border-color: var(--good); }
.banner.failed { border-color: var(--bad); }
.banner strong { font-size: 1.15rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: .3rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.35rem; color: var(--blue); line-height: 1.3; }
.finding { border: 1px solid var(--bad); border-radius: .3rem; padding: .6rem .9rem; margin: .6rem 0; }
.finding h3 { color: var(--bad); }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .2rem; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { white-space: normal; vertical-align: bottom; color: var(--soft); font-weight: 600; min-width: 4.5rem; }
td small { color: var(--soft); }
th:first-child, td.words, th.words { text-align: left; }
nav ol { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: .6rem 0; list-style: none;
  font-size: .9rem; }
section { border-top: 2px solid var(--line); margin-top: 2rem; padding-top: 1rem; }
section#verdict { border: 0; margin: 0; padding: 0; }
figure { margin: 1.2rem 0; }
figure img { display: block; width: 100%; min-width: 38rem; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .88rem; margin: .8rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media print {
  html { font-size: 66%; }
  body { max-width: none; padding: 0; }
  figure, .finding, tr, .tile { break-inside: avoid; }
  h2, caption { break-after: avoid; }
  section#verdict { break-after: page; }
  .scroll { overflow: visible; }
  figure img { min-width: 0; }
  th, td { padding: .2rem .4rem; }
}
"""


def write_report(
    path: Path,
    lab_name: str,
    results: Sequence[Result],
    verdict: Mapping[str, Any],
    about: Mapping[str, Any],
    burst: Path | None = None,
    drawn: Mapping[str, Sequence[Picture]] = MappingProxyType({}),
) -> Path:
    """Write the report: verdict first, then every step with its tables and figures.

    Args:
        path: of the page; a page of this name is replaced once the new one is whole.
        lab_name: as it stands in the heading.
        results: of all steps that ran, in any order.
        verdict: what follows for the lab. ``nodes`` maps a node's name to its permitted ``modes``; ``modes``,
            ``nmse_predicted_db``, ``nmse_measured_db``, ``largest_burst_symbols`` and ``largest_burst_s`` are of the
            lab. What is missing or None is left out.
        about: facts of the calibration (when, which files and versions), written as they are.
        burst: recording of a burst of known values, for the waterfall.
        drawn: the pictures of steps for which ``draw`` was called before.

    Returns:
        ``path``.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
        RadioError: ``burst`` cannot be read.
    """
    names = _nodes(results)
    pictures = {step: drawn[step] if step in drawn else draw(step, results, burst) for step in SECTIONS}
    count = iter(range(1, 1000))
    body = [_verdict(lab_name, results, names, verdict, about)]
    body += [_section(step, [r for r in results if r.step == step], pictures[step], count) for step in SECTIONS]
    page = _page(f"Calibration of {lab_name}", "\n".join(body))
    write_whole(path, page.encode())
    return path


def draw(step: str, results: Sequence[Result], burst: Path | None = None) -> list[Picture]:
    """Draw what a step measured.

    Args:
        step: its name.
        results: of all steps that ran so far, in the order in which they ran.
        burst: recording of a burst of known values, for the waterfall of the last step.

    Raises:
        RadioError: ``burst`` cannot be read.
    """
    import matplotlib

    from calibration import figures, figures_link, figures_radio, figures_sum

    plots: Mapping[str, tuple[Callable[[Sequence[Result], Scene], Picture | None], ...]] = {
        "noise": (figures_radio.noise_spectrum, figures_radio.gain_line_up),
        "level": (figures_radio.compression,),
        "integrity": (figures_radio.latency,),
        "offset": (figures_radio.restarts,),
        "oscillator": (figures_link.warm_up, figures_link.adev, figures_link.sigma),
        "lock": (figures_link.lock_snr, figures_link.lock_residual),
        "sounding": (figures_link.gain, figures_link.phase, figures_link.profile),
        "timing": (figures_link.advance,),
        "phase": (figures_link.horizon, figures_link.phase_time),
        "balance": (figures_link.balance,),
        "sum": (figures_sum.error, figures_sum.constellation, figures_sum.q_meter),
    }
    scene = figures.Scene(_nodes(results), _carrier_hz(results))
    mine = [result for result in results if result.step == step]
    with matplotlib.rc_context(figures.STYLE):
        drawn = [found for plot in plots.get(step, ()) if (found := plot(mine, scene))]
        if burst is not None and step == "sum":
            drawn.append(figures_sum.waterfall(burst))
    return drawn


def _nodes(results: Sequence[Result]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(result.radio for result in results if result.radio != "server"))


def _carrier_hz(results: Sequence[Result]) -> float | None:
    """Find the carrier in what the preflight told."""
    return next((r.number("centre_hz") for r in results if "centre_hz" in r.values), None)


def _page(title: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _status(results: Sequence[Result]) -> tuple[str, str]:
    """Give the class and the word of a step's outcome."""
    if not results:
        return "absent", "not run"
    failed = sum(not result.passed for result in results)
    if failed:
        return "failed", f"failed on {failed} of {len(results)}"
    return "passed", "passed"


def _verdict(
    lab_name: str,
    results: Sequence[Result],
    names: Sequence[str],
    verdict: Mapping[str, Any],
    about: Mapping[str, Any],
) -> str:
    """Write the first page."""
    failed = [result for result in results if result.finding is not None]
    absent = [section.title for step, section in SECTIONS.items() if not any(r.step == step for r in results)]
    if failed:
        outcome = f"{len(failed)} thing{'s' * (len(failed) > 1)} to put right before this lab can be used"
    elif absent:
        outcome = "nothing wrong in the steps that were run"
    else:
        outcome = "every step passed"
    rest = f" Not run: {escape(', '.join(absent))}." if absent else ""
    links = "".join(
        f'<li><a href="#{step}">{escape(section.title)}</a> <span class="status {kind}">{word}</span></li>'
        for step, section in SECTIONS.items()
        for kind, word in [_status([r for r in results if r.step == step])]
    )
    facts = "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in about.items())
    return f"""<section id="verdict">
<h1>Calibration of {escape(lab_name)}</h1>
<div class="banner {"failed" if failed else "passed"}"><strong class="{"failed" if failed else "passed"}">
{"Failed" if failed else "Passed"}</strong>: {outcome}.{rest}</div>
{"".join(_finding(r.step, r.radio, r.finding) for r in failed if r.finding is not None)}
{_tiles(results, names, verdict)}
{_overview(results, names, verdict)}
<nav aria-label="Steps"><ol>{links}</ol></nav>
<dl>{facts}</dl>
</section>"""


def _finding(step: str, radio: str, finding: Finding) -> str:
    title = SECTIONS[step].title if step in SECTIONS else step
    return (
        f'<div class="finding"><h3>{escape(radio)}: {escape(finding.thing)}</h3>'
        f'<p>{escape(finding.text)} <span class="soft">(step {escape(title)})</span></p>'
        f"<p><strong>To do:</strong> {escape(finding.remedy)}</p></div>"
    )


def _tiles(results: Sequence[Result], names: Sequence[str], verdict: Mapping[str, Any]) -> str:
    """Write the few numbers that say what the lab is good for."""
    good = [name for name in names if all(r.passed for r in results if r.radio == name)]
    tiles = [("nodes without a finding", f"{len(good)} of {len(names)}")]
    if verdict.get("nmse_predicted_db") is not None:
        tiles.append(("predicted NMSE of the sum", f"{number(round(verdict['nmse_predicted_db'], 1))} dB"))
    if verdict.get("nmse_measured_db") is not None:
        tiles.append(("measured NMSE of the sum", f"{number(round(verdict['nmse_measured_db'], 1))} dB"))
    if verdict.get("modes"):
        tiles.append(("permitted modes", ", ".join(map(str, verdict["modes"]))))
    burst = [f"{number(verdict['largest_burst_symbols'])} symbols"] if verdict.get("largest_burst_symbols") else []
    burst += [f"{number(round(1e3 * verdict['largest_burst_s'], 1))} ms"] if verdict.get("largest_burst_s") else []
    if burst:
        tiles.append(("largest useful burst", ", ".join(burst)))
    cells = "".join(f'<div class="tile"><b>{escape(value)}</b>{escape(label)}</div>' for label, value in tiles)
    return f'<div class="tiles">{cells}</div>'


def _overview(results: Sequence[Result], names: Sequence[str], verdict: Mapping[str, Any]) -> str:
    """Write one line per node: what decides about it."""
    if not names:
        return '<p class="absent">No node was measured.</p>'
    found = {(r.step, r.radio): r.values for r in results}
    columns = []
    for label, step, key in OVERVIEW:
        values = {name: found.get((step, name), {}).get(key) for name in names}
        columns.append((label, Column(label, 1.0), values))
    horizons = [found[("phase", name)]["horizon_s"] for name in names if "horizon_s" in found.get(("phase", name), {})]
    at = f"; the phase error holds {number(1e3 * _plain(horizons[0]))} ms after the last beacon" if horizons else ""
    told = verdict.get("nodes", {})
    rows = []
    for name in names:
        cells = "".join(f"<td>{_stacked(*column.pair(values[name]))}</td>" for _, column, values in columns)
        modes = ", ".join(map(str, told.get(name, {}).get("modes", ()))) or ABSENT
        wrong = [r.finding.thing for r in results if r.radio == name and r.finding is not None]
        state = (
            f'<span class="failed">{escape(", ".join(wrong))}</span>' if wrong else '<span class="passed">good</span>'
        )
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th>{cells}<td class="words">{escape(modes)}</td>'
            f'<td class="words">{state}</td></tr>'
        )
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label, _, _ in columns)
    return (
        f'<div class="scroll"><table><caption>Nodes, with 95 % intervals{at}.</caption><thead><tr>'
        f'<th scope="col">node</th>{head}<th scope="col" class="words">modes</th>'
        f'<th scope="col" class="words">state</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _stacked(value: str, interval: str) -> str:
    """Put the interval below the value, so that a table of many columns fits."""
    return escape(value) + (f"<br><small>{escape(interval)}</small>" if interval else "")


def _beside(value: str, interval: str) -> str:
    return escape(f"{value} {interval}".rstrip())


def _plain(value: Value) -> float:
    return Result("", "", {"it": value}).number("it")


def _section(step: str, results: Sequence[Result], pictures: Sequence[Picture], count: Any) -> str:
    """Write one step: outcome, findings, table, figures."""
    section = SECTIONS[step]
    kind, word = _status(results)
    parts = [f'<section id="{step}"><h2>{escape(section.title)} <span class="status {kind}">{word}</span></h2>']
    parts.append(f'<p class="soft">{escape(section.question)}</p>')
    if not results:
        parts.append('<p class="absent">This step was not run.</p>')
    parts += [_finding(step, r.radio, r.finding) for r in results if r.finding is not None]
    parts.append(_table(results))
    for picture in pictures:
        parts.append(
            f'<figure id="figure-{escape(picture.name)}"><div class="scroll">'
            f'<img src="{picture.uri}" alt="{escape(picture.alt)}"></div>'
            f"<figcaption><b>Figure {next(count)}.</b> {escape(picture.caption)}</figcaption></figure>"
        )
    return "\n".join([*parts, "</section>"])


def _table(results: Sequence[Result]) -> str:
    """Write all values of a step, one line per radio."""
    fullest = sorted(results, key=lambda result: -len(result.values))
    keys = list(dict.fromkeys(key for result in fullest for key in result.values))
    if not keys:
        return ""
    columns = {key: Column.of(key, [r.values[key] for r in results if key in r.values]) for key in keys}
    head = "".join(f'<th scope="col">{escape(column.label)}</th>' for column in columns.values())
    write = _stacked if len(keys) > 5 else _beside
    rows = "".join(
        f'<tr><th scope="row">{escape(r.radio)}</th>'
        + "".join(f"<td>{write(*column.pair(r.values.get(key)))}</td>" for key, column in columns.items())
        + "</tr>"
        for r in results
    )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">radio</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
