"""Bursts land on their index, losses are told from delays, nothing wraps: against plain models, without a device."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radio.errors import TooLate
from radio.pairs import to_pairs
from radio.pluto_stream import Pace, Streams, TxQueue
from radio.ring import RxRing

BLOCK, QUEUE = 4096, 6 * 4096


def pairs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1000, (count, 2), dtype=np.int16)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 70)), max_size=20))
def test_bursts_of_any_length_land_on_their_index(plan):
    queue, sent = TxQueue("r"), np.zeros((4096, 2), np.int16)
    out, end = [], 0
    for number, (gap, count) in enumerate(plan):
        burst = pairs(count, number)
        start = queue.add(burst, max(end, queue.head) + gap)
        sent[start : start + count] = burst
        end = start + count
        if number % 3 == 0:
            out.append(np.full((16, 2), 77, np.int16))  # left over from earlier, as in memory that is used again
            queue.compose(out[-1])
    while queue.head < 2048:
        out.append(np.full((16, 2), 77, np.int16))
        queue.compose(out[-1])
    assert np.array_equal(np.concatenate(out), sent[: queue.head])


def test_too_late_says_by_how_much_and_keeps_the_queue():
    queue = TxQueue("r")
    queue.restart(1000)
    assert queue.add(pairs(100), None) == 1000
    assert (queue.earliest(), queue.earliest(500)) == (1100, 1500)
    with pytest.raises(TooLate, match="1099") as caught:
        queue.add(pairs(10), 1099)
    assert caught.value.late_samples == 1
    block = np.zeros((200, 2), np.int16)
    queue.compose(block)
    assert np.array_equal(block[:100], pairs(100)) and not block[100:].any()
    with pytest.raises(TooLate) as caught:
        queue.check(1150)
    assert caught.value.late_samples == 50


def test_clearing_drops_all_that_is_not_handed_over():
    queue = TxQueue("r")
    queue.add(pairs(300), 50)
    block = np.zeros((100, 2), np.int16)
    queue.compose(block)
    assert block[50:].all()
    queue.clear()
    queue.compose(block)
    assert not block.any() and queue.earliest() == 200


def test_scaling_is_twelve_bits_and_saturates():
    x = np.array([1, -1, 0.5j, 1.25 - 3j, -1.5, 0.1 + 0.1j, 40000 / 32768], np.complex64)
    got, clipped = to_pairs(x, 12)
    assert got.dtype == np.int16 and clipped == 3
    assert got.tolist() == [
        [32752, 0], [-32768, 0], [0, 16384], [32752, -32768], [-32768, 0], [3280, 3280], [32752, 0]
    ]  # fmt: skip
    draw = np.random.default_rng(1)
    noise = (0.1 * (draw.standard_normal(50_000) + 1j * draw.standard_normal(50_000))).astype(np.complex64)
    error = to_pairs(noise, 12)[0].astype(float).view(complex)[:, 0] / 2**15 - noise
    assert abs(error.mean()) < 0.02 / 2048  # rounded, not cut: no constant offset
    assert np.abs(error.view(float)).max() <= 0.5 / 2048 + 1e-6


def run(pace: Pace, rate_hz: float, times: np.ndarray) -> list[int]:
    return [pace.count(BLOCK, float(t)) for t in times]


@pytest.mark.parametrize("ppm", [-50, 0, 50])
def test_delays_of_the_host_are_no_losses(ppm):
    draw = np.random.default_rng(2)
    true = np.arange(50_000) * BLOCK / 1e6 * (1 + ppm * 1e-6)  # three minutes
    late = true + draw.exponential(1e-3, true.size)
    for begin in draw.integers(0, true.size, 200):  # the host sleeps through what the queue can hold
        late[begin : begin + 4] = np.maximum(late[begin : begin + 4], true[begin] + 3.9 * BLOCK / 1e6)
    assert not any(run(Pace(1e6, QUEUE, BLOCK // 2), 1e6, np.maximum.accumulate(late)))


def test_a_start_late_by_the_latency_of_the_device_is_no_loss():
    times = np.concatenate([np.zeros(5), 0.03 + np.arange(3000) * BLOCK / 1e6])
    assert not any(run(Pace(1e6, QUEUE, BLOCK // 2), 1e6, times))


@pytest.mark.parametrize("lost", [7 * BLOCK, 123_456])
def test_a_loss_is_told_once_with_its_size(lost):
    draw = np.random.default_rng(3)
    times = np.arange(3000) * BLOCK / 1e6 + draw.exponential(2e-4, 3000)
    times[2000:] += lost / 1e6
    told = run(Pace(1e6, QUEUE, BLOCK // 2), 1e6, times)
    assert [i for i, n in enumerate(told) if n] == [2000]
    assert abs(told[2000] - lost) < 0.003 * 1e6


@pytest.mark.parametrize("ppm", [-50, 50])
def test_a_small_loss_is_told_within_three_seconds(ppm):
    draw = np.random.default_rng(4)
    times = np.arange(10_000) * BLOCK / 1e6 * (1 + ppm * 1e-6) + draw.exponential(1e-3, 10_000)
    times[5000:] += 0.75 * BLOCK / 1e6
    told = run(Pace(1e6, QUEUE, BLOCK // 2), 1e6, times)
    found = [i for i, n in enumerate(told) if n]
    assert len(found) == 1 and 5000 < found[0] < 5000 + 3.0 * 1e6 / BLOCK
    assert told[found[0]] == pytest.approx(0.75 * BLOCK, abs=0.1 * BLOCK)


def test_what_is_due_does_not_depend_on_delays():
    pace, times = Pace(1e6, QUEUE, BLOCK // 2), np.arange(1, 1000) * BLOCK / 1e6
    for time_s in times:
        pace.count(BLOCK, float(time_s))
    assert pace.due(float(times[-1])) == pytest.approx(999 * BLOCK, abs=1)
    assert pace.due(float(times[-1]) + 0.1) == pytest.approx(999 * BLOCK + 100_000, abs=1)  # the host is behind


class FakePort:
    """A device of perfect pace: a block of 64 every millisecond, or stalled, or gone."""

    buffers = 4

    def __init__(self) -> None:
        self.block = np.zeros((64, 2), np.int16)
        self.count, self.moves, self.gone = 0, threading.Event(), False
        self.pushed: list[np.ndarray] = []
        self.moves.set()

    def refill(self) -> None:
        self.moves.wait()
        if self.gone:
            raise OSError(32, "Broken pipe")
        time.sleep(1e-3)
        self.block[:] = self.count
        self.count += 1

    def push(self) -> None:
        self.refill()
        self.pushed.append(self.block.copy())

    def cancel(self) -> None:
        self.gone = True
        self.moves.set()

    def samples(self) -> np.ndarray:
        return self.block

    def close(self) -> None:
        pass


@pytest.fixture
def streaming():
    rx, tx, ring, queue = FakePort(), FakePort(), RxRing(1 << 16, 2**11), TxQueue("r")
    streams = Streams(rx, tx, ring, queue, 64e3, 64)
    yield streams, rx, tx, ring, queue
    assert streams.stop(2.0)


def test_blocks_left_over_at_the_head_are_dropped(streaming):
    _, _, _, ring, _ = streaming
    samples, start, _, events = ring.take(640, None, 1.0)
    assert start == 0 and events == ()
    assert np.array_equal(samples.real * 2048, np.repeat(np.arange(4, 14), 64))


def test_a_device_that_stands_still_is_noticed_and_let_go_of(streaming):
    streams, rx, _, ring, _ = streaming
    ring.take(64, None, 1.0)
    assert streams.trouble(0.5) == ""
    rx.moves.clear()
    time.sleep(0.3)
    assert "no block moved" in streams.trouble(0.2)
    assert streams.stop(2.0)  # by cancelling: the thread waits in the device


def test_an_error_of_the_device_is_told(streaming):
    streams, rx, _, ring, _ = streaming
    ring.take(64, None, 1.0)
    rx.gone = True
    time.sleep(0.1)
    assert "Broken pipe (errno 32)" in streams.trouble(10.0)
