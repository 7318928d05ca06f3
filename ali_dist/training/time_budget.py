"""What the time of a run goes to, by the phases that its display shows anyway: nothing is measured for this alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PARTS = ("compute", "data", "evaluation", "drawing", "saving", "start")
"""What time goes to: updates, waiting for data, evaluation, pictures and pages, checkpoints and uploads, and the rest:
opening the data and the first update, which may compile the networks."""

_PART_OF_PHASE = {
    "evaluating": "evaluation",
    "drawing": "drawing",
    "writing the report": "drawing",
    "saving": "saving",
    "saving the last checkpoint": "saving",
    "uploading": "saving",
}


def add_up(before: Mapping[str, float], phases: Mapping[str, float], waited: float) -> dict[str, float]:
    """Add what this start has spent to what earlier ones have.

    Args:
        before: Seconds by part, of earlier starts.
        phases: Seconds of this start by the name of its phase; the empty name is training.
        waited: Seconds of training that were spent waiting for data.

    Returns:
        Seconds by part, in the order of `PARTS`.
    """
    total = {part: float(before.get(part, 0.0)) for part in PARTS}
    training = phases.get("", 0.0)
    waited = min(waited, training)  # the wait for the first batch lies before training
    total["compute"] += training - waited
    total["data"] += waited
    for phase, seconds in phases.items():
        if phase:
            total[_PART_OF_PHASE.get(phase, "start")] += seconds
    return {part: round(seconds, 3) for part, seconds in total.items()}


def read_spent(saved: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by part, as a checkpoint has them; what is no number, or no part, is not there."""
    return {part: float(saved[part]) for part in PARTS if isinstance(saved.get(part), int | float)}
