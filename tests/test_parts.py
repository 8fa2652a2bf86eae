"""The promise that nothing is skipped: where every part is promised, each way of not running a test fails the run."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SKIPS = {
    "mark": "@pytest.mark.skip(reason='why')\ndef test_a(): pass",
    "condition": "@pytest.mark.skipif(True, reason='why')\ndef test_a(): pass",
    "call": "def test_a(): pytest.skip('why')",
    "fixture": "@pytest.fixture\ndef part(): pytest.skip('why')\ndef test_a(part): pass",
    "module": "pytest.skip('why', allow_module_level=True)",
    "library": "pytest.importorskip('no_such_library', reason='why')",
    "class": "import unittest\n@unittest.skip('why')\nclass TestA(unittest.TestCase):\n def test_a(self): pass",
    "no_cases": "@pytest.mark.parametrize('case', [])\ndef test_a(case): pass",
}
RUN = "@pytest.mark.xfail\ndef test_expected(): assert False\ndef test_good(): pass"


def run(folder: Path, files: dict[str, str], promised: str, *options: str) -> subprocess.CompletedProcess[str]:
    hooks = "from parts import pytest_make_collect_report, pytest_runtest_makereport"
    for name, body in {"conftest": hooks, **{f"test_{name}": body for name, body in files.items()}}.items():
        (folder / f"{name}.py").write_text(f"import pytest\n{body}\n")
    env = {**os.environ, "PYTHONPATH": str(HERE), "TESTBED_ALL_PARTS": promised, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--continue-on-collection-errors", *options, "."]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=120, check=False)


def test_every_kind_of_skip_is_a_failure_where_all_parts_are_promised(tmp_path: Path) -> None:
    for options in ((), ("-p", "xdist", "-n", "2")):
        done = run(tmp_path, {**SKIPS, "run": RUN}, "1", *options)
        assert done.returncode == 1, done.stdout
        refused = {line.split(".py")[0] for line in done.stdout.splitlines() if "allows no skip" in line}
        assert {f"test_{name}" for name in SKIPS} <= refused, done.stdout
        assert f"1 failed, 1 passed, 1 xfailed, {len(SKIPS) - 1} errors" in done.stdout, done.stdout


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    done = run(tmp_path, {**SKIPS, "run": RUN}, "0")
    assert done.returncode == 0 and f"1 passed, {len(SKIPS)} skipped, 1 xfailed" in done.stdout, done.stdout


def test_a_run_without_skips_passes(tmp_path: Path) -> None:
    done = run(tmp_path, {"run": RUN}, "1")
    assert done.returncode == 0 and "1 passed, 1 xfailed" in done.stdout, done.stdout
