"""Recordings of a calibration: parts lie where the waveform has them, sigmf alone finds every fact, nothing is lost."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import sigmf

from calibration.captures import Sender, burst_parts, record, sounding_parts
from radio.base import Capabilities, Capture, RadioConfig, Tier
from radio.capture import Part, Recording
from radio.cycle import sounding_samples
from radio.errors import RadioError
from radio.ofdm import PROFILES, canary, demodulate, pilot, split

PROFILE = PROFILES["pluto-915"]
CONFIG = RadioConfig(1e6, 915e6, 915e6, 1e6, 40.0, 10.0)
TOLD = Capabilities(Tier.P2, "1044abc", "pluto 0.39, timestamps", 4e6, 20_000, 4096, True, False, True, True)
SENDERS = [Sender("a", 1.25, -30.5, 0.5, 7), Sender("b")]


@pytest.mark.parametrize("name", PROFILES)
def test_parts_fill_their_frame_without_gap_or_overlap(name: str) -> None:
    profile = PROFILES[name]
    parts = burst_parts(profile, 1000, 3, [])
    assert parts[0].start == 1000
    assert [part.start + part.count for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert parts[-1].start + parts[-1].count == 1000 + profile.burst_samples
    assert all(part.facts == {"slot": 3} for part in parts)


def test_places_of_a_sounding_window_are_the_servers() -> None:
    first, second = sounding_parts(PROFILE, 1000, 3, SENDERS)
    length, guard = sounding_samples(PROFILE), PROFILE.guard_samples
    assert (first.start, second.start) == (1000 + guard, 1000 + length + guard)
    assert first.count == second.count == 2 * PROFILE.symbol_samples
    assert first.label == "sounding a"
    assert first.facts == {
        "slot": 3,
        "place": 0,
        "node": "a",
        "advance_samples": 1.25,
        "gain_db": -30.5,
        "phase_rad": 0.5,
        "reference_slot": 7,
    }
    assert second.facts == {"slot": 3, "place": 1, "node": "b"}


def test_a_recorded_burst_is_decoded_by_its_annotations_alone(tmp_path: Path, recording: Callable[..., Path]) -> None:
    nodes = 3
    found = Recording(recording(tmp_path, nodes))
    parts = {part.label: part for part in found.about.parts}
    whole = parts["from node-1"]
    grid, _ = demodulate(found.read(whole.start, whole.count).samples, PROFILE, PROFILE.burst_symbols)
    pilots, _, known = split(grid)
    for shift in range(nodes):
        node = parts[f"from node-{shift + 1}"]
        assert (node.start, node.count, node.facts["shift"]) == (whole.start, PROFILE.burst_samples, shift)
        assert node.facts["advance_samples"] == 0.25 * shift
        assert abs(np.vdot(pilot(PROFILE, shift, nodes), pilots[0])) / 96 > 0.02
    target = sum(canary(PROFILE, int(found.about.facts["seed"]), shift, "R") for shift in range(nodes))
    scale = np.vdot(target, known) / np.vdot(target, target)
    assert np.mean(np.abs(known / scale - target) ** 2) / np.mean(np.abs(target) ** 2) < 0.01
    v0 = parts["V0"]
    one, _ = demodulate(found.read(v0.start, v0.count).samples, PROFILE, 1)
    np.testing.assert_allclose(one[0], pilots[0], atol=1e-6)


def test_the_sigmf_package_finds_every_fact_in_our_namespace(tmp_path: Path) -> None:
    capture = Capture(np.full(4000, 0.1j, np.complex64), 500, 1e6)
    facts = {"node": "server", "seed": 4, "calibration": "4f1c9a", "temperature_c": 41.5, "waveform": "pluto-915"}
    time = datetime(2026, 11, 27, 9, 0, tzinfo=UTC)
    parts = sounding_parts(PROFILE, 600, 3, SENDERS)
    path = record(tmp_path / "captures", "sounding", [capture], CONFIG, TOLD, parts, facts, time)
    found = sigmf.fromfile(path)
    found.validate()
    head = found.get_global_info()
    wanted = facts | {"tier": "P2", "serial": "1044abc", "driver": "pluto 0.39, timestamps", "rx_gain_db": 40.0}
    assert {name: head[f"aircomp:{name}"] for name in wanted} == wanted
    assert head["core:hw"] == "pluto 0.39, timestamps, serial 1044abc"
    assert found.get_captures()[0]["core:datetime"] == "2026-11-27T09:00:00Z"
    first = found.get_annotations()[0]
    assert (first["core:label"], first["aircomp:node"], first["aircomp:advance_samples"]) == ("sounding a", "a", 1.25)
    assert (first["core:sample_start"], first["core:sample_count"]) == (600 - 500 + 64, 576)


def test_a_second_recording_of_one_name_leaves_the_first_alone(tmp_path: Path) -> None:
    first, second = (
        record(
            tmp_path,
            "noise",
            [Capture(np.full(9, level, np.complex64), 0, 1e6)],
            CONFIG,
            TOLD,
            [Part(0, 9, "noise")],
            {},
        )
        for level in (0.25, 0.5)
    )
    assert (first.name, second.name) == ("noise.sigmf-meta", "noise.2.sigmf-meta")
    assert [Recording(path).read(0, 1).samples[0].real for path in (first, second)] == [0.25, 0.5]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RadioError, match="cannot be made"):
        record(tmp_path / "file" / "captures", "noise", [], CONFIG, TOLD, [], {})
    with pytest.raises(RadioError, match="no samples"):
        record(tmp_path, "noise", [], CONFIG, TOLD, [], {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
