"""The dead-man process with real processes: a daemon is killed, stopped or ended, and the air tells who is mute."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import parts
import pytest
from pluto_air import PlutoAir

import radio
from radio.airserver import EtherServer
from radio.disk import JsonLines
from radio.errors import LinkError, RadioNotFound, RadioRefused, UnsafeTransmit
from radio.ether import Ether
from radio.presets import preset
from testbed import guard as module
from testbed.bus import Envelope, Lost
from testbed.config import load
from testbed.guard import ALLOWANCE_S, open_guarded
from testbed.launch import Launcher
from testbed.messages import Ack, CycleTimes, Message, Nack, Sound, Stop, Welcome
from testbed.node import Node
from testbed.run import RunFolder

DAEMON = """
import sys, time
from pathlib import Path
import numpy as np
import radio
from testbed.guard import open_guarded
safety = radio.PROFILES["conducted"].model_copy(update={"attenuation_db": 60.0})
with open_guarded(sys.argv[1], safety, Path(sys.argv[2])) as held:
    held.configure(radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 60.0))
    for word in sys.stdin:
        held.transmit(np.full(1000, 0.1, np.complex64))
        print("sent", flush=True)
"""


class Air:
    """An air of this process, open to others."""

    def __init__(self, options: object, names: list[str]) -> None:
        self.ether = Ether(options, names)  # type: ignore[arg-type]
        self.server = EtherServer(self.ether, "tcp://127.0.0.1:0")
        self.thread = threading.Thread(target=self.server.serve)
        self.thread.start()

    def uri(self, name: str) -> str:
        return f"loopback:{self.server.address}/{name}"

    def muted(self, name: str) -> bool:
        return self.ether._stations[name].muted

    def close(self) -> None:
        self.server.stop()
        self.thread.join()


@pytest.fixture
def air() -> Iterator[Air]:
    made = Air(preset("ideal"), ["server", "n"])
    yield made
    made.close()


class Daemon:
    """A small program that holds a radio and sends a burst for every line it is given."""

    def __init__(self, uri: str, folder: Path, start_new_session: bool = False) -> None:
        command = [sys.executable, "-c", DAEMON, uri, str(folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=start_new_session
        )

    def send(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "sent\n"


@pytest.fixture
def daemon(air: Air, tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(air.uri("n"), tmp_path)
    made.send()
    assert not air.muted("n")
    yield made
    with made.process as process:
        process.kill()


def within(seconds: float, done: Callable[[], bool]) -> float:
    """Wait until something holds; returns after how long, or fails."""
    begin = time.monotonic()
    while not done():
        assert time.monotonic() - begin < seconds, f"not within {seconds:g} s"
        time.sleep(0.005)
    return time.monotonic() - begin


def states(folder: Path) -> list[str]:
    return [line["state"] for line in lines(folder)]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "guard.jsonl").read_text().splitlines()]


def test_a_killed_daemon_is_muted_at_once(air: Air, daemon: Daemon, tmp_path: Path) -> None:
    daemon.process.kill()
    within(1.0, lambda: air.muted("n"))
    within(1.0, lambda: states(tmp_path) == ["up", "muted"])
    assert lines(tmp_path)[1]["why"] == "the daemon died" and lines(tmp_path)[1]["seconds"] < 1.0


def test_a_stopped_daemon_is_muted_within_the_allowance_and_may_come_back(
    air: Air, daemon: Daemon, tmp_path: Path
) -> None:
    time.sleep(ALLOWANCE_S)
    assert not air.muted("n")  # an idle daemon is no dead daemon
    daemon.process.send_signal(signal.SIGSTOP)
    waited = within(ALLOWANCE_S + 1.0, lambda: air.muted("n"))
    assert waited > ALLOWANCE_S - module.BEAT_S - 0.1
    daemon.process.send_signal(signal.SIGCONT)
    within(2.0, lambda: states(tmp_path) == ["up", "muted", "back"])
    daemon.send()
    assert not air.muted("n")
    daemon.process.kill()
    within(1.0, lambda: air.muted("n"))


def test_an_orderly_end_needs_no_guard(air: Air, daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.process.stdin is not None
    daemon.process.stdin.close()
    assert daemon.process.wait(10) == 0
    within(1.0, lambda: states(tmp_path) == ["up", "dismissed"])
    assert air.muted("n") and air.ether.owner("n") is None


@pytest.mark.parametrize(("code", "state"), [("0", "dismissed"), ("1", "muted")])
def test_a_driver_that_has_closed_its_radio_did_not_die(air: Air, tmp_path: Path, code: str, state: str) -> None:
    """Closing ends the driver's process first; the guard may look before it is dismissed."""
    held = module.Guard(air.uri("node-1"), tmp_path)
    held.hold(subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]))
    time.sleep(5 * module.BEAT_S)
    held.dismiss()
    within(3.0, lambda: states(tmp_path)[-1] == state)


def test_the_guard_outlives_its_daemons_process_group(air: Air, tmp_path: Path) -> None:
    daemon = Daemon(air.uri("n"), tmp_path, start_new_session=True)
    daemon.send()
    os.killpg(daemon.process.pid, signal.SIGKILL)
    within(1.0, lambda: air.muted("n"))
    daemon.process.wait()


def test_a_radio_whose_guard_was_killed_sends_no_more(air: Air, tmp_path: Path) -> None:
    burst = np.full(100, 0.1, np.complex64)
    with open_guarded(air.uri("n"), radio.PROFILES["conducted"], tmp_path) as held:
        held.configure(radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 60.0))
        held.transmit(burst)
        guard = held._trouble.__self__._process
        guard.kill()
        guard.wait()
        with pytest.raises(UnsafeTransmit, match="its guard process has ended with code -9"):
            held.transmit(burst)
        assert len(air.ether._stations["n"].bursts) == 1
    verdicts = [json.loads(line)["verdict"] for line in (tmp_path / "emissions.jsonl").read_text().splitlines()]
    assert verdicts == ["sent", "denied"]


def test_a_guard_waits_for_the_one_before_it(air: Air, tmp_path: Path) -> None:
    first = open_guarded(air.uri("n"), radio.PROFILES["conducted"], tmp_path)
    with pytest.raises(RadioRefused, match="already open by another program of this machine"):
        open_guarded(air.uri("n"), radio.PROFILES["conducted"], tmp_path)
    first.close()
    open_guarded(air.uri("n"), radio.PROFILES["conducted"], tmp_path).close()
    assert states(tmp_path) == ["up", "dismissed"] * 2


def test_a_radio_that_cannot_be_opened_leaves_no_guard(air: Air, tmp_path: Path) -> None:
    with pytest.raises(RadioNotFound, match="no radio 'm' on this air"):
        open_guarded(air.uri("m"), radio.PROFILES["conducted"], tmp_path)
    within(1.0, lambda: states(tmp_path) == ["up", "dismissed"])


def test_a_guard_says_why_it_could_not_mute(air: Air, daemon: Daemon, tmp_path: Path) -> None:
    air.close()
    daemon.process.kill()
    within(module.TRIES_S + 2.0, lambda: states(tmp_path) == ["up", "not-muted"])
    assert "no simulated air answered" in lines(tmp_path)[1]["error"]


def test_a_daemon_that_hangs_and_cannot_be_muted_is_killed(air: Air, daemon: Daemon, tmp_path: Path) -> None:
    air.close()
    daemon.process.send_signal(signal.SIGSTOP)
    assert daemon.process.wait(ALLOWANCE_S + module.TRIES_S + 2.0) == -signal.SIGKILL
    within(module.TRIES_S + 2.0, lambda: states(tmp_path) == ["up", "not-muted", "killed", "not-muted"])


def test_a_driver_that_hangs_is_ended_so_that_its_radio_can_be_muted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIES_S", 0.3)
    told: list[str] = []
    read, write = os.pipe()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as holder:
        os.write(write, b"..+%d;." % holder.pid)
        os.close(write)  # the daemon died

        def silence() -> None:
            if holder.poll() is None:
                raise OSError("device busy")

        module._watch(read, silence, lambda state, **more: told.append(state))
    os.close(read)
    assert told == ["not-muted", "killed", "muted"] and holder.returncode == -signal.SIGKILL


@pytest.mark.realtime
@parts.libiio
@pytest.mark.parametrize(("number", "allowance_s"), [(signal.SIGKILL, 0.0), (signal.SIGSTOP, ALLOWANCE_S)])
def test_a_pluto_goes_dark_when_its_daemon_is_killed_or_stopped(
    tmp_path: Path, number: int, allowance_s: float
) -> None:
    plutos = PlutoAir(2, "pluto-stock")
    try:
        daemon = Daemon(f"pluto:{plutos.uris[1]}", tmp_path)
        with daemon.process as process:
            daemon.send()
            within(2.0, lambda: plutos.ask(1, "powered"))
            assert plutos.ask(1, "config")["tx_attenuation_db"] == 0.0
            process.send_signal(number)
            within(allowance_s + 1.0, lambda: not plutos.ask(1, "powered"))
            within(0.1, lambda: plutos.ask(1, "config")["tx_attenuation_db"] == 89.75)
            within(1.0, lambda: states(tmp_path) == ["up", "muted"])
            process.kill()
    finally:
        plutos.close()


@pytest.mark.realtime
@parts.libiio
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_pluto_goes_dark_when_the_process_of_its_driver_is_killed_or_hangs(tmp_path: Path, number: int) -> None:
    plutos = PlutoAir(2, "pluto-stock")
    try:
        daemon = Daemon(f"pluto:{plutos.uris[1]}", tmp_path)
        with daemon.process as process:
            daemon.send()
            within(2.0, lambda: plutos.ask(1, "powered"))
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            driver = next(int(k) for k in children if b"radio.apart" in Path(f"/proc/{k}/cmdline").read_bytes())
            os.kill(driver, number)
            if number == signal.SIGSTOP:
                process.kill()  # the driver cannot follow
            within(1.0, lambda: not plutos.ask(1, "powered"))
            within(1.0, lambda: states(tmp_path) == ["up", "muted"])
            process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(driver, signal.SIGKILL)
    finally:
        plutos.close()


def test_a_node_that_hears_no_beacon_mutes_itself() -> None:
    ether = Ether(preset("ideal"), ["server", "n"])
    answers: list[Nack] = []

    class Bus:
        async def send(self, message: Nack, arrays: object) -> None:
            answers.append(message)

    node = object.__new__(Node)  # a node before it met its server
    node.name, node.state, node.link = "n", "joining", None
    node.bus, node._note = Bus(), lambda kind, content: None  # type: ignore[assignment,method-assign]
    cycle = CycleTimes(beacons=3, before=3, burst_at=100, slots=4)
    with radio.open("loopback:n", radio.PROFILES["conducted"], ether=ether) as node.radio:
        node.radio.configure(radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 60.0))
        node.radio.transmit(np.full(100, 0.1, np.complex64), 1000)
        assert not ether._stations["n"].muted
        asyncio.run(node._obey(Sound(first_slot=0, cycle=cycle), {}))
        assert ether._stations["n"].muted and not ether._stations["n"].bursts
    assert node.state == "fault" and "before its welcome" in answers[0].reason


def test_a_node_whose_server_dies_during_an_order_stays_and_mutes_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    welcome = Welcome(experiment={}, client=0, nodes=1, shift=0, shifts=1, run_identity="r")
    news = [Envelope("server", welcome, {}), Lost("server", 3.0), Envelope("server", Stop(reason="back, and done"), {})]
    seen: list[str] = []

    class Bus:
        async def connect(self) -> None: ...

        async def close(self) -> None: ...

        async def send(self, message: Message, arrays: object = None) -> None:
            if message.kind != "hello":
                raise LinkError("ack not sent", "check that the server runs")

        async def receive(self) -> Envelope | Lost:
            seen.append(node.state)
            return news.pop(0)

    def handled(*order: object) -> Message:
        node._go("welcome")
        return Ack(of="welcome")

    node = object.__new__(Node)
    node.name, node.state, node.round, node.folder = "n", "starting", 0, Path("nowhere")
    node.bus, node._handled, node._journal = Bus(), handled, JsonLines(tmp_path / "journal.jsonl")  # type: ignore[assignment,method-assign]
    node.lab = load(None, None, []).lab
    ether = Ether(preset("ideal"), ["server", "n"])
    with radio.open("loopback:n", radio.PROFILES["conducted"], ether=ether) as node.radio:
        asyncio.run(node.run())
    assert seen == ["starting", "joining", "muted"] and "ack not sent" in caplog.text


class RealDaemons(Launcher):
    """The real server and nodes of a lab, on an air of this process."""

    def start(self) -> None:
        for name in ("server", *self._names):
            self._spawn(name)


@pytest.mark.timeout(120)
def test_real_node_daemons_killed_and_ended(tmp_path: Path) -> None:
    names = ("node-1", "node-2", "node-3")
    settings = [
        "lab.nodes=[" + ",".join(f'{{name="{name}",radio="loopback:{name}"}}' for name in names) + "]",
        "data.clients=3", "data.new_tasks=4", "model.hidden=[8]", "run.clients_per_round=3", "run.rounds=100000",
        "run.evaluate_every=100000", "run.compare=false", "lab.heartbeat.interval_s=0.5", "lab.heartbeat.allowance_s=3",
    ]  # fmt: skip
    lab = load(None, None, settings).lab
    assert lab.ether is not None
    air = Air(lab.ether, ["server", *names])
    try:
        pair = load(None, None, [*settings, f"lab.ether_port={air.server.address.rpartition(':')[2]}"])
        folder = RunFolder.create(tmp_path, pair)
        with RealDaemons(pair, folder) as daemons:
            daemons.start()
            within(60.0, lambda: daemons.step() and not any(air.muted(name) for name in ("server", *names)))
            daemons.processes["node-1"].kill()
            within(1.0, lambda: air.muted("node-1"))
            daemons.processes["node-2"].terminate()
            assert daemons.processes["node-2"].wait(20) == 128 + signal.SIGTERM
            assert air.muted("node-2") and states(folder.node("node-2")) == ["up", "dismissed"]
            daemons.processes["server"].kill()
            within(1.0, lambda: air.muted("server"))
            within(5.0, lambda: air.muted("node-3"))  # it misses its server's heartbeat
            assert "dismissed" not in states(folder.node("node-3"))
        sent = (folder.path / "logs" / "emissions.jsonl").read_text().splitlines(keepends=True)
        sent = [line for line in sent if line.endswith("\n")]  # a kill may cut the last one
        assert len(sent) > 10 and all(json.loads(line)["verdict"] == "sent" for line in sent)
    finally:
        air.close()
