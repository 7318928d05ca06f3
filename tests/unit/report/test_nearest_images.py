"""Copies of training images are found and shown first, with distances that mean something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ali_dist.report.image_grids import save_neighbors
from ali_dist.report.nearest_images import NEIGHBORS, ROWS, ReducedImages, draw_nearest, reduce_images
from ali_dist.training.run_galleries import choose_blocks


def noise(count: int, seed: int, side: int = 8) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))


def reduce_all(train: Tensor, piece: int = 700) -> ReducedImages:
    return ReducedImages(iter([lambda part=part: part for part in train.split(piece)]), len(train))


def test_nearest_are_those_that_a_plain_search_finds() -> None:
    """Across the pieces that images are read in, and those that are compared at once."""
    train, queries = noise(1500, 0), noise(7, 1)
    distances, places = reduce_all(train).nearest(queries, 3)
    plain = torch.cdist(reduce_images(queries), reduce_images(train).half().float()) / 8
    expected, expected_places = plain.topk(3, dim=1, largest=False)
    assert torch.equal(places, expected_places)
    assert torch.allclose(distances, expected, atol=1e-4)


def test_a_distance_is_the_rms_difference_of_pixels_at_the_reduced_size() -> None:
    train = torch.zeros(1, 3, 64, 64)
    distances, _ = reduce_all(train).nearest(torch.full((1, 3, 64, 64), 0.25), 5)
    assert distances.tolist() == [[0.25]]
    assert reduce_images(train).shape == (1, 3 * 16 * 16)
    checkers = torch.zeros(1, 3, 64, 64)
    checkers[..., ::2, ::2] = checkers[..., 1::2, 1::2] = 1.0
    shifted = 1 - checkers
    assert reduce_all(checkers).nearest(shifted, 1)[0].item() < 1e-3, "a shift by less than a reduced pixel"


def test_a_copy_comes_first_and_its_original_is_beside_it(tmp_path: Path) -> None:
    train, holdout = noise(300, 0), noise(40, 1)
    x_tilde = noise(60, 2)
    x_tilde[33] = train[123]
    loaded: list[int] = []

    def load(places: Tensor) -> Tensor:
        loaded.extend(places.tolist())
        return train[places]

    gallery, medians = draw_nearest(x_tilde, holdout, reduce_all(train), load, compared=300, total=900)
    assert gallery.x_tilde.shape == (ROWS, 1, 8, 8)
    assert gallery.neighbors.shape == (ROWS, NEIGHBORS, 1, 8, 8)
    assert torch.equal(gallery.x_tilde[0], train[123])
    assert torch.equal(gallery.neighbors[0, 0], train[123])
    assert loaded == sorted(set(loaded)), "each is read once, in ascending order"
    assert medians.holdout == pytest.approx(medians.samples, rel=0.05), "noise is as far as noise"
    assert set(medians.to_record()) == {"samples", "holdout"}
    assert "of the nearest of 300 of the 900 training images" in f"of the {gallery.text.partition('to the ')[2]}"
    gallery.save_picture(tmp_path / "images" / "nearest.png")
    with Image.open(tmp_path / "images" / "nearest.png") as image:
        assert image.width < 800


def test_without_a_holdout_split_and_with_a_single_training_image() -> None:
    train = noise(1, 0)
    gallery, medians = draw_nearest(noise(3, 1), None, reduce_all(train), lambda p: train[p], compared=1, total=1)
    assert gallery.neighbors.shape == (3, 1, 1, 8, 8)
    assert medians.to_record().keys() == {"samples"}
    assert "holdout" not in gallery.text
    assert "nearest of 1 training images" in gallery.text


def test_images_without_neighbors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have neighbors"):
        save_neighbors(tmp_path / "n.png", noise(2, 0), noise(1, 0)[:, None], "")


@pytest.mark.parametrize(("total", "count"), [(10, 10), (10, 40), (1000, 130), (1013, 1000), (60_000, 20_000)])
def test_blocks_are_from_everywhere_and_always_the_same(total: int, count: int) -> None:
    ids = choose_blocks(total, count, 25)
    assert (ids == choose_blocks(total, count, 25)).all()
    assert len(set(ids.tolist())) == len(ids)
    assert (ids[1:] > ids[:-1]).all()
    assert ids[0] >= 0
    assert ids[-1] < total
    assert min(total, count) - 25 < len(ids) <= count + 25
    if count < total / 2:
        assert len(set((ids // (total / 4)).astype(int).tolist())) == 4, "every quarter"
