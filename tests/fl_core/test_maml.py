"""Meta-gradients, local updates and evaluation, against finite differences and autograd written out."""

from __future__ import annotations

import inspect
import itertools
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad

from fl_core import convolutional, data, maml
from fl_core.data import Batch, Task
from fl_core.models import Model, build
from fl_core.options import DataOptions, LearnOptions, ModelOptions
from fl_core.seeds import generator

SMOOTH = ModelOptions(hidden=(9,), activation="tanh")
CNN = ModelOptions(name="cnn", filters=4, activation="tanh")
SHAPE = (1, 8, 8)
METHODS: list[maml.Method] = ["exact", "hessian-free", "first-order"]


def batch(count: int, key: str, dtype: torch.dtype = torch.float64, lead: tuple[int, ...] = ()) -> Batch:
    rng = generator(11, key)
    x = torch.rand(*lead, count, *SHAPE, generator=rng, dtype=torch.float64).to(dtype)
    return Batch(x, torch.randint(0, 3, (*lead, count), generator=rng))


def task(dtype: torch.dtype = torch.float64, lead: tuple[int, ...] = ()) -> Task:
    return Task(batch(6, "support", dtype, lead), batch(9, "query", dtype, lead), batch(7, "hessian", dtype, lead))


def start(options: ModelOptions = SMOOTH, dtype: torch.dtype = torch.float64) -> tuple[Model, torch.Tensor]:
    model = build(options, SHAPE, 3)
    return model, model.init(generator(1)).to(dtype)


def relative(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value - truth).norm() / truth.norm())


# --- the meta-gradient


@pytest.mark.parametrize("options", [SMOOTH, CNN])
@pytest.mark.parametrize("alpha", [0.05, 0.7])
def test_exact_equals_finite_differences_of_the_meta_objective(options: ModelOptions, alpha: float) -> None:
    """With one batch for the inner step and the Hessian, the estimate is the gradient of F itself, entry by entry."""
    model, theta = start(options)
    support, query, _ = task()

    def objective(v: torch.Tensor) -> float:
        leaf = v.clone().requires_grad_()
        (inner,) = torch.autograd.grad(F.cross_entropy(model.logits(leaf, support.x), support.y), leaf)
        return float(F.cross_entropy(model.logits(v - alpha * inner, query.x), query.y))

    step = 1e-5
    units = step * torch.eye(len(theta), dtype=torch.float64)
    truth = torch.tensor([objective(theta + u) - objective(theta - u) for u in units], dtype=torch.float64) / (2 * step)
    value = maml.meta_gradient(model, theta, support, query, support, alpha, "exact")
    assert relative(value, truth) < 1e-6
    # The second-order term matters here: without it the check would fail.
    assert relative(maml.meta_gradient(model, theta, support, query, support, alpha, "first-order"), truth) > 1e-3


def test_exact_with_three_batches_is_the_formula() -> None:
    """g - alpha Hess(B'') g with the Hessian as a full matrix."""
    model, theta = start()
    support, query, hessian = task()
    alpha = 0.3

    def value(v: torch.Tensor, b: Batch) -> torch.Tensor:
        return F.cross_entropy(model.logits(v, b.x), b.y)

    def slope(v: torch.Tensor, b: Batch) -> torch.Tensor:
        leaf = v.clone().requires_grad_()
        return torch.autograd.grad(value(leaf, b), leaf)[0]

    curvature = torch.autograd.functional.hessian(lambda v: value(v, hessian), theta)
    g = slope(theta - alpha * slope(theta, support), query)
    exact = maml.meta_gradient(model, theta, support, query, hessian, alpha, "exact")
    assert relative(exact, g - alpha * curvature @ g) < 1e-12
    assert relative(maml.meta_gradient(model, theta, support, query, hessian, alpha, "first-order"), g) < 1e-14


@pytest.mark.parametrize("options", [SMOOTH, CNN])
@pytest.mark.parametrize("derive", [grad, maml.plain_grad])
def test_a_support_set_that_is_the_hessian_batch_too_saves_work_alone(options: ModelOptions, derive) -> None:
    model, theta = start(options)
    support, query, _ = task()
    same, equal = (
        maml.meta_gradient(model, theta, support, query, hessian, 0.3, "exact", derive)
        for hessian in (support, Batch(support.x, support.y))
    )
    assert relative(same, equal) < 1e-12


@pytest.mark.parametrize("options", [SMOOTH, CNN])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_hessian_free_against_exact_in_double(options: ModelOptions, alpha: float) -> None:
    model, theta = start(options)
    exact, free, first = (
        maml.meta_gradient(model, theta, *task(), alpha, method) for method in ("exact", "hessian-free", "first-order")
    )
    assert relative(free, exact) < 1e-3
    assert relative(free - first, exact - first) < 1e-3, "the Hessian term itself"


@pytest.mark.parametrize("shrink", [1.0, 1e-3, 1e-6])
def test_hessian_free_in_single_precision_whatever_the_gradient_norm(shrink: float) -> None:
    """The step has a length of its own; one proportional to a small gradient would be lost in rounding."""
    model, theta = start()
    hessian = task().hessian
    direction = shrink * F.normalize(torch.randn(model.dimension, generator=generator(4), dtype=torch.float64), dim=0)
    truth = maml._exact(maml._gradient(model, hessian, grad), theta, direction, grad)
    single = Batch(hessian.x.float(), hessian.y)
    free = maml._hessian_free(maml._gradient(model, single, grad), theta.float(), direction.float(), grad)
    assert relative(free.double(), truth) < 0.02


def test_an_unnormalised_step_would_vanish_in_single_precision() -> None:
    """Why the step is normalised: moved by 1e-9, no single-precision parameter of order one changes at all."""
    model, theta = start(dtype=torch.float32)
    slope = maml._gradient(model, batch(7, "hessian", torch.float32), grad)
    direction = 1e-6 * F.normalize(torch.randn(model.dimension, generator=generator(4)), dim=0)
    assert not (slope(theta + 1e-3 * direction) - slope(theta - 1e-3 * direction)).any()
    assert bool(maml._hessian_free(slope, theta, direction, grad).any())


@pytest.mark.parametrize("method", METHODS)
def test_a_vanishing_gradient_gives_zero_and_not_nan(method: maml.Method) -> None:
    model, _ = start()
    theta = torch.zeros(model.dimension, dtype=torch.float64)
    even = Batch(torch.zeros(3, *SHAPE, dtype=torch.float64), torch.arange(3))  # uniform scores on balanced labels
    value = maml.meta_gradient(model, theta, even, even, even, 0.5, method)
    assert float(value.abs().max()) < 1e-15


@pytest.mark.parametrize("options", [SMOOTH, CNN])
@pytest.mark.parametrize("method", METHODS)
def test_plain_autograd_equals_torch_func(options: ModelOptions, method: maml.Method) -> None:
    model, theta = start(options)
    ours = maml.meta_gradient(model, theta, *task(), 0.3, method, maml.plain_grad)
    assert not ours.requires_grad and not theta.requires_grad
    # The two forms of batch norm round apart, and a difference quotient divides that by its step, 6e-6 of |theta|.
    tolerance = 1e-10 if method == "hessian-free" and options is CNN else 1e-12
    assert relative(ours, maml.meta_gradient(model, theta, *task(), 0.3, method)) < tolerance


def test_a_local_update_does_without_the_compiler() -> None:
    code = """
import sys, torch
from fl_core import LearnOptions, ModelOptions, DataOptions, build, client_update, load, split_clients
data, learn = DataOptions(), LearnOptions()
model = build(ModelOptions(), (1, 8, 8), 5)
client = split_clients(load(data, 1), data, 1)[0]
assert client_update(model, model.init(torch.Generator()), client, data, learn, seed=1, index=0, round=0).any()
slow = sorted({"torch._dynamo", "sympy", "sklearn", "matplotlib", "scipy.stats"} & set(sys.modules))
sys.exit(f"needlessly imported: {slow}" if slow else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_alpha_zero_is_the_plain_gradient(method: maml.Method) -> None:
    model, theta = start()
    support, query, hessian = task()
    leaf = theta.clone().requires_grad_()
    (plain,) = torch.autograd.grad(F.cross_entropy(model.logits(leaf, query.x), query.y), leaf)
    assert torch.equal(maml.meta_gradient(model, theta, support, query, hessian, 0.0, method), plain)


def test_unknown_method_lists_the_known_ones() -> None:
    model, theta = start()
    with pytest.raises(ValueError, match=r"'reptile' is unknown; choose one of exact, hessian-free, first-order"):
        inspect.unwrap(maml.meta_gradient)(model, theta, *task(), 0.1, "reptile")


# --- the local update


def test_one_step_without_inner_rate_is_one_sgd_step() -> None:
    model, theta = start()
    tasks = task(lead=(1,))
    leaf = theta.clone().requires_grad_()
    (plain,) = torch.autograd.grad(F.cross_entropy(model.logits(leaf, tasks.query.x[0]), tasks.query.y[0]), leaf)
    assert torch.equal(maml.local_update(model, theta, tasks, 0.0, 0.25, "exact"), 0.25 * plain)


@pytest.mark.parametrize("method", METHODS)
def test_the_update_is_old_minus_new_after_q_steps(method: maml.Method) -> None:
    model, theta = start()
    tasks = task(lead=(4,))
    at = theta.clone()
    for step in range(4):
        parts = [Batch(b.x[step], b.y[step]) for b in tasks]
        at = at - 0.2 * maml.meta_gradient(model, at, *parts, 0.3, method)
    torch.testing.assert_close(maml.local_update(model, theta, tasks, 0.3, 0.2, method), theta - at)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
@pytest.mark.parametrize("options", [SMOOTH, CNN, ModelOptions(hidden=(9,), activation="relu")])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_batched_updates_equal_one_by_one(
    options: ModelOptions, dtype: torch.dtype, tolerance: float, chunk: int | None
) -> None:
    """Tolerance: rounding of sums in another order, carried through three steps of exact second order."""
    model, theta = start(options, dtype)
    tasks = task(dtype, (7, 3))
    many = maml.local_updates(model, theta, tasks, 0.3, 0.2, "exact", chunk)
    for client in range(7):
        own = tasks.at(client)
        assert relative(many[client], maml.local_update(model, theta, own, 0.3, 0.2, "exact")) < tolerance


@pytest.mark.parametrize("method", METHODS)
def test_every_method_batches(method: maml.Method) -> None:
    model, theta = start()
    tasks = task(lead=(5, 2))
    many = maml.local_updates(model, theta, tasks, 0.3, 0.2, method)
    ones = [maml.local_update(model, theta, tasks.at(c), 0.3, 0.2, method) for c in range(5)]
    assert relative(many, torch.stack(ones)) < (1e-8 if method == "hessian-free" else 1e-12)


@pytest.mark.parametrize(
    "network", [{"hidden": ()}, {"hidden": (9,)}, {"hidden": (9, 7)}, {"name": "cnn", "filters": 4}]
)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("method", ["exact", "first-order"])
@pytest.mark.parametrize("apart", [0.0, 0.3])
@pytest.mark.parametrize("shared", [False, True])
def test_written_out_gradients_equal_autograd(network, activation, method: maml.Method, apart: float, shared) -> None:
    """Three batches of different sizes, two local steps, clients at one point or each at its own."""
    model, theta = start(ModelOptions(**network, activation=activation))
    shape = (4, model.dimension) if apart else (model.dimension,)
    theta = theta + apart * torch.randn(shape, generator=generator(5), dtype=theta.dtype)
    tasks = task(lead=(4, 2))
    if shared:
        tasks = tasks._replace(hessian=tasks.support)
    written, derived = (maml.local_updates(model, theta, tasks, 0.4, 0.5, method, chunk) for chunk in (None, 4))
    assert relative(written, derived) < 1e-13


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 13, 18), (2, 1, 1)])
def test_written_out_convolutions_take_images_of_any_shape(shape, activation) -> None:
    model = build(ModelOptions(name="cnn", filters=5, activation=activation), shape, 3)
    rng = generator(7)
    theta = model.init(rng).double() + 0.1 * torch.randn(model.dimension, generator=rng).double()
    batches = [Batch(torch.rand(n, *shape, generator=rng).double(), torch.arange(n) % 3) for n in (1, 9, 7)]
    written = convolutional.meta_gradient(model, theta, *batches, 0.4, True)
    assert relative(written, maml.meta_gradient(model, theta, *batches, 0.4, "exact", maml.plain_grad)) < 1e-12


def test_written_out_convolutions_round_no_worse_than_autograd() -> None:
    """Torch's batch norm of rows sums them one by one, which over 14,700 of them costs half of the accuracy."""
    model = build(ModelOptions(name="cnn", filters=8, activation="tanh"), (1, 28, 28), 5)
    rng = generator(9)
    theta = model.init(rng)
    batches = [Batch(torch.rand(n, 1, 28, 28, generator=rng), torch.arange(n) % 5) for n in (25, 75, 25)]
    exact = [Batch(batch.x.double(), batch.y) for batch in batches]
    truth = maml.meta_gradient(model, theta.double(), *exact, 0.4, "exact", maml.plain_grad)
    derived = maml.meta_gradient(model, theta, *batches, 0.4, "exact", maml.plain_grad)
    written = convolutional.meta_gradient(model, theta, *batches, 0.4, True)
    assert relative(written.double(), truth) < 1.5 * relative(derived.double(), truth)


def test_an_update_repeats_bit_for_bit() -> None:
    model, theta = start(dtype=torch.float32)
    tasks = task(torch.float32, (3,))
    first, second = (maml.local_update(model, theta, tasks, 0.3, 0.2, "exact") for _ in range(2))
    assert torch.equal(first, second)


# --- rates, evaluation, stationarity


def test_rates() -> None:
    constant = LearnOptions(alpha=0.4, eta=0.1)
    assert maml.rates(constant, 0) == maml.rates(constant, 10_000) == (0.4, 0.1)
    adaptive = LearnOptions(alpha=0.4, eta=0.1, schedule="adaptive", t0=50)
    assert maml.rates(adaptive, 0) == (0.4, 0.1)
    alpha, eta = maml.rates(adaptive, 150)
    assert eta == pytest.approx(0.1 / 2) and alpha == pytest.approx(0.4 / math.sqrt(2))


def test_fine_tuning_is_one_gradient_step() -> None:
    model, theta = start()
    support = task().support
    leaf = theta.clone().requires_grad_()
    (plain,) = torch.autograd.grad(F.cross_entropy(model.logits(leaf, support.x), support.y), leaf)
    assert torch.equal(maml.fine_tune(model, theta, support, 0.7), theta - 0.7 * plain)


@pytest.mark.parametrize("chunk", [None, 2])
def test_evaluation_averages_over_tasks(chunk: int | None) -> None:
    model, theta = start()
    tasks = task(lead=(5,))
    result = maml.evaluate(model, theta, tasks, 0.6, chunk)
    rows = []
    for k in range(5):
        phi = maml.fine_tune(model, theta, Batch(tasks.support.x[k], tasks.support.y[k]), 0.6)
        row = []
        for vector in (theta, phi):
            scores = model.logits(vector, tasks.query.x[k])
            row += [float(F.cross_entropy(scores, tasks.query.y[k]))]
            row += [float((scores.argmax(1) == tasks.query.y[k]).double().mean())]
        rows.append(row)
    means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    assert [result.loss_before, result.accuracy_before, result.loss, result.accuracy] == pytest.approx(means, abs=1e-12)


def test_stationarity_is_the_squared_norm_of_the_gradient_of_the_mean_objective() -> None:
    model, theta = start()
    tasks = task(lead=(3, 2))
    alpha = 0.4

    def objective(v: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for client in range(3):
            for k in range(2):
                inner = F.cross_entropy(model.logits(v, tasks.support.x[client, k]), tasks.support.y[client, k])
                (slope,) = torch.autograd.grad(inner, v, create_graph=True)
                scores = model.logits(v - alpha * slope, tasks.query.x[client, k])
                total = total + F.cross_entropy(scores, tasks.query.y[client, k])
        return total / 6

    leaf = theta.clone().requires_grad_()
    (truth,) = torch.autograd.grad(objective(leaf), leaf)
    for chunk in (None, 1, 4):
        value = maml.gradient_norm_squared(model, theta, tasks, alpha, chunk)
        assert value == pytest.approx(float(truth.square().sum()), rel=1e-10)


def test_default_chunks_bound_memory() -> None:
    small = build(ModelOptions(), (1, 8, 8), 5)
    large = build(ModelOptions(hidden=(1200,)), (1, 28, 28), 5)
    deep = build(ModelOptions(name="cnn"), (1, 28, 28), 5)
    assert maml.default_chunk(small) == 64 and maml.default_chunk(large) == 6 and maml.default_chunk(deep) == 6
    assert maml.default_chunk(large, torch.device("cuda")) == 6 and maml.default_chunk(deep, torch.device("cuda")) == 26


@pytest.mark.parametrize("allowed", [True, False])
def test_convolutions_on_a_gpu_keep_all_bits(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN would round to ten bits; what the user has set for his own work is as it was afterwards."""
    model, theta = start(CNN)
    theta, tasks = theta.to("meta"), data.moved(task(lead=(2, 1)), "meta")  # shapes alone, for want of a GPU
    seen, convolve = set(), F.conv2d

    def watched(*args: torch.Tensor, **named: int) -> torch.Tensor:
        seen.add(torch.backends.cudnn.allow_tf32)
        return convolve(*args, **named)

    monkeypatch.setattr(F, "conv2d", watched)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    maml.local_updates(model, theta, tasks, 0.1, 0.1, "exact", 2)
    with pytest.raises(RuntimeError, match="meta"):  # when all is computed, it asks for a number
        maml.evaluate(model, theta, tasks.at((slice(None), 0)), 0.1)
    one = tasks.at(0)
    maml.local_update(model, theta, one, 0.1, 0.1, "hessian-free")
    maml.meta_gradient(model, theta, *one.at(0), 0.1, "exact")
    maml.fine_tune(model, theta, one.at(0).support, 0.1)
    assert seen == {False}
    maml.local_updates(model, start(CNN)[1], task(lead=(2, 1)), 0.1, 0.1, "exact", 2)
    assert seen == {False, allowed}, "a CPU's threads would change it at the same time"
    assert torch.backends.cudnn.allow_tf32 is allowed


# --- learning


@pytest.mark.parametrize("seed", [0, 1])
def test_meta_training_with_the_defaults_helps_new_clients(seed: int) -> None:
    """Sixty error-free rounds, eight clients: one fine-tuning step on unseen digits gains twenty points and more."""
    options, learn = DataOptions(), LearnOptions()
    dataset = data.load(options, seed)
    clients = data.split_clients(dataset, options, seed)
    held = data.evaluation_tasks(data.new_clients(dataset, options, seed), options, seed)
    full = data.full_tasks(clients, options, seed)
    model = build(ModelOptions(), dataset.image_shape, options.ways)
    theta = model.init(generator(seed, "init"))
    untrained = maml.evaluate(model, theta, held, learn.alpha)
    slope = maml.gradient_norm_squared(model, theta, full, learn.alpha)
    for number in range(60):
        tasks = data.stack(
            [
                data.sample_tasks(client, options, generator(seed, "task", index, number), learn.local_steps)
                for index, client in enumerate(clients)
            ]
        )
        theta = theta - maml.local_updates(model, theta, tasks, learn.alpha, learn.eta, learn.gradient).mean(0)
    trained = maml.evaluate(model, theta, held, learn.alpha)
    assert trained.accuracy > untrained.accuracy + 0.2
    assert trained.accuracy > trained.accuracy_before + 0.4, "it is the fine-tuning step that classifies"
    assert maml.gradient_norm_squared(model, theta, full, learn.alpha) < 0.2 * slope


# --- devices


@pytest.mark.parametrize("options", [SMOOTH, CNN])
@pytest.mark.parametrize("method", METHODS)
def test_learning_stays_on_the_device_of_its_arguments(options: ModelOptions, method: maml.Method) -> None:
    """On torch's device without data: whatever the learning makes elsewhere does not mix with it."""
    model, theta = start(options, torch.float32)
    elsewhere = theta.to("meta")
    with pytest.raises(RuntimeError, match="not on the expected device"):
        elsewhere + theta
    tasks = data.moved(task(torch.float32, (4, 2)), "meta")
    for starts, chunk in itertools.product((elsewhere, elsewhere.expand(4, -1)), (None, 2)):
        update = maml.local_updates(model, starts, tasks, 0.1, 0.1, method, chunk)
        assert update.device.type == "meta" and update.shape == (4, model.dimension)
    with pytest.raises(RuntimeError, match="meta tensor"):  # only the last number is read
        maml.evaluate(model, elsewhere, data.moved(task(torch.float32, (4,)), "meta"), 0.1)
    with pytest.raises(RuntimeError, match=r"meta tensor|\.item\(\)"):
        maml.gradient_norm_squared(model, elsewhere, tasks, 0.1)
