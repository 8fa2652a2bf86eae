"""Knows which radios can be seen from this machine and how lab.toml names them; opens none for use."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from itertools import count
from pathlib import Path
from typing import Any

import radio
from radio.base import Discovered
from radio.errors import TestbedError
from radio.replay import find
from testbed import toml
from testbed.config import Lab
from testbed.doctor import duplicates, libiio, own, uhd
from testbed.usb import usb_radios

__all__ = ["Seen", "look", "table", "to_toml"]

#: What a driver of another distribution may raise when it cannot look: it must not hide the others.
CANNOT_LOOK = (TestbedError, OSError, ImportError, AttributeError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Seen:
    """What was found.

    Attributes:
        radios: the radios, by driver.
        notes: why a driver saw nothing, and the remedy.
        warnings: radios that cannot be told apart.
    """

    radios: tuple[Discovered, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Give all of it as JSON values."""
        return asdict(self)


def look(lab: Lab | None = None, folder: Path | None = None) -> Seen:
    """Ask every driver what it can see. Nothing is tuned and nothing radiates.

    Args:
        lab: whose simulated radios to list as well.
        folder: whose recordings to list as well.
    """
    seen: list[Discovered] = []
    notes = [f"{check.name}: {check.found} -> {check.remedy}" for check in (libiio(), uhd()) if check.level != "green"]
    for scheme in (*radio.DRIVERS, *(point.name for point in entry_points(group=radio.GROUP))):
        try:
            driver, _ = radio.driver_of(f"{scheme}:any")
            seen += driver.discover()
        except CANNOT_LOOK as error:
            notes.append(f"{scheme}: cannot look for radios: {error}")
    known = {found.serial for found in seen}
    notes += [
        f"usb {attached.place}: a {attached.scheme} is attached that its driver does not see -> run: testbed doctor"
        for attached in usb_radios()
        if attached.serial not in known
    ]
    if lab is not None:
        seen += _simulated(lab)
    if folder is not None:
        seen += find(folder)
    return Seen(tuple(seen), tuple(notes), tuple(_confused(seen)))


def _simulated(lab: Lab) -> list[Discovered]:
    """List the radios of a lab's own air, by the URI that opens them while ``testbed ether`` runs."""
    if lab.ether is None:
        return []
    found = []
    for name in ("server", *(entry.name for entry in lab.nodes)):
        uri = lab.radio_uri(name)
        place = re.search(r"(?:tcp://|:ip:)([^:/]+):(\d+)", uri)
        if place is None:
            continue
        host, port, looped = place[1], int(place[2]), uri.startswith("loopback:")
        radio_name = uri.rsplit("/", 1)[-1] if looped else name
        effects = lab.ether.of(radio_name)
        serial = effects.serial or f"{'loopback' if looped else 'virtual'}-{radio_name}"
        state = "up" if _answers(host, port) else "not running: testbed ether" if port else "port chosen at launch"
        found.append(Discovered(uri, serial, effects.tier, {"machine": name, "simulated air": state}))
    return found


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 0.2).close()
    except OSError:
        return False
    return True


def _confused(seen: Iterable[Discovered]) -> list[str]:
    """Find serials and addresses that several radios give. A recording bears the serial of the radio it came from."""
    told = []
    for found in seen:
        if not found.uri.startswith("replay:"):
            keys = own(found.uri) | ({f"serial {found.serial}"} if found.serial else set())
            address = found.detail.get("ip")
            told.append((found.uri, keys | ({f"IP {address}"} if address else set())))
    return [
        f"{key} is given by {' and by '.join(uris)} -> "
        + (
            "use one of them: it is one radio seen twice, unless two radios bear this serial"
            if key.startswith("serial")
            else "open them by serial or by USB place, or give one another address"
        )
        for key, uris in duplicates(told).items()
    ]


def table(seen: Sequence[Discovered]) -> str:
    """Lay the radios out in columns: URI, serial, tier, firmware, and the rest in words."""
    rows = [("URI", "SERIAL", "TIER", "FIRMWARE", "")]
    for found in seen:
        rest = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in found.detail.items()}
        firmware = rest.pop("firmware", "") or "-"
        words = ", ".join(f"{key} {value}" for key, value in rest.items() if value)
        rows.append((found.uri, found.serial or "-", found.tier.value, firmware, words))
    if len(rows) == 1:
        return "no radio found"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def to_toml(seen: Sequence[Discovered], lab: Lab | None = None) -> str:
    """Write a [[nodes]] table for every radio that the lab does not have yet, to be pasted into lab.toml.

    Args:
        seen: the radios.
        lab: where they are going to; its names and radios are left alone.
    """
    names, taken = set(), set()
    if lab is not None:
        names = {"server", *(entry.name for entry in lab.nodes)}
        taken = {*map(lab.radio_uri, names), lab.server.radio, *(entry.radio for entry in lab.nodes)}
    serials = [found.serial for found in seen if not found.uri.startswith("replay:")]
    tables = []
    for found in seen:
        uri = found.uri
        if uri.startswith("pluto:usb:") and found.serial and serials.count(found.serial) == 1:
            uri = f"pluto:serial={found.serial}"  # its place is another one after it was unplugged
        if not taken & {uri, found.uri}:
            name = next(name for number in count(1) if (name := f"node-{number}") not in names)
            names.add(name)
            about = " ".join(table([found]).splitlines()[1].split())
            comment = "".join(letter for letter in about if letter.isprintable())
            tables.append(f"# {comment}\n" + toml.dumps({"nodes": [{"name": name, "radio": uri}]}))
    return "\n".join(tables)
