"""The virtual Pluto judged by others: real libiio and pyadi-iio, Debian's iiod, and the dump of a real Pluto."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import shutil
import socket
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import parts
import pytest
from standin import StandIn

from radio.pluto_board import describe
from radio.virtual_pluto import VirtualPluto, VirtualPlutos

tools = pytest.mark.skipif(shutil.which("iio_info") is None, reason="apt install libiio-utils")
dump = pytest.mark.skipif(importlib.util.find_spec("pytest_libiio") is None, reason="pip install pytest-libiio")

ADC, DAC, PHY = "cf-ad9361-lpc", "cf-ad9361-dds-core-lpc", "ad9361-phy"


class Served:
    """A virtual Pluto on a stand-in, and everything that a test opened on it, closed in the order that is safe."""

    def __init__(self) -> None:
        self.radio = StandIn()
        self.pluto = VirtualPluto(self.radio, "1044730a1997000d12003e00")
        self.plutos = VirtualPlutos([self.pluto])
        self.plutos.start()
        self.uri = self.pluto.uri
        self.exits = contextlib.ExitStack()

    def adi(self, uri: str = "") -> Any:
        import adi

        sdr = adi.Pluto(uri or self.uri)
        # libiio crashes when a context goes before its buffers
        self.exits.callback(lambda: (sdr.rx_destroy_buffer(), sdr.tx_destroy_buffer()))
        return sdr

    def close(self) -> None:
        self.exits.close()
        self.plutos.stop()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


def fails(call: Callable[[], Any]) -> int:
    """Give the error number of a call. No traceback is kept: it would keep buffers alive that are to be destroyed."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    pytest.fail("no error")


def ramp(start: int, count: int) -> np.ndarray:
    """Give what the stand-in receives."""
    index = np.arange(start, start + count) % 2048
    return index - 1j * index


@parts.libiio
def test_every_property_of_pyadi_is_read_back(served: Served, tmp_path: Path) -> None:
    sdr = served.adi()
    for rate in (600_000, 1_000_000, 2_083_334, 4_000_000, 30_720_000, 61_440_000, 1_000_000):
        sdr.sample_rate = rate
        assert sdr.sample_rate == rate == served.radio.config.rate_hz
    sdr.rx_lo, sdr.tx_lo = 915_000_000, 868_000_000
    sdr.rx_rf_bandwidth, sdr.tx_rf_bandwidth = 1_000_000, 2_000_000
    sdr.gain_control_mode_chan0 = "manual"
    sdr.rx_hardwaregain_chan0, sdr.tx_hardwaregain_chan0 = 40, -20.25
    sdr.loopback = 1
    assert (sdr.rx_lo, sdr.tx_lo) == (915_000_000, 868_000_000)
    assert (sdr.rx_rf_bandwidth, sdr.tx_rf_bandwidth) == (1_000_000, 2_000_000)
    assert (sdr.gain_control_mode_chan0, sdr.rx_hardwaregain_chan0, sdr.tx_hardwaregain_chan0) == ("manual", 40, -20.25)
    assert sdr.loopback == 1
    assert "915.0" in repr(sdr) and sdr.filter == [128.0, 4.0, 128.0, 4.0]
    config = served.radio.config
    assert (config.rx_hz, config.tx_hz, config.rx_gain_db, config.tx_attenuation_db) == (915e6, 868e6, 40.0, 20.25)
    assert served.radio.manual_gain
    file = tmp_path / "taps.ftr"
    file.write_text("RX 3 GAIN -6 DEC 2\nTX 3 GAIN 0 INT 2\n" + "5,5\n" * 64)
    sdr.filter = str(file)
    assert sdr.filter == [64.0, 2.0, 64.0, 2.0]
    sdr.rx_dec8_filter_en = True
    assert sdr.rx_dec8_filter_en and sdr.sample_rate == 3_000_000
    sdr.dds_single_tone(100_000, 0.5)
    assert float(sdr.dds_frequencies[0]) == 100_000


@parts.libiio
def test_pyadi_meets_the_errors_of_a_pluto(served: Served) -> None:
    sdr = served.adi()
    assert fails(lambda: setattr(sdr, "rx_lo", 100_000_000)) == errno.EINVAL
    assert fails(lambda: setattr(sdr, "tx_hardwaregain_chan0", 1)) == errno.EINVAL
    sdr.rx_hardwaregain_chan0 = 10
    assert sdr.rx_hardwaregain_chan0 == 71, "pyadi keeps silent about a gain that is automatic"
    gain = sdr._ctrl.find_channel("voltage0", False).attrs["hardwaregain"]
    assert fails(lambda: setattr(gain, "value", "10")) == errno.EOPNOTSUPP
    with pytest.raises(ValueError):
        sdr.sample_rate = 500_000


@parts.libiio
def test_samples_go_through_pyadi_unchanged(served: Served) -> None:
    sdr = served.adi()
    sdr.rx_buffer_size = 5000
    got = np.concatenate([sdr.rx() for _ in range(5)])
    np.testing.assert_array_equal(got, ramp(0, 25_000))
    rng = np.random.default_rng(1)
    sent = rng.integers(-(2**15), 2**15, (6, 4096, 2))
    for block in sent:
        sdr.tx(block @ [1, 1j])
    np.testing.assert_array_equal(served.radio.sent, sent)
    assert served.radio.opened == {"rx": (5000, 4, False), "tx": (4096, 4, False)}
    sdr.rx_destroy_buffer()
    sdr.tx_destroy_buffer()
    assert not served.radio.opened


@parts.libiio
def test_a_cyclic_buffer_can_be_made_200_times(served: Served) -> None:
    sdr = served.adi()
    sdr.tx_cyclic_buffer = True
    for number in range(200):
        sdr.tx(np.full(1024, number * 16, complex))
        sdr.tx_destroy_buffer()
    assert [int(block[0, 0]) for block in served.radio.sent] == [number * 16 for number in range(200)]


@parts.libiio
def test_kernel_buffers_are_counted_and_a_buffer_is_exclusive(served: Served) -> None:
    import iio

    first, second = iio.Context(served.uri), iio.Context(served.uri)
    device, other = first.find_device(ADC), second.find_device(ADC)
    device.set_kernel_buffers_count(9)
    for channel in (*device.channels, other.channels[0]):
        channel.enabled = True
    buffer = iio.Buffer(device, 256)
    assert served.radio.opened["rx"] == (256, 9, False)
    assert fails(lambda: iio.Buffer(other, 256)) == errno.EBUSY
    del buffer
    buffer = iio.Buffer(other, 128)
    buffer.refill()
    assert buffer.step == 2
    np.testing.assert_array_equal(np.frombuffer(buffer.read(), np.int16), np.arange(128))
    del buffer


@parts.libiio
def test_a_blocked_refill_can_be_cancelled_and_the_device_is_free_again(served: Served) -> None:
    import iio

    context = iio.Context(served.uri)
    device = context.find_device(ADC)
    for channel in device.channels:
        channel.enabled = True
    buffer = iio.Buffer(device, 256)
    buffer.refill()
    served.radio.stalled = True
    cancel = threading.Timer(0.2, buffer.cancel)
    cancel.start()
    assert fails(buffer.refill) == errno.EBADF
    cancel.join()
    del buffer, cancel
    served.radio.stalled = False
    buffer = iio.Buffer(device, 256)
    buffer.refill()
    del buffer


@parts.libiio
def test_a_stalled_device_times_out_at_half_the_time_of_the_client(served: Served) -> None:
    sdr = served.adi()
    sdr._ctx.set_timeout(600)
    sdr.rx()
    sdr.tx(np.zeros(1024, complex))
    served.radio.stalled = True
    for call in (sdr.rx, lambda: [sdr.tx(np.zeros(1024, complex)) for _ in range(3)]):
        before = time.monotonic()
        assert fails(call) == errno.ETIMEDOUT and 0.25 < time.monotonic() - before < 0.58
    assert sdr.rx_lo == 2_400_000_000, "settings still answer"


@parts.libiio
def test_a_buffer_longer_than_the_time_out_needs_another_time_out(served: Served) -> None:
    sdr = served.adi()
    sdr.sample_rate = 2_500_000
    sdr.rx_buffer_size = 1_000_000  # 0.4 s
    sdr._ctx.set_timeout(400)
    assert fails(sdr.rx) == errno.ETIMEDOUT
    sdr.rx_destroy_buffer()
    sdr._ctx.set_timeout(4000)
    np.testing.assert_array_equal(sdr.rx(), ramp(0, 1_000_000))


@parts.libiio
def test_a_server_that_is_gone_is_noticed(served: Served) -> None:
    sdr = served.adi()
    sdr.rx()
    served.plutos.stop()
    for call in (sdr.rx, lambda: sdr.rx_lo):
        assert fails(call) in (errno.EPIPE, errno.ECONNRESET)
    with pytest.raises(Exception, match="No device found"):
        served.adi()


@parts.libiio
def test_an_unplugged_pluto_is_found_again_as_switched_on(served: Served) -> None:
    sdr = served.adi()
    sdr.rx_lo = 915_000_000
    sdr.rx()
    served.radio.gone = True
    assert fails(lambda: [sdr.rx() for _ in range(10_000)]) in (errno.EPIPE, errno.ECONNRESET)
    served.radio.gone = False
    for _ in range(50):
        try:
            back = served.adi()
            break
        except Exception:  # noqa: BLE001  pyadi has no class of its own
            time.sleep(0.02)
    assert len(back.rx()) == 1024


@parts.libiio
def test_three_threads_share_one_pluto(served: Served) -> None:
    sdr = served.adi()
    sdr.sample_rate = 4_000_000
    sdr.rx_buffer_size = 4096
    counts, failed = {"rx": 0, "tx": 0, "set": 0}, []
    end = time.monotonic() + 1.0

    def repeat(name: str, call: Any) -> None:
        try:
            while time.monotonic() < end:
                call(counts[name])
                counts[name] += 1
        except Exception as error:  # noqa: BLE001  any failure counts
            failed.append((name, error))

    def receive(number: int) -> None:
        np.testing.assert_array_equal(sdr.rx(), ramp(4096 * number, 4096))

    def configure(number: int) -> None:
        sdr.tx_lo = 900_000_000 + 2 * number
        assert sdr.tx_lo == 900_000_000 + 2 * number

    block = np.ones(4096, complex)
    calls = {"rx": receive, "tx": lambda _: sdr.tx(block), "set": configure}
    threads = [threading.Thread(target=repeat, args=item) for item in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and min(counts.values()) > 20, counts


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, timeout=20.0, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace")


@tools
def test_the_tools_of_libiio_work(served: Served) -> None:
    text = run("iio_info", "-u", served.uri)
    assert "hw_serial: 1044730a1997000d12003e00" in text and "4 devices" in text and "ERROR" not in text
    run("iio_attr", "-u", served.uri, "-c", "-o", PHY, "RX_LO", "frequency", "915000000")
    assert served.radio.config.rx_hz == 915e6
    assert run("iio_attr", "-u", served.uri, "-D", PHY, "loopback").strip() == "0"
    assert "v0." in run("iio_attr", "-u", served.uri, "-C", "fw_version")
    done = subprocess.run(
        ["iio_readdev", "-u", served.uri, "-b", "1024", "-s", "4096", ADC], capture_output=True, timeout=20, check=True
    )
    np.testing.assert_array_equal(np.frombuffer(done.stdout, "<i2").reshape(-1, 2) @ [1, 1j], ramp(0, 4096))
    served.radio.overflowed = True
    assert run("iio_reg", "-u", served.uri, ADC, "0x80000088").strip() == "0x4"
    run("iio_reg", "-u", served.uri, ADC, "0x80000088", "0x4")
    assert run("iio_reg", "-u", served.uri, ADC, "0x80000088").strip() == "0x0"


@tools
def test_the_tool_that_writes_samples_works(served: Served) -> None:
    data = np.arange(8192, dtype="<i2")
    subprocess.run(
        ["iio_writedev", "-u", served.uri, "-b", "1024", "-s", "4096", DAC],
        input=data.tobytes(), capture_output=True, timeout=20, check=True,
    )  # fmt: skip
    np.testing.assert_array_equal(np.concatenate(served.radio.sent).reshape(-1), data)


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


@dump
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
