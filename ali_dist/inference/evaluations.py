"""What `evaluate` measures of a trained model: the run's metrics, the paper's SVM protocol, EGBAD, FID and KID.

Each is a row in `EVALUATIONS`: a function, and a dataclass of its options, from which the command builds its parser. A
new one is a function, a dataclass and a row here, and a row for each of its metrics in `evaluation/catalog.py`.
Importing this module imports no torch, so that --help comes at once: functions import it when they are called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ali_dist.evaluation.protocol import LEAST_SAMPLES, SVM_DRAWS, SVM_LABELS
from ali_dist.report.tables import MOST_SEEDS, MetricEstimate

if TYPE_CHECKING:
    from ali_dist.inference.evaluation_request import EvaluationRequest

Estimates = dict[str, MetricEstimate]
Options = TypeVar("Options")
REQUIRED = dataclasses.MISSING
_TRAIN = "train"


def option(
    help_text: str, *, default: Any = REQUIRED, least: int = 1, most: int | None = None, metavar: str | None = None
) -> Any:
    """An option of an evaluation, as a field of its dataclass; a field `normal_class` is `--normal-class`.

    Args:
        help_text: What --help says.
        default: Its value where it is not given; REQUIRED: it must be given.
        least: Smallest whole number allowed.
        most: Largest whole number allowed.
        metavar: What --help calls the value; None: the option's name.
    """
    metadata = {"help": help_text, "least": least, "most": most, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def _samples_option() -> Any:
    return option("decoder samples (default: the run's own setting)", default=None, least=LEAST_SAMPLES)


def _train_split_option() -> Any:
    return option(
        f"split that labels are from, whatever the run trained on (default {_TRAIN})", default=_TRAIN, metavar="SPLIT"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsOptions:
    """Options of the run's own metrics; samples None: as many as the run's setting says."""

    samples: int | None = _samples_option()
    seeds: int = option("evaluations, each with a seed of its own (default 1)", default=1, most=MOST_SEEDS, metavar="K")


@dataclass(frozen=True, slots=True, kw_only=True)
class SvmOptions:
    """Options of the paper's SVM protocol."""

    labels: int = option(f"labels in a draw (default {SVM_LABELS})", default=SVM_LABELS, least=2)
    draws: int = option(f"draws of labels (default {SVM_DRAWS})", default=SVM_DRAWS)
    workers: int = option("processes that fit (default 1)", default=1, most=256)
    train_split: str = _train_split_option()


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborOptions:
    """Options of the nearest neighbors."""

    train_split: str = _train_split_option()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyOptions:
    """Options of the anomaly scores."""

    normal_class: str = option("names or numbers of the normal classes", metavar="K[,K]")


@dataclass(frozen=True, slots=True, kw_only=True)
class FidOptions:
    """Options of FID and KID; samples None: as many as the run's setting says."""

    samples: int | None = _samples_option()
    inception_weights: str = option("weights of the Inception network", metavar="FILE")


def _run_metrics(request: EvaluationRequest, options: MetricsOptions) -> Estimates:
    from ali_dist.inference.measurements import measure_run_metrics

    return measure_run_metrics(request, options)


def _svm(request: EvaluationRequest, options: SvmOptions) -> Estimates:
    from ali_dist.inference.measurements import measure_svm

    return measure_svm(request, options)


def _neighbors(request: EvaluationRequest, options: NeighborOptions) -> Estimates:
    from ali_dist.inference.measurements import measure_neighbors

    return measure_neighbors(request, options)


def _anomaly(request: EvaluationRequest, options: AnomalyOptions) -> Estimates:
    from ali_dist.inference.measurements import measure_anomaly

    return measure_anomaly(request, options)


def _fid(request: EvaluationRequest, options: FidOptions) -> Estimates:
    from ali_dist.inference.measurements import measure_fid

    return measure_fid(request, options)


@dataclass(frozen=True, slots=True)
class Evaluation(Generic[Options]):
    """A way to measure a model, as `evaluate --what NAME` offers it.

    Attributes:
        summary: What it measures, for --help.
        options: Dataclass of its options; every field is an `option`.
        evaluate: Measures; gives estimates by metric key.
    """

    summary: str
    options: type[Options]
    evaluate: Callable[[EvaluationRequest, Options], Estimates]


EVALUATIONS: Mapping[str, Evaluation[Any]] = {
    "metrics": Evaluation(
        "the metrics of the run's report, on the holdout split (with seed 0 on the same device: the same numbers)",
        MetricsOptions,
        _run_metrics,
    ),
    "svm": Evaluation(
        "the paper's protocol: a linear SVM on encoder features with 1000 labels, mean and std over 100 draws",
        SvmOptions,
        _svm,
    ),
    "knn": Evaluation(
        "errors of 1 and 5 nearest neighbors, on encoder features and all labels of the training split",
        NeighborOptions,
        _neighbors,
    ),
    "anomaly": Evaluation(
        "EGBAD: AUROC of a model trained on the normal classes alone, all other classes being anomalies",
        AnomalyOptions,
        _anomaly,
    ),
    "fid": Evaluation("FID and KID in Inception's features, whose weights you give as a file", FidOptions, _fid),
}
"""What `evaluate --what` can measure, by name; the first is the default."""
