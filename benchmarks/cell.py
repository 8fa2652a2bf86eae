"""Whole cells on the simulated air: error of the sum against formula, prediction and canary, and outcomes of locking.

``python benchmarks/cell.py [rounds]`` prints one row per cell; 100 rounds take some minutes on one core.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from typing import Any

import numpy as np

from calibration import NodeBudget, predict_nmse_db
from radio.cell import Cell, nmse_db, random_symbols
from radio.ether import Ether
from radio.loopback import LoopbackRadio
from radio.ofdm import PROFILES, Profile, capacity
from radio.presets import preset

NODES = 8
PLUTO = dataclasses.replace(PROFILES["pluto-915"], modes=("R", "C"))
DUPLEX = dataclasses.replace(PLUTO, name="pluto-915 -20 MHz", downlink_hz=PLUTO.carrier_hz - 20e6)
CORNERS = {"server": {"ppm": -25.0}, **{f"node-{i}": {"ppm": 25.0 * (-1) ** i} for i in range(1, NODES + 1)}}


def run(
    air: str,
    snr_db: float,
    mode: str,
    rounds: int,
    *,
    profile: Profile = PLUTO,
    precoder: str = "phase",
    backoff_db: float = 9.0,
    seed: int = 1,
    note: str = "",
    **changes: Any,
) -> None:
    """Join one cell, play rounds, print a row."""
    names = [f"node-{i}" for i in range(1, NODES + 1)]
    ether = Ether(preset(air, snr_db=snr_db, seed=seed, **changes), ["server", *names])
    cell = Cell(
        LoopbackRadio("server", ether),
        {name: LoopbackRadio(name, ether) for name in names},
        profile,
        mode,
        precoder,
        seed=seed,
    )
    begun = time.perf_counter()
    cell.open()
    cell.uplink.backoff_db = backoff_db
    refused = cell.join()
    uplink, rng = cell.uplink, np.random.default_rng(seed)
    rows: list[tuple[float, ...]] = []
    voids = lost = 0
    away = sorted(refused)
    for number in range(rounds):
        inside = uplink.noise / uplink.level**2
        budgets = [
            NodeBudget(
                uplink.arrival(name) ** 2,
                math.sqrt(peer.phase_variance),
                peer.sigma_eps if precoder == "inversion" else 0.0,
            )
            for name, peer in uplink.peers.items()
        ]
        predicted = predict_nmse_db("C" if mode == "C" else "R", budgets, inside)
        alone = sum(budget.power for budget in budgets)
        formula = 10 * math.log10(inside / alone / (2 if mode == "R" else 1))
        sent = random_symbols(sorted(uplink.peers), capacity(profile, mode) // 2, rng)
        outcome = cell.round(sent, number)
        assert outcome.target is not None
        aggregate = outcome.aggregate
        voids += aggregate.verdict.action == "void"
        lost += len(outcome.lost)
        away = sorted({*away, *outcome.lost})
        if away and number % 5 == 4:
            away = sorted(cell.join(away))
        measured = nmse_db(aggregate.symbols, outcome.target)
        sizes = (aggregate.phase_rms_rad, max(outcome.sigma_rad.values()), -10 * math.log10(aggregate.noise))
        rows.append((measured, formula, predicted, aggregate.canary_nmse_db, *sizes))
    table = np.array(rows)
    middle = np.median(table, axis=0)
    mean_db = 10 * math.log10(np.mean(10 ** (table[:, 0] / 10)))
    print(
        f"{air:18s} {profile.name:17s} {mode} {precoder:9s} {snr_db:4.0f} {seed:4d} "
        f"{middle[0]:8.2f} {mean_db:7.2f} {middle[1]:7.2f} {middle[2]:7.2f} {middle[3]:7.2f} "
        f"{middle[4]:6.3f} {middle[5]:6.3f} {middle[6]:6.2f} {len(uplink.peers):2d} {len(refused):2d} {lost:2d} "
        f"{voids:3d} {time.perf_counter() - begun:6.1f}  {note}",
        flush=True,
    )


def main() -> None:
    """Run all cells."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print(
        "air                profile           m precoder   snr seed measured   mean   noise predict  canary  "
        "phase  sigma    snr in out lo voi seconds"
    )
    for mode in ("R", "C"):
        for snr_db in (0.0, 10.0, 20.0, 30.0):
            run("ideal", snr_db, mode, rounds)
        run("ideal", 33.0, mode, rounds, backoff_db=12.0, note="12 dB back-off: gamma 30 dB without clipping")
    for seed in range(1, 6):
        run("pluto-stock", 20.0, "R", rounds, seed=seed)
    for seed in (1, 2):
        run("pluto-stock", 20.0, "R", rounds, seed=seed, profile=DUPLEX)
        run("pluto-stock", 20.0, "R", rounds, seed=seed, precoder="inversion")
    run("pluto-stock", 20.0, "R", rounds, radios=CORNERS, note="+-25 ppm")
    for snr_db in (0.0, 5.0):
        run("pluto-stock", snr_db, "R", rounds)
        still = {"rician_k_min_db": 15.0, "rician_k_max_db": 15.0}
        run("pluto-stock", snr_db, "R", rounds, radios=CORNERS, note="+-25 ppm, shallow fading", **still)
    whole = {"server": {"drop_probability": 0.0}}
    run("pluto-stock", 20.0, "R", rounds, drop_probability=5e-4, radios=whole, note="nodes lose 1 of 2000 blocks")
    for mode in ("R", "C"):
        run("pluto-shared-clock", 20.0, mode, rounds)
        run("usrp-ref", 20.0, mode, rounds)
        run("usrp-ref", 20.0, mode, rounds, profile=PROFILES["usrp-ref"])
    run("usrp-free", 20.0, "R", rounds)


if __name__ == "__main__":
    main()
