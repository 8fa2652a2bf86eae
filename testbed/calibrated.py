"""What a run takes from a calibration: leave to start, figures of its nodes, and whether the records still hold."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibration.predict import refuse_coherent
from calibration.record import FAST, CalibrationFolder, RadioKey
from radio.disk import disk_errors, write_whole
from radio.errors import CalibrationError, Damaged, Failed, Stale
from radio.ofdm import Profile
from testbed.config import NodeEntry
from testbed.messages import Hello

__all__ = ["Calibrated", "node_key"]

#: Folder of a run that holds its copy, and the file in it that says where it is from and what was accepted.
COPY, USE = "calibration", "use.json"
#: What an Allan deviation may be for the trackers: below, other noise is larger; above, there is nothing to track.
LEAST_ADEV, MOST_ADEV = 1e-13, 1e-6


def node_key(hello: Hello, entry: NodeEntry, profile: Profile) -> RadioKey:
    """Give the key of a node's radio as its Hello, the lab and the waveform tell it."""
    return RadioKey(
        hello.serial,
        hello.driver,
        profile.rate_hz,
        profile.carrier_hz,
        profile.beacon_hz,
        profile.bandwidth_hz,
        entry.rx_gain_db,
        entry.tx_attenuation_db,
        entry.antenna or "",
    )


class Calibrated:
    """The calibration that a run uses.

    Args:
        folder: the calibration, or a run's copy of it.
        source: where it is from, for messages.
        accept_stale: use records that are too old.
        now: present time; None: by the clock.

    Raises:
        Damaged: a record is not as it was written.
    """

    def __init__(
        self, folder: CalibrationFolder, source: str, accept_stale: bool = False, now: datetime | None = None
    ) -> None:
        self.folder, self.source, self.accept_stale = folder, source, accept_stale
        self.records = folder.records()
        self.now = datetime.now(UTC) if now is None else now

    @classmethod
    def of(cls, run: Path) -> Calibrated | None:
        """Read the calibration in the folder of a run; None when it uses none.

        Raises:
            Damaged: it is not as it was written.
        """
        path = run / COPY
        if not path.is_dir():
            return None
        try:
            told = json.loads((path / USE).read_bytes())
            source, accept_stale = str(told["source"]), bool(told["accept_stale"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{path / USE}: damaged: {error!r}", "start the run again with --calibration") from error
        return cls(CalibrationFolder.open(path), source, accept_stale)

    def keep(self, run: Path) -> None:
        """Copy what the run needs into its folder, so that it can be repeated from there alone.

        Raises:
            RunError: the disk is full, or the folder cannot be written.
        """
        copy = run / COPY
        if not copy.exists():
            with disk_errors(copy, "copy the calibration"):
                shutil.copytree(self.folder.path / "records", copy / "records")
                shutil.copy(self.folder.path / "calibration.json", copy)
        write_whole(copy / USE, json.dumps({"source": self.source, "accept_stale": self.accept_stale}).encode())

    def ready(self) -> None:
        """Check what can be checked before any radio is asked: the verdict, and the age of every record.

        Raises:
            CalibrationError: no run may start with it.
        """
        self.passed()
        for radio in sorted({radio for _, radio in self.records}):
            self.check(radio)

    def passed(self) -> dict[str, Any]:
        """Give the verdict of a calibration that was finished and found nothing wrong.

        Raises:
            CalibrationError: it was not finished.
            Failed: it found something.
        """
        verdict = self.folder.verdict
        if verdict is None:
            raise CalibrationError(
                f"{self.source}: its calibration is not finished", "finish it: testbed calibrate --resume"
            )
        for found in verdict.get("findings", ()):
            raise Failed(f"{self.source}: {found['step']} of {found['radio']}: {found['text']}", found["remedy"])
        return verdict

    def permit(self, names: Sequence[str], mode: str, precoder: str, profile: Profile) -> list[str]:
        """Make sure that the calibration permits a run.

        Args:
            names: nodes that take part.
            mode: mapping of values to elements.
            precoder: of the scheme; with ``none`` no phases need to be known.
            profile: waveform.

        Returns:
            Warnings.

        Raises:
            CalibrationError: it does not.
        """
        verdict = self.passed()
        nodes = {name: verdict.get("nodes", {}).get(name, {}) for name in names}
        sigmas = {name: float(node["sigma_rad"]) for name, node in nodes.items() if node.get("sigma_rad") is not None}
        if precoder != "none":
            for name, sigma in sigmas.items():
                if reason := refuse_coherent(sigma):
                    raise CalibrationError(
                        f"{self.source}: {name}: {reason}", 'use scheme.name = "fsk-mv" or "reed", which need no phases'
                    )
            unfit = [name for name, node in nodes.items() if mode == "C" and "C" not in node.get("modes", ())]
            for name in sorted(unfit, key=lambda name: -sigmas.get(name, math.inf)):
                told = f"its phase error is {sigmas[name]:.3f} rad" if name in sigmas else "its phase error is unknown"
                raise CalibrationError(
                    f"{self.source}: mode C is not permitted for {name}: {told}",
                    'use waveform.mode = "R", or a shared reference',
                )
        longest_s, burst_s = verdict.get("largest_burst_s"), profile.burst_samples / profile.rate_hz
        if longest_s is None or burst_s <= longest_s:
            return []
        return [f"bursts last {1e3 * burst_s:.1f} ms, the largest useful burst of this lab {1e3 * longest_s:.1f} ms"]

    def check(self, radio: str, key: RadioKey | None = None) -> list[str]:
        """Check that what is known of a radio still holds; what a run measures again by itself may be old.

        Args:
            radio: ``server`` or a node.
            key: the radio and its settings now; None: only the ages are checked.

        Returns:
            What is too old, but was accepted.

        Raises:
            CalibrationError: the radio was not calibrated.
            Foreign, Stale: a record does not hold.
        """
        mine = [record for (_, name), record in self.records.items() if name == radio]
        if not mine:
            raise CalibrationError(f"{self.source}: {radio} was not calibrated", "calibrate this lab again")
        stale = []
        for record in mine:
            try:
                record.check(record.key if key is None else key, self.now)
            except Stale as error:
                if record.result.step in FAST:
                    continue
                if not self.accept_stale:
                    raise Stale(error.message, f"{error.remedy}, or go on with --accept-stale") from error
                stale.append(error.message)
        return stale

    def adev(self, node: str) -> float | None:
        """Give the Allan deviation per crystal for the tracker of a node; None when it was not measured.

        A tracker follows the difference of two like crystals, so each has the measured pair's over the root of two.
        """
        pair = self._number("oscillator", node, "adev")
        return None if pair is None else min(max(pair / math.sqrt(2), LEAST_ADEV), MOST_ADEV)

    def prior(self, node: str) -> tuple[float, float]:
        """Give what is known of a node's errors before its first burst: phase variance in rad^2, relative amplitude."""
        sigma, level_db = self._number("phase", node, "sigma_rad"), self._number("balance", node, "level_db")
        amplitude = 0.0 if level_db is None else abs(10 ** (level_db / 20) - 1)
        return (0.0 if sigma is None else sigma**2), amplitude

    def _number(self, step: str, radio: str, name: str) -> float | None:
        record = self.records.get((step, radio))
        return None if record is None or name not in record.result.values else record.result.number(name)
