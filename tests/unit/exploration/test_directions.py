"""Directions of latent space: principal components, and what a label adds to z."""

from __future__ import annotations

import pytest
import torch

from ali_dist.exploration.directions import find_components, find_label_directions


def test_components_are_those_of_the_covariance_the_greatest_first() -> None:
    draws = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=draws, dtype=torch.float64)).Q
    scales = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    mu = torch.randn(4000, 6, generator=draws, dtype=torch.float64) * scales @ basis.T + 7
    found = find_components(mu.float(), most=4)
    assert found.vectors.shape == (4, 6)
    assert torch.allclose(found.vectors @ found.vectors.T, torch.eye(4), atol=1e-5)
    along = (found.vectors.double() @ basis[:, :4]).abs()
    assert torch.allclose(along, torch.eye(4, dtype=torch.float64), atol=0.06)
    assert torch.allclose(found.std.double(), scales[:4], rtol=0.05)
    assert torch.allclose(found.center, torch.full((6,), 7.0), atol=0.4)
    # One standard deviation is that of the coordinates themselves.
    coordinates = (mu.float() - found.center) @ found.vectors.T / found.std
    assert torch.allclose(coordinates.std(dim=0), torch.ones(4), atol=1e-4)
    assert found.shares == pytest.approx((scales**2 / (scales**2).sum()).tolist()[:4], abs=0.03)


def test_directions_without_variance_are_left_out() -> None:
    mu = torch.zeros(30, 5)
    mu[:, 2] = torch.linspace(-1, 1, 30)
    found = find_components(mu)
    assert found.vectors.shape == (1, 5)
    assert found.vectors[0].abs().tolist() == pytest.approx([0, 0, 1, 0, 0])


def test_a_class_adds_its_mean_less_that_of_the_others() -> None:
    y = torch.arange(30) % 3
    mu = torch.eye(3)[y] + torch.tensor([0.0, 0.0, 4.0])
    found = find_label_directions(mu, y, ["a", "b", "c"])
    assert [(label.name, label.count) for label in found] == [("a", 10), ("b", 10), ("c", 10)]
    assert found[1].vector.tolist() == pytest.approx([-0.5, 1, -0.5])


def test_of_many_attributes_the_most_frequent_are_kept_in_their_order() -> None:
    counts = [8, 20, 3, 15, 30, 12]  # of 30: the third is too rare, and the fifth has nobody without it
    y = (torch.arange(30)[:, None] < torch.tensor(counts)).float()
    found = find_label_directions(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), y, list("abcdef"), 3)
    assert [(label.name, label.count) for label in found] == [("b", 20), ("d", 15), ("f", 12)]


def test_classes_without_names_are_called_by_their_number() -> None:
    found = find_label_directions(torch.ones(12, 2), torch.arange(12) % 2, ())
    assert [label.name for label in found] == ["0", "1"]
