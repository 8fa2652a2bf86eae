"""The doctor: each lack has its colour and its remedy, and only red ones fail."""

import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from testbed import cli, doctor
from testbed.config import load_lab
from testbed.doctor import Check, examine
from testbed.keys import make_keys

Usage = namedtuple("Usage", "total used free")


def check(name: str, *settings: str, folder: Path = Path()) -> Check:
    return next(found for found in examine(load_lab(None, settings), folder) if found.name == name)


def test_this_machine_is_fit_and_every_lack_has_a_remedy(tmp_path: Path) -> None:
    checks = examine(load_lab(), tmp_path)
    assert [found for found in checks if found.level == "red"] == []
    assert all(found.remedy for found in checks if found.level != "green")
    names = [found.name for found in checks]
    assert len(set(names)) == len(names)
    assert {"package radio", "package testbed", "torch", "numba", "curve", "libiio", "uhd", "keys", "disk"} <= set(
        names
    )


def test_a_port_in_use_is_red() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = check("port server.control_port", f"lab.server.control_port={taken.getsockname()[1]}")
    assert found.level == "red" and "lab.server.control_port" in found.remedy


def test_missing_and_readable_keys_are_red(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    found = check("keys", f"lab.keys={keys}")
    assert found.level == "red" and "server, reader, node-1" in found.found and "testbed init" in found.remedy
    make_keys(keys, ["server", "reader", *(f"node-{k}" for k in range(1, 9))])
    assert check("keys", f"lab.keys={keys}").level == "green"
    (keys / "node-4.secret").chmod(0o640)
    found = check("keys", f"lab.keys={keys}")
    assert found.level == "red" and found.remedy == f"run chmod 600 {keys / 'node-4.secret'}"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for free, level in ((50 << 20, "red"), (1 << 30, "yellow"), (9 << 30, "green")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(100 << 30, 0, free))
        assert check("disk", folder=tmp_path / "not" / "yet").level == level


def test_a_shadowed_package_is_red(tmp_path: Path) -> None:
    (tmp_path / "radio").mkdir()
    (tmp_path / "radio" / "__init__.py").write_text("")
    code = (
        "import sys, importlib.util; from testbed import doctor\n"
        "for name in [n for n in sys.modules if n.split('.')[0] == 'radio']: del sys.modules[name]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "print([c.level for c in doctor._packages()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "['red', 'green', 'green', 'green']", done.stderr


@pytest.mark.parametrize(
    ("binding", "library", "level", "words"),
    [
        (None, None, "yellow", "pip install"),
        ("0.25", None, "yellow", "apt install libiio0"),
        ("0.25", "libiio.so.0", "green", ""),
        ("1.0", "libiio.so.0", "yellow", "pylibiio>=0.25,<1"),
        ("0.26", "libiio.so.1", "yellow", "pylibiio>=1"),
        ("1.0.1", "libiio.so.1", "green", ""),
    ],
)
def test_generations_of_libiio(
    monkeypatch: pytest.MonkeyPatch, binding: str | None, library: str | None, level: str, words: str
) -> None:
    def version(name: str) -> str:
        if binding is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return binding

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda _: library)
    found = doctor._libiio()
    assert found.level == level and words in found.remedy


@pytest.mark.parametrize(
    ("code", "level"),
    [("print('4.3')", "green"), ("raise ImportError('no uhd')", "yellow"), ("import os; os.abort()", "yellow")],
)
def test_uhd_is_probed_where_it_cannot_hurt(monkeypatch: pytest.MonkeyPatch, code: str, level: str) -> None:
    run = subprocess.run

    def instead(command: list[str], **options: object) -> object:
        return run([command[0], "-c", code], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", instead)
    found = doctor._uhd()
    assert found.level == level and (level == "green" or "python3-uhd" in found.remedy)


def test_old_libraries_are_red(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "1.25.9", "torch": "2.13.0+cpu", "numba": "0.60.0rc1", "pyzmq": "27.3", "safetensors": "0.10"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name, "99"))
    levels = {found.name: found.level for found in doctor._libraries()}
    assert levels.pop("numpy") == "red" and set(levels.values()) == {"green"}


def test_red_fails_the_command_and_json_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for level, expected in (("yellow", 0), ("red", 1)):
        monkeypatch.setattr(doctor, "examine", lambda *_, level=level: [Check("disk [x]", level, "1 GB", "free it")])
        for arguments in (["doctor", "--json"], ["doctor"]):
            monkeypatch.setattr(sys, "argv", ["testbed", *arguments])
            monkeypatch.setattr(sys, "excepthook", sys.excepthook)
            code: object = 0
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code or 0
            out = capsys.readouterr().out
            assert code == expected
            if "--json" in arguments:
                assert json.loads(out) == [{"name": "disk [x]", "level": level, "found": "1 GB", "remedy": "free it"}]
            else:
                assert "1 GB -> free it" in out and level in out
