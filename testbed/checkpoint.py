"""Knows how to put arrays and JSON on disk so that a crash at any instant leaves a whole checkpoint; nothing of runs.

A checkpoint is two files, ``round-000012.safetensors`` and ``round-000012.json``. The JSON carries the SHA-256 of the
tensors and is renamed into place last, so its presence means that both are complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from radio.disk import disk_errors, write_whole
from radio.errors import RunError

__all__ = [
    "Checkpoint",
    "checkpoint_rounds",
    "load_checkpoint",
    "other_version",
    "save_checkpoint",
]

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to go on after a round.

    Attributes:
        round: last finished round.
        config_hash: ``Pair.fingerprint()`` of the run.
        arrays: name -> array (parameters, memories).
        generators: name -> JSON-able state of a random generator.
        extra: other JSON-able state (clocks, counters, the ether).
    """

    round: int
    config_hash: str
    arrays: Mapping[str, np.ndarray]
    generators: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def checkpoint_rounds(folder: Path) -> list[int]:
    """List the rounds that have a checkpoint, oldest first."""
    return sorted(int(path.stem.removeprefix("round-")) for path in folder.glob("round-*.json"))


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint and delete all but the newest ``keep``.

    Returns:
        The path of its JSON file.

    Raises:
        RunError: the disk is full or the folder cannot be written; older checkpoints are untouched.
    """
    with disk_errors(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"round-{checkpoint.round:06d}"
    blob = save_arrays({name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()})
    head = {
        "format": FORMAT,
        "round": checkpoint.round,
        "config_hash": checkpoint.config_hash,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "generators": dict(checkpoint.generators),
        "extra": dict(checkpoint.extra),
    }
    write_whole(stem.with_suffix(".safetensors"), blob)
    write_whole(stem.with_suffix(".json"), json.dumps(head, sort_keys=True).encode())
    for old in checkpoint_rounds(folder)[:-keep]:
        for suffix in (".json", ".safetensors"):  # JSON first: a lone tensors file is not taken for a checkpoint
            (folder / f"round-{old:06d}{suffix}").unlink(missing_ok=True)
    return stem.with_suffix(".json")


def load_checkpoint(folder: Path, config_hash: str | None = None, round: int | None = None) -> Checkpoint:
    """Read a checkpoint and check that it is whole and belongs to this configuration.

    Args:
        folder: the folder given to ``save_checkpoint``.
        config_hash: fingerprint of the configuration that wants to go on; None: do not compare.
        round: which one; None: the newest.

    Raises:
        RunError: there is none, it is damaged (the message names the file, the remedy the one before), or it was
            written under another configuration (the message carries both hashes).
    """
    rounds = checkpoint_rounds(folder)
    if not rounds or (round is not None and round not in rounds):
        what = "no checkpoint" if round is None else f"no checkpoint of round {round}"
        found = f"; found rounds {', '.join(map(str, rounds))}" if rounds else ""
        raise RunError(f"{folder}: {what}{found}", "start the run again without --resume")
    chosen = rounds[-1] if round is None else round
    path = folder / f"round-{chosen:06d}.json"
    try:
        head = json.loads(path.read_bytes())
        found_hash, digest = str(head["config_hash"]), head["sha256"]
        generators, extra, number = dict(head["generators"]), dict(head["extra"]), int(head["round"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, rounds, chosen, str(error)) from error
    if config_hash is not None and found_hash != config_hash:
        raise RunError(
            f"{path}: written under configuration {found_hash[:12]}, now {config_hash[:12]}",
            "resume with the lab.toml and experiment.toml of the run folder, or start a new run",
        )
    tensors = path.with_suffix(".safetensors")
    try:
        blob = tensors.read_bytes()
    except OSError as error:
        raise _damaged(tensors, rounds, chosen, error.strerror or str(error)) from error
    if hashlib.sha256(blob).hexdigest() != digest:
        raise _damaged(tensors, rounds, chosen, f"SHA-256 of its {len(blob)} bytes differs from the one in {path.name}")
    try:
        arrays = load_arrays(blob)
    except SafetensorError as error:
        raise _damaged(tensors, rounds, chosen, str(error)) from error
    return Checkpoint(number, found_hash, arrays, generators, extra)


def other_version(path: Path, error: Exception) -> RunError:
    """Word the error for a checkpoint whose content this version does not understand."""
    return RunError(
        f"{path}: its checkpoint was written by another version of this program: {error!r}",
        "resume with the version that wrote it, or start a new run",
    )


def _damaged(path: Path, rounds: list[int], chosen: int, reason: str) -> RunError:
    before = [number for number in rounds if number < chosen]
    remedy = (
        f"delete {path.with_suffix('.json')} to resume from round {before[-1]} (round-{before[-1]:06d}.json)"
        if before
        else "there is no earlier checkpoint: start the run again without --resume"
    )
    return RunError(f"{path}: damaged checkpoint: {reason}", remedy)
