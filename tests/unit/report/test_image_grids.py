"""Grids show every image, in its place and at its true brightness."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ali_dist.report.image_grids import (
    CELL,
    GAP,
    PAPER,
    THIN,
    WIDE,
    save_conditions,
    save_image,
    save_interpolations,
    save_reconstructions,
    save_samples,
)
from ali_dist.report.mixture_figure import save_mixture_figure


def grays(*values: float) -> torch.Tensor:
    """Uniform images [N, 1, 8, 8]."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def cell(picture: np.ndarray, left: int, row: int = 0) -> set[int]:
    """The gray values inside one cell."""
    top = GAP + row * (CELL + GAP)
    return set(picture[top : top + CELL, left : left + CELL].ravel().tolist())


def test_samples_fill_rows_at_their_true_brightness(tmp_path: Path) -> None:
    """Not stretched to black and white; a short last row leaves paper."""
    path = tmp_path / "images" / "samples.png"
    save_samples(path, grays(0.0, 0.5, 1.0, 0.2, 0.8), columns=3)
    picture = read(path)
    assert picture.shape == (2 * (CELL + GAP) + GAP, 3 * (CELL + GAP) + GAP, 3)
    places = [GAP + i * (CELL + GAP) for i in range(3)]
    assert [cell(picture, x) for x in places] == [{0}, {128}, {255}]
    assert [cell(picture, x, row=1) for x in places] == [{51}, {204}, {PAPER}]
    assert set(picture[:GAP].ravel().tolist()) == {PAPER}


def test_values_outside_the_range_are_clipped_not_wrapped(tmp_path: Path) -> None:
    save_samples(tmp_path / "s.png", grays(-0.2, 1.3), columns=2)
    picture = read(tmp_path / "s.png")
    assert [cell(picture, GAP), cell(picture, GAP + CELL + GAP)] == [{0}, {255}]


def test_colors_and_orientation_are_kept(tmp_path: Path) -> None:
    """Red above blue stays so."""
    image = torch.zeros(1, 3, 64, 64)
    image[0, 0, :32] = 1
    image[0, 2, 32:] = 1
    save_samples(tmp_path / "s.png", image, columns=1)
    picture = read(tmp_path / "s.png")
    assert picture[GAP + 2, GAP + 30].tolist() == [255, 0, 0]
    assert picture[GAP + 61, GAP + 2].tolist() == [0, 0, 255]


@pytest.mark.parametrize(("side", "drawn"), [(8, 64), (16, 64), (28, 56), (32, 64), (64, 64), (128, 128)])
def test_small_images_are_enlarged_and_large_ones_left_alone(tmp_path: Path, side: int, drawn: int) -> None:
    save_samples(tmp_path / "s.png", torch.zeros(1, 1, side, side), columns=1)
    assert read(tmp_path / "s.png").shape[0] == drawn + 2 * GAP


def test_each_reconstruction_stands_right_of_its_original(tmp_path: Path) -> None:
    """And closer to it than to the next pair."""
    save_reconstructions(tmp_path / "r.png", grays(0.0, 0.4), grays(0.2, 0.6), columns=2)
    picture = read(tmp_path / "r.png")
    second = GAP + CELL + THIN
    third = second + CELL + 2 * GAP
    assert [cell(picture, x) for x in (GAP, second, third, third + CELL + THIN)] == [{0}, {51}, {102}, {153}]
    assert THIN < 2 * GAP


def test_images_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    """In a sentence, and before a file is written."""
    path = tmp_path / "refused.png"
    with pytest.raises(ValueError, match=r"one shape, not \(2, 1, 8, 8\) and \(1, 1, 8, 8\)"):
        save_reconstructions(path, grays(0.0, 0.1), grays(0.2))
    rows = grays(0.2, 0.4).view(1, 2, 1, 8, 8)
    with pytest.raises(ValueError, match="must have two ends"):
        save_interpolations(path, rows, grays(0.0).view(1, 1, 1, 8, 8))
    with pytest.raises(ValueError, match="2 columns are given 1 labels"):
        save_conditions(path, rows, ["one"])
    with pytest.raises(ValueError, match=r"must be \[N, 1 or 3, H, W\]"):
        save_samples(path, torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match="at least one image"):
        save_samples(path, torch.zeros(0, 1, 8, 8))
    assert not path.exists()


def test_interpolations_run_between_their_own_ends(tmp_path: Path) -> None:
    rows = grays(0.2, 0.4, 0.6, 0.8).view(2, 2, 1, 8, 8)
    ends = grays(0.0, 1.0, 1.0, 0.0).view(2, 2, 1, 8, 8)
    save_interpolations(tmp_path / "i.png", rows, ends)
    picture = read(tmp_path / "i.png")
    left = [GAP, GAP + CELL + WIDE, GAP + 2 * CELL + WIDE + THIN, GAP + 3 * CELL + 2 * WIDE + THIN]
    assert [cell(picture, x, row=0) for x in left] == [{0}, {51}, {102}, {255}]
    assert [cell(picture, x, row=1) for x in left] == [{255}, {153}, {204}, {0}]


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["a very long label", "b", "c"], ["a\nb", "\udce9", "c"]])
def test_labels_stand_above_their_columns_and_change_no_image(tmp_path: Path, labels: list[str]) -> None:
    rows = torch.linspace(0, 1, 6).view(2, 3, 1, 1, 1).expand(-1, -1, 1, 8, 8)
    save_conditions(tmp_path / "c.png", rows, labels)
    picture = read(tmp_path / "c.png")
    grid = picture[-(2 * (CELL + GAP) + GAP) :]
    for row in range(2):
        for column in range(3):
            top, left = GAP + row * (CELL + GAP), GAP + column * (CELL + GAP)
            values = set(grid[top : top + CELL, left : left + CELL].ravel().tolist())
            assert values == {round(float(rows[row, column, 0, 0, 0]) * 255)}
    header = picture[: len(picture) - len(grid)]
    for column in range(3):
        left = GAP + column * (CELL + GAP)
        assert header[:, left : left + CELL].min() < 150  # ink
    assert len(header) > CELL if "long" in labels[0] else len(header) < CELL


def test_a_single_image_is_written_pixel_by_pixel(tmp_path: Path) -> None:
    image = torch.arange(12.0).view(3, 2, 2) / 255
    save_image(tmp_path / "i.png", image)
    assert read(tmp_path / "i.png").transpose(2, 0, 1).tolist() == torch.arange(12).view(3, 2, 2).tolist()


def test_mixture_figure_is_drawn_without_pyplot(tmp_path: Path) -> None:
    """Drawing must not leave global figures behind, and must work with any number of latent variables."""
    pyplot_before = "matplotlib.pyplot" in sys.modules
    g = torch.Generator().manual_seed(0)
    points = torch.randn(50, 2, generator=g)
    for size in (1, 3):
        save_mixture_figure(
            tmp_path / f"{size}.png",
            means=torch.eye(2),
            std=0.1,
            samples=points,
            x=points,
            x_rec=points * 0.9,
            z=torch.randn(50, size, generator=g),
            y=torch.arange(50) % 2,
        )
        picture = read(tmp_path / f"{size}.png")
        assert picture.shape[1] > 2 * picture.shape[0]
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_before
