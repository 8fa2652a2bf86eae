"""Measures the carrier-offset and delay estimators against the Cramer-Rao bound from 5 to 30 dB, and draws the figure.

Each figure is the rms error over the bound in dB; 0 is the best that any unbiased estimator can do. Run:
``OMP_NUM_THREADS=1 python benchmarks/bounds.py [docs/pictures/bounds.png]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from calibration.bounds import (
    beacon_bound,
    errors_beacon,
    errors_pilot,
    errors_sounding,
    pilot_bound,
    sounding_bound,
)
from radio.ofdm import PROFILES, Profile

SNRS_DB = (5, 10, 15, 20, 25, 30)
TRIALS = 4000
NAMES = ("carrier offset, Hz", "place of a beacon", "delay of a sounding", "delay of a pilot")


def rms(errors: np.ndarray) -> np.ndarray:
    """Root of the mean square over trials."""
    return np.asarray(np.sqrt(np.mean(errors**2, axis=0)))


def measure(profile: Profile, trials: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give measured errors, bounds, and the bounds of a whole beacon (first two rows), each (estimator, snr)."""
    found, least, whole = np.empty((4, len(SNRS_DB))), np.empty((4, len(SNRS_DB))), np.empty((2, len(SNRS_DB)))
    for column, snr_db in enumerate(SNRS_DB):
        rng = np.random.default_rng(snr_db)
        found[:2, column] = rms(errors_beacon(profile, snr_db, trials, rng))
        found[2, column] = rms(errors_sounding(profile, snr_db, trials, rng))
        found[3, column] = rms(errors_pilot(profile, snr_db, trials, rng))
        least[:2, column] = beacon_bound(profile, snr_db)
        least[2, column] = sounding_bound(profile, snr_db)
        least[3, column] = pilot_bound(profile, snr_db)
        whole[:, column] = beacon_bound(profile, snr_db, whole=True)
    return found, least, whole


def draw(found: np.ndarray, least: np.ndarray, whole: np.ndarray, target: Path) -> None:
    """Draw errors and bounds over SNR, carrier offset beside delays."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    colours = ("#0b3d63", "#0b3d63", "#d1662a", "#3c8d5a")
    for row, (name, colour) in enumerate(zip(NAMES, colours, strict=True)):
        place = axes[min(row, 1)]
        place.semilogy(SNRS_DB, least[row], color=colour, lw=1.3)
        place.semilogy(SNRS_DB, found[row], "o", color=colour, ms=5, label=name.removesuffix(", Hz"))
        if row < 2:
            place.semilogy(SNRS_DB, whole[row], color=colour, lw=1.0, ls=":")
    axes[0].set(ylabel="rms error in Hz", title="Carrier offset, one beacon")
    axes[1].set(ylabel="rms error in samples", title="Delay")
    axes[0].plot([], [], color="#0b3d63", lw=1.3, label="bound, training pairs")
    axes[0].plot([], [], color="#0b3d63", lw=1.0, ls=":", label="bound, whole beacon known")
    for place in axes:
        place.set_xlabel("SNR in dB")
        place.grid(alpha=0.25, which="both")
        place.legend(frameon=False, fontsize=9)
    figure.savefig(target, dpi=150)
    plt.close(figure)


def main(picture: Path | None) -> None:
    """Print the table, and draw the figure of the default profile."""
    print(f"{'profile':>10} {'error over bound, dB':>28} | " + " ".join(f"{snr:5d}" for snr in SNRS_DB))
    for name in ("pluto-915", "usrp-ref"):
        found, least, whole = measure(PROFILES[name], TRIALS if name == "pluto-915" else TRIALS // 4)
        ratios = [*zip(NAMES, 20 * np.log10(found / least), strict=True)]
        ratios += [(f"{NAMES[k]}, whole", 20 * np.log10(found[k] / whole[k])) for k in range(2)]
        for label, ratio in ratios:
            print(f"{name:>10} {label:>28} | " + " ".join(f"{value:5.2f}" for value in ratio))
        if picture is not None and name == "pluto-915":
            draw(found, least, whole, picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
