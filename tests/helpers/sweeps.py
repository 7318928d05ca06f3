"""A sweep on paper: a plan, records of trials, and their folder, without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.storage import open_store
from ali_dist.storage.base import Store
from tuning.options import make_plan
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord

SPACE = """
optim.lr_d: {loguniform: [1.0e-4, 1.0e-2]}
model.latent_size: {int: [2, 9]}
objective.loss: [relativistic, nonsaturating]
"""


def write_space(folder: Path, text: str = SPACE) -> str:
    """A space file's path."""
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def small_plan(folder: Path, **options: str) -> SweepPlan:
    """A plan over `SPACE` in `folder`, by `coverage`; names in `options` use `_` for the dash."""
    given = {name.replace("_", "-"): value for name, value in options.items()}
    words = {"preset": "mixture", "space": write_space(folder), "metric": "coverage", "trials": "4", **given}
    return make_plan(words, {"run.dir": str(folder), "run.name": "sweep", "run.images": "8000"})


def record(number: int, score: float | None = None, **changes: Any) -> TrialRecord:
    """A finished trial of `SPACE` with two evaluations (one part of the score is not there yet in the first)."""
    settings = {"optim.lr_d": 10.0 ** -(2 + number), "model.latent_size": 2 + number, "objective.loss": "relativistic"}
    made = TrialRecord(number=number, settings=settings, state="finished", seconds=60.0 + number)
    made.add({"images": 4000.0, "high_quality": 0.2})
    if score is not None:
        made.add({"images": 8000.0, "high_quality": score, "reverse_kl": 0.0, "right_mode": 1.0, "score": score})
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def store_of(plan: SweepPlan) -> Store:
    """The sweep's folder."""
    return open_store(plan.folder)


def preset_settings(name: str) -> dict[str, Any]:
    """A preset's whole config, nested."""
    return from_mapping(load_preset(name)).to_mapping()
