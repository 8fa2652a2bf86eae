"""Times exact meta-gradients of 32 clients: batched with vmap, against a plain double-backward loop in the same run.

MLP 784-200-5, 5 ways, 25 support, 75 query and 25 Hessian images per client, one inner step. Prints milliseconds
(median), the ratio to the loop, and how far each form raised the resident memory at its peak (Linux only). Forms take
turns in one process for the times, and have a process each for the memory.

Usage: python benchmarks/meta_gradient.py [threads]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from fl_core.data import Batch, Task
from fl_core.maml import local_updates
from fl_core.models import Model, build
from fl_core.options import ModelOptions
from fl_core.seeds import generator

CLIENTS, WAYS, ALPHA = 32, 5, 0.4
REPEATS = 15


def tasks() -> Task:
    """Random images: the cost does not depend on what they show."""
    rng = generator(0, "benchmark")

    def batch(shots: int) -> Batch:
        labels = torch.arange(WAYS).repeat_interleave(shots).expand(CLIENTS, 1, -1)
        return Batch(torch.rand(CLIENTS, 1, WAYS * shots, 1, 28, 28, generator=rng), labels)

    return Task(batch(5), batch(15), batch(5))


def loop(model: Model, theta: torch.Tensor, stacked: Task) -> torch.Tensor:
    """Compute the same meta-gradients client by client with torch.autograd only."""

    def slope(at: torch.Tensor, batch: Batch, client: int, create: bool = False) -> torch.Tensor:
        value = F.cross_entropy(model.logits(at, batch.x[client, 0]), batch.y[client, 0])
        return torch.autograd.grad(value, at, create_graph=create)[0]

    results = []
    for client in range(CLIENTS):
        leaf = theta.detach().requires_grad_()
        inner = slope(leaf, stacked.support, client)
        outer = slope((theta - ALPHA * inner).requires_grad_(), stacked.query, client)
        curved = slope(leaf, stacked.hessian, client, create=True)
        (product,) = torch.autograd.grad(curved @ outer, leaf)
        results.append(outer - ALPHA * product)
    return torch.stack(results)


def forms() -> dict[str, Callable[[], torch.Tensor]]:
    """Name every form that is timed; eta = 1 and one local step make the update the meta-gradient."""
    model = build(ModelOptions(hidden=(200,), activation="relu"), (1, 28, 28), WAYS)
    theta, stacked = model.init(generator(0, "init")), tasks()
    batched = {
        f"vmap, chunks of {chunk}": (
            lambda chunk=chunk: local_updates(model, theta, stacked, ALPHA, 1.0, "exact", chunk)
        )
        for chunk in (32, 8, 4)
    }
    default = {"vmap, default chunk": lambda: local_updates(model, theta, stacked, ALPHA, 1.0, "exact")}
    return {"loop": lambda: loop(model, theta, stacked), **default, **batched}


def peak_mb(name: str) -> float:
    """Run one form alone and return how far it raised the process's resident memory at its peak, in MB."""
    form = forms()[name]
    # Importing torch leaves a higher peak behind than small forms reach; Linux resets the mark on request (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    for _ in range(3):
        form()
    return (_status_kb("VmHWM") - before) / 1024


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Print the table."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    if len(sys.argv) > 2:
        print(peak_mb(sys.argv[2]))
        return
    timed = forms()
    truth = timed["loop"]()
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(REPEATS):
        for name, form in timed.items():
            start = time.perf_counter()
            result = form()
            seconds[name].append(time.perf_counter() - start)
            assert float((result - truth).norm() / truth.norm()) < 1e-5, name
    base = statistics.median(seconds["loop"])
    print(f"{CLIENTS} clients, MLP 784-200-5, {threads} thread(s), torch {torch.__version__}")
    print(f"{'form':24}{'ms':>8}{'loop / form':>13}{'peak MB':>9}")
    for name, values in seconds.items():
        median = statistics.median(values)
        command = [sys.executable, __file__, str(threads), name]
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{name:24}{1e3 * median:8.1f}{base / median:13.2f}{peak:9.0f}")


if __name__ == "__main__":
    main()
