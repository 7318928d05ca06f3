"""Losses and speed from one record to the next. Sums stay on the device, so that no update waits for the host."""

from __future__ import annotations

import time

import torch

from ali_dist.distributed import World, sum_over_ranks
from ali_dist.model.losses import jsd_estimate
from ali_dist.training.step import StepLosses


class LossMeter:
    """Counts stretches of training; what lies between `take` and `start` (evaluation, pictures) is not counted.

    Args:
        loss: Name of the objective.
        device: Where losses are computed.
        world: The ranks.
    """

    def __init__(self, loss: str, device: torch.device, world: World) -> None:
        self._has_jsd, self._world = loss in ("nonsaturating", "minimax"), world
        self._sums = torch.zeros(len(StepLosses._fields), device=device, dtype=torch.float64)
        self.images, self._since, self._waited = 0, 0.0, 0.0  # where the stretch began
        self._totals = [0.0, 0.0, 0.0]  # images, seconds, seconds of waiting for data

    def start(self, images: int, waited: float) -> None:
        """Begin a stretch at `images` images seen and `waited` seconds of waiting for data so far."""
        self.images, self._since, self._waited = images, time.monotonic(), waited
        self._sums.zero_()

    def add(self, losses: StepLosses) -> None:
        """Count one update."""
        self._sums += torch.stack(losses)

    def take(self, images: int, waited: float) -> dict[str, float]:
        """End the stretch: means per image over all ranks, and its speed. Collective."""
        sums = sum_over_ranks(self._sums, self._world).tolist()  # waits for the device
        stretch = (images - self.images, time.monotonic() - self._since, waited - self._waited)
        self._totals = [total + part for total, part in zip(self._totals, stretch, strict=True)]
        record = {name: value / stretch[0] for name, value in zip(StepLosses._fields, sums, strict=True)}
        if self._has_jsd:
            record["jsd"] = jsd_estimate(record["d_loss"])
        return record | _speed_metrics(*stretch)

    def speed(self) -> dict[str, float]:
        """images_per_second and data_wait (share of time) over all stretches that have ended."""
        return _speed_metrics(*self._totals)


def _speed_metrics(images: float, seconds: float, waited: float) -> dict[str, float]:
    seconds = max(seconds, 1e-9)
    return {"images_per_second": images / seconds, "data_wait": min(1.0, waited / seconds)}
