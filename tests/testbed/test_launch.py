"""The launcher: starts in order, names the first failure, restarts a lost node, and leaves no process behind.

The daemons are short scripts here; the real ones run in the end-to-end tests.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from radio.errors import CalibrationError, LinkError, NodeLost, NotTrusted, RunError, TestbedError
from testbed import launch as module
from testbed.config import load
from testbed.keys import load_keys
from testbed.launch import Launcher, free_ports
from testbed.run import RunFolder

ETHER = "announce_ready('ether')\ntime.sleep(60)"
SERVER = "emit('run-started')\nfor k in (1, 2, 3): emit('node-changed', node=f'node-{k}', state='ready')\n"
PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
from testbed.parent import announce_ready, die_with_parent
die_with_parent()
folder, name = Path(sys.argv[1]), sys.argv[2]
(folder / f"{name}.{os.getpid()}.pid").touch()
def emit(kind, **fields):
    with (folder / "events.jsonl").open("a") as file: file.write(json.dumps({"kind": kind, **fields}) + chr(10))
"""


class Fake(Launcher):
    """A launcher whose processes are scripts."""

    scripts: dict[str, str]

    def command(self, name: str) -> list[str]:
        real = super().command(name)
        assert real[:3] == [sys.executable, "-m", "testbed"] and name in " ".join(real[3:])
        script = self.scripts.get(name, "time.sleep(60)")
        return [sys.executable, "-c", PRELUDE + script, str(self._folder.path), name]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fake]:
    monkeypatch.setattr(module, "GRACE_S", 3.0)

    def build(**scripts: str) -> Fake:
        nodes = "".join(f'[[nodes]]\nname = "node-{k}"\nradio = "loopback:node-{k}"\n' for k in (1, 2, 3))
        head = 'safety = "conducted"\nkeys = ""\nether_port = 0\n'
        lab = tmp_path / "lab.toml"
        lab.write_text(f"{head}[server]\ncontrol_port = 0\nevents_port = 0\n[ether]\n{nodes}")
        pair = load(None, lab, ["data.clients=3", "run.clients_per_round=3"])
        launcher = Fake(pair, RunFolder.create(tmp_path / "runs", pair))
        launcher.scripts = {"ether": ETHER, "server": SERVER} | {k.replace("_", "-"): v for k, v in scripts.items()}
        return launcher

    return build


def drive(launcher: Fake, until: Callable[[list[dict]], bool] = lambda seen: False) -> list[dict]:
    seen: list[dict] = []
    launcher.start()
    end = time.monotonic() + 30
    while launcher.step(seen.append) and not until(seen):
        assert time.monotonic() < end, seen
        time.sleep(0.02)
    return seen


def running(folder: Path) -> list[str]:
    """Names of the processes of a run that still live."""
    alive = []
    for path in folder.glob("*.pid"):
        name, number = path.name.split(".")[:2]
        try:
            state = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            continue
        if state != "Z":
            alive.append(name)
    return sorted(alive)


def test_a_run_ends_with_its_server_and_leaves_nothing(make: Callable[..., Fake]) -> None:
    launcher = make(server=SERVER + "time.sleep(0.3); emit('run-finished')")
    with launcher:
        seen = drive(launcher)
        folder = launcher._folder.path
        assert [event["kind"] for event in seen] == ["run-started", *["node-changed"] * 3, "run-finished"]
    assert running(folder) == [] and len(list(folder.glob("*.pid"))) == 5
    assert sorted(path.stem for path in (folder / "logs").iterdir()) == [
        "ether", "node-1", "node-2", "node-3", "server",
    ]  # fmt: skip


def test_open_ports_and_keys_are_filled_in_for_every_process(make: Callable[..., Fake]) -> None:
    launcher = make()
    with launcher:
        lines = [Launcher.command(launcher, name) for name in ("ether", "server", "node-2")]
    for key in ("lab.ether_port=", "lab.server.control_port=", "lab.server.events_port=", "lab.keys="):
        values = {item for line in lines for item in line if item.startswith(key)}
        assert len(values) == 1 and all(any(item in line for item in values) for line in lines)
    assert load_keys(launcher._folder.keys, "node-2").name == "node-2"
    assert lines[2][3:5] == ["node", "node-2"] and str(launcher._folder.node("node-2")) in lines[2]
    assert len(set(free_ports(20))) == 20


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        (
            "print('error[node-lost]: no beacon for 3 s -> move closer', file=sys.stderr); sys.exit(6)",
            NodeLost,
            "node-2: no beacon for 3 s -> move closer",
        ),
        ("print('error[calibration]: too old', file=sys.stderr); sys.exit(4)", CalibrationError, "node-2: too old"),
        (
            "print('strange'); print('noise'); sys.exit(9)",
            RunError,
            "node-2 ended with code 9; its last lines: strange",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", RunError, "node-2 was ended by signal 9"),
    ],
)
def test_the_first_failure_is_named_with_its_own_words(
    make: Callable[..., Fake], script: str, kind: type[TestbedError], words: str
) -> None:
    launcher = make(node_2=script, server="time.sleep(60)")
    with pytest.raises(kind) as caught, launcher:
        drive(launcher)
    assert words in str(caught.value) and type(caught.value) is kind
    assert running(launcher._folder.path) == []


def test_the_cause_is_told_and_not_its_echo(make: Callable[..., Fake]) -> None:
    broken = "print('error[not-trusted]: key is missing -> run testbed init'); sys.exit(6)"
    echo = "print('error[link]: node-3 never joined -> look there'); sys.exit(6)"
    launcher = make(server=echo, node_3=broken)
    with pytest.raises(NotTrusted, match="node-3: key is missing"), launcher:
        launcher.start()
        for name in ("server", "node-3"):  # both have failed by the time the launcher looks
            launcher.processes[name].wait(30)
        launcher.step()


def test_an_ether_that_fails_is_reported_before_anything_else_starts(make: Callable[..., Fake]) -> None:
    launcher = make(ether="print('error[link]: port 5700 is in use -> choose another'); sys.exit(6)")
    with pytest.raises(LinkError, match="ether: port 5700 is in use"), launcher:
        launcher.start()
    assert list(launcher.processes) == ["ether"]


def test_a_killed_node_is_started_again_and_the_run_goes_on(make: Callable[..., Fake]) -> None:
    launcher = make(server=SERVER + "time.sleep(4)\nemit('run-finished')")
    killed: list[int] = []

    def kill_once(seen: list[dict]) -> bool:
        if len(seen) >= 4 and not killed:
            killed.append(launcher.processes["node-1"].pid)
            os.kill(killed[0], signal.SIGKILL)
        return False

    with launcher:
        seen = drive(launcher, kill_once)
        assert launcher.processes["node-1"].pid != killed[0]
    assert seen[-1]["kind"] == "run-finished"


def test_a_node_that_keeps_dying_is_given_up(make: Callable[..., Fake]) -> None:
    launcher = make(node_1="time.sleep(1.0)\nsys.exit(3)", server=SERVER + "time.sleep(60)")
    with pytest.raises(RunError, match="node-1 ended with code 3"), launcher:
        drive(launcher)
    assert len(list(launcher._folder.path.glob("node-1.*.pid"))) == 1 + module.RESTARTS


def test_a_server_that_will_not_end_is_ended(make: Callable[..., Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.5)
    launcher = make(server="signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER + "time.sleep(60)")
    with launcher:
        drive(launcher, lambda seen: len(seen) == 4)
    assert running(launcher._folder.path) == []


def test_the_server_may_save_before_anything_else_is_ended(make: Callable[..., Fake]) -> None:
    save = "def end(*_):\n time.sleep(0.5); emit('run-finished', nodes=3); sys.exit(0)\n"
    launcher = make(server=save + "signal.signal(signal.SIGTERM, end)\n" + SERVER + "time.sleep(60)")
    with launcher:
        drive(launcher, lambda seen: len(seen) == 4)
        order = list(launcher.processes.values())
    assert launcher.processes["server"].returncode == 0 and all(process.poll() is not None for process in order)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_launch as t
from testbed.run import RunFolder
run = RunFolder.open(Path(sys.argv[2]))
launcher = t.Fake(run.pair(), run)
launcher.scripts = {"ether": t.ETHER, "server": t.SERVER + "time.sleep(60)"}
launcher.start()
while launcher.step():
    time.sleep(0.05)
"""


def test_children_die_with_a_launcher_that_is_killed(make: Callable[..., Fake]) -> None:
    folder = make()._folder.path
    with subprocess.Popen([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(folder)]) as parent:
        end = time.monotonic() + 30
        while len(running(folder)) < 5:
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.05)
        parent.kill()
    while running(folder):
        assert time.monotonic() < end, running(folder)
        time.sleep(0.05)
