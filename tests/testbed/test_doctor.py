"""The doctor: each lack has its colour and its remedy, and only red ones fail."""

import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import parts
import pytest

from testbed import cli, doctor
from testbed.config import Lab, load_lab
from testbed.doctor import Check, examine
from testbed.keys import make_keys
from testbed.usb import usb_radios

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


def versions(monkeypatch: pytest.MonkeyPatch, **known: str | None) -> None:
    def version(name: str) -> str:
        found = known.get(name.replace("-", "_"))
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize(
    ("binding", "pyadi", "library", "level", "words"),
    [
        (None, None, "libiio.so.0", "yellow", "pip install 'pyadi-iio>=0.0.19' 'pylibiio>=0.25,<1'"),
        ("0.25", "0.0.21", None, "yellow", "sudo apt install libiio0"),
        (None, None, None, "yellow", "sudo apt install libiio0"),
        ("0.25", "0.0.21", "libiio.so.0", "green", ""),
        ("1.0", "0.0.21", "libiio.so.0", "yellow", "'pylibiio>=0.25,<1'"),
        ("0.26", "0.0.21", "libiio.so.1", "yellow", "'pylibiio>=1'"),
        ("0.25", None, "libiio.so.0", "yellow", "'pyadi-iio>=0.0.19'"),
        ("0.25", "0.0.9", "libiio.so.0", "yellow", "'pyadi-iio>=0.0.19'"),
        ("1.0.1", "0.0.21", "libiio.so.1", "green", ""),
        ("1.0.1", "0.0.21", "/opt/lib/libiio.1.dylib", "green", ""),
        ("0.25", "0.0.21", "/opt/lib1/libiio.dylib", "green", ""),
    ],
)
def test_generations_of_libiio(
    monkeypatch: pytest.MonkeyPatch, binding: str | None, pyadi: str | None, library: str | None, level: str, words: str
) -> None:
    versions(monkeypatch, pylibiio=binding, pyadi_iio=pyadi)
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda _: library)
    monkeypatch.setattr(doctor, "_probe", lambda *_: (0, "", ""))
    found = doctor.libiio()
    assert found.level == level and words in found.remedy


def test_a_libiio_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, pylibiio="0.25", pyadi_iio="0.0.21")
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda _: "libiio.so.0")
    complaint = "AttributeError: undefined symbol: iio_get_backends_count"
    monkeypatch.setattr(doctor, "_probe", lambda *_: (1, "", complaint))
    found = doctor.libiio()
    assert found.level == "yellow" and complaint in found.found and "--force" in found.remedy


@parts.libiio
def test_the_libiio_of_this_machine_loads() -> None:
    assert doctor.libiio().level == "green"


HERE = "{}.{}".format(*sys.version_info[:2])
PLACE = "/usr/lib/python3/dist-packages/uhd"


@pytest.mark.parametrize(
    ("mine", "systems", "numpy", "found", "remedy"),
    [
        ((0, f"UHD 4.3|{PLACE}|{HERE}", ""), None, "1.26.4", f"UHD 4.3 at {PLACE}", ""),
        (
            (0, f"UHD 4.3|{PLACE}|{HERE}", "AttributeError: _ARRAY_API not found"),
            None,
            "2.4.6",
            "crashes under NumPy 2.4.6",
            "for USRP radios: pip install 'numpy<2'",
        ),
        ((-11, "", ""), None, "2.4.6", "crashes", "for USRP radios: pip install 'numpy<2'"),
        ((139, "", ""), None, "2.4.6", "crashes", "for USRP radios: pip install 'numpy<2'"),
        (
            (1, "", "ModuleNotFoundError: No module named 'uhd'"),
            (1, "", "ModuleNotFoundError: No module named 'uhd'"),
            "2.4.6",
            "No module named 'uhd'",
            "for USRP radios: sudo apt install python3-uhd",
        ),
        (
            (1, "", "no"),
            (0, f"UHD 4.3|{PLACE}|{HERE}", ""),
            "2.4.6",
            f"but by /usr/bin/python3, from {PLACE}",
            f"for USRP radios: ln -s {PLACE} {doctor.sysconfig.get_paths()['purelib']}/ && pip install 'numpy<2'",
        ),
        (
            (1, "", "no"),
            (0, f"UHD 4.3|{PLACE}|{HERE}", ""),
            "1.26.4",
            "but by /usr/bin/python3",
            f"for USRP radios: ln -s {PLACE} {doctor.sysconfig.get_paths()['purelib']}/",
        ),
        ((1, "", "no"), (0, f"UHD 4.3|{PLACE}|3.5", ""), "1.26.4", "but by", "/usr/bin/python3 -m venv, for"),
    ],
)
def test_uhd_and_where_it_can_be_imported(
    monkeypatch: pytest.MonkeyPatch,
    mine: tuple[int, str, str],
    systems: tuple[int, str, str] | None,
    numpy: str,
    found: str,
    remedy: str,
) -> None:
    answers = {sys.executable: mine, "/usr/bin/python3": systems}
    monkeypatch.setattr(doctor, "_probe", lambda interpreter, _: answers[interpreter])
    versions(monkeypatch, numpy=numpy)
    check = doctor.uhd()
    assert check.level == ("yellow" if remedy else "green")
    assert found in check.found and remedy in check.remedy


def test_a_library_is_probed_where_it_cannot_hurt(tmp_path: Path) -> None:
    for code, expected in (
        ("print('fine')", (0, "fine", "")),
        ("import sys; sys.exit('first\\nlast')", (1, "", "last")),
        ("import os; os.abort()", (-6, "", "")),
    ):
        assert doctor._probe(sys.executable, code) == expected
    assert doctor._probe(str(tmp_path / "no-python"), "")[0] == 1


@pytest.mark.skipif(not Path(PLACE).is_dir() or HERE != "3.11", reason="needs Debian 12's python3-uhd")
def test_the_uhd_of_debian_is_told_apart_from_a_safe_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uhd").symlink_to(PLACE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor.uhd()
    if importlib.metadata.version("numpy").startswith("1."):
        assert check.level == "green"
    else:
        assert "crashes under NumPy" in check.found and check.remedy.endswith("pip install 'numpy<2'")


def plug(
    root: Path, place: str, identity: str, serial: str, speed: str = "480", number: int = 5, net: str = ""
) -> None:
    folder = root / "sys/bus/usb/devices" / place
    folder.mkdir(parents=True)
    vendor, product = identity.split(":")
    facts = {"idVendor": vendor, "idProduct": product, "serial": serial, "speed": speed, "busnum": "1"}
    for name, value in {**facts, "devnum": str(number)}.items():
        (folder / name).write_text(f"{value}\n")
    if net:
        (folder / f"{place}:1.0" / "net" / net).mkdir(parents=True)
    node = root / "dev/bus/usb/001" / f"{number:03d}"
    node.parent.mkdir(parents=True, exist_ok=True)
    node.touch()


@pytest.fixture
def usb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(doctor, "usb_radios", lambda: usb_radios(tmp_path / "sys", tmp_path / "dev/bus/usb"))
    return tmp_path


def on_usb(schemes: set[str] = frozenset()) -> list[Check]:  # type: ignore[assignment]
    return doctor._usb(doctor.usb_radios(), schemes)


def test_radios_on_usb_are_seen_and_nothing_else(usb: Path) -> None:
    plug(usb, "1-1", "1d6b:0002", "hub")
    plug(usb, "usb1", "046d:c31c", "keyboard")
    assert [(found.level, found.found) for found in on_usb()] == [("green", "no Pluto and no USRP attached")]
    plug(usb, "1-5", "0456:b673", "104473", number=9)
    plug(usb, "2-1.4", "2500:0020", "30F1", "5000", 10)
    assert [(found.name, found.level, found.found) for found in on_usb()] == [
        ("usb 1-5", "green", "pluto 104473 at 480 Mb/s"),
        ("usb 2-1.4", "green", "usrp 30F1 at 5000 Mb/s"),
    ]
    (usb / "sys/bus/usb/devices/1-5/devnum").unlink()  # pulled while it is looked at
    assert [found.name for found in on_usb()] == ["usb 2-1.4"]


def test_a_machine_without_usb_has_no_radios_on_it(tmp_path: Path) -> None:
    assert usb_radios(tmp_path / "no", tmp_path / "no") == []


def test_no_permission_on_usb_gives_the_rule_to_write(usb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(usb, "1-5", "0456:b673", "104473")
    asked: list[tuple[str, int]] = []

    def access(path: Path, mode: int) -> bool:
        asked.append((str(path), mode))
        return False

    monkeypatch.setattr(os, "access", access)
    (found,) = on_usb({"pluto"})
    assert asked == [(str(usb / "dev/bus/usb/001/005"), os.R_OK | os.W_OK)]
    assert found.level == "red" and "may not open" in found.found
    rule = 'SUBSYSTEM=="usb", ATTR{idVendor}=="0456", MODE="0666"'
    assert found.remedy == (
        f"echo '{rule}' | sudo tee /etc/udev/rules.d/53-radio-0456.rules "
        "&& sudo udevadm control --reload && sudo udevadm trigger"
    )
    assert on_usb({"loopback"})[0].level == "yellow"  # a simulation does not need it


@pytest.mark.parametrize(
    ("identity", "speed", "words", "remedy"),
    [
        ("0456:b673", "12", "12 Mb/s, slower", "USB 2 port"),
        ("2500:0020", "480", "480 Mb/s, slower", "USB 3 port"),
        ("fffe:0002", "480", "usrp", "USB 3 port"),
        ("0456:b674", "480", "update mode", "plug it in again"),
    ],
)
def test_slow_links_and_update_mode(usb: Path, identity: str, speed: str, words: str, remedy: str) -> None:
    plug(usb, "1-5", identity, "x", speed)
    (found,) = on_usb()
    assert found.level == "yellow" and words in found.found and remedy in found.remedy


def test_radios_that_cannot_be_told_apart(usb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (serial, net) in enumerate((("same", "enx1"), ("same", "enx2"), ("other", "enx3"), ("", "enx4")), 1):
        plug(usb, f"1-{number}", "0456:b673", serial, number=number, net=net)
    answer = [
        {"ifname": "enx1", "addr_info": [{"local": "192.168.2.10", "prefixlen": 24}]},
        {"ifname": "enx2", "addr_info": [{"local": "192.168.3.10", "prefixlen": 24}]},
        {"ifname": "enx3", "addr_info": [{"local": "192.168.2.11", "prefixlen": 24}]},
        {"ifname": "eth0", "addr_info": [{"local": "192.168.3.5", "prefixlen": 24}]},
        {"ifname": "enx4", "addr_info": []},
    ]
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, json.dumps(answer))
    )
    found = {check.name: check for check in on_usb() if check.name.startswith("same")}
    assert {name: check.found for name, check in found.items()} == {
        "same serial same": "of usb 1-1 and of usb 1-2",
        "same network 192.168.2.0/24": "of usb 1-1 and of usb 1-3",
    }
    assert "pluto:usb:" in found["same serial same"].remedy and "ipaddr" in found["same network 192.168.2.0/24"].remedy
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "no JSON"))
    assert [check.name for check in on_usb() if check.name.startswith("same")] == ["same serial same"]


def lab_of(tmp_path: Path, *uris: str) -> Lab:
    rows = "".join(f'[[nodes]]\nname = "node-{n}"\nradio = "{uri}"\n' for n, uri in enumerate(uris[1:], 1))
    (tmp_path / "lab.toml").write_text(f'keys = ""\nsafety = "us-15.249"\n[server]\nradio = "{uris[0]}"\n{rows}')
    return load_lab(tmp_path / "lab.toml")


def test_one_radio_under_two_uris_of_a_lab_is_red(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "usrp:serial=30F1", "usrp:type=b200,serial=30F1", "usrp:addr=10.0.0.2", "usrp:serial=30F2")
    found = [check for check in examine(lab, tmp_path) if check.name.startswith("radio ")]
    assert [(check.name, check.level) for check in found] == [("radio serial 30F1", "red")]
    assert "usrp:serial=30F1 and usrp:type=b200,serial=30F1" in found[0].found


@pytest.mark.parametrize(
    ("uris", "levels"),
    [
        (("pluto:serial=a", "pluto:ip:10.0.0.2"), {"libiio": "red", "uhd": "yellow"}),
        (("usrp:serial=a", "usrp:serial=b"), {"libiio": "yellow", "uhd": "red"}),
        (("usrp:serial=a", "pluto:serial=b"), {"libiio": "yellow", "uhd": "yellow"}),
    ],
)
def test_a_library_that_every_radio_of_the_lab_needs_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uris: tuple[str, ...], levels: dict[str, str]
) -> None:
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda _: None)
    monkeypatch.setattr(doctor, "_probe", lambda *_: (1, "", "no"))
    found = {check.name: check.level for check in examine(lab_of(tmp_path, *uris), tmp_path)}
    assert {name: found[name] for name in levels} == levels


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
