"""The list of radios: every driver is asked, none hides another, and what it prints goes straight into lab.toml."""

import json
import sys
import threading
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import parts
import pytest
from pluto_air import PlutoAir

import radio
from radio import pluto
from radio.airserver import EtherServer
from radio.base import Capabilities, Capture, Discovered, RadioConfig, Tier
from radio.capture import About, write
from radio.errors import RadioRefused
from radio.ether import Ether
from testbed import cli, devices
from testbed.config import Lab, load_lab
from testbed.devices import look, table, to_toml
from testbed.doctor import Check
from testbed.usb import usb_radios

PLUTO = Discovered("pluto:usb:1.5.5", "104473", Tier.P1, {"model": "PlutoSDR Rev.B", "firmware": "v0.39"})
NETWORK = Discovered("pluto:ip:192.168.2.1", "104474", Tier.P0, {"problem": "busy"})
USRP = Discovered("usrp:serial=30F1", "30F1", Tier.U0, {"product": "B210", "firmware": "8.0"})


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Drivers that see what a test says, in place of those of this machine."""
    made: dict[str, object] = {}
    monkeypatch.setattr(radio, "DRIVERS", {})
    monkeypatch.setattr(devices, "entry_points", lambda group: [EntryPoint(name, "x", group) for name in made])
    monkeypatch.setattr(radio, "driver_of", lambda uri: (made[uri.split(":")[0]], ""))
    for check in ("libiio", "uhd"):
        monkeypatch.setattr(devices, check, lambda: Check("any", "green", "fine"))
    return made


def sees(*found: Discovered) -> object:
    return SimpleNamespace(discover=lambda: list(found))


def fails(error: Exception) -> object:
    def discover() -> list[Discovered]:
        raise error

    return SimpleNamespace(discover=discover)


def lab(tmp_path: Path, text: str) -> Lab:
    (tmp_path / "lab.toml").write_text('keys = ""\nsafety = "us-15.249"\n' + text)
    return load_lab(tmp_path / "lab.toml")


@pytest.mark.parametrize(
    "error", [RadioRefused("it is busy", "wait"), OSError(26, "Text file busy"), ImportError("no")]
)
def test_a_driver_that_cannot_look_hides_no_other(drivers: dict[str, object], error: Exception) -> None:
    drivers.update(one=sees(PLUTO), two=fails(error), three=sees(USRP))
    seen = look()
    assert seen.radios == (PLUTO, USRP) and seen.warnings == ()
    assert len(seen.notes) == 1 and seen.notes[0].startswith("two: cannot look") and str(error) in seen.notes[0]


def test_a_missing_library_is_a_note_with_its_remedy(
    drivers: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "libiio", lambda: Check("libiio", "yellow", "not found", "apt install it"))
    assert look().notes == ("libiio: not found -> apt install it",)


def test_a_radio_on_usb_that_its_driver_does_not_see_is_told(
    drivers: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, serial in (("1-5", PLUTO.serial), ("1-6", "lost")):
        folder = tmp_path / "bus/usb/devices" / place
        folder.mkdir(parents=True)
        facts = {"idVendor": "0456", "idProduct": "b673", "serial": serial, "speed": "480", "busnum": 1, "devnum": 7}
        for name, value in facts.items():
            (folder / name).write_text(f"{value}\n")
    monkeypatch.setattr(devices, "usb_radios", lambda: usb_radios(tmp_path, tmp_path))
    drivers["one"] = sees(PLUTO)
    assert look().notes == ("usb 1-6: a pluto is attached that its driver does not see -> run: testbed doctor",)


def test_the_drivers_of_this_machine_can_all_be_asked() -> None:
    seen = look()
    assert not [note for note in seen.notes if "cannot look" in note]


@pytest.mark.parametrize(
    ("found", "warned"),
    [
        ((PLUTO, NETWORK, USRP), []),
        ((PLUTO, Discovered(NETWORK.uri, PLUTO.serial, Tier.P0)), [("serial 104473", PLUTO.uri, NETWORK.uri)]),
        (
            (PLUTO, Discovered("pluto:usb:1.6.5", "9", Tier.P0, {"ip": "192.168.2.1"}), NETWORK),
            [("IP 192.168.2.1", "pluto:usb:1.6.5", NETWORK.uri)],
        ),
        ((Discovered("pluto:usb:1.6.5", "", Tier.P0), Discovered("pluto:usb:1.7.5", "", Tier.P0)), []),
        ((USRP, Discovered("replay:a.sigmf-meta", "30F1", Tier.U0)), []),
        (
            (Discovered("pluto:ip:127.0.0.1:5710", "a", Tier.P0), Discovered("pluto:ip:127.0.0.1:5711", "b", Tier.P0)),
            [],
        ),
        (
            (Discovered("pluto:ip:10.0.0.2?block=4096", "a", Tier.P0), Discovered("pluto:ip:10.0.0.2", "b", Tier.P0)),
            [("IP 10.0.0.2 ", "pluto:ip:10.0.0.2?block=4096")],
        ),
    ],
)
def test_radios_that_cannot_be_told_apart_are_warned_of_with_both_uris(
    drivers: dict[str, object], found: tuple[Discovered, ...], warned: list[tuple[str, ...]]
) -> None:
    drivers["any"] = sees(*found)
    seen = look()
    assert len(seen.warnings) == len(warned)
    for warning, words in zip(seen.warnings, warned, strict=True):
        assert all(word in warning for word in words) and " -> " in warning


@parts.libiio
def test_looking_leaves_a_radio_as_dark_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    air = PlutoAir(2, "pluto-stock", seed=1)
    try:
        monkeypatch.setattr(pluto, "scan", lambda: {uri: f"serial{n}" for n, uri in enumerate(air.uris)})
        pluto.silence(air.uris[0])
        before = [(air.ask(n, "powered"), air.ask(n, "config")) for n in (0, 1)]
        assert [powered for powered, _ in before] == [False, True]  # a Pluto leaks its carrier from power-up on
        found = [each for each in look().radios if each.serial.startswith("serial")]
        assert [each.uri for each in found] == [f"pluto:{uri}" for uri in air.uris]
        assert all(each.detail["firmware"] and "Pluto" in each.detail["model"] for each in found)
        assert [(air.ask(n, "powered"), air.ask(n, "config")) for n in (0, 1)] == before
    finally:
        air.close()


def test_lines_for_lab_toml_are_lines_of_a_lab(tmp_path: Path) -> None:
    room = lab(tmp_path, f'[server]\nradio = "{USRP.uri}"\n' + to_toml([PLUTO, NETWORK]))
    assert [(entry.name, entry.radio) for entry in room.nodes] == [
        ("node-1", "pluto:serial=104473"),  # its place on USB changes whenever it is plugged in
        ("node-2", NETWORK.uri),
    ]
    more = to_toml([PLUTO, USRP, Discovered("usrp:addr=10.0.0.9", "", Tier.U0, {"note": "a\nb\x07"})], room)
    both = load_lab(lab_file := tmp_path / "lab.toml")
    lab_file.write_text(lab_file.read_text() + more)
    room = load_lab(lab_file)
    assert [(entry.name, entry.radio) for entry in room.nodes][len(both.nodes) :] == [("node-3", "usrp:addr=10.0.0.9")]
    twins = [Discovered(f"pluto:usb:1.{port}.5", "same", Tier.P0) for port in (1, 2)]
    assert [row["radio"] for row in tomllib.loads(to_toml(twins))["nodes"]] == ["pluto:usb:1.1.5", "pluto:usb:1.2.5"]
    assert to_toml([]) == ""


def test_the_radios_of_a_labs_air_are_listed_by_the_uri_that_opens_them(tmp_path: Path) -> None:
    text = '[ether]\npreset = "usrp-ref"\n[server]\nradio = "loopback:hub"\n'
    text += '[[nodes]]\nname = "n"\nradio = "loopback:far"\n'
    quiet = lab(tmp_path, f"ether_port = 1\n{text}")
    assert [found.detail["simulated air"] for found in look(quiet).radios[-2:]] == ["not running: testbed ether"] * 2
    server = EtherServer(Ether(quiet.ether, quiet.radio_names), "tcp://127.0.0.1:0")
    port = int(server.address.rsplit(":", 1)[1])
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        (tmp_path / "lab.toml").write_text(
            (tmp_path / "lab.toml").read_text().replace("port = 1\n", f"port = {port}\n")
        )
        found = look(load_lab(tmp_path / "lab.toml")).radios[-2:]
        assert [each.detail for each in found] == [
            {"machine": "server", "simulated air": "up"},
            {"machine": "n", "simulated air": "up"},
        ]
        for each in found:
            with radio.open(each.uri, radio.PROFILES["us-15.249"]) as opened:
                assert (opened.capabilities.serial, opened.capabilities.tier) == (each.serial, each.tier)
    finally:
        server.stop()
        thread.join()


def test_virtual_plutos_are_listed_by_their_ports(tmp_path: Path) -> None:
    text = (
        'iiod_port = 7000\n[ether]\n[server]\nradio = "pluto-virtual"\n[[nodes]]\nname = "n"\nradio = "pluto-virtual"\n'
    )
    room = lab(tmp_path, text)
    found = look(room).radios[-2:]
    assert [(each.uri, each.serial) for each in found] == [
        (room.radio_uri("server"), "virtual-server"),
        (room.radio_uri("n"), "virtual-n"),
    ]
    assert [each.uri.split("?")[0] for each in found] == ["pluto:ip:127.0.0.1:7000", "pluto:ip:127.0.0.1:7001"]


def recording(folder: Path) -> Path:
    config = RadioConfig(1e6, 915e6, 915e6, 1e6, 50.0)
    told = Capabilities(Tier.P0, "104473", "pluto", 4e6, 0, 256, False, False, False, True)
    return write(folder / "a.sigmf-meta", [Capture(np.ones(500_000, np.complex64), 0, 1e6)], About(config, told))


def test_the_command_for_people_scripts_and_files(
    drivers: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drivers.update(one=sees(PLUTO, USRP), two=fails(OSError("no [bus]")))
    path = recording(tmp_path)

    def said(*options: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["testbed", "devices", "--recordings", str(tmp_path), *options])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        out, err = capsys.readouterr()
        return out, err

    out, err = said()
    assert out.splitlines()[0].split() == ["URI", "SERIAL", "TIER", "FIRMWARE"]
    assert "pluto:usb:1.5.5" in out and "v0.39" in out and "PlutoSDR Rev.B" in out and "seconds 0.5" in out
    assert err == "note: two: cannot look for radios: no [bus]\n"
    told = json.loads(said("--json")[0])
    assert [each["uri"] for each in told["radios"]] == [PLUTO.uri, USRP.uri, f"replay:{path}"]
    assert told["radios"][0]["tier"] == "P1" and told["notes"] and told["warnings"] == []
    rows = tomllib.loads(said("--toml")[0])["nodes"]
    assert [row["radio"] for row in rows] == ["pluto:serial=104473", USRP.uri, f"replay:{path}"]


def test_nothing_in_reach_is_said_in_words() -> None:
    assert table([]) == "no radio found"
