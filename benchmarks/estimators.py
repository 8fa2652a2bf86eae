"""Tabulates the error of the estimators against the received sum, at the reference settings and around them.

NMSE in dB, median over seeds, through Rayleigh |h| with the power rule; the estimators are told the noise and nothing
of the truth. ``top``: top-k of normal vectors; ``normal``: normal values on random supports.
Run: ``OMP_NUM_THREADS=1 python benchmarks/estimators.py``.
"""

from __future__ import annotations

import math
import statistics

import torch

from fl_core.decode import ESTIMATORS, nmse_db, recoverable
from fl_core.encode import kept_entries, power_scale, top_k
from fl_core.mappings import make_mapping

SETTINGS = [
    # clients, keep, measure, SNR dB, mapping
    (5, 0.04, 0.4, 20.0, "rdft"),
    (10, 0.04, 0.4, 20.0, "rdft"),
    (10, 0.04, 0.1, 20.0, "rdft"),
    (5, 0.04, 0.4, 0.0, "rdft"),
    (5, 0.04, 0.4, 10.0, "rdft"),
    (5, 0.04, 0.4, 40.0, "rdft"),
    (5, 0.04, 0.4, 20.0, "dft-all"),
    (5, 0.04, 0.4, 20.0, "pair-dft"),
    (5, 0.04, 0.4, 20.0, "pair"),
]


def errors(
    clients: int, keep: float, measure: float, snr_db: float, mapping: str, values: str, seed: int, d: int = 8192
) -> dict[str, float]:
    """Return the NMSE in dB of every estimator for one draw."""
    source = torch.Generator().manual_seed(seed)
    k = kept_entries(keep, d)
    sparse = torch.zeros(clients, d)
    for i in range(clients):
        dense = torch.randn(d, generator=source)
        chosen = torch.randperm(d, generator=source)[:k]
        sparse[i] = top_k(dense, k) if values == "top" else torch.zeros(d).index_copy(0, chosen, dense[chosen])
    gains = torch.randn((clients, 2), generator=source).div(math.sqrt(2)).norm(dim=1)
    shape = make_mapping(mapping, d, measure)
    rows = shape.rows(seed, 0)
    symbols = shape.forward(sparse, rows)
    scale = power_scale(symbols.abs().double().square().sum(1).tolist(), shape.symbols)
    variance = 10 ** (-snr_db / 10)
    noise = torch.view_as_complex(torch.randn((shape.symbols, 2), generator=source)) * math.sqrt(variance / 2)
    view = shape.view((gains[:, None] * symbols).sum(0) + noise / scale, variance / scale**2, rows)
    truth = (gains[:, None] * sparse).sum(0)
    return {name: nmse_db(function(view, clients * k, 20), truth) for name, function in ESTIMATORS.items()}


def main(seeds: int = 21) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{'s':>3} {'k/d':>5} {'M/d':>5} {'SNR':>4} {'mapping':>9} {'values':>7} | linear    iht   oamp | advice")
    for settings in SETTINGS:
        clients, keep, measure, snr_db, mapping = settings
        advice = recoverable(make_mapping(mapping, 8192, measure).real_rows(), 8192, keep, clients)
        for values in ("top", "normal"):
            draws = [errors(*settings, values, seed) for seed in range(seeds)]
            medians = [statistics.median(draw[name] for draw in draws) for name in ESTIMATORS]
            figures = " ".join(f"{value:6.1f}" for value in medians)
            print(
                f"{clients:3d} {keep:5.2f} {measure:5.2f} {snr_db:4.0f} {mapping:>9} {values:>7} | {figures} | "
                f"{'too few measurements' if advice else 'fine'}"
            )


if __name__ == "__main__":
    main()
