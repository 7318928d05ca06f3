"""Images as PNG files: grids of samples, reconstructions beside their originals, interpolations, conditions.

Images are float tensors in [0, 1], [C, H, W] with 1 or 3 channels. Small ones are enlarged to cells of about 64
pixels; values are never stretched, so that a washed-out decoder looks washed out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ali_dist.names import printable_name

CELL = 64  # pixels of a side that small images are enlarged to, about
PAPER = 245  # gray level (0 to 255) of background and gutters
INK = 60  # gray level of text
TEXT, TITLE = 12, 18  # heights of text in pixels: of labels, and above a grid
_WIDTH_OF_LETTERS = 0.52  # on average, as a share of their height
THIN, GAP, WIDE = 2, 6, 24  # pixels: inside a pair, between cells or pairs, beside the ends of an interpolation

Pixels = NDArray[np.uint8]


def save_samples(path: Path, images: Tensor, columns: int = 10) -> None:
    """Write `images` [N, C, H, W], N >= 1, row by row."""
    cells = _to_cells(images)
    _save_grid(path, _to_rows(cells, columns), [GAP] * (columns - 1))


def save_reconstructions(path: Path, originals: Tensor, reconstructions: Tensor, columns: int = 5) -> None:
    """Write pairs of original (left) and reconstruction (right), both [N, C, H, W]; `columns` counts pairs."""
    if originals.shape != reconstructions.shape:
        raise ValueError(
            f"Originals and reconstructions must have one shape, not {tuple(originals.shape)} and "
            f"{tuple(reconstructions.shape)}."
        )
    pairs = zip(_to_cells(originals), _to_cells(reconstructions), strict=True)
    cells = [cell for pair in pairs for cell in pair]
    _save_grid(path, _to_rows(cells, 2 * columns), ([THIN, 2 * GAP] * columns)[:-1])


def save_interpolations(path: Path, rows: Tensor, ends: Tensor) -> None:
    """Write one interpolation per row, flanked by the two originals.

    Args:
        path: Where the PNG goes.
        rows: Decoded steps [R, S, C, H, W], from the first end to the second.
        ends: The originals [R, 2, C, H, W].
    """
    if ends.shape[:2] != (len(rows), 2):
        raise ValueError(
            f"Each interpolation must have two ends, but {len(rows)} rows are given ends of shape {tuple(ends.shape)}."
        )
    steps = rows.shape[1]
    lines = [[first, *_to_cells(row), last] for row, (first, last) in zip(rows, map(_to_cells, ends), strict=True)]
    _save_grid(path, lines, [WIDE, *[THIN] * (steps - 1), WIDE])


def save_conditions(path: Path, rows: Tensor, labels: Sequence[str]) -> None:
    """Write the same latents, decoded under one condition after another.

    Args:
        path: Where the PNG goes.
        rows: Decoder samples [R, S, C, H, W]; the same z along a row, the same condition down a column.
        labels: What the S columns are called; written above them, sideways where one is wider than its column.
    """
    if rows.shape[1] != len(labels):
        raise ValueError(f"Each column must have a label, but {rows.shape[1]} columns are given {len(labels)} labels.")
    grid = _lay_out([_to_cells(row) for row in rows], [GAP] * (len(labels) - 1))
    width = (grid.shape[1] - GAP) // len(labels) - GAP
    texts = [_draw_text(label) for label in labels]
    if max(text.shape[1] for text in texts) > width:
        texts = [np.rot90(text) for text in texts]
    header = np.full((GAP + max(text.shape[0] for text in texts), grid.shape[1]), PAPER, np.uint8)
    for column, text in enumerate(texts):
        left = GAP + column * (width + GAP) + max(0, (width - text.shape[1]) // 2)
        text = text[:, : width + GAP]  # a narrow column of a small image may still be less than a line of text
        header[-text.shape[0] :, left : left + text.shape[1]] = text[:, : header.shape[1] - left]
    _write_png(path, _above([header], grid))


def save_neighbors(path: Path, images: Tensor, neighbors: Tensor, text: str, columns: int = 2) -> None:
    """Write images, each with its neighbors behind it.

    Args:
        path: Where the PNG goes.
        images: Images [N, C, H, W].
        neighbors: The K neighbors of each [N, K, C, H, W].
        text: What stands above the grid, broken into lines of its width.
        columns: Images in a row.
    """
    if len(neighbors) != len(images) or not neighbors.shape[1]:
        raise ValueError(
            f"Each image must have neighbors, but {len(images)} images are given neighbors of shape "
            f"{tuple(neighbors.shape)}."
        )
    count = neighbors.shape[1]
    cells = [
        cell for image, row in zip(images, neighbors, strict=True) for cell in _to_cells(torch.cat([image[None], row]))
    ]
    columns = min(columns, len(images))
    gaps = ([GAP, *[THIN] * (count - 1), WIDE] * columns)[:-1]
    grid = _lay_out(_to_rows(cells, columns * (1 + count)), gaps)
    lines = [np.full((GAP, grid.shape[1]), PAPER, np.uint8)]
    for words in textwrap.wrap(text, max(10, int(grid.shape[1] / (TITLE * _WIDTH_OF_LETTERS)))):
        line = _draw_text(words, TITLE)
        canvas = np.full((line.shape[0], grid.shape[1]), PAPER, np.uint8)
        shown = line[:, : grid.shape[1] - 2 * GAP]
        canvas[:, GAP : GAP + shown.shape[1]] = shown
        lines.append(canvas)
    _write_png(path, _above(lines, grid))


def save_image(path: Path, image: Tensor) -> None:
    """Write one image [C, H, W], pixel by pixel."""
    _write_png(path, _to_bytes(image[None])[0])


def _to_cells(images: Tensor) -> list[Pixels]:
    """Turn images [N, C, H, W] into enlarged pixels each, gray [h, w] or RGB [h, w, 3]."""
    scale = max(1, round(CELL / max(images.shape[2:])))
    # Enlarged with a smooth kernel, the strokes of an 8 to 16 pixel digit read far better than as blocks.
    return list(_to_bytes(images, scale))


def _to_bytes(images: Tensor, scale: int = 1) -> Pixels:
    """Turn images [N, C, H, W] into pixels, gray [N, H, W] or RGB [N, H, W, 3], each side `scale` times as long."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"Images must be [N, 1 or 3, H, W], not {tuple(images.shape)}.")
    bytes_ = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    if scale > 1:
        size = [scale * side for side in bytes_.shape[2:]]
        bytes_ = F.interpolate(bytes_, size, mode="bicubic", antialias=True)
    pixels: Pixels = (bytes_[:, 0] if images.shape[1] == 1 else bytes_.permute(0, 2, 3, 1)).numpy()
    return pixels


def _draw_text(text: str, size: int = TEXT) -> Pixels:
    """Draw a line of text, dark on paper, [h, w]; every text is equally high, and control characters are escaped."""
    text = printable_name(text)
    font = ImageFont.load_default(size)
    width = max(1, round(font.getlength(text)))
    image = Image.new("L", (width, size + GAP), PAPER)
    ImageDraw.Draw(image).text((0, 0), text, font=font, fill=INK)
    return np.asarray(image)


def _above(lines: Sequence[Pixels], grid: Pixels) -> Pixels:
    """Put gray lines [h, w] of the grid's width above it."""
    header = np.concatenate(lines)
    return np.concatenate([header if grid.ndim == 2 else header[:, :, None].repeat(3, axis=2), grid])


def _to_rows(cells: Sequence[Pixels], columns: int) -> list[list[Pixels]]:
    return [list(cells[start : start + columns]) for start in range(0, len(cells), columns)]


def _save_grid(path: Path, rows: list[list[Pixels]], gaps: list[int]) -> None:
    _write_png(path, _lay_out(rows, gaps))


def _lay_out(rows: list[list[Pixels]], gaps: list[int]) -> Pixels:
    """Lay rows of equal cells on paper; `gaps[i]` is the space after column i. The last row may be short."""
    if not rows or not rows[0]:
        raise ValueError("A grid needs at least one image.")
    height, width, *channels = rows[0][0].shape
    columns = len(rows[0])
    left = [GAP + column * width + sum(gaps[:column]) for column in range(columns)]
    canvas = np.full((GAP + len(rows) * (height + GAP), left[-1] + width + GAP, *channels), PAPER, np.uint8)
    for index, row in enumerate(rows):
        top = GAP + index * (height + GAP)
        for cell, x in zip(row, left, strict=False):
            canvas[top : top + height, x : x + width] = cell
    return canvas


def _write_png(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)
