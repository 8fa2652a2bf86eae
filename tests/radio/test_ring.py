"""The ring keeps every sample under its index: against a plain list, across threads, over gaps and restarts."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radio.base import StreamEvent
from radio.errors import RadioError, RadioRefused
from radio.ring import RxRing


def counter(start: int, count: int) -> np.ndarray:
    """Samples that tell their own index modulo 2000, I up and Q down."""
    index = np.arange(start, start + count) % 2000
    return np.stack([index, -index], axis=1).astype(np.int16)


def expected(start: int, count: int) -> np.ndarray:
    index = np.arange(start, start + count) % 2000
    return ((index - 1j * index) / 2048).astype(np.complex64)


def filled(count: int, capacity: int = 1000, block: int = 100) -> RxRing:
    ring = RxRing(capacity, 2**11, "r")
    for index in range(0, count, block):
        ring.append(counter(index, min(block, count - index)), index)
    return ring


def test_samples_come_back_exactly_as_complex64():
    samples, start, clipped, events = filled(700).take(700, None, 1.0)
    assert samples.dtype == np.complex64
    assert np.array_equal(samples, expected(0, 700))  # a power of two scales without rounding
    assert (start, clipped, events) == (0, 0, ())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.lists(st.integers(0, 50), max_size=30))
def test_any_blocks_and_any_reads_agree_with_a_plain_list(blocks, reads):
    ring, written, cursor = RxRing(64, 2**11), 0, 0
    takes = iter(reads)
    for block in blocks:
        ring.append(counter(written, block), written)
        written += block
        cursor = max(cursor, written - 64)
        assert (ring.now, ring.newest) == (cursor, written)
        count = min(next(takes, 0), written - cursor)
        samples, start, _, _ = ring.take(count, None, 0.1)
        assert start == cursor and np.array_equal(samples, expected(start, count))
        cursor += count


def test_unread_samples_leave_silently_and_taken_ones_are_gone():
    ring = filled(1500)
    assert (ring.now, ring.newest) == (500, 1500)
    samples, start, _, events = ring.take(10, 600, 1.0)
    assert np.array_equal(samples, expected(600, 10)) and (start, events, ring.now) == (600, (), 610)
    for past in (609, 0):
        with pytest.raises(RadioRefused, match=f"{past} lies before 610"):
            ring.take(1, past, 1.0)
    assert ring.now == 610


def test_rails_are_counted_per_sample_at_either_scale():
    for scale in (2**11, 2**15):
        ring = RxRing(16, scale)
        top, bottom = scale - 1, -scale
        ring.append(np.array([[top, 0], [0, bottom], [top, bottom], [top - 1, bottom + 1], [0, 0]], np.int16), 0)
        samples, _, clipped, _ = ring.take(5, None, 1.0)
        assert clipped == 3
        assert samples[1] == -1j and samples[0] == np.complex64(1 - 1 / scale)


def test_a_jump_is_zeros_and_a_lost_event_on_the_captures_it_touches():
    ring = filled(200)
    ring.append(counter(350, 50), 350)
    lost = StreamEvent("lost", 200, 150)
    assert ring.newest == 400
    assert ring.take(200, 0, 1.0)[3] == ()
    samples, _, _, events = ring.take(100, 250, 1.0)
    assert not samples.any() and events == (lost,)
    samples, _, _, events = ring.take(50, None, 1.0)
    assert np.array_equal(samples, expected(350, 50)) and events == ()


def test_a_jump_beyond_the_capacity_leaves_zeros_only():
    ring = filled(1000)
    ring.append(counter(10_000, 100), 10_000)
    samples, start, _, events = ring.take(1000, None, 1.0)
    assert start == 9100 and not samples[:900].any() and np.array_equal(samples[900:], expected(10_000, 100))
    assert events == (StreamEvent("lost", 1000, 9000),)


def test_the_past_cannot_be_written():
    with pytest.raises(ValueError, match="99 follows one that ended at 100"):
        filled(100).append(counter(99, 10), 99)


def test_events_of_the_device_go_with_their_samples():
    ring = RxRing(100, 2**11)
    overflow = StreamEvent("overflow", 50, 0)
    ring.append(counter(0, 60), 0, (overflow,))
    assert ring.take(50, None, 1.0)[3] == ()
    assert ring.take(10, None, 1.0)[3] == (overflow,)
    ring.append(counter(60, 100), 60)
    assert ring.take(1, None, 1.0)[3] == ()


def test_a_reader_waits_for_what_has_not_arrived_and_may_ask_for_more_than_the_ring_holds():
    ring = RxRing(1000, 2**11)
    got = {}

    def read():
        got["all"] = ring.take(10_000, 500, 5.0)

    reader = threading.Thread(target=read)
    reader.start()
    written = 0
    while reader.is_alive() and written < 30_000:
        if written - ring.now <= 800:  # a stream in real time does not run away from a reader that keeps up
            ring.append(counter(written, 100), written)
            written += 100
        else:
            time.sleep(1e-4)
    reader.join()
    samples, start, _, events = got["all"]
    assert start == 500 and np.array_equal(samples, expected(500, 10_000)) and events == ()


def test_silence_is_an_error_with_the_index_within_the_time_limit():
    ring = filled(300)
    begin = time.monotonic()
    with pytest.raises(RadioError, match="RX index 300"):
        ring.take(301, 0, 0.2)
    assert 0.1 < time.monotonic() - begin < 1.0


def test_a_failure_wakes_the_reader_and_lasts_until_the_restart():
    ring = filled(300)
    caught = []

    def read():
        try:
            ring.take(400, 0, 10.0)
        except RadioError as error:
            caught.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    while ring._wanted is None:
        time.sleep(1e-3)
    ring.fail(RadioError("stopped at RX index 300", "look at the cable"))
    reader.join(5.0)
    assert [error.remedy for error in caught] == ["look at the cable"]
    with pytest.raises(RadioError, match="300"):
        ring.take(1, None, 1.0)
    ring.restart(2000)  # an attempt that came to nothing
    ring.restart(5000)
    ring.append(counter(5000, 100), 5000)
    samples, start, _, events = ring.take(10, 5050, 1.0)
    assert start == 5050 and np.array_equal(samples, expected(5050, 10))
    assert events == (StreamEvent("lost", 300, 4700),)  # the seam shows wherever the next capture starts
    assert ring.take(10, None, 1.0)[3] == ()


def test_reading_from_the_edge_of_a_full_ring_keeps_up_with_the_writer():
    ring, stop = filled(1000), threading.Event()

    def write():
        index = 1000
        while not stop.is_set():
            ring.append(counter(index, 10), index)
            index += 10

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(500):
            while ring.newest - ring.now < 1000:  # only a full ring pushes samples out
                time.sleep(0)
            samples, start, _, _ = ring.take(10, None, 1.0)
            assert np.array_equal(samples, expected(start, 10))
    finally:
        stop.set()
        writer.join()
