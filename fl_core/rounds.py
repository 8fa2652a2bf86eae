"""One round as functions of (seed, client, round), and many rounds as a simulation; knows no processes and no radio.

A node daemon and :func:`simulate` call the same :func:`client_update` with the same keys: the same update, bit for bit,
on the same machine with the same number of torch threads. Reductions over clients run in ascending client order.

Learning is where the time goes: it is batched over clients and trials, on any device, a bounded number at a time.
Coding and the channel run on the CPU trial by trial, so that every draw is the same whatever computes the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fl_core.data import ClientData, Task, evaluation_tasks, moved, sample_tasks, stack
from fl_core.decode import nmse_db
from fl_core.mac import Channel
from fl_core.maml import Evaluation, default_chunk, evaluate, local_update, local_updates, rates
from fl_core.models import Model
from fl_core.options import DataOptions, LearnOptions
from fl_core.schemes import Plan, Scheme, exchange
from fl_core.seeds import generator, numpy_generator


@dataclass(frozen=True)
class RoundRecord:
    """What one simulated round did.

    Attributes:
        round: counted from 0.
        clients: indices of the active clients, ascending.
        received: indices of those whose symbols arrived.
        scale: common amplitude.
        power: mean transmit power of each active client, per channel use (limit 1).
        nmse_update_db: decoded mean against the mean of the sparsified updates of ``received``.
        nmse_dense_db: decoded mean against the mean of their unsparsified updates.
        evaluation: new clients after this round, when it was due.
    """

    round: int
    clients: tuple[int, ...]
    received: tuple[int, ...]
    scale: float
    power: tuple[float, ...]
    nmse_update_db: float
    nmse_dense_db: float
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class State:
    """What a run carries from round to round: parameters (d,) and one memory per client (client, d)."""

    theta: Float[Tensor, " d"]
    memories: Float[Tensor, "client d"]


@dataclass(frozen=True)
class Trial:
    """One Monte Carlo trial: its seed, its training clients in index order, and the new clients that judge it."""

    seed: int
    clients: Sequence[ClientData]
    new_clients: Sequence[ClientData] = ()


Lost = Callable[[int, int], bool]


@dataclass(frozen=True)
class Simulation:
    """The outcome of :func:`simulate`."""

    state: State
    records: tuple[RoundRecord, ...]


def initial_parameters(model: Model, seed: int) -> Float[Tensor, " d"]:
    """Draw the parameters that round 0 starts from; a function of the seed alone."""
    return model.init(generator(seed, "init"))


def choose_clients(seed: int, round: int, clients: int, active: int) -> list[int]:
    """Draw the active clients of a round, uniform without replacement, in ascending order.

    Raises:
        ValueError: ``active`` is outside 1..clients.
    """
    if not 1 <= active <= clients:
        raise ValueError(f"{active} of {clients} clients cannot be active; choose between 1 and {clients}")
    drawn = numpy_generator(seed, "clients", round).choice(clients, active, replace=False)
    return sorted(int(index) for index in drawn)


def client_tasks(client: ClientData, data: DataOptions, steps: int, seed: int, index: int, round: int) -> Task:
    """Draw the Q tasks of one client's round, stacked; a function of (seed, index, round) alone."""
    return sample_tasks(client, data, generator(seed, "task", index, round), steps)


def client_update(
    model: Model,
    theta: Float[Tensor, " d"],
    client: ClientData,
    data: DataOptions,
    learn: LearnOptions,
    *,
    seed: int,
    index: int,
    round: int,
) -> Float[Tensor, " d"]:
    """Compute one client's update of one round, old minus new parameters.

    Args:
        model: the network.
        theta: parameters as broadcast, shape (d,).
        client: the client's data.
        data: how tasks are drawn.
        learn: local steps, rates, kind of meta-gradient.
        seed: of the experiment.
        index: of the client; with (seed, round) it fixes the tasks.
        round: counted from 0.

    Returns:
        Delta, shape (d,); the server subtracts the mean of these.
    """
    alpha, eta = rates(learn, round)
    tasks = client_tasks(client, data, learn.local_steps, seed, index, round)
    return local_update(model, theta, tasks, alpha, eta, learn.gradient)


def client_updates(
    model: Model,
    theta: Float[Tensor, " d"],
    clients: Sequence[ClientData],
    data: DataOptions,
    learn: LearnOptions,
    *,
    seed: int,
    indices: Sequence[int],
    round: int,
) -> Float[Tensor, "client d"]:
    """Compute the updates of several clients at once: :func:`client_update` of each, to float tolerance, but faster."""
    alpha, eta = rates(learn, round)
    tasks = stack([client_tasks(clients[i], data, learn.local_steps, seed, i, round) for i in indices])
    return local_updates(model, theta, tasks, alpha, eta, learn.gradient)


def outer_step(theta: Float[Tensor, " d"], mean_update: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """Return ``theta - mean_update``: the one place where the sign of an update matters."""
    return theta - mean_update


def _updates(
    model: Model,
    thetas: Sequence[Tensor],
    trials: Sequence[Trial],
    chosen: Sequence[Sequence[int]],
    data: DataOptions,
    learn: LearnOptions,
    round: int,
    device: str,
    chunk: int,
) -> list[Tensor]:
    """Compute the updates of all chosen clients of all trials, ``chunk`` together; one (client, d) tensor per trial."""
    alpha, eta = rates(learn, round)
    rows = [(number, index) for number, indices in enumerate(chosen) for index in indices]
    parts = []
    for first in range(0, len(rows), chunk):  # tasks are drawn here too, so that images do not pile up
        some = rows[first : first + chunk]
        drawn = [client_tasks(trials[t].clients[i], data, learn.local_steps, trials[t].seed, i, round) for t, i in some]
        tasks = moved(stack(drawn), device)
        theta = thetas[0] if len(trials) == 1 else torch.stack([thetas[t] for t, _ in some])
        parts.append(local_updates(model, theta.to(device), tasks, alpha, eta, learn.gradient).cpu())
    return list(torch.split(torch.cat(parts), [len(indices) for indices in chosen]))


def _one_by_one(
    model: Model,
    theta: Tensor,
    trial: Trial,
    chosen: Sequence[int],
    data: DataOptions,
    learn: LearnOptions,
    round: int,
) -> Tensor:
    """Compute a trial's updates as node daemons do."""
    updates = [
        client_update(model, theta, trial.clients[i], data, learn, seed=trial.seed, index=i, round=round)
        for i in chosen
    ]
    return torch.stack(updates)


def _aggregate(
    state: State,
    updates: Float[Tensor, "client d"],
    chosen: Sequence[int],
    scheme: Scheme,
    channel: Channel,
    plan: Plan,
    lost: Lost | None,
) -> tuple[State, RoundRecord]:
    """Send the updates of one trial's round through the channel and step; ``state`` is not modified."""
    heard = [position for position, index in enumerate(chosen) if lost is None or not lost(plan.round, index)]
    sent = exchange(scheme, channel, updates, state.memories[chosen], plan, plan.seed, heard)
    memories = state.memories.clone()
    memories[chosen] = sent.memories
    arrived = tuple(chosen[position] for position in heard)
    if not heard:
        record = RoundRecord(plan.round, tuple(chosen), (), sent.plan.scale, sent.power, float("nan"), float("nan"))
        return State(state.theta, memories), record
    estimate = scheme.decode(sent.received, sent.csi, sent.plan)
    record = RoundRecord(
        plan.round,
        tuple(chosen),
        arrived,
        sent.plan.scale,
        sent.power,
        nmse_db(estimate, sent.sparse[heard].mean(0)),
        nmse_db(estimate, updates[heard].mean(0)),
    )
    return State(outer_step(state.theta, estimate), memories), record


def simulate(
    model: Model,
    clients: Sequence[ClientData],
    data: DataOptions,
    learn: LearnOptions,
    scheme: Scheme,
    channel: Channel,
    *,
    rounds: int,
    active: int,
    seed: int,
    new_clients: Sequence[ClientData] = (),
    evaluate_every: int = 0,
    start: State | None = None,
    first_round: int = 0,
    batched: bool = True,
    device: str = "cpu",
    chunk: int | None = None,
    lost: Lost | None = None,
    observe: Callable[[RoundRecord, State], None] | None = None,
) -> Simulation:
    """Run one trial of :func:`simulate_trials`.

    Args:
        model: the network.
        clients: the training clients, in index order.
        data: how tasks are drawn.
        learn: local steps, rates, kind of meta-gradient.
        scheme: for updates of ``model.dimension`` entries.
        channel: fading and SNR.
        rounds: how many.
        active: clients per round, s.
        seed: of the experiment.
        new_clients: whom to evaluate.
        evaluate_every: rounds between evaluations; 0 evaluates after the last round only.
        start: parameters and memories; by default drawn from the seed, and zeros.
        first_round: index of the first round.
        batched: compute the clients' updates together; off, one by one as a node daemon does, bit for bit.
        device: torch device of the learning.
        chunk: clients computed together.
        lost: (round, client index) -> whether its burst never arrives.
        observe: called after each round.

    Raises:
        ValueError: as :func:`simulate_trials`.
    """
    (found,) = simulate_trials(
        model,
        [Trial(seed, clients, new_clients)],
        data,
        learn,
        scheme,
        channel,
        rounds=rounds,
        active=active,
        evaluate_every=evaluate_every,
        starts=None if start is None else [start],
        first_round=first_round,
        batched=batched,
        device=device,
        chunk=chunk,
        lost=lost,
        observe=None if observe is None else lambda trial, record, state: observe(record, state),
    )
    return found


def simulate_trials(
    model: Model,
    trials: Sequence[Trial],
    data: DataOptions,
    learn: LearnOptions,
    scheme: Scheme,
    channel: Channel,
    *,
    rounds: int,
    active: int,
    evaluate_every: int = 0,
    starts: Sequence[State] | None = None,
    first_round: int = 0,
    batched: bool = True,
    device: str = "cpu",
    chunk: int | None = None,
    lost: Lost | None = None,
    observe: Callable[[int, RoundRecord, State], None] | None = None,
) -> tuple[Simulation, ...]:
    """Meta-train through a simulated channel, several Monte Carlo trials at once.

    Source: Wen, Xing, Simeone, arXiv 2406.11569, Algorithm 1. Clients, tasks, rows, gains and noise of round t of a
    trial depend on (seed, t) alone: the clients and tasks are those of the daemons with the same seed, a trial does not
    depend on its neighbours beyond rounding, and a run continued from ``starts`` at ``first_round`` equals an unbroken
    one, bit for bit.

    Args:
        model: the network.
        trials: seeds and clients; all with as many clients, and classes and examples enough for the same tasks.
        data: how tasks are drawn.
        learn: local steps, rates, kind of meta-gradient.
        scheme: for updates of ``model.dimension`` entries.
        channel: fading and SNR; a scheme that is not ``over_air`` does not see it.
        rounds: how many.
        active: clients per round, s.
        evaluate_every: rounds between evaluations; 0 evaluates after the last round only.
        starts: parameters and memories of each trial; by default drawn from its seed, and zeros.
        first_round: index of the first round.
        batched: compute the updates of all clients and trials together; off, one by one as a node daemon does.
        device: torch device of the learning, for example ``cuda``; states and records stay on the CPU.
        chunk: clients, over all trials, whose tasks and gradients are in memory at a time; unset: ``default_chunk``.
        lost: (round, client index) -> whether its burst never arrives: the mean is over the others. The client does
            not know, so its memory moves on.
        observe: called after each round with the position of the trial.

    Returns:
        For each trial the final state and one record per round.

    Raises:
        ValueError: the scheme is for another dimension, no client, ``active`` out of range, or updates that are not
            finite.
    """
    if scheme.dimension != model.dimension:
        raise ValueError(
            f"the scheme is for {scheme.dimension} parameters and the model has {model.dimension}; "
            "make the scheme with model.dimension"
        )
    states = list(starts or ())
    if not states:
        states = [
            State(initial_parameters(model, t.seed), torch.zeros(len(t.clients), model.dimension)) for t in trials
        ]
    judged = [
        moved(evaluation_tasks(list(t.new_clients), data, t.seed), device) if t.new_clients else None for t in trials
    ]
    records: list[list[RoundRecord]] = [[] for _ in trials]
    local = scheme.learning(learn)
    for number in range(first_round, first_round + rounds):
        chosen = [choose_clients(t.seed, number, len(t.clients), active) for t in trials]
        thetas = [state.theta for state in states]
        if batched:
            size = chunk or default_chunk(model, torch.device(device))
            updates = _updates(model, thetas, trials, chosen, data, local, number, device, size)
        else:
            updates = [
                _one_by_one(model, *each, data, local, number) for each in zip(thetas, trials, chosen, strict=True)
            ]
        alpha, eta = rates(learn, number)
        last = number == first_round + rounds - 1
        due = last or (evaluate_every > 0 and (number + 1) % evaluate_every == 0)
        for position, trial in enumerate(trials):
            plan = Plan(number, trial.seed, len(chosen[position]), eta)
            state, record = _aggregate(
                states[position], updates[position], chosen[position], scheme, channel, plan, lost
            )
            tasks = judged[position]
            if tasks is not None and due:
                record = replace(record, evaluation=evaluate(model, state.theta.to(device), tasks, alpha))
            states[position] = state
            records[position].append(record)
            if observe is not None:
                observe(position, record, state)
    return tuple(Simulation(state, tuple(done)) for state, done in zip(states, records, strict=True))
