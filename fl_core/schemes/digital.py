"""Bits instead of waveforms: each client alone in its share of the channel uses; knows capacity, no coding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.encode import split_top_k
from fl_core.mac import Channel
from fl_core.schemes.base import UNKNOWN, Csi, Plan
from fl_core.schemes.ideal import Ideal

SCALE_BITS = 32
"""Side information: one float32 amplitude."""


def capacity_bits(uses: int, clients: int, snr: float, average: bool) -> float:
    """Return the bits one of s clients gets through its M/s complex uses at capacity.

    ``(M/s) log2(1 + s P|h|^2/sigma^2)`` where power is limited on average over the round, because a client that is
    silent for the others' uses saves for its own; without the factor s where peak power is limited (Amiri, Gündüz,
    arXiv 1901.00844).

    Args:
        uses: M of the round, shared by all.
        clients: s.
        snr: P |h|^2/sigma^2 of this client.
        average: the power rule.
    """
    gain = clients * snr if average else snr
    return math.inf if math.isinf(gain) else uses / clients * math.log2(1.0 + gain)


def message_bits(dimension: int, entries: int, bits: int) -> float:
    """Return the bits of a message: which ``entries`` of ``dimension``, ``bits`` for each, and the amplitude."""
    if entries == 0:
        return 0.0
    which = math.lgamma(dimension + 1) - math.lgamma(entries + 1) - math.lgamma(dimension - entries + 1)
    return which / math.log(2.0) + entries * bits + SCALE_BITS


def affordable(dimension: int, bits: int, budget: float) -> int:
    """Return the largest number of entries q whose message fits a budget of bits; 0 when none does.

    Near q = d positions cost less again: a message of all entries may fit where one of fewer does not. Up to the peak,
    messages grow with q, and beyond it none is shorter than that of all entries, so a bisection is exact.
    """
    if message_bits(dimension, dimension, bits) <= budget:
        return dimension
    low, high = 0, dimension
    while high - low > 1:  # fits(low) and not fits(high)
        middle = (low + high) // 2
        low, high = (middle, high) if message_bits(dimension, middle, bits) <= budget else (low, middle)
    return low


def quantise(vector: Tensor, bits: int) -> Tensor:
    """Round to 2^bits - 1 levels, symmetric about 0, that reach the largest magnitude."""
    top = vector.abs().max()
    steps = 2 ** (bits - 1) - 1
    return torch.where(top > 0, (vector / top * steps).round() / steps * top, vector)


@dataclass(frozen=True)
class Digital(Ideal):
    """Orthogonal digital uplink (D-DSGD; Amiri, Gündüz, arXiv 1901.00844, 1907.09769).

    Each of s clients codes its update at capacity into M/s channel uses: its q largest entries quantised to b bits,
    with the largest q whose log2 C(d, q) + q b + 32 bits fit. The rest, quantisation error included, stays in memory.
    The server gets every message without error; M is ``measure`` d, as in the compressing mappings.
    """

    name: ClassVar[str] = "digital"

    @property
    def uses(self) -> int:
        """Complex channel uses M = measure d that the bits would take."""
        return max(1, round(self.options.measure * self.dimension))

    def wired_power(self, clients: int) -> float:
        """Return what the bits would take: all of the round's power, or a peak in the client's own share of it."""
        return 1.0 / clients if self.options.power == "round" else 1.0

    def entries(self, csi: Csi, plan: Plan) -> Tensor:
        """Count what each client can afford, shape (...): with |h| = 1 and the SNR of the options unless told."""
        noise = Channel(self.options.fading, self.options.snr_db).noise if csi.noise is None else csi.noise
        power = torch.ones(1) if csi.gains is None else csi.gains.abs().square()
        snr = power.double().mean(-1) / noise if noise > 0 else torch.full(power.shape[:-1], math.inf)
        average = self.options.power != "round"
        flat = [
            affordable(self.dimension, self.options.bits, capacity_bits(self.uses, plan.clients, float(one), average))
            for one in snr.reshape(-1)
        ]
        return torch.tensor(flat).reshape(snr.shape)

    def sparsify(self, update: Tensor, memory: Tensor, plan: Plan, csi: Csi = UNKNOWN) -> tuple[Tensor, Tensor]:
        """Return what fits the channel, and what does not."""
        whole = self.whole(update, memory)
        rows = whole.reshape(-1, self.dimension)
        counts = self.entries(csi, plan).reshape(-1).tolist()
        counts = counts * rows.shape[0] if len(counts) == 1 else counts
        sent = torch.stack([self._message(row, int(q)) for row, q in zip(rows, counts, strict=True)])
        sent = sent.reshape(whole.shape)
        return sent, whole - sent if self.options.memory else memory

    def _message(self, vector: Tensor, entries: int) -> Tensor:
        if entries == 0:
            return torch.zeros_like(vector)
        return quantise(split_top_k(vector, entries)[0], self.options.bits)
