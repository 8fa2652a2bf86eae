"""Networks as functions of one vector, against torch's own modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, jacrev, vmap

from fl_core import models
from fl_core.models import Model, build
from fl_core.options import ModelOptions
from fl_core.seeds import generator

MLP = ModelOptions(name="mlp", hidden=(7, 6), activation="tanh")
SMALL_CNN = ModelOptions(name="cnn", filters=3, activation="tanh")


def module(options: ModelOptions, channels: int, pixels: int, ways: int) -> nn.Sequential:
    """Build the same network from torch's layers; parameters come in the same order."""
    act = nn.Tanh if options.activation == "tanh" else nn.ReLU
    layers: list[nn.Module] = []
    if options.name == "mlp":
        layers.append(nn.Flatten())
        for width in options.hidden:
            layers += [nn.Linear(pixels, width), act()]
            pixels = width
        return nn.Sequential(*layers, nn.Linear(pixels, ways))
    for _ in range(4):
        layers += [nn.Conv2d(channels, options.filters, 3, 2, 1)]
        layers += [nn.BatchNorm2d(options.filters, track_running_stats=False), act()]
        channels = options.filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, ways))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (MLP, (1, 8, 8)),
        (ModelOptions(hidden=(), activation="relu"), (1, 3, 5)),
        (ModelOptions(name="cnn", filters=5, activation="relu"), (1, 28, 28)),
        (ModelOptions(name="cnn", filters=5, activation="tanh"), (2, 20, 28)),
    ],
)
def test_logits_equal_torch_modules(options: ModelOptions, shape: tuple[int, int, int]) -> None:
    model = build(options, shape, 4)
    vector = model.init(generator(0)) + 0.1 * torch.randn(model.dimension, generator=generator(1))
    twin = module(options, shape[0], shape[0] * shape[1] * shape[2], 4)
    nn.utils.vector_to_parameters(vector, twin.parameters())
    x = torch.rand(9, *shape, generator=generator(2))
    torch.testing.assert_close(model.logits(vector, x), twin(x), rtol=1e-4, atol=1e-5)


def test_dimensions() -> None:
    assert build(ModelOptions(name="cnn"), (1, 28, 28), 5).dimension == 112_261
    assert build(ModelOptions(hidden=(200,)), (1, 28, 28), 5).dimension == 784 * 200 + 200 + 200 * 5 + 5
    assert build(ModelOptions(), (1, 8, 8), 5).dimension == 64 * 64 + 64 + 64 * 5 + 5


def test_initialisation_is_scaled_repeatable_and_seeded() -> None:
    model = build(ModelOptions(hidden=(200,)), (1, 28, 28), 5)
    first, second = model.init(generator(3)), model.init(generator(3))
    assert torch.equal(first, second) and not torch.equal(first, model.init(generator(4)))
    tensors = model.unflatten(first)
    assert float(tensors["layer0.weight"].std()) == pytest.approx((2 / 784) ** 0.5, rel=0.02)
    assert float(tensors["head.weight"].std()) == pytest.approx((1 / 200) ** 0.5, rel=0.1)
    assert not tensors["layer0.bias"].any() and not tensors["head.bias"].any()
    norm = build(SMALL_CNN, (1, 8, 8), 5)
    assert norm.unflatten(norm.init(generator(0)))["block2.scale"].tolist() == [1.0] * 3


@pytest.mark.parametrize("options", [MLP, SMALL_CNN])
def test_twice_differentiable_and_vmappable(options: ModelOptions) -> None:
    model = build(options, (1, 8, 8), 3)
    x = torch.rand(6, 1, 8, 8, generator=generator(1), dtype=torch.float64)
    vector = model.init(generator(0)).double()

    def value(v: torch.Tensor) -> torch.Tensor:
        return model.logits(v, x).square().sum()

    curvature = hessian(value)(vector)
    assert float(curvature.abs().max()) > 0
    torch.testing.assert_close(curvature, curvature.T)
    step = 1e-6 * torch.randn(model.dimension, generator=generator(5), dtype=torch.float64)
    change = (grad(value)(vector + step) - grad(value)(vector - step)) / 2
    assert float((change - curvature @ step).norm() / change.norm()) < 1e-5
    many = torch.stack([vector, vector + step * 1e4, vector * 0.9])
    torch.testing.assert_close(vmap(value)(many), torch.stack([value(v) for v in many]))


def test_why_batch_norm_is_not_the_operator_of_torch_under_vmap() -> None:
    """Reverse over reverse with batched cotangents: its Hessian is not symmetric. If this fails, use it."""
    vector = torch.randn(6 * 2 + 4, generator=generator(1), dtype=torch.float64)
    operator, ours = (
        jacrev(jacrev(lambda v, norm=norm: norm(v[4:].view(6, 2, 1, 1), v[:2], v[2:4]).pow(3).sum()))(vector)
        for norm in (lambda x, *v: torch.batch_norm(x, *v, None, None, True, 0.0, 1e-5, False), models._normalise)
    )
    assert not torch.allclose(operator, operator.T)
    torch.testing.assert_close(ours, ours.T)


@pytest.mark.parametrize(("side", "examples"), [(8, 25), (8, 1), (28, 1), (1, 2)])
def test_the_network_is_finite_on_small_images_and_batches(side: int, examples: int) -> None:
    """Eight pixels shrink to one value per channel, which batch norm of one example turns into its shift."""
    model = build(ModelOptions(name="cnn", filters=4), (1, side, side), 5)
    x = torch.rand(examples, 1, side, side, generator=generator(0))

    def value(v: torch.Tensor) -> torch.Tensor:
        return model.logits(v, x).square().sum()

    assert bool(torch.isfinite(grad(value)(model.init(generator(1)))).all())


def test_no_batch_statistics_survive_a_call() -> None:
    model = build(SMALL_CNN, (1, 8, 8), 3)
    vector, x = model.init(generator(0)), torch.rand(6, 1, 8, 8, generator=generator(1))
    before = model.logits(vector, x)
    model.logits(vector, 100 * x + 3)
    assert torch.equal(model.logits(vector, x), before)


def test_the_activation_follows_the_network_unless_named() -> None:
    def kinked(options: ModelOptions) -> bool:
        model: Model = build(options, (1, 8, 8), 3)
        names = set()
        x = torch.rand(4, 1, 8, 8, generator=generator(1))
        node = model.logits(model.init(generator(0)).requires_grad_(), x).grad_fn
        pending = [node]
        while pending:
            at = pending.pop()
            if at is not None:
                names.add(type(at).__name__)
                pending += [parent for parent, _ in at.next_functions]
        return any("Relu" in name for name in names)

    assert not kinked(ModelOptions(name="mlp")) and kinked(ModelOptions(name="cnn"))
    assert kinked(ModelOptions(name="mlp", activation="relu")) and not kinked(SMALL_CNN)


def test_wrong_vectors_and_sizes_are_refused() -> None:
    model = build(MLP, (1, 8, 8), 3)
    with pytest.raises(ValueError, match=r"the model has 524 parameters, the vector has shape \(523,\)"):
        model.logits(torch.zeros(523), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="must be positive"):
        build(MLP, (1, 0, 8), 3)


@pytest.mark.parametrize("name", models.ACTIVATIONS)
def test_slopes_and_bends_are_the_derivatives_of_the_activations(name):
    x = torch.linspace(-2, 2, 8, dtype=torch.float64)
    a, errors = models.ACTIVATIONS[name](x), torch.full_like(x, 3.0)
    torch.testing.assert_close(models.SLOPES[name](errors, a), 3 * vmap(grad(models.ACTIVATIONS[name]))(x))
    bend = 3 * vmap(grad(grad(models.ACTIVATIONS[name])))(x)
    torch.testing.assert_close(models.BENDS[name](errors, a) if name in models.BENDS else torch.zeros_like(x), bend)


def test_a_relu_that_is_off_hands_back_nothing_whatever_comes():
    errors, a = torch.tensor([torch.inf, torch.nan, 2.0, 3.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert models.SLOPES["relu"](errors, a).tolist() == [0.0, 0.0, 0.0, 3.0]
