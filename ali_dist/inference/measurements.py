"""How `evaluate` measures: the run's metrics, the SVM protocol, nearest neighbors, EGBAD, FID and KID.

What can be chosen, and its options, are the table in `evaluations.py`, which has to do without torch.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ali_dist.data.shards.reader import ShardReader
from ali_dist.errors import InputError
from ali_dist.evaluation.anomaly import score_holdout
from ali_dist.evaluation.batched import conditions_from_labels, draw_rows, in_batches, sample_decoder
from ali_dist.evaluation.evaluators import make_evaluator
from ali_dist.evaluation.inception import check_inception_available, inception_distances, read_weights
from ali_dist.evaluation.monitor import EvaluationMonitor, WatchedModel
from ali_dist.evaluation.neighbors import NEIGHBORS, neighbor_errors
from ali_dist.evaluation.reference_cache import ReferenceCache
from ali_dist.evaluation.split_loading import describe_samples
from ali_dist.evaluation.stored_features import StoredFeatures
from ali_dist.evaluation.svm import PENALTIES, EmbeddedSplit, SvmResult, hold_out_rows, svm_protocol
from ali_dist.inference.conditions import find_class
from ali_dist.inference.evaluation_request import EvaluationRequest
from ali_dist.inference.features import compute_features
from ali_dist.inference.ranked_samples import format_ranking, rank_samples
from ali_dist.inference.samples import conditions_for_samples, read_samples, runs_of_shard
from ali_dist.report.tables import MetricEstimate
from ali_dist.report.terminal import show_progress_bars
from ali_dist.runs.datasets import VALID, DataSplit
from ali_dist.storage import is_local

if TYPE_CHECKING:
    from ali_dist.inference.evaluations import (
        AnomalyOptions,
        Estimates,
        FidOptions,
        MetricsOptions,
        NeighborOptions,
        SvmOptions,
    )

TRAIN = "train"
"""The split that labels of the SVM protocol and of nearest neighbors are from, unless another one is named."""
RANKING_SCORE = "egbad_features_standardised"
"""The anomaly score that samples are listed by."""
_CHUNK_BYTES = 6_000_000  # samples whose features are in memory at a time


def measure_run_metrics(request: EvaluationRequest, options: MetricsOptions) -> Estimates:
    """Measure the run's own metrics; with several seeds, classifiers, draws and labels differ from one to the next."""
    run = request.run
    results = []
    with show_progress_bars() as start_bar:
        monitor = EvaluationMonitor(start_bar)
        # With one evaluation, of the training split only what the evaluator keeps stays in memory.
        load_once = functools.partial(request.load_train, monitor)
        load_train = functools.cache(load_once) if options.seeds > 1 else load_once
        load_holdout = functools.cache(lambda: request.load_holdout(monitor))
        advance = monitor.start("Evaluating", options.seeds)
        for seed in range(request.seed, request.seed + options.seeds):
            evaluator = make_evaluator(
                run.spec,
                load_train,
                load_holdout,
                samples=request.count_samples(options.samples),
                seed=seed,
                native_from_unit=run.space.native_from_unit,
                device=request.device,
                monitor=monitor,
                cache=_reference_cache(request),
            )
            if evaluator is None:
                raise InputError(
                    f"Run {run.name!r} was trained on points of no known mixture, and there are no metrics for them: "
                    "choose a run of images or of a mixture."
                )
            results.append(evaluator.evaluate(run.model))
            advance(1)
    request.notes.append(describe_samples(request.samples))
    request.notes.extend(monitor.notes)
    return {key: MetricEstimate.from_values([metrics[key] for metrics in results], key) for key in results[0]}


def _reference_cache(request: EvaluationRequest) -> ReferenceCache:
    """Keep references beside the training data where they lie in a folder of this machine; else with the run."""
    data_store = request.open_train().store
    return ReferenceCache([data_store, request.run.store] if is_local(data_store.url) else [request.run.store])


def measure_svm(request: EvaluationRequest, options: SvmOptions) -> Estimates:
    """Run the paper's SVM protocol on mu beside the encoder's last three hidden layers."""
    with ExitStack() as files, show_progress_bars() as start_bar:
        monitor = EvaluationMonitor(start_bar)
        train = _open_train_split(request, options.train_split)
        pool = embed_split(request, train, files, monitor)
        valid = _open_valid_split(request, train)
        if valid is None:
            pool_rows, validation_rows = hold_out_rows(len(pool.labels))
            validation = pool[validation_rows]
            assert isinstance(pool.features, StoredFeatures), "a split is embedded into a file"
            pool = EmbeddedSplit(pool.features.first(pool_rows.stop), pool.labels[pool_rows])
            request.notes.append(
                f"Labels are from {train.name}; C was chosen on its last {len(validation.labels):,} samples, which are "
                f"held out since the data have no other split {VALID}; errors are of {request.holdout.name}."
            )
        else:
            validation = embed_split(request, valid, files, monitor)
            request.notes.append(
                f"Labels are from {train.name}; C was chosen on {valid.name}; errors are of {request.holdout.name}."
            )
        test = embed_split(request, request.holdout, files, monitor)
        advance = monitor.start("Fitting SVMs", len(PENALTIES) + options.draws)
        result = svm_protocol(
            pool,
            validation,
            test,
            labels=options.labels,
            draws=options.draws,
            seed=request.seed,
            jobs=options.workers,
            on_fit=lambda done, total: advance(1),
        )
    return {key: MetricEstimate(value) for key, value in _svm_metrics(result).items()}


def measure_neighbors(request: EvaluationRequest, options: NeighborOptions) -> Estimates:
    """Measure the errors of 1 and 5 nearest neighbors on mu, and on the features of the paper's SVM."""
    with ExitStack() as files, show_progress_bars() as start_bar:
        monitor = EvaluationMonitor(start_bar)
        train = _open_train_split(request, options.train_split)
        pool = embed_split(request, train, files, monitor)
        test = embed_split(request, request.holdout, files, monitor)
        request.notes.append(
            f"Neighbors are among all {len(pool.labels):,} samples of {train.name}, by Euclidean distance; errors are "
            f"of {request.holdout.name}."
        )
        estimates = {}
        for kind, columns in (("mu", slice(0, request.run.model.latent_size)), ("features", slice(None))):
            advance = monitor.start(f"Nearest neighbors on {kind}", len(pool.labels) * len(test.labels))
            errors = neighbor_errors(pool, test, columns=columns, device=request.device, advance=advance)
            for k, error in zip(NEIGHBORS, errors, strict=True):
                estimates[f"knn_{k}_{kind}_error"] = MetricEstimate(error)
    return estimates


def _open_train_split(request: EvaluationRequest, name: str) -> DataSplit:
    """Open the split that labels are from: by default `train`, or what the run trained on where there is none."""
    if request.open_split is None:
        return request.open_train()
    return request.open_split([name, request.run.config.data.split] if name == TRAIN else [name])


def _open_valid_split(request: EvaluationRequest, train: DataSplit) -> DataSplit | None:
    """Open the split that C is chosen on; None where the data have none besides those of labels and errors."""
    if request.open_split is None:
        return None
    try:
        valid = request.open_split([VALID])
    except InputError:
        return None
    used = (train.index.fingerprint, request.holdout.index.fingerprint)
    return None if valid.index.fingerprint in used else valid


def embed_split(
    request: EvaluationRequest, split: DataSplit, files: ExitStack, monitor: EvaluationMonitor
) -> EmbeddedSplit:
    """Compute mu beside the encoder's last three hidden layers of a whole split, shard by shard, into a file.

    Args:
        request: What is measured.
        split: The split.
        files: Closes the file.
        monitor: Is told of progress.

    Raises:
        InputError: The data have no class labels, do not fit the model, or are damaged.
    """
    run = request.run
    reader = ShardReader(split.store, split.index)
    advance = monitor.start(f"Features of {split.name}", split.index.num_samples)
    stored: StoredFeatures | None = None
    labels: list[Tensor] = []
    start = 0

    def compute(x: Tensor, c: Tensor | None = None) -> Tensor:
        return compute_features(run.model, "mu+layers", run.space.unit_from_stored(x), c)

    for shard in range(len(split.index.shards)):
        for sample_run in runs_of_shard(split, shard, _CHUNK_BYTES):
            samples = read_samples(reader, sample_run)
            if samples.y is None or samples.y.ndim != 1:
                raise InputError(
                    f"--what svm and knn need class labels, but the data in {split.store.url} have none: give data "
                    "with classes."
                )
            c = conditions_for_samples(run, split, samples.y)
            features = in_batches(compute, samples.x, request.device, "encoder's feature map", c, advance)
            if stored is None:
                stored = files.enter_context(StoredFeatures(split.index.num_samples, features.shape[1]))
            stored.write(start, features.numpy())
            start += len(features)
            labels.append(samples.y)
    assert stored is not None, "a split holds at least one sample"
    return EmbeddedSplit(stored, torch.cat(labels).numpy())


def _svm_metrics(result: SvmResult) -> dict[str, float]:
    return {
        "svm_error": result.error_mean,
        "svm_error_std": result.error_std,
        "svm_penalty": result.penalty,
        "svm_validation_error": result.validation_error,
        "svm_labels": float(result.labels),
        "svm_features": float(result.features),
        "svm_unconverged": float(result.unconverged),
    }


def measure_anomaly(request: EvaluationRequest, options: AnomalyOptions) -> Estimates:
    """Measure EGBAD's scores on the holdout split: their AUROC with bootstrap intervals; list the extreme samples."""
    normal_classes = {find_class(request.run, name.strip()) for name in options.normal_class.split(",")}
    with show_progress_bars() as start_bar:
        monitor = EvaluationMonitor(start_bar)
        train = request.load_train(monitor)
        holdout = request.load_holdout(monitor)
        if train.classes is None or holdout.classes is None:
            raise InputError("--what anomaly needs class labels, but the data have none: give data with classes.")
        is_normal = torch.isin(train.classes, torch.tensor(sorted(normal_classes)))
        normal = train.x[is_normal]
        scored = score_holdout(
            request.run.model, holdout, normal_classes, normal=normal, device=request.device, monitor=monitor
        )
        areas = scored.areas(seed=request.seed, monitor=monitor)
    is_own_data = request.open_train().index.fingerprint == request.run.metadata.fingerprint
    if is_own_data and not bool(is_normal.all()):
        request.notes.append(
            f"Run {request.run.name!r} was trained on other classes, too, so that they are no news to it: these scores "
            "are meant for a run on the normal classes alone (`python -m ali_dist.prepare ... --only`)."
        )
    ids = np.arange(len(holdout.x)) if holdout.ids is None else holdout.ids
    ranking = rank_samples(request.holdout, ids, scored.scores[RANKING_SCORE], holdout.classes.numpy())
    request.details["anomalies"] = {"score": RANKING_SCORE, **ranking}
    request.listing.extend(format_ranking(f"anomalous of {holdout.split}, by {RANKING_SCORE}", ranking))
    return {f"auroc_{name}": MetricEstimate(area.value, area.low, area.high) for name, area in areas.items()}


def measure_fid(request: EvaluationRequest, options: FidOptions) -> Estimates:
    """Measure FID and KID of decoder samples against the training images, at the size the data are stored at."""
    run = request.run
    if not run.spec.is_images:
        raise InputError(
            f"--what fid is for images, but run {run.name!r} was trained on points: choose another --what."
        )
    weights = Path(options.inception_weights)
    read_weights(weights)  # a wrong file and a missing library are refused before anything is computed
    check_inception_available()
    with show_progress_bars() as start_bar:
        monitor = EvaluationMonitor(start_bar)
        train = request.load_train(monitor)
        samples = request.count_samples(options.samples)
        c = conditions_from_labels(run.model, train.y)
        c_samples = None if c is None else draw_rows(c, samples, request.seed)
        watched = WatchedModel(run.model, monitor.start("Drawing samples", samples))
        x_tilde = sample_decoder(watched, samples, request.seed, request.device, c_samples)
        distances = inception_distances(
            run.space.native_from_unit(x_tilde),
            run.space.native_from_unit(train.x),
            weights=weights,
            seed=request.seed,
            device=request.device,
            on_images=monitor.start("Inception", len(train.x) + samples),
        )
    distances["compared_images"] = float(min(len(train.x), samples))
    return {key: MetricEstimate(value) for key, value in distances.items()}
