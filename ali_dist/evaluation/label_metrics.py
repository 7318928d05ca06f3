"""What labels add to an evaluation: a classifier of images, linear probes, and how well a condition is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ali_dist.evaluation.batched import encode_mean, in_batches
from ali_dist.evaluation.classifiers import (
    AttributeClassifier,
    Classifier,
    classifier_tensors,
    classifier_updates,
    restore_attribute_classifier,
    restore_classifier,
    train_attribute_classifier,
    train_classifier,
)
from ali_dist.evaluation.conditional import condition_kept, real_image_reference
from ali_dist.evaluation.coverage import histogram_entropy
from ali_dist.evaluation.frechet import Gaussian, scaled_frechet_distance
from ali_dist.evaluation.interfaces import BidirectionalModel, LabelledArrays
from ali_dist.evaluation.monitor import EvaluationMonitor, WatchedModel
from ali_dist.evaluation.probe import MOST_RAW_DIMENSIONS, LinearProbe
from ali_dist.evaluation.reference_cache import ReferenceCache
from ali_dist.model.data_space import condition_vectors

ImageMap = Callable[[Tensor], Tensor]


class LabelMetrics(Protocol):
    """Metrics that need labels, prepared on one pair of splits."""

    def features(self, x: Tensor) -> Tensor:
        """Features [N, F] of images [N, C, H, W] by the classifier that the metrics rest on."""

    def measure_images(self, x_tilde: Tensor, c: Tensor | None, rec_labels: Tensor) -> dict[str, float]:
        """Measure what a model has made.

        Args:
            x_tilde: Decoder samples [N, C, H, W] in [0, 1].
            c: Their conditions [N, A]; None for an unconditional model.
            rec_labels: What `label_images` gives for the reconstructions of the whole holdout split.
        """

    def label_images(self, x: Tensor) -> Tensor:
        """What the classifier sees in images [N, C, H, W]: classes int64 [N], or attributes bool [N, A]."""

    def measure_model(self, model: BidirectionalModel) -> dict[str, float]:
        """Measure the encoder's representation, and the model as a classifier."""


def make_label_metrics(
    train: LabelledArrays,
    holdout: LabelledArrays,
    *,
    seed: int,
    native_from_unit: ImageMap,
    device: torch.device | str,
    monitor: EvaluationMonitor | None = None,
    cache: ReferenceCache | None = None,
) -> LabelMetrics | None:
    """Prepare the metrics that the labels of both splits allow.

    Args:
        train: Trains the classifier and gives the Fréchet reference and the probe's labels.
        holdout: Accuracies are measured here.
        seed: Seed of every draw.
        native_from_unit: Brings images to the size they are stored at, for the raw-pixel probe.
        device: Where models and the classifier run.
        monitor: Is told of progress, and may end the evaluation.
        cache: Keeps what depends on the data alone.

    Returns:
        None without labels of one kind in both splits, or with a single class, of which a classifier learns nothing.
    """
    if train.y is None or holdout.y is None or train.y.ndim != holdout.y.ndim:
        return None
    preparation = _Preparation(train, holdout, seed, device, monitor or EvaluationMonitor(), cache or ReferenceCache())
    if train.y.ndim == 2:
        return _AttributeMetrics.prepare(preparation)
    if len(train.y.unique()) < 2:
        return None
    return _ClassMetrics.prepare(preparation, native_from_unit)


@dataclass(frozen=True)
class _Preparation:
    """What metrics are prepared from; the fields are the arguments of `make_label_metrics`."""

    train: LabelledArrays
    holdout: LabelledArrays
    seed: int
    device: torch.device | str
    monitor: EvaluationMonitor
    cache: ReferenceCache

    def settings(self) -> dict[str, Any]:
        """What decides a classifier of the training split."""
        return {
            "train": self.train.identity,
            "seed": self.seed,
            "updates": classifier_updates(self.train.x),
            "device": torch.device(self.device).type,
        }

    def train_reference(self) -> tuple[dict[str, Tensor], Gaussian]:
        """Train a classifier, or find it: its weights, and the moments of its features of the training images."""

        def compute() -> dict[str, Tensor]:
            classifier = self._train_classifier()
            advance = self.monitor.start("Fréchet reference", len(self.train.x))
            reference = Gaussian.fit(classifier.features(self.train.x, advance))
            moments = {"mean": reference.mean, "covariance": reference.covariance}
            return classifier_tensors(classifier) | {key: torch.from_numpy(value) for key, value in moments.items()}

        tensors = dict(self.cache.recall("classifier", self.settings(), compute))
        mean, covariance = (tensors.pop(key).numpy() for key in ("mean", "covariance"))
        return tensors, Gaussian(mean, covariance)

    def _train_classifier(self) -> Classifier | AttributeClassifier:
        assert self.train.y is not None
        updates = classifier_updates(self.train.x)
        advance = self.monitor.start("Training the classifier", updates)
        if self.train.y.ndim == 2:
            return train_attribute_classifier(
                self.train.x, self.train.y, seed=self.seed, device=self.device, on_step=advance
            )
        return train_classifier(self.train, seed=self.seed, device=self.device, steps=updates, on_step=advance)

    def recall_constants(self, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Metrics that depend on both splits alone: computed, or found."""
        settings = self.settings() | {"holdout": self.holdout.identity}

        def as_tensors() -> dict[str, Tensor]:
            return {key: torch.tensor(value, dtype=torch.float64) for key, value in compute().items()}

        found = self.cache.recall("constants", settings, as_tensors)
        return {key: float(value) for key, value in found.items()}


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
        monitor: Is told of progress, and may end the evaluation.
        constants: Metrics that depend on the data alone.
    """

    classifier: Classifier
    reference: Gaussian
    holdout: LabelledArrays
    probe: LinearProbe
    seed: int
    device: torch.device | str
    monitor: EvaluationMonitor
    constants: dict[str, float]

    @classmethod
    def prepare(cls, given: _Preparation, native_from_unit: ImageMap) -> Self:
        train, holdout, monitor = given.train, given.holdout, given.monitor
        assert train.y is not None and holdout.y is not None
        y_train, y_holdout = train.y, holdout.y
        probe = LinearProbe(train, holdout, seed=given.seed, monitor=monitor)
        weights, reference = given.train_reference()
        classifier = restore_classifier(weights, train.x.shape[1], int(y_train.max()) + 1, given.device)

        def measure_data() -> dict[str, float]:
            features = classifier.features(holdout.x, monitor.start("Classifying real images", len(holdout.x)))
            return {
                "frechet_reference": scaled_frechet_distance(features, reference),
                "classifier_accuracy": _agreement_share(classifier.classify(features), y_holdout),
                "probe_raw_accuracy": probe.accuracy(
                    native_from_unit, name="raw pixels", dimensions=MOST_RAW_DIMENSIONS
                ),
                "label_entropy_reference": histogram_entropy(torch.bincount(y_train)),
            }

        constants = given.recall_constants(measure_data)
        unseen = set(y_holdout.tolist()) - set(y_train.tolist())
        if unseen:
            constants["unseen_classes"] = float(len(unseen))
        return cls(classifier, reference, holdout, probe, given.seed, given.device, monitor, constants)

    def features(self, x: Tensor) -> Tensor:
        return self.classifier.features(x)

    def measure_images(self, x_tilde: Tensor, c: Tensor | None, rec_labels: Tensor) -> dict[str, float]:
        assert self.holdout.y is not None
        features = self.classifier.features(x_tilde, self.monitor.start("Classifying samples", len(x_tilde)))
        metrics = {
            "frechet": scaled_frechet_distance(features, self.reference),
            "label_entropy": histogram_entropy(torch.bincount(self.classifier.classify(features))),
            "label_kept": _agreement_share(rec_labels, self.holdout.y),
            **self.constants,
        }
        if c is not None:
            metrics |= _condition_metrics(self.classifier, x_tilde, c, self.holdout)
        return metrics

    def label_images(self, x: Tensor) -> Tensor:
        return self.classifier.classify(self.classifier.features(x))

    def measure_model(self, model: BidirectionalModel) -> dict[str, float]:
        """Measure how linearly readable the encoder is, beside the same encoder untrained, and the K+1 classes' error.

        A conditional encoder is given the class, so what a probe reads off it says nothing: there is none then.
        """
        metrics = {}
        if model.num_classes:
            assert self.holdout.y is not None
            watched = WatchedModel(model, self.monitor.start("Classes of D", len(self.holdout.x)))
            logits = in_batches(watched.classify, self.holdout.x, self.device, "discriminator's class logits")
            metrics["semi_supervised_error"] = 1 - _agreement_share(logits.argmax(1), self.holdout.y)
        if model.condition_size:
            return metrics
        # Each is encoded for a probe: the pool of drawn samples, and the holdout split.
        watched = WatchedModel(model, self.monitor.start("Encoding for the probes", None))
        untrained = watched.untrained(self.seed)
        return metrics | {
            "probe_accuracy": self.probe.accuracy(lambda x: encode_mean(watched, x, self.device), name="µ"),
            "probe_features_accuracy": self.probe.accuracy(
                lambda x: in_batches(watched.features, x, self.device, "encoder's feature map"),
                name="µ and hidden layers",
            ),
            "probe_random_accuracy": self.probe.accuracy(
                lambda x: encode_mean(untrained, x, self.device), name="an untrained µ"
            ),
        }


@dataclass(frozen=True)
class _AttributeMetrics:
    """Metrics of images with attributes; the fields are those of `_ClassMetrics`."""

    classifier: AttributeClassifier
    reference: Gaussian
    holdout: LabelledArrays
    monitor: EvaluationMonitor
    constants: dict[str, float]

    @classmethod
    def prepare(cls, given: _Preparation) -> Self:
        train, holdout, monitor = given.train, given.holdout, given.monitor
        assert train.y is not None and holdout.y is not None
        y_holdout = holdout.y
        weights, reference = given.train_reference()
        classifier = restore_attribute_classifier(weights, train.x.shape[1], train.y.shape[1], given.device)

        def measure_data() -> dict[str, float]:
            features = classifier.features(holdout.x, monitor.start("Classifying real images", len(holdout.x)))
            return {
                "frechet_reference": scaled_frechet_distance(features, reference),
                "classifier_accuracy": _agreement_share(classifier.detect_attributes(holdout.x), y_holdout > 0.5),
            }

        return cls(classifier, reference, holdout, monitor, given.recall_constants(measure_data))

    def features(self, x: Tensor) -> Tensor:
        return self.classifier.features(x)

    def measure_images(self, x_tilde: Tensor, c: Tensor | None, rec_labels: Tensor) -> dict[str, float]:
        assert self.holdout.y is not None
        advance = self.monitor.start("Classifying samples", len(x_tilde))
        metrics = {
            "frechet": scaled_frechet_distance(self.classifier.features(x_tilde, advance), self.reference),
            "label_kept": _agreement_share(rec_labels, self.holdout.y > 0.5),
            **self.constants,
        }
        if c is not None:
            metrics |= _condition_metrics(self.classifier, x_tilde, c, self.holdout)
        return metrics

    def label_images(self, x: Tensor) -> Tensor:
        return self.classifier.detect_attributes(x)

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
