"""Meta-gradients against independent libraries, where they are installed, and against torch modules in any case."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from peers import PEERS, as_module

from fl_core.data import Batch, Task
from fl_core.maml import gains_by_batching, local_update, local_updates, meta_gradient
from fl_core.models import build
from fl_core.options import ModelOptions
from fl_core.seeds import generator

MODELS = {
    "mlp": ModelOptions(hidden=(20,), activation="relu"),
    "cnn": ModelOptions(name="cnn", filters=4),
}


def problem(name: str):
    rng = generator(3, "peers")
    model = build(MODELS[name], (1, 16, 16), 3)
    batches = [Batch(torch.rand(3 * k, 1, 16, 16, generator=rng).double(), torch.arange(3 * k) % 3) for k in (2, 4)]
    return model, model.init(rng).double(), *batches


@pytest.mark.parametrize("name", MODELS)
def test_the_module_computes_what_the_model_computes(name):
    model, theta, support, _ = problem(name)
    torch.testing.assert_close(as_module(model, theta)(support.x), model.logits(theta, support.x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("peer", sorted(PEERS.keys() - {"learn2learn"}))  # its C does not build for Python 3.11
def test_meta_gradients_equal_those_of_other_libraries(peer, name):
    model, theta, support, query = problem(name)
    theirs = PEERS[peer](as_module(model, theta), support, query, 0.4)
    ours = meta_gradient(model, theta, support, query, support, 0.4, "exact")
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("threads", [1, 2])
def test_clients_side_by_side_are_each_what_they_are_alone(threads):
    model = build(ModelOptions(name="cnn", filters=64), (1, 8, 8), 2)
    assert not gains_by_batching(model, torch.device("cpu")) and gains_by_batching(model, torch.device("cuda"))
    rng = generator(5, "side by side")
    batch = Batch(torch.rand(3, 2, 4, 1, 8, 8, generator=rng), torch.arange(4).remainder(2).expand(3, 2, 4))
    tasks, theta = Task(batch, batch, batch), model.init(rng)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        many = local_updates(model, theta, tasks, 0.1, 0.1, "exact")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for index in range(3):
        own = tasks.at(index)
        torch.testing.assert_close(
            many[index], local_update(model, theta, own, 0.1, 0.1, "exact"), rtol=1e-4, atol=1e-6
        )
