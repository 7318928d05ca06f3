"""Functions of images seen, the only clock: batch size and world size do not move them. Pure."""

from __future__ import annotations

import math


def is_due(every: int, images_before: int, images_now: int) -> bool:
    """Whether a multiple of `every` images was reached between two counts; never if `every` is 0."""
    return every > 0 and images_now // every > images_before // every


def learning_rate_factor(schedule: str, images_seen: int, total_images: int) -> float:
    """Factor on a learning rate: constant 1, or 1 until half time and then half a cosine down to 0."""
    if schedule == "constant":
        return 1.0
    done = min(1.0, images_seen / total_images)
    return 1.0 if done < 0.5 else 0.5 * (1.0 + math.cos(math.pi * (2.0 * done - 1.0)))


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
