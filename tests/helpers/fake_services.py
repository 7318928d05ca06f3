"""Stand-ins for the packages wandb and mlflow, which keep what they are told."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class FakeWandb:
    """What W&B was told: the runs that were begun, and every record of each, by the run's id.

    Attributes:
        begun: Arguments of `wandb.init`, for each start.
        records: What was logged, by id.
        summaries: Summaries, by id.
        exit_codes: How runs were finished, by id.
        mode: As WANDB_MODE would say.
        has_key: Whether there is a key.
        faults: Raised by the next calls of `log`, one each.
    """

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.records: dict[str, list[dict[str, Any]]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.exit_codes: dict[str, int] = {}
        self.mode = "offline"
        self.has_key = False
        self.faults: list[Exception] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
        module = ModuleType("wandb")
        contents = {
            "init": self._init,
            "login": lambda prompt: self.has_key,
            "setup": lambda: SimpleNamespace(settings=SimpleNamespace(mode=self.mode)),
            "Settings": lambda **values: values,
            "Image": lambda path: ("image", path),
            "Histogram": lambda values: ("histogram", len(values)),
        }
        for name, value in contents.items():
            setattr(module, name, value)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return self

    def _init(self, **arguments: Any) -> _FakeWandbRun:
        self.begun.append(arguments)
        return _FakeWandbRun(self, arguments["id"])

    def images_of(self, event: str) -> list[int]:
        """The x values of everything that was logged of an event, by all runs."""
        return [
            record[f"{event}/images"]
            for records in self.records.values()
            for record in records
            if f"{event}/images" in record
        ]


class _FakeWandbRun:
    offline = False

    def __init__(self, service: FakeWandb, run_id: str) -> None:
        self._service = service
        self._id = run_id
        self.url = f"https://wandb.example/{run_id}"
        self.summary = service.summaries.setdefault(run_id, {})

    def define_metric(self, name: str, **options: Any) -> None:
        del name, options

    def log(self, values: dict[str, Any]) -> None:
        if self._service.faults:
            raise self._service.faults.pop(0)
        self._service.records.setdefault(self._id, []).append(values)
        self.summary.update(values)

    def finish(self, exit_code: int) -> None:
        self._service.exit_codes[self._id] = exit_code


class FakeMlflow:
    """What MLflow was told, by the run's id.

    Attributes:
        metrics: (name, value, step) of every metric.
        params: Parameters by name.
        tags: Tags by name.
        artifacts: Names of artifacts, in order.
        status: The status.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, list[tuple[str, float, int]]] = {}
        self.params: dict[str, dict[str, str]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.artifacts: dict[str, list[str]] = {}
        self.status: dict[str, str] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
        package, entities, tracking = (ModuleType(name) for name in ("mlflow", "mlflow.entities", "mlflow.tracking"))
        entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]
        entities.RunTag = lambda key, value: (key, value)  # type: ignore[attr-defined]
        entities.Metric = lambda key, value, timestamp, step: (key, value, step)  # type: ignore[attr-defined]
        tracking.MlflowClient = lambda: self  # type: ignore[attr-defined]
        for module in (package, entities, tracking):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        return self

    # ---- the methods of MlflowClient -------------------------------------------------------------------------------

    def get_experiment_by_name(self, name: str) -> None:
        del name

    def create_experiment(self, name: str) -> str:
        return f"experiment of {name}"

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        run_id = f"{run_name}-{len(self.tags)}"
        for kept in (self.metrics, self.artifacts):
            kept[run_id] = []
        self.params[run_id] = {}
        self.tags[run_id] = {"experiment": experiment_id}
        return self.get_run(run_id)

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id), data=SimpleNamespace(tags=dict(self.tags[run_id])))

    def update_run(self, run_id: str, status: str) -> None:
        self.status[run_id] = status

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        assert len(params) <= 100, "MLflow refuses more at once"
        self.metrics[run_id] += metrics
        self.params[run_id].update(params)
        self.tags[run_id].update(tags)

    def log_dict(self, run_id: str, content: Any, name: str) -> None:
        del content
        self.artifacts[run_id].append(name)

    def log_artifact(self, run_id: str, path: str, folder: str) -> None:
        self.artifacts[run_id].append(f"{folder}/{path.rpartition('/')[2]}")

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status[run_id] = status
