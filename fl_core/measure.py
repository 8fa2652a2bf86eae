"""One simulated trial from its options to a table of measurements; knows no files, no processes and no radio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fl_core.data import evaluation_tasks, full_tasks, load, moved, new_clients, split_clients
from fl_core.estimate import estimate_constants
from fl_core.mac import Channel
from fl_core.maml import evaluate, gradient_norm_squared, rates
from fl_core.models import Model, build
from fl_core.options import DataOptions, LearnOptions, ModelOptions, SchemeOptions
from fl_core.rounds import RoundRecord, State, Trial, initial_parameters, simulate_trials
from fl_core.schemes import Scheme, make_scheme
from fl_core.theory import Constants

Row = dict[str, float | None]


@dataclass(frozen=True)
class World:
    """All that a trial needs besides its channel: data, network and scheme, made from options and a seed."""

    data: DataOptions
    learn: LearnOptions
    scheme: SchemeOptions
    model: Model
    trial: Trial

    @classmethod
    def make(
        cls, data: DataOptions, model: ModelOptions, learn: LearnOptions, scheme: SchemeOptions, seed: int
    ) -> World:
        """Load the data, split them over clients, build the network.

        Raises:
            ValueError: options that do not fit one another, or data that are not there.
        """
        dataset = load(data, seed)
        trial = Trial(seed, split_clients(dataset, data, seed), new_clients(dataset, data, seed))
        return cls(data, learn, scheme, build(model, dataset.image_shape, data.ways), trial)

    def make_scheme(self) -> Scheme:
        """Build the scheme for the network's parameters."""
        return make_scheme(self.scheme, self.model.dimension)

    def channel(self) -> Channel:
        """Give the simulated channel that the scheme's options describe."""
        return Channel(self.scheme.fading, self.scheme.snr_db, self.scheme.coherence)

    def constants(self, thetas: Sequence[Float[Tensor, " d"]] = (), draws: int = 4) -> Constants:
        """Estimate the constants of the bounds at the start of training and at further points."""
        points = [initial_parameters(self.model, self.trial.seed), *thetas]
        clients = self.trial.clients
        return estimate_constants(self.model, points, clients, self.data, self.learn, seed=self.trial.seed, draws=draws)


def measure(
    world: World, *, rounds: int, active: int, evaluate_every: int, device: str = "cpu"
) -> tuple[list[Row], Tensor]:
    """Train through the simulated channel and measure at the start, every ``evaluate_every`` rounds and at the end.

    The trial's tasks are fixed: every measurement, and every setting with the same data options and seed, is judged by
    the same ones.

    Args:
        world: from options.
        rounds: T.
        active: s, clients per round.
        evaluate_every: rounds between measurements.
        device: torch device of the learning.

    Returns:
        One row per measurement, and the final parameters (d,). A row has ``round`` (finished rounds), accuracies and
        losses (nats) of new and of training clients after one fine-tuning step, ``generalisation_gap`` (the difference
        of the losses), ``gradient_norm_squared`` of the meta-training loss over all training examples,
        ``nmse_update_db`` of the mean update since the last row (None at the start), ``channel_uses`` and ``energy``
        (of all clients, in units of P per use) spent so far.
    """
    model, data, trial = world.model, world.data, world.trial
    scheme = world.make_scheme()
    strangers = moved(evaluation_tasks(list(trial.new_clients), data, trial.seed), device)
    own = moved(evaluation_tasks(list(trial.clients), data, trial.seed), device)
    full = moved(full_tasks(list(trial.clients), data, trial.seed), device)
    rows: list[Row] = []
    errors: list[float] = []
    spent = {"channel_uses": 0.0, "energy": 0.0}

    def row(finished: int, theta: Tensor) -> None:
        alpha, _ = rates(world.learn, max(finished - 1, 0))
        here = theta.to(device)
        new, mine = evaluate(model, here, strangers, alpha), evaluate(model, here, own, alpha)
        rows.append(
            {
                "round": finished,
                "accuracy_new_clients": new.accuracy,
                "accuracy_new_clients_before": new.accuracy_before,
                "loss_new_clients": new.loss,
                "accuracy_train_clients": mine.accuracy,
                "loss_train_clients": mine.loss,
                "generalisation_gap": new.loss - mine.loss,
                "gradient_norm_squared": gradient_norm_squared(model, here, full, alpha),
                "nmse_update_db": _mean_db(errors),
                **spent,
            }
        )
        errors.clear()

    def observe(position: int, record: RoundRecord, state: State) -> None:
        spent["channel_uses"] += scheme.uses
        spent["energy"] += sum(record.power) * scheme.uses
        errors.append(record.nmse_update_db)
        finished = record.round + 1
        if finished == rounds or finished % evaluate_every == 0:
            row(finished, state.theta)

    row(0, initial_parameters(model, trial.seed))
    (found,) = simulate_trials(
        model,
        [Trial(trial.seed, trial.clients)],
        data,
        world.learn,
        scheme,
        world.channel(),
        rounds=rounds,
        active=active,
        device=device,
        observe=observe,
    )
    return rows, found.state.theta


def _mean_db(values: Sequence[float]) -> float | None:
    """Average errors in dB as ratios; None when there is none, or no finite one."""
    ratios = [math.exp(value / 10.0 * math.log(10.0)) for value in values if not math.isnan(value)]
    mean = sum(ratios) / len(ratios) if ratios else 0.0
    return 10.0 * math.log10(mean) if mean > 0.0 else None
