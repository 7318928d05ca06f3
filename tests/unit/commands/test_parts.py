"""What the commands are made of."""

import pytest
import torch

from ali_dist.evaluation.interpolation import lerp_path, slerp_path
from ali_dist.report.image_grids import CELL, GAP, save_conditions, save_image
from tests.unit.commands.conftest import pixels


def test_ways_start_and_end_where_they_should_and_arcs_keep_the_radius():
    a, b = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    for way in (lerp_path, slerp_path):
        path = way(a, b, 5)
        assert torch.allclose(path[:, 0], a)
        assert torch.allclose(path[:, -1], b)
        assert not path.isnan().any()
    assert torch.allclose(slerp_path(a, b, 5)[0].norm(dim=1), torch.full((5,), 2.0))
    assert torch.allclose(lerp_path(a, b, 3)[0, 1], torch.tensor([1.0, 1.0]))
    middle = slerp_path(a, b, 3)[0, 1]
    assert torch.allclose(middle, torch.tensor([2.0, 2.0]) / 2**0.5)


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["a very long label", "b", "c"]], ids=["level", "sideways"])
def test_labels_stand_above_their_columns_and_change_no_image(tmp_path, labels):
    rows = torch.linspace(0, 1, 6).view(2, 3, 1, 1, 1).expand(-1, -1, 1, 8, 8)
    save_conditions(tmp_path / "c.png", rows, labels)
    picture = pixels(tmp_path / "c.png")
    grid = picture[-(2 * (CELL + GAP) + GAP) :]
    for row in range(2):
        for column in range(3):
            top, left = GAP + row * (CELL + GAP), GAP + column * (CELL + GAP)
            values = set(grid[top : top + CELL, left : left + CELL].ravel().tolist())
            assert values == {round(float(rows[row, column, 0, 0, 0]) * 255)}
    head = picture[: len(picture) - len(grid)]
    for column in range(3):
        left = GAP + column * (CELL + GAP)
        assert head[:, left : left + CELL].min() < 150  # ink
    assert len(head) > CELL if "long" in labels[0] else len(head) < CELL


def test_a_single_image_is_written_pixel_by_pixel(tmp_path):
    image = torch.arange(12.0).view(3, 2, 2) / 255
    save_image(tmp_path / "i.png", image)
    assert pixels(tmp_path / "i.png").transpose(2, 0, 1).tolist() == torch.arange(12).view(3, 2, 2).tolist()
