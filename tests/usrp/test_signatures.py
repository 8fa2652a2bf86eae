"""Every call of UHD in the driver, found by reading its source, fits the real module; so does all of the fake.

The binding is compiled: its signatures and types stand in the first lines of its docstrings, and are read from there.
"""

import ast
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_uhd
import pytest
import uhd

import radio

SOURCES = [Path(radio.__file__).with_name(name) for name in ("usrp.py", "usrp_clock.py", "usrp_stream.py")]


@dataclass(frozen=True)
class Instance:
    """Something of a class of UHD."""

    of: type


ROOTS: dict[str, Any] = {
    "uhd": uhd,
    "self._uhd": uhd,
    "self._types": uhd.types,
    "usrp": Instance(uhd.usrp.MultiUSRP),
    "self._usrp": Instance(uhd.usrp.MultiUSRP),
    "self._rx": Instance(uhd.usrp.RXStreamer),
    "self._tx": Instance(uhd.usrp.TXStreamer),
}
#: Names that only UHD has here: whoever calls one of them must have been followed to its class.
TELLING = {
    name
    for owner in (uhd.usrp.MultiUSRP, uhd.usrp.RXStreamer, uhd.usrp.TXStreamer, uhd.types.TimeSpec)
    for name in dir(owner)
    if not name.startswith("_")
}


@dataclass(frozen=True)
class Signature:
    """One overload: names of the parameters after self, how many must be given, what comes back."""

    names: list[str]
    required: int
    gives: str


def split(text: str) -> list[str]:
    """Cut at the commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def signatures(function: Any) -> list[Signature]:
    """Read every overload of a function of the binding; of a function in Python, its signature."""
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(r"(?:\d+\. )?\w+\((.*)\) -> (.+)$", line.strip())
        if match and "*args" not in line:
            parts = [part for part in split(match[1]) if not part.startswith("self")]
            names = [part.split(":")[0].strip() for part in parts]
            found.append(Signature(names, sum("=" not in part for part in parts), match[2]))
    if not found:
        told = [each for each in inspect.signature(function).parameters.values() if each.name != "self"]
        found.append(Signature([each.name for each in told], sum(each.default is each.empty for each in told), ""))
    return found


def kind(text: str) -> Any:
    """Give the class that a docstring names, or None for a plain value."""
    known = {"uhd::rx_streamer": uhd.usrp.RXStreamer, "uhd::tx_streamer": uhd.usrp.TXStreamer}
    if text in known:
        return Instance(known[text])
    match = re.fullmatch(r"uhd\.libpyuhd\.(\w+)\.(\w+)", text)
    return Instance(getattr(getattr(uhd.libpyuhd, match[1]), match[2])) if match else None


@dataclass
class Reader:
    """Follows what is UHD's through one function: which names hold what, what is asked of it."""

    names: dict[str, Any] = field(default_factory=dict)
    followed: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    calls: set[str] = field(default_factory=set)

    def follow(self, node: ast.expr) -> Any:
        """Give what an expression is, as far as it is UHD's."""
        text = ast.unparse(node)
        if text in ROOTS:
            return ROOTS[text]
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, self.follow(node.value))
        if isinstance(node, ast.Call):
            return self._call(node, self.follow(node.func))
        return None

    def _attribute(self, node: ast.Attribute, owner: Any) -> Any:
        if owner is None:
            return None
        self.followed.add(id(node))
        holder = owner.of if isinstance(owner, Instance) else owner
        if not hasattr(holder, node.attr):
            self.wrong.append(f"{ast.unparse(node)}: {holder} has no {node.attr}")
            return None
        got = inspect.getattr_static(holder, node.attr) if isinstance(owner, Instance) else getattr(holder, node.attr)
        if isinstance(got, property):
            return kind((got.fget.__doc__ or "").strip().rpartition("-> ")[2])
        return getattr(holder, node.attr)

    def _call(self, node: ast.Call, function: Any) -> Any:
        if function is None:
            return None
        told = function.__init__ if isinstance(function, type) else function
        self.calls.add(f"{ast.unparse(node.func)}/{len(node.args)}")
        given = len(node.args), {word.arg for word in node.keywords}
        fits = [each for each in signatures(told) if each.required <= sum((given[0], len(given[1]))) <= len(each.names)]
        fits = [each for each in fits if given[1] <= set(each.names)]
        if not fits:
            self.wrong.append(f"{ast.unparse(node)}: {told.__doc__ or inspect.signature(told)}")
            return None
        return Instance(function) if isinstance(function, type) else kind(fits[0].gives)

    def read(self, function: ast.AST) -> None:
        """Learn what names hold, then look at every expression."""
        for _ in range(2):  # a name may be used above the line that sets it
            for node in ast.walk(function):
                if isinstance(node, ast.Assign):
                    pairs = [(node.targets[0], node.value)]
                    if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                        pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
                    for target, value in pairs:
                        if isinstance(target, ast.Name) and (what := self.follow(value)) is not None:
                            self.names[target.id] = what
        self.wrong.clear()
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute | ast.Call):
                self.follow(node)


def read(source: str) -> tuple[list[str], set[str], list[str]]:
    """Read a file: what does not fit, what is called, and telling names that were followed to no class."""
    wrong, calls, unknown = set(), set(), []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        reader = Reader()
        reader.read(function)
        wrong |= set(reader.wrong)
        calls |= reader.calls
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr in TELLING and id(node) not in reader.followed:
                unknown.append(ast.unparse(node))
    return sorted(wrong), calls, unknown


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_call_of_the_driver_fits_the_real_module(path):
    wrong, calls, unknown = read(path.read_text())
    assert wrong == [] and unknown == []
    assert len(calls) >= 9


@pytest.mark.parametrize(
    "line",
    [
        "usrp.set_rx_gian(1.0, 0)",
        "usrp.set_rx_gain(1.0, 0, 0, 0, 0)",
        "usrp.set_rx_gain(1.0, channel=0)",
        "usrp.get_time_now(0).to_tick(1e6)",
        "self._rx.recv()",
        "code = self._types.RXMetadataErrorCode\n    code.overrun",
        "self._types.StreamCMD()",
    ],
)
def test_a_wrong_call_is_seen(line):
    assert read(f"def f(self, usrp):\n    {line}\n")[0]


def test_a_call_that_hides_is_seen():
    assert read("def f(x):\n    x.set_rx_gain(1.0, 0)\n")[2] == ["x.set_rx_gain"]


def public(owner: Any) -> dict[str, Any]:
    return {name: got for name, got in vars(owner).items() if not name.startswith("_")}


@pytest.mark.parametrize("fake", [*fake_uhd.TYPES, *fake_uhd.USRP], ids=lambda each: each.__name__)
def test_the_fake_is_no_more_than_the_real_module(fake):
    real = getattr(uhd.types if fake in fake_uhd.TYPES else uhd.usrp, fake.__name__)
    for name, got in public(fake).items():
        if name == "device":
            continue
        assert hasattr(real, name), f"{fake.__name__}.{name}"
        got = got.__func__ if isinstance(got, staticmethod) else got
        if inspect.isfunction(got):
            wanted = [each for each in inspect.signature(got).parameters if each != "self"]
            fits = [
                each
                for each in signatures(getattr(real, name))
                if len(wanted) <= len(each.names)
                and all(
                    ours == theirs or theirs.startswith("arg") for ours, theirs in zip(wanted, each.names, strict=False)
                )
            ]
            assert fits, f"{fake.__name__}.{name}{wanted}: {getattr(real, name).__doc__}"


def test_the_fakes_fields_are_those_of_the_real_module():
    for fake in (fake_uhd.RXMetadata, fake_uhd.TXMetadata, fake_uhd.TXAsyncMetadata):
        assert all(hasattr(getattr(uhd.types, fake.__name__)(), name) for name in vars(fake()))
