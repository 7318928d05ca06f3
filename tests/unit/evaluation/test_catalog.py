"""The catalog of metrics knows every number that an evaluation gives, and what is known of it is consistent."""

from __future__ import annotations

import pytest

from ali_dist.evaluation.catalog import METRICS, is_known_key, metric_keys, reference_keys
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
