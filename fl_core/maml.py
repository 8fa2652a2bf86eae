"""Knows one client's learning: inner step, meta-gradient, local update, evaluation; knows nothing of channels."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap

from fl_core import convolutional, dense
from fl_core.data import Batch, Task
from fl_core.models import Model
from fl_core.options import LearnOptions

Vector = Float[Tensor, " d"]
Method = Literal["exact", "hessian-free", "first-order"]
Function = Callable[[Tensor], Tensor]
Derive = Callable[[Function], Function]
P = ParamSpec("P")
R = TypeVar("R")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Evaluation:
    """Query-set results averaged over tasks: before and after one fine-tuning step. Losses in nats, accuracies 0..1."""

    loss_before: float
    accuracy_before: float
    loss: float
    accuracy: float


def _exactly(function: Callable[P, R]) -> Callable[P, R]:
    """Have a GPU keep all bits of float32 in convolutions, which costs it no time.

    Unless told not to, cuDNN rounds their factors to ten bits (TF32), and a meta-gradient then is off by 8 %.
    """

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        if not any(isinstance(value, Tensor) and value.device.type != "cpu" for value in (*args, *named.values())):
            return function(*args, **named)
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        try:
            return function(*args, **named)
        finally:
            torch.backends.cudnn.allow_tf32 = before

    return call


def rates(options: LearnOptions, round_number: int) -> tuple[float, float]:
    """Return (alpha, eta) of round t = ``round_number``, counted from 0.

    ``adaptive`` is eta_t = eta0/sqrt(1+t/t0) and alpha_t = alpha0/(1+t/t0)^(1/4): the decaying rates that the adaptive
    convergence theorem of Wen, Xing, Simeone (arXiv 2406.11569) asks for; the exact law there may differ.
    """
    if options.schedule == "constant":
        return options.alpha, options.eta
    age = 1.0 + round_number / options.t0
    return options.alpha / age**0.25, options.eta / age**0.5


def loss(model: Model, theta: Vector, batch: Batch) -> Float[Tensor, ""]:
    """Compute the mean cross-entropy of a batch, in nats."""
    return F.cross_entropy(model.logits(theta, batch.x), batch.y)


@_exactly
def fine_tune(model: Model, theta: Vector, support: Batch, alpha: float, derive: Derive = grad) -> Vector:
    """Take the one fine-tuning step phi = theta - alpha grad f(theta; support)."""
    return theta - alpha * _gradient(model, support, derive)(theta)


@_exactly
def meta_gradient(
    model: Model,
    theta: Vector,
    support: Batch,
    query: Batch,
    hessian: Batch,
    alpha: float,
    method: Method,
    derive: Derive = grad,
) -> Vector:
    """Compute the stochastic meta-gradient of Fallah, Mokhtari, Ozdaglar (Per-FedAvg, arXiv 2002.07948, section 4).

    With g = grad f(theta - alpha grad f(theta; support); query) it is g - alpha Hess f(theta; hessian) g. The three
    batches are drawn independently of one another; with the support set as Hessian batch it is the exact gradient of
    f(theta - alpha grad f(theta; support); query).

    Args:
        model: the network.
        theta: parameters (d,).
        support: batch B of the inner step.
        query: batch B' of the outer gradient.
        hessian: batch B'' of the Hessian.
        alpha: inner rate; at 0 the result is the plain gradient on ``query``.
        method: ``exact`` (double backward), ``hessian-free`` (central difference of gradients along g, with a step of
            fixed length whatever ||g||), or ``first-order`` (g alone).
        derive: turns a scalar function into its gradient: ``torch.func.grad``, or :func:`plain_grad` outside vmap.

    Returns:
        The meta-gradient (d,).

    Raises:
        ValueError: unknown method.
    """
    if method not in _CORRECTIONS:
        raise ValueError(f"gradient {method!r} is unknown; choose one of {', '.join(_CORRECTIONS)}")
    if method == "exact" and hessian is support:  # one graph through the inner step, which is then computed once

        def tuned_loss(start: Vector) -> Tensor:
            return loss(model, fine_tune(model, start, support, alpha, derive), query)

        return derive(tuned_loss)(theta)
    outer = _gradient(model, query, derive)(fine_tune(model, theta, support, alpha, derive))
    if alpha == 0:
        return outer
    return outer - alpha * _CORRECTIONS[method](_gradient(model, hessian, derive), theta, outer, derive)


def plain_grad(function: Function) -> Function:
    """Give a function's gradient as ``torch.func.grad`` does, through plain autograd: for one client, outside vmap.

    The first call of ``torch.func.grad`` in a process imports torch's compiler: a second and a half and 100 MB for each
    node daemon, which never needs more than this. Gradients nest: inside another one the graph is kept.
    """

    def gradient(point: Tensor) -> Tensor:
        nested = point.requires_grad
        with torch.enable_grad():
            at = point if nested else point.detach().requires_grad_()
            (result,) = torch.autograd.grad(function(at), at, create_graph=nested)
        return result

    return gradient


@_exactly
def local_update(
    model: Model, theta: Vector, tasks: Task, alpha: float, eta: float, method: Method, derive: Derive = plain_grad
) -> Vector:
    """Take Q local steps theta <- theta - eta meta_gradient(theta) and return theta_0 - theta_Q, a descent direction.

    Args:
        model: the network.
        theta: parameters (d,) as received from the server.
        tasks: one task per local step, stacked: every tensor has a leading axis of length Q.
        alpha: inner rate.
        eta: outer rate.
        method: the meta-gradient's implementation.
        derive: as in :func:`meta_gradient`; with plain autograd on a CPU, :mod:`fl_core.convolutional` does the
            convolutional network's work.

    Returns:
        The update Delta (d,). The server subtracts it.
    """

    written_out = derive is plain_grad and method != "hessian-free" and not gains_by_batching(model, theta.device)

    def gradient(at: Vector, step: int) -> Vector:
        if written_out:
            second_order = method == "exact" and alpha != 0
            return convolutional.meta_gradient(model, at, *tasks.at(step), alpha, second_order)
        return meta_gradient(model, at, *tasks.at(step), alpha, method, derive)

    return _steps(gradient, theta, eta, tasks.query.y.shape[0])


@_exactly
def local_updates(
    model: Model,
    theta: Float[Tensor, "*client d"],
    tasks: Task,
    alpha: float,
    eta: float,
    method: Method,
    chunk: int | None = None,
) -> Float[Tensor, "client d"]:
    """Compute the local updates of many clients at once; equals ``local_update`` client by client to rounding.

    Args:
        model: the network.
        theta: parameters, shape (d,) when all clients start from the same, else (client, d).
        tasks: every tensor has leading axes (client, Q).
        alpha: inner rate.
        eta: outer rate.
        method: the meta-gradient's implementation.
        chunk: clients batched together, to bound memory; unset: all at once where :mod:`fl_core.dense` does without
            their gradients' matrices, else ``default_chunk(model)``, or client by client by
            :mod:`fl_core.convolutional`, on as many single-threaded workers as torch has threads, where a batch gains
            nothing (:func:`gains_by_batching`).

    Returns:
        Updates (client, d).
    """
    if chunk is None and model.dense and method in ("exact", "first-order"):

        def gradients(at: Tensor, step: int) -> Tensor:
            own = tasks.at((slice(None), step))
            return dense.meta_gradients(model, at, own, alpha, method == "exact" and alpha != 0)

        return _steps(gradients, theta, eta, tasks.query.y.shape[1])
    if chunk is None and not gains_by_batching(model, theta.device):
        starts = theta if theta.ndim == 2 else theta.expand(tasks.query.y.shape[0], -1)
        return _side_by_side(model, starts, tasks, alpha, eta, method)

    def one(start: Vector, client_tasks: Task) -> Vector:
        return local_update(model, start, client_tasks, alpha, eta, method, grad)

    axes = (0 if theta.ndim == 2 else None, 0)
    updates: Tensor = vmap(one, axes, chunk_size=chunk or default_chunk(model, theta.device))(theta, tasks)
    return updates


def _steps(gradient: Callable[[Tensor, int], Tensor], theta: Tensor, eta: float, count: int) -> Tensor:
    """Sum the steps of gradient descent: subtracting two large vectors at the end would lose the low-order bits."""
    update = gradient(theta, 0).mul_(eta)
    for step in range(1, count):
        update.add_(gradient(theta - update, step), alpha=eta)
    return update


@_exactly
def evaluate(model: Model, theta: Vector, tasks: Task, alpha: float, chunk: int | None = None) -> Evaluation:
    """Measure the query set of each task before and after one fine-tuning step on its support set.

    Args:
        model: the network.
        theta: parameters (d,).
        tasks: every tensor has one leading axis, the task.
        alpha: fine-tuning rate.
        chunk: tasks batched together; unset: all where :mod:`fl_core.dense` serves, else ``default_chunk(model)``.
    """

    def one(task: Task) -> Tensor:
        tuned = fine_tune(model, theta, task.support, alpha)
        return torch.stack([model.logits(vector, task.query.x) for vector in (theta, tuned)])

    labels = tasks.query.y.flatten()
    with torch.no_grad():
        if chunk is None and model.dense:
            pair: tuple[Tensor, ...] = dense.scores(model, theta, tasks, alpha)
        else:
            pair = _mapped(one, tasks, chunk or default_chunk(model, theta.device)).unbind(1)
        rows = [scores.flatten(0, 1) for scores in pair]
        loss_before, loss_after = (float(F.cross_entropy(row, labels)) for row in rows)
        right_before, right_after = (float((row.argmax(1) == labels).to(row.dtype).mean()) for row in rows)
    return Evaluation(loss_before, right_before, loss_after, right_after)


def gradient_norm_squared(model: Model, theta: Vector, tasks: Task, alpha: float, chunk: int | None = None) -> float:
    """Compute ||grad F(theta)||^2, the stationarity measure of the meta-training loss F.

    F is the mean over clients and tasks of f(theta - alpha grad f(theta; support); query); its gradient takes the exact
    Hessian product on the same support sets. Give tasks that cover each client's examples (``data.full_tasks``).

    Args:
        model: the network.
        theta: parameters (d,).
        tasks: every tensor has leading axes (client, task); each client weighs the same.
        alpha: inner rate.
        chunk: tasks batched together; unset: ``default_chunk(model)``.
    """

    own = Task(tasks.support, tasks.query, tasks.support).map(lambda tensor: tensor.flatten(0, 1).unsqueeze(1))
    size, count = chunk or default_chunk(model, theta.device), own.query.y.shape[0]
    total = torch.zeros_like(theta)
    for first in range(0, count, size):  # summed chunk by chunk, so memory holds `size` gradients and not all
        total += local_updates(model, theta, own.at(slice(first, first + size)), alpha, 1.0, "exact", chunk).sum(0)
    return float((total / count).double().square().sum())


def default_chunk(model: Model, device: torch.device = _CPU) -> int:
    """Choose how many clients or tasks to batch: all that is useful for small networks, few where memory would grow.

    A GPU takes as long for few as for many, and has more memory that nobody else needs.
    """
    deep = 8 if device.type == "cpu" else 2
    return max(1, min(64, 6_000_000 // model.dimension // (1 if len(model.shapes) < 16 else deep)))


def gains_by_batching(model: Model, device: torch.device) -> bool:
    """Tell whether clients together are faster than one after another.

    They are on a GPU, and for fully connected layers, whose cost is the call. Convolutions keep a core busy by
    themselves: a batch of clients takes their memory together and no less time.
    """
    return device.type != "cpu" or model.dense


def _side_by_side(
    model: Model, starts: Float[Tensor, "client d"], tasks: Task, alpha: float, eta: float, method: Method
) -> Float[Tensor, "client d"]:
    """Compute updates client by client, on one single-threaded worker per torch thread."""
    threads = torch.get_num_threads()

    def one(index: int) -> Vector:
        return local_update(model, starts[index], tasks.at(index), alpha, eta, method)

    if threads == 1:
        return torch.stack([one(index) for index in range(len(starts))])
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.stack(list(pool.map(one, range(len(starts)))))
    finally:
        torch.set_num_threads(threads)  # the setting belongs to the process


def _mapped(function: Callable[[Task], Tensor], tasks: Task, chunk: int) -> Tensor:
    mapped: Tensor = vmap(function, chunk_size=chunk)(tasks)
    return mapped


def _gradient(model: Model, batch: Batch, derive: Derive) -> Function:
    def value(theta: Tensor) -> Tensor:
        return loss(model, theta, batch)

    return derive(value)


def _exact(gradient: Function, theta: Tensor, direction: Tensor, derive: Derive) -> Tensor:
    fixed = direction.detach()

    def along(point: Tensor) -> Tensor:
        return torch.dot(gradient(point), fixed)

    return derive(along)(theta)


def _hessian_free(gradient: Function, theta: Tensor, direction: Tensor, derive: Derive) -> Tensor:
    # A step proportional to ||direction|| drowns in rounding once gradients are small. A step of fixed length, relative
    # to theta, balances truncation (step^2) against rounding (machine epsilon / step) at the cube root of epsilon.
    norm = direction.norm()
    unit = direction / norm.clamp_min(torch.finfo(theta.dtype).tiny)
    relative: float = torch.finfo(theta.dtype).eps ** (1 / 3)
    step = relative * theta.norm().clamp_min(1.0)
    difference = gradient(theta + step * unit) - gradient(theta - step * unit)
    return torch.mul(norm / (2.0 * step), difference)


def _first_order(gradient: Function, theta: Tensor, direction: Tensor, derive: Derive) -> Tensor:
    return torch.zeros_like(direction)


_CORRECTIONS: dict[str, Callable[[Function, Tensor, Tensor, Derive], Tensor]] = {
    "exact": _exact,
    "hessian-free": _hessian_free,
    "first-order": _first_order,
}
