"""What each metric means, in one line, and what to hold it against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricInfo:
    """How one metric is shown.

    Attributes:
        title: its name in words.
        text: what it is, and which way is better.
        reference: key of the metric it is held against, or None.
        reference_text: what that reference is; for a fixed ideal (no key) the whole text.
        share: a share from 0 to 1, shown in percent.
    """

    title: str
    text: str
    reference: str | None = None
    reference_text: str = ""
    share: bool = False


METRICS: Mapping[str, MetricInfo] = {
    "frechet": MetricInfo(
        "Fréchet distance",
        "between decoder samples and training images, in the features of a small classifier; lower is better",
        "frechet_reference",
        "real holdout images",
    ),
    "reconstruction_mse": MetricInfo(
        "Reconstruction error",
        "mean squared error of G(z), z ~ q(z|x), on the holdout split (for 2-D points: squared distance); "
        "lower is better",
        "reconstruction_mse_reference",
        "answering the mean image",
    ),
    "reconstruction_mse_mean": MetricInfo(
        "Reconstruction error from the mean",
        "the same with z = µ(x) in place of a sample",
        "reconstruction_mse_reference",
        "answering the mean image",
    ),
    "label_kept": MetricInfo(
        "Label kept",
        "share of holdout reconstructions that the classifier gives the true label; higher is better",
        "classifier_accuracy",
        "the originals themselves",
        share=True,
    ),
    "probe_accuracy": MetricInfo(
        "Linear probe on µ",
        "holdout accuracy of a linear SVM on µ(x) with 1000 labels; higher is better",
        "probe_raw_accuracy",
        "the same on raw pixels",
        share=True,
    ),
    "probe_features_accuracy": MetricInfo(
        "Linear probe on µ and hidden layers",
        "the same on µ with the encoder's last hidden layers, as in the paper",
        "probe_raw_accuracy",
        "the same on raw pixels",
        share=True,
    ),
    "probe_random_accuracy": MetricInfo(
        "Linear probe on an untrained µ",
        "the same encoder with fresh weights: what training has to beat",
        share=True,
    ),
    "condition_kept": MetricInfo(
        "Condition kept",
        "share of samples in which the classifier sees the class asked for (attributes: the mean over them)",
        "condition_kept_reference",
        "real holdout images and their own labels",
        share=True,
    ),
    "condition_balanced": MetricInfo(
        "Condition kept, balanced",
        "the same with samples that have an attribute and samples that lack it counted alike; 50 % by chance",
        "condition_balanced_reference",
        "real holdout images and their own labels",
        share=True,
    ),
    "semi_supervised_error": MetricInfo(
        "Error of K+1 classes", "wrong classes by the discriminator, which saw data.labelled labels", share=True
    ),
    "modes": MetricInfo("Modes captured", "modes with at least one sample within 3 std; more is better"),
    "high_quality": MetricInfo(
        "High quality",
        "share of samples within 3 std of their nearest mode",
        reference_text="98.9 % for a perfect 2-D sampler",
        share=True,
    ),
    "modes_assigned": MetricInfo(
        "Modes assigned", "modes that are nearest to at least one sample, however far (paper)"
    ),
    "reverse_kl": MetricInfo(
        "Reverse KL", "of the modes of high-quality samples from uniform, in nats; lower is better", reference_text="0"
    ),
    "right_mode": MetricInfo(
        "Right mode", "share of holdout points whose reconstruction is nearest to their own mode", share=True
    ),
    "latent_mmd2": MetricInfo(
        "Latent match (MMD²)",
        "unbiased squared MMD between z ~ q(z|x) over the holdout split and the prior",
        reference_text="0 for a perfect match",
    ),
    "latent_std_min": MetricInfo(
        "Smallest latent std", "over the latent variables of z ~ q(z|x) on the holdout split", reference_text="1"
    ),
    "latent_std_max": MetricInfo("Largest latent std", "the same, largest", reference_text="1"),
    "sigma_mean": MetricInfo("Mean σ(x)", "how wide q(z|x) is on average; 0 for a deterministic encoder"),
    "label_entropy": MetricInfo(
        "Label entropy of samples",
        "entropy of the classifier's labels of decoder samples, in nats; low means classes are missing",
        "label_entropy_reference",
        "training labels",
    ),
}
"""In the order of the report; metrics without a note follow under their own name."""


def format_metric(value: float, share: bool) -> str:
    """A metric's value in about four digits; a share in percent."""
    if share:
        return f"{value * 100:.1f} %"
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    """Rows (title, value, reference, explanation) of a table, notes' order first."""
    rows = []
    for key, note in METRICS.items():
        if key in metrics:
            rows.append(
                (note.title, format_metric(metrics[key], note.share), _format_reference(note, metrics), note.text)
            )
    used = set(METRICS) | {note.reference for note in METRICS.values()}
    for key, value in metrics.items():
        if key in used or key.endswith("_reference"):
            continue
        if key.startswith(("condition_kept_", "condition_balanced_")):
            kind, _, name = key.removeprefix("condition_").partition("_")
            title = f"Condition kept{', balanced' * (kind == 'balanced')}: {name}"
            real = metrics.get(f"{key}_reference")
            rows.append((title, format_metric(value, True), "" if real is None else format_metric(real, True), ""))
        else:
            rows.append((key, format_metric(value, False), "", ""))
    return rows


def _format_reference(note: MetricInfo, metrics: Mapping[str, float]) -> str:
    if note.reference is None:
        return note.reference_text
    if note.reference not in metrics:
        return ""
    return f"{format_metric(metrics[note.reference], note.share)} ({note.reference_text})"
