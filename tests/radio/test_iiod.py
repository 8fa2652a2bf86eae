"""The protocol of iiod over a small made-up tree, line by line: replies, error numbers, buffers, clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import struct
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin import Client

from radio.errors import RadioError, RadioRefused
from radio.iiod import Attribute, Channel, Context, Device, Iiod


class Pipe:
    """A stream whose pace is set by the test."""

    def __init__(self) -> None:
        self.wait, self.count = 0.0, 0
        self.opened: tuple[int, list[int], int, bool] | None = None
        self.got: list[bytes] = []

    def open(self, block: int, channels: Sequence[int], buffers: int, cyclic: bool) -> None:
        self.opened, self.count = (block, list(channels), buffers, cyclic), 0

    def wait_s(self) -> float:
        return self.wait

    def take(self) -> memoryview:
        assert self.opened is not None
        self.count += 1
        return memoryview(bytes([self.count]) * (2 * len(self.opened[1]) * self.opened[0]))

    def put(self, block: bytes) -> None:
        self.got.append(block)

    def close(self) -> None:
        self.opened = None


def _raise(error: Exception) -> str:
    raise error


class Bench:
    """A server of one context in a thread of its own."""

    def __init__(self) -> None:
        self.rx, self.tx = Pipe(), Pipe()
        self.values = {"gain": "5", "a<b": "&"}
        gain = Attribute(lambda: self.values["gain"], lambda text: self.values.update(gain=text))
        out = Attribute(lambda: "one\ntwo")
        scans = [Channel(f"voltage{n}", False, {"gain": gain}, scan=(n, "le:S12/16>>0")) for n in (0, 1)]
        context = Context(
            'a "pluto" & more',
            {"hw_serial": "<7>"},
            (
                Device(
                    "iio:device0",
                    "phy",
                    (
                        Channel("altvoltage0", True, {"frequency": out}, "RX_LO"),
                        Channel("voltage0", True, {"gain": gain, "rate": out}, shared=frozenset({"rate"})),
                        Channel("voltage0", False, {"gain": gain}),
                    ),
                    {
                        "mode": gain,
                        "fixed": Attribute(lambda: "1"),
                        "refused": Attribute(lambda: _raise(RadioRefused("no")), lambda _: _raise(RadioRefused("no"))),
                        "broken": Attribute(lambda: _raise(RadioError("gone"))),
                        "odd": Attribute(lambda: _raise(OSError(errno.ENODEV, ""))),
                    },
                    debug={"register": out},
                ),
                Device("iio:device1", "adc", tuple(scans), buffer={"watermark": gain}, stream=self.rx),
                Device("iio:device2", "dac", tuple(scans), stream=self.tx),
            ),
        )
        self.iiod = Iiod(context)
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.port = 0

        async def main() -> None:
            server = await asyncio.start_server(self.iiod.serve, "127.0.0.1", 0, limit=1 << 20)
            self.port = server.sockets[0].getsockname()[1]
            self.stop = asyncio.Event()
            ready.set()
            await self.stop.wait()
            server.close()

        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(main(),))
        self.thread.start()
        assert ready.wait(5.0)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def client(bench: Bench) -> Iterator[Client]:
    client = Client(bench.port)
    yield client
    client.close()


def test_the_context_is_described_for_libxml2(client: Client) -> None:
    text = client.file.read(client.number("PRINT")).decode()
    assert client.file.read(1) == b"\n" and "<!DOCTYPE context" in text
    root = ElementTree.fromstring(text)
    assert root.get("description") == 'a "pluto" & more'
    assert [a.attrib for a in root.findall("context-attribute")] == [{"name": "hw_serial", "value": "<7>"}]
    assert [d.get("name") for d in root.findall("device")] == ["phy", "adc", "dac"]
    files = [a.get("filename") for a in root.findall("device[@id='iio:device0']/channel/attribute")]
    assert files == ["out_altvoltage0_RX_LO_frequency", "out_voltage0_gain", "out_voltage_rate", "in_voltage0_gain"]
    scan = root.find("device[@id='iio:device1']/channel[@id='voltage1']/scan-element")
    assert scan is not None and scan.attrib == {"index": "1", "format": "le:S12/16>>0"}


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("NONSENSE", -errno.EINVAL),
        ("ZPRINT", -errno.EINVAL),
        ("TIMEOUT", -errno.EINVAL),
        ("TIMEOUT 2500", 0),
        ("TIMEOUT soon", 0),
        ("READ nothing mode", -errno.ENODEV),
        ("READ phy nothing", -errno.ENOENT),
        ("READ phy INPUT voltage9 gain", -errno.ENXIO),
        ("READ phy INPUT RX_LO frequency", -errno.ENXIO),
        ("READ phy OUTPUT RX_LO nothing", -errno.ENOENT),
        ("READ phy DEBUG nothing", -errno.ENOENT),
        ("READ adc BUFFER nothing", -errno.ENOENT),
        ("READ phy refused", -errno.EINVAL),
        ("READ phy broken", -errno.EIO),
        ("READ phy odd", -errno.ENODEV),
        (" TIMEOUT 2500", -errno.EINVAL),
        ("Timeout 2500", -errno.EINVAL),
        ("READ", -errno.EINVAL),
        ("READ phy INPUT", -errno.EINVAL),
        ("READ phy $", -errno.EINVAL),
        ("READ phy mode too many words", -errno.EINVAL),
        ("WRITE phy mode 99999999999", -errno.ENOMEM),
        ("WRITE phy mode -1", -errno.ENOMEM),
        ("OPEN phy 256 00000001", -errno.EINVAL),
        ("OPEN adc 256 00000000", -errno.EINVAL),
        ("OPEN adc 256 00000004", -errno.EINVAL),
        ("OPEN adc 0 00000003", -errno.EINVAL),
        ("OPEN adc -4 00000003", -errno.EINVAL),
        ("OPEN adc 256 3", -errno.EINVAL),
        ("OPEN adc 256 0000000000000003", -errno.EINVAL),
        ("OPEN adc 256 0000000g", -errno.EINVAL),
        ("OPEN adc 99999999 00000003", -errno.ENOMEM),
        ("OPEN nothing 256 00000003", -errno.ENODEV),
        ("READBUF adc 1024", -errno.EBADF),
        ("WRITEBUF dac 1024", -errno.EBADF),
        ("READBUF nothing 1024", -errno.ENODEV),
        ("CLOSE adc", -errno.ENXIO),
        ("CLOSE nothing", -errno.ENODEV),
        ("GETTRIG adc", -errno.ENOENT),
        ("SETTRIG adc", -errno.ENOENT),
        ("SETTRIG adc other", -errno.ENOENT),
        ("SETTRIG adc phy", -errno.EINVAL),
        ("GETTRIG nothing", -errno.ENODEV),
        ("SET adc BUFFERS_COUNT 0", -errno.EINVAL),
        ("SET adc BUFFERS_COUNT 8", 0),
        ("SET nothing BUFFERS_COUNT 8", -errno.ENODEV),
    ],
)
def test_every_line_has_one_number_for_an_answer(client: Client, line: str, reply: int) -> None:
    assert client.number(line) == reply
    client.send("VERSION")
    major, minor, tag = client.file.readline().decode().rstrip("\n").split(".")
    assert (major, minor, len(tag)) == ("0", "24", 7)


def test_attributes_are_found_by_id_name_and_direction(client: Client) -> None:
    assert client.value("READ iio:device0 mode") == client.value("READ phy INPUT voltage0 gain") == "5"
    assert client.value("READ phy OUTPUT altvoltage0 frequency") == "one\ntwo"
    assert client.value("READ phy OUTPUT RX_LO frequency") == "one\ntwo"
    assert client.value("READ phy DEBUG register") == "one\ntwo"
    assert client.value("READ adc BUFFER watermark") == "5"


def test_all_attributes_at_once_are_packed_after_their_lengths(client: Client) -> None:
    raw = client.file.read(client.number("READ phy"))
    assert client.file.read(1) == b"\n"
    gone, sleepy = struct.pack(">i", -errno.EIO), struct.pack(">i", -errno.ENODEV)
    refused = struct.pack(">i", -errno.EINVAL)
    assert raw == struct.pack(">i", 2) + b"5\0\0\0" + struct.pack(">i", 2) + b"1\0\0\0" + refused + gone + sleepy


def test_a_write_takes_the_value_up_to_its_nul(client: Client, bench: Bench) -> None:
    assert client.number("WRITE phy mode 6", b"12\0xyz") == 6
    assert bench.values["gain"] == "12"
    assert client.write("phy OUTPUT voltage0 gain", "34\n") == 4
    assert client.value("READ phy mode") == "34"


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("phy fixed", -errno.EACCES),
        ("phy nothing", -errno.ENOENT),
        ("phy refused", -errno.EINVAL),
        ("nothing mode", -errno.ENODEV),
        ("phy INPUT voltage7 gain", -errno.ENXIO),
        ("phy", -errno.ENOSYS),
        ("phy mode and more", -errno.EINVAL),
    ],
)
def test_a_write_in_vain_still_swallows_its_bytes(client: Client, path: str, reply: int) -> None:
    assert client.write(path, "VERSION\r\nVERSION") == reply
    assert client.value("READ phy mode") == "5"


def test_a_block_comes_in_one_piece_after_its_mask(client: Client, bench: Bench) -> None:
    assert client.number("OPEN adc 256 00000003") == 0
    assert bench.rx.opened == (256, [0, 1], 4, False)
    assert client.block("adc", 1024) == ("00000003", b"\x01" * 1024)
    assert client.block("adc", 400) == ("00000003", b"\x02" * 400), "the rest of a block is dropped"
    assert client.block("adc", 1024) == ("00000003", b"\x03" * 1024)
    assert client.number("READBUF adc 3") == 0, "less than a sample"
    assert client.number("CLOSE adc") == 0 and bench.rx.opened is None
    assert client.number("READBUF adc 1024") == -errno.EBADF


def test_more_than_a_block_comes_as_pieces(client: Client) -> None:
    assert client.number("OPEN adc 256 00000001") == 0
    assert client.block("adc", 513) == ("00000001", b"\x01" * 512)
    assert client.next() == 0, "a rest smaller than a sample ends with a zero"
    assert client.block("adc", 768) == ("00000001", b"\x02" * 512)
    assert client.next() == 256 and client.file.read(256) == b"\x03" * 256


def test_written_samples_are_acknowledged_before_and_after(client: Client, bench: Bench) -> None:
    assert client.number("SET dac BUFFERS_COUNT 7") == 0
    assert client.number("OPEN dac 4 00000002") == 0
    assert bench.tx.opened == (4, [1], 7, False)
    assert client.put("dac", b"abcdefgh") == 8
    assert client.put("dac", b"abcd") == 4
    assert client.put("dac", b"0123456789abcdef") == 16
    assert bench.tx.got == [b"abcdefgh", b"abcd", b"01234567", b"89abcdef"]
    assert client.number("SET dac BUFFERS_COUNT 2") == -errno.EBUSY


def test_a_cyclic_buffer_is_filled_once(client: Client, bench: Bench) -> None:
    assert client.number("OPEN dac 4 00000001 CYCLIC") == 0
    assert bench.tx.opened == (4, [0], 4, True)
    assert client.put("dac", b"abcdefgh") == 8
    assert client.put("dac", b"ijklmnop") == -errno.EBUSY
    assert client.number("CLOSE dac") == 0, "the refused block was swallowed"


def test_a_buffer_belongs_to_one_client(client: Client, bench: Bench) -> None:
    other = Client(bench.port)
    assert client.number("OPEN adc 256 00000003") == 0
    before = time.monotonic()
    assert other.number("OPEN adc 256 00000003") == -errno.EBUSY
    assert time.monotonic() - before >= 0.05, "it may just be on its way out"
    assert other.number("READBUF adc 1024") == -errno.EBADF
    other.send("OPEN adc 128 00000001")
    time.sleep(0.02)
    assert client.number("CLOSE adc") == 0
    assert other.next() == 0 and bench.rx.opened == (128, [0], 4, False)
    other.close()


def test_a_late_block_ends_in_a_time_out_and_the_buffer_is_lost(client: Client, bench: Bench) -> None:
    other = Client(bench.port)
    assert other.number("TIMEOUT 100") == 0, "set on the control connection, obeyed on the buffer's"
    assert client.number("OPEN adc 256 00000003") == 0
    bench.rx.wait = float("inf")
    before = time.monotonic()
    assert client.number("READBUF adc 1024") == -errno.ETIMEDOUT
    assert 0.1 <= time.monotonic() - before < 0.5
    bench.rx.wait = 0.0
    assert client.number("READBUF adc 1024") == -errno.EBADF
    assert client.number("CLOSE adc") == 0 and client.number("OPEN adc 256 00000003") == 0
    assert client.block("adc", 4)[1] == b"\x01" * 4
    assert other.number("TIMEOUT 0") == 0
    bench.rx.wait = 0.3
    client.send("READBUF adc 4")
    threading.Timer(0.2, lambda: setattr(bench.rx, "wait", 0.0)).start()
    assert client.next() == 4, "no time-out waits as long as it takes"
    other.close()


@pytest.mark.parametrize("last", ["READBUF adc 1024", "EXIT", "READ phy mode"])
def test_a_client_that_leaves_gives_its_buffers_back(bench: Bench, last: str) -> None:
    client = Client(bench.port)
    assert client.number("OPEN adc 256 00000003") == 0 and client.number("TIMEOUT 0") == 0
    bench.rx.wait = float("inf")
    client.send(last)
    time.sleep(0.05)
    if last != "EXIT":
        client.close()
    deadline = time.monotonic() + 2.0
    while bench.rx.opened is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bench.rx.opened is None and not bench.iiod.owners


def test_lines_sent_together_are_answered_in_order(client: Client) -> None:
    client.send("timeout 1000\n\n \nREAD  phy\t mode \nclose adc\nHELP")
    assert client.next() == 0
    assert client.next() == 2 and client.file.read(3) == b"5\0\n"
    assert client.next() == -errno.ENXIO
    assert client.file.readline().startswith(b"Commands")


def test_a_line_without_end_is_cut_off(client: Client) -> None:
    with contextlib.suppress(ConnectionError):  # it may be gone before it has heard everything
        client.socket.sendall(b"x" * (3 << 20))
    try:
        answer = client.file.read()
    except ConnectionError:
        answer = b""
    assert answer in (b"", b"-22\n")


VOCABULARY = """READ READBUF WRITEBUF OPEN CLOSE SET PRINT TIMEOUT phy adc dac DEBUG BUFFER INPUT OUTPUT voltage0 CYCLIC
BUFFERS_COUNT 4 -1 00000003 gain mode 256 zprint"""
words = st.sampled_from(VOCABULARY.encode().split())
junk = st.binary(min_size=1, max_size=60).map(lambda raw: raw.replace(b"\n", b"?"))
lines = st.one_of(junk, st.lists(st.one_of(words, junk), min_size=1, max_size=7).map(b" ".join))


@pytest.fixture(scope="module")
def shared_bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@settings(deadline=None, max_examples=300)
@given(garbage=st.lists(lines, min_size=1, max_size=4))
def test_no_garbage_stops_the_server(shared_bench: Bench, garbage: list[bytes]) -> None:
    client = Client(shared_bench.port)
    for line in garbage:
        client.send(line)
    client.send("TIMEOUT 1000\r\nEXIT")
    client.socket.shutdown(1)
    answer = client.file.read()
    client.close()
    assert answer.endswith(b"0\n") or b"WRITEBUF" in b"".join(garbage), "the last line was answered as ever"
    other = Client(shared_bench.port)
    assert other.number("TIMEOUT 1000") == 0 and not shared_bench.iiod.owners
    other.close()


@settings(deadline=None, max_examples=200)
@given(
    line=junk.filter(lambda raw: raw.strip(b" \t\r") and raw[:4].upper() not in (b"EXIT", b"QUIT", b"PRIN", b"HELP"))
)
def test_a_garbage_line_has_one_error_for_an_answer(shared_bench: Bench, line: bytes) -> None:
    client = Client(shared_bench.port)
    assert client.number(line) == -errno.EINVAL
    assert client.number("TIMEOUT 1000") == 0
    client.close()
