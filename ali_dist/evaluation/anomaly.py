"""Scoring how unlike the training data an image is, with a trained encoder, decoder and discriminator.

Source: Zenati et al., "Efficient GAN-Based Anomaly Detection", 2018 (arXiv 1802.06222), for BiGAN, with z = E(x):
- reconstruction: |x - G(z)|_1, the sum over values;
- cross-entropy: -log sigmoid(D(x, z)) = softplus(-d), as printed. (The authors' code takes D of (G(z), z) here.)
- features: |f(x, z) - f(G(z), z)|_1 with f the discriminator's last hidden layer;
- score: alpha * reconstruction + (1 - alpha) * one of the two others, alpha = 0.9 in the authors' code.
E(x) is mu here; for an encoder without a closed form it is a sample. The published sum adds terms of unlike sizes (an
L1 norm grows with the image, a cross-entropy does not), so each score has a twin that adds standardised terms.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from ali_dist.errors import InputError
from ali_dist.evaluation.batched import in_batches
from ali_dist.evaluation.interfaces import LabelledArrays

ALPHA = 0.9
RESAMPLES = 1000

Array = NDArray[np.float64]


class Detector(Protocol):
    """What anomaly scores need of a model: all three networks, unconditional, ready for evaluation.

    Calls are made under `torch.inference_mode` with at most `inference.BATCH` samples.
    """

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """mu [N, n_z] (and log sigma, not used) of images [N, C, H, W] in [0, 1] or points [N, D]."""

    def decode(self, z: Tensor) -> Tensor:
        """G(z), as x."""

    def score(self, x: Tensor, z: Tensor) -> Tensor:
        """Logits [N] of D(x, z), higher for pairs that look like the encoder's."""

    def joint_features(self, x: Tensor, z: Tensor) -> Tensor:
        """Last hidden layer [N, F] of D at (x, z)."""


@dataclass(frozen=True)
class AnomalyTerms:
    """The three terms of N samples, float64 [N] each; larger is more anomalous."""

    reconstruction: Array
    cross_entropy: Array
    features: Array

    @classmethod
    def of(cls, model: Detector, x: Tensor, device: torch.device | str) -> AnomalyTerms:
        """Terms of `x` [N, ...].

        Raises:
            FloatingPointError: a term is not finite.
        """

        def three(part: Tensor) -> Tensor:
            z = model.encode(part)[0]
            x_rec = model.decode(z)
            gap = model.joint_features(part, z) - model.joint_features(x_rec, z)
            reconstruction = (part - x_rec).flatten(1).abs().sum(dim=1)
            cross_entropy = F.softplus(-model.score(part, z).flatten())
            return torch.stack([reconstruction, cross_entropy, gap.flatten(1).abs().sum(dim=1)], dim=1)

        columns = in_batches(three, x, device, "anomaly score").double().numpy().T
        return cls(*columns)

    def scores(self, alpha: float = ALPHA) -> dict[str, Array]:
        """Each term alone, and the two published scores (EGBAD) with the weight `alpha` (0 to 1) on reconstruction."""
        return {
            "reconstruction": self.reconstruction,
            "cross_entropy": self.cross_entropy,
            "features": self.features,
            "egbad_cross_entropy": alpha * self.reconstruction + (1 - alpha) * self.cross_entropy,
            "egbad_features": alpha * self.reconstruction + (1 - alpha) * self.features,
        }

    def standardised(self, normal: AnomalyTerms) -> AnomalyTerms:
        """Each term minus its mean over `normal` samples, over its standard deviation there."""

        def standard(values: Array, reference: Array) -> Array:
            spread = reference.std()
            return (values - reference.mean()) / (spread if spread > 0 else 1.0)

        return AnomalyTerms(
            standard(self.reconstruction, normal.reconstruction),
            standard(self.cross_entropy, normal.cross_entropy),
            standard(self.features, normal.features),
        )


@dataclass(frozen=True)
class AurocInterval:
    """Area under the ROC curve: the chance that an anomaly scores above a normal sample, ties counted half.

    Attributes:
        value: 0 to 1; 0.5 tells nothing apart.
        low, high: bounds of its 95 % bootstrap interval.
    """

    value: float
    low: float
    high: float


def one_vs_rest(
    model: Detector,
    holdout: LabelledArrays,
    normal_classes: Collection[int],
    *,
    seed: int,
    normal: Tensor | None = None,
    alpha: float = ALPHA,
    device: torch.device | str = "cpu",
) -> dict[str, AurocInterval]:
    """How well a model that was trained on some classes tells the others from them.

    Args:
        model: trained on samples of `normal_classes` alone. That is the caller's word: it cannot be checked here.
        holdout: labelled samples of all classes.
        normal_classes: every other class is an anomaly.
        seed: of the bootstrap.
        normal: samples [N, ...] of the normal classes that are not in `holdout` (training samples do), which
            standardise the terms. Without them, only the published scores are computed.
        alpha: weight of reconstruction, 0 to 1.
        device: where the model runs.

    Returns:
        By score (see `Terms.scores`), and for the two sums also `<score>_standardised`.

    Raises:
        InputError: the model is conditional, or the holdout split lacks normal samples or anomalies.
        FloatingPointError: a term is not finite.
    """
    assert holdout.y is not None, "one against the rest needs labels"
    if getattr(model, "condition_size", 0):
        raise InputError(
            "Anomaly scores need an unconditional model, but this one was trained with model.condition: "
            "train with model.condition none."
        )
    anomalous = ~np.isin(holdout.y.numpy(), np.array(sorted(normal_classes)))
    _require_both(anomalous, normal_classes)
    terms = AnomalyTerms.of(model, holdout.x, device)
    scores = terms.scores(alpha)
    if normal is not None:
        fair = terms.standardised(AnomalyTerms.of(model, normal, device)).scores(alpha)
        scores |= {f"{name}_standardised": fair[name] for name in fair if name.startswith("egbad")}
    return {name: auroc_interval(values, anomalous, seed=seed) for name, values in scores.items()}


def area_under_roc(scores: Array, anomalous: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of `scores` [N] for `anomalous` [N], exact, with ties counted half.

    It is the Mann-Whitney statistic: (sum of the anomalies' ranks - a (a + 1) / 2) / (a n), for a anomalies and n
    normal samples. Source: Hanley and McNeil, Radiology 143 (1982).
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # equal scores share the mean of their ranks, from 1
    anomalies = int(anomalous.sum())
    normals = len(scores) - anomalies
    assert anomalies and normals, "needs both kinds"
    return float((ranks[anomalous].sum() - anomalies * (anomalies + 1) / 2) / (anomalies * normals))


def auroc_interval(
    scores: Array, anomalous: NDArray[np.bool_], *, seed: int, resamples: int = RESAMPLES
) -> AurocInterval:
    """`auroc` with its 95 % percentile bootstrap interval; anomalies and normal samples are resampled apart.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    rng = np.random.default_rng([seed, resamples])
    kinds = [np.flatnonzero(anomalous), np.flatnonzero(~anomalous)]
    flags = np.repeat([True, False], [len(rows) for rows in kinds])
    values = [
        area_under_roc(scores[np.concatenate([rng.choice(rows, len(rows)) for rows in kinds])], flags)
        for _ in range(resamples)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    return AurocInterval(area_under_roc(scores, anomalous), float(low), float(high))


def _require_both(anomalous: NDArray[np.bool_], normal_classes: Collection[int]) -> None:
    listed = ", ".join(str(label) for label in sorted(normal_classes)) or "none"
    if anomalous.all():
        raise InputError(f"The holdout split holds no sample of the normal classes ({listed}): name classes it has.")
    if not anomalous.any():
        raise InputError(
            f"All samples of the holdout split are of the normal classes ({listed}), so there is no anomaly to find: "
            f"name fewer classes."
        )
