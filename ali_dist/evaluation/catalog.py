"""The catalog of metrics: one row for each number that `summary.json` or `evaluate` may hold.

Whatever shows, offers or compares metrics reads this table: the report page and its charts, the table of `evaluate` and
its `--metrics`, the live line on the terminal, and the metrics that a sweep can optimize. A new metric is a
module in this package and a row here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """What one metric is and how it is shown.

    Attributes:
        key: Its name in files and on command lines.
        title: Its name in words.
        meaning: What it is, without which way is better.
        better: Which way is better; None where neither is.
        reference: Key of the number it is held against, or None.
        reference_text: What that number is; for a fixed ideal (without a key), the whole text.
        is_share: Whether it is a share from 0 to 1, shown in percent.
        least: Smallest value that it can have; a share's is 0.
        most: Largest value that it can have; a share's is 1.
        needs_many: Whether it, or its reference, says little of few images: `compared_images` stands beside it then.
        needs_classes: Whether classes that the training split lacks make it say less.
        is_live: Whether the terminal shows it while training runs.
        is_charted: Whether the report page draws its curve over the training.
        is_sweepable: Whether a sweep can compare trials by it alone (`--metric`).
    """

    key: str
    title: str
    meaning: str
    better: Literal["higher", "lower"] | None = None
    reference: str | None = None
    reference_text: str = ""
    is_share: bool = False
    least: float = -math.inf
    most: float = math.inf
    needs_many: bool = False
    needs_classes: bool = False
    is_live: bool = False
    is_charted: bool = False
    is_sweepable: bool = False

    @property
    def text(self) -> str:
        """What it is and which way is better, in one line."""
        return self.meaning if self.better is None else f"{self.meaning}; {self.better} is better"

    @property
    def bounds(self) -> tuple[float, float]:
        """What it can be, from least to most."""
        return (0.0, 1.0) if self.is_share else (self.least, self.most)


_ROWS = (
    MetricInfo(
        key="frechet",
        title="Fréchet distance",
        meaning="between decoder samples and training images, in the features of a small classifier",
        least=0.0,
        needs_many=True,
        better="lower",
        reference="frechet_reference",
        reference_text="real holdout images",
        is_live=True,
        is_charted=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="swd",
        title="Sliced Wasserstein distance",
        meaning="between patches of decoder samples and of training images, mean over the scales, in thousandths",
        least=0.0,
        needs_many=True,
        better="lower",
        reference="swd_reference",
        reference_text="real holdout images",
        is_live=True,
        is_charted=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="precision",
        title="Precision of samples",
        meaning="share of decoder samples that lie among the training images, in the features of a network",
        needs_many=True,
        better="higher",
        reference="precision_reference",
        reference_text="real holdout images",
        is_share=True,
        is_charted=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="recall",
        title="Recall of samples",
        meaning="share of training images that lie among the decoder samples",
        needs_many=True,
        better="higher",
        reference="recall_reference",
        reference_text="real holdout images",
        is_share=True,
        is_charted=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="density",
        title="Density of samples",
        meaning="how densely training images lie around decoder samples, against 1 among themselves",
        least=0.0,
        needs_many=True,
        better="higher",
        reference="density_reference",
        reference_text="real holdout images",
        is_sweepable=True,
    ),
    MetricInfo(
        key="coverage_real",
        title="Coverage of real images",
        meaning="share of training images that have a decoder sample among their five nearest neighbors",
        needs_many=True,
        better="higher",
        reference="coverage_real_reference",
        reference_text="real holdout images",
        is_share=True,
        is_live=True,
        is_charted=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="reconstruction_mse",
        title="Reconstruction error",
        meaning="mean squared error of G(z), z ~ q(z|x), on the holdout split (for 2-D points: squared distance)",
        least=0.0,
        better="lower",
        reference="reconstruction_mse_reference",
        reference_text="answering the mean image",
        is_live=True,
        is_charted=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="reconstruction_mse_mean",
        title="Reconstruction error from the mean",
        meaning="the same with z = µ(x) in place of a sample",
        least=0.0,
        better="lower",
        reference="reconstruction_mse_reference",
        reference_text="answering the mean image",
    ),
    MetricInfo(
        key="label_kept",
        title="Label kept",
        meaning="share of holdout reconstructions that the classifier gives the true label",
        needs_classes=True,
        better="higher",
        reference="classifier_accuracy",
        reference_text="the originals themselves",
        is_share=True,
        is_live=True,
        is_charted=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="probe_accuracy",
        title="Linear probe on µ",
        meaning="holdout accuracy of a linear SVM on µ(x) with at most 1,000 labels",
        needs_classes=True,
        better="higher",
        reference="probe_raw_accuracy",
        reference_text="the same on raw pixels",
        is_share=True,
        is_live=True,
        is_charted=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="probe_features_accuracy",
        title="Linear probe on µ and hidden layers",
        meaning="the same on µ with the encoder's last hidden layers, as in the paper",
        needs_classes=True,
        better="higher",
        reference="probe_raw_accuracy",
        reference_text="the same on raw pixels",
        is_share=True,
    ),
    MetricInfo(
        key="probe_random_accuracy",
        title="Linear probe on an untrained µ",
        meaning="the same encoder with fresh weights: what training has to beat",
        needs_classes=True,
        is_share=True,
    ),
    MetricInfo(
        key="condition_kept",
        title="Condition kept",
        meaning="share of samples in which the classifier sees the class asked for (attributes: the mean over them)",
        needs_classes=True,
        better="higher",
        reference="condition_kept_reference",
        reference_text="real holdout images and their own labels",
        is_share=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="condition_balanced",
        title="Condition kept, balanced",
        meaning="the same with samples that have an attribute and samples that lack it counted alike; 50 % by chance",
        needs_classes=True,
        better="higher",
        reference="condition_balanced_reference",
        reference_text="real holdout images and their own labels",
        is_share=True,
    ),
    MetricInfo(
        key="semi_supervised_error",
        title="Error of K+1 classes",
        meaning="share of wrong classes by the discriminator, which saw data.labelled labels",
        needs_classes=True,
        better="lower",
        is_share=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="modes",
        title="Modes captured",
        meaning="modes with at least one sample within 3 std",
        least=0.0,
        better="higher",
        is_live=True,
        is_charted=True,
    ),
    MetricInfo(
        key="high_quality",
        title="High quality",
        meaning="share of samples within 3 std of their nearest mode",
        better="higher",
        reference_text="98.9 % for a perfect 2-D sampler",
        is_share=True,
        is_live=True,
        is_charted=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="modes_assigned",
        title="Modes assigned",
        meaning="modes that are nearest to at least one sample, however far (paper)",
        least=0.0,
        better="higher",
    ),
    MetricInfo(
        key="reverse_kl",
        title="Reverse KL",
        meaning="divergence of the modes of high-quality samples from uniform, in nats",
        least=0.0,
        better="lower",
        reference_text="0",
        is_sweepable=True,
    ),
    MetricInfo(
        key="right_mode",
        title="Right mode",
        meaning="share of holdout points whose reconstruction is nearest to their own mode",
        better="higher",
        is_share=True,
        is_live=True,
        is_sweepable=True,
    ),
    MetricInfo(
        key="latent_mmd2",
        title="Latent match (MMD²)",
        meaning="unbiased squared MMD between z ~ q(z|x) over the holdout split and the prior",
        better="lower",
        reference_text="0 for a perfect match",
        is_sweepable=True,
    ),
    MetricInfo(
        key="latent_std_min",
        title="Smallest latent std",
        meaning="over the latent variables of z ~ q(z|x) on the holdout split",
        least=0.0,
        reference_text="1",
    ),
    MetricInfo(
        key="latent_std_max",
        title="Largest latent std",
        meaning="the same, largest",
        reference_text="1",
        least=0.0,
    ),
    MetricInfo(
        key="sigma_mean",
        title="Mean σ(x)",
        meaning="how wide q(z|x) is on average; 0 for a deterministic encoder",
        least=0.0,
    ),
    MetricInfo(
        key="label_entropy",
        title="Label entropy of samples",
        meaning="entropy of the classifier's labels of decoder samples, in nats; low means classes are missing",
        least=0.0,
        reference="label_entropy_reference",
        reference_text="training labels",
    ),
    MetricInfo(
        key="compared_images",
        title="Images compared",
        meaning="fewest images on a side of a distance: decoder samples, training images or holdout images",
        least=0.0,
    ),
    MetricInfo(
        key="unseen_classes",
        title="Unseen classes",
        meaning="classes of the split measured on that the training split lacks, which nothing could be learned of",
        better="lower",
        least=0.0,
    ),
    # ---- evaluate --what svm ----
    MetricInfo(
        key="svm_error",
        title="SVM error",
        meaning="test error of the SVM on µ and the encoder's last three hidden layers, mean over the draws",
        better="lower",
        is_share=True,
    ),
    MetricInfo(
        key="svm_error_std",
        title="SVM error, std",
        meaning="its population standard deviation over the draws, as the paper prints it",
        is_share=True,
    ),
    MetricInfo(
        key="svm_penalty",
        title="SVM penalty C",
        meaning="the C that one draw and the split valid (else a held-out part of the training split) chose",
        least=0.0,
    ),
    MetricInfo(
        key="svm_validation_error",
        title="SVM validation error",
        meaning="error of that C there, with that draw",
        is_share=True,
    ),
    MetricInfo(key="svm_labels", title="SVM labels", meaning="labels in each draw"),
    MetricInfo(key="svm_features", title="SVM features", meaning="size of the representation"),
    MetricInfo(
        key="svm_unconverged",
        title="SVM fits not converged",
        meaning="fits that reached the solver's limit of iterations",
    ),
    # ---- evaluate --what knn ----
    MetricInfo(
        key="knn_1_mu_error",
        title="Error of the nearest neighbor on µ",
        meaning="test samples whose nearest training sample on µ (Euclidean distance) has another class",
        better="lower",
        is_share=True,
    ),
    MetricInfo(
        key="knn_5_mu_error",
        title="Error of 5 nearest neighbors on µ",
        meaning="the same by a vote of the 5 nearest",
        better="lower",
        is_share=True,
    ),
    MetricInfo(
        key="knn_1_features_error",
        title="Error of the nearest neighbor on features",
        meaning="the same as on µ, on µ and the encoder's last three hidden layers, as in the paper's SVM",
        better="lower",
        is_share=True,
    ),
    MetricInfo(
        key="knn_5_features_error",
        title="Error of 5 nearest neighbors on features",
        meaning="the same by a vote of the 5 nearest",
        better="lower",
        is_share=True,
    ),
    # ---- evaluate --what anomaly ----
    MetricInfo(
        key="auroc_reconstruction",
        title="AUROC of reconstruction",
        meaning="of |x - G(E(x))|: 1 tells every anomaly, 0.5 none",
        least=0.0,
        most=1.0,
        better="higher",
    ),
    MetricInfo(
        key="auroc_cross_entropy",
        title="AUROC of cross-entropy",
        meaning="of the discriminator's cross-entropy of (x, E(x))",
        least=0.0,
        most=1.0,
        better="higher",
    ),
    MetricInfo(
        key="auroc_features",
        title="AUROC of features",
        meaning="of the distance in the discriminator's last hidden layer (feature matching)",
        least=0.0,
        most=1.0,
        better="higher",
    ),
    MetricInfo(
        key="auroc_egbad_cross_entropy",
        title="AUROC of EGBAD, cross-entropy",
        meaning="of EGBAD's sum of reconstruction and cross-entropy",
        least=0.0,
        most=1.0,
        better="higher",
    ),
    MetricInfo(
        key="auroc_egbad_features",
        title="AUROC of EGBAD, features",
        meaning="of EGBAD's sum of reconstruction and feature matching",
        least=0.0,
        most=1.0,
        better="higher",
    ),
    MetricInfo(
        key="auroc_egbad_cross_entropy_standardised",
        title="AUROC of EGBAD, cross-entropy, standardized",
        meaning="of EGBAD's sum with cross-entropy, each term standardized on normal training samples",
        least=0.0,
        most=1.0,
        better="higher",
    ),
    MetricInfo(
        key="auroc_egbad_features_standardised",
        title="AUROC of EGBAD, features, standardized",
        meaning="of EGBAD's sum with feature matching, each term standardized likewise",
        least=0.0,
        most=1.0,
        better="higher",
    ),
    # ---- evaluate --what fid ----
    MetricInfo(
        key="fid",
        title="FID",
        meaning="Fréchet Inception distance of decoder samples to the training images; biased by their number",
        least=0.0,
        needs_many=True,
        better="lower",
    ),
    MetricInfo(
        key="kid",
        title="KID",
        meaning="kernel Inception distance of the same; about 0 for a perfect model",
        needs_many=True,
        better="lower",
    ),
    MetricInfo(
        key="kid_std",
        title="KID, std",
        meaning="its population standard deviation over subsets",
        least=0.0,
    ),
)

METRICS: Mapping[str, MetricInfo] = {row.key: row for row in _ROWS}
"""All metrics by key, in the order in which they are shown; metrics without a row follow under their own key."""

_FAMILIES = {"condition_kept_": "condition_kept", "condition_balanced_": "condition_balanced"}
"""How keys of one class or attribute begin (`condition_kept_NAME`), and the metric that they split up."""


FEW_IMAGES = 1000
"""With fewer images on a side, distances and shares of neighbors are marked: they are biased, and move by chance."""


CAVEAT_KEYS = ("compared_images", "unseen_classes")
"""Metrics that say how far others can be trusted: `metric_caveats` reads them."""


def metric_bounds(key: str) -> tuple[float, float]:
    """What a metric, a reference or a number of a family can be; infinite where nothing is known of it."""
    whole = next((row.key for row in METRICS.values() if row.reference == key), key)
    row = METRICS.get(family_of(whole) or whole)
    return (-math.inf, math.inf) if row is None else row.bounds


def metric_caveats(key: str, metrics: Mapping[str, float]) -> list[str]:
    """What limits the value of a metric, in words to stand beside it: few images, classes that training lacks.

    Args:
        key: The metric, or a number of a family.
        metrics: The evaluation that it is part of, whose `compared_images` and `unseen_classes` say so.
    """
    row = METRICS.get(family_of(key) or key)
    if row is None:
        return []
    caveats = []
    compared = metrics.get("compared_images", math.inf)
    if row.needs_many and compared < FEW_IMAGES:
        caveats.append(f"few samples ({compared:.0f})")
    unseen = metrics.get("unseen_classes", 0)
    if row.needs_classes and unseen:
        caveats.append(f"{unseen:.0f} {'class' if unseen == 1 else 'classes'} not in training")
    return caveats


def reference_keys() -> list[str]:
    """The keys of the numbers that metrics are held against, each once."""
    return list(dict.fromkeys(row.reference for row in METRICS.values() if row.reference))


def metric_keys() -> list[str]:
    """Every key that is known by name: metrics, then references. Families (`condition_kept_NAME`) are not listed."""
    return [*METRICS, *(key for key in reference_keys() if key not in METRICS)]


def family_of(key: str) -> str | None:
    """The metric that a key of a family splits up, such as `condition_kept` for `condition_kept_NAME`; else None."""
    return next((whole for prefix, whole in _FAMILIES.items() if key.startswith(prefix)), None)


def is_known_key(key: str) -> bool:
    """Whether a key is a metric's, a reference's, or one of a family (`condition_kept_NAME`)."""
    return key in METRICS or key in reference_keys() or family_of(key) is not None
