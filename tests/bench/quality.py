"""How good the presets get: `python -m tests.bench.quality [--only NAME,...] [--seeds 0,1,2] [--dir DIR]`.

Every experiment trains its preset as `python -m ali_dist.train` does and reads the metrics of the run's summary.
Finished runs are not trained again, so a repeated command goes on where it was interrupted. The table gives mean and
standard deviation over seeds, and what each metric is held against. `--list` shows the experiments.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ali_dist.cli import CommandParser, parse_comma_list, parse_path, whole_number_type
from ali_dist.config import Config
from ali_dist.config.loading import did_you_mean, from_mapping, load_preset
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.data.preparation.write_splits import WriteOptions, write_splits
from ali_dist.data.shards.index import Index, load_index
from ali_dist.data.sources.base import keep_classes
from ali_dist.data.sources.digits import digits_splits
from ali_dist.errors import InputError, exit_code
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.split_loading import load_labelled_arrays
from ali_dist.launchers.local import run_local
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.data_space import DataSpace
from ali_dist.runs.datasets import open_run_data
from ali_dist.storage import open_store
from ali_dist.storage.base import Store
from ali_dist.training.labelled_batches import labelled_ids
from tests.bench.few_labels import few_label_baselines

Metrics = dict[str, float]
Layer = dict[str, Any]


@dataclass(frozen=True)
class BenchRunner:
    """Trains runs, and keeps them and their data in one folder.

    Attributes:
        folder: Where data and runs are.
        threads: CPU threads; None: as torch chooses.
        overrides: Settings for every run.
        report: Called with lines for the user.
    """

    folder: Path
    threads: int | None
    overrides: Layer
    report: Callable[[str], None]

    def train(self, preset: str, name: str, **changes: Any) -> tuple[Config, Metrics]:
        """Train a preset (or take the finished run).

        Args:
            preset: Name of the preset.
            name: Name of the run.
            changes: Settings that differ, `section__key=value`.

        Returns:
            The run's config, and the metrics of its summary with `training_seconds`.
        """
        named = {key.replace("__", "."): value for key, value in changes.items()}
        settings = from_mapping(load_preset(preset))
        source = settings.data.source or "digits"
        places = {
            "run.name": name,
            "run.dir": str(self.folder / "runs"),
            "data.url": str(self.folder / "data" / source),
            "scale.workers": "0",
            "scale.threads": self.threads,
        }
        config = from_mapping(load_preset(preset), places, named, self.overrides)
        began = time.monotonic()
        summary = run_local(config)
        assert summary is not None
        self.report(f"{name}: {time.monotonic() - began:.0f} s")
        return config, {**summary["metrics"], "training_seconds": float(summary["seconds"])}


@dataclass(frozen=True)
class Experiment:
    """What is trained and measured; the table has a line for each of its metrics.

    Attributes:
        about: What it shows, in words.
        run: Gives the metrics of one seed.
        metrics: Keys of the metrics that are shown, each with the key of what it is held against (empty: nothing).
        seeds: Number of seeds, by default.
    """

    about: str
    run: Callable[[BenchRunner, int], Metrics]
    metrics: dict[str, str] = field(default_factory=dict)
    seeds: int = 3


def preset_experiment(name: str, **changes: Any) -> Callable[[BenchRunner, int], Metrics]:
    """Make an experiment of one run of a preset."""

    def run(bench: BenchRunner, seed: int) -> Metrics:
        return bench.train(name, f"{name}-{seed}", run__seed=seed, **changes)[1]

    return run


def post_hoc_experiment(name: str, decoder: str) -> Callable[[BenchRunner, int], Metrics]:
    """Make an experiment that takes the decoder of another preset's run."""

    def run(bench: BenchRunner, seed: int) -> Metrics:
        bench.train(decoder, f"{decoder}-{seed}", run__seed=seed)
        source = str(bench.folder / "runs" / f"{decoder}-{seed}")
        return bench.train(name, f"{name}-{seed}", run__seed=seed, model__decoder_from=source)[1]

    return run


def semi_supervised_experiment(labels: int) -> Callable[[BenchRunner, int], Metrics]:
    """Make an experiment of K+1 classes with few labels, beside a linear SVM and a small CNN trained on those alone."""

    def run(bench: BenchRunner, seed: int) -> Metrics:
        config, metrics = bench.train(
            "digits-semi",
            f"digits-semi-{labels}-{seed}",
            run__seed=seed,
            data__labelled=labels,
            data__labelled_seed=seed,
        )
        inputs = open_run_data(config)
        assert inputs.holdout is not None
        rows, _ = labelled_ids(inputs.train, config)
        train, holdout = (_load_split(split.store, split.index) for split in (inputs.train, inputs.holdout))
        return metrics | few_label_baselines(train, holdout, rows, seed=seed, device="cpu")

    return run


def run_anomalies(bench: BenchRunner, seed: int) -> Metrics:
    """EGBAD on digits: the class `seed` is normal, trained on it alone; all others are anomalies."""
    from ali_dist.evaluation.anomaly import one_vs_rest
    from ali_dist.inference.load import load_run

    whole = bench.folder / "data" / "digits"
    ensure_prepared("digits", str(whole))
    normal = bench.folder / "data" / f"digits-only-{seed}"
    write_splits(
        open_store(str(normal)), (keep_classes(split, [str(seed)]) for split in digits_splits()), WriteOptions()
    )
    config, metrics = bench.train(
        "digits", f"digits-only-{seed}", data__url=str(normal), data__source=None, run__images=32_000
    )
    run = load_run(f"{config.run.dir}/{config.run.name}")
    test, train = open_store(str(whole / "test")), open_store(str(normal / "train"))
    holdout, known = _load_split(test, load_index(test)), _load_split(train, load_index(train))
    areas = one_vs_rest(run.model, holdout, [seed], seed=0, normal=known.x)
    return {
        "training_seconds": metrics["training_seconds"],
        **{f"auroc_{name}": area.value for name, area in areas.items()},
    }


def _load_split(store: Store, index: Index) -> LabelledArrays:
    """Load a labelled split at the size the digit networks work at."""
    return load_labelled_arrays(store, index, DataSpace.for_architecture(ARCHITECTURES["digits"], tuple(index.shape)))


DIGITS = {
    "frechet": "frechet_reference",
    "reconstruction_mse": "reconstruction_mse_reference",
    "label_kept": "classifier_accuracy",
    "probe_accuracy": "probe_raw_accuracy",
}
MIXTURE = {"modes": "", "high_quality": "", "reverse_kl": "", "right_mode": "", "latent_mmd2": ""}
SEMI = {"semi_supervised_error": "", "few_labels_svm_error": "", "few_labels_cnn_error": ""}
CONDITIONAL = {"condition_kept": "classifier_accuracy", "frechet": "frechet_reference", "label_kept": ""}
EGBAD = {f"auroc_{name}": "" for name in ("reconstruction", "egbad_cross_entropy", "egbad_features")}

EXPERIMENTS = {
    "digits": Experiment("stabilized ALI on scikit-learn's digits", preset_experiment("digits"), DIGITS),
    "digits-paper": Experiment("the paper's own game on the digits", preset_experiment("digits-paper"), DIGITS),
    "digits-bigan": Experiment(
        "BiGAN: a deterministic encoder", preset_experiment("digits", model__encoder="deterministic"), DIGITS
    ),
    "digits-conditional": Experiment(
        "conditional ALI: the class asked for", preset_experiment("digits-conditional"), CONDITIONAL
    ),
    "semi-50": Experiment("K+1 classes, 5 labels a class", semi_supervised_experiment(50), SEMI, seeds=10),
    "semi-100": Experiment("K+1 classes, 10 labels a class", semi_supervised_experiment(100), SEMI, seeds=10),
    "anomaly": Experiment("EGBAD: one digit is normal (the seed), nine are not", run_anomalies, EGBAD, seeds=10),
    "mixture": Experiment("stabilized ALI on 25 Gaussians", preset_experiment("mixture"), MIXTURE, seeds=5),
    "mixture-ring": Experiment(
        "stabilized ALI on 8 Gaussians on a ring", preset_experiment("mixture-ring"), MIXTURE, seeds=5
    ),
    "mixture-paper": Experiment(
        "the paper's networks and game, 200,000 updates", preset_experiment("mixture-paper"), MIXTURE, 1
    ),
    "mixture-gan": Experiment(
        "a plain GAN, with the encoder learned beside it", preset_experiment("mixture-gan"), MIXTURE
    ),
    "mixture-posthoc": Experiment(
        "ALI against that GAN's decoder, held fixed", post_hoc_experiment("mixture-posthoc", "mixture-gan"), MIXTURE
    ),
    "mixture-inverse": Experiment(
        "that decoder's learned inverse mapping", post_hoc_experiment("mixture-inverse", "mixture-gan"), MIXTURE
    ),
    "shapes": Experiment("stabilized ALI on 32x32 color shapes", preset_experiment("shapes"), DIGITS, 1),
    "shapes-conditional": Experiment(
        "conditional on attributes", preset_experiment("shapes-conditional"), CONDITIONAL, 1
    ),
}


def run_experiments(bench: BenchRunner, names: Sequence[str], seeds: Sequence[int] | None) -> dict[str, dict[str, Any]]:
    """Run experiments; gives `about`, `seeds` and each seed's metrics of each of them (JSON-able)."""
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        experiment = EXPERIMENTS[name]
        chosen_seeds = list(range(experiment.seeds)) if seeds is None else list(seeds)
        metrics = []
        for seed in chosen_seeds:
            bench.report(f"{name}, seed {seed}")
            metrics.append(experiment.run(bench, seed))
        results[name] = {"about": experiment.about, "seeds": chosen_seeds, "metrics": metrics}
    return results


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """Format the results as aligned plain text."""
    lines = []
    for name, result in results.items():
        runs: list[Metrics] = result["metrics"]
        seconds = statistics.mean(run["training_seconds"] for run in runs)
        lines += ["", f"{name}: {result['about']} ({len(runs)} seeds, {seconds:.0f} s of training each)"]
        for metric, reference_key in EXPERIMENTS[name].metrics.items():
            values = [run[metric] for run in runs if metric in run]
            if not values:
                continue
            references = [run[reference_key] for run in runs if reference_key in run]
            reference = f"   {reference_key} {statistics.mean(references):.4g}" if references else ""
            value_list = " ".join(f"{value:.4g}" for value in values)
            lines.append(f"  {metric:<24}{_mean_and_std(values):<22}[{value_list}]{reference}")
    return "\n".join(lines[1:])


def _mean_and_std(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.mean(values):.4g} +- {statistics.stdev(values):.2g}"


def _make_parser() -> CommandParser:
    parser = CommandParser("tests.bench.quality", (__doc__ or "").strip())
    parser.add_argument(
        "--only", type=parse_comma_list, metavar="NAME,...", help="these experiments (default: all of them)"
    )
    parser.add_argument(
        "--seeds", type=parse_comma_list, metavar="N,...", help="these seeds (default: as many as --list says)"
    )
    parser.add_argument("--dir", type=parse_path, default=Path("runs/quality"), help="data and runs (runs/quality)")
    parser.add_argument("--threads", type=whole_number_type(1), help="CPU threads (as torch chooses)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for every run")
    parser.add_argument("--json", metavar="FILE", type=parse_path, help="write every seed's metrics there")
    parser.add_argument("--list", action="store_true", help="show the experiments and stop")
    return parser


def _check_names(names: Sequence[str] | None) -> list[str]:
    for name in names or ():
        if name not in EXPERIMENTS:
            raise InputError(f"There is no experiment {name!r}{did_you_mean(name, EXPERIMENTS)}; --list shows all.")
    return list(EXPERIMENTS if names is None else names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    return exit_code("tests.bench.quality", lambda: _run_command(_make_parser().parse_args(arguments)))


def _run_command(options: argparse.Namespace) -> None:
    if options.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:<20}{experiment.seeds:>3} seeds  {experiment.about}")
        return
    for word in options.set:
        if "=" not in word:
            raise InputError(f"--set is {word!r}, but must be KEY=VALUE, such as run.images=64000.")
    overrides = dict(word.split("=", 1) for word in options.set)
    seeds = None if options.seeds is None else [_parse_seed(word) for word in options.seeds]

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    bench = BenchRunner(options.dir.absolute(), options.threads, overrides, report)
    results = run_experiments(bench, _check_names(options.only), seeds)
    print(format_table(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _parse_seed(word: str) -> int:
    if not word.isdecimal():
        raise InputError(f"--seeds has {word!r}, but must be whole numbers, such as 0,1,2.")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
