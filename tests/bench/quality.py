"""What the presets reach: `python -m tests.bench.quality [--only NAME,...] [--seeds 0,1,2] [--dir DIR]`.

Every experiment trains its preset as `python -m ali_dist.train` does and reads the metrics of the run's summary; runs
that are there already are not trained again, so an interrupted bench goes on. The table gives mean and standard
deviation over seeds, and what each metric is held against. `--list` shows the experiments and what they cost.
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

from ali_dist.config import Config
from ali_dist.config.loading import did_you_mean, from_mapping, load_preset
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.data.preparation.write_splits import WriteOptions, write_splits
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.base import keep_classes
from ali_dist.data.sources.digits import digits_splits
from ali_dist.errors import InputError, exit_code
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.launchers.local import run_local
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.data_space import DataSpace
from ali_dist.runs.datasets import open_run_data
from ali_dist.storage import open_store
from ali_dist.training.labelled_batches import labelled_ids
from tests.bench.few_labels import few_label_baselines

Metrics = dict[str, float]
Layer = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a bench keeps its data and runs, and how runs are made."""

    folder: Path
    threads: int | None
    overrides: Layer
    say: Callable[[str], None]

    def train(self, preset: str, name: str, **changes: Any) -> tuple[Config, Metrics]:
        """Train a preset (or take the finished run) and give the metrics of its summary, with `training_seconds`."""
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
        self.say(f"{name}: {time.monotonic() - began:.0f} s")
        return config, {**summary["metrics"], "training_seconds": float(summary["seconds"])}


@dataclass(frozen=True)
class Experiment:
    """One line of the table for each metric.

    Attributes:
        about: what it shows.
        run: metrics of one seed.
        metrics: those shown, with what each is held against.
        seeds: how many by default.
    """

    about: str
    run: Callable[[Place, int], Metrics]
    metrics: dict[str, str] = field(default_factory=dict)
    seeds: int = 3


def preset(name: str, **changes: Any) -> Callable[[Place, int], Metrics]:
    """An experiment that is one run of a preset."""

    def run(place: Place, seed: int) -> Metrics:
        return place.train(name, f"{name}-{seed}", run__seed=seed, **changes)[1]

    return run


def post_hoc(name: str, decoder: str) -> Callable[[Place, int], Metrics]:
    """An experiment that takes the decoder of another one's run."""

    def run(place: Place, seed: int) -> Metrics:
        place.train(decoder, f"{decoder}-{seed}", run__seed=seed)
        source = str(place.folder / "runs" / f"{decoder}-{seed}")
        return place.train(name, f"{name}-{seed}", run__seed=seed, model__decoder_from=source)[1]

    return run


def semi_supervised(labels: int) -> Callable[[Place, int], Metrics]:
    """K+1 classes with `labels` labels, beside a linear SVM and a small CNN trained on the same labels alone."""

    def run(place: Place, seed: int) -> Metrics:
        config, metrics = place.train(
            "digits-semi",
            f"digits-semi-{labels}-{seed}",
            run__seed=seed,
            data__labelled=labels,
            data__labelled_seed=seed,
        )
        inputs = open_run_data(config)
        assert inputs.holdout is not None
        rows, _ = labelled_ids(inputs.train, config)
        train, holdout = (_images(part.store, part.index) for part in (inputs.train, inputs.holdout))
        return metrics | few_label_baselines(train, holdout, rows, seed=seed, device="cpu")

    return run


def anomalies(place: Place, seed: int) -> Metrics:
    """EGBAD on digits: the class `seed` is normal, trained on it alone; all others are anomalies."""
    from ali_dist.evaluation.anomaly import one_vs_rest
    from ali_dist.inference.load import load_run

    whole = place.folder / "data" / "digits"
    ensure_prepared("digits", str(whole))
    normal = place.folder / "data" / f"digits-only-{seed}"
    write_splits(
        open_store(str(normal)), (keep_classes(split, [str(seed)]) for split in digits_splits()), WriteOptions()
    )
    config, metrics = place.train(
        "digits", f"digits-only-{seed}", data__url=str(normal), data__source=None, run__images=32_000
    )
    saved = load_run(f"{config.run.dir}/{config.run.name}")
    test, train = open_store(str(whole / "test")), open_store(str(normal / "train"))
    holdout, known = _images(test, load_index(test)), _images(train, load_index(train))
    found = one_vs_rest(saved.model, holdout, [seed], seed=0, normal=known.x)
    return {"training_seconds": metrics["training_seconds"], **{f"auroc_{k}": a.value for k, a in found.items()}}


def _images(store: Any, index: Any) -> LabelledArrays:
    """A labelled split at the size the digit networks work at."""
    x, y = load_arrays(store, index)
    space = DataSpace.of(ARCHITECTURES["digits"], tuple(index.shape))
    return LabelledArrays(space.unit_from_stored(x), y)


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
    "digits": Experiment("stabilised ALI on scikit-learn's digits", preset("digits"), DIGITS),
    "digits-paper": Experiment("the paper's own game on the digits", preset("digits-paper"), DIGITS),
    "digits-bigan": Experiment(
        "BiGAN: a deterministic encoder", preset("digits", model__encoder="deterministic"), DIGITS
    ),
    "digits-conditional": Experiment("conditional ALI: the class asked for", preset("digits-conditional"), CONDITIONAL),
    "semi-50": Experiment("K+1 classes, 5 labels a class", semi_supervised(50), SEMI, seeds=10),
    "semi-100": Experiment("K+1 classes, 10 labels a class", semi_supervised(100), SEMI, seeds=10),
    "anomaly": Experiment("EGBAD: one digit is normal (the seed), nine are not", anomalies, EGBAD, seeds=10),
    "mixture": Experiment("stabilised ALI on 25 Gaussians", preset("mixture"), MIXTURE, seeds=5),
    "mixture-ring": Experiment("the same on 8 Gaussians on a ring", preset("mixture-ring"), MIXTURE, seeds=5),
    "mixture-paper": Experiment("the paper's networks and game, 200,000 updates", preset("mixture-paper"), MIXTURE, 1),
    "mixture-gan": Experiment("a plain GAN, with the encoder learnt beside it", preset("mixture-gan"), MIXTURE),
    "mixture-posthoc": Experiment(
        "ALI against that GAN's decoder, held fixed", post_hoc("mixture-posthoc", "mixture-gan"), MIXTURE
    ),
    "mixture-inverse": Experiment(
        "that decoder's learned inverse mapping", post_hoc("mixture-inverse", "mixture-gan"), MIXTURE
    ),
    "shapes": Experiment("stabilised ALI on 32x32 colour shapes", preset("shapes"), DIGITS, 1),
    "shapes-conditional": Experiment("conditional on attributes", preset("shapes-conditional"), CONDITIONAL, 1),
}


def run(
    place: Place, names: Sequence[str], seeds: Sequence[int] | None, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Run experiments; per experiment `about`, `seeds` and each seed's metrics (JSON-able)."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        experiment = EXPERIMENTS[name]
        chosen = list(seeds) if seeds is not None else list(range(experiment.seeds))
        results = []
        for seed in chosen:
            say(f"{name}, seed {seed}")
            results.append(experiment.run(place, seed))
        found[name] = {"about": experiment.about, "seeds": chosen, "metrics": results}
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """The results as aligned plain text."""
    lines = []
    for name, result in found.items():
        runs: list[Metrics] = result["metrics"]
        seconds = statistics.mean(r["training_seconds"] for r in runs)
        lines += ["", f"{name}: {result['about']} ({len(runs)} seeds, {seconds:.0f} s of training each)"]
        for metric, against in EXPERIMENTS[name].metrics.items():
            values = [r[metric] for r in runs if metric in r]
            if not values:
                continue
            beside = [r[against] for r in runs if against in r]
            reference = f"   {against} {statistics.mean(beside):.4g}" if beside else ""
            each = " ".join(f"{v:.4g}" for v in values)
            lines.append(f"  {metric:<24}{_mean_and_std(values):<22}[{each}]{reference}")
    return "\n".join(lines[1:])


def _mean_and_std(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.mean(values):.4g} +- {statistics.stdev(values):.2g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.quality",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAME,...", help="these experiments (default: all)")
    parser.add_argument("--seeds", metavar="N,...", help="these seeds (default: as many as --list says)")
    parser.add_argument("--dir", type=Path, default=Path("runs/quality"), help="data and runs (runs/quality)")
    parser.add_argument("--threads", type=int, help="CPU threads (as torch chooses)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for every run")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every seed's metrics there")
    parser.add_argument("--list", action="store_true", help="show the experiments and stop")
    return parser


def _names(only: str | None) -> list[str]:
    names = list(EXPERIMENTS) if only is None else only.split(",")
    for name in names:
        if name not in EXPERIMENTS:
            raise InputError(f"There is no experiment {name!r}{did_you_mean(name, EXPERIMENTS)}; --list shows all.")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code, see `ali_dist.errors.exit_code`. Stopped or killed, it goes on when repeated."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:<20}{experiment.seeds:>3} seeds  {experiment.about}")
        return 0

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def measure() -> None:
        seeds = None if options.seeds is None else [_seed(word) for word in options.seeds.split(",")]
        for word in options.set:
            if "=" not in word:
                raise InputError(f"--set is {word!r}, but must be KEY=VALUE, such as run.images=64000.")
        overrides = dict(word.split("=", 1) for word in options.set)
        place = Place(options.dir.absolute(), options.threads, overrides, say)
        found = run(place, _names(options.only), seeds, say)
        print(table(found))
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    return exit_code("tests.bench.quality", measure)


def _seed(word: str) -> int:
    if not word.isdecimal():
        raise InputError(f"--seeds has {word!r}, but must be whole numbers, such as 0,1,2.")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
