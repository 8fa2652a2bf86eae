"""Records of a calibration: whole on disk, and refused by name when damaged, foreign, stale or of another version."""

import json
import shutil
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.record import FAST, VALID_S, CalibrationFolder, RadioKey
from calibration.result import Estimate, Finding, Result
from radio.disk import write_whole
from radio.errors import CalibrationError, Damaged, Foreign, RunError, Stale

KEY = RadioKey("104473", "loopback 1", 1e6, 915e6, 915e6, 1e6, 60.0, 10.0, "whip")
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
NOISE = Result(
    "noise",
    "node-1",
    {"noise_dbfs": Estimate(-71.5, -71.7, -71.3, "db"), "image_dbc": np.float64(-48.0), "tier": "P0", "ok": True},
    {"psd_hz": np.linspace(-5e5, 5e5, 65), "gain": np.exp(1j * np.arange(5)).astype(np.complex64)},
)


@pytest.fixture
def folder(tmp_path):
    return CalibrationFolder.create(tmp_path / "calibrations", {"lab.toml": "name = 'a'\n"})


def the_file(folder, suffix):
    (path,) = (folder.path / "records").glob(f"*{suffix}")
    return path


def test_a_record_comes_back_as_it_was(folder):
    saved = folder.save(NOISE, KEY, NOON)
    (found,) = folder.records().values()
    assert (found.key, found.time, found.valid_s, found.name) == (KEY, NOON, 86400.0, "noise-node-1.json")
    assert saved.name == found.name and found.result.values == NOISE.values and found.result.passed
    for name, curve in NOISE.curves.items():
        assert found.result.curves[name].dtype == curve.dtype and np.array_equal(found.result.curves[name], curve)


@settings(max_examples=30, deadline=None)
@given(
    values=st.dictionaries(
        st.text(min_size=1, max_size=8), st.one_of(st.floats(), st.integers(), st.text(max_size=9), st.booleans())
    ),
    finding=st.one_of(st.none(), st.builds(Finding, st.text(), st.text(), st.text())),
)
def test_any_values_survive(tmp_path_factory, values, finding):
    folder = CalibrationFolder.create(tmp_path_factory.mktemp("c"), {})
    folder.save(Result("lock", "node-1", values, finding=finding), KEY, NOON)
    found = folder.records()["lock", "node-1"].result
    assert repr(dict(found.values)) == repr(values) and found.finding == finding


def test_a_step_measured_again_adds_a_record_and_the_newest_counts(folder):
    for radio in ("node-1", "node-10"):
        folder.save(replace(NOISE, radio=radio), KEY, NOON)
    before = {path.name: path.read_bytes() for path in (folder.path / "records").iterdir()}
    bad = replace(NOISE, values={"noise_dbfs": -20.0}, finding=Finding("interferer", "a tone", "switch it off"))
    folder.save(bad, KEY, NOON + timedelta(minutes=1))
    assert {
        path.name: path.read_bytes() for path in (folder.path / "records").iterdir() if path.name in before
    } == before
    now = NOON + timedelta(minutes=2)
    assert folder.records()["noise", "node-1"].name == "noise-node-1.2.json"
    assert folder.passed("noise", "node-1", KEY, now) is None  # the newest found something
    assert folder.passed("noise", "node-10", KEY, now) is not None
    assert folder.passed("level", "node-10", KEY, now) is None
    assert set(folder.records("noise", "node-10")) == {("noise", "node-10")}
    folder.save(NOISE, KEY, NOON - timedelta(days=1))  # written last, measured first
    assert folder.records()["noise", "node-1"].result.number("noise_dbfs") == -20.0


def test_records_are_told_apart_by_their_digest_and_not_by_their_folder(folder, tmp_path):
    folder.save(NOISE, KEY, NOON)
    copy = CalibrationFolder.open(shutil.copytree(folder.path, tmp_path / "copy"))
    assert copy.digest == folder.digest and len(folder.digest) == 16
    copy.save(replace(NOISE, radio="node-10"), KEY, NOON)
    assert copy.digest != folder.digest


def test_a_record_holds_for_its_time_and_its_radio(folder):
    record = folder.save(NOISE, KEY, NOON)
    record.check(KEY, NOON + timedelta(hours=23))
    with pytest.raises(Stale, match=r"noise of node-1 is 26.0 h old, limit 24.0 h.*testbed calibrate --steps noise"):
        record.check(KEY, NOON + timedelta(hours=26))
    with pytest.raises(Stale, match="a clock is wrong"):
        record.check(KEY, NOON - timedelta(hours=1))
    record.check(KEY, NOON - timedelta(seconds=5))
    with pytest.raises(Foreign, match=r"serial was '104473', is '99', rx_gain_db was 60.0, is 40.0"):
        record.check(replace(KEY, serial="99", rx_gain_db=40.0), NOON)
    assert not record.holds(replace(KEY, antenna="dish"), NOON) and record.holds(KEY, NOON)
    kept = folder.save(replace(NOISE, step="integrity"), KEY, NOON)
    assert kept.holds(KEY, NOON + timedelta(days=900))
    offset = folder.save(replace(NOISE, step="offset"), KEY, NOON)
    assert not offset.holds(KEY, NOON + timedelta(seconds=1)), "an offset outlived its stream"
    assert set(VALID_S) >= FAST and VALID_S["oscillator"] == 7 * 86400


def test_what_is_damaged_is_refused_by_name(folder, tmp_path):
    folder.save(NOISE, KEY, NOON)
    whole = the_file(folder, ".json").read_bytes()

    def refused(change, match):
        copy = CalibrationFolder.open(shutil.copytree(folder.path, tmp_path / "copy"))
        try:
            change(copy)
            with pytest.raises(Damaged, match=match) as caught:
                copy.records()
        finally:
            shutil.rmtree(copy.path)
        assert caught.value.exit_code == 4 and caught.value.remedy
        return caught.value

    for cut in (0, 1, len(whole) // 2, len(whole) - 3):
        refused(lambda copy, cut=cut: the_file(copy, ".json").write_bytes(whole[:cut]), r"noise-node-1\.json")
    refused(lambda copy: the_file(copy, ".json").write_bytes(whole.replace(b"-71.5", b"-91.5")), "SHA-256")
    refused(lambda copy: the_file(copy, ".json").write_bytes(b"[1]"), "not a whole record")
    refused(lambda copy: the_file(copy, ".npz").unlink(), r"noise-node-1\.npz.*No such file")
    curves = the_file(folder, ".npz").read_bytes()
    refused(lambda copy: the_file(copy, ".npz").write_bytes(curves[:-40]), "SHA-256")
    old = json.dumps({**json.loads(whole), "schema": 7}).encode()
    refused(lambda copy: the_file(copy, ".json").write_bytes(old), "format 7, this program reads 1")


def test_a_sealed_pickle_is_not_opened(folder, monkeypatch):
    with pytest.raises(ValueError, match="curves of objects: odd"):
        folder.save(replace(NOISE, curves={"odd": np.array([None])}), KEY, NOON)
    monkeypatch.setattr("numpy.savez_compressed", lambda file, **curves: np.savez(file, odd=np.array([None])))
    folder.save(NOISE, KEY, NOON)
    with zipfile.ZipFile(the_file(folder, ".npz")) as file:
        assert file.namelist() == ["odd.npy"]
    with pytest.raises(Damaged, match="allow_pickle=False"):
        folder.records()


def test_curves_without_their_record_are_left_and_not_overwritten(folder, monkeypatch):
    def killed(path, content):
        if path.suffix == ".json":
            raise RunError("killed here")
        write_whole(path, content)

    monkeypatch.setattr("calibration.record.write_whole", killed)
    with pytest.raises(RunError):
        folder.save(NOISE, KEY, NOON)
    monkeypatch.undo()
    assert folder.records() == {}
    orphan = the_file(folder, ".npz").read_bytes()
    folder.save(NOISE, KEY, NOON)
    assert folder.records()["noise", "node-1"].name == "noise-node-1.2.json"
    assert (folder.path / "records" / "noise-node-1.npz").read_bytes() == orphan


def test_folders_are_numbered_found_and_concluded_once_they_are(tmp_path):
    root = tmp_path / "calibrations"
    first = CalibrationFolder.create(root, {"lab.toml": "a"})
    second = CalibrationFolder.create(root, {"lab.toml": "b"})
    assert [first.path.name, second.path.name] == ["1", "2"] and (second.path / "lab.toml").read_text() == "b"
    assert second.captures.is_dir() and first.started <= second.started
    for text in ("latest", "2", str(second.path)):
        assert CalibrationFolder.find(text, root).path == second.path
    with pytest.raises(RunError, match="no calibration '9'; newest calibrations: 2, 1"):
        CalibrationFolder.find("9", root)
    with pytest.raises(CalibrationError, match="not a calibration folder"):
        CalibrationFolder.open(tmp_path)
    assert second.verdict is None
    second.conclude({"modes": {"node-1": ["R"]}, 10: np.float64(1.5), 2: [np.int64(3)]})
    assert CalibrationFolder.open(second.path).verdict == {"modes": {"node-1": ["R"]}, "10": 1.5, "2": [3]}
    path = second.path / "calibration.json"
    path.write_text(path.read_text().replace('"R"', '"C"'))
    with pytest.raises(Damaged, match=r"calibration\.json.*SHA-256"):
        _ = second.verdict


def test_two_writers_do_not_meet(folder):
    with (
        folder.writing(),
        pytest.raises(CalibrationError, match="another process is calibrating"),
        CalibrationFolder.open(folder.path).writing(),
    ):
        pass
    with folder.writing():
        folder.save(NOISE, KEY)
