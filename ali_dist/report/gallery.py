"""Grids of images as PNG files: samples, reconstructions beside their originals, interpolations.

Images are float tensors in [0, 1], [C, H, W] with 1 or 3 channels. Small ones are enlarged to cells of about 64
pixels; values are never stretched, so that a washed-out decoder looks washed out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

CELL = 64
PAPER = 245  # grey level (0 to 255) of background and gutters
THIN, GAP, WIDE = 2, 6, 24  # pixels: inside a pair, between cells or pairs, beside the ends of an interpolation

Pixels = NDArray[np.uint8]


def save_samples(path: Path, images: Tensor, columns: int = 10) -> None:
    """Write `images` [N, C, H, W], N >= 1, row by row."""
    cells = _cells(images)
    _save(path, _rows(cells, columns), [GAP] * (columns - 1))


def save_reconstructions(path: Path, originals: Tensor, reconstructions: Tensor, columns: int = 5) -> None:
    """Write pairs of original (left) and reconstruction (right), both [N, C, H, W]; `columns` counts pairs."""
    assert originals.shape == reconstructions.shape, f"{tuple(originals.shape)} with {tuple(reconstructions.shape)}"
    pairs = zip(_cells(originals), _cells(reconstructions), strict=True)
    cells = [cell for pair in pairs for cell in pair]
    _save(path, _rows(cells, 2 * columns), ([THIN, 2 * GAP] * columns)[:-1])


def save_interpolations(path: Path, rows: Tensor, ends: Tensor) -> None:
    """Write one interpolation per row, flanked by the two originals.

    Args:
        path: of the PNG.
        rows: decoded steps [R, S, C, H, W], from the first end to the second.
        ends: the originals [R, 2, C, H, W].
    """
    assert rows.shape[0] == ends.shape[0] and ends.shape[1] == 2, f"{tuple(rows.shape)} with {tuple(ends.shape)}"
    steps = rows.shape[1]
    lines = [[first, *_cells(row), last] for row, (first, last) in zip(rows, map(_cells, ends), strict=True)]
    _save(path, lines, [WIDE, *[THIN] * (steps - 1), WIDE])


def _cells(images: Tensor) -> list[Pixels]:
    """Images [N, C, H, W] as enlarged RGB pixels [h, w, 3] each."""
    assert images.ndim == 4 and images.shape[1] in (1, 3), f"images must be [N, 1 or 3, H, W], not {images.shape}"
    bytes_ = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    rgb = bytes_.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    height, width = rgb.shape[1:3]
    scale = max(1, round(CELL / max(height, width)))
    # Enlarged with a smooth kernel, the strokes of an 8 to 16 pixel digit read far better than as blocks.
    return [
        np.asarray(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC))
        for image in rgb
    ]


def _rows(cells: Sequence[Pixels], columns: int) -> list[list[Pixels]]:
    return [list(cells[start : start + columns]) for start in range(0, len(cells), columns)]


def _save(path: Path, rows: list[list[Pixels]], gaps: list[int]) -> None:
    """Lay `rows` of equal cells out on paper; `gaps[i]` is the space after column i. The last row may be short."""
    assert rows and rows[0], "a grid needs at least one image"
    height, width = rows[0][0].shape[:2]
    columns = len(rows[0])
    left = [GAP + column * width + sum(gaps[:column]) for column in range(columns)]
    canvas = np.full((GAP + len(rows) * (height + GAP), left[-1] + width + GAP, 3), PAPER, np.uint8)
    for index, row in enumerate(rows):
        top = GAP + index * (height + GAP)
        for cell, x in zip(row, left, strict=False):
            canvas[top : top + height, x : x + width] = cell
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(path, compress_level=1)
