"""Functions of images seen, the only clock: batch size and world size do not move them. Pure.

`adam_epsilon` alone counts updates, as Adam's own bias correction does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ali_dist.config import OptimConfig, ReportConfig


def is_due(every: int, images_before: int, images_now: int) -> bool:
    """Whether a multiple of `every` images was reached between two counts; never if `every` is 0."""
    return every > 0 and images_now // every > images_before // every


class DueActions(NamedTuple):
    """What is to be done after an update."""

    record: bool
    draw: bool
    evaluate: bool
    save: bool


def due_actions(report: ReportConfig, *, images_before: int, images_now: int, is_last: bool) -> DueActions:
    """What is due between two counts of images; everything at the end, and a record wherever anything is.

    Args:
        report: How often, in images.
        images_before: Images seen before the update.
        images_now: Images seen after it.
        is_last: Whether it was the last update of the run.
    """

    def reached(every: int) -> bool:
        return is_last or is_due(every, images_before, images_now)

    draw = reached(report.gallery_every)
    evaluate = reached(report.evaluate_every)
    save = reached(report.checkpoint_every)
    return DueActions(reached(report.log_every) or draw or evaluate or save, draw, evaluate, save)


def learning_rate_factor(optim: OptimConfig, batch: int, images_seen: int, total_images: int) -> float:
    """Factor on the learning rates of the next update.

    A line up to 1 over `optim.warmup` images; then constant 1, or 1 until half time and half a cosine down to 0. Adam's
    first steps are as large as its later ones, though it knows no more than a sign of each gradient then.

    Args:
        optim: Which schedule.
        batch: Images of an update.
        images_seen: Before the update.
        total_images: Of the run.
    """
    warm = min(1.0, (images_seen + batch) / optim.warmup) if optim.warmup else 1.0
    done = min(1.0, images_seen / total_images)
    if optim.schedule == "constant" or done < 0.5:
        return warm
    return warm * 0.5 * (1.0 + math.cos(math.pi * (2.0 * done - 1.0)))


def penalty_factor(final: float, images_seen: int, total_images: int) -> float:
    """Factor on the gradient penalties: 1 until half time, then exponentially down to `final`."""
    done = min(1.0, images_seen / total_images)
    return float(final ** max(0.0, 2.0 * done - 1.0))


def ema_decay(half_life: float, batch: int, images_seen: int) -> float:
    """Share of the old average that one update of `batch` images keeps.

    The half-life (in images) ramps up with the run, so that early averages forget the initial weights;
    0 means no average: the weights themselves.
    """
    if half_life == 0:
        return 0.0
    return float(0.5 ** (batch / max(min(half_life, 0.1 * images_seen), 1e-9)))


def adam_epsilon(optim: OptimConfig, update: int) -> float:
    """Epsilon as torch's Adam takes it, beside the corrected second moment, in an update (from 1 on).

    Added before the correction of a moment v, as in the library of the authors' code: sqrt(v) + eps is
    sqrt(1 - beta2^t) (sqrt(v / (1 - beta2^t)) + eps / sqrt(1 - beta2^t)). That library also lets beta1 decay by 1e-8 an
    update, which is left out here. Updates that fp16 skips are counted, though Adam does not count them.

    Source: Blocks (arXiv 1506.00619), `Adam` of 2016; Kingma and Ba, arXiv 1412.6980, end of section 2 (epsilon hat).
    """
    if not optim.eps_inside:
        return optim.eps
    return optim.eps / math.sqrt(1.0 - optim.beta2**update)
