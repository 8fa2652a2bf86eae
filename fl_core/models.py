"""Knows small networks as pure functions of one flat parameter vector; knows nothing of losses, tasks or clients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from fl_core.options import ModelOptions

Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
ImageShape = tuple[int, int, int]

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: Mapping[str, Activation] = {"relu": F.relu, "tanh": torch.tanh}
#: Errors at the output of an activation, and that output -> errors at its input.
SLOPES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda errors, a: torch.ops.aten.threshold_backward(errors, a, 0),
    "tanh": torch.ops.aten.tanh_backward,
}
#: The same with the second derivative; a ReLU has none.
BENDS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"tanh": lambda errors, a: -2 * a * (1 - a * a) * errors}
_BLOCKS = 4  # the few-shot network of Finn, Abbeel, Levine (arXiv 1703.03400), section 5.2
NORM_EPSILON = 1e-5  # torch's default of BatchNorm2d


@dataclass(frozen=True)
class Model:
    """A network as functions of a flat vector: differentiable twice, and safe under ``torch.func.vmap``.

    Attributes:
        dimension: number of parameters d.
        image_shape: (channels, height, width) of an input image.
        ways: number of outputs.
        activation: its name, between the layers.
        shapes: name and shape of every parameter tensor, in the order of the vector.
        forward: (tensors by name, images) -> logits.
    """

    dimension: int
    image_shape: ImageShape
    ways: int
    activation: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    forward: Forward

    @property
    def dense(self) -> bool:
        """Whether all layers are fully connected."""
        return all(len(shape) < 4 for _, shape in self.shapes)

    def unflatten(self, vector: Float[Tensor, " d"]) -> dict[str, Tensor]:
        """View a parameter vector as named tensors, without copying."""
        if vector.shape != (self.dimension,):
            raise ValueError(
                f"the model has {self.dimension} parameters, the vector has shape {tuple(vector.shape)}; "
                "use the vector of the same model, image size and ways"
            )
        parts = torch.split(vector, [math.prod(shape) for _, shape in self.shapes])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes, parts, strict=True)}

    def logits(self, vector: Float[Tensor, " d"], x: Float[Tensor, "b channel row column"]) -> Float[Tensor, "b ways"]:
        """Compute class scores of a batch of images."""
        return self.forward(self.unflatten(vector), x)

    def init(self, generator: torch.Generator) -> Float[Tensor, " d"]:
        """Draw an initial vector: He-normal weights (He et al., arXiv 1502.01852), zero biases, unit norm scales.

        The head (``head.weight``) is drawn with variance 1/fan_in, so initial scores are of order one.
        """
        parts = []
        for name, shape in self.shapes:
            if name.endswith("weight"):
                gain = 1.0 if name.startswith("head") else 2.0
                deviation = math.sqrt(gain / math.prod(shape[1:]))
                parts.append(torch.randn(math.prod(shape), generator=generator) * deviation)
            else:
                parts.append(torch.full((math.prod(shape),), float(name.endswith("scale"))))
        return torch.cat(parts)


def build(options: ModelOptions, image_shape: ImageShape, ways: int) -> Model:
    """Build the network that ``options`` names.

    Args:
        options: kind and size.
        image_shape: (channels, height, width) of the data.
        ways: number of classes of a task.

    Raises:
        ValueError: an image side or the number of ways is not positive.
    """
    if min(image_shape) < 1 or ways < 1:
        raise ValueError(f"image_shape={image_shape} and ways={ways} must be positive; take both from the data options")
    builder, usual = _BUILDERS[options.name]
    activation = options.activation or usual
    shapes, forward = builder(options, ACTIVATIONS[activation], image_shape, ways)
    return Model(sum(math.prod(shape) for _, shape in shapes), image_shape, ways, activation, tuple(shapes), forward)


Built = tuple[list[tuple[str, tuple[int, ...]]], Forward]


def _mlp(options: ModelOptions, activation: Activation, image_shape: ImageShape, ways: int) -> Built:
    """Fully connected layers: flatten, (linear, activation) per hidden width, linear head."""
    shapes: list[tuple[str, tuple[int, ...]]] = []
    width = math.prod(image_shape)
    for layer, hidden in enumerate(options.hidden):
        shapes += [(f"layer{layer}.weight", (hidden, width)), (f"layer{layer}.bias", (hidden,))]
        width = hidden
    shapes += [("head.weight", (ways, width)), ("head.bias", (ways,))]

    def forward(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in range(len(options.hidden)):
            x = activation(F.linear(x, tensors[f"layer{layer}.weight"], tensors[f"layer{layer}.bias"]))
        return F.linear(x, tensors["head.weight"], tensors["head.bias"])

    return shapes, forward


def _cnn(options: ModelOptions, activation: Activation, image_shape: ImageShape, ways: int) -> Built:
    """Four blocks (3x3 convolution of stride 2, batch norm, activation), mean over the image, linear head.

    Batch norm always uses the statistics of the batch at hand, so there is no state beside the parameters. 28x28 images
    with 64 filters and 5 ways give the 112,261 parameters of the MAML network for Omniglot.
    """
    shapes: list[tuple[str, tuple[int, ...]]] = []
    channels = image_shape[0]
    for block in range(_BLOCKS):
        shapes += [
            (f"block{block}.weight", (options.filters, channels, 3, 3)),
            (f"block{block}.bias", (options.filters,)),
            (f"block{block}.scale", (options.filters,)),
            (f"block{block}.shift", (options.filters,)),
        ]
        channels = options.filters
    shapes += [("head.weight", (ways, channels)), ("head.bias", (ways,))]

    def forward(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        for block in range(_BLOCKS):
            x = F.conv2d(x, tensors[f"block{block}.weight"], tensors[f"block{block}.bias"], stride=2, padding=1)
            x = activation(_normalise(x, tensors[f"block{block}.scale"], tensors[f"block{block}.shift"]))
        return F.linear(x.mean((2, 3)), tensors["head.weight"], tensors["head.bias"])

    return shapes, forward


def _normalise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    # Both forms take a batch with one value per channel (one example, 1x1 image), which torch.nn.functional refuses: it
    # becomes `shift`. The operator is faster, but torch 2.13 differentiates it twice wrongly when vmap batches the
    # cotangents and not `x`, as torch.func.hessian does (tests/fl_core/test_models.py).
    if not is_functorch_wrapped_tensor(x):
        return torch.batch_norm(x, scale, shift, None, None, True, 0.0, NORM_EPSILON, False)
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    factor = scale * torch.rsqrt(variance + NORM_EPSILON)
    return x * factor[:, None, None] + (shift - mean * factor)[:, None, None]


#: By the name of a network: what builds it, and its usual activation.
_BUILDERS: Mapping[str, tuple[Callable[[ModelOptions, Activation, ImageShape, int], Built], str]] = {
    "mlp": (_mlp, "tanh"),
    "cnn": (_cnn, "relu"),
}
