"""Short runs on drawn colour pictures: that it learns on this device, in numbers and in pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

from ali_dist.config import Config
from ali_dist.data.shards.reader import load_arrays
from ali_dist.evaluation.batched import decode_batched, encode_batched, sample_decoder
from ali_dist.evaluation.classifiers import classifier_updates, train_classifier
from ali_dist.evaluation.frechet import Gaussian, scaled_frechet_distance
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.reconstruction import mean_image_error, mean_squared_error
from ali_dist.inference.load import LoadedRun, load_run
from ali_dist.runs.datasets import DataSplit, open_run_data
from tests.gpu.check.runs import RECORDS, configure, folder, shapes, train
from tests.gpu.check.task import Task

# The preset for each size. At 64 pixels there is only the paper's own for CelebA so far; a stabilised one comes here.
PRESETS = {32: "shapes", 64: "celeba"}
PICTURES = ("samples", "reconstructions", "interpolations")
PROBE_UPDATES = 80  # of the run that tells how many images fit
JUDGING = 20.0  # seconds kept for the pictures, the checkpoint and the judge of a run
LEAST = 10.0  # seconds of training under which a run says nothing
SAMPLES, SEED = 2_000, 0


def run(task: Task) -> None:
    """A run for each size, as long as its share of the time; where one fails, the other is still made."""
    for number, (size, preset) in enumerate(PRESETS.items()):
        left = task.figures.left()
        end = left - left / (len(PRESETS) - number)
        what = f"{preset} at {size} px"
        if not task.tiny and not task.figures.fits(what, JUDGING + LEAST):
            continue
        try:
            config = _train(task, size, preset, end)
            task.figures.add("metrics", size=size, preset=preset, metrics=_judge(task, config))
        except Exception as error:
            task.figures.fail(what, error)


def _train(task: Task, size: int, preset: str, end: float) -> Config:
    """Train until `end` seconds are left but for judging; the figure and the pictures are kept before that."""
    data = shapes(task, size)
    name = f"quality-{size}"
    first = configure(task, preset, name, data)
    batch, whole = first.data.global_batch_size, first.run.images
    images = 2 * batch if task.tiny else min(whole, _images_until(task, size, preset, data, batch, end))
    changes = {"run__images": images, "report__log_every": max(1, images // 20), "report__evaluation": "none"}
    config = configure(task, preset, name, data, **changes)
    summary, speed = train(config)
    task.figures.add(
        "quality",
        size=size,
        preset=preset,
        images=images,
        of=whole,
        update=summary["update"],
        precision=summary["precision"],
        seconds=summary["seconds"],
        images_per_second=speed.images_per_second,
        pictures=_copy_pictures(config, task.out, f"{size}px-{preset}"),
    )
    return config


def _images_until(task: Task, size: int, preset: str, data: Path, batch: int, end: float) -> int:
    """Images that can be trained on before `end` seconds are left, judged by a run of some updates."""
    probe = {
        "run__images": PROBE_UPDATES * batch,
        "report__log_every": PROBE_UPDATES * batch // RECORDS,
        "report__evaluation": "none",
    }
    _, speed = train(configure(task, preset, f"probe-{size}", data, **probe))
    seconds = max(LEAST / 2, task.figures.left() - end - JUDGING)
    return max(1, int(speed.images_per_second * seconds * 0.9 / batch)) * batch


def _copy_pictures(config: Config, out: Path, prefix: str) -> list[str]:
    """The newest grid of each kind, to the user's folder; their names there."""
    copied = []
    for kind in PICTURES:
        found = sorted((folder(config) / "images").glob(f"{kind}-*.png"))
        if found:
            name = f"{prefix}-{kind}.png"
            shutil.copyfile(found[-1], out / name)
            copied.append(name)
    return copied


def _judge(task: Task, config: Config) -> dict[str, float]:
    """The metrics of `evaluation.suite` that a GPU computes in seconds.

    The suite's probes on raw pixels are left out: at 64 pixels they keep one CPU core at work for minutes.
    """
    device, samples = task.device, 40 if task.tiny else SAMPLES
    saved = load_run(str(folder(config)), device=device)
    inputs = open_run_data(config)
    if inputs.holdout is None:
        raise RuntimeError("the shapes have no split to judge on")
    known, unseen = (_split(saved, part) for part in (inputs.train, inputs.holdout))
    if unseen.y is None:
        raise RuntimeError("the shapes have no classes to judge by")
    judge = train_classifier(known, seed=SEED, device=device, steps=2 if task.tiny else classifier_updates(known.x))
    reference = Gaussian.fit(judge.features(known.x))
    x_tilde = sample_decoder(saved.model, samples, SEED, device)
    x_rec = decode_batched(saved.model, encode_batched(saved.model, unseen.x, SEED, device)[2], device)
    right, kept = (judge.classify(judge.features(x)).eq(unseen.y) for x in (unseen.x, x_rec))
    return {
        "frechet": scaled_frechet_distance(judge.features(x_tilde), reference),
        "frechet_reference": scaled_frechet_distance(judge.features(unseen.x), reference),
        "reconstruction_mse": mean_squared_error(unseen.x, x_rec),
        "reconstruction_mse_reference": mean_image_error(known.x, unseen.x),
        "label_kept": float(kept.double().mean()),
        "classifier_accuracy": float(right.double().mean()),
    }


def _split(saved: LoadedRun, part: DataSplit) -> LabelledArrays:
    """A whole split at the training size, in memory."""
    x, y = load_arrays(part.store, part.index)
    return LabelledArrays(saved.space.unit_from_stored(x), y, part.index.classes)
