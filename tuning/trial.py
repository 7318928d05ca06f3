"""What one trial does: the same `fit` as the training command, in its own run folder, under Ray Tune.

With one worker, the trial's process trains itself. With more, the process is a driver that needs no CPU: it starts
Ray Train workers and waits, and Ray's callback carries their reports here.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import ray.train
import ray.tune
import torch
from ray.tune.integration.ray_train import TuneReportCallback

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping
from ali_dist.distributed import World, choose_device
from ali_dist.errors import InputError, Stopped, TrainingError
from ali_dist.launchers.ray_notes import Notes, watch_for_stop
from ali_dist.launchers.ray_train import run_on_ray
from ali_dist.training.context import UnhurriedContext
from ali_dist.training.loop import fit
from tuning.score import ScoreMetric, find_score_metric
from tuning.trial_tracker import END_REASON, END_STATE, SAVED, SCORE

_REASON_LENGTH = 600


def with_score(metrics: Mapping[str, float], metric: ScoreMetric) -> dict[str, float]:
    """The metrics of an evaluation (with `images`) and their score, if it has one."""
    score = metric.score(metrics)
    return {**metrics} if score is None else {**metrics, SCORE: score}


class TrialContext(UnhurriedContext):
    """The surroundings of a trial that trains in this process; see `ali_dist.training.context.Context`.

    Args:
        config: The config of the trial.
        metric: What trials are compared by.
        stop_event: Is set when the sweep ends.
    """

    def __init__(self, config: Config, metric: ScoreMetric, stop_event: threading.Event) -> None:
        self.world = World()
        self.device = choose_device(config.scale.device, 0)
        self._metric = metric
        self._stop_event = stop_event

    def stop_requested(self) -> bool:
        """Whether the sweep ends; where the scheduler stops a trial, Tune ends its process, with nothing to save."""
        return self._stop_event.is_set()

    def report(self, metrics: dict[str, float]) -> None:
        """Hand an evaluation to Tune. It does not return if Tune stops the trial."""
        ray.tune.report(with_score(metrics, self._metric))


class ScoredReport(TuneReportCallback):
    """Hands evaluations of Ray Train workers to Tune. Lives in Ray Train's controller.

    Args:
        metric: Name of what trials are compared by.
    """

    def __init__(self, metric: str) -> None:
        super().__init__()
        self._metric_name = metric

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: ray.train.Checkpoint | None
    ) -> None:
        """Called once for each report of all workers; only rank 0 evaluates."""
        scored = with_score(metrics[0], find_score_metric(self._metric_name))
        super().after_report(run_context, [scored], checkpoint)


def run_trial(request: dict[str, Any], notes: Notes | None = None) -> None:
    """Ray Tune's trainable. What happens to the trial is reported, never raised.

    Args:
        request: `config` (a whole config, nested), `metric` (its name), and `evaluations` that earlier processes of
            this trial have reported: they are reported again, so that the scheduler knows them.
        notes: Where it is noted when the sweep ends; None: nobody will ask.
    """
    config = from_mapping(request["config"])
    metric = find_score_metric(request["metric"])
    stop_event = watch_for_stop(notes)
    for evaluation in request["evaluations"]:
        ray.tune.report(dict(evaluation))
    state = "finished"
    reason = ""
    try:
        _train(config, metric, stop_event)
    except Stopped:
        state = SAVED
    except (TrainingError, FloatingPointError) as error:  # the latter: evaluating a diverged model
        state = "pruned"
        reason = str(error)
    except Exception as error:  # one trial's failure is a line of the result, not the end of the sweep
        state = "failed"
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    ray.tune.report({END_STATE: state, END_REASON: " ".join(reason.split())[:_REASON_LENGTH]})


def _train(config: Config, metric: ScoreMetric, stop_event: threading.Event) -> None:
    if config.scale.workers != "0":
        run_on_ray(config, callbacks=[ScoredReport(metric.name)], stop_event=stop_event)
        return
    torch.set_num_threads(config.scale.threads or max(1, int(config.scale.cpus_per_worker)))
    fit(config, TrialContext(config, metric, stop_event))
