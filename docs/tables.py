"""Tables of the documentation, made from the code itself so that they cannot go stale; knows no prose.

A page asks for a table with a line such as ``<!-- table: lab -->``; ``fill`` puts it there when the page is built.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from radio.errors import TestbedError
from radio.ofdm import PROFILES as WAVEFORMS
from radio.ofdm import capacity
from radio.presets import PRESETS, EtherOptions, RadioEffects
from radio.region import MIN_CONDUCTED_DB
from radio.region import PROFILES as SAFETY
from testbed import messages
from testbed.cli import app
from testbed.config import Experiment, Lab
from testbed.node import TRANSITIONS

MARK = re.compile(r"^<!-- table: ([a-z-]+) -->$", re.MULTILINE)

# The air's options say what they mean where the name does not; these lines say the rest.
AIR = {
    "tier": "capability tier that the radio declares",
    "max_rate_hz": "highest sample rate",
    "block_samples": "samples move in blocks of this size",
    "turnaround_s": "least time between the last sample received and a burst",
    "ppm_max": "clock error is drawn uniformly from +/- this",
    "warm_up_ppm": "clock error that fades while the radio warms up",
    "warm_up_s": "time constant of the warm-up",
    "drift_ppb_per_s": "linear drift of the clock",
    "lo_step_hz": "step of the synthesiser; 0: any frequency",
    "tune_min_hz": "lowest carrier",
    "tune_max_hz": "highest carrier",
    "tx_attenuation_max_db": "largest transmit attenuation",
    "tx_attenuation_step_db": "step of the transmit attenuation",
    "tx_image_dbc": "IQ image of the transmitter",
    "rx_gain_min_db": "least receive gain",
    "rx_gain_max_db": "largest receive gain",
    "rx_gain_step_db": "step of the receive gain",
    "rx_image_dbc": "IQ image of the receiver",
    "rx_dc_dbfs": "DC offset of the receiver",
    "noise_figure_db": "noise figure of the receiver",
    "self_leak_delay_max_samples": "delay of the self-leakage is drawn from 0 to this",
    "overflows_per_min": "receive gaps per minute, at random instants",
    "underflows_per_min": "transmit gaps per minute, at random instants",
    "preset": "named preset that fills every field that is not given",
    "seed": "seed of every random draw of the air",
    "server": "name of the radio that snr_db refers to",
    "snr_db": "SNR per resource element at the server of each node alone, at 9 dB back-off and no attenuation",
    "paths_min": "least number of paths of a link",
    "paths_max": "largest number of paths of a link",
    "delay_spread_min_s": "least rms delay spread",
    "delay_spread_max_s": "largest rms delay spread",
    "rician_k_max_db": "largest Rician K factor",
    "doppler_max_hz": "largest Doppler frequency of a scattered path",
    "distance_max_m": "distance between radios is drawn from 0 to this (a delay, not a loss)",
    "interferer_hz": "carrier of the interferer",
    "interferer_duty": "share of time that it is on the air",
    "interferer_burst_s": "length of one of its bursts",
    "interferer_bandwidth_hz": "width of its chirp",
}


def fill(text: str) -> str:
    """Replace every table mark in a page by its table.

    Raises:
        KeyError: no table has that name.
    """
    return MARK.sub(lambda found: TABLES[found[1]](), text)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a Markdown table."""
    heads = list(header)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _model_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Find the model inside an annotation, and whether there are several of it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for inner in get_args(annotation):
        model, _ = _model_of(inner)
        if model is not None:
            return model, get_origin(annotation) in (tuple, list)
    return None, False


def _kind(annotation: Any) -> str:
    """Name a type as a user writes it in TOML."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) in (tuple, list):
        return f"list of {_kind(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{choice.value}`" for choice in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >="}
    metadata = list(field.metadata)
    found = [
        f"{sign} {getattr(item, name):g}"
        for item in metadata
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    ]
    return ", ".join(found)


def _plain(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or value is None or value in ((), ""):
        return "none"
    return f"`{_plain(value)}`"


def rows_of(model: type[BaseModel], prefix: str = "") -> list[tuple[str, FieldInfo, str]]:
    """List the settings of a model and of the models inside it: dotted key, field, what it says of itself."""
    rows: list[tuple[str, FieldInfo, str]] = []
    for name, field in model.model_fields.items():
        key = prefix + name
        words = field.description or AIR.get(name, "")
        inner, many = _model_of(field.annotation)
        if inner is EtherOptions:
            rows.append((key, field, words))
            rows += rows_of(inner, key + ".")
        elif inner is not None:
            rows += [(key, field, words)] if many or field.is_required() else []
            rows += rows_of(inner, key + (".N." if many else "."))
        else:
            rows.append((key, field, words))
    return rows


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "." if words else ""


def _settings(model: type[BaseModel]) -> str:
    groups: dict[str, list[tuple[str, FieldInfo, str]]] = {}
    for key, field, words in rows_of(model):
        inner, many = _model_of(field.annotation)
        head = key.split(".")[0] if "." in key or (inner is not None and not many) or many else ""
        groups.setdefault(head, []).append((key, field, words))
    parts = []
    for head, rows in groups.items():
        if head:
            parts.append(f"### `[{head}]`\n")
        elif model is Lab:
            parts.append("### Top level\n")
        cells = [
            (f"`{key}`", _kind(field.annotation), _default(field), _bounds(field), _sentence(words))
            for key, field, words in rows
        ]
        parts.append(table(("Key", "Type", "Default", "Bounds", "Meaning"), cells) + "\n")
    return "\n".join(parts)


def presets() -> str:
    """Give every effect of the simulated air, and its value in each preset."""
    filled = {name: EtherOptions.model_validate({"preset": name}) for name in PRESETS}
    rows = []
    for name, field in EtherOptions.model_fields.items():
        if name in ("preset", "seed", "server", "radios", "links", "serial"):
            continue
        values = [getattr(options, name) for options in filled.values()]
        absent = {"ppm": "drawn", "reference_rate_hz": "server's", "unplug_at": "never", "declared_tier": "tier"}
        shown = [
            absent[name] if value is None else "off" if value == float("-inf") else _plain(value) for value in values
        ]
        each = "yes" if name in RadioEffects.model_fields else ""
        rows.append((f"`{name}`", _sentence(field.description or AIR.get(name, "")), each, *shown))
    return table(("Field", "Meaning", "Per radio", *filled), rows)


def waveforms() -> str:
    """Give the waveform profiles."""
    facts: dict[str, Callable[[Any], str]] = {
        "Sample rate": lambda p: f"{p.rate_hz / 1e6:g} MS/s",
        "Carrier": lambda p: f"{p.carrier_hz / 1e6:g} MHz",
        "FFT, prefix": lambda p: f"{p.fft}, {p.cp} samples",
        "Spacing": lambda p: f"{p.spacing_hz / 1e3:.3f} kHz",
        "Active bins": lambda p: f"{len(p.bins)}, from {p.bins[0]:+d} to {p.bins[-1]:+d}",
        "Modes": lambda p: ", ".join(p.modes),
        "Symbols per burst": lambda p: f"{p.burst_symbols}, of them {sum(p.data_symbols)} data",
        "Burst": lambda p: f"{1e3 * p.burst_samples / p.rate_hz:.2f} ms",
        "Reals per burst": lambda p: ", ".join(f"{mode}: {capacity(p, mode)}" for mode in p.modes),
        "Slot": lambda p: f"{1e3 * p.slot_samples / p.rate_hz:g} ms",
        "Most nodes": lambda p: str(p.max_nodes),
    }
    rows = [(label, *(fact(p) for p in WAVEFORMS.values())) for label, fact in facts.items()]
    return table(("", *(f"`{name}`" for name in WAVEFORMS)), rows)


def safety() -> str:
    """Give the safety profiles."""
    rows = []
    for name, profile in SAFETY.items():
        for band in profile.bands:
            mode = f"cables, {MIN_CONDUCTED_DB:g} dB or more declared" if profile.conducted else "antenna"
            duty = "not applied" if profile.conducted else f"{100 * band.duty_cycle:g} %"
            span = f"{band.low_hz / 1e6:g}-{band.high_hz / 1e6:g} MHz"
            rows.append((f"`{name}`", mode, span, f"{band.eirp_dbm:g} dBm", duty, f"{profile.guard_hz / 1e3:g} kHz"))
    return table(("Profile", "Set-up", "Band", "Radiated power, at most", "Time on air, at most", "Guard"), rows)


def every_error() -> list[type[TestbedError]]:
    """List the error classes that have a page: one per slug, parents first."""
    found: dict[str, type[TestbedError]] = {}
    waiting: list[type[TestbedError]] = [TestbedError]
    while waiting:
        kind = waiting.pop(0)
        found.setdefault(kind.slug, kind)
        waiting += kind.__subclasses__()
    return list(found.values())


def errors() -> str:
    """Give the error classes with their pages."""
    rows = [
        (
            f"[{kind.slug}]({kind.slug}.md)",
            f"`{kind.__name__}`",
            str(kind.exit_code),
            str(inspect.getdoc(kind)).split("\n")[0],
        )
        for kind in every_error()
    ]
    return table(("Slug", "Class", "Exit code", "Meaning"), rows)


def every_message() -> list[type[BaseModel]]:
    """List the message kinds in the order in which they are declared."""
    return list(get_args(messages.Message))


def message_sections() -> str:
    """Give one section per message kind."""
    parts = []
    for kind in every_message():
        name = kind.model_fields["kind"].default
        doc = (inspect.getdoc(kind) or "").replace("\n", " ")
        own = [
            (key, field)
            for key, field in kind.model_fields.items()
            if key not in (*messages.Header.model_fields, "kind")
        ]
        parts.append(f"### `{name}`\n\n{doc}\n")
        if own:
            rows = [(f"`{key}`", _kind(field.annotation), _default(field)) for key, field in own]
            parts.append(table(("Field", "Type", "Default"), rows) + "\n")
    return "\n".join(parts)


def commands() -> str:
    """Give one section per command of the command line."""
    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():
        words = re.sub(r"\[/?bold\]|\[/\]", "`", command.help or "")
        parts.append(f"## testbed {name}\n\n{words}\n")
        rows = []
        for option in command.params:
            if getattr(option, "hidden", False) or option.name == "help":
                continue
            is_argument = option.param_type_name == "argument"
            shown = option.name.upper() if is_argument else ", ".join(option.opts)
            extra = option.help or ""
            rows.append((f"`{shown}`", "yes" if option.required else "no", extra))
        if rows:
            parts.append(table(("Argument or option", "Required", "Meaning"), rows) + "\n")
        if command.epilog:
            parts.append(re.sub(r"\[/?bold\]|\[/\]", "`", command.epilog) + "\n")
    return "\n".join(parts)


def states() -> str:
    """Give the transitions of a node's state machine."""
    return table(
        ("State", "Event", "Next state"), ((f"`{a}`", f"`{e}`", f"`{b}`") for (a, e), b in TRANSITIONS.items())
    )


TABLES: dict[str, Callable[[], str]] = {
    "lab": lambda: _settings(Lab),
    "experiment": lambda: _settings(Experiment),
    "presets": presets,
    "waveforms": waveforms,
    "safety": safety,
    "errors": errors,
    "messages": message_sections,
    "commands": commands,
    "states": states,
}
