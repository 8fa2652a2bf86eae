"""SAMPLES: software-defined radios, real and simulated, behind one door; knows no learning and no processes."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from radio.air import EtherWitness
from radio.base import (
    Capabilities,
    Capture,
    Discovered,
    Radio,
    RadioConfig,
    Samples,
    StreamEvent,
    Tier,
    TxReport,
    Witness,
)
from radio.errors import ConfigError
from radio.safety import PROFILES, Audit, Band, Emission, SafeRadio, SafetyProfile

if TYPE_CHECKING:
    from radio.air import Air

__all__ = [
    "DRIVERS",
    "PROFILES",
    "Audit",
    "Band",
    "Capabilities",
    "Capture",
    "Discovered",
    "Emission",
    "Radio",
    "RadioConfig",
    "SafeRadio",
    "SafetyProfile",
    "Samples",
    "StreamEvent",
    "Tier",
    "TxReport",
    "Witness",
    "discover",
    "driver_of",
    "open",
]

GROUP = "testbed.radios"  # entry points by which other distributions add drivers
DRIVERS: dict[str, str] = {  # URI scheme -> module with connect() and discover()
    "loopback": "radio.loopback",
    "pluto": "radio.pluto",
    "replay": "radio.replay",
    "usrp": "radio.usrp",
}


def driver_of(uri: str) -> tuple[Any, str]:
    """Find the driver module of a URI, and what follows the scheme.

    Raises:
        ConfigError: the URI has no known scheme.
    """
    scheme, _, rest = uri.partition(":")
    if scheme in DRIVERS:
        return import_module(DRIVERS[scheme]), rest
    found = entry_points(group=GROUP, name=scheme)
    if not found or not rest:
        known = sorted({*DRIVERS, *(point.name for point in entry_points(group=GROUP))})
        raise ConfigError(f"radio {uri!r} has no known scheme; known are {known}", "write for example loopback:node-1")
    return next(iter(found)).load(), rest


def open(
    uri: str, safety: SafetyProfile, *, ether: Air | None = None, audit: Audit | None = None, apart: bool = False
) -> SafeRadio:
    """Open a radio by its URI, muted and behind a safety profile.

    Args:
        uri: ``loopback:NAME`` (needs ``ether``), ``loopback:tcp://HOST:PORT/NAME``, or a scheme of another driver.
        safety: what the radio may transmit.
        ether: the simulated air: of a loopback radio in this process, or behind a driver that cannot know it, whose
            radio then has that air's witness.
        audit: takes a record of every emission and every refusal.
        apart: run the driver in a process of its own, which nothing that happens in this one can hold up.

    Raises:
        ConfigError: the URI has no known scheme.
        RadioNotFound, RadioRefused, LinkError: the driver could not open it.
    """
    driver, rest = driver_of(uri)
    radio: Radio
    if apart:
        from radio.apart import ApartRadio  # imports this package

        radio = ApartRadio(uri)
    else:
        radio = driver.connect(rest, ether)
    guarded = SafeRadio(radio, safety, audit, None if ether is None else EtherWitness(ether))
    if not getattr(driver, "OPENS_MUTED", False):
        guarded.mute()  # a device may radiate a carrier as soon as it is opened
    return guarded


def discover() -> list[Discovered]:
    """List the radios that every driver can see; a simulated radio shows only by its own URI."""
    modules = [import_module(name) for name in DRIVERS.values()]
    modules += [point.load() for point in entry_points(group=GROUP)]
    return [radio for module in modules for radio in module.discover()]
