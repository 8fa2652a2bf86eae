"""Estimates the constants of the bounds for a given model and data set; knows losses and tasks, no channel.

Suprema are taken over the given points only, so every figure is an estimate from below. Batches are drawn as training
draws them: "variance" includes which classes a task has and how it labels them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap

from fl_core.data import Batch, ClientData, Task, sample_tasks
from fl_core.maml import default_chunk, evaluate, loss, meta_gradient
from fl_core.models import Model
from fl_core.options import DataOptions, LearnOptions
from fl_core.seeds import generator
from fl_core.theory import Constants

Operator = Callable[[Tensor], Tensor]
ITERATIONS = 15  # of the power method: a few per cent of the norm, far less than between two points


def spectral_norm(operator: Operator, start: Float[Tensor, " d"], iterations: int = ITERATIONS) -> float:
    """Return the largest |eigenvalue| of a symmetric operator on R^d by the power method, approached from below.

    Args:
        operator: v -> H v.
        start: a random vector (d,).
        iterations: applications of the operator.
    """
    vector, size = _unit(start), 0.0
    for _ in range(iterations):
        image = operator(vector)
        size = float(image.norm())
        if size == 0.0:
            break
        vector = image / size
    return size


def hessian_smoothness(
    gradient: Operator, theta: Float[Tensor, " d"], start: Float[Tensor, " d"], iterations: int = ITERATIONS
) -> float:
    """Return the largest change of the Hessian per distance from theta, in the spectral norm, approached from below.

    The norm of a symmetric tensor of third derivatives is reached at D3f(u, u, u) (Banach, 1938); u is found by
    iterating u <- D3f(u, u, .), with second differences of the gradient over a distance that float32 resolves.

    Args:
        gradient: theta -> gradient, shapes (d,).
        theta: the point.
        start: a random direction (d,).
        iterations: of u.
    """
    step = torch.finfo(theta.dtype).eps ** 0.25 * max(1.0, float(theta.norm()))
    centre, direction, largest = gradient(theta), _unit(start), 0.0
    for _ in range(iterations):
        bend = (gradient(theta + step * direction) - 2.0 * centre + gradient(theta - step * direction)) / step**2
        size = float(bend.norm())
        if size == 0.0:
            break
        largest = max(largest, size)
        # Keeping some of the old direction stops it from jumping between two (Kolda, Mayo, arXiv 1007.1267).
        direction = _unit(bend / size + direction)
    return largest


def estimate_constants(
    model: Model,
    points: Sequence[Float[Tensor, " d"]],
    clients: Sequence[ClientData],
    data: DataOptions,
    learn: LearnOptions,
    *,
    seed: int,
    draws: int = 8,
) -> Constants:
    """Estimate the constants of ``fl_core.theory`` at some points of a run.

    f_i is the mean loss of ``draws`` tasks of client i (their support sets); the work grows with clients x draws.

    Args:
        model: the network.
        points: parameters, the first being the start of training.
        clients: training clients.
        data: how tasks are drawn.
        learn: inner rate.
        seed: of the drawn tasks.
        draws: tasks per client, at least 2.

    Raises:
        ValueError: fewer than two draws or no point.
    """
    if draws < 2 or not points:
        raise ValueError(f"{draws} draws at {len(points)} points give no variance; take at least 2 draws at 1 point")
    tasks = [
        sample_tasks(client, data, generator(seed, "constants", index), draws) for index, client in enumerate(clients)
    ]
    everything = Task(*(Batch(*map(torch.cat, zip(*parts, strict=True))) for parts in zip(*tasks, strict=True)))
    at = [_at(model, theta, tasks, everything, learn.alpha, seed) for theta in points]
    largest = {name: max(found[name] for found in at) for name in at[0]}
    return Constants(**largest, gap=evaluate(model, points[0], everything, learn.alpha).loss)  # a loss is at least 0


def _at(
    model: Model, theta: Tensor, tasks: Sequence[Task], everything: Task, alpha: float, seed: int
) -> dict[str, float]:
    """Measure all constants but the gap at one point."""
    chunk = default_chunk(model)
    draws, size = tasks[0].support.y.shape
    start = torch.randn(model.dimension, generator=generator(seed, "start")).to(theta.dtype)

    def slopes(batch: Batch, point: Tensor) -> Tensor:
        one = grad(lambda at, each: loss(model, at, each))
        found: Tensor = vmap(one, (None, 0), chunk_size=chunk)(point, batch)
        return found

    def meta(task: Task) -> Tensor:
        return meta_gradient(model, theta, *task, alpha, "exact")

    def curvature(batch: Batch) -> Operator:
        """Return v -> H v for the mean loss of stacked batches."""
        slope = grad(lambda point: vmap(lambda each: loss(model, point, each))(batch).mean())
        along = grad(lambda point, vector: torch.dot(slope(point), vector))
        return lambda vector: along(theta, vector)

    def apart(first: Operator, second: Operator) -> float:
        return spectral_norm(lambda vector: first(vector) - second(vector), start) ** 2

    def bending(task: Task) -> float:
        return hessian_smoothness(lambda point: slopes(task.support, point).mean(0), theta, start)

    gradients = torch.stack([slopes(task.support, theta) for task in tasks])  # (client, draw, d)
    own = gradients.mean(1)
    scatter = (gradients - own[:, None]).square().sum((1, 2)) / (draws - 1)  # of one batch, per client
    # The mean of a few draws scatters too; without this the clients of one distribution would seem to differ.
    chance = float(scatter.mean()) * (1.0 - 1.0 / len(tasks)) / draws
    spread = float((own - own.mean(0)).square().sum(1).mean()) - chance
    metas = torch.stack([vmap(meta, chunk_size=chunk)(task) for task in tasks])
    curved = [curvature(task.support) for task in tasks]
    whole = curvature(everything.support)
    rough = [
        sum(apart(curvature(Batch(task.support.x[k : k + 1], task.support.y[k : k + 1])), mine) for k in range(draws))
        for task, mine in zip(tasks, curved, strict=True)
    ]
    return {
        "gradient": float(own.norm(dim=1).max()),
        "smoothness": max(spectral_norm(mine, start) for mine in curved),
        "hessian_smoothness": max(bending(task) for task in tasks),
        "gradient_variance": size * float(scatter.max()),
        "hessian_variance": size * max(rough) / (draws - 1),
        "gradient_spread": max(0.0, spread),
        "hessian_spread": sum(apart(mine, whole) for mine in curved) / len(tasks),
        "meta_square": float(metas.square().sum(2).mean(1).max()),
    }


def _unit(vector: Tensor) -> Tensor:
    return torch.div(vector, vector.norm())
