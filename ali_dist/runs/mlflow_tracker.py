"""MLflow: a run there for each run here, in the store that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ali_dist.runs.tracker import (
    Histograms,
    Record,
    TrackedRun,
    Tracker,
    kind_of_picture,
    numbers_of,
    require_package,
)

EXPERIMENT = "ali_dist"
TAG = "ali_dist.images."
"""Tags of this beginning hold the images of the last record of each event."""
_PERCENTILES = (5, 25, 50, 75, 95)  # MLflow has no histograms
_AT_ONCE = 100  # parameters that a request may have
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MlflowTracker(Tracker):
    """Records as metrics over the images seen, pictures and settings as artifacts.

    A run that goes on continues the run of the same id.
    """

    is_service: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._client: Any = None
        self._run_id = ""

    @classmethod
    def check(cls) -> None:
        require_package("mlflow", "mlflow")

    def start(self, run: TrackedRun) -> Mapping[str, int]:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported: how it is used
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # lines of its own would tear the display apart
            logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = client = MlflowClient()
        if run.known_id:
            found = client.get_run(run.known_id)
            client.update_run(run.known_id, status="RUNNING")
        else:
            found = client.create_run(_find_experiment(client), run_name=run.name)
            run.remember(found.info.run_id)
            params = [Param(key, str(value)) for key, value in run.settings.items()]
            for start in range(0, len(params), _AT_ONCE):
                client.log_batch(found.info.run_id, params=params[start : start + _AT_ONCE])
        self._run_id = found.info.run_id
        # Parameters cannot be changed there; what a later start changed is here.
        client.log_dict(self._run_id, dict(run.settings), f"settings-{run.images:09d}.json")
        tags = found.data.tags
        return {key.removeprefix(TAG): int(value) for key, value in tags.items() if key.startswith(TAG)}

    def log_record(self, record: Record) -> None:
        values = {f"{record['event']}/{key}": value for key, value in numbers_of(record).items()}
        self._log(record["event"], values, record["images"])

    def log_histograms(self, histograms: Histograms, images: int) -> None:
        values = {
            f"histograms/{name}/p{percent:02d}": float(value)
            for name, numbers in histograms.items()
            for percent, value in zip(_PERCENTILES, np.percentile(numbers, _PERCENTILES), strict=True)
        }
        self._log("histograms", values, images)

    def log_image(self, path: Path, images: int) -> None:
        self._client.log_artifact(self._run_id, str(path), "images")
        self._log(f"pictures/{kind_of_picture(path)}", {}, images)

    def _log(self, event: str, values: Mapping[str, float], images: int) -> None:
        """Log numbers of one moment, and with them, in one request, of which moment they are."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, images) for key, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics, tags=[RunTag(f"{TAG}{event}", str(images))])

    def finish(self, summary: Record) -> None:
        metrics = {f"final/{key}": float(value) for key, value in (summary.get("metrics") or {}).items()}
        self._log("final", metrics, summary["images"])
        self._client.set_terminated(self._run_id, _STATUS.get(summary["status"], "KILLED"))


def _find_experiment(client: Any) -> str:
    """The experiment that MLflow's own variables name, or ours; it is made if it does not exist."""
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return experiment_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))
