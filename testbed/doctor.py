"""Knows what must be in place on this machine before anything runs, and the remedy for each lack; changes nothing."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from radio.errors import TestbedError
from testbed.bus import curve_available, port_free
from testbed.config import Lab
from testbed.keys import READER, SERVER, load_keys, loose_files

__all__ = ["Check", "examine"]

Level = Literal["green", "yellow", "red"]
PACKAGES = ("radio", "fl_core", "calibration", "testbed")
LEAST = {"numpy": "1.26", "torch": "2.6", "numba": "0.60", "pyzmq": "27", "safetensors": "0.8", "pydantic": "2.8"}
LOW_DISK_BYTES, NO_DISK_BYTES = 2 << 30, 100 << 20


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it is, what was found, and what to do if it is not green."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def examine(lab: Lab, folder: Path) -> list[Check]:
    """Look at everything that needs no radio.

    Args:
        lab: whose ports and keys to check.
        folder: where runs will be written.
    """
    checks = [_python(), *_packages(), *_libraries(), _curve(), _libiio(), _uhd()]
    return [*checks, *_ports(lab), *_keys(lab), _disk(folder)]


def _python() -> Check:
    return Check("python", "green", f"{platform.python_version()} at {sys.executable}")  # pip refuses older ones


def _packages() -> list[Check]:
    """The names of our packages are common words: another distribution may shadow them."""
    home = Path(__file__).resolve().parent.parent
    checks = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [Path(place).resolve() for place in spec.submodule_search_locations or ()]
        if places == [home / name]:
            checks.append(Check(f"package {name}", "green", str(places[0])))
        else:
            found = ", ".join(map(str, places)) or "not found"
            remedy = f"expected {home / name}: uninstall what shadows it, or use a fresh environment"
            checks.append(Check(f"package {name}", "red", found, remedy))
    return checks


def _libraries() -> list[Check]:
    checks = []
    for name, least in LEAST.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, "red", "not installed", f"pip install '{name}>={least}'"))
            continue
        enough = _number(version) >= _number(least)
        remedy = "" if enough else f"pip install '{name}>={least}'"
        checks.append(Check(name, "green" if enough else "red", version, remedy))
    return checks


def _number(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("+")[0].split(".")[:3]:
        digits = "".join(letter for letter in part if letter.isdigit())
        parts.append(int(digits or 0))
    return tuple(parts)


def _curve() -> Check:
    if curve_available():
        return Check("curve", "green", "this ZeroMQ can encrypt")
    return Check("curve", "red", "this ZeroMQ cannot encrypt", "install pyzmq from a wheel: pip install --force pyzmq")


def _libiio() -> Check:
    """The Python binding must be of the generation of the C library: 0.x and 1.x do not mix."""
    try:
        binding = importlib.metadata.version("pylibiio")
    except importlib.metadata.PackageNotFoundError:
        return Check("libiio", "yellow", "Python binding not installed", "for Pluto radios: pip install '.[pluto]'")
    path = ctypes.util.find_library("iio")
    if path is None:
        return Check("libiio", "yellow", f"binding {binding}, no C library", "for Pluto radios: apt install libiio0")
    generation = "1" if path.endswith(".so.1") else "0"
    if binding.split(".")[0] == generation:
        return Check("libiio", "green", f"binding {binding}, library {path}")
    pin = "pylibiio>=0.25,<1" if generation == "0" else "pylibiio>=1"
    return Check("libiio", "yellow", f"binding {binding}, but library {path}", f"pip install '{pin}'")


def _uhd() -> Check:
    """Import it in another process: a binding built for another NumPy can abort the interpreter."""
    code = "import uhd; print(uhd.get_version_string())"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("uhd", "yellow", f"cannot be probed: {error}", "for USRP radios: apt install python3-uhd")
    if done.returncode == 0:
        return Check("uhd", "green", done.stdout.strip())
    remedy = "for USRP radios: apt install python3-uhd, and make the environment with --system-site-packages"
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Check("uhd", "yellow", f"not importable by {sys.executable}: {reason}", remedy)


def _ports(lab: Lab) -> list[Check]:
    wanted = {"server.control_port": lab.server.control_port, "server.events_port": lab.server.events_port}
    if lab.ether is not None:
        wanted["ether_port"] = lab.ether_port
    checks = []
    for key, port in wanted.items():
        if port == 0:
            checks.append(Check(f"port {key}", "green", "chosen at launch"))
        elif port_free(lab.server.host if key != "ether_port" else "127.0.0.1", port):
            checks.append(Check(f"port {key}", "green", f"{port} is free"))
        else:
            remedy = f"stop what uses it, or set lab.{key} to another port"
            checks.append(Check(f"port {key}", "red", f"{port} on {lab.server.host} cannot be bound", remedy))
    return checks


def _keys(lab: Lab) -> list[Check]:
    if not lab.keys:
        return [Check("keys", "green", "made for each run")]
    folder = Path(lab.keys)
    if loose := loose_files(folder):
        remedy = "run chmod 600 " + " ".join(map(str, loose))
        return [Check("keys", "red", f"others may read {len(loose)} secrets in {folder}", remedy)]
    wanted = [SERVER, READER]
    if lab.ether is not None:  # the nodes of a loopback lab live here; others keep their own secrets
        wanted += [entry.name for entry in lab.nodes]
    lacking = [name for name in wanted if not _loads(lambda name=name: load_keys(folder, name))]  # type: ignore[misc]
    if lacking:
        return [Check("keys", "red", f"no usable keys in {folder} for {', '.join(lacking)}", "run `testbed init`")]
    return [Check("keys", "green", f"{len(wanted)} key pairs in {folder}, private")]


def _loads(action: Callable[[], object]) -> bool:
    try:
        action()
    except TestbedError:
        return False
    return True


def _disk(folder: Path) -> Check:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {place}"
    if free < NO_DISK_BYTES:
        return Check("disk", "red", found, "free some space, or choose another place with --runs")
    if free < LOW_DISK_BYTES:
        return Check("disk", "yellow", found, "free some space before a long run")
    return Check("disk", "green", found)
