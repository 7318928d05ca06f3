"""What `evaluate` measures of a saved model: the run's metrics, the paper's SVM protocol, EGBAD, FID and KID."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ali_dist.data.shards.reader import load_arrays
from ali_dist.errors import InputError
from ali_dist.evaluation import batched as inference
from ali_dist.evaluation.evaluators import ImageEvaluator, evaluate_mixture
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.inference.conditions import find_class
from ali_dist.inference.features import compute_features
from ali_dist.inference.load import LoadedRun
from ali_dist.inference.samples import conditions_for_samples
from ali_dist.report.tables import MetricEstimate
from ali_dist.report.terminal import show_progress
from ali_dist.runs.datasets import DataSplit

EXTRA_METRIC_TEXTS = {
    "svm_error": "test error of the SVM on µ and the encoder's last three hidden layers, mean over the draws",
    "svm_error_std": "its population standard deviation over the draws, as the paper prints it",
    "svm_penalty": "the C that one draw and the held-out part of the training split chose",
    "svm_validation_error": "of that C on that draw",
    "svm_labels": "labels in each draw",
    "svm_features": "size of the representation",
    "svm_unconverged": "fits that reached the solver's limit of iterations",
    "auroc_reconstruction": "AUROC of |x - G(E(x))|: 1 tells every anomaly, 0.5 none",
    "auroc_cross_entropy": "of the discriminator's cross-entropy of (x, E(x))",
    "auroc_features": "of the distance in the discriminator's last hidden layer (feature matching)",
    "auroc_egbad_cross_entropy": "of EGBAD's sum of the first two",
    "auroc_egbad_features": "of EGBAD's sum of reconstruction and feature matching",
    "auroc_egbad_cross_entropy_standardised": "the same with each term standardised on normal training samples",
    "auroc_egbad_features_standardised": "likewise",
    "fid": "Fréchet Inception distance of decoder samples to the training images; biased by their number",
    "kid": "kernel Inception distance of the same; about 0 for a perfect model",
    "kid_std": "its population standard deviation over subsets",
}


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What is to be measured, and on what.

    Attributes:
        saved: The model.
        train: Opens the training split.
        holdout: The split that is measured on.
        samples: Decoder samples.
        seeds: Of the evaluations.
        memory_mb: Megabytes that a split may take.
        device: Where the model is.
        options: labels, draws, workers (svm), normal_class (anomaly), inception_weights (fid), where given.
    """

    saved: LoadedRun
    train: Callable[[], DataSplit]
    holdout: DataSplit
    samples: int
    seeds: range
    memory_mb: int
    device: torch.device
    options: dict[str, Any] = field(default_factory=dict)

    def load(self, part: DataSplit) -> LabelledArrays:
        """A whole split at the size the model works at.

        Raises:
            InputError: It is too large or damaged, or lacks the labels that the model needs.
        """
        megabytes = 4e-6 * part.index.num_samples * math.prod(self.saved.space.model_shape)
        if megabytes > self.memory_mb:
            raise InputError(
                f"{part.store.url} would take {megabytes:,.0f} MB of memory, but {self.memory_mb:,} are allowed: "
                "raise --memory-mb, or give a smaller data set by --data."
            )
        x, y = load_arrays(part.store, part.index)
        conditions_for_samples(self.saved, part, y)  # refuses labels that do not fit the model
        return LabelledArrays(self.saved.space.unit_from_stored(x), y, part.index.classes or part.index.attributes)

    def split_pair(self) -> tuple[LabelledArrays, LabelledArrays]:
        """Training and holdout split."""
        return self.load(self.train()), self.load(self.holdout)


def evaluate_run_metrics(task: EvaluationRequest) -> dict[str, MetricEstimate]:
    """The run's own metrics, over the seeds of judge, draws and labels."""
    with show_progress("Evaluating", len(task.seeds)) as advance:
        found = []
        for metrics in _run_evaluators(task):
            found.append(metrics)
            advance(1)
    return {name: MetricEstimate.of([metrics[name] for metrics in found]) for name in found[0]}


def _run_evaluators(task: EvaluationRequest) -> Iterator[dict[str, float]]:
    saved, mixture = task.saved, task.saved.facts.mixture
    if len(saved.facts.shape) == 3:
        train, holdout = task.split_pair()
        native = saved.space.native_from_unit
        for seed in task.seeds:
            judge = ImageEvaluator(train, holdout, samples=task.samples, seed=seed, native=native, device=task.device)
            yield judge.evaluate(saved.model)
        return
    if mixture is None:
        raise InputError(f"Run {saved.name!r} is of points, and of no known mixture: there are no metrics for them.")
    holdout, means, std = task.load(task.holdout), torch.tensor(mixture["means"]), float(mixture["std"])
    for seed in task.seeds:
        yield evaluate_mixture(
            saved.model, holdout, means=means, std=std, samples=task.samples, seed=seed, device=task.device
        )


def evaluate_svm(task: EvaluationRequest) -> dict[str, MetricEstimate]:
    """The paper's SVM on mu beside the encoder's last three hidden layers."""
    from ali_dist.evaluation.svm import DRAWS, LABELS, EmbeddedSplit, hold_out_rows, svm_protocol

    def embedded(split: LabelledArrays) -> EmbeddedSplit:
        if split.classes is None:
            raise InputError("--what svm needs class labels, but the data have none: give data with classes.")
        c = inference.conditions_from_labels(task.saved.model, split.y)
        features = inference.in_batches(
            lambda x, c=None: compute_features(task.saved.model, "mu+layers", x, c),
            split.x,
            task.device,
            "encoder's feature map",
            c,
        )
        return EmbeddedSplit(features.numpy(), split.classes.numpy())

    known, test = map(embedded, task.split_pair())
    pool, validation = (known[rows] for rows in hold_out_rows(len(known.labels)))
    with show_progress("Fitting SVMs", None) as advance:
        result = svm_protocol(
            pool,
            validation,
            test,
            labels=task.options.get("labels", LABELS),
            draws=task.options.get("draws", DRAWS),
            seed=task.seeds[0],
            jobs=task.options.get("workers", 1),
            progress=lambda done, total: advance(1),
        )
    values = {
        "svm_error": result.error_mean,
        "svm_error_std": result.error_std,
        "svm_penalty": result.penalty,
        "svm_validation_error": result.validation_error,
        "svm_labels": float(result.labels),
        "svm_features": float(result.features),
        "svm_unconverged": float(result.unconverged),
    }
    return {name: MetricEstimate(value) for name, value in values.items()}


def evaluate_anomaly(task: EvaluationRequest) -> dict[str, MetricEstimate]:
    """EGBAD's scores of the holdout split, with bootstrap intervals of their AUROC."""
    from ali_dist.evaluation.anomaly import one_vs_rest

    words = [word.strip() for word in task.options["normal_class"].split(",")]
    normal_classes = {find_class(task.saved, word) for word in words}
    train, holdout = task.split_pair()
    if train.classes is None or holdout.classes is None:
        raise InputError("--what anomaly needs class labels, but the data have none: give data with classes.")
    normal = train.x[torch.isin(train.classes, torch.tensor(sorted(normal_classes)))]
    found = one_vs_rest(
        task.saved.model, holdout, normal_classes, seed=task.seeds[0], normal=normal, device=task.device
    )
    return {f"auroc_{name}": MetricEstimate(score.value, score.low, score.high) for name, score in found.items()}


def evaluate_fid(task: EvaluationRequest) -> dict[str, MetricEstimate]:
    """FID and KID of decoder samples against the training images, at the size the data are stored at."""
    from ali_dist.evaluation.inception import inception_distances, load_inception

    saved, seed = task.saved, task.seeds[0]
    if len(saved.facts.shape) != 3:
        raise InputError(f"--what fid is for images, but run {saved.name!r} is of points: choose another --what.")
    extractor = load_inception(task.options["inception_weights"], device=task.device)
    train = task.load(task.train())
    c = inference.conditions_from_labels(saved.model, train.y)
    asked = None if c is None else inference.draw_rows(c, task.samples, seed)
    x_tilde = inference.sample_decoder(saved.model, task.samples, seed, task.device, asked)
    native = saved.space.native_from_unit
    with show_progress("Inception", len(train.x) + len(x_tilde)) as advance:
        real, generated = (_inception_features(extractor, native(x), advance) for x in (train.x, x_tilde))
    return {name: MetricEstimate(value) for name, value in inception_distances(real, generated, seed=seed).items()}


def _inception_features(extractor: Any, x: torch.Tensor, advance: Callable[[int], None]) -> torch.Tensor:
    before = 0

    def note(done: int, total: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    features: torch.Tensor = extractor.features(x, note)
    return features


EVALUATIONS: dict[str, Callable[[EvaluationRequest], dict[str, MetricEstimate]]] = {
    "metrics": evaluate_run_metrics,
    "svm": evaluate_svm,
    "anomaly": evaluate_anomaly,
    "fid": evaluate_fid,
}
