"""Knows what must be in place on this machine before anything runs, and the remedy for each lack; changes nothing."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import ipaddress
import json
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from radio.errors import TestbedError
from testbed.bus import curve_available, port_free
from testbed.config import Lab
from testbed.keys import READER, SERVER, load_keys, loose_files
from testbed.usb import UsbRadio, usb_radios

__all__ = ["Check", "duplicates", "examine", "libiio", "own", "uhd"]

Level = Literal["green", "yellow", "red"]
PACKAGES = ("radio", "fl_core", "calibration", "testbed")
LEAST = {"numpy": "1.26", "torch": "2.6", "numba": "0.60", "pyzmq": "27", "safetensors": "0.8", "pydantic": "2.8"}
PYADI, PYLIBIIO = "pyadi-iio>=0.0.19", {"0": "pylibiio>=0.25,<1", "1": "pylibiio>=1"}  # by generation of libiio
SYSTEM_PYTHON = "/usr/bin/python3"  # the one that distributions build UHD for
LOW_DISK_BYTES, NO_DISK_BYTES = 2 << 30, 100 << 20


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it is, what was found, and what to do if it is not green."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def examine(lab: Lab, folder: Path) -> list[Check]:
    """Look at everything that can be seen without opening a radio.

    Args:
        lab: whose ports, keys and radios to check.
        folder: where runs will be written.
    """
    uris = [lab.server.radio, *(entry.radio for entry in lab.nodes)]
    schemes = {uri.split(":")[0].split("-")[0] for uri in uris}  # a virtual Pluto needs what a Pluto needs
    drivers = [_as(libiio(), "red" if schemes == {"pluto"} else "yellow")]
    drivers += [_as(uhd(), "red" if schemes == {"usrp"} else "yellow")]
    checks = [_python(), *_packages(), *_libraries(), _curve(), *drivers, *_usb(usb_radios(), schemes)]
    return [*checks, *_same_radios(uris), *_ports(lab), *_keys(lab), _disk(folder)]


def _as(check: Check, level: Level) -> Check:
    """Give a lack its weight: a library that every radio of the lab needs must be there."""
    return check if check.level == "green" else replace(check, level=level)


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


def _probe(interpreter: str, code: str) -> tuple[int, str, str]:
    """Run code in another process, where it may crash: exit code, output, and its last complaint."""
    try:
        done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def libiio() -> Check:
    """Check what a Pluto needs: the C library, a binding of its generation (0.x and 1.x do not mix), and pyadi-iio."""
    path, binding, pyadi = ctypes.util.find_library("iio"), _version("pylibiio"), _version("pyadi-iio")
    found = (
        f"library {path or 'not found'}, pylibiio {binding or 'not installed'}, pyadi-iio {pyadi or 'not installed'}"
    )
    if path is None:
        return Check("libiio", "yellow", found, "for Pluto radios: sudo apt install libiio0")
    generation = "1" if re.search(r"\b1(\.|$)", path.partition("iio")[2]) else "0"
    pip = f"pip install '{PYADI}' '{PYLIBIIO[generation]}'"
    if binding is None or pyadi is None:
        return Check("libiio", "yellow", found, f"for Pluto radios: {pip}")
    if binding.split(".")[0] != generation or _number(pyadi) < _number(PYADI.split(">=")[1]):
        return Check("libiio", "yellow", f"{found}: they do not fit each other", pip)
    code, _, complaint = _probe(sys.executable, "import iio, adi")
    if code != 0:
        why = complaint or f"exit code {code}"
        return Check("libiio", "yellow", f"{found}, not importable: {why}", pip.replace("install", "install --force"))
    return Check("libiio", "green", found)


_UHD = (
    "import sys, uhd; told = getattr(uhd, 'get_version_string', lambda: 'UHD of unknown version'); "
    "print(told(), uhd.__path__[0], '%d.%d' % sys.version_info[:2], sep='|')"
)


def uhd() -> Check:
    """Check what a USRP needs: UHD's binding, which only the system brings, importable and safe with this NumPy."""
    code, told, complaint = _probe(sys.executable, _UHD)
    numpy = _version("numpy") or "0"
    if "_ARRAY_API" in complaint or code in (-11, 139):
        found = f"made for NumPy 1, and crashes under NumPy {numpy}"
        return Check("uhd", "yellow", found, "for USRP radios: pip install 'numpy<2'")
    if code == 0:
        version, place, _ = told.split("|")
        return Check("uhd", "green", f"{version} at {place}")
    found = f"not importable by {sys.executable}: {complaint or f'exit code {code}'}"
    code, told, _ = _probe(SYSTEM_PYTHON, _UHD)
    if code != 0:
        return Check("uhd", "yellow", found, "for USRP radios: sudo apt install python3-uhd")
    _, place, version = told.split("|")
    found = f"not importable by {sys.executable}, but by {SYSTEM_PYTHON}, from {place}"
    if version != "{}.{}".format(*sys.version_info[:2]):
        remedy = f"make the environment anew with {SYSTEM_PYTHON} -m venv, for {place} fits Python {version} alone"
    else:
        remedy = f"ln -s {place} {sysconfig.get_paths()['purelib']}/"
        if numpy.split(".")[0] != "1":
            remedy += " && pip install 'numpy<2'"
    return Check("uhd", "yellow", found, f"for USRP radios: {remedy}")


def _usb(radios: list[UsbRadio], schemes: set[str]) -> list[Check]:
    """Tell of each radio on USB what would keep it from working, the worst first."""
    if not radios:
        return [Check("usb", "green", "no Pluto and no USRP attached")]
    checks = []
    for radio in radios:
        level: Level = "red" if radio.scheme in schemes else "yellow"
        found = f"{radio.scheme} {radio.serial or 'without serial'} at {radio.speed_mbps:g} Mb/s"
        name, remedy = f"usb {radio.place}", ""
        if not radio.usable:
            rule = f'SUBSYSTEM=="usb", ATTR{{idVendor}}=="{radio.vendor}", MODE="0666"'
            found += f", and this user may not open {radio.node}"
            remedy = (
                f"echo '{rule}' | sudo tee /etc/udev/rules.d/53-radio-{radio.vendor}.rules "
                "&& sudo udevadm control --reload && sudo udevadm trigger"
            )
        elif radio.waits_for_firmware:
            found += ", in update mode (DFU)"
            remedy = "unplug it and plug it in again without pressing its button"
        elif radio.speed_mbps < (480.0 if radio.scheme == "pluto" else 5000.0):
            level, found = "yellow", found + ", slower than it can"
            remedy = f"use a USB {2 if radio.scheme == 'pluto' else 3} port and cable, without a hub"
        checks.append(Check(name, level if remedy else "green", found, remedy))
    told = [(f"usb {radio.place}", {f"serial {radio.serial}"}) for radio in radios if radio.serial]
    networks = _addresses() if len(radios) > 1 else {}
    told += [
        (f"usb {radio.place}", {f"network {network}"})
        for radio in radios
        for interface in radio.interfaces
        for network in networks.get(interface, ())
    ]
    for key, places in duplicates(told).items():
        remedy = "open them by their places: pluto:usb:BUS.DEVICE.INTERFACE"
        if key.startswith("network"):
            remedy = "open them as pluto:serial=, or change ipaddr in the config.txt of one"
        checks.append(Check(f"same {key}", "yellow", f"of {' and of '.join(places)}", remedy))
    return checks


def _addresses() -> dict[str, list[str]]:
    """Give the IPv4 networks of each network interface, as iproute2 tells them."""
    try:
        command = ["ip", "-json", "-4", "address"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return {
            link["ifname"]: [
                str(ipaddress.ip_interface(f"{each['local']}/{each['prefixlen']}").network)
                for each in link["addr_info"]
            ]
            for link in json.loads(done.stdout)
        }
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        return {}


def duplicates(told: Iterable[tuple[str, Iterable[str]]]) -> dict[str, list[str]]:
    """Find what should belong to one radio and belongs to several.

    Args:
        told: each radio's name, and what should be its own: ``serial 104``, ``IP 192.168.2.1``.

    Returns:
        What is shared, and by whom.
    """
    owners = defaultdict(list)
    for name, keys in told:
        for key in keys:
            owners[key].append(name)
    return {key: names for key, names in owners.items() if len(names) > 1}


def own(uri: str) -> set[str]:
    """Read from a radio's URI what no other radio may have: serial and address."""
    found = {f"serial {serial}" for serial in re.findall(r"\bserial=([^,?\s]+)", uri)}
    return found | {f"IP {address}" for address in re.findall(r"(?:\baddr=|:ip:)([^,?\s]+)", uri)}


def _same_radios(uris: list[str]) -> list[Check]:
    """Find one radio under two URIs of the lab; the same URI twice is refused when the file is read."""
    found = duplicates((uri, own(uri)) for uri in uris)
    remedy = "give every machine a radio of its own in lab.toml"
    return [Check(f"radio {key}", "red", f"is {' and '.join(names)}", remedy) for key, names in found.items()]


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
    lacking = [name for name in wanted if not _loads(partial(load_keys, folder, name))]
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
