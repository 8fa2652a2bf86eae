"""Blind clients and a server with many antennas: the channels average out; knows no precoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.mac import Channel, antenna_mac
from fl_core.schemes.base import Carrier, Csi, Dense, Plan, Precoder


@dataclass(frozen=True)
class BlindAntennas(Dense):
    """Blind multi-antenna aggregation (Amiri, Duman, Gündüz, Kulkarni, Poor, arXiv 2010.10030).

    Clients send updates as they are. The server knows the sum of their channels at each of K antennas and combines
    with its conjugate: ``(1/K) sum_k (sum_i h_ik)* y_k`` is ``sum_i |h_i|^2 x_i``, with |h_i|^2 averaged over antennas,
    plus cross terms and noise whose power falls as 1/K.
    """

    name: ClassVar[str] = "blind-antennas"
    carrier: ClassVar[Carrier] = "simulated"

    @property
    def precoder(self) -> Precoder:
        """Clients know nothing of their channels."""
        return "none"

    @property
    def antennas(self) -> int:
        """K, of the options."""
        return self.options.antennas

    def superpose(
        self, symbols: Tensor, gains: Tensor, heard: list[int], channel: Channel, generator: torch.Generator
    ) -> tuple[Tensor, Csi]:
        """Receive at every antenna; the sum of channels is estimated without error."""
        each = gains.reshape(len(gains), self.antennas)[heard]
        received = antenna_mac(symbols[heard], each, channel.noise, generator)
        return received, Csi(noise=channel.noise, gains=each.sum(0), gain_power=channel.mean_power)

    def decode(self, received: Tensor, csi: Csi, plan: Plan) -> Tensor:
        """Combine the antennas, shape (antenna, symbol), with the conjugate of the sum channel."""
        if csi.gains is None:
            raise ValueError(f"{len(received)} antennas need the sum of the channels at each; give it as csi.gains")
        combined = (csi.gains.conj()[:, None] * received).mean(0)
        return super().decode(combined, replace(csi, gain_mean=1.0 if csi.gain_power is None else csi.gain_power), plan)
