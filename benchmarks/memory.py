"""Peak resident memory of real daemons, beside the size of one parameter vector; two nodes on a simulated air.

``python benchmarks/memory.py [hidden ...]`` runs two rounds per model width. The default widths give 112 thousand and 1
million parameters; the second takes some minutes. What a process holds before any model is there (interpreter, torch,
compiled loops) is measured with the smallest model and subtracted.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from testbed.config import load
from testbed.launch import ETHER, Launcher
from testbed.run import RunFolder, read_events

WIDTHS = (1600, 14286)  # 70 h + 5 parameters on the digits: 112,005 and 1,000,025
ROUNDS = 2
SETTINGS = (
    'lab.nodes=[{name="node-1",radio="loopback:node-1"},{name="node-2",radio="loopback:node-2"}]',
    "data.clients=2",
    "run.clients_per_round=2",
    f"run.rounds={ROUNDS}",
    f"run.evaluate_every={ROUNDS}",
    "run.compare=false",
    "run.train_timeout_s=600",
    "lab.heartbeat.allowance_s=120",
    "lab.heartbeat.give_up_s=600",
)


def peak_mib(process_number: int) -> float:
    """Read the largest resident set that a process has had; 0 when it has ended."""
    try:
        status = Path(f"/proc/{process_number}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def measure(hidden: int, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]], float]:
    """Run two rounds: peak memory by process in MiB, the events, and seconds from start to end."""
    pair = load(None, None, [*SETTINGS, f"model.hidden=[{hidden}]"])
    run = RunFolder.create(folder, pair)
    peaks: dict[str, float] = {}
    begun = time.perf_counter()
    with Launcher(pair, run) as launcher:
        launcher.start()
        going = True
        while going:
            going = launcher.step()
            for name, process in launcher.processes.items():
                peaks[name] = max(peaks.get(name, 0.0), peak_mib(process.pid))
            time.sleep(0.02)
    return peaks, list(read_events(run.events_path)), time.perf_counter() - begun


def main() -> None:
    """Print one row per width."""
    widths = [int(word) for word in sys.argv[1:]] or list(WIDTHS)
    base: dict[str, float] = {}
    titles = f"{'parameters':>10} {'vector':>8}   {'process':8} {'peak':>9} {'over base':>10} {'in vectors':>10}"
    print(titles + "   seconds: train, air, decode (medians per round), whole run")
    for hidden in [8, *widths]:
        with tempfile.TemporaryDirectory() as folder:
            peaks, events, seconds = measure(hidden, Path(folder))
        d = next(event["dimension"] for event in events if event["kind"] == "run-started")
        rounds = [event for event in events if event["kind"] == "round-finished"]
        vector = 4 * d / 2**20
        times = [median(event[f"seconds_{what}"] for event in rounds) for what in ("train", "air", "decode")]
        nodes = max(peak for name, peak in peaks.items() if name.startswith("node-"))
        for name, peak in (("server", peaks["server"]), ("node", nodes), (ETHER, peaks[ETHER])):
            over = peak - base.setdefault(name, peak)
            row = f"{d:10,} {vector:5.2f} MiB   {name:8} {peak:5.0f} MiB {over:6.0f} MiB {over / vector:10.1f}"
            print(row + ("   " + ", ".join(f"{each:.2f}" for each in (*times, seconds)) if name == "server" else ""))


if __name__ == "__main__":
    main()
