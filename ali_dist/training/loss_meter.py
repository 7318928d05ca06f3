"""Losses and speed from one record to the next. Sums stay on the device, so that no update waits for the host."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ali_dist.distributed import World, sum_over_ranks
from ali_dist.model.losses import OBJECTIVES, jsd_estimate
from ali_dist.training.step import StepResult


@dataclass(slots=True)
class _Stretch:
    """Images seen, seconds passed, and seconds of those spent waiting for data."""

    images: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0

    def metrics(self) -> dict[str, float]:
        seconds = max(self.seconds, 1e-9)
        return {"images_per_second": self.images / seconds, "data_wait": min(1.0, self.waited / seconds)}


class LossMeter:
    """Measures stretches of training; what lies between `take` and `start` (evaluation, drawing) is not counted.

    Args:
        loss: Name of the objective.
        device: Where losses are computed.
        world: The ranks.
        logits: Logits that D gives to each pair; 0: there is no D.
    """

    def __init__(self, loss: str, device: torch.device, world: World, *, logits: int = 1) -> None:
        self._logits_of_jsd = logits if OBJECTIVES[loss].estimates_jsd else 0
        self._world = world
        self._sums = torch.zeros(len(StepResult._fields), device=device, dtype=torch.float64)
        self._total = _Stretch()
        self.images = 0
        self._started = 0.0
        self._waited_before = 0.0

    @property
    def waited(self) -> float:
        """Seconds of waiting for data in all stretches that have ended."""
        return self._total.waited

    def start(self, images: int, waited: float) -> None:
        """Begin a stretch.

        Args:
            images: Images seen so far.
            waited: Seconds of waiting for data so far.
        """
        self.images = images
        self._started = time.monotonic()
        self._waited_before = waited
        self._sums.zero_()

    def add(self, result: StepResult) -> None:
        """Count one update."""
        self._sums += torch.stack(result)

    def take(self, images: int, waited: float, beside: Tensor | None = None) -> dict[str, float]:
        """End the stretch: means per image over all ranks, and its speed. Collective.

        Args:
            images: Images seen so far.
            waited: Seconds of waiting for data so far.
            beside: Other numbers of this rank, [S] fp64, which become their sum over ranks: all in one all-reduce.
        """
        parts = [self._sums] if beside is None else [self._sums, beside]
        total = sum_over_ranks(torch.cat(parts), self._world)
        if beside is not None:
            beside.copy_(total[len(self._sums) :])
        sums = total[: len(self._sums)].tolist()  # waits for the device
        stretch = _Stretch(images - self.images, time.monotonic() - self._started, waited - self._waited_before)
        self._total.images += stretch.images
        self._total.seconds += stretch.seconds
        self._total.waited += stretch.waited
        record = {name: value / stretch.images for name, value in zip(StepResult._fields, sums, strict=True)}
        record["penalty"] = record["penalty_q"] + record["penalty_p"]
        if self._logits_of_jsd:
            record["jsd"] = jsd_estimate(record["d_loss"], self._logits_of_jsd)
        return record | stretch.metrics()

    def speed(self) -> dict[str, float]:
        """images_per_second and data_wait (a share of time) over all stretches that have ended."""
        return self._total.metrics()
