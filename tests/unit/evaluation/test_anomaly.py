"""Anomaly scores follow their formulas, and the area under the curve its definition."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.evaluation.anomaly import AnomalyTerms, area_under_roc, auroc_interval, one_vs_rest
from ali_dist.evaluation.interfaces import LabelledArrays


@dataclass
class Dimmer:
    """Codes are means of images; decoding gives flat images; D sees how bright and how flat a pair is."""

    condition_size: int = 0

    def encode(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        assert torch.is_inference_mode_enabled()
        return x.mean(dim=(1, 2, 3))[:, None], None

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return z[:, :, None, None].expand(-1, 1, 2, 2)

    def score(self, x: Tensor, z: Tensor, c: Tensor | None = None) -> Tensor:
        return 10 * z[:, 0] - 1

    def joint_features(self, x: Tensor, z: Tensor, c: Tensor | None = None) -> Tensor:
        return torch.stack([x.amax(dim=(1, 2, 3)), z[:, 0], 3 * x.amin(dim=(1, 2, 3))], dim=1)


X = torch.tensor([[0.0, 0.2, 0.4, 0.2], [0.5, 0.5, 0.5, 0.5]]).view(2, 1, 2, 2)


def test_terms_are_the_published_formulas() -> None:
    """By hand for one image: mean 0.2; |x - G(E(x))|_1 = 0.4; softplus(-1); |f - f'|_1 = 0.2 + 0 + 0.6."""
    terms = AnomalyTerms.compute(Dimmer(), X, "cpu")
    np.testing.assert_allclose(terms.reconstruction, [0.4, 0], atol=1e-6)
    np.testing.assert_allclose(terms.cross_entropy, [math.log1p(math.exp(-1)), math.log1p(math.exp(-4))], rtol=1e-6)
    np.testing.assert_allclose(terms.features, [0.8, 0], atol=1e-6)


def test_alpha_weighs_reconstruction_and_its_complement_the_discriminator() -> None:
    terms = AnomalyTerms(np.array([2.0]), np.array([30.0]), np.array([500.0]))
    scores = {name: values.item() for name, values in terms.scores(0.75).items()}
    assert scores == {
        "reconstruction": 2,
        "cross_entropy": 30,
        "features": 500,
        "egbad_cross_entropy": 0.75 * 2 + 0.25 * 30,
        "egbad_features": 0.75 * 2 + 0.25 * 500,
    }


def test_standardized_terms_are_in_units_of_normal_samples() -> None:
    normal = AnomalyTerms(np.array([1.0, 3.0]), np.array([10.0, 30.0]), np.array([7.0, 7.0]))
    standardized = AnomalyTerms(np.array([4.0]), np.array([10.0]), np.array([9.0])).standardize(normal)
    assert (standardized.reconstruction.item(), standardized.cross_entropy.item(), standardized.features.item()) == (
        2,
        -1,
        2,
    )


def share_of_pairs_won(scores: np.ndarray, is_anomaly: np.ndarray) -> float:
    """The definition: over all (anomaly, normal) pairs, 1 for a win and 1/2 for a tie."""
    gap = scores[is_anomaly][:, None] - scores[~is_anomaly][None]
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_auroc_is_the_share_of_pairs_in_the_right_order_ties_counted_half(levels: int) -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, 300).astype(float)
    is_anomaly = rng.random(300) < 0.3
    assert area_under_roc(scores, is_anomaly) == pytest.approx(share_of_pairs_won(scores, is_anomaly), abs=1e-12)
    assert area_under_roc(scores, is_anomaly) == pytest.approx(roc_auc_score(is_anomaly, scores), abs=1e-12)


def test_auroc_of_a_perfect_a_useless_and_an_inverted_score() -> None:
    is_anomaly = np.array([False, True, True, False])
    assert area_under_roc(np.array([0.0, 1, 2, 0]), is_anomaly) == 1
    assert area_under_roc(np.zeros(4), is_anomaly) == 0.5
    assert area_under_roc(np.array([3.0, 1, 2, 3]), is_anomaly) == 0


def test_the_bootstrap_interval_holds_the_value_narrows_with_samples_and_depends_on_the_seed() -> None:
    """For N(1, 1) against N(0, 1) the true area is 0.760; with 400 + 400 samples its standard error is about 0.017."""

    def interval(count: int, seed: int = 0) -> tuple[float, float, float]:
        rng = np.random.default_rng(4)
        scores = np.concatenate([rng.normal(0, 1, count), rng.normal(1, 1, count)])
        area = auroc_interval(scores, np.arange(2 * count) >= count, seed=seed, resamples=400)
        return area.low, area.value, area.high

    low, value, high = interval(400)
    assert low < value < high
    assert high - low == pytest.approx(4 * 0.017, rel=0.3)
    few_low, _, few_high = interval(40)
    assert few_high - few_low > 2 * (high - low)
    assert interval(40) == interval(40) != interval(40, seed=1)


def test_other_classes_than_the_normal_ones_are_the_anomalies() -> None:
    """Class 1 is striped and dark, class 0 flat and bright: every score is right, or wrong if 1 is normal."""
    flat = torch.full((20, 1, 2, 2), 0.8) + 0.01 * torch.arange(20).view(-1, 1, 1, 1) / 20
    striped = torch.tensor([0.0, 0.5, 0.0, 0.5]).view(1, 1, 2, 2).expand(20, -1, -1, -1)
    holdout = LabelledArrays(torch.cat([flat, striped]), torch.arange(40) // 20)
    right = one_vs_rest(Dimmer(), holdout, [0], seed=0)
    assert {name: area.value for name, area in right.items()} == dict.fromkeys(
        ["reconstruction", "cross_entropy", "features", "egbad_cross_entropy", "egbad_features"], 1.0
    )
    assert one_vs_rest(Dimmer(), holdout, {1}, seed=0)["cross_entropy"].value == 0
    with_normal = one_vs_rest(Dimmer(), holdout, [0], seed=0, normal=flat)
    assert set(with_normal) - set(right) == {"egbad_cross_entropy_standardised", "egbad_features_standardised"}


def test_questions_without_an_answer_are_refused() -> None:
    holdout = LabelledArrays(X, torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"no sample of the normal classes \(7, 9\)"):
        one_vs_rest(Dimmer(), holdout, [9, 7], seed=0)
    with pytest.raises(InputError, match="no anomaly to find"):
        one_vs_rest(Dimmer(), holdout, [0, 1], seed=0)
    with pytest.raises(InputError, match="unconditional"):
        one_vs_rest(Dimmer(condition_size=2), holdout, [0], seed=0)
