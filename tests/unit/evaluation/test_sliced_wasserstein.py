"""The sliced Wasserstein distance is 0 for equal sets, grows with every fault, and has the right value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ali_dist.evaluation.sliced_wasserstein import (
    SlicedWasserstein,
    double_images,
    halve_images,
    laplacian_pyramid,
)


def shapes(count: int, seed: int, side: int = 32) -> Tensor:
    """Drawn shapes [N, 3, side, side] in [0, 1]: discs and squares of several colors on dark grounds."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.arange(side).float()
    place = side * (0.3 + 0.4 * torch.rand(count, 2, 1, 1, generator=g))
    radius = side * (0.12 + 0.13 * torch.rand(count, 1, 1, generator=g))
    dy, dx = (grid[:, None] - place[:, 0]).abs(), (grid - place[:, 1]).abs()
    disc = ((dy**2 + dx**2).sqrt() < radius).float()
    square = (torch.maximum(dy, dx) < radius).float()
    is_disc = (torch.arange(count) % 2 == 0).float()[:, None, None]
    shape = (is_disc * disc + (1 - is_disc) * square)[:, None]
    color = 0.5 + 0.5 * torch.rand(count, 3, 1, 1, generator=g)
    ground = 0.3 * torch.rand(count, 3, 1, 1, generator=g)
    return shape * color + (1 - shape) * ground


@pytest.fixture(scope="module")
def real() -> Tensor:
    return shapes(300, 0)


@pytest.fixture(scope="module")
def to_real(real: Tensor) -> SlicedWasserstein:
    return SlicedWasserstein.prepare(real, seed=0)


def blurred(x: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(x, size, stride=1, padding=size // 2, count_include_pad=False)


def noisy(x: Tensor, std: float) -> Tensor:
    return x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))


def shifted(x: Tensor, by: float) -> Tensor:
    return x + by * torch.tensor([1.0, -0.5, 0.0]).view(3, 1, 1)


def collapsed(x: Tensor, kept: float) -> Tensor:
    """As many images, all of them of a few kinds."""
    kinds = x[: max(1, round(kept * len(x)))]
    return kinds.repeat(len(x) // len(kinds) + 1, 1, 1, 1)[: len(x)]


def test_equal_sets_are_at_distance_0_in_any_order(real: Tensor, to_real: SlicedWasserstein) -> None:
    assert to_real.distance(real) == 0
    other = shapes(300, 1)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert to_real.distance(other) > 0
    assert to_real.distance(other[order]) == pytest.approx(to_real.distance(other), rel=1e-6)
    assert SlicedWasserstein.prepare(real[order], seed=0).distance(other) == pytest.approx(
        to_real.distance(other), rel=1e-5
    )


@pytest.mark.parametrize(
    ("fault", "mild", "strong"),
    [(blurred, 3, 9), (noisy, 0.03, 0.1), (shifted, 0.05, 0.2), (collapsed, 0.05, 0.01)],
)
def test_it_grows_with_every_fault(to_real: SlicedWasserstein, fault, mild: float, strong: float) -> None:
    """Fresh shapes with a fault are further away than without, and the more so the worse it is."""
    fresh = shapes(300, 1)
    sound, slight, grave = (to_real.distance(x) for x in (fresh, fault(fresh, mild), fault(fresh, strong)))
    assert 1.15 * sound < slight
    assert 1.25 * slight < grave


def test_faults_show_on_their_own_scale(to_real: SlicedWasserstein) -> None:
    """Noise is fine detail; a wrong color is seen at the coarsest level alone."""
    fresh = shapes(300, 1)
    sound = np.array(to_real.distances(fresh))
    assert len(sound) == 2
    fine, coarse = np.array(to_real.distances(noisy(fresh, 0.05))) / sound
    assert fine > 3 * coarse
    fine, coarse = np.array(to_real.distances(shifted(fresh, 0.2))) / sound
    assert coarse > 2
    assert fine == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("side", "sides"), [(8, [8]), (16, [16]), (28, [28]), (33, [33, 17]), (64, [64, 32, 16])])
def test_levels_go_down_to_16_pixels_and_add_up_to_the_image(side: int, sides: list[int]) -> None:
    x = torch.rand(3, 1, side, side, generator=torch.Generator().manual_seed(side))
    levels = laplacian_pyramid(x)
    assert [level.shape[-1] for level in levels] == sides
    image = levels[-1]
    for level in reversed(levels[:-1]):
        image = level + double_images(image, level.shape[2], level.shape[3])
    torch.testing.assert_close(image, x)
    assert SlicedWasserstein.prepare(x, seed=0).distance(x.flip(-1)) > 0


def test_halving_and_doubling_are_the_textbook_convolutions() -> None:
    """Against the sum over a mirrored image's neighborhood, pixel by pixel; constant images stay as they are."""
    x = torch.rand(1, 1, 12, 10, generator=torch.Generator().manual_seed(0))
    line = np.array([1, 4, 6, 4, 1]) / 16
    mirrored = np.pad(x[0, 0].numpy(), 2, mode="reflect")
    kernel = np.outer(line, line)
    expected = [[(kernel * mirrored[i : i + 5, j : j + 5]).sum() for j in range(0, 10, 2)] for i in range(0, 12, 2)]
    np.testing.assert_allclose(halve_images(x)[0, 0].numpy(), expected, rtol=1e-5)
    torch.testing.assert_close(double_images(torch.full((1, 3, 8, 8), 0.25), 16, 16), torch.full((1, 3, 16, 16), 0.25))


def area_between(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """W1 in one dimension: the area between the two distribution functions."""
    ends = np.sort(np.concatenate([a, b]))
    shares = [np.abs((a <= end).mean() - (b <= end).mean()) for end in ends[:-1]]
    return float((np.array(shares) * np.diff(ends)).sum())


def test_the_value_is_that_of_a_slow_computation() -> None:
    """One patch an image, one level: W1 of every projection, in real standard deviations."""
    g = torch.Generator().manual_seed(3)
    real, fake = torch.rand(20, 3, 7, 7, generator=g), 0.8 * torch.rand(20, 3, 7, 7, generator=g)
    prepared = SlicedWasserstein.prepare(real, seed=5)
    directions = prepared.levels[0].directions.double().numpy()
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1, rtol=1e-5)
    mean = real.double().numpy().mean(axis=(0, 2, 3), keepdims=True)
    std = real.double().numpy().std(axis=(0, 2, 3), keepdims=True)
    a, b = (((side.double().numpy() - mean) / std).reshape(20, -1) for side in (real, fake))
    expected = np.mean([area_between(a @ direction, b @ direction) for direction in directions.T])
    assert prepared.distance(fake) == pytest.approx(1000 * expected, rel=1e-4)


def test_a_shift_of_gray_has_the_value_of_its_formula() -> None:
    """All pixels brighter by d: each projection moves by d * sum(direction) / std, and so far is the distance."""
    real = torch.rand(50, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    prepared = SlicedWasserstein.prepare(real, seed=0)
    sums = prepared.levels[0].directions.double().sum(dim=0).abs().mean()
    expected = 1000 * 0.1 * float(sums / real.double().std(correction=0))
    assert prepared.distance(real + 0.1) == pytest.approx(expected, rel=1e-4)


def test_the_seed_draws_places_and_directions_and_nothing_else_does(real: Tensor) -> None:
    other = shapes(300, 1)
    state = torch.get_rng_state()
    first, again, changed = (SlicedWasserstein.prepare(real, seed=seed).distance(other) for seed in (1, 1, 2))
    assert first == again != changed
    assert changed == pytest.approx(first, rel=0.3)
    assert torch.equal(torch.get_rng_state(), state)


def test_constant_images_are_no_division_by_zero() -> None:
    flat = torch.full((4, 1, 8, 8), 0.5)
    assert SlicedWasserstein.prepare(flat, seed=0).distance(flat) == 0
