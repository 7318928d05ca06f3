"""Drawn shapes, and training runs on them, for the parts that measure whole runs."""

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
from ali_dist.config.loading import from_mapping, read_preset
from ali_dist.launchers.local import run_local
from ali_dist.runs.image_sizes import settings_from_data
from ali_dist.runs.trackers import Record
from tests.gpu.check.task import PartTask

ROOT = Path(__file__).resolve().parents[3]
TINY_SETTINGS: dict[str, Any] = {
    "data.global_batch_size": 8,
    "model.width": 0.1,
    "model.latent_size": 4,
    "scale.threads": 1,
}
RECORDS_PER_RUN = 8  # lines of metrics in a run whose speed is measured; the first is the warm-up


def prepare_shapes(task: PartTask, size: int) -> Path:
    """Draw shapes of `size` pixels a side, unless another part has done so; returns their folder.

    They are drawn in a process of its own, because drawing forks, which a process that uses CUDA must not do.
    """
    folder = task.work / f"shapes-{size}"
    samples = 100 if task.is_tiny else {32: 20_000, 64: 10_000}[size]
    words = ["shapes", str(folder), "--size", str(size), "--samples", str(samples)]
    subprocess.run(
        [sys.executable, "-m", "ali_dist.prepare", *words],
        cwd=ROOT,
        check=True,
        timeout=max(1.0, task.figures.seconds_left()),
    )
    return folder


def configure_run(task: PartTask, preset: str, name: str, data: Path, **changes: Any) -> Config:
    """Configure a run of the preset on these data and the task's device, without a checkpoint before the end.

    Names in `changes` have `__` where settings have a dot.
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
    loaded = read_preset(preset)
    sizes = settings_from_data(loaded.settings, places)[0] if loaded.sized_by else {}
    return from_mapping(loaded.settings, sizes, places, TINY_SETTINGS if task.is_tiny else {}, named)


@dataclass(frozen=True, slots=True)
class RunSpeed:
    """How fast a run was after its start: medians over its records.

    Attributes:
        images_per_second: Of all updates, with everything around them.
        data_wait: Share of the time that was spent waiting for data.
    """

    images_per_second: float
    data_wait: float

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> RunSpeed:
        """Leave the first record out, which includes the start of the device's libraries, and take the medians."""
        warm = records[1:] or records
        return cls(
            images_per_second=statistics.median(float(record["images_per_second"]) for record in warm),
            data_wait=statistics.median(float(record["data_wait"]) for record in warm),
        )


def train_run(config: Config) -> tuple[Record, RunSpeed]:
    """Train as `python -m ali_dist.train` does; returns the summary and the speed."""
    summary = run_local(config)
    if summary is None:
        raise RuntimeError("the run has left no summary")
    lines = (run_folder(config) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return summary, RunSpeed.from_records([record for record in map(json.loads, lines) if record["event"] == "train"])


def run_folder(config: Config) -> Path:
    """The folder of the run's results."""
    return Path(config.run.dir) / config.run.name
