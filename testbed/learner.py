"""The seam between vectors and processes: a client's work on a node, the model and its evaluation on the server.

One of the few files here that know torch; what leaves it is NumPy. It knows nothing of radios, messages or sockets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from fl_core.data import evaluation_tasks, full_tasks, load, new_clients, split_clients
from fl_core.decode import nmse_db
from fl_core.mac import Channel
from fl_core.maml import evaluate, gradient_norm_squared, rates
from fl_core.measure import Row, World, measure
from fl_core.models import build
from fl_core.rounds import choose_clients, client_update, initial_parameters, outer_step, simulate
from fl_core.schemes import Csi, Plan, make_scheme
from radio.errors import ConfigError, RunError
from testbed.config import Experiment

Vector = Float32[np.ndarray, " d"]
Symbols = Complex64[np.ndarray, " symbol"]


class _Common:
    """What node and server derive alike from the experiment."""

    def __init__(self, experiment: Experiment) -> None:
        torch.set_num_threads(1)  # many daemons share a machine, and sums must not depend on its cores
        self.experiment = experiment
        self.seed = experiment.run.seed
        try:
            self.dataset = load(experiment.data, self.seed)
            self.clients = split_clients(self.dataset, experiment.data, self.seed)
            channels, rows, columns = self.clients[0].images.shape[1:]
            self.model = build(experiment.model, (channels, rows, columns), experiment.data.ways)
            self.scheme = make_scheme(experiment.scheme, self.model.dimension)
            self.scheme.check_waveform()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def plan(self, round_number: int, clients: int, scale: float = 1.0) -> Plan:
        """Give the part of the plan that the scheme knows."""
        return Plan(round_number, self.seed, clients, rates(self.experiment.learn, round_number)[1], scale)


@dataclass(frozen=True)
class Work:
    """One client's round before it goes on the air: unscaled symbols and what became of the update."""

    round: int
    symbols: Symbols
    norm_squared: float
    nonzeros: int
    dense: Vector
    sparse: Vector
    memory: Vector
    seconds: float


class Pupil(_Common):
    """A node's client: its data, its memory, its updates."""

    def __init__(self, experiment: Experiment, index: int) -> None:
        super().__init__(experiment)
        self.index = index
        self.memory: Vector = np.zeros(self.model.dimension, np.float32)

    def work(self, theta: Vector, round_number: int, clients: int) -> Work:
        """Train locally and encode; the memory moves only when ``commit`` is called."""
        begun = time.perf_counter()
        update = client_update(
            self.model,
            torch.from_numpy(np.ascontiguousarray(theta)),
            self.clients[self.index],
            self.experiment.data,
            self.scheme.learning(self.experiment.learn),
            seed=self.seed,
            index=self.index,
            round=round_number,
        )
        memory = torch.from_numpy(self.memory)
        plan = self.plan(round_number, clients)
        sparse, _ = self.scheme.sparsify(update, memory, plan)
        symbols, remaining = self.scheme.encode(update, memory, Csi(), plan)
        return Work(
            round=round_number,
            symbols=symbols.numpy().astype(np.complex64),
            norm_squared=float(torch.sum(symbols.abs().double() ** 2)),
            nonzeros=int(torch.count_nonzero(sparse)),
            dense=update.numpy(),
            sparse=sparse.numpy(),
            memory=remaining.numpy(),
            seconds=time.perf_counter() - begun,
        )

    def recall(self, work: Work, lost: Callable[[Symbols], Symbols]) -> Work:
        """Give work the memory of what fades cut off its symbols, under a scheme that keeps it.

        Args:
            work: of this round.
            lost: symbols to the part of them that the radio does not send.
        """
        if not self.scheme.recalls:
            return work
        update, memory = torch.from_numpy(work.dense), torch.from_numpy(self.memory)
        plan = self.plan(work.round, 1)
        kept = self.scheme.late(update, memory, lambda symbols: torch.from_numpy(lost(symbols.numpy())), plan)
        return replace(work, memory=kept.numpy())

    def commit(self, work: Work) -> None:
        """Take over the memory of a round that was used."""
        self.memory = work.memory


class Teacher(_Common):
    """The server's model: chooses clients, decodes sums, steps, evaluates."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.theta: Tensor = initial_parameters(self.model, self.seed)
        self._evaluated: tuple[Tensor, int, dict[str, float]] | None = None  # the last round is asked for twice
        self.strangers = new_clients(self.dataset, experiment.data, self.seed)
        self._new_tasks = evaluation_tasks(self.strangers, experiment.data, self.seed)
        self._own_tasks = evaluation_tasks(self.clients, experiment.data, self.seed)
        self._full_tasks = full_tasks(self.clients, experiment.data, self.seed)

    def choose(self, round_number: int) -> list[int]:
        """Draw the clients of a round."""
        return choose_clients(
            self.seed, round_number, len(self.clients), min(self.experiment.run.clients_per_round, len(self.clients))
        )

    def scale(self, norms_squared: Sequence[float], round_number: int) -> float:
        """Give the common amplitude that the power rule allows."""
        return self.scheme.scale(list(norms_squared), self.plan(round_number, len(norms_squared)))

    def step(
        self,
        received: Symbols,
        round_number: int,
        clients: int,
        scale: float,
        gain_mean: float,
        gain_power: float,
        noise: float,
    ) -> Tensor:
        """Decode the mean update from a received sum and apply it.

        Args:
            received: the sum in units of scaled symbols.
            round_number: counted from 0.
            clients: how many are in the sum.
            scale: common amplitude of the symbols.
            gain_mean: mean arrival amplitude.
            gain_power: mean square of it.
            noise: error variance per symbol, everything included.

        Returns:
            The decoded mean update, shape (d,).
        """
        plan = self.plan(round_number, clients, scale)
        estimate = self.scheme.decode(torch.from_numpy(received), Csi(gain_mean, noise, gain_power=gain_power), plan)
        if not bool(torch.isfinite(estimate).all()):
            raise RunError(
                f"round {round_number}: the decoded update is not finite",
                "lower learn.eta or learn.alpha and start again",
            )
        self.theta = outer_step(self.theta, estimate)
        return estimate

    def warm(self) -> None:
        """Do once what libraries prepare at the first call."""
        evaluate(self.model, self.theta, self._new_tasks, rates(self.experiment.learn, 0)[0])

    @staticmethod
    def nmse_db(estimate: Tensor, truth: Vector) -> float:
        """Compare a decoded mean update with the true one."""
        return nmse_db(estimate, torch.from_numpy(truth.astype(np.float32)))

    def evaluation(self, round_number: int, theta: Tensor | None = None) -> dict[str, float]:
        """Evaluate new and training clients, before and after one fine-tuning step."""
        theta = self.theta if theta is None else theta
        if self._evaluated is not None and self._evaluated[0] is theta and self._evaluated[1] == round_number:
            return dict(self._evaluated[2])
        alpha = rates(self.experiment.learn, round_number)[0]
        new = evaluate(self.model, theta, self._new_tasks, alpha)
        own = evaluate(self.model, theta, self._own_tasks, alpha)
        values = {
            "accuracy_new_clients": new.accuracy,
            "accuracy_new_clients_before": new.accuracy_before,
            "loss_new_clients": new.loss,
            "accuracy_train_clients": own.accuracy,
            "loss_train_clients": own.loss,
            "gradient_norm_squared": gradient_norm_squared(self.model, theta, self._full_tasks, alpha),
        }
        self._evaluated = (theta, round_number, values)
        return dict(values)

    def comparison(self, rounds: int) -> dict[str, dict[str, float]]:
        """Evaluate no training, and error-free aggregation of dense updates with the same seeds."""
        ideal = make_scheme(
            self.experiment.scheme.model_copy(update={"name": "ideal", "keep": 1.0}), self.model.dimension
        )
        trained = simulate(
            self.model,
            self.clients,
            self.experiment.data,
            self.experiment.learn,
            ideal,
            Channel("none", math.inf),
            rounds=rounds,
            active=len(self.choose(0)),
            seed=self.seed,
        )
        return {
            "untrained": self.evaluation(0, initial_parameters(self.model, self.seed)),
            "error_free": self.evaluation(max(rounds - 1, 0), trained.state.theta),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Give what a checkpoint must hold."""
        return {"theta": self.theta.numpy()}

    def restore(self, arrays: dict[str, Any]) -> None:
        """Take up a checkpoint."""
        self.theta = torch.from_numpy(np.array(arrays["theta"], np.float32))


def measure_trial(experiment: Experiment) -> list[Row]:
    """Run one experiment through the simulated channel, without radios; one row per measurement.

    Raises:
        ConfigError: settings that do not fit one another, or rates under which training diverges.
        MemoryError: the process may not take as much memory as it needs.
    """
    run = experiment.run
    with _user_errors():
        return measure(
            _world(experiment), rounds=run.rounds, active=run.clients_per_round, evaluate_every=run.evaluate_every
        )[0]


def constants(experiment: Experiment) -> dict[str, float]:
    """Estimate the constants of the convergence bound where training starts.

    Raises:
        ConfigError: settings that do not fit one another.
        MemoryError: the process may not take as much memory as it needs.
    """
    with _user_errors():
        return asdict(_world(experiment).constants())


def _world(experiment: Experiment) -> World:
    torch.set_num_threads(1)
    return World.make(experiment.data, experiment.model, experiment.learn, experiment.scheme, experiment.run.seed)


@contextmanager
def _user_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # torch has no class of its own for this on the CPU
            raise
        raise MemoryError(str(error).splitlines()[0]) from error


__all__ = ["Pupil", "Teacher", "Work", "constants", "measure_trial"]
