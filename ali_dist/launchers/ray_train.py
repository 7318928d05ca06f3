"""Runs on Ray Train: N workers run the same loop under DistributedDataParallel.

Checkpoints, metrics and the order of the data are ours and the same as in a local run. Ray places the workers,
restarts all of them when one is lost (they continue from the newest checkpoint), and carries evaluation metrics to Ray
Tune.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ali_dist.config import Config
from ali_dist.errors import InputError, Stopped, TrainingError
from ali_dist.launchers.builtin_data import prepare_builtin_data
from ali_dist.launchers.environment import temporary_environment
from ali_dist.launchers.ray_cluster import (
    alive_nodes,
    choose_workers,
    has_gpus,
    ray_session,
    wait_for_resources,
)
from ali_dist.launchers.ray_notes import Notes, NotesWatch, refused_outcome
from ali_dist.launchers.ray_storage import open_ray_storage, storage_access, with_absolute_paths
from ali_dist.launchers.resources import check_lanes, worker_resources
from ali_dist.launchers.signals import run_beside_main_thread
from ali_dist.loading_note import collector_paused
from ali_dist.report.terminal import TrainingProgressDisplay
from ali_dist.runs.datasets import open_run_data
from ali_dist.runs.trackers import Record
from ali_dist.storage import is_local

if TYPE_CHECKING:
    from ali_dist.launchers.ray_trainer import LeanTrainer

_POLL_SECONDS = 0.1
_REFUSAL_SECONDS = 15.0  # for the other workers to find the same, and for rank 0 to write what it has to
RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also the pace at which reports reach the driver
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a notice may come seconds before a machine is gone
}
_MAX_FAILURES = 3
# The reservation of a lost node lingers. Train waits for so long before it starts with fewer workers.
_ELASTIC_ENVIRONMENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}


def _write_probe_file(config: Config) -> str:
    """Write a file into a local run folder, for workers to look for; its path, or "" where runs are in S3."""
    if not is_local(config.run.dir):
        return ""
    probe_file = Path(config.run.dir) / config.run.name / "ray" / f"seen-from-{os.uname().nodename}"
    probe_file.parent.mkdir(parents=True, exist_ok=True)
    probe_file.touch()
    return str(probe_file)


def run_on_ray(config: Config, callbacks: Sequence[Any] = (), stop_event: threading.Event | None = None) -> Record:
    """Train on Ray workers, on the cluster that this process belongs to or on one that is started here.

    Args:
        config: The config of the run.
        callbacks: Ray Train's; they learn of what the workers report, for example to pass it on to Ray Tune.
        stop_event: Asks the workers to save and stop when it is set, as SIGTERM does.

    Returns:
        The summary of the run, from rank 0.

    Raises:
        InputError: The config cannot work, or the workers cannot see the data or the run folder.
        TrainingError: Training diverged, or workers were lost too often.
        StorageError: The storage failed.
        Stopped: SIGTERM, Ctrl-C or `stop_event` asked for it, and a checkpoint has been saved.
    """
    config = with_absolute_paths(config)
    prepare_builtin_data(config)
    open_run_data(config)  # a missing bucket is reported at once, and not after the workers have started
    _, most_workers = config.scale.worker_range() or (1, 1)
    check_lanes(config, most_workers)
    is_elastic = ":" in config.scale.workers
    environment = RAY_TRAIN_ENVIRONMENT | (_ELASTIC_ENVIRONMENT if is_elastic else {})
    with temporary_environment(defaults=environment), TrainingProgressDisplay(1) as display:
        display.begin_phase("starting Ray")
        with ray_session(config, _write_line) as is_own_cluster:
            notes = Notes()
            trainer = _make_trainer(config, notes, callbacks, is_own_cluster=is_own_cluster)
            display.begin_phase("starting the workers")
            outcome = _fit_until_stopped(trainer, notes, stop_event or threading.Event(), display.close)
            notes.discard()
        return _read_summary(outcome)


def _make_trainer(config: Config, notes: Notes, callbacks: Sequence[Any], *, is_own_cluster: bool) -> LeanTrainer:
    """The trainer, once there is room for its workers."""
    # Not before: it takes a second or two, and `start_own_cluster` has it loaded while other processes start.
    import ray.train

    from ali_dist.launchers.ray_group import GroupConfig
    from ali_dist.launchers.ray_trainer import LeanTrainer

    scale = config.scale
    use_gpu = scale.device == "cuda" or (scale.device == "auto" and has_gpus(may_grow=not is_own_cluster))
    if scale.backend == "nccl" and not use_gpu:
        raise InputError("scale.backend is 'nccl', which needs GPUs, but these workers are on CPUs: use 'auto'.")
    per_worker = worker_resources(scale.cpus_per_worker, scale.gpus_per_worker if use_gpu else 0.0)
    fewest, most = choose_workers(config, alive_nodes(), per_worker, _write_line)
    # GPUs talk fastest within a machine; workers on CPUs would share its cores.
    strategy = "PACK" if use_gpu else "SPREAD"
    wait_for_resources(fewest, per_worker, strategy, _write_line)
    path, filesystem = open_ray_storage(config)
    max_failures = _MAX_FAILURES if scale.max_failures is None else scale.max_failures
    return LeanTrainer(
        is_own_cluster=is_own_cluster,
        train_loop_per_worker=_train_worker,
        train_loop_config={
            "config": config.to_mapping(),
            "notes": notes,
            "probe_file": _write_probe_file(config),
            "access": storage_access(),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),  # type: ignore[arg-type]
            use_gpu=use_gpu,
            resources_per_worker=per_worker,
            placement_strategy=strategy,
        ),
        run_config=ray.train.RunConfig(
            name=f"{config.run.name}-{int(time.time())}",  # a run is continued from our checkpoints, not from Ray's
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            callbacks=list(callbacks),
        ),
        backend_config=GroupConfig(scale.backend),
    )


def _train_worker(settings: dict[str, Any]) -> Record:
    """What each worker runs; its one required argument is how Ray hands over `settings`."""
    with collector_paused():
        from ali_dist.launchers.ray_worker import train_worker  # loads PyTorch, which this process does without

    return train_worker(settings)


def _write_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _fit_until_stopped(
    trainer: LeanTrainer, notes: Notes, stop_event: threading.Event, on_begin: Callable[[], None]
) -> Record:
    """Train; pass on to the workers that a signal, or somebody else, has set `stop_event`. The workers' outcome.

    Args:
        trainer: What trains.
        notes: Those of the run.
        stop_event: Asks the workers to save and stop.
        on_begin: Called once when a worker begins to train.
    """
    watch = NotesWatch(notes)
    refusal_end: float | None = None  # of the time that the other workers have after a refusal
    is_waiting = True

    def pass_on() -> None:
        nonlocal refusal_end, is_waiting
        if watch.refusal is not None:
            refusal_end = refusal_end or time.monotonic() + _REFUSAL_SECONDS
            if time.monotonic() > refusal_end:
                _read_summary(refused_outcome(watch.refusal))  # raises what it stands for
        if is_waiting and watch.has_begun:
            is_waiting = False
            on_begin()
        if stop_event.is_set():
            with contextlib.suppress(ray.exceptions.RayError):  # asked again, if the cluster's head does not answer
                notes.request_stop()
                stop_event.clear()
                if is_waiting:
                    _write_line("Stopping as soon as the workers have started; Ctrl-C ends at once.")

    watch.start()
    try:
        return run_beside_main_thread(
            lambda: _fit(trainer, notes),
            request_stop=stop_event.set,
            on_poll=pass_on,
            poll_seconds=_POLL_SECONDS,
            name="ray-train",
        )
    except BaseException:
        trainer.abandon()
        raise
    finally:
        watch.stop()


def _fit(trainer: LeanTrainer, notes: Notes) -> Record:
    """Train; what rank 0 returned or, if training failed because a worker refused to go on, its refusal."""
    try:
        outcome: Record = trainer.fit().return_value
        return outcome
    except Exception as error:
        import ray.train

        refusal = None
        with contextlib.suppress(ray.exceptions.RayError):
            refusal = notes.read_refusal()
        if refusal is not None:
            return refused_outcome(refusal)
        if isinstance(error, ray.train.TrainingFailedError):
            raise _lost_workers_error(error) from error
        raise


def _read_summary(outcome: Record) -> Record:
    """The summary of a run that has finished; otherwise raises what its outcome stands for."""
    errors = {"input": InputError, "training": TrainingError, "stopped": Stopped}
    if outcome["outcome"] in errors:
        raise errors[outcome["outcome"]](outcome["message"])
    summary: Record = outcome["summary"]
    return summary


def _lost_workers_error(error: Exception) -> TrainingError:
    """A failure of workers as one sentence."""
    failures = getattr(error, "worker_failures", {}) or {}
    reasons = "; ".join(f"rank {rank}: {' '.join(str(e).split())[:300]}" for rank, e in sorted(failures.items()))
    if not reasons:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reasons = lines[-1] if lines else "no reason given"
    return TrainingError(
        f"Workers failed more often than scale.max_failures allows ({reasons}); checkpoints are kept: "
        "run the same command to go on from the newest."
    )
