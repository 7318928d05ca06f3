"""Short runs on drawn colour pictures: that it learns on this device, in numbers and in pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

from ali_dist.config import Config
from ali_dist.evaluation import classifier
from tests.gpu.check.runs import RECORDS, configure, folder, shapes, train
from tests.gpu.check.task import Task

# The preset for each size. At 64 pixels there is only the paper's own for CelebA so far; a stabilised one comes here.
PRESETS = {32: "shapes", 64: "celeba"}
PICTURES = ("samples", "reconstructions", "interpolations")
PROBE_UPDATES = 80  # of the run that tells how many images fit
JUDGING = 25.0  # seconds kept for the judges, the pictures and the checkpoint of a run
LEAST = 20.0  # seconds of training under which a run says nothing


def run(task: Task) -> None:
    """A run for each size, as long as its share of the time; where one fails, the other is still made."""
    if task.tiny:
        classifier.STEPS = 2  # the judges are real, and know nothing
    for number, (size, preset) in enumerate(PRESETS.items()):
        share = task.figures.left() / (len(PRESETS) - number)
        what = f"{preset} at {size} px"
        if not task.tiny and not task.figures.fits(what, JUDGING + LEAST):
            continue
        try:
            _one(task, size, preset, share)
        except Exception as error:
            task.figures.fail(what, error)


def _one(task: Task, size: int, preset: str, share: float) -> None:
    end = task.figures.left() - share
    data = shapes(task, size)
    config = configure(task, preset, f"quality-{size}", data)
    whole, batch = config.run.images, config.data.global_batch_size
    images = 2 * batch if task.tiny else min(whole, _images(task, size, preset, data, batch, end))
    summary, speed = train(
        configure(task, preset, config.run.name, data, run__images=images, report__log_every=max(1, images // 20))
    )
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
        metrics=summary["metrics"],
        pictures=_copy_pictures(config, task.out, f"{size}px-{preset}"),
    )


def _images(task: Task, size: int, preset: str, data: Path, batch: int, end: float) -> int:
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
