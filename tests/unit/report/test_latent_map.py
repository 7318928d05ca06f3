"""The map of the latent space shows the plane in which codes differ most, as it is, for every kind of label."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.model.data_spec import DataSpec
from ali_dist.model.inference_model import InferenceModel
from ali_dist.report.latent_map import LatentMap, draw_latent_map, project


def test_the_plane_is_that_of_the_two_largest_variances() -> None:
    draws = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    mu = draws * torch.tensor([0.1, 3.0, 1.0, 0.1]) + torch.tensor([0.0, 5.0, 0.0, 0.0])
    points, shares = project(mu)
    assert points[:, 0].abs().sub(mu[:, 1].abs()).abs().max() < 0.2
    assert points[:, 1].abs().sub(mu[:, 2].abs()).abs().max() < 0.6
    assert float(points[:, 0].mean().abs()) == pytest.approx(5, abs=0.5), "the origin stays the prior's mean"
    assert shares == pytest.approx((0.9, 0.1), abs=0.02)


def test_maps_of_one_encoder_that_moves_a_little_are_not_mirrored() -> None:
    draws = torch.Generator().manual_seed(1)
    mu = torch.randn(300, 3, generator=draws) * torch.tensor([3.0, 1.5, 0.2])
    first, _ = project(mu)
    second, _ = project(mu + 0.05 * torch.randn(mu.shape, generator=draws))
    assert float((first * second).sum(dim=0).min()) > 0


def test_a_single_latent_variable_is_a_line() -> None:
    points, shares = project(torch.tensor([[1.0], [2.0], [4.0]]))
    assert sorted(points[:, 0].abs().tolist()) == pytest.approx([1.0, 2.0, 4.0])
    assert points[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert shares == pytest.approx((1.0, 0.0))


def test_codes_that_are_all_the_same_are_drawn(tmp_path: Path) -> None:
    points, shares = project(torch.zeros(5, 3))
    assert shares == (0.0, 0.0)
    LatentMap(points, shares, None, DataSpec((1, 4, 4))).save_picture(tmp_path / "map.png")


MANY = tuple(f"class {k}" for k in range(30))


@pytest.mark.parametrize(
    ("y", "spec"),
    [
        (None, DataSpec((1, 4, 4))),
        (torch.arange(40) % 3, DataSpec((1, 4, 4), classes=("a$b", "x\x1b[31m", "very long name of some class"))),
        (torch.arange(40) % 30, DataSpec((1, 4, 4), classes=MANY)),
        (torch.randint(0, 2, (40, 2)).float(), DataSpec((1, 4, 4), attributes=("hat_on$", "tie"))),
    ],
    ids=["density", "classes", "many classes", "attributes"],
)
def test_every_kind_of_label_is_drawn(y: Tensor | None, spec: DataSpec, tmp_path: Path) -> None:
    path = tmp_path / "images" / "map.png"
    LatentMap(torch.randn(40, 2), (0.5, 0.25), y, spec).save_picture(path)
    with Image.open(path) as image:
        assert min(image.size) > 400
        assert image.convert("L").getextrema() != (255, 255)
    assert path.stat().st_size < 200_000


class BrightnessModel:
    """mu is an image's brightness and its condition."""

    condition_size = 2
    latent_size = 3

    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, None]:
        return torch.cat([10 * x.flatten(1).mean(1, keepdim=True), c], dim=1), None


def test_the_means_of_the_images_are_mapped_under_their_own_conditions() -> None:
    y = torch.tensor([0, 1] * 10)
    x = torch.arange(20.0)[:, None, None, None].expand(-1, 1, 4, 4) / 20
    spec = DataSpec((1, 4, 4), classes=("a", "b"))
    drawn = draw_latent_map(cast(InferenceModel, BrightnessModel()), LabelledArrays(x, y), spec, device="cpu")
    steps = drawn.points[1:, 0] - drawn.points[:-1, 0]
    assert bool((steps.sign() == steps[0].sign()).all()), "from dark to bright along the first component"
    assert drawn.y is y
