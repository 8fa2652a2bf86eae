"""Every example is valid, and the starter files are the first of them."""

from pathlib import Path

import pytest

from testbed.config import load, starter

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("folder", sorted(path for path in EXAMPLES.iterdir() if path.is_dir()), ids=lambda p: p.name)
def test_example_loads_and_needs_nothing_but_itself(folder):
    pair = load(folder / "experiment.toml")
    assert pair.lab_source == str(folder / "lab.toml")
    assert pair.lab.ether is not None and pair.lab.keys == ""
    assert len(pair.lab.nodes) == pair.experiment.data.clients


def test_the_digits_example_is_the_starter_experiment():
    assert (EXAMPLES / "digits" / "experiment.toml").read_text() == starter("experiment.toml")
