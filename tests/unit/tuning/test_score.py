"""What trials are compared by: a collapsed or lazy model does not win, and one that is only slow is not pruned."""

from __future__ import annotations

import math

import pytest

from ali_dist.errors import InputError
from ali_dist.evaluation.catalog import METRICS
from tuning.score import SCORE_METRICS, default_score_metric, describe_collapse, find_score_metric

GOOD = {"high_quality": 0.6, "reverse_kl": 0.02, "right_mode": 1.0}
DIGITS = {"label_kept": 0.95, "frechet": 20.0, "frechet_reference": 9.0}


@pytest.mark.parametrize(
    "gamed",
    [
        {"high_quality": 0.99, "reverse_kl": math.log(25), "right_mode": 0.04},  # one mode, hit perfectly
        {"high_quality": 0.05, "reverse_kl": 0.0, "right_mode": 1.0},  # strewn over everything
        {"high_quality": 0.98, "reverse_kl": 0.0, "right_mode": 0.04},  # a fine generator, a useless encoder
    ],
)
def test_coverage_is_not_won_by_one_virtue_alone(gamed):
    metric = find_score_metric("coverage")
    assert metric.is_better(metric.score(GOOD), metric.score(gamed))


@pytest.mark.parametrize(
    "gamed",
    [
        DIGITS | {"label_kept": 1.0, "frechet": 200.0},  # an autoencoder whose samples are noise
        DIGITS | {"label_kept": 0.1, "frechet": 9.0},  # a generator without inference
    ],
)
def test_fidelity_is_not_won_by_one_virtue_alone(gamed):
    metric = find_score_metric("fidelity")
    assert metric.is_better(metric.score(DIGITS), metric.score(gamed))


@pytest.mark.parametrize(
    "gamed",
    [
        {"reconstruction_mse": 0.06, "latent_mmd2": 0.0},  # a decoder that gives one image
        {"reconstruction_mse": 0.001, "latent_mmd2": 0.5},  # an autoencoder whose codes are nothing like the prior
    ],
)
def test_round_trip_is_not_won_by_one_virtue_alone(gamed):
    metric = find_score_metric("round_trip")
    good = {"reconstruction_mse": 0.02, "reconstruction_mse_reference": 0.07, "latent_mmd2": 0.003}
    assert metric.is_better(metric.score(good), metric.score(good | gamed))
    assert metric.score(good | {"reconstruction_mse": 0.0, "latent_mmd2": -0.001}) == 1


FACES = {
    **{"reconstruction_mse": 0.02, "reconstruction_mse_reference": 0.08, "swd": 30.0, "swd_reference": 15.0},
    **{"coverage_real": 0.7, "coverage_real_reference": 0.95},
}


@pytest.mark.parametrize(
    "gamed",
    [
        FACES | {"reconstruction_mse": 0.001, "swd": 200.0, "coverage_real": 0.1},  # an autoencoder
        FACES | {"reconstruction_mse": 0.08, "swd": 15.0},  # a generator without inference
        FACES | {"coverage_real": 0.02},  # one mode
        FACES | {"reconstruction_mse": 0.2},  # worse than the mean image
    ],
)
def test_fidelity_without_labels_is_not_won_by_one_virtue_alone(gamed):
    metric = find_score_metric("unlabelled_fidelity")
    assert metric.is_better(metric.score(FACES), metric.score(gamed))


def test_fidelity_without_labels_is_the_product_of_its_shares():
    """(1 - 0.02 / 0.08) * 15 / 30 * 0.7 / 0.95; as good as real data is 1, and better is no further merit."""
    score = find_score_metric("unlabelled_fidelity").score
    assert score(FACES) == pytest.approx(0.75 * 0.5 * 0.7 / 0.95)
    assert score(FACES | {"reconstruction_mse": 0.0, "swd": 15.0, "coverage_real": 0.95}) == 1
    assert score(FACES | {"reconstruction_mse": 0.0, "swd": 0.0, "coverage_real": 1.0}) == 1
    assert score(FACES | {"reconstruction_mse": 0.0, "swd": 0.0, "swd_reference": 0.0}) == 0


def test_before_anything_is_covered_the_nearer_samples_are_better():
    """Else ASHA would choose among zeros at its first rung."""
    score = find_score_metric("unlabelled_fidelity").score
    none = FACES | {"coverage_real": 0.0}
    assert 0 < score(none | {"swd": 60.0}) < score(none) < score(FACES | {"coverage_real": 0.02})


def test_samples_closer_than_real_images_are_no_further_merit():
    """Otherwise a decoder that repeats the training set would make up for any encoder."""
    score = find_score_metric("fidelity").score
    assert score(DIGITS | {"frechet": 0.0}) == score(DIGITS | {"frechet": 9.0})


def test_a_perfect_model_scores_one():
    assert find_score_metric("fidelity").score({"label_kept": 1.0, "frechet": 9.0, "frechet_reference": 9.0}) == 1
    assert find_score_metric("coverage").score({"high_quality": 1.0, "reverse_kl": 0.0, "right_mode": 1.0}) == 1


def test_the_metrics_of_the_catalog_that_are_sweepable_can_be_chosen_with_their_titles():
    assert {key for key, info in METRICS.items() if info.is_sweepable} == SCORE_METRICS.keys() - {
        "coverage",
        "fidelity",
        "round_trip",
        "unlabelled_fidelity",
    }
    titles = {name: SCORE_METRICS[name].title for name in ("frechet", "label_kept", "reverse_kl", "latent_mmd2")}
    assert titles == {
        "frechet": "Fréchet distance",
        "label_kept": "label kept",
        "reverse_kl": "reverse KL",
        "latent_mmd2": "latent match (MMD²)",
    }


def test_every_part_of_a_score_is_a_metric_of_the_catalog_or_the_reference_of_one():
    """A metric that is renamed there would silently leave trials without a score."""
    known = {*METRICS, *(info.reference for info in METRICS.values())}
    assert {part for metric in SCORE_METRICS.values() for part in metric.parts} <= known


@pytest.mark.parametrize("metric", SCORE_METRICS.values(), ids=SCORE_METRICS.keys())
def test_an_evaluation_without_a_part_or_with_a_nan_has_no_score(metric):
    whole = dict.fromkeys(metric.parts, 0.5)
    assert metric.score(whole) is not None
    assert metric.score(whole | {metric.parts[0]: math.nan}) is None
    assert metric.score({name: value for name, value in whole.items() if name != metric.parts[-1]}) is None


def test_lower_is_better_where_it_is():
    assert find_score_metric("frechet").is_better(10.0, 20.0)
    assert find_score_metric("probe_accuracy").is_better(0.9, 0.8)
    assert (find_score_metric("frechet").mode, find_score_metric("coverage").mode) == ("min", "max")


def test_a_collapse_is_noticed_once_a_third_of_the_budget_is_spent():
    one_mode = {"high_quality": 0.9, "reverse_kl": math.log(25)}
    assert "4% of the modes" in (describe_collapse(one_mode, 0.5) or "")
    assert describe_collapse(one_mode, 0.2) is None
    one_digit = {"label_entropy": 0.1, "label_entropy_reference": math.log(10)}
    assert "of the classes" in (describe_collapse(one_digit, 0.5) or "")


def test_a_slow_model_is_not_taken_for_a_collapsed_one():
    """Of 500 samples, one is good by chance: that it lies in one mode says nothing."""
    assert describe_collapse({"high_quality": 0.002, "reverse_kl": math.log(25)}, 0.9) is None


def test_a_metric_that_is_not_finite_ends_a_trial_at_any_time():
    assert "frechet is not finite" in (describe_collapse({"frechet": math.nan}, 0.01) or "")


def test_each_kind_of_data_has_its_metric_and_a_misspelt_one_is_refused():
    assert default_score_metric(mixture=True, classes=True, supervised=False) == "coverage"
    assert default_score_metric(mixture=False, classes=True, supervised=False) == "fidelity"
    assert default_score_metric(mixture=False, classes=True, supervised=True) == "semi_supervised_error"
    assert default_score_metric(mixture=False, classes=False, supervised=False) == "unlabelled_fidelity"
    with pytest.raises(InputError, match="did you mean frechet"):
        find_score_metric("freche")
