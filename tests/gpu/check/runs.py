"""Drawn shapes, and real training runs on them, for the parts that measure whole runs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.launchers.local import run_local
from ali_dist.runs.trackers import Record
from tests.gpu.check.task import Task

ROOT = Path(__file__).resolve().parents[3]
TINY: dict[str, Any] = {
    "data.global_batch_size": 8,
    "model.width": 0.1,
    "model.latent_size": 4,
    "scale.threads": 1,
}
RECORDS = 8  # lines of metrics in a run whose speed is measured; the first is the warm-up


def shapes(task: Task, size: int) -> Path:
    """The folder of drawn shapes of `size` pixels a side, which the first part that asks for it draws.

    In a process of its own, because drawing forks, and a process that uses CUDA must not.
    """
    folder = task.work / f"shapes-{size}"
    samples = 100 if task.tiny else {32: 20_000, 64: 10_000}[size]
    words = ["shapes", str(folder), "--size", str(size), "--samples", str(samples)]
    subprocess.run(
        [sys.executable, "-m", "ali_dist.prepare", *words], cwd=ROOT, check=True, timeout=max(1.0, task.figures.left())
    )
    return folder


def configure(task: Task, preset: str, name: str, data: Path, **changes: Any) -> Config:
    """The preset on these data, on the task's device, without a checkpoint before the end.

    Names in `changes` use `__` for the dot.
    """
    places = {
        "run.name": name,
        "run.dir": str(task.work / "runs"),
        "data.url": str(data),
        "data.source": None,
        "data.split": "train",
        "data.holdout": "test",
        "scale.workers": "0",
        "scale.device": task.device.type,
        "report.gallery_every": 0,
        "report.evaluate_every": 0,
        "report.checkpoint_every": 0,
    }
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return from_mapping(load_preset(preset), places, TINY if task.tiny else {}, named)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a run was once it was warm: medians over its records."""

    images_per_second: float
    data_wait: float

    @classmethod
    def of(cls, records: Sequence[Record]) -> Speed:
        """The first record is left out: it has the start of the device's libraries in it."""
        warm = records[1:] or records
        return cls(*(statistics.median(float(r[key]) for r in warm) for key in ("images_per_second", "data_wait")))


def train(config: Config) -> tuple[Record, Speed]:
    """Train as `python -m ali_dist.train` does; the summary, and the speed."""
    summary = run_local(config)
    if summary is None:
        raise RuntimeError("the run has left no summary")
    lines = (folder(config) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return summary, Speed.of([record for record in map(json.loads, lines) if record["event"] == "train"])


def folder(config: Config) -> Path:
    """What the run has left."""
    return Path(config.run.dir) / config.run.name
