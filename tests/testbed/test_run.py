"""The run folder: events and checkpoints survive crashes, damage and full disks, or say exactly what is wrong."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from radio.errors import RunError
from testbed.config import load
from testbed.run import (
    Checkpoint,
    EventTail,
    RunFolder,
    checkpoint_rounds,
    find_run,
    load_checkpoint,
    read_events,
    save_checkpoint,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", load())


def make(number: int, config_hash: str = "abc") -> Checkpoint:
    rng = np.random.default_rng(number)
    arrays = {"theta": rng.standard_normal(50).astype(np.float32), "gain": np.full((2, 3), 1 + 2j, np.complex64)}
    return Checkpoint(number, config_hash, arrays, {"numpy": rng.bit_generator.state}, {"slot": 12, "drift": 0.1})


def test_runs_are_numbered_and_latest_follows(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    names = [RunFolder.create(root, load()).name for _ in range(2)]
    (root / "41").mkdir()
    (root / "notes").mkdir()
    names.append(RunFolder.create(root, load()).name)
    assert names == ["1", "2", "42"]
    assert (root / "latest").is_symlink() and os.readlink(root / "latest") == "42"
    assert [find_run(text, root).name for text in ("2", "latest", str(root / "1"))] == ["2", "42", "1"]
    with pytest.raises(RunError, match=r"no run '7'; newest runs: 42, 41, 2, 1"):
        find_run("7", root)


def test_a_folder_repeats_its_run(folder: RunFolder) -> None:
    assert folder.pair().fingerprint() == load().fingerprint()
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(folder.path.parent)


def test_every_event_has_kind_time_and_run_and_is_published_as_written(folder: RunFolder) -> None:
    published: list[bytes] = []
    folder.publish_to(published.append)
    folder.emit("run-started", nodes=("a", "b"))
    event = folder.emit(
        "round-finished",
        round=1,
        nmse_sum_db=np.float32(-25.5),
        snr_db=float("-inf"),
        gains=np.arange(3),
        x=np.int64(4),
    )
    assert folder.events_path.read_bytes() == b"".join(published)
    back = list(read_events(folder.events_path))
    assert back[1] == event and event["snr_db"] is None and event["gains"] == [0, 1, 2] and event["x"] == 4
    for line in back:
        assert line["run"] == folder.name and line["time"].endswith("Z")
        assert datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0  # type: ignore[union-attr]


def test_only_known_events_and_plain_values(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="unknown event kind 'round-over'"):
        folder.emit("round-over")
    with pytest.raises(TypeError, match="bytes"):
        folder.emit("warning", blob=b"x")
    assert not folder.events_path.exists()


def test_events_are_on_disk_when_the_process_is_killed(folder: RunFolder) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from testbed.run import RunFolder\n"
        "run = RunFolder.open(Path(sys.argv[1]))\n"
        "for k in range(50): run.emit('round-started', round=k)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder.path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [event["round"] for event in read_events(folder.events_path)] == list(range(50))


def test_a_half_line_of_a_killed_process_spoils_nothing(folder: RunFolder) -> None:
    folder.emit("run-started")
    folder.close()
    with folder.events_path.open("ab") as file:
        file.write(b'{"kind":"round-star')
    published: list[bytes] = []
    again = RunFolder.open(folder.path)
    again.publish_to(published.append)
    again.emit("run-finished")
    assert [event["kind"] for event in read_events(folder.events_path)] == ["run-started", "run-finished"]
    assert published[0].startswith(b"{")  # the mended line break is no part of the event


def test_a_tail_sees_whole_events_only(folder: RunFolder) -> None:
    tail = EventTail(folder.events_path)
    assert tail.poll() == []
    folder.emit("run-started")
    with folder.events_path.open("ab") as file:
        file.write(b'{"kind":"warn')
    assert [event["kind"] for event in tail.poll()] == ["run-started"]
    with folder.events_path.open("ab") as file:
        file.write(b'ing"}\n')
    assert [event["kind"] for event in tail.poll()] == ["warning"]
    assert tail.poll() == []
    late = EventTail(folder.events_path, from_end=True)
    folder.emit("run-finished")
    assert [event["kind"] for event in late.poll()] == ["run-finished"]


def test_a_checkpoint_comes_back_bit_for_bit(folder: RunFolder) -> None:
    saved = make(3)
    folder.save(saved)
    back = folder.load("abc")
    assert (back.round, back.extra, back.generators) == (3, saved.extra, saved.generators)
    for name, array in saved.arrays.items():
        assert back.arrays[name].dtype == array.dtype and back.arrays[name].tobytes() == array.tobytes()
    rng = np.random.default_rng()
    rng.bit_generator.state = back.generators["numpy"]
    reference = np.random.default_rng(3)
    reference.standard_normal(50)
    assert rng.integers(2**63) == reference.integers(2**63)


def test_the_last_two_are_kept(folder: RunFolder) -> None:
    for number in (8, 9, 10):
        folder.save(make(number))
    assert checkpoint_rounds(folder.checkpoints) == [9, 10]
    assert len(list(folder.checkpoints.iterdir())) == 4
    assert folder.load().round == 10 and load_checkpoint(folder.checkpoints, round=9).round == 9
    with pytest.raises(RunError, match="no checkpoint of round 8; found rounds 9, 10"):
        load_checkpoint(folder.checkpoints, round=8)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty"])
def test_damage_is_named_with_the_checkpoint_before(folder: RunFolder, suffix: str, damage: str) -> None:
    for number in (4, 5):
        folder.save(make(number))
    path = folder.checkpoints / f"round-000005{suffix}"
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
        if suffix == ".json":
            assert folder.load().round == 4  # tensors alone are not a checkpoint
            return
    elif damage == "flip":
        place = content.index(b"abc") if suffix == ".json" else len(content) - 7
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "truncate" else 0])
    with pytest.raises(RunError) as caught:
        folder.load("abc")
    assert caught.value.exit_code == 7 and str(path) in caught.value.message
    if not (suffix == ".json" and damage == "flip"):  # there the flipped byte is the configuration's hash
        assert "round-000004.json" in caught.value.remedy
        path.with_suffix(".json").unlink()
        assert folder.load("abc").round == 4  # the remedy works


def test_another_configuration_is_refused_with_both_hashes(folder: RunFolder) -> None:
    folder.save(make(1, "1" * 64))
    with pytest.raises(RunError, match="111111111111, now 222222222222"):
        folder.load("2" * 64)


def test_no_checkpoint_at_all(folder: RunFolder) -> None:
    with pytest.raises(RunError, match="no checkpoint"):
        folder.load()


def test_a_crash_between_the_two_files_leaves_the_older_one(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.save(make(1))
    whole, calls = os.replace, []

    def die_on_second(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == 2:
            raise KeyboardInterrupt
        whole(old, new)

    monkeypatch.setattr(os, "replace", die_on_second)
    with pytest.raises(KeyboardInterrupt):
        folder.save(make(2))
    monkeypatch.undo()
    assert folder.load("abc").round == 1
    folder.save(make(2))
    assert folder.load("abc").round == 2


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from radio.errors import RunError
from testbed.run import Checkpoint, RunFolder
run = RunFolder.open(Path(sys.argv[1]))
run.emit("run-started", filler="x" * 3000)
run.save(Checkpoint(1, "h", {"theta": np.zeros(500, np.float32)}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # from here on no file may grow past 4 KiB
for action in (lambda: run.emit("warning", filler="y" * 3000),
               lambda: run.save(Checkpoint(2, "h", {"theta": np.zeros(5000, np.float32)}))):
    try:
        action()
        sys.exit("the disk was not full")
    except RunError as error:
        assert error.exit_code == 7 and "free some space" in error.remedy, error
        print(error.message)
run.emit("run-finished")
"""


def test_a_full_disk_loses_nothing_already_written(folder: RunFolder) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(folder.path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "events.jsonl" in done.stdout and "round-000002.safetensors" in done.stdout
    content = folder.events_path.read_bytes()
    assert b"y" * 9 not in content  # not even half of the event that did not fit
    assert [json.loads(line)["kind"] for line in content.splitlines()] == ["run-started", "run-finished"]
    assert folder.load("h").round == 1
    assert not list(folder.checkpoints.glob("*.new"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096  # this process was not the limited one


def test_no_space_is_told_from_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: int) -> RunError:
        def broken(old: object, new: object) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", broken)
            with pytest.raises(RunError) as caught:
                save_checkpoint(tmp_path, make(1))
        return caught.value

    assert "free some space" in fail(errno.ENOSPC).remedy
    assert "yours to write" in fail(errno.EACCES).remedy
