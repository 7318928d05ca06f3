"""Whole runs on drawn shapes: what data, averages and records leave of the speed of the update alone."""

from __future__ import annotations

import time

from tests.gpu.check.runs import RECORDS, configure, shapes, train
from tests.gpu.check.task import Task

SIDE = 32
UPDATES = 400
FIRST_GUESS = 25.0  # seconds of a run; later ones are guessed from what the longest took


def run(task: Task) -> None:
    """One run for each pair of networks and residency; one that fails is said, and the next ones are measured."""
    data = shapes(task, SIDE)
    updates = RECORDS if task.tiny else UPDATES
    guess = 3.0 if task.tiny else FIRST_GUESS
    for preset in ("shapes", "cifar10"):
        for residency in ("device", "stream"):
            what = f"{preset} {residency}"
            if not task.figures.fits(what, guess):
                continue
            began = time.monotonic()
            config = configure(task, preset, f"loop-{preset}-{residency}", data, data__residency=residency)
            batch = config.data.global_batch_size
            changes = {
                "data__residency": residency,
                "run__images": updates * batch,
                "report__log_every": updates * batch // RECORDS,
                "report__evaluation": "none",
            }
            config = configure(task, preset, config.run.name, data, **changes)
            try:
                summary, speed = train(config)
            except Exception as error:
                task.figures.fail(what, error)
                continue
            took = time.monotonic() - began
            guess = max(took, guess / 2)
            task.figures.add(
                "loop",
                preset=preset,
                asked=residency,
                residency=summary["residency"],
                batch=batch,
                updates=updates,
                update=summary["update"],
                precision=summary["precision"],
                images_per_second=speed.images_per_second,
                data_wait=speed.data_wait,
                took=round(took, 1),
            )
