"""What several commands do in the same way: files and folders of a run, its introduction, signals; prints nothing."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from radio.errors import ConfigError, RunError

if TYPE_CHECKING:
    from testbed.calibrated import Calibrated
    from testbed.config import Pair
    from testbed.run import RunFolder

__all__ = ["interruptible", "introduce", "keys_of", "prepare", "serve", "short", "twin_lab"]

#: Where calibrations are looked for that are given as a number, or as latest.
CALIBRATIONS = Path("calibrations")


def prepare(
    target: Path | None,
    lab: Path | None,
    settings: Sequence[str],
    resume: str | None,
    runs: Path,
    calibration: str | None = None,
    accept_stale: bool = False,
) -> tuple[Pair, RunFolder]:
    """Read the files of a run and make its folder, or find the run to go on with.

    Args:
        target: ``experiment.toml``, or the folder of a run to repeat, with the calibration that it used.
        lab: ``lab.toml``.
        settings: ``--set`` items.
        resume: the run to go on with.
        runs: where run folders are.
        calibration: folder, number, or latest; it is copied into the folder of the run.
        accept_stale: use records of it that are too old.

    Raises:
        TestbedError: a file, the folder, or the newest checkpoint of the run is not as it must be.
    """
    from testbed.config import load
    from testbed.run import RunFolder, find_run

    if resume is None:
        pair = load(target, lab, settings)
        used = _calibrated(calibration, target, accept_stale)
        folder = RunFolder.create(runs, pair)
        if used is not None:
            used.keep(folder.path)
        return pair, folder
    if target is not None or lab is not None:
        raise RunError("--resume takes its files from the run folder", "leave experiment and --lab away, or use --set")
    folder = find_run(resume, runs)
    pair = load(folder.path, None, settings)
    folder.load(pair.fingerprint())  # a damaged checkpoint is reported here, before anything is started
    if calibration is not None:
        raise RunError("--resume goes on with the calibration of the run", "leave --calibration away")
    if (used := _calibrated(None, folder.path, accept_stale)) is not None:
        used.keep(folder.path)
    return pair, folder


def _calibrated(wanted: str | None, run: Path | None, accept_stale: bool) -> Calibrated | None:
    """Find the calibration that is asked for, else the one that an earlier run used, and see that it may be used."""
    from calibration.record import CalibrationFolder
    from testbed.calibrated import Calibrated

    if wanted is not None:
        folder = CalibrationFolder.find(wanted, CALIBRATIONS)
        used: Calibrated | None = Calibrated(folder, short(folder.path), accept_stale)
    else:
        used = Calibrated.of(run) if run is not None else None
        if used is not None:
            used.accept_stale = accept_stale
    if used is not None:
        used.ready()
    return used


def twin_lab(calibration: str, lab: Path | None) -> Path:
    """Give the lab file of the digital twin of a calibration, by folder, number or latest.

    Raises:
        ConfigError: another lab file was given, too.
        CalibrationError, RunError: there is no such calibration, or it does not hold enough.
    """
    from calibration.record import CalibrationFolder
    from testbed.twin import write_twin

    if lab is not None:
        raise ConfigError(f"--from-calibration brings a lab of its own, not {lab}", "leave --lab away")
    return write_twin(CalibrationFolder.find(calibration, CALIBRATIONS))


def keys_of(pair: Pair, folder: RunFolder) -> Path:
    """Give the folder of the lab's keys; a lab without any gets new ones in the folder of the run."""
    from testbed.keys import READER, SERVER, make_keys

    if pair.lab.keys:
        return Path(pair.lab.keys)
    make_keys(folder.keys, [SERVER, READER, *(entry.name for entry in pair.lab.nodes)])
    return folder.keys


def introduce(console: Any, pair: Pair, folder: RunFolder, resumed: bool) -> None:
    """Say in one line what runs where."""
    from testbed.config import BUILT_IN

    def source(text: str, what: str) -> str:
        return f"the built-in {what}" if text == BUILT_IN else text

    doing = "resuming" if resumed else "running"
    lab, experiment = source(pair.lab_source, "lab"), source(pair.experiment_source, "experiment")
    where = "on a simulated air" if pair.lab.ether is not None else "on real radios: waiting for the nodes"
    text = f"{doing} {experiment} in {lab}: {len(pair.lab.nodes)} nodes {where}; writing to {short(folder.path)}"
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def short(path: Path) -> str:
    """Give a path as seen from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def serve(daemon: Coroutine[Any, Any, None]) -> None:
    """Run a daemon until it ends or is told to: SIGTERM and SIGINT cancel it, so that it mutes, saves and closes."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await daemon

    with interruptible():
        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            raise SystemExit(128 + signal.SIGTERM) from None


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM leave through every ``finally``, with the exit code that shells expect."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
