"""Measures what one round of aggregation costs: sparsifying with memory, and estimating the sum.

Times of the sparsifier are multiples of one copy of the vector, taken in the same run; OAMP is seconds per round and
the ratio per entry between two sizes (1 is linear). Run: ``OMP_NUM_THREADS=1 python benchmarks/aggregate.py``.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fl_core.decode import nmse_db
from fl_core.encode import compress, kept_entries, power_scale, top_k
from fl_core.mappings import make_mapping
from fl_core.oamp import oamp


def seconds(function: Callable[[], object], repeats: int = 15) -> float:
    """Return the median wall time of ``function``, after one call to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_mb(reset: bool = False) -> float:
    """Return the largest resident size of this process since the last reset, in MB (Linux)."""
    if reset:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or freed memory would hide what the next call takes
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def sparsifier(d: int, keep: float) -> None:
    """Print the sparsifier's time, and torch.topk's, in copies of the vector."""
    source = torch.Generator().manual_seed(d)
    update, memory = torch.randn(d, generator=source), torch.randn(d, generator=source)
    target, k = torch.empty_like(update), kept_entries(keep, d)
    copy = seconds(lambda: target.copy_(update), 101)

    def peer() -> tuple[torch.Tensor, torch.Tensor]:
        total = memory + update
        chosen = torch.topk(total.abs(), k).indices
        kept = torch.zeros_like(total).index_copy_(0, chosen, total[chosen])
        return kept, total - kept

    whole = seconds(lambda: compress(update, memory, k)) / copy
    theirs = seconds(peer) / copy
    alone = seconds(lambda: torch.topk(update.abs(), k)) / copy
    print(
        f"d={d:>9,} keep={keep:.2f}: copy {1e6 * copy:6.0f} us | top-k with memory {whole:6.1f} copies | "
        f"same with torch.topk {theirs:6.1f} | torch.topk alone {alone:6.1f} | gain {theirs / whole:4.1f}x"
    )


def estimator(d: int) -> float:
    """Print OAMP's time, error and memory at s = 5, k/d = .04, M/d = .4, 20 dB; return seconds per iteration."""
    source = torch.Generator().manual_seed(d)
    mapping = make_mapping("rdft", d, 0.4)
    rows = mapping.rows(1, 0)
    k = kept_entries(0.04, d)
    sparse = torch.stack([top_k(torch.randn(d, generator=source), k) for _ in range(5)])
    gains = torch.randn((5, 2), generator=source).div(math.sqrt(2)).norm(dim=1)
    symbols = mapping.forward(sparse, rows)
    scale = power_scale(symbols.abs().double().square().sum(1).tolist(), mapping.symbols)
    noise = torch.view_as_complex(torch.randn((mapping.symbols, 2), generator=source)) * math.sqrt(0.005)
    received = (gains[:, None] * symbols).sum(0) + noise / scale
    total = (gains[:, None] * sparse).sum(0)
    del sparse, symbols, noise
    before = peak_mb(reset=True)
    view = mapping.view(received, 0.01 / scale**2, rows)
    found = oamp(view)
    took = seconds(lambda: oamp(view), 5)
    print(
        f"d={d:>9,}: OAMP {took:6.3f} s in {found.iterations} iterations, NMSE {nmse_db(found.value, total):6.1f} dB, "
        f"peak memory of the call {(peak_mb() - before) / (4e-6 * d):4.1f} vectors of {4e-6 * d:.1f} MB"
    )
    return took / found.iterations


def main() -> None:
    """Print all figures."""
    torch.set_num_threads(1)
    for d in (100_000, 1_000_000):
        for keep in (0.01, 0.04, 0.1):
            sparsifier(d, keep)
    small = estimator(112_261)
    large = estimator(1_000_000)
    prime = estimator(999_983)
    print(f"time per entry and iteration, d = 1e6 against 112k: {large / small * 112_261 / 1e6:.2f} (1 is linear)")
    print(f"a prime d = 999,983 costs {prime / large:.2f} of d = 1,000,000 per iteration")


if __name__ == "__main__":
    main()
