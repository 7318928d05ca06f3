"""Anomaly scores: how unlike the training data an image is, by a trained encoder, decoder and discriminator.

Source: Zenati et al., "Efficient GAN-Based Anomaly Detection", 2018 (arXiv 1802.06222), for BiGAN, with z = E(x):
- reconstruction: |x - G(z)|_1, the sum over values;
- cross-entropy: -log sigmoid(D(x, z)) = softplus(-d), as printed. (The authors' code takes D of (G(z), z) here.)
- features: |f(x, z) - f(G(z), z)|_1 with f the discriminator's last hidden layer;
- score: alpha * reconstruction + (1 - alpha) * one of the two others, alpha = 0.9 in the authors' code.
E(x) is mu here; for an encoder without a closed form it is a sample. The published sum adds terms of unlike sizes (an
L1 norm grows with the image, a cross-entropy does not), so each score has a twin that adds standardized terms.
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
from ali_dist.evaluation.monitor import Advance, EvaluationMonitor

ALPHA = 0.9
RESAMPLES = 1000

Array = NDArray[np.float64]


class AnomalyModel(Protocol):
    """What anomaly scores need of a model: all three networks, unconditional, ready for evaluation.

    Calls are made under `torch.inference_mode` with at most `batched.BATCH` samples.
    """

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """mu [N, n_z] (and log sigma, not used) of images [N, C, H, W] in [0, 1] or points [N, D]."""

    def decode(self, z: Tensor) -> Tensor:
        """Decode z [N, n_z] to G(z), in the shape and range of x."""

    def score(self, x: Tensor, z: Tensor) -> Tensor:
        """Logits [N] of D(x, z); higher for pairs that look like the encoder's."""

    def joint_features(self, x: Tensor, z: Tensor) -> Tensor:
        """Outputs [N, F] of D's last hidden layer for pairs (x, z)."""


@dataclass(frozen=True)
class AnomalyTerms:
    """The three terms of the scores of N samples, float64 [N] each; larger is more anomalous."""

    reconstruction: Array
    cross_entropy: Array
    features: Array

    @classmethod
    def compute(
        cls, model: AnomalyModel, x: Tensor, device: torch.device | str, advance: Advance | None = None
    ) -> AnomalyTerms:
        """Compute the terms of `x` [N, ...].

        Args:
            model: The three networks.
            x: Samples.
            device: Where the model is.
            advance: Called with the number of samples that are done.

        Raises:
            FloatingPointError: A term is not finite.
        """

        def compute_batch(batch: Tensor) -> Tensor:
            z = model.encode(batch)[0]
            x_rec = model.decode(z)
            gap = model.joint_features(batch, z) - model.joint_features(x_rec, z)
            reconstruction = (batch - x_rec).flatten(1).abs().sum(dim=1)
            cross_entropy = F.softplus(-model.score(batch, z).flatten())
            return torch.stack([reconstruction, cross_entropy, gap.flatten(1).abs().sum(dim=1)], dim=1)

        columns = in_batches(compute_batch, x, device, "anomaly score", None, advance).double().numpy().T
        return cls(*columns)

    def scores(self, alpha: float = ALPHA) -> dict[str, Array]:
        """Scores: each term alone, and EGBAD's two sums with the weight `alpha` (0 to 1) on reconstruction."""
        return {
            "reconstruction": self.reconstruction,
            "cross_entropy": self.cross_entropy,
            "features": self.features,
            "egbad_cross_entropy": alpha * self.reconstruction + (1 - alpha) * self.cross_entropy,
            "egbad_features": alpha * self.reconstruction + (1 - alpha) * self.features,
        }

    def standardize(self, normal: AnomalyTerms) -> AnomalyTerms:
        """Take from each term its mean over `normal` samples, and divide by its standard deviation there."""

        def standardize_term(values: Array, reference: Array) -> Array:
            spread = reference.std()
            return (values - reference.mean()) / (spread if spread > 0 else 1.0)

        return AnomalyTerms(
            standardize_term(self.reconstruction, normal.reconstruction),
            standardize_term(self.cross_entropy, normal.cross_entropy),
            standardize_term(self.features, normal.features),
        )


@dataclass(frozen=True)
class AurocInterval:
    """An area under the ROC curve: the chance that an anomaly scores above a normal sample, ties counted half.

    Attributes:
        value: The area, 0 to 1; a score with 0.5 tells nothing apart.
        low: Lower bound of its 95 % bootstrap interval.
        high: Upper bound of that interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class HoldoutScores:
    """The scores of a holdout split's samples.

    Attributes:
        scores: float64 [N] each, by name; larger is more anomalous.
        is_anomaly: Which samples are of another class than the normal ones, [N].
    """

    scores: dict[str, Array]
    is_anomaly: NDArray[np.bool_]

    def areas(self, *, seed: int, monitor: EvaluationMonitor | None = None) -> dict[str, AurocInterval]:
        """The area under the ROC curve of each score; `seed` is that of the bootstrap."""
        advance = (monitor or EvaluationMonitor()).start("Bootstrap", RESAMPLES * len(self.scores))
        return {
            name: auroc_interval(values, self.is_anomaly, seed=seed, advance=advance)
            for name, values in self.scores.items()
        }


def score_holdout(
    model: AnomalyModel,
    holdout: LabelledArrays,
    normal_classes: Collection[int],
    *,
    normal: Tensor | None = None,
    alpha: float = ALPHA,
    device: torch.device | str = "cpu",
    monitor: EvaluationMonitor | None = None,
) -> HoldoutScores:
    """Score the samples of a split with a model that was trained on some of its classes.

    Args:
        model: A model trained on samples of `normal_classes` alone. This cannot be checked here.
        holdout: Samples of all classes, with class labels.
        normal_classes: The normal classes; every other class is an anomaly.
        normal: Samples [N, ...] of the normal classes that are not in `holdout`, such as training samples, which
            standardize the terms. Without them, only the published scores are computed.
        alpha: Weight of reconstruction, 0 to 1.
        device: Where the model runs.
        monitor: Is told of progress, and may end the evaluation.

    Returns:
        The scores of `AnomalyTerms.scores`, and for the two sums also `<score>_standardised`.

    Raises:
        InputError: The model is conditional, or the holdout split lacks labels, normal samples or anomalies.
        FloatingPointError: A term is not finite.
    """
    if holdout.classes is None:
        raise InputError("Anomaly scores need class labels, but the holdout split has none: give data with classes.")
    if getattr(model, "condition_size", 0):
        raise InputError(
            "Anomaly scores need an unconditional model, but this one was trained with model.condition: "
            "train with model.condition none."
        )
    is_anomaly = ~np.isin(holdout.classes.numpy(), np.array(sorted(normal_classes)))
    _require_both_kinds(is_anomaly, normal_classes)
    monitor = monitor or EvaluationMonitor()
    advance = monitor.start("Scoring", len(holdout.x) + (0 if normal is None else len(normal)))
    terms = AnomalyTerms.compute(model, holdout.x, device, advance)
    scores = terms.scores(alpha)
    if normal is not None:
        standardized = terms.standardize(AnomalyTerms.compute(model, normal, device, advance)).scores(alpha)
        scores |= {f"{name}_standardised": standardized[name] for name in standardized if name.startswith("egbad")}
    return HoldoutScores(scores, is_anomaly)


def one_vs_rest(
    model: AnomalyModel,
    holdout: LabelledArrays,
    normal_classes: Collection[int],
    *,
    seed: int,
    normal: Tensor | None = None,
    alpha: float = ALPHA,
    device: torch.device | str = "cpu",
    monitor: EvaluationMonitor | None = None,
) -> dict[str, AurocInterval]:
    """Measure how well a model that was trained on some classes tells the others from them.

    Arguments and errors are those of `score_holdout`; `seed` is that of the bootstrap.

    Returns:
        The areas by score.
    """
    scores = score_holdout(model, holdout, normal_classes, normal=normal, alpha=alpha, device=device, monitor=monitor)
    return scores.areas(seed=seed, monitor=monitor)


def area_under_roc(scores: Array, is_anomaly: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of `scores` [N] for anomalies `is_anomaly` [N], exact, with ties counted half.

    It is the Mann-Whitney statistic: (sum of the anomalies' ranks - a (a + 1) / 2) / (a n), for a anomalies and n
    normal samples. Source: Hanley and McNeil, Radiology 143 (1982).

    Raises:
        ValueError: All samples are of one kind.
    """
    _, groups, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[groups]  # equal scores share the mean of their ranks, from 1
    anomalies = int(is_anomaly.sum())
    normals = len(scores) - anomalies
    if not anomalies or not normals:
        raise ValueError("The area needs samples of both kinds.")
    return float((ranks[is_anomaly].sum() - anomalies * (anomalies + 1) / 2) / (anomalies * normals))


def auroc_interval(
    scores: Array,
    is_anomaly: NDArray[np.bool_],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    advance: Advance | None = None,
) -> AurocInterval:
    """`area_under_roc` with its 95 % percentile bootstrap interval; anomalies and normal samples are resampled apart.

    `advance`, where given, is called with 1 after each resample.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    rng = np.random.default_rng([seed, resamples])
    kinds = [np.flatnonzero(is_anomaly), np.flatnonzero(~is_anomaly)]
    flags = np.repeat([True, False], [len(rows) for rows in kinds])
    values = []
    for _ in range(resamples):
        drawn = np.concatenate([rng.choice(rows, len(rows)) for rows in kinds])
        values.append(area_under_roc(scores[drawn], flags))
        if advance is not None:
            advance(1)
    low, high = np.quantile(values, [0.025, 0.975])
    return AurocInterval(area_under_roc(scores, is_anomaly), float(low), float(high))


def _require_both_kinds(is_anomaly: NDArray[np.bool_], normal_classes: Collection[int]) -> None:
    listed = ", ".join(str(label) for label in sorted(normal_classes)) or "none"
    if is_anomaly.all():
        raise InputError(
            f"The holdout split holds no sample of the normal classes ({listed}): name classes that it has."
        )
    if not is_anomaly.any():
        raise InputError(
            f"All samples of the holdout split are of the normal classes ({listed}), so there is no anomaly to find: "
            "name fewer classes."
        )
