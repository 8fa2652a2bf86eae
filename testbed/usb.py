"""Knows the radios on this machine's USB, as the kernel tells of them in sysfs; opens no device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["UsbRadio", "usb_radios"]

SYSFS, NODES = Path("/sys"), Path("/dev/bus/usb")
PLUTO, PLUTO_DFU = ("0456", "b673"), ("0456", "b674")
ETTUS = ("2500", "fffe", "3923")  # Ettus, USRP1, and the B2xx that National Instruments sold


@dataclass(frozen=True)
class UsbRadio:
    """One attached radio.

    Attributes:
        place: bus and ports, as the kernel writes them: ``1-5.2``.
        scheme: of the driver that opens it: ``pluto`` or ``usrp``.
        vendor: USB vendor, four hexadecimal digits.
        product: USB product, four hexadecimal digits.
        serial: as the device tells it; a USRP tells it only after its firmware was loaded.
        speed_mbps: of the link, 480 being USB 2 and 5000 USB 3.
        node: device file that libraries open.
        usable: whether this user may.
        waits_for_firmware: a Pluto in update mode.
        interfaces: names of its network interfaces.
    """

    place: str
    scheme: str
    vendor: str
    product: str
    serial: str
    speed_mbps: float
    node: Path
    usable: bool
    waits_for_firmware: bool
    interfaces: tuple[str, ...]


def usb_radios(sysfs: Path = SYSFS, nodes: Path = NODES) -> list[UsbRadio]:
    """List the radios on USB, by place.

    Args:
        sysfs: where the kernel tells of devices.
        nodes: where it puts their files.
    """
    found = []
    for folder in sorted((sysfs / "bus/usb/devices").glob("*")):
        identity = _read(folder / "idVendor"), _read(folder / "idProduct")
        if identity not in (PLUTO, PLUTO_DFU) and identity[0] not in ETTUS:
            continue
        try:
            bus, number = int(_read(folder / "busnum")), int(_read(folder / "devnum"))
            speed_mbps = float(_read(folder / "speed"))
        except ValueError:  # it was pulled this instant
            continue
        node = nodes / f"{bus:03d}" / f"{number:03d}"
        found.append(
            UsbRadio(
                folder.name,
                "pluto" if identity[0] == PLUTO[0] else "usrp",
                *identity,
                _read(folder / "serial"),
                speed_mbps,
                node,
                os.access(node, os.R_OK | os.W_OK),
                identity == PLUTO_DFU,
                tuple(sorted(path.name for path in folder.glob("*/net/*"))),
            )
        )
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
