"""The virtual Pluto judged by its clients: real libiio, pyadi-iio, and the tools of libiio."""

from __future__ import annotations

import errno
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import parts
import pytest
from standin import Served, fails, ramp

ADC, DAC, PHY = "cf-ad9361-lpc", "cf-ad9361-dds-core-lpc", "ad9361-phy"


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


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


@parts.iio_tools
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


@parts.iio_tools
def test_the_tool_that_writes_samples_works(served: Served) -> None:
    data = np.arange(8192, dtype="<i2")
    subprocess.run(
        ["iio_writedev", "-u", served.uri, "-b", "1024", "-s", "4096", DAC],
        input=data.tobytes(), capture_output=True, timeout=20, check=True,
    )  # fmt: skip
    np.testing.assert_array_equal(np.concatenate(served.radio.sent).reshape(-1), data)
