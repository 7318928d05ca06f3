"""Short runs on drawn color pictures show, in numbers and in pictures, that training works on this device."""

from __future__ import annotations

import shutil
from pathlib import Path

from ali_dist.config import Config
from ali_dist.data.shards.reader import load_arrays
from ali_dist.evaluation.batched import decode_batched, encode_batched, sample_decoder
from ali_dist.evaluation.classifiers import classifier_updates, train_classifier
from ali_dist.evaluation.frechet import Gaussian, scaled_frechet_distance
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.reconstruction import constant_image_error, mean_image, mean_squared_error
from ali_dist.inference.load import LoadedRun, load_run
from ali_dist.runs.datasets import DataSplit, open_run_data
from tests.gpu.check.runs import RECORDS_PER_RUN, configure_run, prepare_shapes, run_folder, train_run
from tests.gpu.check.task import PartTask

PRESETS = {32: "shapes", 64: "images"}  # by size
PICTURES = ("samples", "reconstructions", "interpolations")
PROBE_UPDATES = 80  # of the run that shows how many images there is time for
EVALUATION_SECONDS = 20.0  # kept for the pictures, the checkpoint and the metrics of a run
LEAST_TRAINING_SECONDS = 10.0  # a shorter run says nothing
SAMPLE_COUNT = 2_000
SEED = 0


def run_part(task: PartTask) -> None:
    """Train a run for each size in its share of the time; where one fails, the other is still trained."""
    for number, (size, preset) in enumerate(PRESETS.items()):
        seconds_left = task.figures.seconds_left()
        kept_seconds = seconds_left - seconds_left / (len(PRESETS) - number)
        what = f"{preset} at {size} px"
        if not task.is_tiny and not task.figures.has_time_for(what, EVALUATION_SECONDS + LEAST_TRAINING_SECONDS):
            continue
        try:
            config = _train_until(task, size, preset, kept_seconds)
            task.figures.add("metrics", size=size, preset=preset, metrics=_evaluate_run(task, config))
        except Exception as error:
            task.figures.add_failure(what, error)


def _train_until(task: PartTask, size: int, preset: str, kept_seconds: float) -> Config:
    """Train until only `kept_seconds` and the time for metrics are left; writes the figure and the pictures."""
    data = prepare_shapes(task, size)
    name = f"quality-{size}"
    whole_run = configure_run(task, preset, name, data)
    batch = whole_run.data.global_batch_size
    all_images = whole_run.run.images
    if task.is_tiny:
        images = 2 * batch
    else:
        images = min(all_images, _images_until(task, size, preset, data, batch, kept_seconds))
    changes = {"run__images": images, "report__log_every": max(1, images // 20), "report__evaluation": "none"}
    config = configure_run(task, preset, name, data, **changes)
    summary, speed = train_run(config)
    task.figures.add(
        "quality",
        size=size,
        preset=preset,
        images=images,
        of=all_images,
        update=summary["update"],
        precision=summary["precision"],
        seconds=summary["seconds"],
        images_per_second=speed.images_per_second,
        pictures=_copy_pictures(config, task.out, f"{size}px-{preset}"),
    )
    return config


def _images_until(task: PartTask, size: int, preset: str, data: Path, batch: int, kept_seconds: float) -> int:
    """Train a short run; returns how many images there is time for until only `kept_seconds` are left."""
    probe = {
        "run__images": PROBE_UPDATES * batch,
        "report__log_every": PROBE_UPDATES * batch // RECORDS_PER_RUN,
        "report__evaluation": "none",
    }
    _, speed = train_run(configure_run(task, preset, f"probe-{size}", data, **probe))
    seconds = max(LEAST_TRAINING_SECONDS / 2, task.figures.seconds_left() - kept_seconds - EVALUATION_SECONDS)
    return max(1, int(speed.images_per_second * seconds * 0.9 / batch)) * batch


def _copy_pictures(config: Config, out: Path, prefix: str) -> list[str]:
    """Copy the newest grid of each kind to the user's folder; returns their names there."""
    names = []
    for kind in PICTURES:
        grids = sorted((run_folder(config) / "images").glob(f"{kind}-*.png"))
        if grids:
            name = f"{prefix}-{kind}.png"
            shutil.copyfile(grids[-1], out / name)
            names.append(name)
    return names


def _evaluate_run(task: PartTask, config: Config) -> dict[str, float]:
    """Compute those of the usual metrics which take a GPU some seconds.

    Probes on raw pixels are left out: at 64 pixels they keep one CPU core at work for minutes.
    """
    device = task.device
    run = load_run(str(run_folder(config)), device=device)
    data = open_run_data(config)
    if data.holdout is None:
        raise RuntimeError("the shapes have no split for evaluation")
    train, holdout = (_load_split(run, split) for split in (data.train, data.holdout))
    if holdout.y is None:
        raise RuntimeError("the shapes have no classes")
    updates = 2 if task.is_tiny else classifier_updates(train.x)
    classifier = train_classifier(train, seed=SEED, device=device, steps=updates)
    reference = Gaussian.fit(classifier.features(train.x))
    x_tilde = sample_decoder(run.model, 40 if task.is_tiny else SAMPLE_COUNT, SEED, device)
    x_rec = decode_batched(run.model, encode_batched(run.model, holdout.x, SEED, device)[2], device)
    right, kept = (classifier.classify(classifier.features(x)).eq(holdout.y) for x in (holdout.x, x_rec))
    return {
        "frechet": scaled_frechet_distance(classifier.features(x_tilde), reference),
        "frechet_reference": scaled_frechet_distance(classifier.features(holdout.x), reference),
        "reconstruction_mse": mean_squared_error(holdout.x, x_rec),
        "reconstruction_mse_reference": constant_image_error(holdout.x, mean_image(train.x)),
        "label_kept": float(kept.double().mean()),
        "classifier_accuracy": float(right.double().mean()),
    }


def _load_split(run: LoadedRun, split: DataSplit) -> LabelledArrays:
    """Load a whole split into memory, at the size that the run is trained at."""
    x, y = load_arrays(split.store, split.index)
    return LabelledArrays(run.space.unit_from_stored(x), y, split.index.classes)
