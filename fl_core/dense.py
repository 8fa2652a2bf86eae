"""Meta-gradients of fully connected networks, written out for many clients at once; knows no autograd.

The gradient of a linear layer over n examples has rank n: it is kept as the layer's inputs and errors, and multiplied
out once, at the end. What the inner step adds to a layer's output then takes inner products between two batches instead
of a matrix of the layer's size, and so does the Hessian times the outer gradient, whose tangents go through the network
and back (B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fl_core.data import Batch, Task
from fl_core.models import ACTIVATIONS, BENDS, SLOPES, Model

Rows = Float[Tensor, "client _ _"]  # example, unit

#: Clients worked on at a time on a CPU, so that what is kept of them fits its cache.
TOGETHER = 8


@dataclass(frozen=True)
class _Product:
    """A change of one layer: of its weights by ``errors^T inputs``, of its bias by the sum of ``errors``."""

    inputs: Rows
    errors: Rows

    def forward(self, x: Rows) -> Rows:
        """What it adds to the layer's outputs."""
        return (x @ self.inputs.mT) @ self.errors + self.errors.sum(1, keepdim=True)

    def back(self, errors: Rows) -> Rows:
        """What it adds to the errors that the layer hands back."""
        return (errors @ self.errors.mT) @ self.inputs


@dataclass(frozen=True)
class _Layer:
    weight: Tensor  # (out, in) or (client, out, in)
    bias: Tensor  # (1, out) or (client, 1, out)


@dataclass(frozen=True)
class _Pass:
    """One batch through the network and back.

    Attributes:
        gradient: of the mean cross-entropy, by layer.
        backs: errors handed back to the activation before each layer but the first.
        shares: class probabilities.
    """

    gradient: list[_Product]
    backs: list[Rows]
    shares: Rows


def meta_gradients(
    model: Model, theta: Float[Tensor, "*client d"], tasks: Task, alpha: float, second_order: bool
) -> Float[Tensor, "client d"]:
    """Compute ``fl_core.maml.meta_gradient`` of many clients, ``exact`` or ``first-order``.

    Args:
        model: a fully connected network.
        theta: parameters, shape (d,) when all clients have the same, else (client, d).
        tasks: every tensor has a leading axis, the client.
        alpha: inner rate.
        second_order: take the term with the Hessian.

    Returns:
        Meta-gradients (client, d).
    """
    result = theta.new_empty(len(tasks.query.y), model.dimension)
    size = TOGETHER if theta.device.type == "cpu" else len(result)
    for first in range(0, len(result), size):
        some = slice(first, first + size)
        own = tasks.at(some)
        _write(result[some], model, theta if theta.ndim == 1 else theta[some], own, alpha, second_order)
    return result


def scores(
    model: Model, theta: Float[Tensor, " d"], tasks: Task, alpha: float
) -> tuple[Float[Tensor, "task b ways"], Float[Tensor, "task b ways"]]:
    """Compute the class scores of each task's query set before and after one fine-tuning step on its support set."""
    layers = _layers(model, theta)
    inner = _run(model, layers, tasks.support)
    step = [_Product(each.inputs, -alpha * each.errors) for each in inner.gradient]
    before, after = (_forward(model, layers, tasks.query.x, way)[1] for way in ((), step))
    return before, after


def _write(
    result: Float[Tensor, "client d"], model: Model, theta: Tensor, tasks: Task, alpha: float, second_order: bool
) -> None:
    layers = _layers(model, theta)
    inner = _run(model, layers, tasks.support)
    step = [_Product(each.inputs, -alpha * each.errors) for each in inner.gradient]
    outer = _run(model, layers, tasks.query, step).gradient
    curved: Sequence[tuple[_Product, ...]] = [()] * len(layers)
    if second_order:
        base = inner if tasks.hessian is tasks.support else _run(model, layers, tasks.hessian)
        curved = _along(model, layers, base, outer)
    for place, own, terms in zip(_layers(model, result), outer, curved, strict=True):
        inputs = torch.cat([own.inputs, *(each.inputs for each in terms)], 1)
        errors = torch.cat([own.errors, *(-alpha * each.errors for each in terms)], 1)
        place.weight.copy_(errors.mT @ inputs)
        # The last of three terms is there for the weights alone.
        place.bias.copy_(errors[:, : own.errors.shape[1] + tasks.hessian.y.shape[1]].sum(1, keepdim=True))


def _layers(model: Model, vectors: Tensor) -> list[_Layer]:
    """View parameter vectors as layers, without copying."""
    parts = torch.split(vectors, [math.prod(shape) for _, shape in model.shapes], -1)
    views = [part.view(*part.shape[:-1], *shape) for part, (_, shape) in zip(parts, model.shapes, strict=True)]
    return [_Layer(weight, bias.unsqueeze(-2)) for weight, bias in zip(views[::2], views[1::2], strict=True)]


def _forward(
    model: Model, layers: Sequence[_Layer], images: Tensor, step: Sequence[_Product]
) -> tuple[list[Rows], Rows]:
    """Send images through the network, changed by a step; gives the inputs of every layer, and the scores."""
    inputs = [images.flatten(2)]
    for number, layer in enumerate(layers):
        z = inputs[-1] @ layer.weight.mT + layer.bias
        if step:
            z += step[number].forward(inputs[-1])
        if number + 1 < len(layers):
            inputs.append(ACTIVATIONS[model.activation](z))
    return inputs, z


def _run(model: Model, layers: Sequence[_Layer], batch: Batch, step: Sequence[_Product] = ()) -> _Pass:
    """Send a batch through the network and its errors back."""
    slope = SLOPES[model.activation]
    inputs, found = _forward(model, layers, batch.x, step)
    shares = F.softmax(found, -1)
    errors = (shares - F.one_hot(batch.y, model.ways)) / batch.y.shape[1]
    gradient, backs = [_Product(inputs[-1], errors)], list[Rows]()
    for number in range(len(layers) - 1, 0, -1):
        back = errors @ layers[number].weight
        if step:
            back += step[number].back(errors)
        errors = slope(back, inputs[number])
        backs.insert(0, back)
        gradient.insert(0, _Product(inputs[number - 1], errors))
    return _Pass(gradient, backs, shares)


def _along(
    model: Model, layers: Sequence[_Layer], base: _Pass, direction: Sequence[_Product]
) -> list[tuple[_Product, ...]]:
    """Multiply the Hessian of a passed batch's loss by a direction; gives the products of every layer's result.

    The second product of a layer, inputs that moved times errors that did not, is of its weights alone.
    """
    slope, bend = SLOPES[model.activation], BENDS.get(model.activation)
    moved = [direction[0].forward(base.gradient[0].inputs)]  # outputs of every layer
    tangents: list[Rows] = []  # inputs of every layer but the first
    for layer, own, way in zip(layers[1:], base.gradient[1:], direction[1:], strict=True):
        tangents.append(slope(moved[-1], own.inputs))
        moved.append(tangents[-1] @ layer.weight.mT + way.forward(own.inputs))
    held = base.shares * moved[-1]
    errors = (held - base.shares * held.sum(-1, keepdim=True)) / base.shares.shape[1]
    result: list[tuple[_Product, ...]] = []
    for number in range(len(layers) - 1, 0, -1):
        own = base.gradient[number]
        result.insert(0, (_Product(own.inputs, errors), _Product(tangents[number - 1], own.errors)))
        back = errors @ layers[number].weight + direction[number].back(own.errors)
        errors = slope(back, own.inputs)
        if bend is not None:
            errors += bend(base.backs[number - 1] * moved[number - 1], own.inputs)
    return [(_Product(base.gradient[0].inputs, errors),), *result]
