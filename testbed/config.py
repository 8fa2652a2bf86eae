"""Knows every setting of a lab and of an experiment, their bounds and their files; knows nothing of processes."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from calibration.options import CalibrationOptions
from fl_core.options import DataOptions, LearnOptions, ModelOptions, SchemeOptions
from radio.errors import ConfigError
from radio.presets import PRESETS, EtherOptions, preset
from radio.region import PROFILES, SafetyProfile, read_region
from testbed import toml
from testbed.problems import VIRTUAL, ConfigProblems, check, explain, raise_all, suggest

__all__ = [
    "BUILT_IN",
    "ConfigProblems",
    "Experiment",
    "Heartbeat",
    "Lab",
    "NodeEntry",
    "Pair",
    "RadioEntry",
    "RunOptions",
    "Section",
    "ServerEntry",
    "WaveformOptions",
    "load",
    "load_experiment",
    "load_lab",
    "round_seed",
    "starter",
]

BUILT_IN = "built-in"  # where a setting came from when no file was given

RADIO = rf"^([a-z][a-z0-9_-]*:.+|{VIRTUAL})$"
Port = Annotated[int, Field(ge=0, le=65_535)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]  # also a file name and a wire identity


class Section(BaseModel):
    """Base of every table in the two files: frozen, unknown keys refused, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class RadioEntry(Section):
    """One radio of the lab and how it is connected."""

    radio: str = Field(
        pattern=RADIO,
        description="URI of the radio, for example loopback:node-1, pluto:usb:1.5.5 or usrp:serial=30F1234; or "
        "pluto-virtual: a Pluto that the simulated air serves in real time.",
    )
    antenna: str | None = Field(default=None, description="Label of the antenna or cable, for the record.")
    attenuation_db: float | None = Field(
        default=None, ge=0, le=200, description="Attenuators between this radio and the combiner or antenna, in dB."
    )
    rx_gain_db: float = Field(default=60.0, ge=0, le=80, description="Receive gain in dB. Gain control is manual.")
    tx_attenuation_db: float = Field(default=0.0, ge=0, le=90, description="Transmit attenuation in dB.")


class NodeEntry(RadioEntry):
    """One node: a machine with a radio and one client."""

    name: Name = Field(description="Name of the node; its key files carry the same name.")


class ServerEntry(RadioEntry):
    """The machine that receives the sum."""

    radio: str = Field(
        default="loopback:server", pattern=RADIO, description="URI of the server's radio, or pluto-virtual."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address the server binds and nodes connect to.")
    control_port: Port = Field(default=5701, description="TCP port of orders and answers; 0: the launcher picks one.")
    events_port: Port = Field(default=5702, description="TCP port of the event stream; 0: the launcher picks one.")


class Heartbeat(Section):
    """How long silence is tolerated. A node that misses its server mutes; it does not die."""

    interval_s: float = Field(default=1.0, gt=0, le=60, description="Time between two signs of life, in seconds.")
    allowance_s: float = Field(default=10.0, gt=0, le=3600, description="Silence after which a peer counts as lost.")
    give_up_s: float = Field(default=120.0, gt=0, le=86_400, description="Silence after which a node process ends.")


class Lab(Section):
    """What is in the room (``lab.toml``)."""

    name: str = Field(default="lab", description="Name of the lab, for the record.")
    keys: str = Field(
        default="keys",
        description="Folder of the key files, relative to lab.toml. Empty: new keys for every run, in the run folder.",
    )
    server: ServerEntry = Field(default_factory=ServerEntry, description="The receiving machine.")
    heartbeat: Heartbeat = Field(default_factory=Heartbeat, description="Tolerated silence.")
    safety: SafetyProfile = Field(
        description="What radios may transmit: the name of a profile, or a [safety] table. A table with the name of a "
        "known profile takes from it whatever it does not set itself; so does one with the file of a profile."
    )
    ether_port: Port = Field(default=5700, description="TCP port of the simulated air; 0: the launcher picks one.")
    iiod_port: Port = Field(
        default=5710, description="TCP port of the first virtual Pluto, the next ones follow; 0: the launcher picks."
    )
    calibration: CalibrationOptions = Field(
        default_factory=CalibrationOptions, description="How long and how often `testbed calibrate` measures."
    )
    ether: EtherOptions | None = Field(default=None, description="The simulated air; absent for real radios.")
    nodes: tuple[NodeEntry, ...] = Field(min_length=1, description="The nodes, one [[nodes]] table each.")

    @field_validator("safety", mode="before")
    @classmethod
    def _named_profile(cls, given: Any) -> Any:
        table = {"name": given} if isinstance(given, str) else given
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            return given
        known = PROFILES.get(table["name"])
        if known is not None:
            return {**known.model_dump(), **table}
        if "bands" not in table:
            raise ValueError(
                f"no safety profile {table['name']!r}, and no bands given; {suggest(table['name'], PROFILES)}"
            )
        return table

    def node(self, name: str) -> NodeEntry:
        """Find a node by name.

        Raises:
            ConfigError: no node has this name.
        """
        for entry in self.nodes:
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in self.nodes)
        raise ConfigError(f"lab {self.name!r} has no node {name!r}", f"use one of: {known}")

    def radio_uri(self, name: str) -> str:
        """Give the URI by which a process of its own opens a radio: simulated ones become an address of the ether.

        Args:
            name: ``server`` or the name of a node.
        """
        uri = self.server.radio if name == "server" else self.node(name).radio
        if uri == VIRTUAL:
            return f"pluto:ip:127.0.0.1:{self.virtual_plutos[name]}?block=8192&buffers=3"
        if self.ether is not None and uri.startswith("loopback:") and "://" not in uri:
            return f"loopback:{self.ether_address}/{uri.removeprefix('loopback:')}"
        return uri

    @property
    def ether_address(self) -> str:
        """Address of the ether daemon of this lab."""
        return f"tcp://127.0.0.1:{self.ether_port}"

    @property
    def radio_names(self) -> tuple[str, ...]:
        """Names of the simulated radios, the server's first."""
        names = []
        for name, uri in self._radios:
            if uri == VIRTUAL:
                names.append(name)
            elif uri.startswith("loopback:"):
                names.append(uri.split(":", 1)[1].rsplit("/", 1)[-1])
        return tuple(names)

    @property
    def _radios(self) -> list[tuple[str, str]]:
        return [("server", self.server.radio), *((entry.name, entry.radio) for entry in self.nodes)]

    @property
    def virtual_plutos(self) -> dict[str, int]:
        """Ports of the virtual Plutos by the name of their machine, the server's first."""
        names = [name for name, uri in self._radios if uri == VIRTUAL]
        return {name: self.iiod_port + place for place, name in enumerate(names)}

    def witness_address(self, name: str) -> str | None:
        """Give where the truth about a simulated radio is to be had that its own driver cannot know; else None."""
        return self.ether_address if self.ether is not None and name in self.virtual_plutos else None


class WaveformOptions(Section):
    """What the radios send."""

    profile: str = Field(default="pluto-915", description="Waveform profile: one of the names in radio.ofdm.PROFILES.")
    mode: Literal["R", "C"] = Field(
        default="R", description="R: one real value per resource element. C: two, only with a shared reference."
    )
    checksum: Literal["none", "analog", "digital"] = Field(
        default="digital",
        description="Linear checksum of every update. analog: appended to the payload. digital: sent beside it.",
    )
    beacons_per_cycle: int = Field(default=3, ge=1, le=100, description="Beacons before each burst.")
    adev: float = Field(
        default=3e-10, gt=0, le=1e-6, description="Allan deviation at 0.1 s that trackers assume of a free crystal."
    )


class RunOptions(Section):
    """How long, with whom, from which seed."""

    rounds: int = Field(default=100, ge=1, le=1_000_000, description="Rounds of training.")
    clients_per_round: int = Field(default=8, ge=1, le=10_000, description="Clients that take part in a round.")
    seed: int = Field(default=1, ge=0, lt=2**63, description="Every random choice of the run follows from this number.")
    evaluate_every: int = Field(default=10, ge=1, description="Rounds between two evaluations.")
    checkpoint_every: int = Field(default=1, ge=1, description="Rounds between two checkpoints.")
    compare: bool = Field(default=True, description="Also train with error-free aggregation, for the final table.")
    join_timeout_s: float = Field(default=120.0, gt=0, le=86_400, description="Longest wait for the nodes to join.")
    train_timeout_s: float = Field(default=60.0, gt=0, le=86_400, description="Longest wait for the clients' training.")


class Experiment(Section):
    """What to try (``experiment.toml``)."""

    data: DataOptions = Field(default_factory=DataOptions, description="Data set, tasks and how clients share them.")
    model: ModelOptions = Field(default_factory=ModelOptions, description="The network.")
    learn: LearnOptions = Field(default_factory=LearnOptions, description="Meta-learning.")
    scheme: SchemeOptions = Field(default_factory=SchemeOptions, description="Updates to symbols and back.")
    waveform: WaveformOptions = Field(default_factory=WaveformOptions, description="Symbols to samples.")
    run: RunOptions = Field(default_factory=RunOptions, description="Rounds, participation, seed.")


@dataclass(frozen=True)
class Pair:
    """A lab and an experiment that fit each other, and where they were read."""

    lab: Lab
    experiment: Experiment
    lab_source: str = BUILT_IN
    experiment_source: str = BUILT_IN

    def resolved(self) -> dict[str, str]:
        """Give both files as TOML text with every setting spelled out: names ``lab.toml`` and ``experiment.toml``."""
        return {
            "lab.toml": toml.dumps(self.lab.model_dump(mode="json")),
            "experiment.toml": toml.dumps(self.experiment.model_dump(mode="json")),
        }

    def fingerprint(self) -> str:
        """Hash what decides the numbers of a run: everything but addresses, keys, patience and the number of rounds.

        Two pairs with one fingerprint continue each other's checkpoints, so a finished run can be made longer.
        """
        lab = self.lab.model_dump(
            mode="json", exclude={"name", "keys", "heartbeat", "ether_port", "iiod_port", "calibration"}
        )
        for key in ("host", "control_port", "events_port"):
            del lab["server"][key]
        skipped = {"run": {"rounds", "checkpoint_every", "compare", "join_timeout_s", "train_timeout_s"}}
        experiment = self.experiment.model_dump(mode="json", exclude=skipped)
        text = json.dumps({"lab": lab, "experiment": experiment}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def round_seed(seed: int, round_number: int) -> int:
    """Derive the seed that node and server share for one round's signs, checksums and canary."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{round_number}".encode(), digest_size=4).digest(), "little")


def starter(name: Literal["lab.toml", "experiment.toml"]) -> str:
    """Give the text of a starter file, as ``testbed init`` writes it."""
    return (files("testbed") / "starter" / name).read_text(encoding="utf-8")


def load(experiment: Path | None = None, lab: Path | None = None, overrides: Sequence[str] = ()) -> Pair:
    """Read, override, validate and cross-check a pair of files.

    Args:
        experiment: ``experiment.toml``, or a folder that holds both files (a run folder); None: the built-in one.
        lab: ``lab.toml``; None: the one beside ``experiment`` if there is one, else the built-in loopback lab.
        overrides: ``a.b=value`` for the experiment, ``lab.a.b=value`` for the lab; values in TOML, quotes optional.

    Raises:
        ConfigError: one problem; ``ConfigProblems`` (a ConfigError) when there are several.
    """
    if experiment is not None and experiment.is_dir():
        experiment, lab = experiment / "experiment.toml", lab or experiment / "lab.toml"
    if experiment is not None and lab is None and (experiment.parent / "lab.toml").is_file():
        lab = experiment.parent / "lab.toml"
    mine, theirs = _split(overrides)
    problems: list[ConfigError] = []
    room = _build(Lab, "lab.toml", lab, mine, "lab.", problems)
    plan = _build(Experiment, "experiment.toml", experiment, theirs, "", problems)
    raise_all(problems)
    assert isinstance(room, Lab) and isinstance(plan, Experiment)
    pair = Pair(room, plan, str(lab or BUILT_IN), str(experiment or BUILT_IN))
    raise_all(check(room, plan, pair.lab_source, pair.experiment_source, theirs))
    return pair


def load_lab(lab: Path | None = None, overrides: Sequence[str] = ()) -> Lab:
    """Read a lab alone, as the node and ether processes do; overrides must start with ``lab.``."""
    mine, theirs = _split(overrides)
    problems = [
        ConfigError(f"--set {item}: only lab keys have a meaning here", "write lab.KEY=VALUE") for item in theirs
    ]
    room = _build(Lab, "lab.toml", lab, mine, "lab.", problems)
    raise_all(problems)
    assert isinstance(room, Lab)
    raise_all(check(room, None, str(lab or BUILT_IN), ""))
    return room


def load_experiment(experiment: Path | None = None) -> Experiment:
    """Read an experiment alone, as a simulation without radios does; None: the built-in one."""
    problems: list[ConfigError] = []
    plan = _build(Experiment, "experiment.toml", experiment, {}, "", problems)
    raise_all(problems)
    assert isinstance(plan, Experiment)
    return plan


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Sort ``a.b=text`` into those of the lab (prefix removed) and those of the experiment."""
    lab: dict[str, str] = {}
    experiment: dict[str, str] = {}
    for item in overrides:
        path, equals, text = item.partition("=")
        path = path.strip()
        if not equals or not all(path.split(".")):
            raise ConfigError(f"--set {item}: not of the form KEY=VALUE", "write for example --set scheme.keep=0.04")
        if path.startswith("lab."):
            lab[path.removeprefix("lab.")] = text
        else:
            experiment[path] = text
    return lab, experiment


def _build(
    model: type[Section],
    default: Literal["lab.toml", "experiment.toml"],
    path: Path | None,
    overrides: Mapping[str, str],
    prefix: str,
    problems: list[ConfigError],
) -> Section | None:
    source = default if path is None else str(path)
    try:
        table = _read(default, path)
        if "ether.preset" in overrides:
            _forget_preset(table)
        for key, text in overrides.items():
            _override(table, key, text, prefix)
    except ConfigError as error:
        problems.append(error)
        return None
    try:
        return model.model_validate(table)
    except ValidationError as error:
        problems.extend(explain(error, model, source, {key: prefix + key for key in overrides}))
        return None


def _read(default: Literal["lab.toml", "experiment.toml"], path: Path | None) -> dict[str, Any]:
    if path is None:
        table = tomllib.loads(starter(default))
        if default == "lab.toml":  # the built-in lab must run beside anything else on this machine
            table["keys"] = ""
            table["ether_port"] = table["iiod_port"] = 0
            table["server"] |= {"control_port": 0, "events_port": 0}
        return table
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}", "run `testbed init` for starter files") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", "correct the line; text values need quotes") from error
    if default == "lab.toml":
        keys = table.get("keys", "keys")
        if isinstance(keys, str) and keys:
            table["keys"] = str((path.parent / keys).absolute())
        safety = table.get("safety")
        if isinstance(safety, dict) and isinstance(safety.get("file"), str):
            table["safety"] = {**read_region(path.parent / safety.pop("file")), **safety}
    else:
        data = table.get("data")
        if isinstance(data, dict) and isinstance(data.get("folder"), str):
            data["folder"] = str((path.parent / data["folder"]).absolute())
    return table


def _forget_preset(table: dict[str, Any]) -> None:
    """Drop what the ether has from its old preset, so that another preset can take its place in a resolved file."""
    ether = table.get("ether")
    if isinstance(ether, dict) and ether.get("preset", "ideal") in PRESETS:
        old = preset(ether.get("preset", "ideal")).model_dump(mode="json")
        table["ether"] = {key: value for key, value in ether.items() if key not in old or old[key] != value}


def _override(table: dict[str, Any], key: str, text: str, prefix: str) -> None:
    """Put one value into nested tables; a number in the path counts rows of a list from 0."""
    try:
        value: Any = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is text, so that no shell quoting is needed
    here: Any = table
    parts = key.split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        where = ".".join(parts[: depth + 1])
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                rule = f"{prefix}{where}: the list has rows 0 to {len(here) - 1}"
                raise ConfigError(f"--set {prefix}{key}={text}: {rule}", "use one of these numbers")
            if last:
                here[int(part)] = value
            else:
                here = here[int(part)]
        elif isinstance(here, dict):
            if last:
                here[part] = value
            else:
                here = here.setdefault(part, {})
        else:
            rule = f"{prefix}{'.'.join(parts[:depth])} is a single value, not a table"
            raise ConfigError(f"--set {prefix}{key}={text}: {rule}", "shorten the key")
