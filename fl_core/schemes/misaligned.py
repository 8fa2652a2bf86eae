"""Symbols that do not arrive together: samples between their edges, and three estimators of their sum.

Knows arrival times and residual phases as the server does; knows nothing of how they were measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.linalg import solveh_banded
from torch import Tensor

from fl_core.mac import Channel, after_precoding, circular
from fl_core.schemes.base import Carrier, Csi, Dense, Plan

RIDGE = 1e-9
"""Keeps the maximum-likelihood equations solvable when two clients arrive together and cannot be told apart."""


def durations(offsets: Float[np.ndarray, " client"]) -> Float[np.ndarray, " client"]:
    """Return how long each sample integrates: from one arrival to the next, ascending from 0, in symbol durations."""
    lengths: np.ndarray = np.diff(np.append(offsets, 1.0 + offsets[0]))
    return lengths


def _windowed(sequence: np.ndarray, width: int, count: int) -> np.ndarray:
    """Sum ``width`` values up to each of ``count`` positions; beyond its ends the sequence is 0."""
    padded = np.concatenate((np.zeros(width), sequence, np.zeros(max(0, count - len(sequence)))))
    sums = np.cumsum(padded)
    inside: np.ndarray = sums[width : width + count] - sums[:count]
    return inside


def sample(
    symbols: Complex[np.ndarray, "client symbol"],
    gains: Complex[np.ndarray, " client"],
    offsets: Float[np.ndarray, " client"],
) -> Complex[np.ndarray, " sample"]:
    """Pass symbols through whitened matched filters, one output per stretch between two symbol edges.

    Source: Shao, Gündüz, Liew, arXiv 2102.13604. With clients in order of arrival, a stretch holds the
    current symbol of those who have arrived and the previous one of the others: counted over time and clients, the
    last s symbols. Each output is scaled to noise of the same variance, so a stretch of length 0 gives noise alone.
    """
    clients, count = symbols.shape
    total = count * clients + clients - 1
    seen = _windowed((gains[:, None] * symbols).T.reshape(-1), clients, total)
    whitened: np.ndarray = seen * np.sqrt(np.resize(durations(offsets), total))
    return whitened


def aligned_sample(
    samples: Complex[np.ndarray, " sample"],
    gains: Complex[np.ndarray, " client"],
    offsets: Float[np.ndarray, " client"],
) -> Complex[np.ndarray, " symbol"]:
    """Use the stretches in which all send the same symbol, between the last arrival and the first edge."""
    clients = len(gains)
    unit = gains.sum() * math.sqrt(durations(offsets)[-1]) / clients
    whole: np.ndarray = samples[clients - 1 :: clients] / unit
    return whole


def least_squares(
    samples: Complex[np.ndarray, " sample"],
    gains: Complex[np.ndarray, " client"],
    offsets: Float[np.ndarray, " client"],
    noise_to_power: float,
) -> Complex[np.ndarray, " symbol"]:
    """Estimate every symbol of every client from all samples, and add.

    Solves ``(A^H A + noise_to_power I) x = A^H y``, which is banded because a sample holds s symbols. With 0 that is
    maximum likelihood (arXiv 2102.13604), with sigma^2 over the power of a symbol linear MMSE (arXiv 2109.03780).
    """
    clients = len(gains)
    unknowns = len(samples) - clients + 1
    lengths = durations(offsets)
    weighted = samples * np.sqrt(np.resize(lengths, len(samples)))
    turned = np.resize(gains, unknowns)
    right = turned.conj() * _windowed(weighted, clients, len(samples))[clients - 1 :]
    bands = np.zeros((clients, unknowns), np.complex128)
    steps = np.cumsum(np.concatenate(([0.0], np.resize(lengths, 2 * clients))))
    for apart in range(clients):  # symbols j - apart and j share the stretches j .. j - apart + s - 1
        first = np.arange(apart, unknowns) % clients
        shared = steps[first + clients - apart] - steps[first]
        bands[clients - 1 - apart, apart:] = turned[: unknowns - apart].conj() * turned[apart:] * shared
    bands[-1] += noise_to_power + RIDGE
    found = solveh_banded(bands, right)
    total: np.ndarray = found.reshape(-1, clients).sum(1)
    return total


@dataclass(frozen=True)
class Misaligned(Dense):
    """Whole updates from clients that are late by fractions of a symbol, with residual phases; ``receiver`` chooses.

    aligned-sample: what the whole group has in common, ignoring the rest. ml: all samples, unbiased, loud when two
    clients arrive almost together. lmmse: all samples, with the power of a symbol as prior. The server knows arrival
    times and gains. Source: Shao, Gündüz, Liew, arXiv 2102.13604, 2109.03780.
    """

    name: ClassVar[str] = "misaligned"
    carrier: ClassVar[Carrier] = "simulated"

    def superpose(
        self, symbols: Tensor, gains: Tensor, heard: list[int], channel: Channel, generator: torch.Generator
    ) -> tuple[Tensor, Csi]:
        """Delay and turn each client, and take every sample."""
        if gains.ndim > 1:
            raise ValueError(f"misaligned symbols fade as blocks; leave coherence unset instead of {channel.coherence}")
        symbols, gains = symbols[heard], gains[heard]
        spread = self.options.timing * torch.rand(len(gains), generator=generator)
        offsets, order = torch.sort(spread - spread.min())
        turn = self.options.phase_rad * (2.0 * torch.rand(len(gains), generator=generator) - 1.0)
        arriving = (after_precoding(gains, self.precoder) * torch.polar(torch.ones_like(turn), turn))[order]
        clean = sample(symbols[order].numpy(), arriving.numpy(), offsets.numpy().astype(np.float64))
        received = torch.from_numpy(clean.astype(np.complex64))
        if channel.noise > 0.0:
            received = received + circular(received.shape, channel.noise, generator)
        return received, Csi(noise=channel.noise, gains=arriving, offsets=offsets)

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Estimate the sum of the symbols, then as everybody."""
        if csi.gains is None or csi.offsets is None:
            raise ValueError(f"{len(received)} misaligned samples need csi.gains and csi.offsets; give both")
        known = csi.gains.numpy(), csi.offsets.numpy().astype(np.float64)
        samples = received.numpy().astype(np.complex128)
        if self.options.receiver == "aligned-sample":
            total = aligned_sample(samples, *known)
        else:
            noise = Channel(snr_db=self.options.snr_db).noise if csi.noise is None else csi.noise
            total = least_squares(samples, *known, noise if self.options.receiver == "lmmse" else 0.0)
        found = torch.from_numpy(total.astype(np.complex64))
        return super().decode(found, replace(csi, gain_mean=1.0), plan)
