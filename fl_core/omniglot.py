"""Knows the layout of the original Omniglot download, as folders or zip files; knows nothing of clients or tasks."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from fl_core.images import Images

SIDE = 28  # pixels, as in Vinyals et al. (arXiv 1606.04080) and Finn et al. (arXiv 1703.03400)
PARTS = ("images_background", "images_evaluation")


@lru_cache(maxsize=2)
def omniglot(folder: Path) -> Images:
    """Load Omniglot (Lake, Salakhutdinov, Tenenbaum, Science 350, 2015): 28x28, ink 1.

    Args:
        folder: holds images_background and images_evaluation, each a folder or the original zip file.

    Returns:
        One group per alphabet; the alphabets of images_evaluation are held out for new clients.

    Raises:
        ValueError: a part is missing, holds no drawing, or holds a file that is no image.
    """
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    names: dict[str, int] = {}
    groups: list[str] = []
    held_out: set[str] = set()
    for part in PARTS:
        before = len(pixels)
        for alphabet, character, drawing, data in _drawings(folder, part):
            name = f"{alphabet}/{character}"
            if name not in names:
                names[name] = len(names)
                groups.append(alphabet)
            labels.append(names[name])
            pixels.append(_decode(data, f"{folder / part}/{name}/{drawing}"))
            if part == PARTS[1]:
                held_out.add(alphabet)
        if len(pixels) == before:
            raise ValueError(f"{folder / part} holds 0 drawings; expected {part}/ALPHABET/CHARACTER/DRAWING.png")
    images = torch.from_numpy(np.stack(pixels)).unsqueeze(1)
    return Images(images, torch.tensor(labels), tuple(names), tuple(groups), frozenset(held_out))


def _drawings(folder: Path, part: str) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (alphabet, character, file name, file content) in sorted order, so that both layouts give the same set."""
    if (folder / part).is_dir():
        for path in sorted((folder / part).glob("*/*/*.png")):
            yield path.parts[-3], path.parts[-2], path.name, path.read_bytes()
    elif (folder / f"{part}.zip").is_file():
        try:
            with zipfile.ZipFile(folder / f"{part}.zip") as archive:
                members = sorted(PurePosixPath(name) for name in archive.namelist())
                for member in members:
                    # Archives made on macOS carry a second tree of metadata under another root.
                    if len(member.parts) == 4 and member.match(f"{part}/*/*/*.png"):
                        yield member.parts[-3], member.parts[-2], member.name, archive.read(str(member))
        except zipfile.BadZipFile as error:
            raise ValueError(f"{folder / part}.zip is not a whole zip file ({error}); download it again") from error
    else:
        raise ValueError(
            f"Omniglot is not in {folder}: neither {part} nor {part}.zip is there; put images_background.zip and "
            "images_evaluation.zip (the python folder of github.com/brendenlake/omniglot) there, or set data.folder"
        )


def _decode(data: bytes, name: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as drawing:
            small = drawing.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} is not a readable image ({error}); unpack or download Omniglot again") from error
    return 1.0 - np.asarray(small, dtype=np.float32) / 255.0
