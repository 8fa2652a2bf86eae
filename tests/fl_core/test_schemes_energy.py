"""Schemes of signs and energies against their published error probabilities, means and variances."""

import math

import numpy as np
import pytest
import torch

from fl_core.mac import Channel
from fl_core.options import SchemeOptions
from fl_core.schemes import Csi, Plan, exchange, make_scheme

FAST = {2: Channel("rayleigh", 3.0, coherence=2), 1: Channel("rayleigh", 3.0, coherence=1)}
"""Channels that change from entry to entry: each entry of one round is a trial of its own."""


def make(name: str, dimension: int, **options):
    return make_scheme(SchemeOptions(name=name, **options), dimension)


def send(scheme, channel, updates, plan=None, memories=None):
    plan = plan or Plan(0, 9, len(updates), 0.1)
    memories = torch.zeros_like(updates) if memories is None else memories
    sent = exchange(scheme, channel, updates, memories, plan, plan.seed, range(len(updates)))
    return sent, scheme.decode(sent.received, sent.csi, sent.plan)


@pytest.mark.parametrize(("ayes", "noes"), [(3, 1), (2, 2), (5, 0), (1, 4)])
@pytest.mark.parametrize("snr_db", [0.0, 15.0])
def test_fsk_votes_err_as_published_at_given_votes(ayes, noes, snr_db):
    """Sahin 2022: both energies are exponential, so P(minus wins) = (K- E + n)/((K+ + K-) E + 2 n), Rayleigh fading."""
    d = 20_000
    scheme, channel = make("fsk-mv", d), Channel("rayleigh", snr_db, coherence=2)
    updates = torch.cat((torch.ones(ayes, d), -torch.ones(noes, d)))
    updates *= 1 + 0.01 * torch.arange(ayes + noes)[:, None]
    sent, estimate = send(scheme, channel, updates)
    assert sent.plan.scale == pytest.approx(math.sqrt(2))  # half of the elements are silent
    power = sent.plan.scale**2
    expected = (noes * power + channel.noise) / ((ayes + noes) * power + 2 * channel.noise)
    wrong = float((estimate < 0).float().mean())
    assert wrong == pytest.approx(expected, abs=4.5 * math.sqrt(expected * (1 - expected) / d))
    step = 0.02 * sent.plan.eta
    torch.testing.assert_close(estimate.abs(), torch.full_like(estimate, step))


def test_fsk_absentees_spend_nothing():
    updates = torch.linspace(-1, 1, 101)[None]
    scheme = make("fsk-mv", 101, silence=1.0)
    symbols, _ = scheme.encode(updates, torch.zeros_like(updates), Csi(), Plan(0, 1, 1))
    voted = updates[0].abs() >= updates[0].square().mean().sqrt()
    spent = symbols[0].reshape(101, 2).abs()
    assert torch.equal(spent.sum(1) > 0.5, voted) and 30 < int(voted.sum()) < 60
    assert torch.equal(spent[voted][:, 0] > 0.5, updates[0][voted] > 0)


def test_random_phases_differ_between_clients_and_rounds_and_repeat():
    scheme, updates = make("reed", 4000), torch.ones(2, 4000)
    updates[1] *= 2
    symbols, _ = scheme.encode(updates, torch.zeros_like(updates), Csi(), Plan(0, 1, 2))
    later, _ = scheme.encode(updates, torch.zeros_like(updates), Csi(), Plan(1, 1, 2))
    phases = [each[::2] / each[::2].abs() for each in (symbols[0], symbols[1], later[0])]
    for one, other in ((0, 1), (0, 2)):
        # 4000 unit vectors add up to about sqrt(4000): 5 % of it at 3 standard deviations.
        assert float((phases[one].conj() * phases[other]).mean().abs()) < 0.06
    assert float(phases[0].mean().abs()) < 0.06
    assert torch.equal(scheme.encode(updates, torch.zeros_like(updates), Csi(), Plan(0, 1, 2))[0], symbols)


def test_reed_is_unbiased_with_the_variance_of_exponentials():
    """Each energy is exponential: variance (a+ + n)^2 + (a- + n)^2 with a+- = sum u+-, n = sigma^2/scale^2."""
    d, clients = 30_000, 4
    pattern = torch.tensor([[1.0, -0.5, 0.0], [0.3, -1.0, 0.0], [-0.2, 0.4, 0.0], [0.8, 0.1, 0.0]])
    updates = pattern.repeat(1, d // 3) * (1 + 1e-4 * torch.rand((clients, d), generator=torch.Generator()))
    sent, estimate = send(make("reed", d), FAST[2], updates)
    noise = sent.csi.noise / sent.plan.scale**2
    plus, minus = pattern.clamp_min(0).sum(0), (-pattern).clamp_min(0).sum(0)
    variance = ((plus + noise).square() + (minus + noise).square()) / clients**2
    for column in range(3):
        values = estimate[column::3]
        spread = math.sqrt(float(variance[column]) / len(values))
        assert float(values.mean()) == pytest.approx(float(pattern[:, column].mean()), abs=4.5 * spread)
        # The variance of an exponential's sample variance is 8 times that of its square.
        assert float(values.var()) == pytest.approx(float(variance[column]), rel=4.5 * math.sqrt(8 / len(values)))


def test_reed_needs_no_noise_power():
    updates = torch.randn((3, 50), generator=torch.Generator().manual_seed(1))
    scheme = make("reed", 50)
    sent, estimate = send(scheme, Channel("rayleigh", 0.0), updates)
    assert torch.equal(scheme.decode(sent.received, Csi(noise=99.0), sent.plan), estimate)


def test_ncairfl_subtracts_the_noise_power_and_is_unbiased():
    d, clients = 40_000, 3
    updates = torch.tensor([0.5, 1.0, 2.0])[:, None].expand(clients, d) * torch.ones(d)
    sent, estimate = send(make("ncairfl", d), FAST[1], updates)
    through = sent.sparse.mean(0) != 0  # where the dither is +1
    assert int(through.sum()) == pytest.approx(d / 2, abs=5 * math.sqrt(d) / 2)
    energy = 3.5 + sent.csi.noise / sent.plan.scale**2
    spread = 4.5 * energy / clients / math.sqrt(d / 2)
    assert float(estimate[through].mean()) == pytest.approx(3.5 / clients, abs=spread)
    assert float(estimate[~through].mean()) == pytest.approx(0.0, abs=spread)


def test_ncairfl_sends_every_entry_sooner_or_later():
    """Over many dithers half of the entries pass, and the memory holds exactly the rest."""
    updates = torch.randn((2, 500), generator=torch.Generator().manual_seed(3))
    scheme, total, memory = make("ncairfl", 500), torch.zeros(2, 500), torch.zeros(2, 500)
    shares = []
    for number in range(40):
        sparse, memory = scheme.sparsify(updates, memory, Plan(number, 2, 2))
        total += sparse
        shares.append(float((sparse != 0).float().mean()))
    torch.testing.assert_close(total + memory, 40 * updates, atol=1e-3, rtol=1e-4)
    assert np.mean(shares) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(40 * 500))
    # An entry waits a geometric number of rounds for its sign: 2 on average, 12 once in 4096.
    assert float((memory.abs() / updates.abs()).mean()) == pytest.approx(1.0, abs=0.3)


def test_obda_is_the_majority_of_signs():
    updates = torch.randn((5, 301), generator=torch.Generator().manual_seed(4))
    sent, estimate = send(make("obda", 301, memory=False), Channel("none", math.inf), updates)
    assert torch.equal(estimate, 0.02 * sent.plan.eta * torch.sign(torch.sign(updates).sum(0)))
    even = make("obda", 301, memory=False)
    assert float(send(even, Channel("none", math.inf), torch.stack((updates[0], -updates[0])))[1].abs().max()) == 0.0


@pytest.mark.parametrize("clients", [1, 2])
def test_obda_flips_a_unanimous_vote_with_the_gaussian_tail(clients):
    """QPSK at the power limit: s/sqrt(2) against noise of variance sigma^2/2 per part, so Q(s/sigma)."""
    channel, d = Channel("none", -2.0), 40_000
    updates = torch.ones(clients, d)
    _, estimate = send(make("obda", d), channel, updates)
    expected = 0.5 * math.erfc(clients / math.sqrt(channel.noise) / math.sqrt(2))
    wrong = float((estimate < 0).float().mean())
    assert wrong == pytest.approx(expected, abs=4.5 * math.sqrt(expected / d))


def test_error_feedback_escapes_where_signs_alone_are_stuck():
    """Karimireddy et al. 2019, counterexample 2: f(x) = e|x1 + x2| + |x1 - x2|; signs never move x1 + x2."""
    ends = {}
    for memory in (False, True):
        scheme = make("obda", 2, memory=memory, step=1.0)
        point, held = torch.ones(1, 2), torch.zeros(1, 2)
        for number in range(500):
            both, apart = torch.sign(point.sum()), torch.sign(point[0, 0] - point[0, 1] + 1e-9)
            gradient = 0.5 * both * torch.ones(1, 2) + apart * torch.tensor([[1.0, -1.0]])
            sent, estimate = send(scheme, Channel("none", math.inf), 0.01 * gradient, Plan(number, 1, 1, 0.01), held)
            point, held = point - estimate, sent.memories
        ends[memory] = float(point.sum().abs())
    assert ends[False] == pytest.approx(2.0, abs=0.05)
    assert ends[True] < 0.1
