"""Knows data sets with a folder of images per class, as CIFAR-FS and mini-ImageNet come; knows no clients or tasks."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fl_core.images import Images

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
PARTS = ("train", "test", "val")


@lru_cache(maxsize=2)
def folders(folder: Path, side: int, colour: bool, per_class: int) -> Images:
    """Load the first ``per_class`` images of every class, scaled to ``side`` x ``side``, as bytes.

    Classes lie in ``folder`` itself, or in its ``data`` or ``images``. Which are for training and which for new clients
    (``test``; classes of ``val`` are left out) is told by folders ``train`` and ``test`` that hold the classes, or by
    files train.txt and test.txt of class names, or train.csv and test.csv with a column ``label``, in ``folder`` or in
    ``splits`` or a folder of it. Without any of these the caller chooses.

    Args:
        folder: where the data set lies.
        side: pixels.
        colour: keep three channels; else grey.
        per_class: images, in the order of their names.

    Raises:
        ValueError: the folder, a class, an image or the other half of a split is missing or cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"data.folder = {folder} is no folder; unpack the data set there, or set data.folder")
    split = _split(folder)
    chosen = split["train"] + split["test"] if split else _classes(folder)
    if len(chosen) < 2:
        raise ValueError(f"{folder} holds {len(chosen)} classes; expected {folder}/CLASS/IMAGE with a folder per class")
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for label, path in enumerate(chosen):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)[:per_class]
        if not files:
            raise ValueError(f"{path} holds 0 images; remove the folder, or put images ({', '.join(SUFFIXES)}) there")
        pixels += [_read(file, side, colour) for file in files]
        labels += [label] * len(files)
    names = tuple(path.name for path in chosen)
    held_out = frozenset(path.name for path in split["test"]) if split else frozenset()
    return Images(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), names, names, held_out)


def _split(folder: Path) -> dict[str, list[Path]]:
    """Find who is for training and who for new clients: paths of classes by part; empty without a split."""
    if (folder / "train").is_dir():
        found = {part: _classes(folder / part) for part in PARTS if (folder / part).is_dir()}
        return _whole(found, folder / "train", folder / "test")
    places = [folder, folder / "splits", *sorted((folder / "splits").glob("*/"))]
    for place in places:
        for suffix in (".txt", ".csv"):
            if (place / f"train{suffix}").is_file():
                listed = {part: place / f"{part}{suffix}" for part in PARTS}
                known = {path.name: path for path in _classes(folder)}
                found = {part: _listed(file, known) for part, file in listed.items() if file.is_file()}
                return _whole(found, listed["train"], listed["test"])
    return {}


def _whole(found: dict[str, list[Path]], train: Path, test: Path) -> dict[str, list[Path]]:
    if "test" not in found:
        raise ValueError(f"{train} is there and {test} is not; add it, or remove {train.name} to let the seed choose")
    both = {path.name for path in found["train"]} & {path.name for path in found["test"]}
    if both:
        raise ValueError(
            f"{len(both)} classes stand in {train} and in {test}, {min(both)} for one; new clients must bring classes "
            "that nobody trained on: list each class once"
        )
    return found


def _classes(folder: Path) -> list[Path]:
    """List the folders that hold images: those of ``folder``, or of its ``data`` or ``images``."""
    for place in (folder, folder / "data", folder / "images"):
        inside = sorted(path for path in place.glob("*/") if path.is_dir() and not path.name.startswith("."))
        found = [path for path in inside if any(file.suffix.lower() in SUFFIXES for file in path.iterdir())]
        if len(found) > 1:
            return found
    return []


def _listed(file: Path, known: dict[str, Path]) -> list[Path]:
    """Read the classes of a split file, in the order in which they first appear."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if file.suffix == ".csv":
        header, *rows = (line.split(",") for line in lines) if lines else ([],)
        if "label" not in header:
            raise ValueError(f"{file} has no column 'label' in its first line; add one, or list class names in a .txt")
        lines = [row[header.index("label")].strip() for row in rows]
    names = list(dict.fromkeys(lines))
    absent = [name for name in names if name not in known]
    if absent or not names:
        told = f"names {len(absent)} classes without a folder, {absent[0]!r} for one" if absent else "names no class"
        raise ValueError(f"{file} {told}; each class needs a folder of its images beside it, in data or in images")
    return [known[name] for name in names]


def _read(path: Path, side: int, colour: bool) -> np.ndarray:
    """Read one image as bytes, shape (channel, side, side)."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB" if colour else "L")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a readable image ({error}); remove it, or unpack the data again") from error
    if small.size != (side, side):
        small = small.resize((side, side), Image.Resampling.BILINEAR)  # averages where it shrinks
    pixels = np.asarray(small, np.uint8).reshape(side, side, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
