"""The bounds on convergence, memory and generalisation as functions of plain numbers; knows no model and no data.

Convergence follows Wen, Xing, Simeone, *AirFL-Mem* (arXiv 2310.16606) and *Air-meta-pFL* (arXiv 2406.11569), whose
meta-learning constants are those of Per-FedAvg (Fallah, Mokhtari, Ozdaglar, arXiv 2002.07948). The constants in front
of the terms are reconstructed from the first of these papers and the channel term is derived here, so a bound shows how
an error moves with the settings; for neural networks its size says nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from scipy.optimize import minimize_scalar

from fl_core.mac import RAYLEIGH_MEAN, RAYLEIGH_SPREAD, inversion_power


@dataclass(frozen=True)
class Constants:
    """What the bounds need to know of the local losses f_i.

    Attributes:
        gradient: B, largest norm of a client's gradient.
        smoothness: L_G, Lipschitz constant of the gradients.
        hessian_smoothness: L_H, Lipschitz constant of the Hessians.
        gradient_variance: sigma_G^2, of the gradient on one example.
        hessian_variance: sigma_H^2, of the Hessian on one example, in the spectral norm.
        gradient_spread: gamma_G^2, variance of the clients' gradients around their mean.
        hessian_spread: gamma_H^2, the same of their Hessians.
        meta_square: G_F^2, largest mean squared norm of a stochastic meta-gradient.
        gap: F at the start minus its infimum.
    """

    gradient: float
    smoothness: float
    hessian_smoothness: float
    gradient_variance: float
    hessian_variance: float
    gradient_spread: float
    hessian_spread: float
    meta_square: float
    gap: float

    def meta_smoothness(self, alpha: float) -> float:
        """Return L_F = 4 L_G + alpha L_H B of the meta-loss (arXiv 2002.07948, Lemma 4.2)."""
        return 4.0 * self.smoothness + alpha * self.hessian_smoothness * self.gradient

    def meta_variance(self, alpha: float, support: int, query: int, hessian: int) -> float:
        """Return sigma_F^2, the variance of a stochastic meta-gradient (arXiv 2002.07948, Lemma 4.3).

        Args:
            alpha: inner rate.
            support: examples in batch B.
            query: examples in batch B'.
            hessian: examples in batch B''.
        """
        outer = 1.0 / query + (alpha * self.smoothness) ** 2 / support
        curved = self.hessian_variance * alpha**2 / (4.0 * hessian)
        square = self.gradient**2
        return 12.0 * (square + self.gradient_variance * outer) * (1.0 + curved) - 12.0 * square

    def meta_spread(self, alpha: float) -> float:
        """Return gamma_F^2, the spread of the clients' meta-gradients (arXiv 2002.07948, Lemma 4.4)."""
        return 3.0 * self.gradient**2 * alpha**2 * self.hessian_spread + 192.0 * self.gradient_spread


@dataclass(frozen=True)
class System:
    """What the bounds need to know of a run.

    Attributes:
        clients: n.
        active: s per round.
        local_steps: Q.
        alpha: inner rate.
        eta: outer rate.
        contraction: lambda of the sparsifier; k/d, or e^{-g} for truncation at g.
        snr_db: P E|h|^2/sigma^2 of one client.
        support: examples in batch B.
        query: examples in batch B'.
        hessian: examples in batch B''.
        gain_mean: mu_h = E|h|, after precoding.
        gain_spread: Var|h| / mu_h^2.
    """

    clients: int
    active: int
    local_steps: int
    alpha: float
    eta: float
    contraction: float
    snr_db: float
    support: int
    query: int
    hessian: int
    gain_mean: float = RAYLEIGH_MEAN
    gain_spread: float = RAYLEIGH_SPREAD

    @property
    def snr(self) -> float:
        """The signal-to-noise ratio as a number."""
        return linear(self.snr_db)


@dataclass(frozen=True)
class Convergence:
    """The terms of the bound on the mean squared gradient of the meta-loss; all in units of that gradient squared.

    Attributes:
        start: of where training began; falls as 1/rounds.
        channel: of fading and noise.
        steps: of the outer rate.
        drift: of several local steps on different clients.
        memory: of what the sparsifier holds back.
        bias: of the inner step on a sample.
    """

    start: float
    channel: float
    steps: float
    drift: float
    memory: float
    bias: float

    @property
    def total(self) -> float:
        """The bound."""
        return float(sum(asdict(self).values()))


def linear(decibel: float) -> float:
    """Return 10^(decibel/10)."""
    return math.exp(decibel / 10.0 * math.log(10.0))


def memory_factor(contraction: float) -> float:
    """Return 4 (1 - lambda^2)/lambda^2.

    Raises:
        ValueError: lambda is outside (0, 1].
    """
    if not 0.0 < contraction <= 1.0:
        raise ValueError(f"the contraction is {contraction:g}, outside (0, 1]; give k/d, the share of entries kept")
    return 4.0 * (1.0 - contraction**2) / contraction**2


def memory_bound(contraction: float, eta: float, local_steps: int, meta_square: float) -> float:
    """Bound E||m||^2, the memory of a client, by 4 (1 - lambda^2)/lambda^2 (eta Q)^2 G_F^2 (arXiv 2310.16606)."""
    return memory_factor(contraction) * (eta * local_steps) ** 2 * meta_square


def sent_bound(contraction: float, local_steps: int, meta_square: float) -> float:
    """Bound E||g||^2/eta^2, what a client sends, by 2 (4 (1 - lambda^2)/lambda^2 + 1) Q^2 G_F^2."""
    return 2.0 * (memory_factor(contraction) + 1.0) * local_steps**2 * meta_square


def channel_error(norms_squared: list[float], snr: float, gain_mean: float, gain_spread: float) -> float:
    """Return the mean squared error of the sum of updates behind phase-only precoding and the `pair` mapping.

    E||sum (|h_i|/mu_h - 1) g_i + noise||^2 = v_h/mu_h^2 sum ||g_i||^2 + max ||g_i||^2/(mu_h^2 SNR), over independent
    gains and noise: the common scale lets the largest update use all the power. An estimator adds its own error.

    Args:
        norms_squared: ||g_i||^2 of the active clients.
        snr: P E|h|^2/sigma^2 as a number.
        gain_mean: mu_h.
        gain_spread: v_h/mu_h^2.
    """
    return gain_spread * sum(norms_squared) + max(norms_squared) / (gain_mean**2 * snr)


def convergence_bound(constants: Constants, system: System, rounds: int) -> Convergence:
    """Bound (1/T) sum_t E||grad F(theta_t)||^2 for constant rates (arXiv 2406.11569, Theorem 4.1, reconstructed).

    Args:
        constants: of the losses.
        system: of the run; alpha at most 1/L_G, and eta small enough, for the bound to hold.
        rounds: T.

    Returns:
        The terms one by one; ``total`` is the bound. The last one has an unknown factor of order 1, taken as 1.
    """
    eta, steps, square = system.eta, system.local_steps, constants.meta_square
    smooth = constants.meta_smoothness(system.alpha)
    share = system.active / system.clients
    sent = sent_bound(system.contraction, steps, square)
    variance = channel_error([sent] * system.active, system.snr, system.gain_mean, system.gain_spread)
    sampling = constants.meta_variance(system.alpha, system.support, system.query, system.hessian)
    apart = constants.meta_spread(system.alpha)
    return Convergence(
        start=8.0 * constants.gap / (rounds * eta * steps),
        channel=4.0 * eta * smooth * variance / (steps * system.active**2),
        steps=4.0 * eta * smooth * steps * square,
        drift=40.0 * eta**2 * steps * smooth**2 * (sampling + 6.0 * steps * apart),
        memory=12.0 * (eta * steps * smooth / share) ** 2 * memory_factor(system.contraction) * square,
        bias=(system.alpha * constants.smoothness) ** 2 * constants.gradient_variance / system.support,
    )


def generalisation_bound(
    clients: int,
    active: int,
    rounds: int,
    uses: int,
    snr: float,
    *,
    deviation: float = 1.0,
    gain_mean: float = RAYLEIGH_MEAN,
    gain_spread: float = RAYLEIGH_SPREAD,
    scale_bits: int = 0,
) -> float:
    """Bound the gap between the loss on new and on training clients by what the channel can carry.

    With I <= T M ln(1 + SNR E|sum h|^2) nats between the clients' data and the parameters, the capacity of the channel,
    the gap is at most sqrt(2 sigma_s^2 I/n) (Xu, Raginsky, arXiv 1705.07809, Theorem 1). It grows with SNR, uses,
    rounds and participation: read against :func:`convergence_bound`, it is the trade-off.

    Args:
        clients: n.
        active: s.
        rounds: T.
        uses: complex channel uses M per round.
        snr: P E|h|^2/sigma^2 of one client, as a number.
        deviation: sigma_s; the loss is sub-Gaussian with this parameter (half its range, if bounded).
        gain_mean: mu_h.
        gain_spread: v_h/mu_h^2.
        scale_bits: bits of the common scale, which depends on the data and is sent beside the air.
    """
    power = gain_mean**2 * (active**2 + active * gain_spread)
    information = rounds * (uses * math.log1p(snr * power) + scale_bits * math.log(2.0))
    return math.sqrt(2.0 * deviation**2 * information / clients)


def aggregate_snr_db(snr_db: float, active: int, weakest_db: float = 0.0) -> float:
    """Return the other definition of received SNR, s P_min kappa_min/sigma^2 in dB.

    Args:
        snr_db: of one client, P E|h|^2/sigma^2.
        active: s.
        weakest_db: power and path gain of the weakest client against the mean, in dB; 0 when all are equal.
    """
    return snr_db + weakest_db + 10.0 * math.log10(active)


def truncation_threshold(
    eta: float, local_steps: int, share: float, active: int, snr: float, smoothness: float = 1.0, square: float = 1.0
) -> float:
    """Choose the truncation threshold of AirFL-Mem (Wen, Xing, Simeone, arXiv 2310.16606, section IV; derived).

    Truncation at g costs memory, lambda = e^{-g}; not truncating costs power, E_1(g). It minimises
    a (4 (e^{2g} - 1) + 1) E_1(g) + b (e^{2g} - 1), a = 4 eta L Q G^2/(s^2 SNR), b = 48 (eta Q L G/r)^2.

    Args:
        eta: learning rate.
        local_steps: Q.
        share: r = s/n.
        active: s.
        snr: as a number.
        smoothness: L.
        square: G^2, bound on the squared gradient.

    Returns:
        g, in units of the mean power gain.
    """
    noise = 4.0 * eta * smoothness * local_steps * square / (active**2 * snr)
    held = 48.0 * (eta * local_steps * smoothness / share) ** 2 * square

    def cost(logarithm: float) -> float:
        g = math.exp(logarithm)
        kept = math.expm1(2.0 * g)
        return noise * (4.0 * kept + 1.0) * inversion_power("rayleigh", g) + held * kept

    found = minimize_scalar(cost, bounds=(math.log(1e-12), math.log(5.0)), method="bounded", options={"xatol": 1e-9})
    return math.exp(float(found.x))
