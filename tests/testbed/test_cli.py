"""The commands as a user types them: help, starter files, one line and one exit code for every mistake."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from radio.errors import CalibrationError
from testbed import cli
from testbed.config import load
from testbed.run import Checkpoint, RunFolder
from testbed.terminal import JsonReader, Terminal

COMMANDS = ["init", "run", "server", "node", "ether", "doctor"]


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["testbed", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    code: object = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    return int(code or 0), out, err  # type: ignore[call-overload]


class Shell:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._fixtures = (monkeypatch, capsys)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        return call(*arguments, monkeypatch=self._fixtures[0], capsys=self._fixtures[1])


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    return Shell(monkeypatch, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(shell: Shell, command: str) -> None:
    code, out, _ = shell(command, "--help")
    assert code == 0 and "Example" in out and f"testbed {command}" in out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, testbed.cli; sys.argv = ['testbed', '--help']\n"
        "try: testbed.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numba', 'scipy', 'zmq', 'fl_core'} & set(sys.modules)\n"
        "sys.exit(f'help loads {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_init_writes_what_run_needs_and_never_overwrites(shell: Shell, tmp_path: Path) -> None:
    code, out, _ = shell("init", "room")
    assert code == 0 and "testbed run room/experiment.toml" in out
    pair = load(tmp_path / "room" / "experiment.toml")
    secret = tmp_path / "room" / "keys" / "node-8.secret"
    assert Path(pair.lab.keys) == tmp_path / "room" / "keys" and secret.stat().st_mode & 0o777 == 0o600
    before = secret.read_bytes()
    (tmp_path / "room" / "experiment.toml").write_text("[run]\nrounds = 7\n")
    code, out, _ = shell("init", "room")
    assert code == 0 and out.count("left alone") == 3 and secret.read_bytes() == before
    assert load(tmp_path / "room" / "experiment.toml").experiment.run.rounds == 7


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "--set", "scheme.keep=3"], 2, ["error[config]: --set: scheme.keep = 3", "at most 1 -> "]),
        (["run", "--set", "scheme.nam=x"], 2, ["unknown key -> did you mean 'name'?"]),
        (["run", "--set", "scheme.name=ideel"], 2, ["--set: scheme.name = 'ideel': unknown scheme", "'ideal'"]),
        (["run", "--set", "run.rounds=many"], 2, ["run.rounds = 'many': must be a whole number"]),
        (["run", "none.toml"], 2, ["none.toml: cannot be read: No such file", "testbed init"]),
        (["run", "--lab", "none.toml"], 2, ["none.toml: cannot be read"]),
        (["run", "--resume", "7"], 7, ["error[run]: no run '7'; there are no runs under runs"]),
        (["run", "x.toml", "--resume", "7"], 7, ["--resume takes its files from the run folder"]),
        (["node", "node-9"], 2, ["has no node 'node-9' -> use one of: node-1, "]),
        (["node", "node-1", "--set", "run.rounds=3"], 2, ["only lab keys have a meaning here"]),
        (["run", "--nonsense"], 2, ["--nonsense"]),
        (["fly"], 2, ["fly"]),
    ],
)
def test_a_mistake_is_one_line_and_a_code(shell: Shell, arguments: list[str], code: int, words: list[str]) -> None:
    found, out, err = shell(*arguments)
    assert found == code and out == "" and "Traceback" not in err
    for word in words:
        assert word in err
    if err.startswith("error["):
        assert err.count("\n") == 1


def test_several_mistakes_are_one_line_each(shell: Shell) -> None:
    code, _, err = shell("run", "--set", "scheme.keep=3", "--set", "run.rounds=0", "--set", "lab.ether_port=-1")
    lines = err.splitlines()
    assert code == 2 and len(lines) == 3 and all(line.startswith("error[config]: --set: ") for line in lines)
    assert all(" -> " in line for line in lines)


def test_nothing_is_written_for_a_mistake(shell: Shell, tmp_path: Path) -> None:
    shell("run", "--set", "scheme.keep=3")
    assert not (tmp_path / "runs").exists()


def test_a_damaged_checkpoint_is_reported_before_anything_starts(shell: Shell, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs", load())
    path = folder.save(Checkpoint(3, load().fingerprint(), {}))
    path.with_suffix(".safetensors").write_bytes(b"short")
    code, _, err = shell("run", "--resume", "latest")
    assert code == 7 and "damaged checkpoint" in err and "round-000003.safetensors" in err
    path.unlink()
    folder.save(Checkpoint(3, "0" * 64, {}))
    code, _, err = shell("run", "--resume", "1")
    assert code == 7 and "written under configuration 000000000000" in err


def test_an_ether_port_in_use_is_one_clear_error(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = shell("ether", "--set", f"lab.ether_port={taken.getsockname()[1]}")
    assert code == 6 and str(taken) and "error[link]" in err and "port" in err


def test_exit_codes_follow_the_class(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CalibrationError("phase error 0.61 rad exceeds 0.5 rad", "use a shared reference")

    monkeypatch.setattr("testbed.config.load_lab", fail)
    code, _, err = shell("doctor")
    assert code == 4 and err == "error[calibration]: phase error 0.61 rad exceeds 0.5 rad -> use a shared reference\n"


def test_a_defect_of_ours_is_one_line_and_a_file(tmp_path: Path) -> None:
    code = (
        "import sys, testbed.cli, testbed.config\n"
        "def broken(*a, **k): raise ZeroDivisionError('round over zero\\nmore')\n"
        "testbed.config.load_lab = broken\n"
        "sys.argv = ['testbed', 'doctor']\n"
        "testbed.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    (log,) = tmp_path.glob("testbed-crash-*.log")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error[defect]: ZeroDivisionError: round over zero -> ") and str(log) in done.stderr
    assert "Traceback" in log.read_text() and "in broken" in log.read_text()


EVENTS = [
    {"kind": "run-started", "run": "7", "rounds": 2, "first_round": 0, "clients": ["a", "b"], "scheme": "air-meta-pfl"},
    {"kind": "node-changed", "node": "a", "state": "lost"},
    {"kind": "round-finished", "round": 0, "clients": ["a"], "nmse_sum_db": -25.04, "nmse_canary_db": None},
    {"kind": "evaluated", "round": 0, "accuracy_new_clients": 0.5},
    {"kind": "round-finished", "round": 1, "clients": [], "voided": True, "losses": [{"node": "a", "reason": "[x]"}]},
    {"kind": "warning", "code": "handshake", "text": "a peer [was] refused"},
    {
        "kind": "run-finished",
        "outcome": "finished",
        "rounds": 2,
        "voided": 1,
        "median_nmse_sum_db": -25.04,
        "median_nmse_canary_db": -24.6,
        "median_nmse_predicted_db": -25.3,
        "trained": {"accuracy_new_clients_before": 0.21, "accuracy_new_clients": 0.803},
        "error_free": {"accuracy_new_clients_before": 0.22, "accuracy_new_clients": 0.811},
        "untrained": {"accuracy_new_clients_before": 0.2, "accuracy_new_clients": 0.456},
    },
]


def show(terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, color_system=None)
    with Terminal(console, "runs/7") as reader:
        for event in EVENTS:
            reader(event)
    return text.getvalue()


def test_a_log_gets_plain_lines_and_the_final_table() -> None:
    lines = show(terminal=False)
    assert "\x1b" not in lines
    assert "round 1: NMSE -25.0 dB (canary -, predicted -), 1 clients" in lines
    assert "round 1: accuracy of new clients 50.0 %" in lines
    assert "round 2 VOIDED" in lines and "node a: lost" in lines and "a peer [was] refused" in lines
    for row in ("over the air", "error-free aggregation", "no training"):
        assert row in lines
    assert "21.0 %" in lines and "80.3 %" in lines and "81.1 %" in lines and "45.6 %" in lines
    assert "measured -25.0 dB, canary -24.6 dB, predicted -25.3 dB; 1 voided" in lines
    assert lines.rstrip().endswith("run folder: runs/7")


def test_a_terminal_gets_a_bar_and_the_same_table() -> None:
    lines = show(terminal=True)
    assert "\x1b" in lines and "2/2" in lines and "round 2 voided: a [x]" in lines
    assert "no training" in lines and "run folder: runs/7" in lines


def test_the_reader_survives_events_it_does_not_know() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Terminal(console, "x") as reader:
        for event in ({}, {"kind": "from-the-future"}, {"kind": "run-finished"}, {"kind": "round-finished"}):
            reader(event)


def test_json_is_one_event_per_line() -> None:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), JsonReader() as reader:
        for event in EVENTS:
            reader(event)
    assert [json.loads(line) for line in text.getvalue().splitlines()] == EVENTS


def test_init_says_where_it_cannot_write(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = shell("init", "file/room")
    assert code == 7 and "cannot write starter files" in err
