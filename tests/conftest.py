"""For all tests: array shapes and types in annotations are checked at run time, and torch uses one thread.

One thread: results do not depend on the cores, and busy machines do not spin. Checks: beartype, through jaxtyping's
import hook, in every module that handles arrays, except those whose functions numba compiles (it cannot compile a
checking wrapper), those with annotations of names that exist for the type checker alone, and radios with the guard in
front of them, which must themselves refuse arrays of a wrong type. Where every part of the system is promised, a skip
fails.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("radio", "fl_core", "calibration")
UNCHECKED = {
    *(f"radio.{name}" for name in ("airkernel", "clockkernel", "pairs", "search", "safety")),
    *(f"radio.{name}" for name in ("apart", "loopback", "pluto_radio", "replay", "usrp", "usrp_stream")),
    # the inside of the simulated air: hundreds of thousands of calls per test, seen through the checked door in front
    *(f"radio.{name}" for name in ("clock", "render", "station", "ether", "links", "impairments")),
}


def _modules() -> list[str]:
    """List every module of ours that is checked; a package's own name would take all its modules along."""
    found = [path.relative_to(ROOT).with_suffix("") for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    names = {".".join(path.parts) for path in found if path.name not in ("__init__", "__main__")}
    return [*sorted(names - UNCHECKED), "testbed.learner"]


# An int passes where a float is asked for, as PEP 484 has it.
install_import_hook(_modules(), "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

sys.path.append(str(ROOT / "tests"))
from parts import pytest_make_collect_report, pytest_runtest_makereport  # noqa: E402, F401
from stillness import pytest_configure  # noqa: E402, F401


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    if importlib.util.find_spec("torch") is None:  # the environment that tests the radios of older libraries
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
