"""The network protocol of iiod 0.24, server side, over a tree of devices; knows no radio and no attribute by name.

A client sends lines. Numbers come back as text, negative ones being Linux error numbers. Every connection may hold
buffers: libiio opens one socket for the attributes and one for each buffer.
"""

from __future__ import annotations

import asyncio
import errno
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable
from xml.sax.saxutils import quoteattr

from radio.errors import RadioError, RadioRefused

VERSION = "0.24.virtual"  # clients take the tag after the second dot, and insist on seven characters
LINE_LIMIT = 1 << 20
WRITE_LIMIT = 1 << 20
BLOCK_LIMIT = 1 << 26  # bytes of one block that the kernel of a Pluto would still find memory for
RETRY_S = 0.05  # how long a buffer that is just being closed on another socket may still be in the way
POLL_S = 0.05  # how soon a client that went away is noticed
FAILURES = (OSError, RadioError)
_WORD = rb"(?:[A-Za-z]+,|iio:)?[-_.A-Za-z0-9]+"
_LINE = re.compile(rb"%b(?:[ \t]+%b)*" % (_WORD, _WORD))

_DTD = """<!DOCTYPE context [
<!ELEMENT context (device | context-attribute)*>
<!ELEMENT context-attribute EMPTY>
<!ELEMENT device (channel | attribute | debug-attribute | buffer-attribute)*>
<!ELEMENT channel (scan-element?, attribute*)>
<!ELEMENT scan-element EMPTY>
<!ELEMENT attribute EMPTY>
<!ELEMENT debug-attribute EMPTY>
<!ELEMENT buffer-attribute EMPTY>
<!ATTLIST context name CDATA #REQUIRED description CDATA #IMPLIED>
<!ATTLIST context-attribute name CDATA #REQUIRED value CDATA #REQUIRED>
<!ATTLIST device id CDATA #REQUIRED name CDATA #IMPLIED>
<!ATTLIST channel id CDATA #REQUIRED type (input|output) #REQUIRED name CDATA #IMPLIED>
<!ATTLIST scan-element index CDATA #REQUIRED format CDATA #REQUIRED scale CDATA #IMPLIED>
<!ATTLIST attribute name CDATA #REQUIRED filename CDATA #IMPLIED>
<!ATTLIST debug-attribute name CDATA #REQUIRED>
<!ATTLIST buffer-attribute name CDATA #REQUIRED>
]>"""


@dataclass(frozen=True)
class Attribute:
    """A value that is read and perhaps written as text. Either may raise ``OSError`` with an error number."""

    read: Callable[[], str]
    write: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Channel:
    """A channel of a device; ``scan`` is (index, format) when it can be streamed.

    ``shared`` names the attributes that all channels of this kind and direction have in common.
    """

    id: str
    output: bool
    attributes: Mapping[str, Attribute]
    name: str = ""
    scan: tuple[int, str] | None = None
    shared: frozenset[str] = frozenset()

    def filename(self, attribute: str) -> str:
        """Give the name of the file that stands for an attribute on a real device."""
        kind = (
            self.id.rstrip("0123456789") if attribute in self.shared else "_".join(filter(None, (self.id, self.name)))
        )
        return f"{'out' if self.output else 'in'}_{kind}_{attribute}"


@runtime_checkable
class Stream(Protocol):
    """The samples of a device. One client at a time; nothing here waits."""

    def open(self, block: int, channels: Sequence[int], buffers: int, cyclic: bool) -> None:
        """Start streaming ``channels`` (scan indices) in blocks of ``block`` samples with ``buffers`` of them."""
        ...

    def wait_s(self) -> float:
        """Give the seconds until a block can be taken or put; infinite while nothing moves."""
        ...

    def take(self) -> memoryview:
        """Take the oldest block."""
        ...

    def put(self, block: bytes) -> None:
        """Put a block, the last of a buffer perhaps shorter."""
        ...

    def close(self) -> None:
        """Stop streaming."""
        ...


@dataclass(frozen=True)
class Device:
    """A device of a context. ``stream`` carries 16-bit samples of the channels that have a scan index."""

    id: str
    name: str
    channels: tuple[Channel, ...] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    buffer: Mapping[str, Attribute] = field(default_factory=dict)
    debug: Mapping[str, Attribute] = field(default_factory=dict)
    stream: Stream | None = None


@dataclass(frozen=True)
class Context:
    """Everything a client sees: devices, and constants about the whole."""

    description: str
    attributes: Mapping[str, str]
    devices: tuple[Device, ...]

    def device(self, name: str) -> Device:
        """Find a device by its id or name; error ENODEV."""
        for device in self.devices:
            if name in (device.id, device.name):
                return device
        raise OSError(errno.ENODEV, name)

    def xml(self) -> str:
        """Describe the context, on few lines as a real server does."""
        parts = ['<?xml version="1.0" encoding="utf-8"?>', _DTD]
        parts.append(f'<context name="network" description={quoteattr(self.description)}>')
        parts += [f"<context-attribute name={quoteattr(k)} value={quoteattr(v)}/>" for k, v in self.attributes.items()]
        for device in self.devices:
            parts.append(f"<device id={quoteattr(device.id)} name={quoteattr(device.name)}>")
            for channel in device.channels:
                direction = "output" if channel.output else "input"
                name = f" name={quoteattr(channel.name)}" if channel.name else ""
                parts.append(f"<channel id={quoteattr(channel.id)}{name} type={quoteattr(direction)}>")
                if channel.scan is not None:
                    index, form = channel.scan
                    parts.append(f'<scan-element index="{index}" format={quoteattr(form)}/>')
                parts += [
                    f"<attribute name={quoteattr(name)} filename={quoteattr(channel.filename(name))}/>"
                    for name in channel.attributes
                ]
                parts.append("</channel>")
            for tag, names in (("", device.attributes), ("buffer-", device.buffer), ("debug-", device.debug)):
                parts += [f"<{tag}attribute name={quoteattr(name)}/>" for name in names]
            parts.append("</device>")
        return "".join((*parts, "</context>"))


def _number(word: str) -> int:
    """Read a number as C does: what is no number is 0."""
    found = re.match(r"[+-]?\d{1,18}", word)
    return int(found[0]) if found else 0


class Iiod:
    """Serves one context to any number of connections."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.timeout_s = 1.0  # one for all connections: clients set it on another socket than they stream on
        self.buffers: dict[str, int] = {}  # kernel buffers of the next stream by device, four where absent
        self.owners: dict[str, Connection] = {}  # who streams by device

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client until it leaves."""
        connection = Connection(self, reader, writer)
        try:
            while not reader.at_eof() and await connection.answer():
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it left
        finally:
            for name in list(connection.open):
                connection.release(name)
            writer.close()


@dataclass
class Opened:
    """A buffer that a connection holds."""

    stream: Stream
    step: int  # bytes per sample
    block: int  # bytes per block
    mask: str
    cyclic: bool
    filled: bool = False
    dead: bool = False  # after an error the kernel's buffer is gone, and only closing it helps


class Connection:
    """One client."""

    def __init__(self, server: Iiod, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self.open: dict[str, Opened] = {}

    async def answer(self) -> bool:
        """Answer one line; False when the client is done."""
        try:
            line = await self.reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            self.writer.write(b"%d\n" % -errno.EINVAL)
            return False
        line = line.rstrip(b" \t\r\n")
        if not line:
            return True
        if not _LINE.fullmatch(line):
            self.writer.write(b"%d\n" % -errno.EINVAL)
            return True
        command, *words = line.decode().split()
        if command.islower():  # every keyword may be written small
            command = command.upper()
        if command in ("EXIT", "QUIT") and not words:
            return False
        try:
            reply = await self._run(command, words)
        except ConnectionError:
            raise  # the client left, nobody is answered
        except FAILURES as error:
            reply = _code(error)
        if reply is not None:
            self.writer.write(b"%d\n" % reply)
        return True

    async def _run(self, command: str, words: list[str]) -> int | None:
        """Run one command; give the number to answer, or None when all was said."""
        match command, *words:
            case "READBUF", name, size:
                return await self._read_buffer(self._device(name), _number(size))
            case "WRITEBUF", name, size:
                return await self._write_buffer(self._device(name), _number(size))
            case "READ", name, *path if len(path) < 4:
                self._say(self._read(self._device(name), path))
            case "WRITE", name, *path, size if len(path) < 4:
                return await self._write(name, path, _number(size))
            case "OPEN", name, samples, mask:
                return await self._open(self._device(name), _number(samples), mask, False)
            case "OPEN", name, samples, mask, ("CYCLIC" | "cyclic"):
                return await self._open(self._device(name), _number(samples), mask, True)
            case "CLOSE", name:
                return self._close(self._device(name))
            case "SET", name, ("BUFFERS_COUNT" | "buffers_count"), count:
                return await self._set_buffers(self._device(name), _number(count))
            case "TIMEOUT", milliseconds:
                self.server.timeout_s = max(0, _number(milliseconds)) / 1000.0
                return 0
            case ("VERSION",):
                self.writer.write(VERSION.encode() + b"\n")
            case ("PRINT",):
                text = self.server.context.xml().encode()
                self.writer.write(b"%d\n%b\n" % (len(text), text))
            case ("HELP",):
                self.writer.write(_HELP)
            case (("GETTRIG" | "SETTRIG"), name):
                self._device(name)
                raise OSError(errno.ENOENT, "no device here has a trigger")
            case "SETTRIG", name, trigger:
                self._device(name)
                known = any(trigger in (device.id, device.name) for device in self.server.context.devices)
                raise OSError(errno.EINVAL if known else errno.ENOENT, "no device here is a trigger")
            case _:
                raise OSError(errno.EINVAL, command)
        return None

    def _device(self, name: str) -> Device:
        return self.server.context.device(name)

    def _say(self, value: bytes) -> None:
        self.writer.write(b"%d\n%b\n" % (len(value), value))

    def _attributes(self, device: Device, path: list[str]) -> tuple[Mapping[str, Attribute], list[str]]:
        """Give the attributes that a path means, and the rest of the path: the name of one of them, or nothing."""
        match path:
            case [("DEBUG" | "debug"), *rest]:
                return device.debug, rest
            case [("BUFFER" | "buffer"), *rest]:
                return device.buffer, rest
            case [("INPUT" | "OUTPUT" | "input" | "output") as direction, channel, *rest]:
                for found in device.channels:
                    if channel in (found.id, found.name) and found.output == (direction.upper() == "OUTPUT"):
                        return found.attributes, rest
                raise OSError(errno.ENXIO, channel)
            case [("INPUT" | "OUTPUT" | "input" | "output")]:
                raise OSError(errno.EINVAL, "which channel")
        return device.attributes, path

    def _read(self, device: Device, path: list[str]) -> bytes:
        """Read one attribute, or all of them, each after its length and filled up to four bytes."""
        attributes, rest = self._attributes(device, path)
        match rest:
            case []:
                return b"".join(_packed(attribute) for attribute in attributes.values())
            case [name]:
                if name not in attributes:
                    raise OSError(errno.ENOENT, name)
                return attributes[name].read().encode() + b"\0"
        raise OSError(errno.EINVAL, path[0])

    async def _write(self, device: str, path: list[str], size: int) -> int:
        """Write one attribute; what the client announced is read even when it is of no use."""
        if not 0 <= size <= WRITE_LIMIT:
            raise OSError(errno.ENOMEM, device)
        data = await self.reader.readexactly(size)
        attributes, rest = self._attributes(self._device(device), path)
        if len(rest) != 1:
            raise OSError(errno.EINVAL if rest else errno.ENOSYS, device)
        attribute = attributes.get(rest[0])
        if attribute is None:
            raise OSError(errno.ENOENT, rest[0])
        if attribute.write is None:
            raise OSError(errno.EACCES, rest[0])
        attribute.write(data.partition(b"\0")[0].decode("latin-1").strip())
        return size

    async def _free(self, device: Device) -> None:
        """Wait a moment for a buffer to be closed on another socket; error EBUSY."""
        deadline = asyncio.get_running_loop().time() + RETRY_S
        while device.id in self.server.owners:
            if asyncio.get_running_loop().time() > deadline:
                raise OSError(errno.EBUSY, device.id)
            await asyncio.sleep(0.001)

    async def _open(self, device: Device, samples: int, mask: str, cyclic: bool) -> int:
        """Open the buffer of a device for this client alone; ``mask`` has a bit for each channel that streams."""
        if len(mask) != 8 * -(-len(device.channels) // 32) or not re.fullmatch("[0-9a-fA-F]+", mask):
            raise OSError(errno.EINVAL, mask)
        bits = int(mask, 16)
        channels = [c.scan[0] for bit, c in enumerate(device.channels) if bits >> bit & 1 and c.scan is not None]
        step = 2 * len(channels)
        if device.stream is None or samples < 1 or not step:
            raise OSError(errno.EINVAL, mask)
        if samples * step > BLOCK_LIMIT:
            raise OSError(errno.ENOMEM, device.id)
        await self._free(device)
        device.stream.open(samples, channels, self.server.buffers.get(device.id, 4), cyclic)
        self.server.owners[device.id] = self
        self.open[device.id] = Opened(device.stream, step, samples * step, mask.lower(), cyclic)
        return 0

    def _close(self, device: Device) -> int:
        if device.id not in self.open:
            raise OSError(errno.ENXIO, device.id)
        self.release(device.id)
        return 0

    async def _set_buffers(self, device: Device, count: int) -> int:
        if count < 1:
            raise OSError(errno.EINVAL, device.id)
        await self._free(device)
        self.server.buffers[device.id] = count
        return 0

    def release(self, name: str) -> None:
        """Close a buffer of this client."""
        self.open.pop(name).stream.close()
        self.server.owners.pop(name, None)

    def _opened(self, device: Device) -> Opened:
        opened = self.open.get(device.id)
        if opened is None or opened.dead:
            raise OSError(errno.EBADF, device.id)
        return opened

    async def _ready(self, opened: Opened) -> None:
        """Wait until a block can be moved; error ETIMEDOUT, or the client's own leaving."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self.server.timeout_s if self.server.timeout_s else float("inf")
        while (wait_s := opened.stream.wait_s()) > 0.0:
            left_s = deadline - clock()
            if left_s <= 0.0:
                opened.dead = True
                raise OSError(errno.ETIMEDOUT, "timeout")
            if self.reader.at_eof():
                raise ConnectionResetError
            await asyncio.sleep(min(wait_s, left_s, POLL_S))

    async def _read_buffer(self, device: Device, size: int) -> int | None:
        """Send ``size`` bytes, a block at a time; a libiio client asks for one block and wants it in one piece."""
        opened = self._opened(device)
        if size < opened.step:
            return 0
        mask = f"{opened.mask}\n".encode()
        while size >= opened.step:
            await self._ready(opened)
            block = opened.stream.take()[:size]
            self.writer.write(b"".join((b"%d\n" % len(block), mask, block)))
            size, mask = size - len(block), b""
        return 0 if size else None

    async def _write_buffer(self, device: Device, size: int) -> int:
        """Take ``size`` bytes, a block at a time."""
        opened = self._opened(device)
        if size < opened.step:
            return 0
        self.writer.write(b"0\n")
        left = size
        while left >= opened.step:
            block = await self.reader.readexactly(min(left, opened.block))
            if opened.cyclic and opened.filled:
                raise OSError(errno.EBUSY, device.id)
            await self._ready(opened)
            opened.stream.put(block)
            opened.filled = True
            left -= len(block)
        return size - left


def _code(error: Exception) -> int:
    """Give the number that stands for a failure."""
    if isinstance(error, OSError):
        return -(error.errno or errno.EIO)
    return -errno.EINVAL if isinstance(error, RadioRefused) else -errno.EIO


def _packed(attribute: Attribute) -> bytes:
    try:
        value = attribute.read().encode() + b"\0"
    except FAILURES as error:
        return struct.pack(">i", _code(error))
    return struct.pack(">i", len(value)) + value + bytes(-len(value) % 4)


_HELP = b"""Commands:
HELP, EXIT, PRINT, VERSION
TIMEOUT <milliseconds>
OPEN <device> <samples> <mask> [CYCLIC], CLOSE <device>
READ <device> [DEBUG|BUFFER|INPUT <channel>|OUTPUT <channel>] [<attribute>]
WRITE <device> [DEBUG|BUFFER|INPUT <channel>|OUTPUT <channel>] <attribute> <bytes>
READBUF <device> <bytes>, WRITEBUF <device> <bytes>
GETTRIG <device>, SETTRIG <device> [<trigger>]
SET <device> BUFFERS_COUNT <count>
"""
