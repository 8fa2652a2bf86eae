"""Recordings: what is written is read, by us and by the sigmf package alone; what is damaged is one clear error."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import sigmf
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.base import Capabilities, Capture, RadioConfig, StreamEvent, Tier
from radio.capture import About, Part, Recording, write
from radio.errors import RadioError, RadioNotFound, RadioRefused, TooLate, UnsafeTransmit
from radio.replay import ReplayRadio, connect, find
from radio.safety import PROFILES, Emission, SafeRadio

CONFIG = RadioConfig(1e6, 915e6, 915.1e6, 0.8e6, 42.5, 12.25)
TOLD = Capabilities(Tier.P3, "1044abc", "pluto 0.25", 4e6, 3000, 256, False, True, False, True)
START = 5_000_000_000
ABOUT = About(
    CONFIG,
    TOLD,
    datetime(2026, 11, 22, 20, 0, 0, 250_000, UTC),
    (Part(START + 10, 100, "beacon", {"beacon": 3}), Part(START + 400, 60, "burst", {"snr_db": 21.5, "late": False})),
    {"round": 7, "why": "voided", "nmse_sum_db": -12.25, "admitted": True, "note": None},
)


def samples(count: int, seed: int = 1) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.uniform(-0.9, 0.9, count) + 1j * draw.uniform(-0.9, 0.9, count)).astype(np.complex64)


def captures(*spans: tuple[int, int]) -> list[Capture]:
    return [Capture(samples(count, start % 1000), START + start, 1e6) for start, count in spans]


def recorded(folder: Path, *spans: tuple[int, int], about: About = ABOUT) -> Path:
    return write(folder / "a.sigmf-meta", captures(*(spans or ((0, 1000),))), about)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    overflow, clipped = StreamEvent("overflow", START + 500, 20), StreamEvent("clipped", START + 990, 20)
    first, second = captures((0, 600), (600, 400))
    first, second = replace(first, events=(overflow,)), replace(second, events=(overflow, clipped))
    found = Recording(write(tmp_path / "a.sigmf-meta", [first, second], ABOUT))
    assert found.about == ABOUT
    assert (found.start, found.end, len(found.segments)) == (START, START + 1000, 1)
    assert found.events == (overflow, clipped)
    whole = found.read(START, 1000)
    assert whole.samples.dtype == np.complex64
    np.testing.assert_array_equal(whole.samples, np.concatenate([first.samples, second.samples]))
    assert (whole.start, whole.rate_hz, whole.clipped, whole.events) == (START, 1e6, 0, (overflow, clipped))
    assert found.read(START + 520, 400).events == ()
    assert found.read(START + 519, 1).events == (overflow,)
    assert found.read(START + 3, 0).samples.size == 0


def test_the_sigmf_package_alone_finds_everything_where_the_format_has_it(tmp_path: Path) -> None:
    first, second = captures((0, 600), (800, 400))
    second = replace(second, events=(StreamEvent("lost", START + 600, 200),))
    found = sigmf.fromfile(write(tmp_path / "a.sigmf-meta", [first, second], ABOUT))
    found.validate()
    np.testing.assert_array_equal(found.read_samples(), np.concatenate([first.samples, second.samples]))
    head = found.get_global_info()
    assert (head["core:datatype"], head["core:sample_rate"]) == ("cf32_le", 1e6)
    assert head["core:hw"] == "pluto 0.25, serial 1044abc"
    assert (head["aircomp:tier"], head["aircomp:round"], head["aircomp:rx_gain_db"]) == ("P3", 7, 42.5)
    told = [(c["core:sample_start"], c["core:global_index"], c["core:datetime"]) for c in found.get_captures()]
    assert told == [(0, START, "2026-11-22T20:00:00.250000Z"), (600, START + 800, "2026-11-22T20:00:00.250800Z")]
    assert {c["core:frequency"] for c in found.get_captures()} == {915.1e6}
    notes = [(a["core:sample_start"], a["core:sample_count"], a["core:label"]) for a in found.get_annotations()]
    assert notes == [(10, 100, "beacon"), (400, 60, "burst"), (600, 0, "lost")]


def test_sixteen_bits_round_to_half_a_step_and_stay_on_the_rails(tmp_path: Path) -> None:
    wide = captures((0, 500))[0]
    wide.samples[:4] = [1.5 - 2.0j, -1.0 + 1.0j, 2047 / 2048, 0.25 + 0.125j]
    found = Recording(write(tmp_path / "a.sigmf-meta", [wide], ABOUT, "ci16_le")).read(START, 500)
    assert (tmp_path / "a.sigmf-data").stat().st_size == 2000
    top = 32767 / 32768
    np.testing.assert_array_equal(
        found.samples[:4], np.complex64([top - 1j, -1 + top * 1j, 2047 / 2048, 0.25 + 0.125j])
    )
    error = found.samples[4:] - wide.samples[4:]
    assert max(np.abs(error.real).max(), np.abs(error.imag).max()) <= 0.5 / 32768
    assert found.clipped == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), min_size=1, max_size=5),
    st.data(),
)
def test_any_span_of_any_segments_is_the_plain_timeline(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    spans, reached = [], 0
    for gap, count in steps:
        spans.append((reached + gap * bool(spans), count))
        reached = sum(spans[-1])
    plain, known = np.zeros(reached, np.complex64), np.zeros(reached, bool)
    for capture in captures(*spans):
        here = slice(capture.start - START, capture.start - START + capture.samples.size)
        plain[here], known[here] = capture.samples, True
    found = Recording(recorded(tmp_path_factory.mktemp("any"), *spans))
    begin = data.draw(st.integers(0, reached))
    end = data.draw(st.integers(begin, reached))
    taken = found.read(START + begin, end - begin)
    np.testing.assert_array_equal(taken.samples, plain[begin:end])
    lost = np.zeros(reached, bool)
    for event in taken.events:
        assert event.kind == "lost"
        lost[event.index - START : event.index - START + event.count] = True
    np.testing.assert_array_equal(lost[begin:end], ~known[begin:end])
    assert lost.sum() == (~known[begin:end]).sum()


def test_a_single_missing_sample_is_told(tmp_path: Path) -> None:
    taken = Recording(recorded(tmp_path, (0, 5), (6, 5))).read(START, 11)
    assert taken.events == (StreamEvent("lost", START + 5, 1),) and taken.samples[5] == 0


def test_captures_are_taken_one_by_one_and_not_kept(tmp_path: Path) -> None:
    alive: list[int] = []

    def stream() -> Iterator[Capture]:
        for number in range(20):
            alive.append((tmp_path / "a.sigmf-data").stat().st_size)
            yield Capture(samples(4096), START + 4096 * number, 1e6)

    found = Recording(write(tmp_path / "a.sigmf-meta", stream(), ABOUT))
    assert found.end - found.start == 20 * 4096 and len(found.segments) == 1
    assert alive[-1] >= 17 * 8 * 4096  # earlier ones are in the file already


@pytest.mark.parametrize(
    ("name", "captured", "about", "words"),
    [
        ("a.iq", captures((0, 9)), ABOUT, "a.sigmf-meta"),
        ("a.sigmf-meta", [], ABOUT, "no samples"),
        ("a.sigmf-meta", captures((0, 9), (8, 9)), ABOUT, f"{START + 8} follows one that ended at {START + 9}"),
        ("a.sigmf-meta", [*captures((0, 9)), Capture(samples(9), START + 9, 2e6)], ABOUT, "2e+06 S/s"),
        ("a.sigmf-meta", captures((0, 9)), replace(ABOUT, facts={"tier": "U1"}), "['tier'] are names"),
        (
            "a.sigmf-meta",
            captures((0, 9)),
            replace(ABOUT, parts=(Part(START, 1, "x", {"event": "y"}),)),
            "['event'] are",
        ),
        ("no/a.sigmf-meta", captures((0, 9)), ABOUT, "No such file or directory"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, name: str, captured: list[Capture], about: About, words: str
) -> None:
    with pytest.raises(RadioError) as caught:
        write(tmp_path / name, captured, about)
    assert words in str(caught.value) and caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    before = path.read_bytes()
    with pytest.raises(RadioError, match="exists"):
        recorded(tmp_path, (0, 5))
    assert path.read_bytes() == before and Recording(path).end == START + 1000


def damaged(path: Path, how: str) -> None:
    data = path.with_suffix(".sigmf-data")
    table = json.loads(path.read_text())
    if how == "cut":
        data.write_bytes(data.read_bytes()[:-800])
    elif how == "cut inside a sample":
        data.write_bytes(data.read_bytes()[:-3])
    elif how == "changed":
        raw = bytearray(data.read_bytes())
        raw[100] ^= 1
        data.write_bytes(bytes(raw))
    elif how == "empty":
        data.write_bytes(b"")
    elif how == "no data":
        data.unlink()
    elif how == "half the metadata":
        path.write_text(path.read_text()[: path.stat().st_size // 2])
    elif how == "an image":
        path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    elif how == "a list":
        path.write_text("[1, 2]")
    elif how == "another JSON":
        path.write_text('{"nodes": 3}')
    else:
        section, key, value = setting(how)
        (table[section] if section == "global" else table[section][0])[key] = value
        path.write_text(json.dumps(table))


def setting(how: str) -> tuple[str, str, object]:
    section, key, value = how.split(" ", 2)
    return section, key, json.loads(value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "7200 bytes, which are not 1000 samples of 8"),
        ("cut inside a sample", "7997 bytes"),
        ("changed", "hash"),
        ("empty", "0 bytes"),
        ("no data", "No such file"),
        ("half the metadata", "not SigMF"),
        ("an image", "not SigMF"),
        ("a list", "not SigMF"),
        ("another JSON", "not SigMF"),
        ('global core:datatype "rf32_le"', "core:datatype"),
        ("global core:num_channels 2", "core:num_channels"),
        ("global core:sample_rate -1", "core:sample_rate"),
        ('global aircomp:tier "P9"', "tier"),
        ('global aircomp:block_samples "many"', "block_samples"),
        ("captures core:sample_start 2000", "2000"),
        ("captures core:sample_start -2", "core:sample_start"),
        ('captures core:global_index "x"', "core:global_index"),
        ('captures core:datetime "yesterday"', "core:datetime"),
        ('annotations core:sample_start "x"', "core:sample_start"),
        ('annotations aircomp:event "explosion"', "kind"),
    ],
)
def test_a_damaged_recording_is_one_clear_error(tmp_path: Path, how: str, words: str) -> None:
    path = recorded(tmp_path)
    damaged(path, how)
    with pytest.raises(RadioError) as caught:
        connect(str(path), None)
    assert words in caught.value.message and str(path) in caught.value.message and caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_missing_recording_names_those_beside_it(tmp_path: Path) -> None:
    recorded(tmp_path)
    for name in ("b.sigmf-meta", "a.sigmf-data", "a"):
        with pytest.raises(RadioNotFound, match=r"in that folder: a\.sigmf-meta"):
            connect(str(tmp_path / name), None)
    with pytest.raises(RadioNotFound, match="none"):
        connect(str(tmp_path / "no" / "b.sigmf-meta"), None)


def test_a_recording_by_another_program_can_be_replayed(tmp_path: Path) -> None:
    taken = samples(300)
    taken.tofile(tmp_path / "b.sigmf-data")
    other = sigmf.SigMFFile(global_info={"core:datatype": "cf32_le", "core:sample_rate": 2e6, "core:hw": "some SDR"})
    other.add_capture(0, {"core:frequency": 868e6})
    other.add_annotation(20, 40, {"core:label": "packet"})
    (tmp_path / "b.sigmf-meta").write_text(other.dumps())
    found = Recording(tmp_path / "b.sigmf-meta")
    assert found.about.parts == (Part(20, 40, "packet"),) and (found.start, found.end) == (0, 300)
    player = ReplayRadio(found)
    assert (player.capabilities.tier, player.capabilities.serial) == (Tier.P0, "some SDR")
    with pytest.raises(RadioRefused, match="915000000 was asked of a recording made at 868000000"):
        player.configure(RadioConfig(2e6, 915e6, 915e6, 1e6, 30.0))
    assert player.configure(RadioConfig(2e6, 868e6, 868e6, 1e6, 30.0)).rx_gain_db == 30.0
    np.testing.assert_array_equal(player.receive(300).samples, taken)


@pytest.fixture
def player(tmp_path: Path) -> Iterator[tuple[SafeRadio, list[Emission]]]:
    log: list[Emission] = []
    safety = PROFILES["conducted"].model_copy(update={"attenuation_db": 60.0})
    with SafeRadio(connect(str(recorded(tmp_path, (0, 9000))), None), safety, log.append) as guarded:
        yield guarded, log


def test_replay_keeps_the_indices_and_says_what_it_is(player: tuple[SafeRadio, list[Emission]]) -> None:
    radio, _ = player
    told = radio.capabilities
    assert (told.tier, told.serial, told.driver) == (Tier.P3, "1044abc", "replay of pluto 0.25")
    assert (told.one_timeline, told.real_time) == (True, False)
    assert radio.configure(replace(CONFIG, tx_attenuation_db=30.0)) == replace(CONFIG, tx_attenuation_db=30.0)
    assert radio.now() == radio.newest() == START
    np.testing.assert_array_equal(radio.receive(100, START + 50).samples, samples(9000, 0)[50:150])
    assert radio.now() == START + 150


@pytest.mark.parametrize(("key", "value"), [("rate_hz", 2e6), ("rx_hz", 915e6), ("rx_gain_db", 60.0)])
def test_replay_refuses_settings_it_was_not_made_with(
    player: tuple[SafeRadio, list[Emission]], key: str, value: float
) -> None:
    with pytest.raises(RadioRefused) as caught:
        player[0].configure(replace(CONFIG, **{key: value}))
    assert f"{value:.10g}" in caught.value.message and f"{getattr(CONFIG, key):.10g}" in caught.value.message


def test_replay_ends_with_numbers_and_can_go_on_with_what_is_left(player: tuple[SafeRadio, list[Emission]]) -> None:
    radio, _ = player
    radio.configure(CONFIG)
    radio.receive(8000)
    with pytest.raises(RadioError, match=f"{START} to {START + 8999}; asked for 1001 from {START + 8000}"):
        radio.receive(1001)
    assert radio.receive(1000).start == START + 8000
    with pytest.raises(RadioError, match="record longer"):
        radio.receive(1)


def test_what_a_replay_sends_is_checked_counted_and_written_down(player: tuple[SafeRadio, list[Emission]]) -> None:
    radio, log = player
    radio.configure(CONFIG)

    def tone(count: int) -> np.ndarray:
        return np.full(count, 0.01, np.complex64)

    early = radio.earliest()
    assert early == START + 3000
    assert radio.transmit(tone(500), early + 100).start == early + 100
    assert radio.earliest() == early + 600
    with pytest.raises(TooLate) as caught:
        radio.transmit(tone(100), early + 580)
    assert caught.value.late_samples == 20
    with pytest.raises(UnsafeTransmit):
        radio.transmit(np.zeros(2_000_000, np.complex64))
    assert [(line.verdict, line.radio) for line in log] == [("sent", "a"), ("denied", "a")]


def test_a_file_cut_while_it_plays_is_an_error_not_silence(
    player: tuple[SafeRadio, list[Emission]], tmp_path: Path
) -> None:
    radio, _ = player
    radio.configure(CONFIG)
    with (tmp_path / "a.sigmf-data").open("r+b") as data:
        data.truncate(8 * 500)
    assert radio.receive(500).samples.any()
    with pytest.raises(RadioError, match="cannot be replayed"):
        radio.receive(500)


def test_recordings_of_a_folder_are_listed(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    (tmp_path / "broken.sigmf-meta").write_text("{}")
    (seen,) = find(tmp_path)
    assert (seen.uri, seen.serial, seen.tier) == (f"replay:{path}", "1044abc", Tier.P3)
    assert seen.detail["seconds"] == pytest.approx(0.001) and seen.detail["rx_hz"] == 915.1e6
