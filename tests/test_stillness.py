"""A test that fails in a halt of the machine is tried again; one that fails by itself is not."""

import time

import pytest

pytestmark = [pytest.mark.realtime, pytest.mark.timeout(30)]
RUNS = []


@pytest.fixture
def halted(request):
    """Note a halt, as the watch does."""
    watch = request.config.pluginmanager.get_plugin("stillness")
    with watch._log.open("a") as log:
        log.write(f"{time.monotonic()} 0.05\n")
    yield
    RUNS.append("over")


def test_what_failed_in_a_halt_is_tried_again_with_fixtures_of_its_own(halted):
    RUNS.append("run")
    assert RUNS == ["run", "over", "run"]


def test_nothing_is_tried_again_without_a_halt(request):
    watch = request.config.pluginmanager.get_plugin("stillness")
    assert watch.longest_s(time.monotonic()) == 0.0
