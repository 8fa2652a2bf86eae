"""A process that draws a calibration's figures while the lab goes on; knows no step and no page."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from calibration.report import draw
from calibration.result import Result
from testbed.parent import PARENT_VARIABLE, die_with_parent

if TYPE_CHECKING:
    from calibration.figures import Picture

__all__ = ["Artist"]


class Artist:
    """Draws each step's figures with the time that the lab leaves over. Use as a context manager, in the main thread.

    Drawing everything at the end would keep a user waiting for four seconds with one core at work.
    """

    def __init__(self) -> None:
        # Spawned, not forked: a fork copies locks that other threads hold.
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(os.getpid(),))
        self._ordered: dict[str, Future[list[Picture]]] = {}

    def __enter__(self) -> Self:
        self._pool.submit(draw, "", [])  # the kernel ties the process to the thread that asks first
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def draw(self, step: str, results: Iterable[Result], burst: Path | None) -> None:
        """Order the figures of a step; arguments are those of ``calibration.report.draw``."""
        with suppress(BrokenProcessPool):
            self._ordered[step] = self._pool.submit(draw, step, list(results), burst)

    def pictures(self) -> dict[str, list[Picture]]:
        """Wait for what was ordered, and give it by step; what a process that died left undone is missing."""
        done = {}
        for step, ordered in self._ordered.items():
            with suppress(BrokenProcessPool):
                done[step] = ordered.result()
        return done


def _start(parent: int) -> None:
    """Make the process give way to every other, end with its parent, and leave Ctrl-C to it."""
    os.environ[PARENT_VARIABLE] = str(parent)
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(19)
