"""Knows the commands, their options and how errors are shown; every command hands over to one function elsewhere.

Heavy modules are imported inside the commands, so that ``testbed --help`` answers at once.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated

import typer

from radio.errors import RunError, TestbedError
from testbed.front import interruptible, introduce, keys_of, prepare, serve, short, twin_lab
from testbed.parent import PARENT_VARIABLE, announce_ready, die_with_parent

app = typer.Typer(
    name="testbed",
    help="Over-the-air federated meta-learning: on software-defined radios, or on a simulated air.",
    epilog="Start here: [bold]testbed run[/] trains on a simulated air and needs no file and no radio.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
)

LabFile = Annotated[
    Path | None, typer.Option("--lab", help="lab.toml: what is in the room. Default: the built-in loopback lab.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; lab keys start with lab. May be repeated."),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the run folders.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
Target = Annotated[
    Path | None,
    typer.Argument(help="experiment.toml, or a run folder to repeat. Default: the built-in experiment."),
]
Resume = Annotated[
    str | None,
    typer.Option("--resume", metavar="RUN", help="Go on with a run: its folder, its number, or latest."),
]

Calibration = Annotated[
    str | None,
    typer.Option("--calibration", metavar="WHICH", help="Use a calibration: its folder, its number, or latest."),
]
AcceptStale = Annotated[
    bool, typer.Option("--accept-stale", help="Use records of the calibration that are too old; a warning says so.")
]


@app.callback()
def options(
    context: typer.Context,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="More log; -vv for everything.")] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False,
) -> None:
    """Options that come before the command."""
    daemon = context.invoked_subcommand in ("server", "node", "ether")  # their log is their only voice
    level = logging.ERROR if quiet else [logging.INFO if daemon else logging.WARNING, logging.INFO][min(verbose, 1)]
    logging.basicConfig(
        level=logging.DEBUG if verbose > 1 else level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )


@app.command(epilog="Example: [bold]testbed init my-lab[/], then [bold]testbed run my-lab/experiment.toml[/]")
def init(folder: Annotated[Path, typer.Argument(help="Where; made if absent.")] = Path()) -> None:
    """Write starter files and keys: lab.toml, experiment.toml, keys/.

    Files and keys that exist are left alone, so it can be run again after nodes were added to lab.toml.
    """
    from radio.disk import disk_errors
    from testbed.config import load_lab, starter
    from testbed.keys import READER, SERVER, make_keys

    with disk_errors(folder, "write starter files"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("lab.toml", "experiment.toml"):
            path = folder / name
            if path.exists():
                print(f"{path}: exists, left alone")
            else:
                path.write_text(starter(name), encoding="utf-8")
                print(f"{path}: written")
    lab = load_lab(folder / "lab.toml")
    if lab.keys:
        made = make_keys(Path(lab.keys), [SERVER, READER, *(entry.name for entry in lab.nodes)])
        print(f"{lab.keys}: new keys for {', '.join(made)}" if made else f"{lab.keys}: all keys exist, left alone")
    print(f"next: testbed run {folder / 'experiment.toml'}")


@app.command(
    epilog="Examples: [bold]testbed run[/]; [bold]testbed run experiment.toml --set scheme.keep=0.1[/]; "
    "[bold]testbed run --resume latest[/]; [bold]testbed run runs/7[/] (again, from the start)"
)
def run(
    target: Target = None,
    lab: LabFile = None,
    settings: Settings = None,
    resume: Resume = None,
    runs: Runs = Path("runs"),
    calibration: Calibration = None,
    accept_stale: AcceptStale = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment.

    A loopback lab is started whole: the simulated air, the server and every node, each a process of its own. For a lab
    of real machines only the server is started here; start the nodes with [bold]testbed node NAME[/] on theirs.
    """
    from rich.console import Console

    from testbed.launch import launch
    from testbed.terminal import JsonReader, Terminal

    pair, folder = prepare(target, lab, settings or [], resume, runs, calibration, accept_stale)
    console = Console(stderr=as_json)
    if not as_json:
        introduce(console, pair, folder, resume is not None)
    reader = JsonReader() if as_json else Terminal(console, short(folder.path))
    with interruptible(), reader:
        launch(pair, folder, resume=resume is not None, overrides=(settings or []) if resume else (), reader=reader)


@app.command(
    epilog="Examples: [bold]testbed calibrate --lab lab.toml[/]; [bold]testbed calibrate --resume latest[/]; "
    "[bold]testbed calibrate --from timing --node node-3[/]"
)
def calibrate(
    target: Target = None,
    lab: LabFile = None,
    settings: Settings = None,
    names: Annotated[
        list[str] | None, typer.Option("--node", metavar="NAME", help="Only this node. May be repeated.")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STEP", help="Begin with this step.")] = None,
    steps: Annotated[str, typer.Option(metavar="A,B", help="Only these steps.")] = "",
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="N", help="Go on with a calibration: its folder, its number, or latest."),
    ] = None,
    calibrations: Annotated[Path, typer.Option(help="Folder of the calibration folders.")] = Path("calibrations"),
    as_json: AsJson = False,
) -> None:
    """Measure every radio and link of a lab: what they are good for, and what is wrong with them.

    A simulated lab is started whole. In a lab of real machines start the nodes with [bold]testbed node NAME[/] on
    theirs first. The experiment tells the waveform. The first step that finds something wrong is the last; every record
    is kept, and [bold]--resume[/] goes on.
    """
    from calibration import CalibrationFolder
    from testbed.calibrate import Stopwatch, order_of, unfinished
    from testbed.calibrate import calibrate as measure
    from testbed.config import load
    from testbed.terminal import verdict_table

    if resume is None:
        pair, folder = load(target, lab, settings or []), None
    elif target is not None or lab is not None:
        raise RunError("--resume takes its files from the folder", "leave experiment and --lab away, or use --set")
    else:
        folder = CalibrationFolder.find(resume, calibrations)
        pair = load(folder.path, None, settings or [])
        if first is None and not steps:
            first = unfinished(folder, names or [entry.name for entry in pair.lab.nodes])
            if first is None:
                raise RunError(f"{short(folder.path)} is finished", "run testbed calibrate for a new one")
    order = order_of(pair, names or [], first, steps.split(","), folder)
    place = folder or CalibrationFolder.create(calibrations, pair.resolved())
    say = Stopwatch(lambda text: print(text, file=sys.stderr, flush=True))
    say(f"calibrating {pair.lab.name}: {len(order.names)} nodes, steps {order.steps[0].name} to {order.steps[-1].name}")
    try:
        with interruptible():
            measure(order, place, (settings or []) if resume else (), say)
    finally:
        found = place.verdict
        if found is not None:
            print(json.dumps({"folder": str(place.path), **found}, indent=1) if as_json else verdict_table(found))
        print(f"{short(place.path)}: records, captures, report.html", file=sys.stderr)
    print(f"next: testbed run --calibration {short(place.path)}", file=sys.stderr)


@app.command(epilog="Example: [bold]testbed server experiment.toml --lab lab.toml[/]")
def server(
    target: Target = None,
    lab: LabFile = None,
    settings: Settings = None,
    resume: Resume = None,
    runs: Runs = Path("runs"),
    calibration: Calibration = None,
    accept_stale: AcceptStale = False,
    folder: Annotated[Path | None, typer.Option(help="Existing run folder to fill.", hidden=True)] = None,
) -> None:
    """Run the server of an experiment in this process: it admits nodes, gives orders, receives sums, learns."""
    from testbed.config import load
    from testbed.run import RunFolder

    die_with_parent()
    if folder is not None:
        place = RunFolder.open(folder)
        pair = load(folder, None, settings or [])
    else:
        pair, place = prepare(target, lab, settings or [], resume, runs, calibration, accept_stale)
    keys = keys_of(pair, place)
    from testbed.server import serve_server

    serve(serve_server(pair.lab, pair.experiment, place, keys, pair.fingerprint(), resume is not None))


@app.command(epilog="Example: [bold]testbed node node-3 --lab lab.toml[/]")
def node(
    name: Annotated[str, typer.Argument(help="Name of the node in lab.toml.")],
    lab: LabFile = None,
    settings: Settings = None,
    folder: Annotated[Path | None, typer.Option(help="For its memory. Default: nodes/NAME.")] = None,
) -> None:
    """Run one node: a radio and a client that obey the server in lab.toml. Ends when the server ends."""
    from testbed.config import load_lab

    die_with_parent()
    room = load_lab(lab, settings or [])
    room.node(name)
    from testbed.node import serve_node

    serve(serve_node(room, name, folder or Path("nodes") / name, Path(room.keys)))


@app.command(epilog="Example: [bold]testbed ether --lab lab.toml[/]")
def ether(
    lab: LabFile = None,
    settings: Settings = None,
    state: Annotated[
        Path | None, typer.Option(help="Run folder whose newest checkpoint holds the air to go on with.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--from-calibration", metavar="WHICH", help="Simulate the lab of a calibration, see twin.toml in it."
        ),
    ] = None,
) -> None:
    """Run the simulated air of a lab. Radios open on it as loopback:tcp://127.0.0.1:PORT/NAME.

    A radio that lab.toml calls pluto-virtual is served in real time as a PlutoSDR on the network: libiio, and whatever
    uses it, connects to ip:127.0.0.1:PORT.
    """
    from radio.airserver import EtherServer
    from radio.errors import ConfigError
    from radio.ether import Ether
    from radio.paced import PacedRadio, Wall, paced_options
    from radio.urgency import hurry
    from radio.virtual_pluto import VirtualPluto, VirtualPlutos
    from radio.warm import warm
    from testbed.config import load_lab
    from testbed.run import saved_air

    die_with_parent()
    if calibration is not None:
        lab = twin_lab(calibration, lab)
    room = load_lab(lab, settings or [])
    if room.ether is None:
        raise ConfigError(f"lab {room.name!r} has no [ether] table", "add one, or use its real radios")
    in_time = room.virtual_plutos  # these run by the wall clock; the air is on virtual time without them
    options = paced_options(room.ether, in_time) if in_time else room.ether
    world, wall = Ether(options, room.radio_names), Wall()
    if state is not None and not in_time:
        world.restore(saved_air(state))
    paced = {name: PacedRadio(world, name, wall) for name in in_time}
    plutos = VirtualPlutos([VirtualPluto(paced[name], f"virtual-{name}", port) for name, port in in_time.items()])
    air = EtherServer(world, room.ether_address, lambda name, kind, seconds: getattr(paced[name], kind)(seconds))

    def end(number: int, frame: FrameType | None) -> None:
        air.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    logging.getLogger(__name__).info("the simulated air listens on %s", air.address)
    if not in_time:  # calls wait in its queue while the loops are compiled
        announce_ready("ether")
    warm(options, room.radio_names)
    if in_time:
        hurry(2)  # all threads of this process share one interpreter, and whoever has it must not be made to wait
        plutos.start()
        for name in in_time:
            logging.getLogger(__name__).info("the virtual Pluto of %s listens on %s", name, room.radio_uri(name))
        announce_ready("ether")
    try:
        air.serve()
    finally:
        plutos.stop()


@app.command(epilog="Examples: [bold]testbed devices[/]; [bold]testbed devices --lab lab.toml --toml >> lab.toml[/]")
def devices(
    lab: LabFile = None,
    settings: Settings = None,
    recordings: Annotated[Path, typer.Option(help="Folder whose recordings (*.sigmf-meta) to list.")] = Path(),
    as_toml: Annotated[bool, typer.Option("--toml", help="Print [[nodes]] tables to paste into lab.toml.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the radios that can be seen from here: attached ones, those of a lab's simulated air, and recordings.

    With [bold]--lab[/] the simulated radios of that lab are listed too, by the URI that opens them while
    [bold]testbed ether[/] runs. Nothing is tuned and nothing radiates.
    """
    from testbed.config import load_lab
    from testbed.devices import look, table, to_toml

    room = load_lab(lab, settings or []) if lab is not None or settings else None
    seen = look(room, recordings)
    if as_json:
        print(json.dumps(seen.as_json(), indent=1))
        return
    if as_toml:
        print(to_toml(seen.radios, room), end="")
    else:
        print(table(seen.radios))
    for line in (*(f"warning: {text}" for text in seen.warnings), *(f"note: {text}" for text in seen.notes)):
        print(line, file=sys.stderr)


@app.command(
    epilog="Example: [bold]testbed sweep examples/paper/snr.toml --workers 2[/]. Killed? Type the same line again: "
    "finished points are not repeated."
)
def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file: an experiment, a grid of settings, a figure.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of all points.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results. Default: sweeps/NAME-OF-FILE.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Processes on this machine.")] = 1,
    memory_mb: Annotated[
        int | None, typer.Option(min=64, help="Memory of each worker. Default: its share of what is free.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler to use instead, e.g. tcp://10.0.0.1:8786.")
    ] = None,
) -> None:
    """Run a grid of experiments on the symbol-level channel, without radios: one table, one figure."""
    from rich.console import Console

    from testbed.sweep import plan_sweep
    from testbed.sweep import sweep as compute
    from testbed.terminal import SweepBar

    plan = plan_sweep(file, settings or [])
    folder = out or Path("sweeps") / plan.name
    with interruptible(), SweepBar(Console()) as bar:
        table = compute(
            plan, folder, workers=workers, memory_mb=memory_mb, scheduler=scheduler, report=bar, say=bar.say
        )
    from testbed.figures import draw, summary

    text = summary(plan, table)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    draw(plan, table, folder / "figure.png")
    print(f"{text}\n{short(folder.absolute())}: table.csv, table.jsonl, summary.md, figure.png")


@app.command(epilog="Example: [bold]testbed doctor --lab lab.toml --json[/]")
def doctor(lab: LabFile = None, settings: Settings = None, runs: Runs = Path("runs"), as_json: AsJson = False) -> None:
    """Check this machine: packages, libraries, USB, ports, keys, disk. A line that is not green names the remedy."""
    from testbed.config import load_lab
    from testbed.doctor import examine

    checks = examine(load_lab(lab, settings or []), runs)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        from rich.console import Console
        from rich.markup import escape

        console = Console()
        for check in checks:
            remedy = f" [bold]-> {escape(check.remedy)}[/]" if check.remedy else ""
            line = f"[{check.level}]{check.level:<6}[/] {check.name}: {escape(check.found)}{remedy}"
            console.print(line, soft_wrap=True, highlight=False)
    if any(check.level == "red" for check in checks):
        raise typer.Exit(1)


def _report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show a defect of ours as one line, and keep its traceback in a file for the report."""
    text = "".join(traceback.format_exception(kind, error, trace))
    name = f"testbed-crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    path = Path(tempfile.gettempdir()) / name
    try:
        path.write_text(text, encoding="utf-8")
        where = f"the traceback is in {path}: please report it"
    except OSError:
        where = f"its traceback could not be written to {path}"
    line = str(error).splitlines()[0] if str(error) else ""
    if PARENT_VARIABLE in os.environ:  # standard error is this daemon's log: keep it whole there as well
        print(text, file=sys.stderr)
    print(f"error[defect]: {kind.__name__}: {line} -> {where}", file=sys.stderr)


def main() -> None:
    """Run the command line. A user's mistake is one line per problem on standard error, and an exit code."""
    sys.excepthook = _report_crash
    command = typer.main.get_command(app)  # calling the app itself would put typer's own hook in place of ours
    try:
        command(prog_name="testbed")
    except TestbedError as error:
        for problem in getattr(error, "problems", (error,)):
            print(f"error[{problem.slug}]: {problem}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    finally:
        gc.freeze()  # the process gives everything back at once: to look through it for cycles first takes 0.3 s
