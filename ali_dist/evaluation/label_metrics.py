"""What labels add to an evaluation: a judge of images, linear probes, and how well a condition is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ali_dist.evaluation.batched import encode_mean, in_batches
from ali_dist.evaluation.classifiers import (
    AttributeJudge,
    Classifier,
    judge_updates,
    train_attribute_judge,
    train_classifier,
)
from ali_dist.evaluation.conditional import condition_kept, real_image_reference
from ali_dist.evaluation.coverage import histogram_entropy
from ali_dist.evaluation.frechet import Gaussian, scaled_frechet_distance
from ali_dist.evaluation.interfaces import BidirectionalModel, LabelledArrays
from ali_dist.evaluation.probe import LinearProbe
from ali_dist.model.data_space import condition_vectors

Map = Callable[[Tensor], Tensor]


class LabelMetrics(Protocol):
    """Metrics that need labels, prepared on one pair of splits."""

    def of_images(self, x_tilde: Tensor, asked: Tensor | None, x_rec: Tensor) -> dict[str, float]:
        """Metrics of decoder samples, of the conditions `asked` for, and of the holdout's reconstructions."""

    def of_model(self, model: BidirectionalModel) -> dict[str, float]:
        """Metrics of the encoder's representation, and of the model as a classifier."""


def make_label_metrics(
    train: LabelledArrays, holdout: LabelledArrays, *, seed: int, native: Map, device: torch.device | str
) -> LabelMetrics | None:
    """The metrics that the labels of both splits allow; None without labels of one kind in both, or with one class.

    Args:
        train: judge, Fréchet reference and probe labels come from here.
        holdout: accuracies are measured here.
        seed: of every draw.
        native: images at the training size to the size they are stored at, for the raw-pixel probe.
        device: where models and the judge run.
    """
    if train.y is None or holdout.y is None or train.y.ndim != holdout.y.ndim:
        return None
    if train.y.ndim == 1 and len(train.y.unique()) < 2:
        return None  # a classifier of one class knows nothing
    if train.y.ndim == 1:
        return _ClassMetrics.of(train, holdout, seed, native, device)
    return _AttributeMetrics.of(train, holdout, seed, device)


@dataclass(frozen=True)
class _ClassMetrics:
    judge: Classifier
    reference: Gaussian
    train: LabelledArrays
    holdout: LabelledArrays
    probe: LinearProbe
    seed: int
    device: torch.device | str
    constants: dict[str, float]

    @classmethod
    def of(
        cls, train: LabelledArrays, holdout: LabelledArrays, seed: int, native: Map, device: torch.device | str
    ) -> _ClassMetrics:
        assert train.y is not None and holdout.y is not None
        probe = LinearProbe(train, holdout, seed=seed)
        judge = train_classifier(train, seed=seed, device=device, steps=judge_updates(train.x))
        reference = Gaussian.of(judge.features(train.x))
        features = judge.features(holdout.x)
        constants = {
            "frechet_reference": scaled_frechet_distance(features, reference),
            "classifier_accuracy": _agreement_share(judge.classify(features), holdout.y),
            "probe_raw_accuracy": probe.accuracy(native),
            "label_entropy_reference": histogram_entropy(torch.bincount(train.y)),
        }
        return cls(judge, reference, train, holdout, probe, seed, device, constants)

    def of_images(self, x_tilde: Tensor, asked: Tensor | None, x_rec: Tensor) -> dict[str, float]:
        assert self.holdout.y is not None
        features = self.judge.features(x_tilde)
        rec_labels = self.judge.classify(self.judge.features(x_rec))
        metrics = {
            "frechet": scaled_frechet_distance(features, self.reference),
            "label_entropy": histogram_entropy(torch.bincount(self.judge.classify(features))),
            "label_kept": _agreement_share(rec_labels, self.holdout.y),
            **self.constants,
        }
        if asked is not None:
            metrics |= _condition_metrics(self.judge, x_tilde, asked, self.holdout)
        return metrics

    def of_model(self, model: BidirectionalModel) -> dict[str, float]:
        """Linear readability of the encoder, beside the same encoder untrained, and the error of K+1 classes.

        A conditional encoder is given the class: what a probe reads off it says nothing, so there is none.
        """
        metrics = {}
        if model.num_classes:
            assert self.holdout.y is not None
            logits = in_batches(model.classify, self.holdout.x, self.device, "discriminator's class logits")
            metrics["semi_supervised_error"] = 1 - _agreement_share(logits.argmax(1), self.holdout.y)
        if model.condition_size:
            return metrics
        untrained = model.untrained(self.seed)
        return metrics | {
            "probe_accuracy": self.probe.accuracy(lambda x: encode_mean(model, x, self.device)),
            "probe_features_accuracy": self.probe.accuracy(
                lambda x: in_batches(model.features, x, self.device, "encoder's feature map")
            ),
            "probe_random_accuracy": self.probe.accuracy(lambda x: encode_mean(untrained, x, self.device)),
        }


@dataclass(frozen=True)
class _AttributeMetrics:
    judge: AttributeJudge
    reference: Gaussian
    train: LabelledArrays
    holdout: LabelledArrays
    constants: dict[str, float]

    @classmethod
    def of(
        cls, train: LabelledArrays, holdout: LabelledArrays, seed: int, device: torch.device | str
    ) -> _AttributeMetrics:
        assert train.y is not None and holdout.y is not None
        judge = train_attribute_judge(train.x, train.y, seed=seed, device=device)
        reference = Gaussian.of(judge.features(train.x))
        constants = {
            "frechet_reference": scaled_frechet_distance(judge.features(holdout.x), reference),
            "classifier_accuracy": _agreement_share(judge.has(holdout.x), holdout.y > 0.5),
        }
        return cls(judge, reference, train, holdout, constants)

    def of_images(self, x_tilde: Tensor, asked: Tensor | None, x_rec: Tensor) -> dict[str, float]:
        assert self.holdout.y is not None
        metrics = {
            "frechet": scaled_frechet_distance(self.judge.features(x_tilde), self.reference),
            "label_kept": _agreement_share(self.judge.has(x_rec), self.holdout.y > 0.5),
            **self.constants,
        }
        if asked is not None:
            metrics |= _condition_metrics(self.judge, x_tilde, asked, self.holdout)
        return metrics

    def of_model(self, model: BidirectionalModel) -> dict[str, float]:
        del model  # linear probes are of classes
        return {}


def _condition_metrics(
    judge: Classifier | AttributeJudge, x_tilde: Tensor, asked: Tensor, holdout: LabelledArrays
) -> dict[str, float]:
    """How well conditions are kept, beside what real images get."""
    assert holdout.y is not None
    kept = condition_kept(judge, x_tilde, asked, holdout.names)
    return kept | real_image_reference(judge, holdout.x, condition_vectors(holdout.y, asked.shape[1]), holdout.names)


def _agreement_share(labels: Tensor, truth: Tensor) -> float:
    """Share (0 to 1) of equal entries."""
    return float((labels == truth).double().mean())
