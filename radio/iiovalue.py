"""Values as Linux drivers read and show them, and attributes that only keep one; knows no device."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any

from radio.iiod import Attribute


def invalid(text: str) -> OSError:
    """Make the error for a value that the driver does not take."""
    return OSError(errno.EINVAL, text)


def unsigned(text: str) -> int:
    """Read a decimal number without sign or fraction."""
    if not re.fullmatch(r"\+?\d{1,18}", text):
        raise invalid(text)
    return int(text)


def signed(text: str) -> int:
    """Read a decimal number without fraction."""
    return -unsigned(text[1:]) if text.startswith("-") else unsigned(text)


def fixed(text: str) -> int:
    """Read a decimal number in millionths; a unit of dB may follow."""
    found = re.fullmatch(r"([+-]?)(\d{1,9})(?:\.(\d*))?(?: dB)?", text)
    if not found:
        raise invalid(text)
    sign, whole, part = found.groups()
    return (-1 if sign == "-" else 1) * (int(whole) * 1_000_000 + int((part or "").ljust(6, "0")[:6]))


def switch(text: str) -> bool:
    """Read a truth value by its first letters, as the kernel does."""
    if text[:1] in ("1", "y", "Y", "t", "T") or text[:2].lower() == "on":
        return True
    if text[:1] in ("0", "n", "N", "f", "F") or text[:2].lower() == "of":
        return False
    raise invalid(text)


def constant(text: str) -> Attribute:
    """Make an attribute that never changes."""
    return Attribute(lambda: text)


def kept(start: str, check: Callable[[str], Any]) -> Attribute:
    """Make an attribute that keeps what is written and has no other effect; ``check`` raises ``OSError``."""
    value = [start]

    def write(text: str) -> None:
        check(text)
        value[0] = text

    return Attribute(lambda: value[0], write)


def flag() -> Attribute:
    """Make a switch, on at first, that is kept and has no other effect."""
    value = [True]

    def write(text: str) -> None:
        value[0] = switch(text)

    return Attribute(lambda: str(int(value[0])), write)
