"""Precision, recall, density and coverage have the values that follow from what is compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ali_dist.evaluation.manifold import RealManifold, fit_random_features
from tests.unit.evaluation.test_sliced_wasserstein import blurred, collapsed, noisy, shapes, shifted

COUNT = 1000


def gaussian(seed: int, size: int = 8, count: int = COUNT) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def measure(real: Tensor, generated: Tensor) -> dict[str, float]:
    return RealManifold.fit(real).measure(generated)


def test_equal_distributions_have_the_expected_density_and_coverage() -> None:
    """Density 1, and coverage 1 - 2^-5 (Naeem et al., section 3.3), whatever the distribution."""
    for size in (2, 8, 64):
        found = measure(gaussian(0, size), gaussian(1, size))
        assert found["density"] == pytest.approx(1, abs=0.08), size
        assert found["coverage_real"] == pytest.approx(1 - 2**-5, abs=0.015), size
    assert measure(gaussian(0, 2), gaussian(1, 2))["precision"] > 0.95
    assert measure(gaussian(0, 2), gaussian(1, 2))["recall"] > 0.95


def test_distributions_apart_share_nothing() -> None:
    assert set(measure(gaussian(0), gaussian(1) + 50).values()) == {0.0}


def test_a_memorized_set_is_precise_and_complete() -> None:
    """Each copy lies in its own ball and, on average, in those of five others."""
    points = gaussian(0)
    found = measure(points, points[torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))])
    assert found == {"precision": 1.0, "recall": 1.0, "density": pytest.approx(1.2), "coverage_real": 1.0}


def test_a_collapsed_generator_is_precise_and_covers_nothing() -> None:
    """One real point repeated: within the manifold, with no ball of its own and within few of the others'."""
    found = measure(gaussian(0), gaussian(0)[:1].repeat(COUNT, 1))
    assert found["precision"] == 1
    assert found["recall"] <= 1 / COUNT
    assert found["coverage_real"] < 0.05


def test_a_lost_mode_shows_in_what_is_covered_and_not_in_what_looks_real() -> None:
    """Of two modes one is drawn."""
    modes = torch.tensor([0.0, 100.0]).repeat(COUNT // 2)[:, None]
    found = measure(gaussian(0) + modes, gaussian(1))
    assert found["recall"] == pytest.approx(0.48, abs=0.04)
    assert found["coverage_real"] == pytest.approx(0.5, abs=0.02)
    assert found["precision"] > 0.9
    found = measure(gaussian(1), gaussian(0) + modes)
    assert found["precision"] == pytest.approx(0.48, abs=0.04)
    assert found["recall"] > 0.9


def test_the_values_are_those_of_the_definitions_written_out() -> None:
    real, fake = gaussian(3, 4, 30).double().numpy(), 1.3 * gaussian(4, 4, 23).double().numpy()

    def radius(point: np.ndarray, points: np.ndarray) -> float:
        return sorted(float(np.linalg.norm(point - other)) for other in points)[5]  # the first is the point itself

    real_radii, fake_radii = ([radius(point, points) for point in points] for points in (real, fake))
    inside_real = np.array([[np.linalg.norm(r - f) <= q for f in fake] for r, q in zip(real, real_radii, strict=True)])
    inside_fake = np.array([[np.linalg.norm(r - f) <= q for f, q in zip(fake, fake_radii, strict=True)] for r in real])
    assert measure(torch.from_numpy(real), torch.from_numpy(fake)) == {
        "precision": inside_real.any(axis=0).mean(),
        "recall": inside_fake.any(axis=1).mean(),
        "density": inside_real.sum() / (5 * 23),
        "coverage_real": inside_real.any(axis=1).mean(),
    }


def test_real_images_that_occur_often_are_found_by_their_copies() -> None:
    """Balls of radius 0 hold what is equal, also where squares are large and rounding hits."""
    points = (1000 * gaussian(0, 64, 10)).repeat(8, 1)
    assert measure(points, points[:20])["precision"] == 1
    assert measure(points, points[:20] + 0.5)["precision"] == 0


# ---- random features -------------------------------------------------------------------------------------------


def test_random_features_are_the_same_everywhere_and_draw_from_nobody() -> None:
    state = torch.get_rng_state()
    for channels, side in ((1, 8), (3, 16), (3, 40)):
        x = torch.rand(5, channels, side, side, generator=torch.Generator().manual_seed(side))
        features, again = fit_random_features(x, "cpu"), fit_random_features(x, "cpu")
        assert torch.equal(features(x), again(x))
        torch.testing.assert_close(features(x).mean(dim=0), torch.zeros(448), atol=1e-4, rtol=0)
        torch.testing.assert_close(features(x)[1:2], features(x[1:2]), atol=1e-3, rtol=1e-3)
    assert torch.equal(torch.get_rng_state(), state)


def test_constant_images_have_finite_features() -> None:
    flat = torch.full((6, 1, 8, 8), 0.5)
    assert bool(fit_random_features(flat, "cpu")(flat).isfinite().all())


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        (lambda x: blurred(x, 5), "recall"),
        (lambda x: noisy(x, 0.1), "precision"),
        (lambda x: shifted(x, 0.2), "precision"),
        (lambda x: collapsed(x, 0.03), "recall"),
        (lambda x: collapsed(x, 0.03), "coverage_real"),
    ],
    ids=["blur", "noise", "color", "collapse: recall", "collapse: coverage"],
)
def test_random_features_see_faults_of_images(fault, key: str) -> None:
    """Fresh shapes score almost like real ones; with a fault they lose a good part."""
    real, fresh = shapes(300, 0), shapes(300, 1)
    features = fit_random_features(real, "cpu")
    sound = measure(features(real), features(fresh))
    assert sound["coverage_real"] > 0.9
    assert measure(features(real), features(fault(fresh)))[key] < 0.7 * sound[key]
