"""Paths between latent vectors: straight lines and great circles."""

from __future__ import annotations

import torch

from ali_dist.evaluation.interpolation import lerp_path, slerp_path


def test_paths_start_and_end_where_they_should_and_arcs_keep_the_radius() -> None:
    a, b = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    for path_function in (lerp_path, slerp_path):
        path = path_function(a, b, 5)
        assert torch.allclose(path[:, 0], a)
        assert torch.allclose(path[:, -1], b)
        assert not path.isnan().any()
    assert torch.allclose(slerp_path(a, b, 5)[0].norm(dim=1), torch.full((5,), 2.0))
    assert torch.allclose(lerp_path(a, b, 3)[0, 1], torch.tensor([1.0, 1.0]))
    middle = slerp_path(a, b, 3)[0, 1]
    assert torch.allclose(middle, torch.tensor([2.0, 2.0]) / 2**0.5)
