"""Compares learning on a GPU with learning on the CPU: the same results, and how much sooner.

First meta-gradients of many clients: in float64, where both must agree, then in float32, as they are used. Then one
simulated training of Air-meta-pFL on both, from one seed. Prints relative differences, milliseconds (median) and the
ratio of the CPU's time to the GPU's. Trainings drift apart from rounding alone, as they do on a CPU with another number
of threads: what falls on the other side of a ReLU's kink makes the next round's gradients differ by more.

Usage: python benchmarks/gpu.py [clients] [repeats] [rounds]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from meta_gradient import ALPHA, MODELS, WAYS, make_tasks

from fl_core.data import load, moved, new_clients, split_clients
from fl_core.mac import Channel
from fl_core.maml import local_updates
from fl_core.models import build
from fl_core.options import DataOptions, LearnOptions, SchemeOptions
from fl_core.rounds import simulate
from fl_core.schemes import make_scheme
from fl_core.seeds import generator

METHODS = ("exact", "first-order", "hessian-free")
COMPARED = 4


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Give the relative difference of two vectors on any devices."""
    return float((found.cpu() - wanted.cpu()).norm() / wanted.cpu().norm())


def timed(form: Callable[[], object], repeats: int) -> float:
    """Give the median time of a call in seconds, what it left to the GPU included."""
    form()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        form()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def gradients(kind: str, clients: int, repeats: int) -> None:
    """Print one network's table of meta-gradients."""
    model = build(MODELS[kind], (1, 28, 28), WAYS)
    start = model.init(generator(0, "init"))

    def updates(device: str, count: int, dtype: torch.dtype, method: str) -> Callable[[], torch.Tensor]:
        theta, tasks = start.to(device, dtype), moved(make_tasks(count, dtype), device)
        return lambda: local_updates(model, theta, tasks, ALPHA, 1.0, method)

    print(f"{kind}, {clients} clients:".ljust(20) + "   float64   float32    CPU ms    GPU ms     ratio")
    for method in METHODS:
        exact, plain = (
            difference(*(updates(device, COMPARED, dtype, method)() for device in ("cuda", "cpu")))
            for dtype in (torch.float64, torch.float32)
        )
        assert exact < 1e-9, (kind, method, exact)
        cpu, gpu = (timed(updates(device, clients, torch.float32, method), repeats) for device in ("cpu", "cuda"))
        print(f"  {method:18}{exact:10.1e}{plain:10.1e}{1e3 * cpu:10.1f}{1e3 * gpu:10.1f}{cpu / gpu:10.1f}")


def training(kind: str, rounds: int) -> None:
    """Print how one training differs, and how long it takes."""
    data = DataOptions(name="glyphs", clients=32)
    dataset = load(data, 1)
    model = build(MODELS[kind], dataset.image_shape, data.ways)
    clients, strangers = split_clients(dataset, data, 1), new_clients(dataset, data, 1)
    scheme = make_scheme(SchemeOptions(keep=0.1), model.dimension)
    ends, seconds = {}, {}
    for device in ("cuda", "cpu", "cuda"):
        begin = time.perf_counter()
        ends[device] = simulate(
            model, clients, data, LearnOptions(), scheme, Channel("rayleigh", 20.0),
            rounds=rounds, active=16, seed=1, new_clients=strangers, evaluate_every=rounds, device=device,
        )  # fmt: skip
        seconds[device] = time.perf_counter() - begin
    far = difference(ends["cuda"].state.theta, ends["cpu"].state.theta)
    right = {device: end.records[-1].evaluation.accuracy for device, end in ends.items()}
    print(
        f"{kind}, {rounds} rounds of 16 clients: parameters differ by {far:.1e}, accuracy of new clients "
        f"{right['cpu']:.3f} on the CPU, {right['cuda']:.3f} on the GPU; {seconds['cpu']:.1f} s and "
        f"{seconds['cuda']:.1f} s, ratio {seconds['cpu'] / seconds['cuda']:.1f}"
    )


def main() -> None:
    """Print the tables."""
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here: its CPU-only build is installed, or there is no driver")
    clients, repeats, rounds = (int(word) for word in (*sys.argv[1:4], *["32", "5", "20"][len(sys.argv[1:4]) :]))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for kind in MODELS:
        gradients(kind, clients, repeats)
        training(kind, rounds)


if __name__ == "__main__":
    main()
