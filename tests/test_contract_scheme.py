"""What every scheme must keep, one test file for all: a new scheme joins CASES with its ideal limit."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_core.data import load, split_clients
from fl_core.encode import energy
from fl_core.mac import Channel
from fl_core.models import build as build_model
from fl_core.options import DataOptions, LearnOptions, ModelOptions, SchemeOptions
from fl_core.rounds import simulate
from fl_core.schemes import SCHEMES, Csi, Plan, Scheme, make_scheme
from fl_core.seeds import numpy_generator
from radio.ofdm import PROFILES
from radio.payload import Payload

DIMENSION = 240
CLIENTS = 4
PLAN = Plan(round=3, seed=11, clients=CLIENTS, eta=0.1)


@dataclass(frozen=True)
class Case:
    """How to exercise a scheme.

    Attributes:
        limit: settings under which, on a perfect channel, its decoded mean is the mean of what came in.
        tolerance: relative error allowed there.
        options: other settings to run through the contract.
        linear: received symbols may be scaled and added by the test (an analog scheme).
        single: whether the limit holds for one client alone: energies of several also hold their cross terms.
        of: turns normal random updates into those for which the limit holds.
        similarity: where one round's estimate is far from the mean by design (signs, energies), the least cosine
            between the two; else the squared error is below half of the squared mean.
        exact: whether what is sent and what is kept add up bit for bit, and not to rounding.
        blind: whether the memory knows nothing of the channel.
    """

    limit: dict[str, object]
    tolerance: float
    options: tuple[dict[str, object], ...] = ({},)
    linear: bool = True
    single: bool = False
    of: Callable[[torch.Tensor], torch.Tensor] = torch.clone
    similarity: float | None = None
    exact: bool = True
    blind: bool = True


def unanimous(updates: torch.Tensor) -> torch.Tensor:
    """Make every client want the same step in each entry."""
    return 0.02 * PLAN.eta * torch.sign(updates[:1]).expand_as(updates).clone()


def sparse_and_equal(updates: torch.Tensor) -> torch.Tensor:
    """Give every client the same two entries: clients whose projections have equal energy weigh the same."""
    made = torch.zeros_like(updates)
    made[:, 7], made[:, 100] = 1.0, -2.0
    return made


def agreeing(updates: torch.Tensor) -> torch.Tensor:
    """Give every entry the sign of the round's dither."""
    dither = numpy_generator(PLAN.seed, "dither", PLAN.round).integers(2, size=updates.shape[1])
    return updates.abs() * torch.from_numpy(2.0 * dither - 1.0).float()


#: Energies of several clients hold cross terms too, as large as themselves.
ENERGY: dict[str, Any] = {"linear": False, "single": True, "similarity": 0.2}

CASES = {
    "air-meta-pfl": Case(
        limit={"keep": 1.0, "mapping": "pair", "estimator": "linear"},
        tolerance=1e-6,
        options=(
            {},
            {"mapping": "pair", "keep": 0.2},
            {"mapping": "pair-dft", "estimator": "iht"},
            {"mapping": "dft-all", "measure": 0.7},
            {"sparsifier": "rand-k", "keep": 0.1},
            {"memory": False},
            {"precoder": "inversion"},
        ),
    ),
    "ideal": Case(
        limit={"keep": 1.0}, tolerance=1e-6, options=({}, {"keep": 1.0}, {"sparsifier": "rand-k"}, {"memory": False})
    ),
    "fedavg": Case(limit={}, tolerance=1e-6),
    "per-fedavg": Case(limit={}, tolerance=1e-6),
    "gbma": Case(limit={}, tolerance=1e-6, options=({}, {"precoder": "inversion"})),
    "truncated-inversion": Case(limit={}, tolerance=1e-6, options=({}, {"threshold": 0.5}, {"inversion": "mse"})),
    "airfl-mem": Case(limit={}, tolerance=1e-6, options=({}, {"memory": False}), blind=False),
    "cotaf": Case(limit={}, tolerance=1e-6),
    "a-dsgd": Case(
        limit={"keep": 0.01, "measure": 0.4},
        tolerance=1e-4,
        options=({}, {"memory": False}),
        linear=False,
        of=sparse_and_equal,
    ),
    "obda": Case(
        limit={},
        tolerance=1e-6,
        options=({}, {"memory": False}),
        linear=False,
        of=unanimous,
        similarity=0.6,
        exact=False,
    ),
    "fsk-mv": Case(limit={}, tolerance=1e-6, options=({}, {"silence": 0.5}), of=unanimous, **ENERGY),
    "ncairfl": Case(limit={}, tolerance=1e-5, options=({}, {"memory": False}), of=agreeing, **ENERGY),
    "reed": Case(limit={}, tolerance=1e-5, **ENERGY),
    "misaligned": Case(
        limit={"receiver": "ml"},
        tolerance=1e-3,  # telling apart clients that arrive almost together multiplies the rounding of float32
        options=({}, {"receiver": "aligned-sample", "timing": 0.0, "phase_rad": 0.0}),
        linear=False,
    ),
    "blind-antennas": Case(limit={"antennas": 1}, tolerance=1e-6, linear=False, single=True, similarity=0.8),
    "digital": Case(
        limit={"snr_db": 200.0, "measure": 1.0, "bits": 16},
        tolerance=5e-5,
        options=({}, {"memory": False}, {"power": "average", "bits": 4}),
        linear=False,
        exact=False,
        blind=False,
        similarity=0.2,
    ),
}

EVERY = [(name, options) for name, case in CASES.items() for options in case.options]
NAMES = sorted(CASES)


def build(name: str, options: dict[str, object], dimension: int = DIMENSION) -> Scheme:
    return make_scheme(SchemeOptions(name=name, **options), dimension)


def inputs(seed: int = 0, dimension: int = DIMENSION) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    shape = (CLIENTS, dimension)
    return torch.randn(shape, generator=source), 0.3 * torch.randn(shape, generator=source)


def arrive(scheme: Scheme, symbols: torch.Tensor, snr_db: float = math.inf) -> tuple[torch.Tensor, Csi]:
    """Let scaled symbols (client, symbol) through a channel with noise, or over the wire."""
    if not scheme.over_air:
        return symbols.sum(0), Csi(noise=0.0)
    source = torch.Generator().manual_seed(4)
    channel = Channel("none" if scheme.antennas == 1 else "rayleigh", snr_db)  # antennas differ by their fading alone
    gains = channel.draw(len(symbols), scheme.symbols, scheme.antennas, source)
    return scheme.superpose(symbols, gains, list(range(len(symbols))), channel, source)


def test_every_scheme_is_listed_here():
    assert set(CASES) == set(SCHEMES)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_declares_what_the_air_needs_to_know(name, options):
    scheme = build(name, options)
    assert scheme.name == name and scheme.dimension == DIMENSION
    assert scheme.symbols >= 1 and isinstance(scheme.symbols, int)
    assert scheme.uses >= 1 and isinstance(scheme.uses, int) and isinstance(scheme, Scheme)
    assert scheme.precoder in ("phase", "inversion", "none")
    assert scheme.over_air == (scheme.carrier != "wire")
    assert scheme.carrier != "energy" or scheme.precoder == "none"
    assert isinstance(scheme.recoverable(CLIENTS), str)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_encode_gives_finite_symbols_and_leaves_its_arguments_alone(name, options):
    scheme = build(name, options)
    updates, memories = inputs()
    update, memory = updates[0].clone(), memories[0].clone()
    symbols, remaining = scheme.encode(update, memory, Csi(), PLAN)
    assert symbols.shape == (scheme.symbols,) and symbols.dtype == torch.complex64
    assert remaining.shape == memory.shape and remaining.dtype == torch.float32
    assert bool(symbols.isfinite().all()) and bool(remaining.isfinite().all())
    assert torch.equal(update, updates[0]) and torch.equal(memory, memories[0])


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_encode_is_a_function_of_its_arguments_alone(name, options):
    updates, memories = inputs()
    first = build(name, options).encode(updates[0], memories[0], Csi(), PLAN)
    torch.manual_seed(999)
    again = build(name, options).encode(updates[0], memories[0], Csi(), PLAN)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_batch_of_clients_equals_one_by_one(name, options):
    scheme = build(name, options)
    updates, memories = inputs()
    symbols, remaining = scheme.encode(updates, memories, Csi(), PLAN)
    for client in range(CLIENTS):
        one, rest = scheme.encode(updates[client], memories[client], Csi(), PLAN)
        # A batched transform may round differently: 1e-6 of unit-size entries.
        torch.testing.assert_close(symbols[client], one, atol=1e-6, rtol=1e-6)
        assert torch.equal(remaining[client], rest)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_memory_holds_exactly_what_was_not_sent(name, options):
    scheme = build(name, options)
    updates, memories = inputs()
    sparse, remaining = scheme.sparsify(updates, memories, PLAN)
    if scheme.remembers:
        gap = float((sparse + remaining - (memories + updates)).abs().max())
        assert gap == 0.0 if CASES[name].exact else gap < 1e-6
    else:
        assert torch.equal(remaining, memories)


@pytest.mark.parametrize(("name", "options"), [each for each in EVERY if CASES[each[0]].blind])
def test_memory_knows_nothing_of_the_channel(name, options):
    scheme = build(name, options)
    updates, memories = inputs()
    first = scheme.encode(updates, memories, Csi(1.0, 0.0), PLAN)[1]
    second = scheme.encode(updates, memories, Csi(0.3, 5.0), replace(PLAN, scale=17.0))[1]
    assert torch.equal(first, second) and torch.equal(first, scheme.sparsify(updates, memories, PLAN)[1])


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_power_limit_holds_with_equality_for_the_worst_client(name, options):
    scheme = build(name, options)
    if not scheme.over_air:
        assert scheme.scale([1.0, 4.0], PLAN) == 1.0
        return
    updates, memories = inputs()
    for round_number in range(5):
        plan = replace(PLAN, round=round_number)
        symbols, memories = scheme.encode(updates * (1 + torch.arange(CLIENTS))[:, None], memories, Csi(), plan)
        energies = energy(symbols).tolist()
        scale = scheme.scale(energies, plan)
        powers = (energy(scale * symbols) / scheme.symbols).tolist()
        assert max(powers) == pytest.approx(1.0, rel=1e-6)
        assert [power > 1 - 1e-6 for power in powers] == [value > max(energies) * (1 - 1e-6) for value in energies]


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_silence_is_a_round_like_any_other(name, options):
    scheme = build(name, options)
    nothing = torch.zeros(CLIENTS, DIMENSION)
    symbols, remaining = scheme.encode(nothing, nothing, Csi(), PLAN)
    plan = replace(PLAN, scale=scheme.scale(energy(symbols).tolist(), PLAN))
    assert plan.scale > 0 and math.isfinite(plan.scale)
    received, csi = arrive(scheme, plan.scale * symbols)
    assert torch.equal(scheme.decode(received, csi, plan), torch.zeros(DIMENSION))
    assert torch.equal(remaining, nothing)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_decode_gives_a_finite_estimate_better_than_none(name, options):
    scheme = build(name, {**options, "keep": options.get("keep", 0.04)})
    updates, memories = inputs()
    sparse, _ = scheme.sparsify(updates, memories, PLAN)
    symbols, _ = scheme.encode(updates, memories, Csi(), PLAN)
    plan = replace(PLAN, scale=scheme.scale(energy(symbols).tolist(), PLAN))
    received, csi = arrive(scheme, plan.scale * symbols, 20.0)
    truth, similarity = sparse.mean(0), CASES[name].similarity
    for known in (csi, replace(csi, noise=None)):
        estimate = scheme.decode(received, known, plan)
        assert estimate.shape == (DIMENSION,) and estimate.dtype == torch.float32
        if similarity is None:
            # -3 dB at 20 dB SNR: no scheme may be that far from what was sent.
            assert float((estimate - truth).square().sum()) < 0.5 * float(truth.square().sum())
        else:
            assert float(torch.cosine_similarity(estimate, truth, dim=0)) > similarity


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dimension", [240, 241])
def test_on_a_perfect_channel_its_limit_is_the_mean(name, dimension):
    case = CASES[name]
    scheme = build(name, case.limit, dimension)
    updates = case.of(inputs(5, dimension)[0][: 1 if case.single else CLIENTS])
    memories = torch.zeros_like(updates)
    plan = replace(PLAN, clients=len(updates))
    symbols, remaining = scheme.encode(updates, memories, Csi(), plan)
    plan = replace(plan, scale=scheme.scale(energy(symbols).tolist(), plan))
    estimate = scheme.decode(*arrive(scheme, plan.scale * symbols), plan)
    mean = updates.mean(0)
    assert float((estimate - mean).norm()) <= case.tolerance * float(mean.norm())
    assert (
        float(remaining.norm()) <= case.tolerance * float(updates.norm())
        if not case.exact
        else (torch.equal(remaining, memories))
    )


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].linear])
def test_the_mean_is_over_those_who_were_heard(name):
    case = CASES[name]
    scheme = build(name, case.limit)
    updates, _ = inputs(6)
    symbols, _ = scheme.encode(updates, torch.zeros_like(updates), Csi(), PLAN)
    plan = replace(PLAN, scale=scheme.scale(energy(symbols).tolist(), PLAN), clients=3)
    estimate = scheme.decode(plan.scale * symbols[:3].sum(0), Csi(1.0, 0.0), plan)
    mean = updates[:3].mean(0)
    assert float((estimate - mean).norm()) <= case.tolerance * float(mean.norm())


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].linear and build(name, {}).over_air])
def test_decode_divides_by_the_mean_gain(name):
    scheme = build(name, CASES[name].limit)
    updates, _ = inputs(7)
    symbols, _ = scheme.encode(updates, torch.zeros_like(updates), Csi(), PLAN)
    estimate = scheme.decode(0.5 * symbols.sum(0), Csi(0.5, 0.0), PLAN)
    torch.testing.assert_close(estimate, updates.mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_client_is_no_mean(name):
    scheme = build(name, {})
    with pytest.raises(ValueError, match="0 clients"):
        received, csi = arrive(scheme, torch.ones((2, scheme.symbols), dtype=torch.complex64))
        scheme.decode(received, csi, replace(PLAN, clients=0))


@pytest.mark.parametrize(("name", "options"), [*EVERY, *((name, CASES[name].limit) for name in NAMES)])
def test_an_update_that_is_not_finite_is_refused(name, options):
    scheme = build(name, options)
    update = torch.zeros(DIMENSION)
    update[7] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        scheme.encode(update, torch.zeros(DIMENSION), Csi(), PLAN)


@pytest.mark.parametrize("mode", ["R", "C"])
@pytest.mark.parametrize("name", [name for name in NAMES if build(name, {}).carrier in ("sum", "energy")])
def test_symbols_survive_the_layout_of_a_burst(name, mode):
    """Laid over resource elements, added there with amplitudes of their own, and read back: what decode would get."""
    scheme = build(name, {})
    scheme.check_waveform()
    updates, memories = inputs(8)
    symbols, _ = scheme.encode(updates, memories, Csi(), PLAN)
    scaled = (symbols * scheme.scale(energy(symbols).tolist(), PLAN)).numpy()
    gains = np.array([1.0, 0.8, 1.1, 0.9], np.float32)
    payload = Payload(PROFILES["usrp-ref"], mode, scheme.symbols, 5, appended=False, spread=scheme.carrier == "sum")
    grid = np.sum([gain * payload.fill(each) for gain, each in zip(gains, scaled, strict=True)], axis=0)
    expected = (gains[:, None] * scaled).sum(0)
    np.testing.assert_allclose(payload.read(grid)[0], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_waveform_cannot_carry_is_refused_with_a_remedy(name):
    scheme = build(name, {})
    simulated = scheme.carrier == "simulated"
    with pytest.raises(ValueError, match=r"run it with fl_core\.simulate") if simulated else nullcontext():
        scheme.check_waveform()
    if scheme.over_air:
        with pytest.raises(ValueError, match="simulation alone"):
            build(name, {"power": "shared"}).check_waveform()


def test_a_sum_without_aligned_phases_and_gains_of_others_are_refused_on_a_waveform():
    with pytest.raises(ValueError, match=r"must arrive in phase.*leave scheme\.precoder unset"):
        build("gbma", {"precoder": "none"}).check_waveform()
    with pytest.raises(ValueError, match=r"leave scheme\.inversion unset"):
        build("truncated-inversion", {"inversion": "mse"}).check_waveform()


@pytest.fixture(scope="module")
def world():
    data = DataOptions(ways=2, shots=1, queries=2, hessian_shots=1, clients=4, classes_per_client=3)
    dataset = load(data, 1)
    model = build_model(ModelOptions(hidden=(4,)), dataset.image_shape, data.ways)
    return model, split_clients(dataset, data, 1), data


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_runs_in_simulation_within_the_power_limit(world, name, options):
    model, clients, data = world
    scheme, learn, channel = build(name, options, model.dimension), LearnOptions(local_steps=1), Channel(snr_db=15.0)
    settings = {"active": 3, "seed": 2, "lost": lambda number, index: (number + index) % 4 == 0}
    whole = simulate(model, clients, data, learn, scheme, channel, rounds=3, **settings)
    assert bool(whole.state.theta.isfinite().all()) and bool(whole.state.memories.isfinite().all())
    for record in whole.records:
        # Over the fading alone where the options say so; nothing over the control link.
        assert max(record.power) <= (1 + 1e-6 if not scheme.averages else math.inf)
        assert (max(record.power) > 0.0) == (scheme.over_air or name == "digital")
    start = simulate(model, clients, data, learn, scheme, channel, rounds=1, **settings).state
    rest = simulate(model, clients, data, learn, scheme, channel, rounds=2, start=start, first_round=1, **settings)
    assert torch.equal(rest.state.theta, whole.state.theta)
    assert torch.equal(rest.state.memories, whole.state.memories)


@pytest.mark.parametrize("name", [name for name in NAMES if build(name, {}).over_air or name == "digital"])
def test_clients_that_share_their_power_spend_as_much_under_every_scheme(world, name):
    model, clients, data = world
    scheme = build(name, {"power": "shared", "threshold": 1e-3}, model.dimension)
    run = simulate(
        model, clients, data, LearnOptions(local_steps=1), scheme, Channel(snr_db=5.0), rounds=3, active=3, seed=2
    )
    for record in run.records:
        assert sum(record.power) == pytest.approx(3.0, rel=1e-5)


def test_an_unknown_scheme_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"'fedsgd' is unknown.*air-meta-pfl"):
        make_scheme(SchemeOptions(name="fedsgd"), DIMENSION)
