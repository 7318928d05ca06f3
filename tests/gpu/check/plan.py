"""What the check consists of, and how its seconds are divided. Pure: no clock and no device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the check, which runs in a process of its own.

    Attributes:
        name: The module in `tests.gpu.check.parts` that measures it.
        about: What it measures.
        weight: Its share of the time that is left after every part has got its `least`.
        least: Seconds that earlier parts leave it whatever happens: start-up, and a first figure.
    """

    name: str
    about: str
    weight: float
    least: float


# In order of worth: if time runs out, it is the last ones that are missed.
PARTS = (
    Part("tests", "the GPU tests", weight=4, least=15),
    Part("step", "the update, beside the usual style", weight=5, least=15),
    Part("loop", "whole runs: images per second, and waiting for data", weight=2, least=10),
    Part("quality", "short runs on colour pictures", weight=2, least=15),
    Part("profile", "where the time of one update goes", weight=1, least=10),
    Part("roof", "what this device can do at most", weight=0.5, least=10),
)
TOO_LITTLE = 5.0  # seconds in which no part gets anywhere: PyTorch alone takes as long to start


def limit(parts: Sequence[Part], left: float) -> float:
    """Seconds that the first of `parts` may take when `left` seconds are left for all of them.

    What a part leaves over is in `left` when the next one asks, so unspent time passes on.
    """
    first = parts[0]
    least = sum(part.least for part in parts)
    if left <= least:
        return max(0.0, left) * first.least / least
    return first.least + (left - least) * first.weight / sum(part.weight for part in parts)
