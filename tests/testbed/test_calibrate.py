"""`testbed calibrate` through the real command line, over real daemons of a simulated lab."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calibration.steps import NAMES

QUICK = [
    f"lab.calibration.{item}"
    for item in (
        "integrity_s=3",
        "restarts=3",
        "warm_up_s=2",
        "oscillator_s=3",
        "soundings=6",
        "timing_bursts=20",
        "phase_bursts=4",
        "sums=2",
    )
]


def testbed(folder: Path, *words: str, settings: list[str] = ()) -> subprocess.CompletedProcess[str]:
    more = [part for item in settings for part in ("--set", item)]
    return subprocess.run(
        [sys.executable, "-m", "testbed", *words, *more], cwd=folder, capture_output=True, text=True, timeout=280
    )


testbed.__test__ = False


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two nodes of the built-in lab were calibrated in two goes."""
    folder = tmp_path_factory.mktemp("lab")
    two = ["--node", "node-1", "--node", "node-2"]
    first = testbed(folder, "calibrate", *two, "--steps", "inventory,preflight,noise", settings=QUICK)
    assert first.returncode == 0, first.stderr
    rest = testbed(folder, "calibrate", *two, "--resume", "latest", "--json")
    assert rest.returncode == 0, rest.stderr
    (folder / "verdict.json").write_text(rest.stdout)
    return folder


def test_a_calibration_that_was_broken_off_goes_on_where_it_stopped(lab: Path) -> None:
    told = json.loads((lab / "verdict.json").read_text())
    assert told["passed"] and set(told["nodes"]) == {"node-1", "node-2"}
    records = {path.name.split("-")[0] for path in (lab / "calibrations" / "1" / "records").glob("*.json")}
    assert records == set(NAMES)
    assert not list((lab / "calibrations" / "1" / "records").glob("*.2.json"))  # nothing was measured twice
    assert [path.name for path in (lab / "calibrations").iterdir() if path.name.isdigit()] == ["1"]


def test_it_leaves_a_report_and_recordings(lab: Path) -> None:
    folder = lab / "calibrations" / "latest"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "node-2" in page and page.count("<img") >= 10
    assert {path.name for path in (folder / "captures").glob("*.sigmf-meta")} >= {
        "noise.sigmf-meta",
        "sounding.sigmf-meta",
        "sum.sigmf-meta",
    }


def test_one_step_of_it_can_be_measured_again(lab: Path) -> None:
    again = testbed(lab, "calibrate", "--resume", "latest", "--steps", "preflight", "--node", "node-1")
    assert again.returncode == 0, again.stderr
    told = json.loads((lab / "calibrations" / "1" / "calibration.json").read_text())["verdict"]
    first = json.loads((lab / "verdict.json").read_text())
    assert told["nodes"] == first["nodes"] and told["nmse_measured_db"] == first["nmse_measured_db"]
    records = lab / "calibrations" / "1" / "records"
    assert (records / "preflight-node-1.2.json").is_file() and (records / "preflight-node-1.json").is_file()


def test_what_is_wrong_is_named_and_ends_with_4(tmp_path: Path) -> None:
    bad = [*QUICK, 'lab.ether.radios={"node-2"={serial="loopback-node-1"}}']
    done = testbed(tmp_path, "calibrate", "--node", "node-1", "--node", "node-2", settings=bad)
    assert done.returncode == 4
    errors = [line for line in done.stderr.splitlines() if line.startswith("error[")]
    assert len(errors) == 2 and all("error[calibration-failed]: inventory, serial: " in line for line in errors)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "calibrations" / "1" / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--steps", "nosie"], "no calibration step 'nosie'"),
        (["--node", "node-99"], "no node 'node-99'"),
        (["--resume", "7"], "no calibration"),
    ],
)
def test_a_slip_of_the_pen_is_one_line(tmp_path: Path, words: list[str], told: str) -> None:
    done = testbed(tmp_path, "calibrate", *words)
    assert done.returncode != 0 and told in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error[")]) == 1
    assert not (tmp_path / "calibrations").exists()
