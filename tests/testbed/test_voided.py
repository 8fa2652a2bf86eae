"""Recordings of voided rounds: what was received and who sent it, a few of them, and never at the cost of the run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sigmf

from radio.base import Capabilities, Capture, RadioConfig, Tier
from radio.capture import Recording
from radio.errors import RadioError
from radio.ofdm import PROFILES
from radio.serverlink import Window
from radio.uplink import Peer
from testbed import voided
from testbed.round import _Decode

PROFILE = PROFILES["pluto-915"]
SPAN = PROFILE.burst_samples + 2 * PROFILE.guard_samples
SLOTS = [100, 108]
PEERS = {
    "b": Peer(np.full(96, 0.1j, np.complex64), 0.01, 1.5, 0.0, 0.0),
    "c": Peer(np.full(96, -0.01, np.complex64), 1e-4, -0.5, 0.0, 0.0),
}


class Link:
    profile = PROFILE
    radio = SimpleNamespace(
        temperature_c=lambda: 41.5,
        capabilities=Capabilities(Tier.P0, "104a", "pluto 0.38", 4e6, 20_000, 4096, False, False, False, True),
    )

    def settings(self) -> RadioConfig:
        return RadioConfig(1e6, 915e6, 915e6, 1e6, 40.0)


def windows(seed: int = 1) -> list[Window]:
    rng = np.random.default_rng(seed)
    nothing = np.zeros((1, 1), np.complex64)
    return [
        Window(
            nothing, nothing, Capture(rng.standard_normal(2 * SPAN).astype(np.float32).view(np.complex64), start, 1e6)
        )
        for start in (5_000_000, 5_080_000)
    ]


def keep(folder: Path, name: str, **facts: Any) -> Path:
    return voided.keep(folder, name, Link(), windows(), SLOTS, PEERS, {"b": 1, "c": 2, "gone": 3}, facts)  # type: ignore[arg-type]


def test_a_recording_holds_every_burst_and_what_was_known_of_the_senders(tmp_path: Path) -> None:
    path = keep(tmp_path / "voided", "round-7-0", round=7, attempt=0, seed=4)
    sigmf.fromfile(path).validate()
    found = Recording(path)
    assert [(s.start, s.count) for s in found.segments] == [(5_000_000, SPAN), (5_080_000, SPAN)]
    for window in windows():
        np.testing.assert_array_equal(found.read(window.capture.start, SPAN).samples, window.capture.samples)
    assert found.about.facts == {
        "temperature_c": 41.5,
        "node": "server",
        "waveform": "pluto-915",
        "bursts": 2,
        "round": 7,
        "attempt": 0,
        "seed": 4,
    }
    assert found.about.config.rx_gain_db == 40.0 and found.about.capabilities.serial == "104a"
    pilots = [part for part in found.about.parts if part.label == "V0"]
    guard = PROFILE.guard_samples
    assert [(p.start, p.facts["slot"]) for p in pilots] == [(5_000_000 + guard, 100), (5_080_000 + guard, 108)]
    nodes = [part for part in found.about.parts if part.label.startswith("from")][:2]
    assert [(n.facts["node"], n.facts["shift"], n.facts["advance_samples"]) for n in nodes] == [
        ("b", 1, 1.5),
        ("c", 2, -0.5),
    ]
    assert nodes[0].facts["gain_db"] == pytest.approx(-20.0) and nodes[0].facts["phase_rad"] == pytest.approx(np.pi / 2)


def test_only_the_last_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voided, "KEPT", 2)
    for number in range(4):
        keep(tmp_path, f"round-{number}-0")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"round-{n}-0.sigmf-{end}" for n in (2, 3) for end in ("meta", "data")}


def test_a_long_round_is_kept_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voided, "LARGEST_BYTES", 8 * SPAN + 1)
    found = Recording(keep(tmp_path, "round-7-0"))
    assert [(s.start, s.count) for s in found.segments] == [(5_000_000, SPAN)]
    assert found.about.facts["bursts"] == 2


def test_a_recording_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    warned: list[tuple[str, str]] = []
    server = SimpleNamespace(
        names=["a", "b", "c"],
        link=Link(),
        folder=SimpleNamespace(voided=tmp_path / "voided"),
        calibrated=SimpleNamespace(folder=SimpleNamespace(digest="4f1c9a0de1b2c3d4")),
        warn=lambda *told: warned.append(told),
    )
    plan, payload = SimpleNamespace(number=7), SimpleNamespace(bursts=2, seed=4)
    decode = _Decode(server, plan, payload, ["b", "c"], 100, 8, 5000)  # type: ignore[arg-type]
    decode.keep(windows(), PEERS, 1)
    found = Recording(tmp_path / "voided" / "round-7-1.sigmf-meta")
    assert (found.about.facts["round"], found.about.facts["attempt"]) == (7, 1)
    assert found.about.facts["calibration"] == "4f1c9a0de1b2c3d4"
    assert [p.facts["slot"] for p in found.about.parts if p.label == "V0"] == SLOTS
    assert [p.facts["shift"] for p in found.about.parts if p.label.startswith("from")] == [1, 2, 1, 2]
    assert warned == []
    server.folder.voided = tmp_path / "file" / "voided"
    (tmp_path / "file").write_text("in the way")
    decode.keep(windows(), PEERS, 1)
    assert len(warned) == 1 and warned[0][0] == "recording" and "cannot be made" in warned[0][1]
    with pytest.raises(RadioError):
        keep(server.folder.voided, "round-7-1")
