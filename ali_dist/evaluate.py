"""python -m ali_dist.evaluate: measure a trained model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from ali_dist.cli import device_from_arguments, make_run_parser, storage_from_arguments, whole_number_type
from ali_dist.config.loading import did_you_mean
from ali_dist.errors import InputError, exit_code
from ali_dist.evaluation.catalog import METRICS
from ali_dist.inference.evaluations import EVALUATIONS, EXTRA_METRIC_TEXTS, EvaluationRequest
from ali_dist.inference.load import LoadedRun, load_run
from ali_dist.inference.samples import open_samples_for
from ali_dist.report.tables import MOST_SEEDS, MetricEstimate, estimates_to_json, print_table
from ali_dist.runs.datasets import DataSplit

_DESCRIPTION = """\
Measure a trained model: a table on stdout, and JSON with --json.

With --seeds K, everything that is drawn (samples, the judge's training, labels) is drawn K times, and each metric is
a mean with its 95 % interval."""
_EPILOG = """\
what:
  metrics  the metrics of the run's report, on the holdout split (with seed 0: the same numbers)
  svm      the paper's protocol: a linear SVM on encoder features with 1000 labels, mean and std over 100 draws
  anomaly  EGBAD: AUROC of a model trained on the normal classes alone, all other classes being anomalies
  fid      FID and KID in Inception's features, whose weights you give as a file

Examples:
  python -m ali_dist.evaluate digits --seeds 5 --json digits.json
  python -m ali_dist.evaluate s3://bucket/runs/svhn --what svm --workers 8"""


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_run_parser("evaluate", _DESCRIPTION, _EPILOG)
    what = parser.add_argument_group("what")
    what.add_argument("--what", choices=tuple(EVALUATIONS), default="metrics", help="default: metrics; see below")
    what.add_argument("--samples", type=whole_number_type(2), help="decoder samples (default: the run's own setting)")
    what.add_argument(
        "--seed", type=whole_number_type(0, 2**31 - 1), default=0, help="of the first evaluation (default 0)"
    )
    what.add_argument(
        "--seeds", type=whole_number_type(1, MOST_SEEDS), default=1, metavar="K", help="evaluations (default 1)"
    )
    what.add_argument("--metrics", metavar="A,B", help="show these alone, by the names they have in summary.json")
    what.add_argument("--labels", type=whole_number_type(2), help="svm: labels in a draw (default 1000)")
    what.add_argument("--draws", type=whole_number_type(1), help="svm: draws of labels (default 100)")
    what.add_argument("--normal-class", metavar="K[,K]", help="anomaly: names or numbers of the normal classes")
    what.add_argument("--inception-weights", metavar="FILE", help="fid: weights of the Inception network")
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="URL", help="folder or s3:// with shards; default: the run's own")
    data.add_argument("--split", help="to measure on; default: the run's holdout split")
    data.add_argument(
        "--memory-mb", type=whole_number_type(1), help="largest split held in memory; default: as in the run"
    )
    data.add_argument("--workers", type=whole_number_type(1, 256), help="svm: processes that fit (default 1)")
    data.add_argument("--json", metavar="FILE", help="write everything there, too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    return exit_code("ali_dist.evaluate", lambda: _run_command(_parse_arguments(argv)))


def _run_command(arguments: argparse.Namespace) -> None:
    _check_options(arguments)
    names = _metric_names(arguments.metrics) if arguments.metrics else None
    device = device_from_arguments(arguments)
    saved = load_run(arguments.run, storage_from_arguments(arguments), weights=arguments.weights, device=device)
    task, holdout = _make_request(arguments, saved, device)
    measured = _choose_metrics(EVALUATIONS[arguments.what](task), names)
    where = f"{saved.name} at image {saved.state.images_seen:,} ({saved.weights} weights) on {holdout.store.url}"
    print(f"{where}, {arguments.seeds} seeds" if arguments.seeds > 1 else where, end="\n\n")
    print_table(measured, EXTRA_METRIC_TEXTS)
    if arguments.json:
        _write_json(Path(arguments.json).expanduser(), arguments, saved, holdout, measured)


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that would do nothing, and names of metrics that do not exist."""
    applies = {
        "samples": ("metrics", "fid"),
        "seeds": ("metrics",),
        "labels": ("svm",),
        "draws": ("svm",),
        "workers": ("svm",),
        "normal_class": ("anomaly",),
        "inception_weights": ("fid",),
    }
    for name, kinds in applies.items():
        if getattr(arguments, name) not in (None, 1) and arguments.what not in kinds:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} applies to --what {' or '.join(kinds)}, not to {arguments.what}: leave it out.")
    for what, name in (("anomaly", "normal_class"), ("fid", "inception_weights")):
        if arguments.what == what and getattr(arguments, name) is None:
            raise InputError(f"--what {what} needs --{name.replace('_', '-')}; see --help.")


def _make_request(
    arguments: argparse.Namespace, saved: LoadedRun, device: torch.device
) -> tuple[EvaluationRequest, DataSplit]:
    storage, data = storage_from_arguments(arguments), saved.config.data
    holdout = open_samples_for(saved, arguments.data, [arguments.split or data.holdout], storage)
    options = {
        name: getattr(arguments, name)
        for name in ("labels", "draws", "workers", "normal_class", "inception_weights")
        if getattr(arguments, name) is not None
    }
    task = EvaluationRequest(
        saved,
        train=lambda: open_samples_for(saved, arguments.data, [data.split], storage),
        holdout=holdout,
        samples=arguments.samples or saved.config.report.evaluation_samples,
        seeds=range(arguments.seed, arguments.seed + arguments.seeds),
        memory_mb=arguments.memory_mb or data.memory_mb,
        device=device,
        options=options,
    )
    return task, holdout


def _metric_names(text: str) -> list[str]:
    """The names that --metrics gives; misspelt ones are refused before anything is computed."""
    known = [*METRICS, *(note.reference for note in METRICS.values() if note.reference), *EXTRA_METRIC_TEXTS]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known and not name.startswith("condition_kept"):  # these end in the data's own names
            hint = did_you_mean(name, known).removesuffix("?")
            raise InputError(
                f"--metrics: there is no metric {name!r}{hint}; metrics: {', '.join(dict.fromkeys(known))}."
            )
    return names


def _choose_metrics(measured: dict[str, MetricEstimate], names: list[str] | None) -> dict[str, MetricEstimate]:
    """Those of the metrics that were asked for, and their references."""
    if names is None:
        return measured
    for name in names:
        if name not in measured:
            raise InputError(f"--metrics: {name!r} does not apply to this run, which has {', '.join(measured)}.")
    references = {METRICS[name].reference for name in names if name in METRICS}
    return {name: value for name, value in measured.items() if name in names or name in references}


def _write_json(
    path: Path, arguments: argparse.Namespace, saved: LoadedRun, holdout: DataSplit, measured: dict[str, MetricEstimate]
) -> None:
    content: dict[str, Any] = {
        "run": saved.name,
        "url": saved.store.url,
        "step": saved.state.step,
        "images": saved.state.images_seen,
        "weights": saved.weights,
        "what": arguments.what,
        "data": holdout.store.url,
        "fingerprint": holdout.index.fingerprint,
        "seeds": list(range(arguments.seed, arguments.seed + arguments.seeds)),
        **estimates_to_json(measured),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
