"""The catalog of metrics knows every number that an evaluation gives, and what is known of it is consistent."""

from __future__ import annotations

import math

import pytest

from ali_dist.evaluation.catalog import (
    FEW_IMAGES,
    METRICS,
    is_known_key,
    metric_bounds,
    metric_caveats,
    metric_keys,
    reference_keys,
)
from tests.unit.evaluation.test_evaluators import IMAGE_KEYS, LABEL_KEYS

PUBLIC_KEYS = {
    *("frechet", "reconstruction_mse", "reconstruction_mse_mean", "label_kept", "probe_accuracy"),
    *("probe_features_accuracy", "probe_random_accuracy", "condition_kept", "condition_balanced"),
    *("semi_supervised_error", "modes", "high_quality", "modes_assigned", "reverse_kl", "right_mode", "latent_mmd2"),
    *("latent_std_min", "latent_std_max", "sigma_mean", "label_entropy"),
    *("svm_error", "svm_error_std", "svm_penalty", "svm_validation_error", "svm_labels", "svm_features"),
    *("knn_1_mu_error", "knn_5_mu_error", "knn_1_features_error", "knn_5_features_error"),
    *("svm_unconverged", "auroc_reconstruction", "auroc_cross_entropy", "auroc_features"),
    *("auroc_egbad_cross_entropy", "auroc_egbad_features", "auroc_egbad_cross_entropy_standardised"),
    *("auroc_egbad_features_standardised", "fid", "kid", "kid_std"),
    *("swd", "precision", "recall", "density", "coverage_real", "compared_images", "unseen_classes"),
}
"""Names in the files of users: a change here breaks their scripts."""


def test_the_names_of_metrics_are_frozen() -> None:
    assert set(METRICS) == PUBLIC_KEYS
    assert all(key == row.key for key, row in METRICS.items())


@pytest.mark.parametrize("key", sorted(IMAGE_KEYS | LABEL_KEYS))
def test_what_an_image_evaluation_gives_is_known(key: str) -> None:
    assert is_known_key(key)


@pytest.mark.parametrize(
    ("key", "is_known"),
    [
        ("condition_kept_Smiling", True),
        ("condition_balanced_Smiling_reference", True),
        ("classifier_accuracy", True),
        ("freshet", False),
        ("condition", False),
    ],
)
def test_references_and_families_are_known_and_others_are_not(key: str, is_known: bool) -> None:
    assert is_known_key(key) == is_known


def test_what_can_be_optimized_or_drawn_is_comparable() -> None:
    """A sweep has to know which way is better; a curve and the live line show one of those metrics."""
    for row in METRICS.values():
        assert row.better is not None or not (row.is_sweepable or row.is_charted or row.is_live), row.key


def test_references_are_no_metrics_with_rows_of_their_own() -> None:
    assert not set(reference_keys()) & set(METRICS)
    assert len(metric_keys()) == len(set(metric_keys()))


@pytest.mark.parametrize(
    ("key", "bounds"),
    [
        ("label_kept", (0, 1)),
        ("condition_kept_Smiling", (0, 1)),
        ("coverage_real_reference", (0, 1)),
        ("auroc_features", (0, 1)),
        ("frechet", (0, math.inf)),
        ("frechet_reference", (0, math.inf)),
        ("density", (0, math.inf)),
        ("latent_mmd2", (-math.inf, math.inf)),  # an unbiased estimate of 0 is often below
        ("kid", (-math.inf, math.inf)),
        ("of_my_own", (-math.inf, math.inf)),
    ],
)
def test_what_a_metric_can_be_is_known(key: str, bounds: tuple[float, float]) -> None:
    assert metric_bounds(key) == bounds


def test_distances_of_few_images_are_marked_and_others_are_not() -> None:
    few, enough = {"compared_images": FEW_IMAGES - 1.0}, {"compared_images": float(FEW_IMAGES)}
    for key in ("frechet", "swd", "precision", "recall", "density", "coverage_real", "fid", "kid"):
        assert metric_caveats(key, few) == ["few samples (999)"], key
        assert metric_caveats(key, enough) == metric_caveats(key, {}) == [], key
    assert metric_caveats("reconstruction_mse", few) == metric_caveats("of_my_own", few) == []


def test_classes_that_training_lacks_are_said_beside_what_they_spoil() -> None:
    for key in ("label_kept", "probe_accuracy", "semi_supervised_error"):
        assert metric_caveats(key, {"unseen_classes": 1.0}) == ["1 class not in training"]
        assert metric_caveats(key, {"unseen_classes": 2.0, "compared_images": 3.0}) == ["2 classes not in training"]
    assert metric_caveats("swd", {"unseen_classes": 2.0}) == []
