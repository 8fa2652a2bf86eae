"""Writes the lab file of a digital twin into the folder of its calibration; knows no air and no measurement."""

from __future__ import annotations

from pathlib import Path

from calibration.record import CalibrationFolder
from calibration.twin import twin_options
from radio.disk import write_whole
from radio.ofdm import PROFILES
from testbed import toml
from testbed.config import Lab, load

__all__ = ["write_twin"]


def write_twin(folder: CalibrationFolder) -> Path:
    """Write ``twin.toml``: the calibrated lab with simulated radios on the air that its records describe.

    Nodes that were not calibrated are left out.

    Returns:
        Its path; ``testbed run --lab`` takes it.

    Raises:
        CalibrationError: a record is damaged, or the calibration did not come far enough.
        RunError: the disk is full, or the folder cannot be written.
    """
    pair = load(folder.path)
    air = twin_options(folder.records(), PROFILES[pair.experiment.waveform.profile])
    table = pair.lab.model_dump(mode="json")
    nodes = [{**entry, "radio": f"loopback:{entry['name']}"} for entry in table["nodes"] if entry["name"] in air.links]
    server = {**table["server"], "radio": "loopback:server"}
    told = {**table, "name": f"twin of {table['name']}", "server": server, "nodes": nodes}
    twin = Lab.model_validate({**told, "ether": air.model_dump(mode="json")})
    path = folder.path / "twin.toml"
    write_whole(path, toml.dumps(twin.model_dump(mode="json")).encode())
    return path
