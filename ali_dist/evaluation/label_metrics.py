"""What labels add to an evaluation: a classifier of images, linear probes, and how well a condition is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from ali_dist.evaluation.batched import encode_mean, in_batches
from ali_dist.evaluation.classifiers import (
    AttributeClassifier,
    Classifier,
    classifier_updates,
    train_attribute_classifier,
    train_classifier,
)
from ali_dist.evaluation.conditional import condition_kept, real_image_reference
from ali_dist.evaluation.coverage import histogram_entropy
from ali_dist.evaluation.frechet import Gaussian, scaled_frechet_distance
from ali_dist.evaluation.interfaces import BidirectionalModel, LabelledArrays
from ali_dist.evaluation.probe import LinearProbe
from ali_dist.model.data_space import condition_vectors

ImageMap = Callable[[Tensor], Tensor]


class LabelMetrics(Protocol):
    """Metrics that need labels, prepared on one pair of splits."""

    def features(self, x: Tensor) -> Tensor:
        """Features [N, F] of images [N, C, H, W] by the classifier that the metrics rest on."""

    def measure_images(self, x_tilde: Tensor, c: Tensor | None, x_rec: Tensor) -> dict[str, float]:
        """Measure what a model has made.

        Args:
            x_tilde: Decoder samples [N, C, H, W] in [0, 1].
            c: Their conditions [N, A]; None for an unconditional model.
            x_rec: Reconstructions of the whole holdout split.
        """

    def measure_model(self, model: BidirectionalModel) -> dict[str, float]:
        """Measure the encoder's representation, and the model as a classifier."""


def make_label_metrics(
    train: LabelledArrays,
    holdout: LabelledArrays,
    *,
    seed: int,
    native_from_unit: ImageMap,
    device: torch.device | str,
) -> LabelMetrics | None:
    """Prepare the metrics that the labels of both splits allow.

    Args:
        train: Trains the classifier and gives the Fréchet reference and the probe's labels.
        holdout: Accuracies are measured here.
        seed: Seed of every draw.
        native_from_unit: Brings images to the size they are stored at, for the raw-pixel probe.
        device: Where models and the classifier run.

    Returns:
        None without labels of one kind in both splits, or with a single class, of which a classifier learns nothing.
    """
    if train.y is None or holdout.y is None or train.y.ndim != holdout.y.ndim:
        return None
    if train.y.ndim == 2:
        return _AttributeMetrics.prepare(train, holdout, seed, device)
    if len(train.y.unique()) < 2:
        return None
    return _ClassMetrics.prepare(train, holdout, seed, native_from_unit, device)


@dataclass(frozen=True)
class _ClassMetrics:
    """Metrics of images with classes.

    Attributes:
        classifier: Trained on the training split.
        reference: Its features of the training images.
        holdout: The split that is measured on.
        probe: Reads classes off representations.
        seed: Seed of the untrained encoder.
        device: Where models run.
        constants: Metrics that depend on the data alone.
    """

    classifier: Classifier
    reference: Gaussian
    holdout: LabelledArrays
    probe: LinearProbe
    seed: int
    device: torch.device | str
    constants: dict[str, float]

    @classmethod
    def prepare(
        cls,
        train: LabelledArrays,
        holdout: LabelledArrays,
        seed: int,
        native_from_unit: ImageMap,
        device: torch.device | str,
    ) -> Self:
        assert train.y is not None and holdout.y is not None
        probe = LinearProbe(train, holdout, seed=seed)
        classifier = train_classifier(train, seed=seed, device=device, steps=classifier_updates(train.x))
        reference = Gaussian.fit(classifier.features(train.x))
        features = classifier.features(holdout.x)
        constants = {
            "frechet_reference": scaled_frechet_distance(features, reference),
            "classifier_accuracy": _agreement_share(classifier.classify(features), holdout.y),
            "probe_raw_accuracy": probe.accuracy(native_from_unit),
            "label_entropy_reference": histogram_entropy(torch.bincount(train.y)),
        }
        unseen = set(holdout.y.tolist()) - set(train.y.tolist())
        if unseen:
            constants["unseen_classes"] = float(len(unseen))
        return cls(classifier, reference, holdout, probe, seed, device, constants)

    def features(self, x: Tensor) -> Tensor:
        return self.classifier.features(x)

    def measure_images(self, x_tilde: Tensor, c: Tensor | None, x_rec: Tensor) -> dict[str, float]:
        assert self.holdout.y is not None
        features = self.classifier.features(x_tilde)
        rec_labels = self.classifier.classify(self.classifier.features(x_rec))
        metrics = {
            "frechet": scaled_frechet_distance(features, self.reference),
            "label_entropy": histogram_entropy(torch.bincount(self.classifier.classify(features))),
            "label_kept": _agreement_share(rec_labels, self.holdout.y),
            **self.constants,
        }
        if c is not None:
            metrics |= _condition_metrics(self.classifier, x_tilde, c, self.holdout)
        return metrics

    def measure_model(self, model: BidirectionalModel) -> dict[str, float]:
        """Measure how linearly readable the encoder is, beside the same encoder untrained, and the K+1 classes' error.

        A conditional encoder is given the class, so what a probe reads off it says nothing: there is none then.
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
    """Metrics of images with attributes; the fields are those of `_ClassMetrics`."""

    classifier: AttributeClassifier
    reference: Gaussian
    holdout: LabelledArrays
    constants: dict[str, float]

    @classmethod
    def prepare(cls, train: LabelledArrays, holdout: LabelledArrays, seed: int, device: torch.device | str) -> Self:
        assert train.y is not None and holdout.y is not None
        classifier = train_attribute_classifier(train.x, train.y, seed=seed, device=device)
        reference = Gaussian.fit(classifier.features(train.x))
        constants = {
            "frechet_reference": scaled_frechet_distance(classifier.features(holdout.x), reference),
            "classifier_accuracy": _agreement_share(classifier.detect_attributes(holdout.x), holdout.y > 0.5),
        }
        return cls(classifier, reference, holdout, constants)

    def features(self, x: Tensor) -> Tensor:
        return self.classifier.features(x)

    def measure_images(self, x_tilde: Tensor, c: Tensor | None, x_rec: Tensor) -> dict[str, float]:
        assert self.holdout.y is not None
        metrics = {
            "frechet": scaled_frechet_distance(self.classifier.features(x_tilde), self.reference),
            "label_kept": _agreement_share(self.classifier.detect_attributes(x_rec), self.holdout.y > 0.5),
            **self.constants,
        }
        if c is not None:
            metrics |= _condition_metrics(self.classifier, x_tilde, c, self.holdout)
        return metrics

    def measure_model(self, model: BidirectionalModel) -> dict[str, float]:
        del model  # linear probes are of classes
        return {}


def _condition_metrics(
    classifier: Classifier | AttributeClassifier, x_tilde: Tensor, c: Tensor, holdout: LabelledArrays
) -> dict[str, float]:
    """How well conditions are kept, beside what real images get."""
    assert holdout.y is not None
    c_holdout = condition_vectors(holdout.y, c.shape[1])
    kept = condition_kept(classifier, x_tilde, c, holdout.names)
    return kept | real_image_reference(classifier, holdout.x, c_holdout, holdout.names)


def _agreement_share(labels: Tensor, truth: Tensor) -> float:
    """Share (0 to 1) of equal entries."""
    return float((labels == truth).double().mean())
