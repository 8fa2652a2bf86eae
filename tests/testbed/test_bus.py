"""The bus: known keys talk, unknown ones do not; silence is noticed; every refusal says what to do."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import zmq
import zmq.asyncio

from radio.errors import ConfigError, LinkError, NodeLost, NotTrusted, ProtocolMismatch
from testbed import messages
from testbed.bus import Envelope, EventReader, Lost, NodeBus, ServerBus, curve_available, port_free
from testbed.config import Lab, load_lab
from testbed.keys import known_keys, load_keys, loose_files, make_keys
from testbed.messages import Ack, Hello, Refused, Stop, Train

PATIENCE = ["lab.heartbeat.interval_s=0.1", "lab.heartbeat.allowance_s=0.6", "lab.heartbeat.give_up_s=2.0"]


def hello(name: str) -> Hello:
    return Hello(name=name, serial="1", tier="P0", rate_hz=1e6, turnaround_samples=0, one_timeline=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, ["server", "reader", *(f"node-{k}" for k in range(1, 9))])
    return folder


class Room:
    """A server on free ports, and nodes that know where it is."""

    def __init__(self, keys: Path) -> None:
        self.keys = keys
        self.warnings: list[tuple[str, str]] = []
        self.server = ServerBus(load_lab(None, PATIENCE), keys, lambda code, text: self.warnings.append((code, text)))
        self.lab: Lab

    async def start(self) -> None:
        await self.server.start()
        control, events = (a.rsplit(":", 1)[1] for a in (self.server.control_address, self.server.events_address))
        ports = [f"lab.server.control_port={control}", f"lab.server.events_port={events}"]
        self.lab = load_lab(None, PATIENCE + ports)

    @contextlib.asynccontextmanager
    async def node(self, name: str, *, greet: bool = True, keys: Path | None = None) -> AsyncIterator[NodeBus]:
        bus = await NodeBus(self.lab, name, keys or self.keys).connect()
        try:
            if greet:
                await bus.send(hello(name))
                arrived = await self.server.receive(2)
                assert isinstance(arrived, Envelope) and arrived.name == name
            yield bus
        finally:
            await bus.close()

    async def warned(self, code: str) -> str:
        for _ in range(40):
            for found, text in self.warnings:
                if found == code:
                    return text
            await asyncio.sleep(0.05)
        raise AssertionError(f"no {code} among {self.warnings}")


def in_room(test: Callable[[Room], Awaitable[None]]) -> Callable[[Path], None]:
    def run(keys: Path) -> None:
        async def main() -> None:
            room = Room(keys)
            await room.start()
            try:
                await asyncio.wait_for(test(room), 20)
            finally:
                await room.server.close()

        asyncio.run(main())

    run.__name__ = getattr(test, "__name__", "run")
    return run


async def refusal(bus: NodeBus) -> Refused:
    envelope = await bus.receive(2)
    assert isinstance(envelope, Envelope) and isinstance(envelope.message, Refused), envelope
    return envelope.message


@in_room
async def test_orders_and_answers_arrive_whole(room: Room) -> None:
    theta = np.arange(200_000, dtype=np.float32)
    async with room.node("node-1") as one, room.node("node-2") as two:
        assert room.server.present == ("node-1", "node-2")
        assert await room.server.send_all(("node-1", "node-2"), Train(clients=("node-1",)), {"theta": theta}) == ()
        for bus in (one, two):
            order = await bus.receive(2)
            assert isinstance(order, Envelope) and order.message.kind == "train" and order.name == "server"
            np.testing.assert_array_equal(order.arrays["theta"], theta)
        await two.send(Ack(of="train"))
        answer = await room.server.receive(2)
        assert isinstance(answer, Envelope) and (answer.name, answer.message) == ("node-2", Ack(of="train"))
        assert await room.server.receive(0.05) is None and await one.receive(0.05) is None


@in_room
async def test_signs_of_life_keep_a_quiet_pair_together(room: Room) -> None:
    async with room.node("node-1") as bus:
        assert await room.server.receive(1.0) is None and await bus.receive(0.2) is None  # twice the allowance
        assert room.server.present == ("node-1",) and bus.silence_s < 0.5


@in_room
async def test_a_closed_node_is_lost_at_once_and_may_come_back(room: Room) -> None:
    async with room.node("node-3"):
        pass
    gone = await room.server.receive(2)
    assert isinstance(gone, Lost) and gone.name == "node-3" and room.server.present == ()
    with pytest.raises(NodeLost, match="node-3 is not connected, stop not sent"):
        await room.server.send("node-3", Stop(reason="x"))
    assert await room.server.send_all(["node-3"], Stop(reason="x")) == ("node-3",)
    async with room.node("node-3") as bus:
        await room.server.send("node-3", Stop(reason="back"))
        order = await bus.receive(2)
        assert isinstance(order, Envelope) and order.message == Stop(reason="back")


@in_room
async def test_a_node_that_leaves_when_it_may_go_is_not_told_as_lost(room: Room) -> None:
    told: list[logging.LogRecord] = []
    watch = logging.Handler()
    watch.emit = told.append  # type: ignore[method-assign]
    logging.getLogger("testbed.bus.server").addHandler(watch)
    async with room.node("node-1") as node:
        await room.server.dismiss("finished")
        order = await node.receive(2)
        assert isinstance(order, Envelope) and order.message == Stop(reason="finished")
    assert isinstance(await room.server.receive(5), Lost) and not told
    logging.getLogger("testbed.bus.server").removeHandler(watch)


@in_room
async def test_a_hung_node_is_lost_although_its_connection_stands(room: Room) -> None:
    async with room.node("node-1") as bus:
        for task in bus._tasks:
            task.cancel()  # the process hangs; TCP does not know
        gone = await room.server.receive(3)
        assert isinstance(gone, Lost) and gone.silence_s > 0.6


@in_room
async def test_a_new_process_with_the_same_key_takes_over(room: Room) -> None:
    async with room.node("node-1") as old, room.node("node-1") as new:
        assert (await refusal(old)).code == "replaced"
        assert "node-1" in await room.warned("replaced")
        await old.send(Ack(of="x"))
        assert (await refusal(old)).code == "hello-first"
        await room.server.send("node-1", Stop(reason="for the new one"))
        order = await new.receive(2)
        assert isinstance(order, Envelope) and order.message.kind == "stop"
        later = await old.receive(0.3)  # its signs of life are answered, but no order reaches it
        assert isinstance(later, Envelope) and later.message.kind == "refused"


@in_room
async def test_a_node_may_not_take_the_name_of_another(room: Room) -> None:
    async with room.node("node-2", greet=False) as bus:
        await bus.send(hello("node-1"))
        answer = await refusal(bus)
        assert answer.code == "not-trusted" and "key of node-2" in answer.reason and "node-1" in answer.reason
        assert await room.server.receive(0.1) is None and room.server.present == ()


@in_room
async def test_nothing_passes_before_hello(room: Room) -> None:
    async with room.node("node-1", greet=False) as bus:
        await bus.send(Ack(of="x"))
        assert (await refusal(bus)).code == "hello-first" and await room.server.receive(0.1) is None


@in_room
async def test_another_protocol_version_is_refused_on_both_sides(room: Room) -> None:
    old = messages.PROTOCOL
    async with room.node("node-1") as bus:
        messages.PROTOCOL = old + 1
        try:
            await bus._dealer.send_multipart(messages.encode(Ack(of="x")))
        finally:
            messages.PROTOCOL = old
        answer = await refusal(bus)
        assert answer.code == "protocol" and f"protocol {old + 1}" in answer.reason and f"speaks {old}" in answer.reason
        assert str(old + 1) in await room.warned("protocol")
        route = room.server._peers["node-1"].route
        await room.server._router.send_multipart([route, b'{"protocol": 99, "kind": "stop"}', b""])
        with pytest.raises(ProtocolMismatch, match=f"protocol 99, this side speaks {old}"):
            await bus.receive(2)


@in_room
async def test_garbage_of_a_trusted_node_is_named(room: Room) -> None:
    async with room.node("node-1") as bus:
        await bus._dealer.send_multipart([b"{]", b""])
        assert "malformed" in (await refusal(bus)).reason
        assert "node-1" in await room.warned("malformed")
        assert room.server.present == ("node-1",)


@in_room
async def test_an_unknown_key_is_told_so_at_once(room: Room) -> None:
    strange = room.keys.parent / "strange"
    make_keys(strange, ["node-1"])
    (strange / "server.public").write_bytes((room.keys / "server.public").read_bytes())
    with pytest.raises(NotTrusted, match="does not know this node's key") as caught:
        await NodeBus(room.lab, "node-1", strange).connect()
    assert room.server.control_address in caught.value.message and "node-1.public" in caught.value.remedy
    assert "its key is not known" in await room.warned("not-trusted")


@in_room
async def test_a_wrong_server_key_is_blamed(room: Room) -> None:
    wrong = room.keys.parent / "wrong"
    make_keys(wrong, ["server", "node-1"])
    with pytest.raises(NotTrusted, match="broke off 3 handshakes") as caught:
        await NodeBus(room.lab, "node-1", wrong).connect()
    assert "server.public" in caught.value.remedy


@in_room
async def test_a_client_without_a_key_gets_nothing_and_is_noticed(room: Room) -> None:
    context = zmq.asyncio.Context()
    plain = context.socket(zmq.DEALER)
    plain.linger = 0
    plain.connect(room.server.control_address)
    await plain.send_multipart(messages.encode(hello("node-1")))
    assert "showed no key" in await room.warned("handshake")
    assert await room.server.receive(0.2) is None
    plain.close()
    context.term()


@in_room
async def test_readers_follow_events_and_may_not_order(room: Room) -> None:
    reader = EventReader(room.lab, room.keys)
    event = None
    for _ in range(50):  # subscriptions take a moment: what was published before is not seen
        room.server.publish(b'{"kind":"warning","run":"7"}\n')
        if event := await reader.receive(0.05):
            break
    assert event == {"kind": "warning", "run": "7"}
    reader.close()
    posing = room.keys.parent / "posing"
    posing.mkdir(exist_ok=True)
    for part in ("public", "secret"):
        (posing / f"node-1.{part}").write_bytes((room.keys / f"reader.{part}").read_bytes())
        (posing / f"node-1.{part}").chmod(0o600)
    (posing / "server.public").write_bytes((room.keys / "server.public").read_bytes())
    with pytest.raises(NotTrusted):
        await NodeBus(room.lab, "node-1", posing).connect()


@in_room
async def test_a_reader_that_never_reads_slows_nobody(room: Room) -> None:
    reader = EventReader(room.lab, room.keys)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.3)
    start = loop.time()
    for _ in range(20_000):  # far more than its queue holds
        room.server.publish(b'{"kind":"round-finished"}' + b" " * 500)
    assert loop.time() - start < 5.0
    reader.close()


@in_room
async def test_a_port_in_use_is_one_clear_error(room: Room) -> None:
    second = ServerBus(room.lab, room.keys)
    with pytest.raises(LinkError, match="is in use") as caught:
        await second.start()
    assert str(room.lab.server.control_port) in caught.value.message
    assert "--set lab.server.control_port=" in caught.value.remedy and caught.value.exit_code == 6
    assert not port_free("127.0.0.1", room.lab.server.control_port) and port_free("127.0.0.1", 0)


def test_a_missing_server_is_given_up_with_its_address(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lab = load_lab(None, [*PATIENCE, f"lab.server.control_port={port}"])
    with caplog.at_level("INFO"), pytest.raises(LinkError, match=f"no server at tcp://127.0.0.1:{port} within 2 s"):
        asyncio.run(NodeBus(lab, "node-1", keys).connect())  # type: ignore[arg-type]
    tries = [record.getMessage() for record in caplog.records if "try" in record.getMessage()]
    assert 2 <= len(tries) <= 15 and all(f"127.0.0.1:{port}" in line for line in tries)  # it backs off


def test_a_vanished_server_mutes_first_and_ends_later(keys: Path) -> None:
    async def main() -> None:
        room = Room(keys)
        await room.start()
        async with room.node("node-1") as bus:
            await room.server.close()
            lost = await bus.receive(3)
            assert isinstance(lost, Lost) and lost.name == "server" and 0.6 < lost.silence_s < 1.5
            with pytest.raises(LinkError, match="silent for"):
                await bus.receive(5)

    asyncio.run(main())


def test_an_answer_to_a_vanished_server_is_given_up_when_its_silence_is_long_enough(keys: Path) -> None:
    async def main() -> None:
        room = Room(keys)
        await room.start()
        async with room.node("node-1") as bus:
            await room.server.close()
            await asyncio.sleep(0.3)
            with pytest.raises(LinkError, match="ack not sent, no connection"):
                await bus.send(Ack(of="train"))
            assert 0.5 < bus.silence_s < 1.0
            assert isinstance(await bus.receive(0.5), Lost)

    asyncio.run(main())


def test_a_host_that_is_not_ours_is_a_config_error(keys: Path) -> None:
    lab = load_lab(None, ["lab.server.host=192.0.2.1"])
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        asyncio.run(ServerBus(lab, keys).start())  # type: ignore[arg-type]


def test_secrets_are_private_and_never_overwritten(tmp_path: Path) -> None:
    assert curve_available()
    folder = tmp_path / "keys"
    assert make_keys(folder, ["server", "a"]) == ["server", "a"]
    before = (folder / "a.secret").read_bytes()
    assert make_keys(folder, ["server", "a", "b"]) == ["b"]
    assert (folder / "a.secret").read_bytes() == before
    assert (folder / "a.secret").stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    assert before.strip().decode() not in repr(load_keys(folder, "a"))
    (folder / "a.secret").chmod(0o644)
    assert loose_files(folder) == [folder / "a.secret"]
    with pytest.raises(NotTrusted, match="others may read this secret") as caught:
        load_keys(folder, "a")
    assert "chmod 600" in caught.value.remedy and caught.value.exit_code == 6


def test_bad_key_files_are_named(tmp_path: Path) -> None:
    make_keys(tmp_path, ["a", "b"])
    with pytest.raises(NotTrusted, match=r"c\.secret: key cannot be read"):
        load_keys(tmp_path, "c")
    assert set(known_keys(tmp_path, ["a", "b", "c"]).values()) == {"a", "b"}
    (tmp_path / "b.public").write_bytes((tmp_path / "a.public").read_bytes())
    with pytest.raises(NotTrusted, match="a and b share one key"):
        known_keys(tmp_path, ["a", "b"])
    (tmp_path / "b.public").write_text("short")
    with pytest.raises(NotTrusted, match="5 characters, expected 40"):
        known_keys(tmp_path, ["a", "b"])
