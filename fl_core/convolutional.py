"""Meta-gradients of the convolutional network, one client at a time, written out; knows no autograd.

Images are rows of channels, so a convolution is one matrix product with the patches around every output, which the
gradient takes up again. Batch norm's tangent and its gradient are the same projection: with normalised rows h and
P(q) = q - mean(q) - h mean(h q), the rows move by P(dz)/deviation, and errors come back as P(errors)/deviation. The
Hessian times the outer gradient sends tangents through the network and back (B. A. Pearlmutter, "Fast exact
multiplication by the Hessian", Neural Computation 6, 1994). What is before a batch norm needs no bias: its gradient is
zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fl_core.data import Batch
from fl_core.models import ACTIVATIONS, BENDS, NORM_EPSILON, SLOPES, Model

Vector = Float[Tensor, " d"]
Rows = Float[Tensor, "_ _"]  # row, channel
Images = Float[Tensor, "_ _ _ _"]  # image, row, column, channel
#: Matrix (filter, patch), scale and shift of every block, then weight and bias of the head.
Parts = list[Tensor]


@dataclass(frozen=True)
class _Block:
    """One block for one batch: images -> patches -> z -> batch norm -> activation -> a.

    Attributes:
        patches: what each row of ``z`` saw.
        z: rows before the batch norm.
        mean, inverse: of ``z``: its mean, and the inverse of its deviation.
        a: images that come out.
    """

    patches: Rows
    z: Rows
    mean: Tensor
    inverse: Tensor
    a: Images

    @property
    def rows(self) -> Rows:
        """What comes out, as rows."""
        return self.a.view(self.z.shape)

    def project(self, rows: Rows, scale: Tensor | None = None) -> tuple[Rows, Tensor, Tensor]:
        """Give P(rows) / deviation, times a scale; and the sums of rows times normalised rows, and of rows."""
        found: tuple[Rows, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
            rows, self.z, scale, None, None, self.mean, self.inverse, True, NORM_EPSILON, [True, True, True]
        )
        return found


@dataclass(frozen=True)
class _Errors:
    """Errors on their way back through one block: at ``a``, before the activation, and at ``z``.

    Attributes:
        tilt: sum of those before the activation times the normalised rows.
    """

    a: Rows
    y: Rows
    z: Rows
    tilt: Tensor


@dataclass(frozen=True)
class _Tangent:
    """How one block moves along a direction.

    Attributes:
        patches: how they move; None for those of the batch's own images, which do not.
        h: normalised rows.
        turn: how they move.
        growth: relative change of the deviation.
        y: how the rows after the batch norm move.
    """

    patches: Rows | None
    h: Rows
    turn: Rows
    growth: Tensor
    y: Rows


@dataclass(frozen=True)
class _Pass:
    """One batch through the network and back.

    Attributes:
        blocks, errors: by block.
        pooled: inputs of the head.
        shares: class probabilities.
        missed: errors of the scores.
        gradient: of the mean cross-entropy.
    """

    blocks: list[_Block]
    errors: list[_Errors]
    pooled: Rows
    shares: Rows
    missed: Rows
    gradient: Parts


def meta_gradient(
    model: Model, theta: Vector, support: Batch, query: Batch, hessian: Batch, alpha: float, second_order: bool
) -> Vector:
    """Compute ``fl_core.maml.meta_gradient``, ``exact`` or ``first-order``.

    Args:
        model: a convolutional network.
        theta: parameters (d,).
        support, query, hessian: its three batches.
        alpha: inner rate.
        second_order: take the term with the Hessian.

    Returns:
        The meta-gradient (d,).
    """
    start = _parts(model, theta)
    inner = _run(model, start, support)
    outer = _run(model, _moved(start, inner.gradient, alpha), query).gradient
    if second_order:
        base = inner if hessian is support else _run(model, start, hessian)
        outer = _moved(outer, _along(model, start, base, outer), alpha)
    return _flat(model, outer)


def _moved(parts: Parts, by: Parts, alpha: float) -> Parts:
    return [torch.sub(part, step, alpha=alpha) for part, step in zip(parts, by, strict=True)]


def _matters(name: str) -> bool:
    return name.startswith("head") or not name.endswith("bias")


def _parts(model: Model, vector: Vector) -> Parts:
    tensors = [tensor for name, tensor in model.unflatten(vector).items() if _matters(name)]
    return [each.permute(0, 2, 3, 1).reshape(len(each), -1) if each.ndim == 4 else each for each in tensors]


def _flat(model: Model, parts: Parts) -> Vector:
    rest, pieces = iter(parts), []
    for name, shape in model.shapes:
        part = next(rest) if _matters(name) else parts[0].new_zeros(shape)
        if len(shape) == 4:
            filters, channels, *kernel = shape
            part = part.view(filters, *kernel, channels).permute(0, 3, 1, 2)
        pieces.append(part.flatten())
    return torch.cat(pieces)


def _run(model: Model, parts: Parts, batch: Batch) -> _Pass:
    """Send a batch through the network and its errors back."""
    activation, slope = ACTIVATIONS[model.activation], SLOPES[model.activation]
    image, blocks = batch.x.permute(0, 2, 3, 1), list[_Block]()
    for matrix, scale, shift in zip(parts[:-2:3], parts[1:-2:3], parts[2:-2:3], strict=True):
        shape, patches = _patches(image)
        z = patches @ matrix.T
        z -= z.mean(0)  # torch's own sum of rows is exact to 5e-6 only, and a ReLU near its kink cares
        y, mean, inverse = torch.native_batch_norm(z, scale, shift, None, None, True, 0.0, NORM_EPSILON)
        image = activation(y).view(*shape, -1)
        blocks.append(_Block(patches, z, mean, inverse, image))
    weight, bias = parts[-2:]
    pooled = image.mean((1, 2))
    shares = F.softmax(F.linear(pooled, weight, bias), -1)
    missed = (shares - F.one_hot(batch.y, model.ways)) / len(batch.y)
    gradient, errors = [missed.T @ pooled, missed.sum(0)], list[_Errors]()
    back = _unpooled(missed @ weight, image)
    for number in range(len(blocks) - 1, -1, -1):
        block, (matrix, scale) = blocks[number], parts[3 * number : 3 * number + 2]
        errors_y = slope(back, block.rows)
        errors_z, tilt, level = block.project(errors_y, scale)
        errors.insert(0, _Errors(back, errors_y, errors_z, tilt))
        gradient = [errors_z.T @ block.patches, tilt, level, *gradient]
        if number:
            back = _spread(errors_z, matrix, blocks[number - 1].a)
    return _Pass(blocks, errors, pooled, shares, missed, gradient)


def _along(model: Model, parts: Parts, base: _Pass, direction: Parts) -> Parts:
    """Multiply the Hessian of a passed batch's loss by a direction."""
    slope, bend = SLOPES[model.activation], BENDS.get(model.activation)
    tangents, moved = list[_Tangent](), None
    for number, block in enumerate(base.blocks):
        matrix, scale, _, by_matrix, by_scale, by_shift = _at(number, parts, direction)
        patches = None if moved is None else _patches(moved)[1]
        z = block.patches @ by_matrix.T
        if patches is not None:
            z.addmm_(patches, matrix.T)
        turn, tilt, _ = block.project(z)
        h = (block.z - block.mean).mul_(block.inverse)
        y = torch.addcmul(by_shift, h, by_scale).addcmul_(turn, scale)
        moved = slope(y, block.rows).view_as(block.a)
        tangents.append(_Tangent(patches, h, turn, tilt * block.inverse / len(h), y))
    assert moved is not None
    (weight, _), (by_weight, by_bias) = parts[-2:], direction[-2:]
    pooled = moved.mean((1, 2))
    held = base.shares * (F.linear(base.pooled, by_weight, by_bias) + pooled @ weight.T)
    missed = (held - base.shares * held.sum(-1, keepdim=True)) / len(held)
    result = [missed.T @ base.pooled + base.missed.T @ pooled, missed.sum(0)]
    back = _unpooled(missed @ weight + base.missed @ by_weight, moved)
    for number in range(len(tangents) - 1, -1, -1):
        matrix, scale, _, by_matrix, by_scale, _ = _at(number, parts, direction)
        block, own, way = base.blocks[number], base.errors[number], tangents[number]
        errors_y = slope(back, block.rows)
        if bend is not None:
            errors_y += bend(own.a * way.y, block.rows)
        errors_z, tilt, level = block.project(errors_y, scale)
        # The projection turns with the normalised rows, and the deviation that it divides by grows.
        turned = torch.sum(own.y * way.turn, 0)
        share = scale * block.inverse / len(way.h)
        errors_z.addcmul_(way.turn, -share * own.tilt).addcmul_(way.h, -share * turned).addcmul_(own.z, -way.growth)
        errors_z.addcmul_(block.project(own.y)[0], by_scale)
        of_matrix = errors_z.T @ block.patches
        if way.patches is not None:
            of_matrix.addmm_(own.z.T, way.patches)
            both, matrices = torch.cat([errors_z, own.z], 1), torch.cat([matrix, by_matrix])
            back = _spread(both, matrices, base.blocks[number - 1].a)
        result = [of_matrix, tilt + turned, level, *result]
    return result


def _at(number: int, *groups: Parts) -> list[Tensor]:
    """Take the parts of one block out of several lists."""
    return [part for parts in groups for part in parts[3 * number : 3 * number + 3]]


def _unpooled(errors: Rows, images: Images) -> Rows:
    """Hand the errors of mean images back to every pixel."""
    _, height, width, channels = images.shape
    return (errors / (height * width))[:, None].expand(-1, height * width, -1).reshape(-1, channels)


def _patches(image: Images) -> tuple[tuple[int, int, int], Rows]:
    """Cut the 3x3 patches around every second pixel: how many in images, rows and columns; and a row for each."""
    count, height, width, channels = image.shape
    shape = (count, (height + 1) // 2, (width + 1) // 2)
    padded = F.pad(image, (0, 0, 1, 1, 1, 1))
    a, b, c, d = padded.stride()
    view = padded.as_strided((*shape, 3, 3, channels), (a, 2 * b, 2 * c, b, c, d))
    return shape, view.reshape(-1, 9 * channels)


def _spread(errors: Rows, matrix: Tensor, image: Images) -> Rows:
    """Hand errors back to the images whose patches met the matrix: the adjoint of ``_patches(image) @ matrix.T``."""
    count, height, width, channels = image.shape
    kernel = matrix.view(-1, 3, 3, channels).permute(0, 3, 1, 2)
    there = errors.view(count, (height + 1) // 2, (width + 1) // 2, -1).permute(0, 3, 1, 2)
    back: Tensor = torch.ops.aten.convolution_backward(
        there, image.permute(0, 3, 1, 2), kernel, None, (2, 2), (1, 1), (1, 1), False, (0, 0), 1, [True, False, False]
    )[0]
    return back.permute(0, 2, 3, 1).reshape(-1, channels)
