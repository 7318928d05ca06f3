"""The parts of the check, and how its seconds are divided among them. Pure: it uses no clock and no device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the check, which runs in a process of its own.

    Attributes:
        name: Name of the module in `tests.gpu.check.parts` that measures it.
        description: What it measures.
        weight: Its share of the time that is left after every part has its `reserved_seconds`.
        reserved_seconds: What earlier parts leave it in any case: enough to start, and for a first figure.
    """

    name: str
    description: str
    weight: float
    reserved_seconds: float


# The most valuable part comes first: if time runs out, the last ones are left out.
PARTS = (
    Part("tests", "the GPU tests", weight=4, reserved_seconds=15),
    Part("step", "the update, beside the usual style", weight=5, reserved_seconds=15),
    Part("loop", "whole runs: images per second, and waiting for data", weight=2, reserved_seconds=10),
    Part("quality", "short runs on color pictures", weight=2, reserved_seconds=15),
    Part("profile", "where the time of one update goes", weight=1, reserved_seconds=10),
    Part("roof", "what this device can do at most", weight=0.5, reserved_seconds=10),
)
LEAST_USEFUL_SECONDS = 5.0  # PyTorch alone takes as long to start


def allot_seconds(parts: Sequence[Part], seconds_left: float) -> float:
    """Divide the seconds that are left for all of `parts`; returns how many of them the first part may take.

    What a part does not use is still left when the next one gets its share.
    """
    first = parts[0]
    reserved = sum(part.reserved_seconds for part in parts)
    if seconds_left <= reserved:
        return max(0.0, seconds_left) * first.reserved_seconds / reserved
    return first.reserved_seconds + (seconds_left - reserved) * first.weight / sum(part.weight for part in parts)
