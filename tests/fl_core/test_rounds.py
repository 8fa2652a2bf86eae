"""Rounds and simulation: the identities that the method must keep, drawn keys, partial rounds, and resumption."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fl_core.data import load, new_clients, split_clients
from fl_core.decode import nmse_db
from fl_core.mac import RAYLEIGH_SPREAD, Channel
from fl_core.models import build
from fl_core.options import DataOptions, LearnOptions, ModelOptions, SchemeOptions
from fl_core.rounds import (
    State,
    Trial,
    choose_clients,
    client_tasks,
    client_update,
    client_updates,
    initial_parameters,
    outer_step,
    simulate,
    simulate_trials,
)
from fl_core.schemes import make_scheme

SEED = 5
DATA = DataOptions(ways=3, shots=2, queries=3, hessian_shots=2, clients=5, classes_per_client=4, new_tasks=6)
LEARN = LearnOptions(alpha=0.2, eta=0.05, local_steps=2)
QUIET = Channel("none", math.inf)


@pytest.fixture(scope="module")
def world():
    dataset = load(DATA, SEED)
    model = build(ModelOptions(hidden=(6,), activation="tanh"), dataset.image_shape, DATA.ways)
    return model, split_clients(dataset, DATA, SEED), new_clients(dataset, DATA, SEED)


def run(world, *, scheme=None, channel=QUIET, learn=LEARN, rounds=4, active=5, **options):
    model, clients, _ = world
    made = make_scheme(SchemeOptions(**(scheme or {})), model.dimension)
    return simulate(model, clients, DATA, learn, made, channel, rounds=rounds, active=active, seed=SEED, **options)


def spread(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


DENSE = {"name": "ideal", "keep": 1.0}


@pytest.mark.parametrize("estimator", ["linear", "oamp", "iht"])
def test_perfect_air_follows_ideal_meta_learning(world, estimator):
    """Section 5, item 1: h = 1, no noise, k = d, `pair`, everybody: the parameters are those of the ideal run."""
    air = run(world, scheme={"mapping": "pair", "keep": 1.0, "estimator": estimator}, rounds=5)
    ideal = run(world, scheme=DENSE, rounds=5)
    start = initial_parameters(world[0], SEED)
    # float32: five rounds of roundings, relative to how far training moved.
    assert float((air.state.theta - ideal.state.theta).norm()) < 1e-5 * float((ideal.state.theta - start).norm())


def test_one_step_without_adaptation_is_distributed_sgd(world):
    """Item 2: Q = 1, alpha = 0 equals SGD on the mean of the clients' query losses, by plain autograd."""
    model, clients, _ = world
    learn = LearnOptions(alpha=0.0, eta=0.1, local_steps=1)
    found = run(world, scheme={"mapping": "pair", "keep": 1.0, "estimator": "linear"}, learn=learn, rounds=3)
    theta = initial_parameters(model, SEED)
    for number in range(3):
        point = theta.clone().requires_grad_()
        total = torch.zeros(())
        for index, client in enumerate(clients):
            task = client_tasks(client, DATA, 1, SEED, index, number)
            total = total + F.cross_entropy(model.logits(point, task.query.x[0]), task.query.y[0]) / len(clients)
        theta = theta - 0.1 * torch.autograd.grad(total, point)[0]
    torch.testing.assert_close(found.state.theta, theta, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("active", [5, 3])
@pytest.mark.parametrize("sparsifier", ["top-k", "rand-k"])
def test_distance_to_the_virtual_sequence_is_the_mean_of_all_memories(world, active, sparsifier):
    """Item 3: without noise and spread, theta - theta_virtual = (1/s) sum of all memories."""
    model, clients, _ = world
    scheme = {"mapping": "pair", "keep": 0.1, "estimator": "linear", "sparsifier": sparsifier}
    visited = [initial_parameters(model, SEED)]
    found = run(
        world, scheme=scheme, rounds=6, active=active, observe=lambda record, state: visited.append(state.theta)
    )
    moved = torch.zeros(model.dimension, dtype=torch.float64)
    for number in range(6):
        chosen = choose_clients(SEED, number, len(clients), active)
        updates = client_updates(model, visited[number], clients, DATA, LEARN, seed=SEED, indices=chosen, round=number)
        moved += updates.double().mean(0)
    virtual = visited[0].double() - moved
    memories = found.state.memories.double().sum(0) / active
    # float32 parameters of order one, six rounds: a few 1e-7 per entry against memories of order 1e-2.
    assert float((found.state.theta - virtual - memories).abs().max()) < 2e-6
    assert float(memories.abs().max()) > 1e-3


@pytest.mark.parametrize("precoder", ["phase", "inversion"])
def test_no_client_of_any_round_exceeds_its_power(world, precoder):
    """Item 4: (1/M)|x_i|^2 <= P(1 + 1e-6), with equality for exactly the worst client, fades included."""
    found = run(world, scheme={"precoder": precoder}, channel=Channel("rayleigh", 10.0), rounds=8, active=4)
    for record in found.records:
        assert len(record.power) == 4
        assert max(record.power) == pytest.approx(1.0, rel=1e-6)
        assert sorted(record.power)[-2] < 1 - 1e-6


@pytest.mark.parametrize("keep", [0.2, 0.5])
@pytest.mark.parametrize("sparsifier", ["top-k", "rand-k"])
def test_memory_obeys_its_bound(world, keep, sparsifier):
    """Item 7: |m|^2 <= 4 (1 - lambda^2)/lambda^2 (eta Q G)^2, with the largest update in place of eta Q G."""
    model, clients, _ = world
    scheme = {"mapping": "pair", "keep": keep, "estimator": "linear", "sparsifier": sparsifier}
    visited, norms = [initial_parameters(model, SEED)], []

    def observe(record, state):
        visited.append(state.theta)
        norms.append(state.memories.square().sum(1).mean().item())

    run(world, scheme=scheme, rounds=15, observe=observe)
    largest = max(
        float(
            client_updates(model, theta, clients, DATA, LEARN, seed=SEED, indices=range(5), round=number)
            .square()
            .sum(1)
            .max()
        )
        for number, theta in enumerate(visited[:-1])
    )
    assert 0.0 < max(norms) <= 4 * (1 - keep**2) / keep**2 * largest


def test_memories_of_inactive_clients_are_untouched_bit_for_bit(world):
    """Item 7, second half."""
    before = torch.randn((5, world[0].dimension), generator=torch.Generator().manual_seed(1))
    start = State(initial_parameters(world[0], SEED), before)
    copy = before.clone()
    found = run(world, rounds=1, active=2, start=start, channel=Channel())
    chosen = choose_clients(SEED, 0, 5, 2)
    for index in range(5):
        same = found.state.memories[index].numpy().tobytes() == copy[index].numpy().tobytes()
        assert same == (index not in chosen)
    assert torch.equal(before, copy)


def test_error_flattens_at_high_snr_and_the_floor_goes_without_amplitude_spread(world):
    """Item 9, with the error against the parameters of the error-free run that starts from the same seeds."""
    scheme = {"mapping": "pair", "keep": 1.0, "estimator": "linear"}
    ideal = run(world, scheme=DENSE, rounds=6).state.theta
    error = {
        (fading, snr): nmse_db(run(world, scheme=scheme, channel=Channel(fading, snr), rounds=6).state.theta, ideal)
        for fading in ("rayleigh", "unit")
        for snr in (0.0, 10.0, 20.0, 40.0, 60.0)
    }
    assert error["rayleigh", 0.0] - error["rayleigh", 20.0] > 3.0
    assert abs(error["rayleigh", 40.0] - error["rayleigh", 60.0]) < 0.5
    for low, high in ((20.0, 40.0), (40.0, 60.0)):  # without a floor, 20 dB of SNR are 20 dB of error
        assert error["unit", low] - error["unit", high] == pytest.approx(20.0, abs=1.5)
    assert error["rayleigh", 60.0] - error["unit", 60.0] > 20.0


def test_the_floor_of_the_mean_update_is_the_spread_of_the_gains(world):
    found = run(world, channel=Channel("rayleigh", 60.0), scheme={"mapping": "pair"}, rounds=60)
    ratio = np.mean([10 ** (record.nmse_update_db / 10) for record in found.records])
    # Supports overlap, so the exact floor differs from v_h/mu_h^2 of independent ones; 300 gains: within 2 dB.
    assert 10 * math.log10(ratio) == pytest.approx(10 * math.log10(RAYLEIGH_SPREAD), abs=2.0)


def test_batched_updates_equal_one_by_one(world):
    model, clients, _ = world
    theta = initial_parameters(model, SEED)
    batch = client_updates(model, theta, clients, DATA, LEARN, seed=SEED, indices=[0, 2, 4], round=7)
    for row, index in enumerate([0, 2, 4]):
        one = client_update(model, theta, clients[index], DATA, LEARN, seed=SEED, index=index, round=7)
        assert spread(batch[row], one) < 1e-5
    batched, single = run(world, rounds=3), run(world, rounds=3, batched=False)
    assert spread(batched.state.theta, single.state.theta) < 1e-4


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_trials_together_equal_the_loop_of_single_trials(world, chunk):
    """Other seeds, other splits of the data; each trial is what it would be alone, to the rounding of its batch."""
    model = world[0]
    dataset = load(DATA, SEED)
    trials = [Trial(seed, split_clients(dataset, DATA, seed), new_clients(dataset, DATA, seed)) for seed in (3, 4, 5)]
    settings = {"rounds": 3, "active": 3, "evaluate_every": 2}
    scheme = make_scheme(SchemeOptions(mapping="pair", keep=1.0, estimator="linear"), model.dimension)
    channel = Channel("rayleigh", 15.0)
    seen = []
    together = simulate_trials(
        model, trials, DATA, LEARN, scheme, channel, **settings, chunk=chunk, observe=lambda *what: seen.append(what[0])
    )
    assert seen == [0, 1, 2] * 3
    for trial, found in zip(trials, together, strict=True):
        alone = simulate(
            model,
            trial.clients,
            DATA,
            LEARN,
            scheme,
            channel,
            seed=trial.seed,
            new_clients=trial.new_clients,
            **settings,
        )
        assert spread(found.state.theta, alone.state.theta) < 1e-6
        for mine, its in zip(found.records, alone.records, strict=True):
            assert (mine.clients, mine.received) == (its.clients, its.received)
            assert mine.scale == pytest.approx(its.scale, rel=1e-4)
            assert (mine.evaluation is None) == (its.evaluation is None)
            if mine.evaluation is not None:
                assert mine.evaluation.loss == pytest.approx(its.evaluation.loss, rel=1e-4)


def test_a_chunk_bounds_how_many_clients_are_in_memory(world, monkeypatch):
    """The tasks and gradients of more than ``chunk`` clients never exist at the same time."""
    import fl_core.rounds as rounds

    sizes = []
    true = rounds.local_updates

    def watched(model, theta, tasks, *rest):
        sizes.append(tasks.query.y.shape[0])
        return true(model, theta, tasks, *rest)

    monkeypatch.setattr(rounds, "local_updates", watched)
    run(world, rounds=1, scheme=DENSE, chunk=2)
    assert sizes == [2, 2, 1]


def test_a_client_update_depends_on_its_keys_alone(world):
    model, clients, _ = world
    theta = initial_parameters(model, SEED)

    def update(**keys):
        settings = {"seed": SEED, "index": 1, "round": 3, **keys}
        return client_update(model, theta, clients[1], DATA, LEARN, **settings)

    first = update()
    torch.manual_seed(123)
    np.random.default_rng(1)
    assert torch.equal(update(), first)
    for other in ({"seed": 6}, {"index": 2}, {"round": 4}):
        assert not torch.equal(update(**other), first)


def test_the_unbatched_simulation_is_what_a_daemon_computes_bit_for_bit(world):
    model, clients, _ = world
    found = run(world, scheme=DENSE, rounds=2, active=3, batched=False)
    theta = initial_parameters(model, SEED)
    for number in range(2):
        chosen = choose_clients(SEED, number, 5, 3)
        updates = [
            client_update(model, theta, clients[i], DATA, LEARN, seed=SEED, index=i, round=number) for i in chosen
        ]
        theta = outer_step(theta, torch.stack(updates).sum(0) / 3)
    assert torch.equal(found.state.theta, theta)


def test_active_clients_are_uniform_ascending_and_keyed(world):
    drawn = [choose_clients(1, number, 10, 4) for number in range(3000)]
    assert all(chosen == sorted(set(chosen)) and len(chosen) == 4 for chosen in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    # Binomial(3000, 0.4): 5 standard deviations are 134.
    assert np.abs(counts - 1200).max() < 134
    assert drawn[:5] == [choose_clients(1, number, 10, 4) for number in range(5)]
    assert drawn[:5] != [choose_clients(2, number, 10, 4) for number in range(5)]
    assert choose_clients(1, 0, 4, 4) == [0, 1, 2, 3]


def test_a_partial_round_takes_the_mean_of_those_received(world):
    model, clients, _ = world
    full = {"mapping": "pair", "keep": 1.0, "estimator": "linear"}
    found = run(world, scheme=full, rounds=1, lost=lambda number, index: index in (1, 3))
    assert found.records[0].clients == (0, 1, 2, 3, 4) and found.records[0].received == (0, 2, 4)
    theta = initial_parameters(model, SEED)
    updates = client_updates(model, theta, clients, DATA, LEARN, seed=SEED, indices=range(5), round=0)
    expected = theta - updates[[0, 2, 4]].mean(0)
    torch.testing.assert_close(found.state.theta, expected, atol=1e-6, rtol=1e-6)


def test_a_round_that_nobody_survives_changes_no_parameter(world):
    found = run(world, rounds=1, lost=lambda number, index: True)
    assert torch.equal(found.state.theta, initial_parameters(world[0], SEED))
    assert found.records[0].received == () and math.isnan(found.records[0].nmse_update_db)


def test_a_continued_run_equals_an_unbroken_one_bit_for_bit(world):
    settings = {"scheme": {"keep": 0.1}, "channel": Channel("rayleigh", 10.0), "active": 3}
    whole = run(world, rounds=5, **settings)
    first = run(world, rounds=2, **settings)
    second = run(world, rounds=3, start=first.state, first_round=2, **settings)
    assert torch.equal(whole.state.theta, second.state.theta)
    assert torch.equal(whole.state.memories, second.state.memories)
    assert whole.records == first.records + second.records


def test_adaptive_rates_shrink_the_steps(world):
    model, clients, _ = world
    theta = initial_parameters(model, SEED)
    learn = replace_options(LEARN, schedule="adaptive", t0=10.0, alpha=0.0, local_steps=1)
    keys = {"seed": SEED, "index": 0}
    fixed = client_update(model, theta, clients[0], DATA, replace_options(learn, schedule="constant"), round=30, **keys)
    # eta_t = eta0/sqrt(1 + 30/10) = eta0/2, and with alpha = 0 the step is linear in eta.
    torch.testing.assert_close(
        client_update(model, theta, clients[0], DATA, learn, round=30, **keys), fixed / 2, atol=1e-7, rtol=1e-5
    )


def replace_options(options: LearnOptions, **changes) -> LearnOptions:
    return LearnOptions(**{**options.model_dump(), **changes})


def test_new_clients_are_evaluated_when_due(world):
    found = run(world, scheme=DENSE, rounds=5, new_clients=world[2], evaluate_every=2)
    assert [record.evaluation is not None for record in found.records] == [False, True, False, True, True]
    assert all(0 <= record.evaluation.accuracy <= 1 for record in found.records if record.evaluation)


def test_training_helps_new_clients_through_a_fading_channel(world):
    longer = LearnOptions(alpha=0.4, eta=0.1, local_steps=5)
    settings = {"learn": longer, "new_clients": world[2], "channel": Channel("rayleigh", 20.0), "rounds": 40}
    found = run(world, scheme={"keep": 0.1}, evaluate_every=1, **settings)
    losses = [record.evaluation.loss for record in found.records]
    assert np.mean(losses[-5:]) < losses[0] - 0.05
    assert all(record.nmse_dense_db > record.nmse_update_db for record in found.records[:1])


def test_records_know_the_error_of_a_perfect_run(world):
    record = run(world, scheme={"name": "ideal", "keep": 0.1}, rounds=1).records[0]
    assert record.nmse_update_db < -120.0 and -6.0 < record.nmse_dense_db < 0.0
    assert record.power == (0.0,) * 5 and replace(record, round=1).round == 1


def test_mistakes_are_refused_with_numbers(world):
    model, clients, _ = world
    with pytest.raises(ValueError, match="6 of 5"):
        choose_clients(0, 0, 5, 6)
    scheme = make_scheme(SchemeOptions(), 999)
    with pytest.raises(ValueError, match="999 parameters"):
        simulate(model, clients, DATA, LEARN, scheme, QUIET, rounds=1, active=2, seed=0)
