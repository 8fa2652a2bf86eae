"""Knows how to say what is wrong with a configuration, one line per problem; knows no files and no processes."""

from __future__ import annotations

import difflib
import re
import types
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fl_core.options import SCHEME_NAMES
from radio.errors import ConfigError
from radio.ofdm import PROFILES

if TYPE_CHECKING:
    from testbed.config import Experiment, Lab

_BOUNDS = {
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
}
_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": 'text in quotes, "..."',
    "tuple_type": "a list, [...]",
    "list_type": "a list, [...]",
    "dict_type": "a table",
    "model_type": "a table",
}


PLACES = ("pluto:ip:", "pluto:usb:", "usrp:addr=", "usrp:type=")  # each machine may have a radio at the same place
VIRTUAL = "pluto-virtual"  # in place of a URI: a Pluto that the simulated air serves


class ConfigProblems(ConfigError):
    """Several things are wrong with the configuration; each is a ConfigError of its own in ``problems``."""

    def __init__(self, problems: Sequence[ConfigError]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def raise_all(problems: Sequence[ConfigError]) -> None:
    """Raise the one problem, or all of them together; do nothing without a problem."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigProblems(problems)


def suggest(word: str, known: Iterable[str]) -> str:
    """Word a remedy for an unknown name: the closest known one, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return (
            f"did you mean {close[0]!r}? known: {', '.join(names)}"
            if len(names) <= 8
            else f"did you mean {close[0]!r}?"
        )
    return f"use one of: {', '.join(names)}"


def explain(
    error: ValidationError, model: type[BaseModel], source: str, overridden: Mapping[str, str]
) -> list[ConfigError]:
    """Turn pydantic's report into one ConfigError per problem.

    Args:
        error: the report.
        model: the model that was filled.
        source: name of the file.
        overridden: dotted key -> key as typed on the command line; problems there name ``--set`` instead of the file.
    """
    return [_explain_one(detail, model, source, overridden) for detail in error.errors()]


def _explain_one(
    detail: ErrorDetails, model: type[BaseModel], source: str, overridden: Mapping[str, str]
) -> ConfigError:
    loc = tuple(part for part in detail["loc"] if not str(part).startswith("function-"))
    key = ".".join(str(part) for part in loc)
    where, shown = source, key
    for typed, full in overridden.items():
        if key == typed or key.startswith(f"{typed}."):
            where, shown = "--set", full + key.removeprefix(typed)
    kind, context = detail["type"], detail.get("ctx", {})
    value = _short(detail["input"])
    if kind == "extra_forbidden":
        known = _keys_at(model, loc[:-1])
        return ConfigError(f"{where}: {shown}: unknown key", suggest(str(loc[-1]), known) if known else "remove it")
    if kind == "missing":
        return ConfigError(f"{where}: {shown}: required, but absent", f"add {shown.rsplit('.', 1)[-1]} = ...")
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        limit = f"{words} {context[name]:g}" if isinstance(context[name], float) else f"{words} {context[name]}"
        return ConfigError(f"{where}: {shown} = {value}: must be {limit}", f"choose a value {limit}")
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        return ConfigError(f"{where}: {shown} = {value}: not a known choice", suggest(str(detail["input"]), choices))
    if kind in _KINDS:
        return ConfigError(f"{where}: {shown} = {value}: must be {_KINDS[kind]}", f"write {_KINDS[kind]}")
    if kind == "value_error":  # a rule of our own models: "what is wrong; what to do", or only what is wrong
        what, _, remedy = str(context["error"]).rpartition("; ")
        text = f"{where}: {shown}: {what or remedy}" if shown else f"{where}: {what or remedy}"
        return ConfigError(text, remedy if what else "change the value")
    rule = detail["msg"][0].lower() + detail["msg"][1:]
    return ConfigError(f"{where}: {shown} = {value}: {rule}", "correct the value")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """List the keys that a model knows at a dotted path."""
    here: Any = model
    for part in path:
        if isinstance(here, type) and issubclass(here, BaseModel):
            if part not in here.model_fields:
                return []
            here = here.model_fields[str(part)].annotation
            if get_origin(here) in (Union, types.UnionType):
                models = [a for a in get_args(here) if isinstance(a, type) and issubclass(a, BaseModel)]
                here = models[0] if models else here
        else:  # a row of a list, or a named table of a mapping: its element type says what it holds
            inner = [a for a in get_args(here) if isinstance(a, type) and issubclass(a, BaseModel)]
            here = inner[-1] if inner else None
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def check(
    lab: Lab,
    experiment: Experiment | None,
    lab_source: str,
    experiment_source: str,
    overridden: Iterable[str] = (),
) -> list[ConfigError]:
    """Check what no single field can know: names that must differ, and whether lab and experiment fit each other.

    Args:
        lab: what is in the room.
        experiment: what to try; None: check the lab alone.
        lab_source: file that the lab was read from.
        experiment_source: file that the experiment was read from.
        overridden: experiment keys given on the command line; their problems name ``--set``.
    """
    problems: list[ConfigError] = []
    typed = tuple(overridden)

    def wrong(source: str, text: str, remedy: str) -> None:
        source = "--set" if text.split(" = ")[0] in typed else source
        problems.append(ConfigError(f"{source}: {text}", remedy))

    for name, times in Counter(entry.name for entry in lab.nodes).items():
        if times > 1:
            wrong(lab_source, f"nodes: {times} nodes are named {name!r}", "give every node a name of its own")
    if any(entry.name in ("server", "reader") for entry in lab.nodes):
        wrong(lab_source, "nodes: 'server' and 'reader' are names of the testbed's own keys", "rename the node")
    for uri, times in Counter([lab.server.radio, *(entry.radio for entry in lab.nodes)]).items():
        if times > 1 and uri != VIRTUAL and not uri.startswith(PLACES):
            wrong(lab_source, f"radio = {uri!r} is used {times} times", "give every machine a radio of its own")
    uris = [lab.server.radio, *(entry.radio for entry in lab.nodes)]
    if lab.ether is None and any(_needs_ether(uri) for uri in uris):
        wrong(
            lab_source, "simulated radios, but no [ether] table", "add an [ether] table, for example with snr_db = 20"
        )
    elif lab.ether is None and lab.safety.conducted and lab.safety.attenuation_db is None:
        text = f"safety {lab.safety.name!r} is for cables, and their attenuation is not declared"
        wrong(lab_source, text, "write [safety] attenuation_db = the least attenuation between two radios, in dB")
    if lab.virtual_plutos and len(lab.virtual_plutos) < len(uris):
        wrong(
            lab_source,
            f"{len(lab.virtual_plutos)} of {len(uris)} radios are {VIRTUAL}, in real time; an air has only one time",
            f"make every radio {VIRTUAL}, or none",
        )
    if lab.heartbeat.allowance_s <= lab.heartbeat.interval_s:
        values = f"{lab.heartbeat.allowance_s} s is not longer than heartbeat.interval_s = {lab.heartbeat.interval_s} s"
        wrong(lab_source, f"heartbeat.allowance_s = {values}", "allow at least three intervals of silence")
    if experiment is not None:
        _check_fit(lab, experiment, lab_source, experiment_source, wrong)
    return problems


def _needs_ether(uri: str) -> bool:
    return uri == VIRTUAL or (uri.startswith("loopback:") and "://" not in uri)


def _check_fit(lab: Lab, experiment: Experiment, lab_source: str, experiment_source: str, wrong: Any) -> None:
    nodes = len(lab.nodes)
    wave, run = experiment.waveform, experiment.run
    if experiment.scheme.name not in SCHEME_NAMES:
        text = f"scheme.name = {experiment.scheme.name!r}: unknown scheme"
        wrong(experiment_source, text, suggest(experiment.scheme.name, SCHEME_NAMES))
    profile = PROFILES.get(wave.profile)
    if profile is None:
        text = f"waveform.profile = {wave.profile!r}: unknown profile"
        wrong(experiment_source, text, suggest(wave.profile, PROFILES))
    else:
        if nodes > profile.max_nodes:
            text = f"{nodes} nodes, but profile {profile.name!r} has {profile.max_nodes} verification shifts"
            wrong(lab_source, text, f"use at most {profile.max_nodes} nodes, or a profile with more subcarriers")
        if wave.mode not in profile.modes:
            text = f"waveform.mode = {wave.mode!r}: profile {profile.name!r} allows {', '.join(profile.modes)}"
            wrong(experiment_source, text, f'set waveform.mode = "{profile.modes[0]}"')
    if run.clients_per_round > nodes:
        text = f"run.clients_per_round = {run.clients_per_round}, but the lab has {nodes} nodes"
        wrong(experiment_source, text, f"choose at most {nodes}, or add nodes to the lab")
    if experiment.data.clients != nodes:
        text = f"data.clients = {experiment.data.clients}, but the lab has {nodes} nodes, one client each"
        wrong(experiment_source, text, f"set data.clients = {nodes}")
