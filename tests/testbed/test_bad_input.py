"""What a user can do wrong, through the real command line: one line that says what and the remedy, and an exit code."""

import asyncio
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from radio.airserver import EtherServer
from radio.ether import Ether
from radio.presets import preset
from radio.warm import warm
from testbed.bus import ServerBus
from testbed.config import load, load_lab
from testbed.keys import load_keys, make_keys
from testbed.messages import PROTOCOL, Refused, Stop, decode, encode
from testbed.run import Checkpoint, RunFolder, read_events

LINE = re.compile(r"error\[[a-z-]+\]: .+ -> .+")
PAIR = '[{name="node-1",radio="loopback:node-1"},{name="node-2",radio="loopback:node-2"}]'
TWO = [
    f"lab.nodes={PAIR}",
    "lab.heartbeat.interval_s=0.3",
    "lab.heartbeat.give_up_s=30",
    "data.clients=2",
    "data.new_tasks=8",
    "run.clients_per_round=2",
    "run.rounds=3",
    "run.compare=false",
]


def sets(items: list[str]) -> list[str]:
    return [part for item in items for part in ("--set", item)]


def user(folder: Path, *arguments: str, most_bytes: int = 0) -> tuple[int, str, str]:
    """Type a command in ``folder``: exit code, the one error line (none at exit code 0), and all that was shown."""

    def limit() -> None:
        if most_bytes:  # a disk that is full for every file beyond this size
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    done = subprocess.run(
        [sys.executable, "-m", "testbed", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        preexec_fn=limit,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    shown = done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "Traceback" not in shown, shown
    assert len(errors) == (done.returncode != 0) and all(LINE.fullmatch(line) for line in errors), shown
    return done.returncode, "".join(errors), shown


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


SEVENTEEN = ",".join(f'{{name="n{k}",radio="loopback:n{k}"}}' for k in range(17))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["scheme.kep=0.1"], "--set: scheme.kep: unknown key -> did you mean 'keep'?"),
        (["run.rounds=soon"], "--set: run.rounds = 'soon': must be a whole number -> write a whole number"),
        (["scheme.keep=1.5"], "--set: scheme.keep = 1.5: must be at most 1 -> choose a value at most 1"),
        (["scheme.name=xyzzy"], "--set: scheme.name = 'xyzzy': unknown scheme -> use one of: "),
        (
            [f"lab.nodes=[{SEVENTEEN}]", "data.clients=17"],
            "17 nodes, but profile 'pluto-915' has 16 verification shifts -> use at most 16 nodes",
        ),
    ],
)
def test_a_wrong_setting(tmp_path: Path, settings: list[str], words: str) -> None:
    code, line, shown = user(tmp_path, "run", *sets(settings))
    assert code == 2 and line.startswith("error[config]: ") and words in line
    assert shown.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "who"), [("server.control_port", "server"), ("ether_port", "ether")])
def test_a_port_in_use(tmp_path: Path, taken: int, key: str, who: str) -> None:
    code, line, _ = user(tmp_path, "run", *sets([*TWO, f"lab.{key}={taken}"]))
    assert code == 6 and line.startswith(f"error[link]: {who}: ") and str(taken) in line and "in use" in line


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    pair = load(None, None, TWO)
    folder = RunFolder.create(tmp_path / "runs", pair)
    path = folder.save(Checkpoint(3, pair.fingerprint(), {})).with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    code, line, _ = user(tmp_path, "run", "--resume", "latest")
    assert code == 7 and line.startswith("error[run]: ") and path.name in line and "damaged" in line


def test_a_full_disk(tmp_path: Path) -> None:
    lab = load(None, None, TWO).lab
    assert lab.ether is not None
    warm(lab.ether, lab.radio_names)  # so that the compiler has nothing left to write
    code, line, _ = user(tmp_path, "run", *sets([*TWO, "model.hidden=[512]"]), most_bytes=120_000)
    assert code == 7 and line.startswith("error[run]: ")
    assert "cannot write: File too large -> free some space" in line and "round-000000" in line
    assert [event["kind"] for event in read_events(tmp_path / "runs" / "1" / "events.jsonl")][-1] == "run-finished"


class Room:
    """The air, and a place where a node expects its server."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys"
        make_keys(self.keys, ["server", "reader", "node-1", "node-2"])
        air = EtherServer(Ether(preset("ideal"), ["server", "node-1", "node-2"]), "tcp://127.0.0.1:*")
        self._air, self._thread = air, threading.Thread(target=air.serve)
        self._thread.start()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.settings = [
            f"lab.keys={self.keys}",
            f"lab.ether_port={air.address.rsplit(':', 1)[1]}",
            f"lab.server.control_port={self.port}",
            "lab.server.events_port=0",
            *TWO[:3],
        ]
        self.folder = folder

    def close(self) -> None:
        self._air.stop()
        self._thread.join()

    def node(self, *more: str) -> tuple[int, str, str]:
        return user(self.folder, "-q", "node", "node-1", *sets([*self.settings, *more]))

    async def answer(self, replies: list[list[bytes]]) -> list[dict]:
        """Be a server that answers each message of one node with the next reply; returns what it heard."""
        context = zmq.asyncio.Context()
        router, mine = context.socket(zmq.ROUTER), load_keys(self.keys, "server")
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, mine.secret)
        router.setsockopt(zmq.LINGER, 1000)
        router.bind(f"tcp://127.0.0.1:{self.port}")
        heard: list[dict] = []
        while replies:
            route, head, _ = await router.recv_multipart()
            heard.append(json.loads(head))
            if heard[-1]["kind"] != "heartbeat":
                await router.send_multipart([route, *replies.pop(0)])
        await asyncio.sleep(0.2)
        router.close()
        context.term()
        return [message for message in heard if message["kind"] != "heartbeat"]

    def meet(self, *replies: list[bytes]) -> tuple[tuple[int, str, str], list[dict]]:
        """Start a node against a server that answers like this."""

        async def both() -> tuple[tuple[int, str, str], list[dict]]:
            serving = asyncio.create_task(self.answer(list(replies)))
            ended = await asyncio.to_thread(self.node)
            return ended, await asyncio.wait_for(serving, 10)

        return asyncio.run(both())


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path)
    yield made
    made.close()


def test_a_server_of_another_version(room: Room) -> None:
    strange = [json.dumps({"protocol": PROTOCOL + 98, "kind": "greeting"}).encode(), b""]
    (code, line, _), heard = room.meet(strange)
    assert [message["kind"] for message in heard] == ["hello"] and heard[0]["protocol"] == PROTOCOL
    assert code == 6 and line.startswith("error[protocol-mismatch]: ")
    assert f"protocol {PROTOCOL + 98}" in line and f"speaks {PROTOCOL}" in line and "install the same version" in line


def test_a_node_of_another_version(room: Room) -> None:
    """The server tells it both numbers, and warns; a message that only looks right is refused too."""
    warnings: list[tuple[str, str]] = []

    async def run() -> Refused:
        bus = await ServerBus(load_lab(None, room.settings), room.keys, lambda *w: warnings.append(w)).start()
        context, mine = zmq.asyncio.Context(), load_keys(room.keys, "node-1")
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, mine.public)
        dealer.setsockopt(zmq.CURVE_SECRETKEY, mine.secret)
        dealer.setsockopt(zmq.CURVE_SERVERKEY, load_keys(room.keys, "server").public)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(bus.control_address)
        await dealer.send_multipart([json.dumps({"protocol": 0, "kind": "hello", "name": "node-1"}).encode(), b""])
        message, _ = decode(await asyncio.wait_for(dealer.recv_multipart(), 10))
        dealer.close()
        context.term()
        await bus.close()
        assert isinstance(message, Refused)
        return message

    refused = asyncio.run(run())
    told = f"peer speaks protocol 0, this side speaks {PROTOCOL}"
    assert refused.code == "protocol" and told in refused.reason
    assert warnings == [("protocol", f"node node-1: {told}")]


def test_a_refusal_ends_the_node_with_its_reason(room: Room) -> None:
    first = encode(Refused(code="hello-first", reason="who are you?"))
    last = encode(Refused(code="replaced", reason="another process with the key of node-1 has joined"))
    (code, line, _), heard = room.meet(first, last)
    assert [message["kind"] for message in heard] == ["hello", "hello"], "hello-first asks for another Hello"
    assert code == 6 and line.startswith("error[link]: the server refuses node node-1: another process with the key")
    assert "one process per node" in line


def test_a_node_without_a_key(room: Room, tmp_path: Path) -> None:
    code, line, _ = room.node(f"lab.keys={tmp_path / 'nowhere'}")
    assert code == 6 and line.startswith("error[not-trusted]: ")
    assert "key cannot be read" in line and "testbed init" in line


def test_a_node_whose_key_the_server_does_not_know(room: Room, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    make_keys(foreign, ["node-1"])
    (foreign / "server.public").write_bytes((room.keys / "server.public").read_bytes())
    warnings: list[str] = []

    async def run() -> tuple[int, str, str]:
        bus = await ServerBus(load_lab(None, room.settings), room.keys, lambda code, _: warnings.append(code)).start()
        ended = await asyncio.to_thread(room.node, f"lab.keys={foreign}")
        await bus.close()
        return ended

    code, line, _ = asyncio.run(run())
    assert code == 6 and line.startswith("error[not-trusted]: node node-1: ") and "node-1.public" in line
    assert set(warnings) == {"not-trusted"}


def test_the_end_of_a_run_is_no_error(room: Room) -> None:
    (code, line, _), heard = room.meet(encode(Stop(reason="finished")))
    assert (code, line) == (0, "") and [message["kind"] for message in heard] == ["hello"]
