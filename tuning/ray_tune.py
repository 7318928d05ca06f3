"""The sweep on Ray Tune: places trials, gives them settings, and lets ASHA and the book stop them."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ray
import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from ali_dist.config.loading import flatten_mapping, from_mapping
from ali_dist.launchers.ray_storage import open_ray_storage
from ali_dist.launchers.ray_train import StopCoordinator
from ali_dist.storage.base import Store
from tuning.resources import TrialResources
from tuning.searchers import QueueSearcher, Suggester
from tuning.spaces import searched_values
from tuning.sweep_plan import REDUCTION, SweepPlan
from tuning.trial import SCORE, run_trial
from tuning.trial_record import ENDED, TrialRecord, trial_name
from tuning.trial_tracker import TrialTracker

_RESTARTS = 3  # of a trial whose process or machine is lost; it goes on from its newest checkpoint
_SAVING_SECONDS = 60.0  # for trials to save when the sweep ends; an evaluation of many images may be under way
_HEAD = "node:__internal_head__"  # drivers of trials share the head's marker, not its CPUs, which workers need


@contextlib.contextmanager
def tune_session() -> Iterator[list[dict[str, float]]]:
    """Ray, connected, as for a run (`ray_cluster.connected`); the resources of its machines."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also the pace of workers' reports
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # trials write their own metrics
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a diverged trial has no score
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # with verbose=0, Tune then writes nothing: the table is ours
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    finally:
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # or Tune's thread, if it still runs, would start another Ray
        ray.shutdown()


def scale_settings(need: TrialResources) -> dict[str, Any]:
    """How a trial's config says what it needs."""
    workers = "0" if need.workers == 1 else str(need.workers)
    settings = {"scale.workers": workers, "scale.device": "cuda" if need.gpus else "cpu"}
    return settings | ({"scale.gpus_per_worker": need.gpus} if need.gpus else {})


def placement_group_for(need: TrialResources) -> ray.tune.PlacementGroupFactory:
    """What Tune reserves for a trial: all it needs, or the driver's marker where Ray Train will reserve the workers."""
    return ray.tune.PlacementGroupFactory([need.per_worker() if need.workers == 1 else {_HEAD: 0.001}])


class TrialCallback(ray.tune.Callback):
    """Tells the book what happens.

    Args:
        book: Of the sweep.
        check: Says what is wrong with a trial's own files, if anything is.
        ended: Called with the record of each trial that has come to its end.
    """

    def __init__(
        self, book: TrialTracker, check: Callable[[TrialRecord], str | None], ended: Callable[[TrialRecord], None]
    ) -> None:
        self._book, self._check, self._ended = book, check, ended

    def __getstate__(self) -> dict[str, Any]:
        """Nothing; see `Book.__getstate__`."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._book.start(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, f"its process was lost more than {_RESTARTS} times")

    def _end(self, trial: Any, error: str | None) -> None:
        if (wrong := self._check(self._book.record(trial.trial_id))) is not None:
            self._book.fail(trial.trial_id, wrong)
        if self._book.end(trial.trial_id, error):
            self._ended(self._book.record(trial.trial_id))


class SweepStopper(ray.tune.Stopper):
    """Stops collapsed trials; at the end of the time or on request asks all to save, and ends them when they have.

    Args:
        book: Of the sweep.
        board: Where trials look whether they are asked.
    """

    def __init__(self, book: TrialTracker, board: Any) -> None:
        self._book, self._board = book, board
        self._asked: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing; see `Book.__getstate__`."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._book.result(trial_id, result)

    def stop_all(self) -> bool:
        """Called several times a second."""
        if not self._book.halted():
            return False
        if self._asked is None:
            self._asked = time.monotonic()
            self._board.request_stop.remote()
        return not self._book.busy() or time.monotonic() - self._asked > _SAVING_SECONDS


class ResumableASHA(ASHAScheduler):
    """ASHA on images seen; the preset's own trial always goes on, because all others are compared with it.

    Args:
        plan: Of the sweep.
        records: Trials that ended in an earlier process of it: they stand on their rungs.
    """

    def __init__(self, plan: SweepPlan, records: list[TrialRecord]) -> None:
        budget = plan.budget()
        grace = min(max(plan.evaluate_every(), -(-budget // REDUCTION**2)), budget)
        super().__init__(
            time_attr="images",
            metric=SCORE,
            mode=plan.judge().mode,
            grace_period=grace,
            max_t=max(grace, budget - 1),  # no rung at the end, where it would stop trials before their summary
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
        self._exempt = None if plan.search == "grid" else 0
        nobody: Any = None  # no controller runs yet
        for record in records:
            stand_in: Any = SimpleNamespace(trial_id=f"ended-{record.number}")  # all of a trial that ASHA looks at
            self.on_trial_add(nobody, stand_in)
            for evaluation in record.evaluations:
                super().on_trial_result(nobody, stand_in, evaluation)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["number"] == self._exempt else action


class TrialQueue:
    """Gives Tune the requests of trials, in order.

    Args:
        plan: Of the sweep.
        book: Of the sweep.
        need: Of every trial.
        adviser: Asked where the plan does not fix settings.
    """

    def __init__(self, plan: SweepPlan, book: TrialTracker, need: TrialResources, adviser: Suggester | None) -> None:
        self._plan, self._book, self._adviser = plan, book, adviser
        self._scale, self._held = scale_settings(need), need.total()
        self._left = book.waiting()
        self._known = {record.number: record for record in book.records()}

    def __len__(self) -> int:
        return len(self._left)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's request; None at the end."""
        if not self._left or self._book.halted():
            return None
        number = self._left.pop(0)
        asked = self._known[number].settings if number in self._known else self._plan.settings(number)
        if asked is None:
            assert self._adviser is not None, "only a search that advises leaves settings open"
            asked = self._adviser.ask(number)
        config = self._plan.config(number, asked, self._scale)
        values = searched_values(self._plan.dimensions(), config.to_mapping())
        record = self._book.enrol(trial_id, number, values, self._held)
        return {
            "number": number,
            "config": config.to_mapping(),
            "metric": self._plan.metric,
            "evaluations": record.evaluations,
        }


def check_trial_config(plan: SweepPlan, store: Store, scale: dict[str, Any], record: TrialRecord) -> str | None:
    """What a trial's own config.json has that is not what it was given; None if it is all the same, or not there."""
    path = f"trials/{trial_name(record.number)}/config.json"
    if store.stat(path) is None:
        return None
    found = dict(flatten_mapping(json.loads(store.get(path))))
    for name, value in flatten_mapping(plan.config(record.number, record.settings, scale).to_mapping()):
        if found.get(name) != value:
            return f"{path} has {name} {found.get(name)!r}, not {value!r}"
    return None


def run_trials(
    plan: SweepPlan,
    book: TrialTracker,
    store: Store,
    *,
    need: TrialResources,
    at_once: int,
    adviser: Suggester | None,
    ended: Callable[[TrialRecord], None],
) -> None:
    """Run what the book has waiting; blocks until all has ended or the book halts.

    Args:
        plan: Of the sweep.
        book: Of the sweep.
        store: Its folder.
        need: Of one trial.
        at_once: Trials that run at the same time.
        adviser: Where settings come from, if not from the plan.
        ended: Called in this thread with each trial that has come to its end.
    """
    queue = TrialQueue(plan, book, need, adviser)
    if not len(queue):
        return
    done = [record for record in book.records() if record.state in ENDED]
    check = functools.partial(check_trial_config, plan, store, scale_settings(need))
    board = StopCoordinator.remote()  # type: ignore[attr-defined]
    tune_config = ray.tune.TuneConfig(
        search_alg=QueueSearcher(queue.suggest, SCORE, plan.judge().mode),
        scheduler=ResumableASHA(plan, done) if plan.scheduler == "asha" else FIFOScheduler(),
        num_samples=len(queue),
        max_concurrent_trials=at_once,
        trial_dirname_creator=lambda trial: str(trial.trial_id),
    )
    run_config = _run_config(plan, SweepStopper(book, board), TrialCallback(book, check, ended))
    trainable = ray.tune.with_resources(ray.tune.with_parameters(run_trial, board=board), placement_group_for(need))
    ray.tune.Tuner(trainable, tune_config=tune_config, run_config=run_config).fit()


def _run_config(plan: SweepPlan, judge: SweepStopper, watch: TrialCallback) -> ray.tune.RunConfig:
    """Where Tune keeps its own few files, and who looks on."""
    path, filesystem = open_ray_storage(from_mapping(plan.base))
    return ray.tune.RunConfig(
        name="tune",
        storage_path=path,
        storage_filesystem=filesystem,
        stop=judge,
        callbacks=[watch],
        failure_config=ray.tune.FailureConfig(max_failures=_RESTARTS),
        verbose=0,
    )
