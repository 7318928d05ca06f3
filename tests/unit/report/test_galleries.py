"""Galleries show what they say: the latents, images and conditions that belong together, and nothing by chance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.model.data_spec import DataSpec
from ali_dist.model.inference_model import InferenceModel
from ali_dist.report import galleries, gallery_sizes

CPU = torch.device("cpu")


@dataclass
class FlatModel:
    """z is an image's mean; images are flat: as bright as z, lifted by a tenth for each entry of their condition."""

    condition_size: int = 0
    latent_size: int = 1

    def encode(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return x.flatten(1).mean(1, keepdim=True), None

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        lift = 0.0 if c is None else 0.1 * (c * torch.arange(1, c.shape[1] + 1)).sum(1)
        return (z[:, 0] + lift)[:, None, None, None].expand(-1, 1, 4, 4)


def make_model(condition_size: int = 0) -> InferenceModel:
    return cast(InferenceModel, FlatModel(condition_size))


def grays(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 4, 4)


def levels(images: Tensor) -> list[float]:
    """Brightness of flat images [..., 1, 4, 4]."""
    return [round(value, 4) for value in images.flatten(-3)[..., 0].flatten().tolist()]


def test_reconstructions_are_decoded_under_the_conditions_asked_for() -> None:
    c = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    own = galleries.draw_reconstructions(make_model(2), grays(0.2, 0.5), c, seed=0, device=CPU)
    assert (levels(own.x), levels(own.x_rec)) == ([0.2, 0.5], [0.3, 0.7])
    other = galleries.draw_reconstructions(make_model(2), grays(0.2, 0.5), c, seed=0, device=CPU, decoder_c=c.flip(0))
    assert levels(other.x_rec) == [0.4, 0.6]
    assert list(own.named_images()) == ["00000-original", "00001-original", *(f"0000{i}-reconstruction" for i in "01")]


@pytest.mark.parametrize("spherical", [False, True])
def test_an_interpolation_goes_from_an_image_to_the_one_after_it(spherical: bool) -> None:
    path_function = galleries.choose_path_function(spherical=spherical)
    gallery = galleries.draw_interpolations(
        make_model(), grays(0.2, 0.6, 1.0, 0.5), None, seed=0, device=CPU, steps=3, path_function=path_function
    )
    assert levels(gallery.rows) == [0.2, 0.4, 0.6, 1.0, 0.75, 0.5]
    assert levels(gallery.ends) == [0.2, 0.6, 1.0, 0.5]
    assert list(gallery.named_images())[:4] == ["00000-00", "00000-01", "00000-02", "00001-00"]


def test_an_interpolation_has_the_papers_eleven_points() -> None:
    """Ten steps from one latent to the other, both ends decoded, between the two originals (the paper's figure 6)."""
    gallery = galleries.draw_interpolations(make_model(), grays(0.0, 1.0), None, seed=0, device=CPU)
    assert levels(gallery.rows) == pytest.approx([step / 10 for step in range(11)], abs=1e-6)


def test_a_row_of_conditions_has_one_latent_and_a_column_one_condition() -> None:
    columns, labels = galleries.attribute_columns(("hat", "tie"), torch.tensor([1.0, 0.0]), "usual", [0, 1])
    assert columns.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert labels == ["usual", "-hat", "+tie"]
    gallery = galleries.draw_conditions(make_model(2), columns, labels, count=2, seed=0, device=CPU)
    z = gallery.rows[:, 1, 0, 0, 0]
    assert z[0] != z[1]
    for row, latent in zip(gallery.rows, z, strict=True):
        assert levels(row - latent) == pytest.approx([0.1, 0.0, 0.3], abs=1e-4)
    assert list(gallery.named_images())[:3] == ["00000-usual", "00000--hat", "00000-+tie"]


@pytest.mark.parametrize("count", [3, 20, 80])
def test_a_run_shows_its_galleries_for_any_number_of_images(count: int, tmp_path: Path) -> None:
    """Few images give fewer pairs and rows; of the same data and seed the pictures are the same."""
    rows = galleries.choose_shown(DataSpec((1, 4, 4)), count, seed=0)
    assert len(set(rows.tolist())) == len(rows) == min(count, galleries.IMAGES_NEEDED)
    data = LabelledArrays(torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))[rows])
    shown = galleries.draw_run_galleries(make_model(), data, DataSpec((1, 4, 4)), seed=0, device=CPU)
    assert list(shown) == ["interpolations", "reconstructions", "samples"]
    assert len(shown["samples"].named_images()) == gallery_sizes.SAMPLES
    assert len(shown["reconstructions"].named_images()) == 2 * min(count, gallery_sizes.RECONSTRUCTIONS)
    assert len(shown["interpolations"].named_images()) == min(count // 2, gallery_sizes.ROWS) * gallery_sizes.STEPS
    again = galleries.draw_run_galleries(make_model(), data, DataSpec((1, 4, 4)), seed=0, device=CPU)
    for kind, gallery in shown.items():
        gallery.save_picture(tmp_path / "one.png")
        again[kind].save_picture(tmp_path / "two.png")
        assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_conditional_run_shows_its_usual_attributes_and_each_of_them_turned_over() -> None:
    y = torch.tensor([[1.0, 0.0]] * 15 + [[0.0, 1.0]] * 5)
    data = LabelledArrays(torch.rand(20, 1, 4, 4), y, ("hat", "tie"))
    spec = DataSpec((1, 4, 4), attributes=("hat", "tie"))
    shown = galleries.draw_run_galleries(make_model(2), data, spec, seed=0, device=CPU, labels=y)
    assert list(shown) == ["conditions", "interpolations", "reconstructions", "samples"]
    names = [name.partition("-")[2] for name in shown["conditions"].named_images()]
    assert names[:3] == ["usual", "-hat", "+tie"]


def test_data_without_a_picture_have_no_galleries() -> None:
    assert galleries.has_galleries(DataSpec((3, 4, 4)))
    assert galleries.has_galleries(DataSpec((2,), "float32", mixture={"means": [[0.0, 0.0]], "std": 1.0}))
    assert not galleries.has_galleries(DataSpec((4, 4, 4)))
    assert not galleries.has_galleries(DataSpec((2,), "float32"))
