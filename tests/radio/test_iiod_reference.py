"""The virtual Pluto beside its like: Debian's iiod, in front of it and reply by reply, and the dump of a real Pluto."""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import parts
import pytest
from standin import Served, StandIn, fails, ramp

from radio.pluto_board import describe

DAC, PHY = "cf-ad9361-dds-core-lpc", "ad9361-phy"


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


class Reference:
    """Debian's iiod in front of a virtual Pluto: what a real one would answer with this Pluto's context."""

    def __init__(self, uri: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        path = shutil.which("iiod", path="/usr/sbin:/usr/bin")
        assert path is not None
        self.process = subprocess.Popen(
            [path, "-u", uri, "-p", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.uri = f"ip:127.0.0.1:{self.port}"
        deadline = time.monotonic() + 10.0
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self.port), timeout=2.0).close()
                return
            assert time.monotonic() < deadline and self.process.poll() is None, "iiod did not start"
            time.sleep(0.02)

    def close(self) -> None:
        self.process.kill()  # it does not end by a gentler signal while a client is connected
        self.process.wait()


@pytest.fixture
def reference(served: Served) -> Iterator[Reference]:
    reference = Reference(served.uri)
    yield reference
    served.exits.close()
    reference.close()


@parts.iiod
@parts.libiio
def test_debians_iiod_can_stand_in_front(served: Served, reference: Reference) -> None:
    sdr = served.adi(reference.uri)
    sdr.sample_rate = 1_000_000
    sdr.rx_lo = 915_000_000
    sdr.gain_control_mode_chan0 = "manual"
    sdr.rx_hardwaregain_chan0 = 33
    assert (sdr.sample_rate, sdr.rx_lo, sdr.rx_hardwaregain_chan0) == (1_000_000, 915_000_000, 33)
    assert served.radio.config.rx_gain_db == 33.0
    assert fails(lambda: setattr(sdr, "rx_lo", 1)) == errno.EINVAL
    sdr.sample_rate = 4_000_000
    sdr.rx_buffer_size = 4096
    np.testing.assert_array_equal(np.concatenate([sdr.rx() for _ in range(20)]), ramp(0, 20 * 4096))
    for number in range(20):
        sdr.tx(np.full(1024, number, complex))
    sdr.tx_destroy_buffer()
    assert [int(block[0, 0]) for block in served.radio.sent] == list(range(20))
    sdr.tx_cyclic_buffer = True
    for number in range(10):
        sdr.tx(np.full(1024, 1000 + number, complex))
        assert served.radio.opened["tx"][2]
        sdr.tx_destroy_buffer()
    assert [int(block[0, 0]) for block in served.radio.sent[20:]] == list(range(1000, 1010))


X = "x" * 1024
FREE = "iio:device3 256 00000003"
PLAY = "iio:device2 256 00000003"
PROBES = [
    "version x", "Version", "TIMEOUT", "TIMEOUT 2500", "timeout 2500", "TIMEOUT abc", "TIMEOUT 1 2", "FOO", "ZPRINT",
    "", "   ", " VERSION", "READ", "READ foo bar", "READ iio:device0 foo", "READ ad9361-phy ensm_mode",
    "READ\tiio:device0\tensm_mode ", "read iio:device0 output altvoltage0 frequency",
    "READ iio:device0 INPUT voltage0 gain_control_mode", "READ iio:device0 OUTPUT RX_LO frequency",
    "READ iio:device0 INPUT foo bar", "READ foo INPUT foo bar", "READ iio:device0 INPUT voltage0 foo",
    "READ iio:device0 DEBUG loopback", "READ iio:device0 DEBUG foo", "READ iio:device3 BUFFER watermark",
    "READ iio:device3 BUFFER foo", "READ iio:device0 a b c", "READ iio:device0", "READ iio:device0 INPUT voltage0",
    "READ iio:device0 DEBUG", "READ iio:device3 BUFFER", "READ iio:device0 INPUT", "READ iio:device0 $%",
    "READ iio:device1 INPUT temp0 raw", "WRITE iio:device0 ensm_mode 4\r\nfdd\0", "WRITE iio:device0 foo 4\r\nfdd\0",
    "WRITE iio:device0 OUTPUT voltage0 hardwaregain 4\r\n-10\0",
    "WRITE iio:device0 OUTPUT voltage0 hardwaregain 3\r\n10\0",
    "WRITE iio:device0 OUTPUT voltage0 hardwaregain_available 3\r\n10\0",
    "WRITE iio:device0 INPUT voltage0 hardwaregain 3\r\n10\0", "WRITE iio:device0 INPUT foo bar 3\r\n10\0",
    "WRITE iio:device0 DEBUG loopback 2\r\n0\0", "WRITE iio:device0 DEBUG loopback 2\r\n7\0",
    "WRITE iio:device3 BUFFER watermark 3\r\n64\0", "WRITE iio:device0 OUTPUT altvoltage0 frequency 2\r\n1\0",
    "WRITE iio:device0 OUTPUT altvoltage0 frequency 0", "WRITE iio:device0 ensm_mode abc",
    f"OPEN {FREE}", "OPEN cf-ad9361-lpc 256 00000003", "OPEN iio:device3 256 00000001", "OPEN iio:device3 256 3",
    "OPEN iio:device3 256 00000000", "OPEN foo 256 00000003", "OPEN iio:device0 256 00000003", f"OPEN {FREE} FOO",
    "OPEN iio:device3 256", "OPEN iio:device3 0 00000003", f"OPEN {FREE} CYCLIC", "OPEN iio:device3 256 00000007",
    "OPEN iio:device3 256 0000000g", f"OPEN {PLAY}\r\nREADBUF iio:device2 1024",
    f"OPEN {FREE}\r\nCLOSE iio:device3\r\nCLOSE iio:device3", f"OPEN {FREE}\r\nREADBUF iio:device3 1024",
    f"OPEN {FREE}\r\nREADBUF iio:device3 0", f"OPEN {FREE}\r\nREADBUF iio:device3 3",
    f"OPEN {FREE}\r\nREADBUF iio:device3 512", f"OPEN {FREE}\r\nREADBUF iio:device3 2048",
    f"OPEN {FREE}\r\nREADBUF iio:device3 1026", f"OPEN {PLAY}\r\nWRITEBUF iio:device2 1024\r\n{X}",
    f"OPEN {PLAY}\r\nWRITEBUF iio:device2 512\r\n{X[:512]}", f"OPEN {PLAY}\r\nWRITEBUF iio:device2 2048\r\n{X}{X}",
    f"OPEN {PLAY}\r\nWRITEBUF iio:device2 0", f"OPEN {PLAY}\r\nWRITEBUF iio:device2 3",
    f"OPEN {PLAY} CYCLIC\r\nWRITEBUF iio:device2 1024\r\n{X}",
    "READBUF iio:device3 1024", "READBUF foo 1024", "WRITEBUF iio:device2 1024", "WRITEBUF foo 1024",
    "READBUF iio:device3", "CLOSE iio:device3", "CLOSE foo", "CLOSE", "GETTRIG iio:device3", "GETTRIG foo",
    "SETTRIG iio:device3", "SETTRIG iio:device3 foo", "SETTRIG foo", "SETTRIG iio:device3 iio:device0",
    "SET iio:device3 BUFFERS_COUNT 4", "SET iio:device3 BUFFERS_COUNT 0", "SET iio:device3 BUFFERS_COUNT",
    "SET foo BUFFERS_COUNT 4", "SET iio:device3 FOO 4", "EXIT now",
]  # fmt: skip
# One more cannot be asked: a second OPEN on the same connection is shared there, and never given back.
DIFFERENT = {
    "PRINT": "the DTD is spread over lines",
    "VERSION": "the tag of another program",
    "HELP": "said in other words",
    "WRITE foo bar 3\r\n10\0": "the bytes for an unknown device are not taken for a command here",
    "$%&": "every line that is no command has an answer here",
}


def talk(port: int, script: str) -> bytes:
    """Send lines and a farewell, and give everything that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=5.0) as connection:
        connection.sendall(script.encode() + b"\r\nEXIT\r\n")
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    return answer


@parts.iiod
def test_debians_iiod_answers_alike(served: Served, reference: Reference) -> None:
    """Send the same lines to both; where the real one is asked, it asks this server in turn for values alone."""
    assert len(PROBES) > 90
    for script in PROBES:
        ours, theirs = talk(served.pluto.port, script), talk(reference.port, script)
        assert ours == theirs, f"{script[:80]!r}"
    for script, reason in DIFFERENT.items():
        assert talk(served.pluto.port, script) != talk(reference.port, script), f"no longer: {reason}"


def facts(root: ElementTree.Element) -> set[tuple[str | None, ...]]:
    """List everything a context says it has: devices, channels, formats, attributes and their files."""
    found: set[tuple[str | None, ...]] = {("", a.get("name")) for a in root.findall("context-attribute")}
    for device in root.findall("device"):
        name = device.get("name")
        found.add((device.get("id"), name))
        for channel in device.findall("channel"):
            key = (name, channel.get("type"), channel.get("id"), channel.get("name"))
            found.add(key)
            for scan in channel.findall("scan-element"):
                found.add((*key, scan.get("index"), scan.get("format")))
            for attribute in channel.findall("attribute"):
                found.add((*key, attribute.get("name"), attribute.get("filename")))
        for kind in ("attribute", "buffer-attribute", "debug-attribute"):
            found |= {(name, kind, attribute.get("name")) for attribute in device.findall(kind)}
    return found


def values(root: ElementTree.Element) -> dict[tuple[str | None, ...], str | None]:
    """Give the values that the attributes of devices and channels had when the dump was made."""
    found: dict[tuple[str | None, ...], str | None] = {}
    for device in root.findall("device"):
        for kind in ("attribute", "buffer-attribute", "debug-attribute"):
            for attribute in device.findall(kind):
                found[device.get("name"), kind, attribute.get("name")] = attribute.get("value")
        for channel in device.findall("channel"):
            for attribute in channel.findall("attribute"):
                key = (device.get("name"), channel.get("type"), channel.get("id"), attribute.get("name"))
                found[key] = attribute.get("value")
    return found


OTHER_VALUES = {
    (PHY, "attribute", "rx_path_rates"): "that unit's crystal is 4 ppm off and corrected, so its PLL differs",
    (PHY, "attribute", "tx_path_rates"): "as it boots, from the device tree; here as the driver computes it",
    (DAC, "debug-attribute", "direct_reg_access"): "another register had been chosen",
}


@parts.pluto_dump
def test_nothing_is_invented() -> None:
    import pytest_libiio

    path = Path(pytest_libiio.__file__).parent / "resources" / "devices" / "pluto.xml"
    real = ElementTree.parse(path).getroot()
    context = describe(StandIn(), "1", "127.0.0.1")
    ours = facts(ElementTree.fromstring(context.xml()))
    assert len(ours) > 170 and ours <= facts(real), sorted(map(str, ours - facts(real)))
    measured = values(real)
    for device in context.devices:
        groups = [("attribute", device.attributes), ("buffer-attribute", device.buffer)]
        named = {
            (device.name, kind, name): attribute
            for kind, group in (*groups, ("debug-attribute", device.debug))
            for name, attribute in group.items()
        }
        for channel in device.channels:
            direction = "output" if channel.output else "input"
            for name, attribute in channel.attributes.items():
                named[device.name, direction, channel.id, name] = attribute  # type: ignore[index]
        for key, attribute in named.items():
            if key not in OTHER_VALUES:
                assert attribute.read() == measured[key], key
