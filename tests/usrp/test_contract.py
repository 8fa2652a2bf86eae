"""The contract of every radio, kept by the USRP driver on a simulated E320 that stands on the simulated air."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import test_contract_radio as contract
from simulated import SimulatedLab
from test_contract_radio import *  # noqa: F403  the tests themselves

import radio

pytestmark = pytest.mark.realtime


@contextmanager
def simulated_usrp() -> Iterator[tuple[radio.SafeRadio, radio.RadioConfig]]:
    """Open a USRP that hears its own transmitter, the noise, and nobody else."""
    with SimulatedLab(1, "usrp-free", first=30) as lab, radio.open(f"usrp:{lab.rests[0]}", contract.SAFE) as opened:
        yield opened, contract.CONFIG


@pytest.fixture
def fresh() -> Iterator[tuple[radio.SafeRadio, radio.RadioConfig]]:
    with simulated_usrp() as made:
        yield made


@pytest.fixture
def flowing(fresh: tuple[radio.SafeRadio, radio.RadioConfig]) -> radio.SafeRadio:
    fresh[0].configure(fresh[1])
    return fresh[0]


hearing = flowing
