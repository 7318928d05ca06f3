"""Each metric on its own has the value that theory gives it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ali_dist.errors import InputError
from ali_dist.evaluation.batched import make_generator
from ali_dist.evaluation.coverage import kl_to_uniform, mode_coverage, right_mode_share
from ali_dist.evaluation.frechet import REFERENCE_VARIANCE, Gaussian, frechet_distance, scaled_frechet_distance
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.latent import prior_median_squared_distance, squared_mmd
from ali_dist.evaluation.probe import LinearProbe, balanced_draw

GRID = torch.cartesian_prod(torch.arange(-4.0, 5, 2), torch.arange(-4.0, 5, 2))


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mmd_is_unbiased() -> None:
    """For equal distributions its mean is 0 even at n = 10, where the biased estimate averages above 0.1."""
    g = draws(0)
    values = [
        squared_mmd(torch.randn(10, 2, generator=g), torch.randn(10, 2, generator=g), squared_bandwidth=2.0)
        for _ in range(400)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))
    assert np.std(values) / math.sqrt(len(values)) < 0.01


def test_mmd_has_the_value_of_the_closed_form() -> None:
    """N(0, 1) against N(m, 1) with kernel width s: 2 c (1 - exp(-m^2 / (2 (s^2 + 2)))), c = s / sqrt(s^2 + 2)."""
    g, shift, s2 = draws(1), 1.5, 1.0
    a = torch.randn(3000, 1, generator=g)
    b = torch.randn(3000, 1, generator=g) + shift
    expected = 2 * math.sqrt(s2 / (s2 + 2)) * (1 - math.exp(-(shift**2) / (2 * (s2 + 2))))
    assert squared_mmd(a, b, squared_bandwidth=s2) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("size", [1, 2, 16, 256])
def test_bandwidth_is_the_median_distance_of_prior_draws(size: int) -> None:
    g = draws(size)
    pairs = (torch.randn(20_000, size, generator=g) - torch.randn(20_000, size, generator=g)).square().sum(1)
    assert prior_median_squared_distance(size) == pytest.approx(float(pairs.median()), rel=0.04)


def test_frechet_distance_has_the_closed_form_for_diagonal_gaussians() -> None:
    """Also where a feature is constant: covariances may be singular."""
    a = Gaussian(np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 0.0]))
    b = Gaussian(np.array([3.0, 1.0, 2.0]), np.diag([9.0, 4.0, 0.25]))
    assert frechet_distance(a, b) == pytest.approx(9 + (1 - 3) ** 2 + 0.5**2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_the_same_for_rotated_features() -> None:
    """Catches a matrix square root that only works for diagonal covariances."""
    g = draws(2)
    a, b = torch.randn(500, 5, generator=g), torch.randn(500, 5, generator=g) * torch.tensor([1, 2, 3, 4, 5]) + 1
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g))[0]
    straight = frechet_distance(Gaussian.fit(a), Gaussian.fit(b))
    assert frechet_distance(Gaussian.fit(a @ turn), Gaussian.fit(b @ turn)) == pytest.approx(straight, rel=1e-4)
    assert straight > 10


def test_scaled_frechet_distance_does_not_depend_on_the_unit_of_features() -> None:
    g = draws(3)
    train, samples = torch.randn(400, 6, generator=g), torch.randn(400, 6, generator=g) + 0.3
    small = scaled_frechet_distance(samples, Gaussian.fit(train))
    large = scaled_frechet_distance(samples * 50, Gaussian.fit(train * 50))
    assert small == pytest.approx(large, rel=1e-4)
    variance = float(train.var(0).sum())
    plain = frechet_distance(Gaussian.fit(samples), Gaussian.fit(train))
    assert small == pytest.approx(plain * REFERENCE_VARIANCE / variance, rel=1e-4)


def test_a_perfect_sampler_covers_every_mode_at_the_known_quality() -> None:
    """P(r < 3 std) of a 2-D Gaussian is 1 - exp(-4.5) = 0.9889."""
    g = draws(4)
    samples = GRID.repeat(400, 1) + 0.05 * torch.randn(10_000, 2, generator=g)
    scores = mode_coverage(samples, GRID, 0.05)
    assert scores["modes"] == scores["modes_assigned"] == 25
    assert scores["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.004)
    assert scores["reverse_kl"] < 0.001


def test_collapse_and_scatter_have_different_scores() -> None:
    """One mode only: quality 1 but 1 mode and ln 25. Samples between the modes: assigned, never captured."""
    collapsed = mode_coverage(GRID[:1].repeat(100, 1), GRID, 0.05)
    assert (collapsed["modes"], collapsed["high_quality"]) == (1, 1)
    assert collapsed["reverse_kl"] == pytest.approx(math.log(25))
    scattered = mode_coverage(GRID + 0.5, GRID, 0.05)
    assert (scattered["modes"], scattered["high_quality"], scattered["modes_assigned"]) == (0, 0, 25)
    assert scattered["reverse_kl"] == pytest.approx(math.log(25))


def test_quality_threshold_is_three_std_of_the_distance() -> None:
    """The radius is Euclidean: 2.9 std diagonally counts, 2.9 std in each coordinate does not."""
    std = 0.05
    inside = torch.tensor([[2.9 * std / math.sqrt(2)] * 2])
    assert mode_coverage(inside, GRID, std)["high_quality"] == 1
    assert mode_coverage(torch.tensor([[2.9 * std, 2.9 * std]]), GRID, std)["high_quality"] == 0


def test_reverse_kl_of_two_equal_modes_of_four() -> None:
    assert kl_to_uniform(torch.tensor([5, 5, 0, 0])) == pytest.approx(math.log(2))


def test_right_mode_counts_reconstructions_that_stay() -> None:
    x = GRID[:4].repeat(2, 1)
    x_rec = x + 0.9  # still nearest to their own mode
    x_rec[:2] += 2  # these are not
    assert right_mode_share(x, x_rec, GRID) == 0.75


def test_balanced_draw_is_balanced_and_without_replacement() -> None:
    labels = np.array([0] * 500 + [1] * 40 + [2] * 60)
    rows = balanced_draw(labels, 90, np.random.default_rng(0))
    assert np.bincount(labels[rows]).tolist() == [30, 30, 30]
    assert len(set(rows.tolist())) == 90
    # A class with too few samples limits all.
    assert np.bincount(labels[balanced_draw(labels, 300, np.random.default_rng(0))]).tolist() == [40, 40, 40]


def test_probe_needs_two_classes() -> None:
    split = LabelledArrays(torch.rand(10, 2), torch.zeros(10, dtype=torch.int64))
    with pytest.raises(InputError, match="1 class"):
        LinearProbe(split, split, seed=0)


@pytest.mark.parametrize(("one", "two"), [((0, "a"), (1, "a")), ((0, "a"), (0, "b")), ((1, "a"), (2**30, "a"))])
def test_generators_differ_by_seed_and_by_purpose(one: tuple[int, str], two: tuple[int, str]) -> None:
    """Torch's CPU generator ignores the high 32 bits of a seed: packing the seed there would lose it."""
    first, again, second = (torch.rand(4, generator=make_generator(*key)) for key in (one, one, two))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
