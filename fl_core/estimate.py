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
ITERATIONS = 12  # of the power method: a few per cent of the norm, far less than between two points


def spectral_norms(
    operator: Operator, starts: Float[Tensor, "k d"], iterations: int = ITERATIONS
) -> Float[Tensor, " k"]:
    """Return the largest |eigenvalue| of k symmetric operators on R^d by the power method, approached from below.

    Args:
        operator: k vectors -> one product with each operator, shapes (k, d).
        starts: random vectors (k, d).
        iterations: applications of the operators.
    """
    vectors, sizes = starts, torch.zeros(())
    for _ in range(iterations):
        images = operator(vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-30))
        vectors, sizes = images, images.norm(dim=1)
    return sizes


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

    def along(each: Batch, vector: Tensor) -> Tensor:
        slope = grad(lambda point: loss(model, point, each))
        product: Tensor = grad(lambda point: torch.dot(slope(point), vector))(theta)
        return product

    def own_products(batch: Batch, vectors: Tensor) -> Tensor:
        """Multiply the Hessian of each of the stacked batches with its own vector."""
        products: Tensor = vmap(along, chunk_size=chunk)(batch, vectors)
        return products

    def products(batch: Batch, vectors: Tensor) -> Tensor:
        """Multiply the Hessian of the mean loss of stacked batches with every vector."""
        count = batch.y.shape[0]
        return torch.stack([own_products(batch, vector.expand(count, -1)).mean(0) for vector in vectors])

    def bending(task: Task) -> float:
        return hessian_smoothness(lambda point: slopes(task.support, point).mean(0), theta, start)

    gradients = torch.stack([slopes(task.support, theta) for task in tasks])  # (client, draw, d)
    own = gradients.mean(1)
    scatter = (gradients - own[:, None]).square().sum((1, 2)) / (draws - 1)  # of one batch, per client
    # The mean of a few draws scatters too; without this the clients of one distribution would seem to differ.
    chance = float(scatter.mean()) * (1.0 - 1.0 / len(tasks)) / draws
    spread = float((own - own.mean(0)).square().sum(1).mean()) - chance
    metas = torch.stack([vmap(meta, chunk_size=chunk)(task) for task in tasks])

    def curvature(task: Task) -> list[float]:
        """Return L_G, sigma_H^2 of a batch and gamma_H^2 of one client."""
        batch, one = task.support, start[None]
        each = spectral_norms(lambda v: own_products(batch, v) - products(batch, v), start.expand(draws, -1))
        apart = spectral_norms(lambda v: products(batch, v) - products(everything.support, v), one)
        smooth = spectral_norms(lambda v: products(batch, v), one)
        return [float(smooth), float(each.square().sum()) / (draws - 1), float(apart.square())]

    smooth, rough, apart = zip(*(curvature(task) for task in tasks), strict=True)
    return {
        "gradient": float(own.norm(dim=1).max()),
        "smoothness": max(smooth),
        "hessian_smoothness": max(bending(task) for task in tasks),
        "gradient_variance": size * float(scatter.max()),
        "hessian_variance": size * max(rough),
        "gradient_spread": max(0.0, spread),
        "hessian_spread": sum(apart) / len(tasks),
        "meta_square": float(metas.square().sum(2).mean(1).max()),
    }


def _unit(vector: Tensor) -> Tensor:
    return torch.div(vector, vector.norm())
