"""Weights & Biases: a run there for each run here, online or offline as the usual WANDB_* variables say."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ali_dist.errors import InputError
from ali_dist.runs.tracker import (
    Histograms,
    Record,
    TrackedRun,
    Tracker,
    kind_of_picture,
    numbers_of,
    require_package,
)

PROJECT = "ali_dist"


class WandbTracker(Tracker):
    """Records by event, over the images seen: `train/d_loss` over `train/images`.

    A run that goes on continues the run of the same id. Nothing but what is logged here goes there: no code, no
    command line, no output of the terminal.
    """

    is_service: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._run: Any = None
        self._events: set[str] = set()

    @classmethod
    def check(cls) -> None:
        require_package("wandb", "wandb")
        # Read when it is imported: crashes of the library are nobody's metrics.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Only an online run needs a key. Without one W&B would ask in the terminal, which nobody looks at.
        if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False):
            raise InputError(
                "report.trackers names 'wandb', but there is no key for Weights & Biases: run wandb login, set "
                "WANDB_API_KEY, or set WANDB_MODE=offline to keep its files on this machine."
            )

    def start(self, run: TrackedRun) -> Mapping[str, int]:
        import wandb

        run_id = run.known_id or uuid.uuid4().hex[:12]
        run.remember(run_id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            id=run_id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(self.folder),
            config=dict(run.settings),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        if not self._run.offline and self._run.url:
            run.say(f"Weights & Biases shows the run at {self._run.url}.")
        known = {key: self._run.summary.get(key) for key in self._run.summary.keys()}  # noqa: SIM118  (it is no dict)
        suffix = "/images"
        return {key.removesuffix(suffix): int(value) for key, value in known.items() if key.endswith(suffix)}

    def log_record(self, record: Record) -> None:
        event = record["event"]
        self._log(event, {f"{event}/{key}": value for key, value in numbers_of(record).items()}, record["images"])

    def log_histograms(self, histograms: Histograms, images: int) -> None:
        import wandb

        values = {f"histograms/{name}": wandb.Histogram(values) for name, values in histograms.items()}
        self._log("histograms", values, images)

    def log_image(self, path: Path, images: int) -> None:
        import wandb

        event = f"pictures/{kind_of_picture(path)}"
        self._log(event, {event: wandb.Image(str(path))}, images)

    def _log(self, event: str, values: Mapping[str, Any], images: int) -> None:
        if not values:
            return
        if event not in self._events:
            self._events.add(event)
            self._run.define_metric(f"{event}/images", hidden=True)
            self._run.define_metric(f"{event}/*" if event.count("/") == 0 else event, step_metric=f"{event}/images")
        self._run.log({**values, f"{event}/images": images})

    def finish(self, summary: Record) -> None:
        self._run.summary.update({f"final/{key}": value for key, value in (summary.get("metrics") or {}).items()})
        self._run.summary.update({"status": summary["status"], "images": summary["images"]})
        self._run.finish(exit_code=1 if summary["status"] == "failed" else 0)
