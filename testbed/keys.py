"""Knows the key files of a lab: their names, their modes, who owns which; knows nothing of sockets.

Every machine owns a CURVE key pair: ``NAME.public`` may be given to anyone, ``NAME.secret`` never leaves its machine.
The server keeps the public keys of its nodes, a node keeps ``server.public``. A name *is* its key.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from radio.disk import disk_errors
from radio.errors import NotTrusted

__all__ = ["READER", "SERVER", "Keys", "known_keys", "load_keys", "loose_files", "make_keys", "public_key"]

SERVER = "server"  # the receiving machine
READER = "reader"  # whoever may watch the events, and nothing else
_Z85 = re.compile(rb"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\Z")


@dataclass(frozen=True)
class Keys:
    """A key pair in the Z85 text of ZeroMQ, 40 characters each."""

    name: str
    public: bytes
    secret: bytes = field(repr=False)


def make_keys(folder: Path, names: Iterable[str]) -> list[str]:
    """Make the key pairs that are missing; existing ones are never touched.

    Args:
        folder: made with mode 700 if absent.
        names: of the machines; ``server`` and ``reader`` among them.

    Returns:
        The names that got new keys.

    Raises:
        RunError: the folder cannot be written.
    """
    from testbed.bus import new_keypair  # the one file that speaks ZeroMQ

    made: list[str] = []
    with disk_errors(folder, "write keys"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in names:
            secret_path = folder / f"{name}.secret"
            if secret_path.exists():
                continue
            public, secret = new_keypair()
            # created with its final mode: at no instant is a secret readable by others
            handle = os.open(secret_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secret + b"\n")
            (folder / f"{name}.public").write_bytes(public + b"\n")
            made.append(name)
    return made


def load_keys(folder: Path, name: str) -> Keys:
    """Read the key pair of one machine.

    Raises:
        NotTrusted: a file is missing or malformed, or others may read the secret.
    """
    path = folder / f"{name}.secret"
    secret = _read(path)
    if loose := stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise NotTrusted(f"{path}: others may read this secret (mode bits {loose:03o})", f"run chmod 600 {path}")
    return Keys(name, public_key(folder, name), secret)


def public_key(folder: Path, name: str) -> bytes:
    """Read the public key of one machine.

    Raises:
        NotTrusted: the file is missing or malformed.
    """
    return _read(folder / f"{name}.public")


def known_keys(folder: Path, names: Iterable[str]) -> dict[bytes, str]:
    """Read the public keys of these machines: key -> name. Machines without a file are left out: they are not trusted.

    Raises:
        NotTrusted: a file is malformed, or two machines share one key.
    """
    found: dict[bytes, str] = {}
    for name in names:
        if not (folder / f"{name}.public").exists():
            continue
        key = public_key(folder, name)
        if key in found:
            raise NotTrusted(
                f"{folder}: {found[key]} and {name} share one key", f"delete {name}.* and run testbed init"
            )
        found[key] = name
    return found


def loose_files(folder: Path) -> list[Path]:
    """List the secrets that others may read."""
    return [path for path in sorted(folder.glob("*.secret")) if stat.S_IMODE(path.stat().st_mode) & 0o077]


def _read(path: Path) -> bytes:
    try:
        text = path.read_bytes().strip()
    except OSError as error:
        raise NotTrusted(
            f"{path}: key cannot be read: {error.strerror or error}",
            "run `testbed init`, or copy the file from its owner",
        ) from error
    if not _Z85.match(text):
        raise NotTrusted(f"{path}: not a key ({len(text)} characters, expected 40)", "copy the file again")
    return text
