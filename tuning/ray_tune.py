"""The sweep on Ray Tune: it places trials, gives them settings, and lets ASHA and the tracker stop them."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ray
import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from ali_dist.config.loading import flatten_mapping, from_mapping
from ali_dist.launchers.environment import temporary_environment
from ali_dist.launchers.ray_cluster import RAY_ENVIRONMENT, alive_nodes, connect_to_ray
from ali_dist.launchers.ray_notes import Notes
from ali_dist.launchers.ray_storage import open_ray_storage
from ali_dist.launchers.ray_train import RAY_TRAIN_ENVIRONMENT
from ali_dist.launchers.resources import Resources
from ali_dist.storage.base import Store
from tuning.resources import TrialResources
from tuning.searchers import QueueSearcher, Suggester
from tuning.spaces import searched_values
from tuning.sweep_plan import REDUCTION, SweepPlan
from tuning.trial import run_trial
from tuning.trial_record import TrialRecord, trial_name
from tuning.trial_tracker import SCORE, TrialTracker

_RESTARTS = 3  # of a trial whose process or machine is lost; it goes on from its newest checkpoint
_PLACES = ("run.dir", "data.url", "data.source")  # a sweep goes on where its project has been moved to
_SAVING_SECONDS = 60.0  # for trials to save when the sweep ends; an evaluation of many images may be under way
_HEAD = "node:__internal_head__"  # drivers of trials share the head's marker, not its CPUs, which workers need
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials write their own metrics
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial has no score
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, Tune then writes nothing: the table is ours
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@contextlib.contextmanager
def tune_session() -> Iterator[list[Resources]]:
    """Within the block, this process is connected to a Ray cluster; gives the resources of its machines."""
    with temporary_environment(_TUNE_ENVIRONMENT, defaults=RAY_ENVIRONMENT | RAY_TRAIN_ENVIRONMENT):
        connect_to_ray(log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield alive_nodes()
        finally:
            ray.shutdown()


def scale_settings(resources: TrialResources) -> dict[str, Any]:
    """The settings of `scale` with which a trial's config says what it takes, by dotted name."""
    workers = "0" if resources.workers == 1 else str(resources.workers)
    settings = {"scale.workers": workers, "scale.device": "cuda" if resources.gpus else "cpu"}
    return settings | ({"scale.gpus_per_worker": resources.gpus} if resources.gpus else {})


def placement_group_for(resources: TrialResources) -> ray.tune.PlacementGroupFactory:
    """What Tune reserves for a trial: all it takes, or the driver's marker where Ray Train will reserve the workers."""
    bundle = resources.per_worker() if resources.workers == 1 else {_HEAD: 0.001}
    return ray.tune.PlacementGroupFactory([bundle])


class TrialCallback(ray.tune.Callback):
    """Tells the tracker what happens.

    Args:
        tracker: The tracker of the sweep.
        check_trial: Says what is wrong with a trial's own files; None if nothing is.
        on_trial_end: Called with the record of each trial that has come to its end.
    """

    def __init__(
        self,
        tracker: TrialTracker,
        check_trial: Callable[[TrialRecord], str | None],
        on_trial_end: Callable[[TrialRecord], None],
    ) -> None:
        self._tracker = tracker
        self._check_trial = check_trial
        self._on_trial_end = on_trial_end

    def __getstate__(self) -> dict[str, Any]:
        """Nothing; see `TrialTracker.__getstate__`."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tracker.mark_started(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end_trial(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end_trial(trial, f"its process was lost more than {_RESTARTS} times")

    def _end_trial(self, trial: Any, error: str | None) -> None:
        fault = self._check_trial(self._tracker.copy_record(trial.trial_id))
        if fault is not None:
            self._tracker.mark_failed(trial.trial_id, fault)
        if self._tracker.mark_ended(trial.trial_id, error):
            self._on_trial_end(self._tracker.copy_record(trial.trial_id))


class SweepStopper(ray.tune.Stopper):
    """Stops collapsed trials; when the sweep ends, asks all trials to save, and ends them when they have.

    Args:
        tracker: The tracker of the sweep.
        notes: Where trials learn that the sweep ends.
    """

    def __init__(self, tracker: TrialTracker, notes: Notes) -> None:
        self._tracker = tracker
        self._notes = notes
        self._stop_requested_at: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing; see `TrialTracker.__getstate__`."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._tracker.add_report(trial_id, result)

    def stop_all(self) -> bool:
        """Called several times a second."""
        if not self._tracker.is_halted():
            return False
        now = time.monotonic()
        if self._stop_requested_at is None:
            self._stop_requested_at = now
            self._notes.request_stop()
        return not self._tracker.is_any_running() or now - self._stop_requested_at > _SAVING_SECONDS


class ResumableASHA(ASHAScheduler):
    """ASHA on images seen; the preset's own trial always goes on, because all others are compared with it.

    Args:
        plan: The plan of the sweep.
        records: Trials that ended in an earlier process of the sweep: they stand on their rungs.
    """

    def __init__(self, plan: SweepPlan, records: list[TrialRecord]) -> None:
        budget = plan.budget
        grace = min(max(plan.evaluate_every, -(-budget // REDUCTION**2)), budget)
        super().__init__(
            time_attr="images",
            metric=SCORE,
            mode=plan.score_metric.mode,
            grace_period=grace,
            max_t=max(grace, budget - 1),  # no rung at the end, where it would stop trials before their summary
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
        self._exempt_number = 0 if plan.has_baseline else None
        no_controller: Any = None
        for record in records:
            ended_trial: Any = SimpleNamespace(trial_id=f"ended-{record.number}")  # all of a trial that ASHA looks at
            self.on_trial_add(no_controller, ended_trial)
            for evaluation in record.evaluations:
                super().on_trial_result(no_controller, ended_trial, evaluation)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["number"] == self._exempt_number else action


class TrialQueue:
    """Gives Tune the requests of trials, in order.

    Args:
        plan: The plan of the sweep.
        tracker: The tracker of the sweep.
        resources: What each trial takes.
        suggester: Asked where the plan does not fix settings.
    """

    def __init__(
        self, plan: SweepPlan, tracker: TrialTracker, resources: TrialResources, suggester: Suggester | None
    ) -> None:
        self._plan = plan
        self._tracker = tracker
        self._suggester = suggester
        self._scale = scale_settings(resources)
        self._held = resources.total()
        self._waiting = tracker.list_waiting()
        self._earlier_records = {record.number: record for record in tracker.copy_records()}

    def __len__(self) -> int:
        return len(self._waiting)

    def next_request(self, trial_id: str) -> dict[str, Any] | None:
        """The request of the next trial, as `run_trial` takes it; None at the end.

        Args:
            trial_id: Tune's id for the trial.
        """
        if not self._waiting or self._tracker.is_halted():
            return None
        number = self._waiting.pop(0)
        config = self._plan.config_for_trial(number, self._choose_settings(number), self._scale).to_mapping()
        values = searched_values(self._plan.dimensions, config)
        record = self._tracker.register_trial(trial_id, number, values, self._held)
        return {
            "number": number,
            "config": config,
            "metric": self._plan.metric,
            "evaluations": record.evaluations,
        }

    def _choose_settings(self, number: int) -> dict[str, Any]:
        if number in self._earlier_records:
            return self._earlier_records[number].settings
        settings = self._plan.settings_for_trial(number)
        if settings is None:
            assert self._suggester is not None, "only a search with a suggester leaves settings open"
            settings = self._suggester.ask(number)
        return settings


def check_trial_config(plan: SweepPlan, store: Store, scale: dict[str, Any], record: TrialRecord) -> str | None:
    """Compare a trial's own config.json with what the trial was given.

    Returns:
        The first difference in a sentence; None if there is none, or no such file.
    """
    path = f"trials/{trial_name(record.number)}/config.json"
    if store.stat(path) is None:
        return None
    actual = dict(flatten_mapping(json.loads(store.get(path))))
    expected = plan.config_for_trial(record.number, record.settings, scale).to_mapping()
    for name, value in flatten_mapping(expected):
        if name not in _PLACES and actual.get(name) != value:
            return f"{path} has {name} {actual.get(name)!r}, not {value!r}"
    return None


def run_trials(
    plan: SweepPlan,
    tracker: TrialTracker,
    store: Store,
    *,
    resources: TrialResources,
    trials_at_once: int,
    suggester: Suggester | None,
    on_trial_end: Callable[[TrialRecord], None],
) -> None:
    """Run the trials that the tracker lists as waiting; returns when all have ended or the tracker is halted.

    Args:
        plan: The plan of the sweep.
        tracker: The tracker of the sweep.
        store: The sweep's folder.
        resources: What each trial takes.
        trials_at_once: How many trials run at the same time.
        suggester: Where settings come from, if not from the plan.
        on_trial_end: Called in this thread with each trial that has come to its end.
    """
    queue = TrialQueue(plan, tracker, resources, suggester)
    if not len(queue):
        return
    ended = [record for record in tracker.copy_records() if record.has_ended]
    check_trial = functools.partial(check_trial_config, plan, store, scale_settings(resources))
    notes = Notes()
    tune_config = ray.tune.TuneConfig(
        search_alg=QueueSearcher(queue.next_request, SCORE, plan.score_metric.mode),
        scheduler=ResumableASHA(plan, ended) if plan.scheduler == "asha" else FIFOScheduler(),
        num_samples=len(queue),
        max_concurrent_trials=trials_at_once,
        trial_dirname_creator=lambda trial: str(trial.trial_id),
    )
    callback = TrialCallback(tracker, check_trial, on_trial_end)
    run_config = _make_run_config(plan, SweepStopper(tracker, notes), callback)
    trainable = ray.tune.with_parameters(run_trial, notes=notes)
    placed_trainable = ray.tune.with_resources(trainable, placement_group_for(resources))
    ray.tune.Tuner(placed_trainable, tune_config=tune_config, run_config=run_config).fit()
    notes.discard()


def _make_run_config(plan: SweepPlan, stopper: SweepStopper, callback: TrialCallback) -> ray.tune.RunConfig:
    path, filesystem = open_ray_storage(from_mapping(plan.base))
    return ray.tune.RunConfig(
        name="tune",
        storage_path=path,
        storage_filesystem=filesystem,
        stop=stopper,
        callbacks=[callback],
        failure_config=ray.tune.FailureConfig(max_failures=_RESTARTS),
        verbose=0,
    )
