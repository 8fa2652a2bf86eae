"""Knows how to render a many-class character set from the fonts matplotlib ships; knows nothing of clients or tasks."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageFont
from torch import Tensor

from fl_core.images import Images
from fl_core.seeds import generator

SIDE = 28  # pixels of an example, as in Omniglot experiments
_BASE = 64  # pixels of the undistorted rendering
_INK = 50  # longest side of the ink in it
_TWINS = 0.93  # correlation of two undistorted glyphs above which they count as the same shape

# Inclusive code point ranges. Marks that cannot stand alone are left out; look-alikes are dropped by `_distinct`.
ALPHABETS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x41, 0x5A), (0x61, 0x7A)),
    "greek": ((0x391, 0x3A1), (0x3A3, 0x3A9), (0x3B1, 0x3C9)),
    "cyrillic": ((0x410, 0x44F),),
    "armenian": ((0x531, 0x556), (0x561, 0x586)),
    "georgian": ((0x10D0, 0x10F6),),
    "hebrew": ((0x5D0, 0x5EA),),
    "arabic": ((0x627, 0x63A), (0x641, 0x64A)),
    "nko": ((0x7CA, 0x7EA),),
    "tifinagh": ((0x2D30, 0x2D65),),
    "ogham": ((0x1681, 0x169A),),
    "lao": ((0xE81, 0xEAE),),
    "lisu": ((0xA4D0, 0xA4F7),),
    "old-italic": ((0x10300, 0x1031E),),
    "canadian-vowels": ((0x1401, 0x1450),),
    "canadian-consonants": ((0x1450, 0x14D0),),
    "fraktur": ((0x1D504, 0x1D537),),
    "script": ((0x1D49C, 0x1D4CF),),
    "double-struck": ((0x1D538, 0x1D56B),),
    "phonetic": ((0x250, 0x2A8),),
}
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol"),
)
_LATIN_FONTS = ("cmr10", "cmss10", "cmtt10", "cmti10", "cmb10")  # their other positions are not Unicode


@lru_cache(maxsize=2)
def glyphs(seed: int, per_class: int) -> Images:
    """Render ``per_class`` distorted examples of every distinct character of the alphabets.

    Each example takes one of the fonts that have the character, a random stroke weight, a smooth random warp and a
    random affine map (rotation up to 12 degrees, shear, aspect, size, place). Shapes that two alphabets share, such as
    Latin A, Greek Alpha and Cyrillic A, appear once, so no training class returns as a new class.

    Args:
        seed: fixes every random choice; the same seed gives the same images in every process.
        per_class: examples of each character.

    Returns:
        28x28 images, ink 1, one group per alphabet.
    """
    bases, owners, names, groups = _catalogue()
    rng = generator(seed, "glyphs", per_class)
    first = torch.searchsorted(owners, torch.arange(len(names)))
    styles = torch.bincount(owners, minlength=len(names))
    labels = torch.arange(len(names)).repeat_interleave(per_class)
    choice = first[labels] + (torch.rand(len(labels), generator=rng) * styles[labels]).long()
    blocks = [_distort(bases[rows], rng) for rows in torch.split(choice, 512)]
    return Images(torch.cat(blocks), labels, names, groups)


def _distort(base: Float[Tensor, "n 1 row column"], rng: torch.Generator) -> Float[Tensor, "n 1 28 28"]:
    count = len(base)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=rng)

    # Stroke weight: a blurred glyph cut at a low level is bold, at a high level thin.
    level = uniform(0.25, 0.6, 1, 1, 1)
    base = torch.sigmoid((F.avg_pool2d(base, 5, 1, 2) - level) * 12.0) - torch.sigmoid(-level * 12.0)
    angle, shear = uniform(-0.21, 0.21), uniform(-0.2, 0.2)
    wide, high = uniform(0.9, 1.3), uniform(0.9, 1.3)  # above 1 the glyph shrinks: these map output to input
    cos, sin = angle.cos(), angle.sin()
    affine = torch.stack(
        [
            torch.stack([wide * cos, wide * (shear * cos - sin), uniform(-0.1, 0.1)], -1),
            torch.stack([high * sin, high * (shear * sin + cos), uniform(-0.1, 0.1)], -1),
        ],
        1,
    )
    grid = F.affine_grid(affine, [count, 1, 2 * SIDE, 2 * SIDE], align_corners=False)
    warp = torch.randn(count, 2, 4, 4, generator=rng) * 0.05
    grid = grid + F.interpolate(warp, size=2 * SIDE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    fine = F.grid_sample(base, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(fine, 2).clamp(0.0, 1.0)


@lru_cache(maxsize=1)
def _catalogue() -> tuple[Tensor, Tensor, tuple[str, ...], tuple[str, ...]]:
    """Render every character in every font once: (bases, class of each base in ascending order, names, groups)."""
    import matplotlib  # imported late: only this data set needs its fonts

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = {name: ImageFont.truetype(folder / f"{name}.ttf", 72) for name in (*_FONTS, *_LATIN_FONTS)}
    blanks = {name: _ink(font, chr(0x10FFFD)) for name, font in fonts.items()}
    styles: list[list[np.ndarray]] = []
    names: list[str] = []
    groups: list[str] = []
    for alphabet, ranges in ALPHABETS.items():
        usable = (*_FONTS, *_LATIN_FONTS) if alphabet == "latin" else _FONTS
        for code in (code for low, high in ranges for code in range(low, high + 1)):
            inks = [(_ink(fonts[name], chr(code)), blanks[name]) for name in usable]
            drawn = [ink for ink, blank in inks if ink.size > 1 and not np.array_equal(ink, blank)]
            if drawn:
                styles.append([_centred(ink) for ink in drawn])
                names.append(f"{alphabet} U+{code:04X}")
                groups.append(alphabet)
    kept = _distinct(np.stack([images[0] for images in styles]))
    bases = np.stack([image for index in kept for image in styles[index]])
    owners = np.repeat(np.arange(len(kept)), [len(styles[index]) for index in kept])
    return (
        torch.from_numpy(bases).unsqueeze(1),
        torch.from_numpy(owners),
        tuple(names[index] for index in kept),
        tuple(groups[index] for index in kept),
    )


def _ink(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """Render one character, cropped to its ink; a font without it draws its box for missing characters."""
    mask = font.getmask(character, mode="L")
    pixels = np.asarray(mask, dtype=np.uint8).reshape(mask.size[1], mask.size[0])
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else pixels[:0]


def _centred(ink: np.ndarray) -> np.ndarray:
    scale = _INK / max(ink.shape)
    size = (max(3, round(ink.shape[1] * scale)), max(3, round(ink.shape[0] * scale)))
    small = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BILINEAR), dtype=np.float32) / 255.0
    canvas = np.zeros((_BASE, _BASE), np.float32)
    top, left = (_BASE - size[1]) // 2, (_BASE - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = small
    return canvas


def _distinct(glyphs_: Float[np.ndarray, "n row column"]) -> list[int]:
    """Keep the first of every set of look-alikes (c and C, Latin o and Greek omicron): blurred ink correlates."""
    blurred = F.avg_pool2d(torch.from_numpy(glyphs_).unsqueeze(1), 4).flatten(1)
    centred = F.normalize(blurred - blurred.mean(1, keepdim=True))
    alike = (centred @ centred.T > _TWINS).numpy()
    kept: list[int] = []
    for index in range(len(alike)):
        if not alike[index, kept].any():
            kept.append(index)
    return kept
