"""Times exact meta-gradients of 32 clients: our path, against a plain double-backward loop and other libraries.

5 ways, 25 support and 75 query images of 28x28 per client, one inner step, exact second order; an MLP 784-200-5 and a
CNN of 64 filters. Prints milliseconds (median), the ratio of each form to ours, and how far each form raised the
resident memory at its peak (Linux only). All forms take turns in one process for the times, and each has a process of
its own for the memory. Before, they are compared in float64, where all agree; in float32 single clients differ between
any two forms, whose rounding puts a ReLU on either side of its kink. Libraries that are not installed are left out:
pip install torchopt higher learn2learn.

Usage: python benchmarks/meta_gradient.py [threads] [clients] [repeats]
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
from peers import as_module, installed

from fl_core.data import Batch, Task
from fl_core.maml import local_updates
from fl_core.models import Model, build
from fl_core.options import ModelOptions
from fl_core.seeds import generator

WAYS, ALPHA = 5, 0.4
MODELS = {"mlp": ModelOptions(hidden=(200,), activation="relu"), "cnn": ModelOptions(name="cnn", filters=64)}
OURS, COMPARED = "fl_core", 4


def make_tasks(clients: int, dtype: torch.dtype) -> Task:
    """Random images: the cost does not depend on what they show. The support set is the Hessian batch too."""
    rng = generator(0, "benchmark")

    def batch(shots: int) -> Batch:
        labels = torch.arange(WAYS).repeat_interleave(shots).expand(clients, 1, -1)
        return Batch(torch.rand(clients, 1, WAYS * shots, 1, 28, 28, generator=rng).to(dtype), labels)

    support = batch(5)
    return Task(support, batch(15), support)


def loop(model: Model, theta: torch.Tensor, stacked: Task) -> torch.Tensor:
    """Compute the same meta-gradients client by client with torch.autograd only."""
    results = []
    for client in range(len(stacked.query.y)):
        support, query = (Batch(batch.x[client, 0], batch.y[client, 0]) for batch in stacked[:2])
        leaf = theta.detach().requires_grad_()
        value = F.cross_entropy(model.logits(leaf, support.x), support.y)
        (inner,) = torch.autograd.grad(value, leaf, create_graph=True)
        outer = F.cross_entropy(model.logits(leaf - ALPHA * inner, query.x), query.y)
        results.append(torch.autograd.grad(outer, leaf)[0])
    return torch.stack(results)


def forms(kind: str, clients: int, dtype: torch.dtype = torch.float32) -> dict[str, Callable[[], torch.Tensor]]:
    """Name every form that is timed; eta = 1 and one local step make our update the meta-gradient."""
    model = build(MODELS[kind], (1, 28, 28), WAYS)
    theta, stacked = model.init(generator(0, "init")).to(dtype), make_tasks(clients, dtype)

    def peer(compute: Callable[..., torch.Tensor]) -> torch.Tensor:
        module = as_module(model, theta)
        rows = ((Batch(b.x[i, 0], b.y[i, 0]) for b in stacked[:2]) for i in range(clients))
        return torch.stack([compute(module, *row, ALPHA) for row in rows])

    def ours(chunk: int | None = None) -> torch.Tensor:
        return local_updates(model, theta, stacked, ALPHA, 1.0, "exact", chunk)

    chunks = (clients, 8) if kind == "mlp" else (4,)
    batched = {f"vmap, chunks of {chunk}": (lambda chunk=chunk: ours(chunk)) for chunk in chunks}
    others = {name: (lambda compute=compute: peer(compute)) for name, compute in installed().items()}
    return {OURS: ours, "loop": lambda: loop(model, theta, stacked), **batched, **others}


def peak_mb(kind: str, clients: int, name: str) -> float:
    """Run one form alone and return how far it raised the process's resident memory at its peak, in MB."""
    form = forms(kind, clients)[name]
    # Importing torch leaves a higher peak behind than small forms reach; Linux resets the mark on request (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    form()
    return (_status_kb("VmHWM") - before) / 1024


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def report(kind: str, threads: int, clients: int, repeats: int) -> None:
    """Print the table of one network."""
    exact = {name: form() for name, form in forms(kind, COMPARED, torch.float64).items()}
    for name, result in exact.items():
        error = float((result - exact["loop"]).norm() / exact["loop"].norm())
        assert error < 1e-12, (name, error)
    timed = forms(kind, clients)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, form in timed.items():
            start = time.perf_counter()
            form()
            seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds[OURS])
    print(f"{kind}, {clients} clients, {threads} thread(s), torch {torch.__version__}, {repeats} repeats")
    print(f"{'form':24}{'ms':>8}{'form / ours':>13}{'peak MB':>9}")
    for name, values in seconds.items():
        median = statistics.median(values)
        command = [sys.executable, __file__, str(threads), str(clients), "1", kind, name]
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{name:24}{1e3 * median:8.1f}{median / base:13.2f}{peak:9.0f}")


def main() -> None:
    """Print the tables."""
    threads, clients, repeats = (int(word) for word in (*sys.argv[1:4], *["2", "32", "7"][len(sys.argv[1:4]) :]))
    torch.set_num_threads(threads)
    if len(sys.argv) > 4:
        print(peak_mb(sys.argv[4], clients, sys.argv[5]))
        return
    for kind in MODELS:
        report(kind, threads, clients, repeats)


if __name__ == "__main__":
    main()
