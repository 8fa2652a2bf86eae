"""The meta-gradient as other libraries compute it, on a torch module with our parameters; knows none of our own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_core.data import Batch
from fl_core.models import Model

Peer = Callable[[nn.Module, Batch, Batch, float], Tensor]


class _Mean(nn.Module):
    """Averages over the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def as_module(model: Model, theta: Tensor) -> nn.Module:
    """Build the torch module that computes ``model.logits(theta, .)``; ReLU between its layers."""
    layers: list[nn.Module] = []
    for name, shape in model.shapes:
        if not name.endswith("weight"):
            continue
        if len(shape) == 4:
            out, into = shape[:2]
            layers += [nn.Conv2d(into, out, 3, 2, 1), nn.BatchNorm2d(out, track_running_stats=False), nn.ReLU()]
        else:
            # The head of a convolutional network takes the mean over the image.
            before = _Mean() if layers and isinstance(layers[-2], nn.BatchNorm2d) else nn.Flatten()
            layers += [before, nn.Linear(shape[1], shape[0]), nn.ReLU()]
    module = nn.Sequential(*layers[:-1]).to(theta.dtype)
    nn.utils.vector_to_parameters(theta.clone(), module.parameters())
    return module


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def torchopt(module: nn.Module, support: Batch, query: Batch, alpha: float) -> Tensor:
    """Take one MetaSGD step and differentiate through it (TorchOpt, arXiv 2211.06934)."""
    library = import_module("torchopt")
    start = tuple(module.parameters())
    before = library.extract_state_dict(module, by="reference")
    library.MetaSGD(module, lr=alpha).step(F.cross_entropy(module(support.x), support.y))
    found = _flat(torch.autograd.grad(F.cross_entropy(module(query.x), query.y), start))
    library.recover_state_dict(module, before)
    return found


def learn2learn(module: nn.Module, support: Batch, query: Batch, alpha: float) -> Tensor:
    """Adapt a clone and differentiate through it (learn2learn, arXiv 2008.12284)."""
    maml = import_module("learn2learn.algorithms").MAML(module, lr=alpha)
    learner = maml.clone()
    learner.adapt(F.cross_entropy(learner(support.x), support.y))
    return _flat(torch.autograd.grad(F.cross_entropy(learner(query.x), query.y), tuple(module.parameters())))


def higher(module: nn.Module, support: Batch, query: Batch, alpha: float) -> Tensor:
    """Unroll one step of SGD and differentiate through it (higher, arXiv 1910.01727)."""
    optimiser = torch.optim.SGD(module.parameters(), lr=alpha)
    context = import_module("higher").innerloop_ctx(module, optimiser, copy_initial_weights=False)
    with context as (functional, unrolled):
        unrolled.step(F.cross_entropy(functional(support.x), support.y))
        loss = F.cross_entropy(functional(query.x), query.y)
        return _flat(torch.autograd.grad(loss, tuple(functional.parameters(time=0))))


PEERS: dict[str, Peer] = {"torchopt": torchopt, "learn2learn": learn2learn, "higher": higher}


def installed() -> dict[str, Peer]:
    """Give the peers that this environment has."""
    return {name: peer for name, peer in PEERS.items() if find_spec(name) is not None}
