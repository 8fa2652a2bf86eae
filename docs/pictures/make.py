"""Draw the README's picture from a run folder; knows events, recomputes nothing.

Usage: ``.venv/bin/python docs/pictures/make.py runs/1``
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from testbed.run import read_events


def draw(folder: Path, target: Path) -> None:
    """Draw the error of the sum per round, and the accuracy of new clients beside it."""
    events = list(read_events(folder / "events.jsonl"))
    rounds = [event for event in events if event["kind"] == "round-finished"]
    evaluated = [event for event in events if event["kind"] == "evaluated"]
    end = [event for event in events if event["kind"] == "run-finished"][-1]
    number = [event["round"] + 1 for event in rounds]

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    series = (
        ("nmse_sum_db", "measured against the truth", {"color": "#0b3d63", "lw": 1.8}),
        ("nmse_canary_db", "canary, measured in band", {"color": "#d1662a", "lw": 1.2}),
        ("nmse_predicted_db", "predicted before the burst", {"color": "#6b6b6b", "lw": 1.2, "ls": "--"}),
    )
    for key, label, style in series:
        values = [float("nan") if event[key] is None else event[key] for event in rounds]
        left.plot(number, values, label=label, **style)
    low = min(event[key] for key, _, _ in series for event in rounds if event[key] is not None)
    high = max(event[key] for key, _, _ in series for event in rounds if event[key] is not None)
    left.set(xlabel="round", ylabel="NMSE of the sum in dB", ylim=(low - 2, high + 6), title="Eight radios, one sum")
    left.legend(frameon=False, loc="upper right")
    left.grid(alpha=0.25)

    x = [0] + [event["round"] + 1 for event in evaluated]
    y = [end["untrained"]["accuracy_new_clients"]] + [event["accuracy_new_clients"] for event in evaluated]
    right.plot(x, [100 * value for value in y], "o-", color="#0b3d63", ms=4, label="over the air")
    for key, label, style in (
        ("error_free", "error-free aggregation, at the end", {"color": "#d1662a", "ls": "--"}),
        ("untrained", "no training", {"color": "#6b6b6b", "ls": ":"}),
    ):
        right.axhline(100 * end[key]["accuracy_new_clients"], label=label, **style)
    right.set(xlabel="round", ylabel="accuracy in %", ylim=(40, 100), title="New clients, after one fine-tuning step")
    right.legend(frameon=False, loc="lower right")
    right.grid(alpha=0.25)
    figure.savefig(target, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("give a run folder")
    draw(Path(sys.argv[1]), Path(__file__).with_name("run.png"))
