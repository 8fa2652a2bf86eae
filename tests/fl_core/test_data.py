"""Data sets, the split over clients, and few-shot tasks."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fl_core import data
from fl_core.glyphs import glyphs
from fl_core.images import digits
from fl_core.omniglot import omniglot
from fl_core.options import DataOptions
from fl_core.seeds import generator

GLYPHS = DataOptions(name="glyphs", examples_per_class=10, queries=5, classes_per_client=20, examples="shared")


def equal(first: data.Task, second: data.Task) -> bool:
    pairs = [(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


def rows_of(dataset: data.Dataset, images: torch.Tensor) -> list[int]:
    """Find which image of the data set each given image is, whatever its rotation."""
    pool = {dataset.images[row].numpy().tobytes(): row for row in range(len(dataset.images))}
    found = []
    for image in images:
        turned = [torch.rot90(image, turn, (1, 2)).contiguous().numpy().tobytes() for turn in range(4)]
        found.append(next(pool[key] for key in turned if key in pool))
    return found


# --- digits


def test_digits_have_forty_classes_in_the_unit_range() -> None:
    dataset = data.load(DataOptions(), 0)
    assert dataset.images.shape == (1797, 1, 8, 8) and dataset.images.dtype == torch.float32
    assert (float(dataset.images.min()), float(dataset.images.max())) == (0.0, 1.0)
    assert len(dataset.categories) == 40
    assert sorted(dataset.train_classes + dataset.new_classes) == list(range(40))
    assert len(data.load(DataOptions(rotations=False), 0).categories) == 10


@pytest.mark.parametrize("seed", range(12))
def test_a_digit_and_its_rotations_stay_on_one_side(seed: int) -> None:
    dataset = data.load(DataOptions(), seed)
    sides = [{dataset.categories[i].name[0] for i in part} for part in (dataset.train_classes, dataset.new_classes)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set("0123456789")
    assert ("6" in sides[0]) == ("9" in sides[0]), "a turned 6 is a 9"
    assert len(dataset.new_classes) == 12


def test_the_digits_are_those_of_scikit_learn() -> None:
    values, labels = load_digits(return_X_y=True)
    assert torch.equal(digits().images.flatten(1) * 16, torch.from_numpy(values).float())
    assert torch.equal(digits().labels, torch.from_numpy(labels))


def test_the_held_out_digits_depend_on_the_seed() -> None:
    assert len({data.load(DataOptions(), seed).new_classes for seed in range(12)}) > 5


def test_a_rotated_class_shows_rotated_images() -> None:
    options = DataOptions()
    dataset = data.load(options, 0)
    upright = next(c for c in dataset.categories if c.name == "3")
    turned = next(c for c in dataset.categories if c.name == "3 turned 90")
    others = tuple(c for c in dataset.categories if c.name[0] not in "3")[:4]
    for category in (upright, turned):
        client = data.ClientData(dataset.images, tuple(range(5)), (category, *others))
        task = data.sample_task(client, options, generator(0, "t"))
        held = {row: dataset.images[row] for row in category.rows.tolist()}
        label = dict(zip(rows_of(dataset, task.query.x), task.query.y.tolist(), strict=True))
        row, image = next(
            (row, image) for row, image in zip(rows_of(dataset, task.query.x), task.query.x, strict=True) if row in held
        )
        assert torch.equal(image, torch.rot90(held[row], category.turns, (1, 2)))
        assert sum(way == label[row] for way in task.query.y.tolist()) == options.queries


# --- split


def test_classes_are_dealt_evenly_and_examples_split() -> None:
    options = DataOptions(clients=8, classes_per_client=10)
    dataset = data.load(options, 3)
    clients = data.split_clients(dataset, options, 3)
    held = [index for client in clients for index in client.classes]
    counts = [held.count(index) for index in dataset.train_classes]
    assert [len(set(client.classes)) for client in clients] == [10] * 8
    assert max(counts) - min(counts) <= 1 and sum(counts) == 80
    for index in dataset.train_classes:
        parts = [c.categories[c.classes.index(index)].rows.tolist() for c in clients if index in c.classes]
        assert sorted(row for part in parts for row in part) == sorted(dataset.categories[index].rows.tolist())
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shared_examples_are_whole_classes() -> None:
    options = DataOptions(examples="shared")
    dataset = data.load(options, 3)
    for client in data.split_clients(dataset, options, 3):
        for index, category in zip(client.classes, client.categories, strict=True):
            assert sorted(category.rows.tolist()) == sorted(dataset.categories[index].rows.tolist())


@pytest.mark.parametrize("options", [DataOptions(), GLYPHS])
def test_new_clients_never_hold_a_training_class(options: DataOptions) -> None:
    dataset = data.load(options, 1)
    trained = {index for client in data.split_clients(dataset, options, 1) for index in client.classes}
    fresh = {index for client in data.new_clients(dataset, options, 1) for index in client.classes}
    assert trained <= set(dataset.train_classes) and fresh <= set(dataset.new_classes) and fresh
    assert not {dataset.categories[i].group for i in trained} & {dataset.categories[i].group for i in fresh}
    rows = [{r for i in part for r in dataset.categories[i].rows.tolist()} for part in (trained, fresh)]
    assert not rows[0] & rows[1]


# --- tasks


@pytest.mark.parametrize("seed", range(5))
def test_support_and_query_are_disjoint_and_labels_consistent(seed: int) -> None:
    options = DataOptions(ways=4, shots=3, queries=6, hessian_shots=2, clients=8, classes_per_client=8)
    dataset = data.load(options, seed)
    client = data.split_clients(dataset, options, seed)[0]
    task = data.sample_task(client, options, generator(seed, "t"))
    assert [batch.x.shape[0] for batch in task] == [12, 24, 8]
    assert [torch.bincount(batch.y).tolist() for batch in task] == [[3] * 4, [6] * 4, [2] * 4]
    pixels = [{image.numpy().tobytes() for image in batch.x} for batch in task]
    assert not pixels[0] & pixels[1]
    # Each label is one class of this client, the same class in the three batches.
    owner = {}
    for index, category in zip(client.classes, client.categories, strict=True):
        for row in category.rows.tolist():
            owner[torch.rot90(dataset.images[row], category.turns, (1, 2)).contiguous().numpy().tobytes()] = index
    meaning = [
        {(int(y), owner[x.contiguous().numpy().tobytes()]) for x, y in zip(batch.x, batch.y, strict=True)}
        for batch in task
    ]
    assert meaning[0] == meaning[1] == meaning[2] and len(meaning[0]) == 4


def test_labels_are_redrawn_from_task_to_task() -> None:
    options = DataOptions(ways=5, classes_per_client=5)
    client = data.split_clients(data.load(options, 0), options, 0)[0]
    means = [data.sample_task(client, options, generator(0, k)).support.x[:5].mean((0, 1)) for k in range(20)]
    assert len({tuple(np.round(mean.flatten().numpy(), 1)) for mean in means}) > 10


def test_the_hessian_batch_is_drawn_independently() -> None:
    """With 20 of 22 examples in support and query, an independent batch must meet both, and sometimes neither."""
    options = DataOptions(clients=8, classes_per_client=10)
    client = data.split_clients(data.load(options, 0), options, 0)[0]
    hits = {"support": 0, "query": 0, "other": 0}
    for k in range(40):
        task = data.sample_task(client, options, generator(1, k))
        support, query, hessian = ({x.numpy().tobytes() for x in batch.x} for batch in task)
        hits["support"] += len(hessian & support)
        hits["query"] += len(hessian & query)
        hits["other"] += len(hessian - support - query)
    assert all(hits.values())
    assert hits["query"] / hits["support"] == pytest.approx(options.queries / options.shots, rel=0.35)


def test_tasks_repeat_with_the_generator_and_differ_without() -> None:
    options = DataOptions()
    clients = data.split_clients(data.load(options, 5), options, 5)
    again = data.split_clients(data.load(options, 5), options, 5)
    one, two = (data.sample_tasks(c[2], options, generator(5, "r"), 3) for c in (clients, again))
    assert equal(one, two) and one.support.x.shape == (3, 25, 1, 8, 8)
    assert not equal(one, data.sample_tasks(clients[2], options, generator(6, "r"), 3))


def test_evaluation_tasks_are_fixed_by_the_seed() -> None:
    options = DataOptions(new_tasks=11, new_clients=3)
    clients = data.new_clients(data.load(options, 0), options, 0)
    tasks = data.evaluation_tasks(clients, options, 0)
    assert tasks.query.x.shape == (11, 75, 1, 8, 8)
    assert equal(tasks, data.evaluation_tasks(clients, options, 0))
    assert not equal(tasks, data.evaluation_tasks(clients, options, 1))


def fingerprints() -> str:
    """Digest the evaluation tasks of both seeded data sets."""
    digests = []
    for options in (DataOptions(new_tasks=5), GLYPHS.model_copy(update={"new_tasks": 5})):
        dataset = data.load(options, 9)
        tasks = data.evaluation_tasks(data.new_clients(dataset, options, 9), options, 9)
        digests.append(hashlib.sha256(tasks.query.x.numpy().tobytes()).hexdigest())
    return " ".join(digests)


def test_another_process_draws_the_same_tasks() -> None:
    code = f"import runpy; print(runpy.run_path({__file__!r})['fingerprints']())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprints()


def test_full_tasks_hold_every_class_and_halve_its_examples() -> None:
    options = DataOptions(ways=4, classes_per_client=10, queries=5)
    dataset = data.load(options, 2)
    clients = data.split_clients(dataset, options, 2)
    half = min(len(c.rows) for client in clients for c in client.categories) // 2
    tasks = data.full_tasks(clients, options, 2)
    assert tasks.support.x.shape == tasks.query.x.shape == (8, 3, 4 * half, 1, 8, 8)
    assert torch.equal(tasks.support.x, tasks.hessian.x)
    for number in range(len(clients)):
        seen = set(rows_of(dataset, tasks.support.x[number].flatten(0, 1)))
        asked = set(rows_of(dataset, tasks.query.x[number].flatten(0, 1)))
        assert {int(digits().labels[row]) for row in seen} == {
            int(digits().labels[c.rows[0]]) for c in clients[number].categories
        }
        assert len(seen) > 9 * half * 0.7 and asked


# --- glyphs


def test_glyphs_are_many_distinct_and_fast() -> None:
    start = time.perf_counter()
    source = glyphs(123, 8)
    seconds = time.perf_counter() - start
    assert len(source.names) > 600 and len(set(source.groups)) >= 15
    assert source.images.shape == (8 * len(source.names), 1, 28, 28)
    assert float(source.images.min()) >= 0.0 and float(source.images.max()) <= 1.0
    assert float(source.images.amax((1, 2, 3)).min()) > 0.3, "an example without ink"
    assert seconds < 30, f"{len(source.images)} images took {seconds:.1f} s"


def test_glyph_tasks_can_be_learned_but_not_by_looking_at_pixels_alone() -> None:
    """Nearest mean of five examples: far above the chance level of a fifth, well below perfect."""
    source = glyphs(123, 8)
    images = source.images.flatten(1).view(-1, 8, 784)
    rng = generator(0, "ways")
    right = []
    for _ in range(200):
        chosen = images[torch.randperm(len(images), generator=rng)[:5]]
        distance = torch.cdist(chosen[:, 5:].flatten(0, 1), chosen[:, :5].mean(1))
        right.append(float((distance.argmin(1) == torch.arange(5).repeat_interleave(3)).float().mean()))
    assert 0.6 < np.mean(right) < 0.97


def test_no_two_examples_of_a_glyph_are_the_same() -> None:
    images = glyphs(123, 8).images.flatten(1).view(-1, 8, 784)
    first, second = torch.triu_indices(8, 8, 1)
    assert float((images[:, first] - images[:, second]).abs().amax(2).min()) > 0.01


def test_look_alikes_of_two_alphabets_appear_once() -> None:
    names = set(glyphs(123, 8).names)
    assert "latin U+0041" in names  # A
    assert "greek U+0391" not in names and "cyrillic U+0410" not in names  # Alpha and Cyrillic A look the same
    assert "greek U+03A9" in names and "cyrillic U+0416" in names  # Omega and Zhe do not


def test_glyph_images_depend_on_the_seed_alone() -> None:
    first = glyphs(1, 2).images.clone()
    glyphs.cache_clear()
    assert torch.equal(glyphs(1, 2).images, first)
    assert not torch.equal(glyphs(2, 2).images, first)


# --- omniglot


def draw(part: Path, alphabets: int, characters: int, drawings: int, offset: int) -> None:
    """Write a tiny Omniglot: 105x105 one-bit images, ink black, a square whose place tells the class."""
    for a in range(alphabets):
        for c in range(characters):
            folder = part / f"Alphabet_{offset + a}" / f"character{c + 1:02d}"
            folder.mkdir(parents=True)
            for d in range(drawings):
                pixels = np.ones((105, 105), bool)
                pixels[10 + 20 * c : 30 + 20 * c, 15 * (offset + a) : 15 * (offset + a) + 30 + d] = False
                Image.fromarray(pixels).save(folder / f"{offset:02d}{a:02d}{c:02d}_{d + 1:02d}.png")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("omniglot")
    draw(root / "images_background", 3, 4, 6, 0)
    draw(root / "images_evaluation", 2, 3, 6, 3)
    return root


OMNIGLOT = DataOptions(
    name="omniglot", ways=3, shots=2, queries=2, hessian_shots=2, clients=2, classes_per_client=12, examples="shared"
)


def test_omniglot_folder_is_read_scaled_and_inverted(sample: Path) -> None:
    source = omniglot(sample)
    assert source.images.shape == (3 * 4 * 6 + 2 * 3 * 6, 1, 28, 28)
    assert len(source.names) == 18 and source.held_out == {"Alphabet_3", "Alphabet_4"}
    # Ink is 1, and box scaling keeps its area: 20 rows of 30 columns out of 105 x 105.
    first = source.images[source.labels == source.names.index("Alphabet_0/character01")][0]
    assert float(first.max()) == 1.0 and float(first.min()) == 0.0
    assert float(first.mean()) == pytest.approx(600 / 105**2, rel=0.02)


def test_omniglot_zips_give_the_same_as_folders(sample: Path, tmp_path: Path) -> None:
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for path in sorted((sample / part).rglob("*"), reverse=True):  # a zip need not be in order
                archive.write(path, path.relative_to(sample))
            archive.writestr("__MACOSX/images_background/A/c/._x.png", b"not an image")
    folder, zipped = omniglot(sample), omniglot(tmp_path)
    assert torch.equal(folder.images, zipped.images) and torch.equal(folder.labels, zipped.labels)
    assert (folder.names, folder.groups, folder.held_out) == (zipped.names, zipped.groups, zipped.held_out)


def test_omniglot_becomes_tasks_with_rotations(sample: Path) -> None:
    options = OMNIGLOT.model_copy(update={"folder": sample})
    dataset = data.load(options, 0)
    assert (len(dataset.train_classes), len(dataset.new_classes)) == (48, 24)
    assert {dataset.categories[i].group for i in dataset.new_classes} == {"Alphabet_3", "Alphabet_4"}
    tasks = data.evaluation_tasks(data.new_clients(dataset, options, 0), options, 0)
    assert tasks.support.x.shape == (100, 6, 1, 28, 28)


def test_missing_omniglot_says_where_to_put_it(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.folder is unset; set data\.folder"):
        data.load(OMNIGLOT, 0)
    with pytest.raises(ValueError, match=r"neither images_background nor images_background\.zip.*brendenlake/omniglot"):
        omniglot(tmp_path)
    (tmp_path / "images_background.zip").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"not a whole zip file.*download it again"):
        omniglot(tmp_path)
    empty = tmp_path / "empty"
    (empty / "images_background").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds 0 drawings; expected images_background/ALPHABET"):
        omniglot(empty)
    broken = tmp_path / "broken" / "images_background" / "A" / "c"
    broken.mkdir(parents=True)
    (broken / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(ValueError, match=r"A/c/x\.png is not a readable image"):
        omniglot(tmp_path / "broken")


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes_per_client": 30}, r"classes_per_client=30 exceeds the 28 training classes.*at most 28"),
        ({"queries": 100}, r"has \d+ examples at one client, a task takes 105 .*lower these"),
        ({"hessian_shots": 200, "examples": "shared"}, r"a task takes 200 .*hessian_shots=200"),
        ({"clients": 80, "classes_per_client": 20}, r"has \d+ examples at one client, a task takes 20"),
        ({"new_fraction": 0.04}, r"28 training|40 training classes and 0 new ones.*change new_fraction=0\.04"),
        ({"ways": 13, "classes_per_client": 13, "queries": 5}, r"keeps 12 classes for new clients, fewer than ways=13"),
    ],
)
def test_impossible_splits_say_the_numbers_and_a_remedy(changes: dict[str, object], message: str) -> None:
    options = DataOptions.model_validate(changes)
    with pytest.raises(ValueError, match=message):
        dataset = data.load(options, 0)
        data.split_clients(dataset, options, 0)
        data.new_clients(dataset, options, 0)
