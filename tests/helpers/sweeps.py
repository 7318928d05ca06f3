"""A sweep on paper: a plan, records of trials, and their folder, without training anything."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.storage import open_store
from ali_dist.storage.base import Store
from tuning.options import SweepOptions, make_plan
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord

SPACE = """
optim.lr_d: {loguniform: [1.0e-4, 1.0e-2]}
model.latent_size: {int: [2, 9]}
objective.loss: [relativistic, nonsaturating]
"""


def write_space(folder: Path, text: str = SPACE) -> str:
    """Write a space file; its path."""
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def small_plan(folder: Path, **options: Any) -> SweepPlan:
    """A plan over `SPACE` in `folder`, by `coverage`; `options` are attributes of `SweepOptions`."""
    defaults = SweepOptions(preset="mixture", space=write_space(folder), metric="coverage", trials=4)
    settings = {"run.dir": str(folder), "run.name": "sweep", "run.images": "8000"}
    return make_plan(dataclasses.replace(defaults, **options), settings)


def make_record(number: int, score: float | None = None, **changes: Any) -> TrialRecord:
    """A finished trial of `SPACE` with two evaluations (the first lacks a part of the score)."""
    settings = {"optim.lr_d": 10.0 ** -(2 + number), "model.latent_size": 2 + number, "objective.loss": "relativistic"}
    record = TrialRecord(number=number, settings=settings, state="finished", seconds=60.0 + number)
    record.add_evaluation({"images": 4000.0, "high_quality": 0.2})
    if score is not None:
        whole = {"images": 8000.0, "high_quality": score, "reverse_kl": 0.0, "right_mode": 1.0, "score": score}
        record.add_evaluation(whole)
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def store_of(plan: SweepPlan) -> Store:
    """The sweep's folder."""
    return open_store(plan.folder)


def preset_settings(name: str) -> dict[str, Any]:
    """A preset's whole config, nested."""
    return from_mapping(load_preset(name)).to_mapping()
