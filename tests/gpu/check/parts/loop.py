"""Whole runs on drawn shapes: how fast updates are beside data, averages of weights, and records."""

from __future__ import annotations

import time

from tests.gpu.check.runs import RECORDS_PER_RUN, configure_run, prepare_shapes, train_run
from tests.gpu.check.task import PartTask

SIDE = 32
UPDATES = 400
FIRST_GUESS_SECONDS = 25.0  # that a run takes; later guesses follow from the longest so far


def run_part(task: PartTask) -> None:
    """Measure a run for each pair of networks and residency; one that fails is reported, and the next is measured."""
    data = prepare_shapes(task, SIDE)
    updates = RECORDS_PER_RUN if task.is_tiny else UPDATES
    guess = 3.0 if task.is_tiny else FIRST_GUESS_SECONDS
    for preset in ("shapes", "cifar10"):
        for residency in ("device", "stream"):
            what = f"{preset} {residency}"
            if not task.figures.has_time_for(what, guess):
                continue
            began = time.monotonic()
            config = configure_run(task, preset, f"loop-{preset}-{residency}", data, data__residency=residency)
            batch = config.data.global_batch_size
            changes = {
                "data__residency": residency,
                "run__images": updates * batch,
                "report__log_every": updates * batch // RECORDS_PER_RUN,
                "report__evaluation": "none",
            }
            config = configure_run(task, preset, config.run.name, data, **changes)
            try:
                summary, speed = train_run(config)
            except Exception as error:
                task.figures.add_failure(what, error)
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
