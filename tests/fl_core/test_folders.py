"""Folders of images per class: layouts as CIFAR-FS and mini-ImageNet come, sizes, colours, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fl_core import data
from fl_core.folders import folders
from fl_core.maml import local_updates
from fl_core.models import build
from fl_core.options import DataOptions, ModelOptions
from fl_core.rounds import client_tasks
from fl_core.seeds import generator

CLASSES = ["ant", "bee", "cat", "dog", "elk", "fox"]


def fill(place: Path, classes=CLASSES, count=4, size=(12, 12), suffix=".png") -> None:
    """Write ``count`` images per class; the first channel of image k of class c is 20 c + k throughout."""
    for name in classes:
        (place / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.zeros((*size[::-1], 3), np.uint8)
            pixels[:] = (20 * CLASSES.index(name) + k, 100, 200)
            Image.fromarray(pixels).save(place / name / f"{k:03}{suffix}")


def split_files(place: Path, form: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for part, names in {"train": CLASSES[:3], "val": CLASSES[3:4], "test": CLASSES[4:]}.items():
        rows = "\n".join(names) if form == "txt" else "filename,label\n" + "\n".join(f"{n}7.jpg,{n}" for n in names * 2)
        (place / f"{part}.{form}").write_text(rows + "\n")


def lay_out(folder: Path, layout: str) -> None:
    if layout == "cifar-fs":
        fill(folder / "data")
        split_files(folder / "splits" / "bertinetto", "txt")
    elif layout == "mini-imagenet":
        fill(folder / "images", suffix=".jpg")
        split_files(folder, "csv")
    else:
        for part, names in {"train": CLASSES[:3], "val": CLASSES[3:4], "test": CLASSES[4:]}.items():
            fill(folder / part, names)


@pytest.mark.parametrize("layout", ["cifar-fs", "mini-imagenet", "a folder per part"])
def test_each_layout_gives_training_classes_and_new_ones_and_leaves_validation_out(tmp_path, layout):
    lay_out(tmp_path, layout)
    found = folders(tmp_path, 8, True, 3)
    assert found.names == ("ant", "bee", "cat", "elk", "fox") and found.held_out == {"elk", "fox"}
    assert found.images.shape == (15, 3, 8, 8) and found.images.dtype == torch.uint8
    expected = [20 * CLASSES.index(found.names[label]) + k % 3 for k, label in enumerate(found.labels)]
    off = (found.images[:, 0].float().mean((1, 2)) - torch.tensor(expected)).abs()
    assert float(off.max()) <= (0.0 if layout != "mini-imagenet" else 4.0)  # JPEG rounds
    dataset = data.load(DataOptions(name="folders", folder=tmp_path, image_size=8), 1)
    assert [dataset.categories[i].name for i in dataset.train_classes] == ["ant", "bee", "cat"]
    assert [dataset.categories[i].name for i in dataset.new_classes] == ["elk", "fox"]  # no rotations


def test_without_a_split_the_seed_chooses(tmp_path):
    fill(tmp_path)
    options = DataOptions(name="folders", folder=tmp_path, new_fraction=0.34)
    chosen = {data.load(options, seed).new_classes for seed in range(6)}
    assert all(len(new) == 2 for new in chosen) and len(chosen) > 1


@pytest.mark.parametrize(("colour", "model"), [(True, "cnn"), (False, "mlp")])
def test_images_of_any_size_and_colour_train_a_network(tmp_path, colour, model):
    fill(tmp_path, count=6, size=(20, 14))
    options = DataOptions(
        name="folders", folder=tmp_path, image_size=21, colour=colour, ways=2, shots=2, queries=2, hessian_shots=2,
        clients=2, classes_per_client=2, new_clients=1, examples_per_class=6,
    )  # fmt: skip
    dataset = data.load(options, 1)
    assert dataset.image_shape == (3 if colour else 1, 21, 21)
    clients = data.split_clients(dataset, options, 1)
    task = client_tasks(clients[0], options, 1, 1, 0, 0)
    assert task.support.x.dtype == torch.float32 and 0.0 < float(task.support.x.max()) <= 1.0
    network = build(ModelOptions(name=model, hidden=(4,), filters=2), dataset.image_shape, 2)
    update = local_updates(network, network.init(generator(1, "x")), data.stack([task]), 0.1, 0.1, "exact")
    assert bool(update.isfinite().all()) and float(update.norm()) > 0.0


def broken(folder: Path, how: str) -> None:
    if how != "absent":
        fill(folder)
    if how == "no image":
        (folder / "ant" / "000.png").write_bytes(b"no image at all")
    elif how == "half a split":
        (folder / "train.txt").write_text("ant\nbee\n")
    elif how == "unknown class":
        (folder / "train.txt").write_text("ant\nyak\n")
        (folder / "test.txt").write_text("bee\n")
    elif how == "both sides":
        (folder / "train.txt").write_text("ant\nbee\n")
        (folder / "test.txt").write_text("bee\ncat\n")
    elif how == "no label":
        (folder / "train.csv").write_text("filename,class\nant1.jpg,ant\n")
        (folder / "test.csv").write_text("filename,label\nbee1.jpg,bee\n")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("absent", r"is no folder; unpack the data set there"),
        ("no image", r"000\.png is not a readable image .*; remove it"),
        ("half a split", r"test\.txt is not; add it"),
        ("unknown class", r"1 classes without a folder, 'yak' for one"),
        ("both sides", r"1 classes stand in .*, bee for one"),
        ("no label", r"no column 'label'"),
    ],
)
def test_what_is_wrong_is_told_with_a_remedy(tmp_path, how, message):
    broken(tmp_path / "set", how)
    with pytest.raises(ValueError, match=message):
        folders(tmp_path / "set", 8, True, 4)


def test_an_unset_folder_and_an_empty_one_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"data\.folder is unset; .* one folder of images per class"):
        data.load(DataOptions(name="folders"), 1)
    with pytest.raises(ValueError, match="holds 0 classes; expected"):
        folders(tmp_path, 8, True, 4)
