"""One round between clients and server through a simulated channel; knows no training and no single scheme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Complex, Float
from torch import Tensor

from fl_core.encode import energy
from fl_core.mac import Channel, ideal_mac
from fl_core.schemes.base import Csi, Plan, Scheme
from fl_core.seeds import generator


@dataclass(frozen=True)
class Exchange:
    """What one round's exchange gave.

    Attributes:
        received: what the server got, in the shape that the scheme decodes: mostly (symbol,).
        csi: what the server knows of the channel.
        plan: with its scale and the number of clients heard.
        power: mean transmit power of each client, per channel use (limit 1).
        sparse: what each client meant to send, shape (client, d).
        memories: of the clients after the round, shape (client, d).
    """

    received: Complex[Tensor, ...]
    csi: Csi
    plan: Plan
    power: tuple[float, ...]
    sparse: Float[Tensor, "client d"]
    memories: Float[Tensor, "client d"]


def exchange(
    scheme: Scheme,
    channel: Channel,
    updates: Float[Tensor, "client d"],
    memories: Float[Tensor, "client d"],
    plan: Plan,
    seed: int,
    heard: Sequence[int],
) -> Exchange:
    """Encode all updates, send them through the channel, and return what the server has to decode.

    Args:
        scheme: names the precoder, the power rule, and whether the air is used at all.
        channel: fading and noise.
        updates: old minus new parameters of the active clients, ascending.
        memories: of the same clients; not modified.
        plan: of the round; its scale is not used.
        seed: gains and noise come from (seed, plan.round).
        heard: positions of the clients whose bursts arrive. Clients do not know, so every memory moves on.
    """
    count = updates.shape[0]
    gains = channel.draw(count, scheme.symbols, scheme.antennas, generator(seed, "gains", plan.round))
    own = Csi(noise=channel.noise, gains=gains if gains.ndim > 1 else gains[:, None])
    sparse, _ = scheme.sparsify(updates, memories, plan, own)
    symbols, remaining = scheme.encode(updates, memories, own, plan)
    listed = list(heard)
    if not scheme.over_air:
        final = replace(plan, clients=len(heard), scale=scheme.scale(energy(symbols).tolist(), plan))
        received = ideal_mac(final.scale * symbols[listed])
        return Exchange(received, Csi(noise=0.0), final, (scheme.wired_power(count),) * count, sparse, remaining)
    spent = scheme.spent(symbols, gains, channel)
    scale = scheme.scale(scheme.limited(symbols, spent).tolist(), plan)
    final = replace(plan, clients=len(heard), scale=scale)
    power = tuple((spent * final.scale**2 / scheme.symbols).tolist())
    received, csi = scheme.superpose(
        final.scale * symbols, gains, listed, channel, generator(seed, "noise", plan.round)
    )
    return Exchange(received, csi, final, power, sparse, remaining)
