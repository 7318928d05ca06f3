"""What one trial does: the same `fit` as the training command, in its own run folder, under Ray Tune.

With one worker, the trial's process trains itself. With more, the process is a driver that needs no CPU: it starts
Ray Train workers and waits; Ray's callback carries their reports here.
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
from ali_dist.launchers.ray_train import run_on_ray, watch_for_stop
from ali_dist.training.context import Context
from ali_dist.training.loop import fit
from tuning.score import ScoreMetric, find_score_metric

SCORE = "score"
ENDED = "ended"
REASON = "reason"
SAVED = "saved"
"""What a trial says that has saved a checkpoint because the sweep ends: a resume goes on from there."""


def with_score(metrics: Mapping[str, float], metric: ScoreMetric) -> dict[str, float]:
    """`metrics` (with `images`) and, where it can be told, their score."""
    score = metric.score(metrics)
    return {**metrics} if score is None else {**metrics, SCORE: score}


class TrialContext:
    """Surroundings of a trial that trains in this process; see `ali_dist.training.context.Context`."""

    def __init__(self, config: Config, metric: ScoreMetric, asked: threading.Event) -> None:
        self.world, self.device = World(), choose_device(config.scale.device, 0)
        self._metric, self._asked = metric, asked

    def stop_requested(self) -> bool:
        """Whether the sweep ends; where the scheduler stops a trial, Tune ends its process, with nothing to save."""
        return self._asked.is_set()

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
        self._name = metric

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: ray.train.Checkpoint | None
    ) -> None:
        """Called once for each report of all workers; only rank 0 evaluates."""
        super().after_report(run_context, [with_score(metrics[0], find_score_metric(self._name))], checkpoint)


def run_trial(request: dict[str, Any], board: Any = None) -> None:
    """Ray Tune's trainable.

    Args:
        request: `config` (a whole config, nested), `metric` (its name), and `evaluations` that earlier processes of
            this trial have reported: they are reported again, so that the scheduler knows them.
        board: Where the driver says that the sweep ends; see `ray_backend.watch`.
    """
    config, metric = from_mapping(request["config"]), find_score_metric(request["metric"])
    asked = watch_for_stop(board)
    for evaluation in request["evaluations"]:
        ray.tune.report(dict(evaluation))
    state, reason = "finished", ""
    try:
        _train(config, metric, asked)
    except Stopped:
        state = SAVED
    except (TrainingError, FloatingPointError) as error:  # the latter: evaluating a diverged model
        state, reason = "pruned", str(error)
    except Exception as error:  # one trial's failure is a line of the result, not the end of the sweep
        state = "failed"
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    ray.tune.report({ENDED: state, REASON: " ".join(reason.split())[:600]})


def _train(config: Config, metric: ScoreMetric, asked: threading.Event) -> None:
    if config.scale.workers != "0":
        run_on_ray(config, callbacks=[ScoredReport(metric.name)], stop_event=asked)
        return
    torch.set_num_threads(config.scale.threads or max(1, int(config.scale.cpus_per_worker)))
    context: Context = TrialContext(config, metric, asked)
    fit(config, context)
