"""Knows how files and numbered folders get on disk whole, whatever happens; knows nothing of their content."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from radio.errors import RunError

__all__ = ["JsonLines", "disk_errors", "find_numbered", "numbered_folder", "write_whole"]


@contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into a RunError that names file, cause and remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = (
            "free some space, then go on with --resume; everything written before is intact"
            if full
            else "check that the folder exists and is yours to write"
        )
        raise RunError(f"{path}: cannot {doing}: {error.strerror or error}", remedy) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that either the old one or the whole new one is there, whatever happens: new name, fsync, rename.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    new = path.with_name(path.name + ".new")
    with disk_errors(path, "write"):
        try:
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)  # on a full disk the half-written file would only take more room
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)


class JsonLines:
    """A file of JSON documents, one per line, that only grows; each is written at once and whole.

    Half a line, left by a process that was killed while writing it, is closed before the next one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def append(self, content: Mapping[str, Any]) -> bytes:
        """Write one line, and give it back with its line break.

        Raises:
            RunError: the disk is full; no line written before is lost, and no half line stays behind.
        """
        line = json.dumps(content, separators=(",", ":")).encode() + b"\n"
        with disk_errors(self.path, "append a line"):
            if self._file is None:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            whole = os.fstat(self._file).st_size
            if whole and os.pread(self._file, 1, whole - 1) != b"\n":
                os.write(self._file, b"\n")
            done = 0
            try:
                while done < len(line):
                    done += os.write(self._file, line[done:])
            except OSError:
                os.ftruncate(self._file, whole)
                raise
        return line

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def numbered_folder(root: Path, what: str, files: Mapping[str, str]) -> Path:
    """Make ``root/N`` with the next free number, write ``files`` into it, and point ``root/latest`` to it.

    Args:
        root: made if absent.
        what: for the message, for example ``run``.
        files: text by file name.

    Raises:
        RunError: the folder cannot be made or written.
    """
    with disk_errors(root, f"make a {what} folder"):
        root.mkdir(parents=True, exist_ok=True)
        path = _next(root)
    for name, text in files.items():
        write_whole(path / name, text.encode())
    with disk_errors(root / "latest", f"point to the {what}"):
        link = root / f".latest-{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        if (root / "latest").is_symlink() or not (root / "latest").exists():
            os.replace(link, root / "latest")
        else:
            link.unlink()  # a file of the user's has this name: leave it alone
    return path


def _next(root: Path) -> Path:
    while True:
        taken = [int(path.name) for path in root.iterdir() if path.name.isdigit()]
        path = root / str(max(taken, default=0) + 1)
        try:
            path.mkdir()
        except FileExistsError:
            continue  # another one was started in this instant
        return path


def find_numbered(text: str, root: Path, what: str) -> Path:
    """Find a folder by its path (``runs/7``), by its number (``7``) or as ``latest``.

    Args:
        text: what the user wrote.
        root: where the numbered folders are.
        what: for the message, for example ``run``.

    Raises:
        RunError: there is none; the message lists the newest.
    """
    for path in (Path(text), root / text):
        if path.is_dir():
            return path
    known = sorted((int(path.name) for path in root.glob("*") if path.name.isdigit()), reverse=True)[:5]
    listed = f"newest {what}s: {', '.join(map(str, known))}" if known else f"there are no {what}s under {root}"
    raise RunError(f"no {what} {text!r}; {listed}", f"give a {what} folder, its number, or latest")
