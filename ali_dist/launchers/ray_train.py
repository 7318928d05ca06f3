"""Runs on Ray Train: N workers run the same loop under DistributedDataParallel.

Checkpoints, metrics and the order of the data are ours and the same as in a local run. Ray places the workers,
restarts all of them when one is lost (they continue from the newest checkpoint), and carries evaluation metrics to Ray
Tune.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch.distributed.distributed_c10d import _get_default_store

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping
from ali_dist.distributed import World, waiting_for_ranks
from ali_dist.errors import InputError, OutageError, Stopped, TrainingError
from ali_dist.launchers.environment import temporary_environment
from ali_dist.launchers.local import prepare_builtin_data
from ali_dist.launchers.rank_watch import LIBRARY_TIMEOUT, RankWatch
from ali_dist.launchers.ray_cluster import (
    alive_nodes,
    choose_workers,
    has_gpus,
    ray_session,
    threads_per_worker,
    use_node_interface,
    wait_for_resources,
)
from ali_dist.launchers.ray_lines import is_lost_peer, silence_training_errors
from ali_dist.launchers.ray_storage import open_ray_storage, storage_access, with_absolute_paths
from ali_dist.launchers.resources import check_lanes, worker_resources
from ali_dist.launchers.signals import run_beside_main_thread
from ali_dist.report.terminal import TrainingProgressDisplay
from ali_dist.runs.datasets import open_run_data
from ali_dist.runs.trackers import Record
from ali_dist.storage import is_local
from ali_dist.training.context import UnhurriedContext
from ali_dist.training.loop import fit

_POLL_SECONDS = 0.1
_REFUSAL_SECONDS = 15.0  # for the other workers to find the same, and for rank 0 to write what it has to
RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also the pace at which reports reach the driver
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a notice may come seconds before a machine is gone
}
# Nobody gives notice to the machine of a cluster that ends with its run: a process less at each start of the workers.
_OWN_CLUSTER_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
_UNUSED = frozenset({"DatasetsCallback"})  # a run has no datasets of Ray Data
_UNUSED_ON_OWN_CLUSTER = frozenset({"PlacementGroupCleanerCallback"})  # the cluster's end frees what a run has reserved
_MAX_FAILURES = 3
# The reservation of a lost node lingers. Train waits for so long before it starts with fewer workers.
_ELASTIC_ENVIRONMENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}


@ray.remote(num_cpus=0)
class StopCoordinator:
    """What the driver and the workers tell each other during a run.

    That is the beginning of training, a request to stop, and a refusal to go on.
    """

    def __init__(self) -> None:
        self._begin_event = asyncio.Event()
        self._stop_event = asyncio.Event()
        self._refusal_event = asyncio.Event()
        self._refusal: tuple[str, str] | None = None

    async def begin(self) -> None:
        """Called by a worker that begins to train, and that from now on shows itself how far it is."""
        self._begin_event.set()

    async def wait_for_begin(self) -> None:
        """Return once a worker has begun, and not before."""
        await self._begin_event.wait()

    async def request_stop(self) -> None:
        """Called by the driver when it was asked to stop."""
        self._stop_event.set()

    async def wait_for_stop(self) -> None:
        """Return once a stop is requested, and not before: waiting takes no CPU time, and the answer comes at once."""
        await self._stop_event.wait()

    async def refuse(self, kind: str, message: str) -> None:
        """Called by a worker that found that the run cannot go on, so that restarting would not help.

        Args:
            kind: `input` or `training`: whose fault it is.
            message: One sentence.
        """
        self._refusal = self._refusal or (kind, message)
        self._refusal_event.set()

    async def wait_for_refusal(self) -> tuple[str, str] | None:
        """Kind and message of the first refusal, once there is one."""
        await self._refusal_event.wait()
        return self._refusal

    async def read_refusal(self) -> tuple[str, str] | None:
        """Kind and message of the first refusal; None if no worker has refused."""
        return self._refusal


def watch_for_stop(coordinator: Any) -> threading.Event:
    """An event that is set once the driver asks to save and stop.

    Args:
        coordinator: Handle of the driver's `StopCoordinator`; None if nobody will ask.
    """
    stop_event = threading.Event()

    def wait_for_driver() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the driver is gone, and this process soon will be
            ray.get(coordinator.wait_for_stop.remote())
            stop_event.set()

    if coordinator is not None:
        threading.Thread(target=wait_for_driver, name="stop-watch", daemon=True).start()
    return stop_event


class RayContext(UnhurriedContext):
    """The surroundings of a Ray Train worker; see `ali_dist.training.context.Context`.

    Args:
        coordinator: Where rank 0 learns that the driver was asked to stop.
    """

    def __init__(self, coordinator: Any) -> None:
        train_context = ray.train.get_context()
        self.world = World(
            train_context.get_world_rank(), train_context.get_local_rank(), train_context.get_world_size()
        )
        self.device: torch.device = ray.train.torch.get_device()
        self._stop_event = watch_for_stop(coordinator if self.world.is_main else None)

    def request_stop(self) -> None:
        """Ask this rank to save and stop."""
        self._stop_event.set()

    def stop_requested(self) -> bool:
        """Whether the driver asked to save and stop; rank 0 knows it first. See `Context`."""
        return self._stop_event.is_set()

    def count_leaving_machines(self) -> int:
        """How many machines Ray drains, such as spot instances that were given notice; see `Context`.

        Ray tells each worker by itself. Its public function for this, `get_preemption_info`, waits for all workers,
        which would cost more than many updates; so this reads what that would return (Ray 2.60; others may have none).
        """
        with contextlib.suppress(ImportError, AttributeError):
            from ray.train.v2._internal.execution.context import get_train_context

            info = get_train_context().preemption_context.preemption_info
            return 0 if info is None else len(info.preempted_node_ids)
        return 0

    def report(self, metrics: dict[str, float]) -> None:
        """Hand evaluation metrics to Ray, which carries them to Tune; checkpoints stay ours. Collective."""
        with waiting_for_ranks("a report"):
            ray.train.report(metrics)


def _train_worker(settings: dict[str, Any]) -> Record:
    """What each worker runs; its one required argument is how Ray hands over `settings`.

    Returns:
        `outcome`, which is finished, stopped, input or training; `summary` if finished, else `message`.
    """
    coordinator = settings["coordinator"]
    refusal = ray.get(coordinator.read_refusal.remote())
    if refusal is not None:  # this is the restart after a refusal
        return _refused_outcome(refusal)
    config = from_mapping(settings["config"])
    _silence_libraries()
    os.environ.update(settings["access"])
    torch.set_num_threads(config.scale.threads or threads_per_worker())
    try:
        _check_run_dir_visible(config, settings["probe_file"])
        with _watch_ranks(config, RayContext(coordinator)) as context:
            coordinator.begin.remote()
            summary = fit(config, context)
    except Stopped as stopped:
        return {"outcome": "stopped", "message": str(stopped)}
    except (InputError, TrainingError, OutageError) as error:
        # Where other ranks wait in a collective, the driver ends them: to raise here would do so, but with a traceback.
        refusal = ("input" if isinstance(error, InputError) else "training", str(error))
        ray.get(coordinator.refuse.remote(*refusal))
        return _refused_outcome(refusal)
    except Exception as error:
        if is_lost_peer(error):
            silence_training_errors()
        raise
    return {"outcome": "finished", "summary": summary}


@contextlib.contextmanager
def _watch_ranks(config: Config, context: RayContext) -> Iterator[RayContext]:
    """Within the block, this worker does not wait for the others in vain: it ends, and Ray restarts all of them."""
    if context.world.size == 1:
        yield context
        return
    watch = RankWatch(
        world=context.world,
        store=_get_default_store(),
        timeout=config.scale.collective_timeout,
        stop_requested=context.stop_requested,
        request_stop=context.request_stop,
    )
    watch.start()
    try:
        yield context
    finally:
        watch.stop()


def _silence_libraries() -> None:
    """Keep from the user's terminal what Ray and botocore write there while all is well.

    Ray writes every report as the text of an object, although the loop shows the metrics. Its logger's name is the path
    of its file, so it is taken from there (Ray 2.60); other versions may have none. In a worker, Ray also lets through
    what any library says for information, such as where botocore has found its credentials.
    """
    logging.getLogger("botocore").setLevel(logging.WARNING)
    with contextlib.suppress(ImportError, AttributeError):
        from ray.train.v2._internal.execution import context

        context.logger.setLevel(logging.WARNING)


def _refused_outcome(refusal: tuple[str, str]) -> Record:
    kind, message = refusal
    return {"outcome": kind, "message": message}


def _write_probe_file(config: Config) -> str:
    """Write a file into a local run folder for `_check_run_dir_visible`; its path, or "" where runs are in S3."""
    if not is_local(config.run.dir):
        return ""
    probe_file = Path(config.run.dir) / config.run.name / "ray" / f"seen-from-{os.uname().nodename}"
    probe_file.parent.mkdir(parents=True, exist_ok=True)
    probe_file.touch()
    return str(probe_file)


def _check_run_dir_visible(config: Config, probe_file: str) -> None:
    """Refuse to train on a machine that does not see the run folder, before training runs into it.

    Raises:
        InputError: The driver's probe file is not here.
    """
    if probe_file and not Path(probe_file).exists():
        raise InputError(
            f"The machine {ray.util.get_node_ip_address()} does not see {config.run.dir}, the folder of runs: on "
            "several machines --run.dir must be s3://bucket/prefix or a folder that all of them mount."
        )


class _InterfaceBackend(_TorchBackend):
    """Ray's process group, over the network that Ray itself uses."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_node_interface)
        super().on_start(worker_group, backend_config)


class _LeanTrainer(TorchTrainer):
    """Ray's trainer without callbacks that start an actor of which the run has no use, at the cost of seconds.

    The method is Ray's own (2.60); where others have none, nothing changes.

    Args:
        unused: Names of those callbacks' classes.
        options: TorchTrainer's.
    """

    def __init__(self, unused: frozenset[str], **options: Any) -> None:
        self._unused = unused
        super().__init__(**options)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ not in self._unused]


class _InterfaceTorchConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_InterfaceBackend]:
        return _InterfaceBackend


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
        with (
            ray_session(config, _write_line) as is_own_cluster,
            temporary_environment(defaults=_OWN_CLUSTER_ENVIRONMENT if is_own_cluster else {}),
        ):
            # It lies beside this driver, whose end is the run's end; on another machine it would be lost with that.
            this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            coordinator = StopCoordinator.options(scheduling_strategy=this_node).remote()  # type: ignore[attr-defined]
            trainer = _make_trainer(config, coordinator, callbacks, is_own_cluster=is_own_cluster)
            display.begin_phase("starting the workers")
            outcome = _fit_until_stopped(trainer, coordinator, stop_event or threading.Event(), display.close)
        return _read_summary(outcome)


def _make_trainer(config: Config, coordinator: Any, callbacks: Sequence[Any], *, is_own_cluster: bool) -> TorchTrainer:
    """The trainer, once there is room for its workers."""
    scale = config.scale
    use_gpu = scale.device == "cuda" or (scale.device == "auto" and has_gpus())
    per_worker = worker_resources(scale.cpus_per_worker, scale.gpus_per_worker if use_gpu else 0.0)
    fewest, most = choose_workers(config, alive_nodes(), per_worker, _write_line)
    # GPUs talk fastest within a machine; workers on CPUs would share its cores.
    strategy = "PACK" if use_gpu else "SPREAD"
    wait_for_resources(fewest, per_worker, strategy, _write_line)
    path, filesystem = open_ray_storage(config)
    max_failures = _MAX_FAILURES if scale.max_failures is None else scale.max_failures
    return _LeanTrainer(
        _UNUSED | (_UNUSED_ON_OWN_CLUSTER if is_own_cluster else frozenset()),
        train_loop_per_worker=_train_worker,
        train_loop_config={
            "config": config.to_mapping(),
            "coordinator": coordinator,
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
        torch_config=_InterfaceTorchConfig(
            backend=None if scale.backend == "auto" else scale.backend,
            timeout_s=int(LIBRARY_TIMEOUT.total_seconds()),
        ),
    )


def _write_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _fit_until_stopped(
    trainer: TorchTrainer, coordinator: Any, stop_event: threading.Event, on_begin: Callable[[], None]
) -> Record:
    """Train; pass on to the workers that a signal, or somebody else, has set `stop_event`. The workers' outcome.

    Args:
        trainer: What trains.
        coordinator: Handle of the run's `StopCoordinator`.
        stop_event: Asks the workers to save and stop.
        on_begin: Called once when a worker begins to train.
    """
    awaited = [coordinator.wait_for_begin.remote()]
    refusal = _RefusalWatch(coordinator)

    def pass_on() -> None:
        refusal.look()
        if awaited and ray.wait(awaited, timeout=0)[0]:
            awaited.clear()
            on_begin()
        if stop_event.is_set():
            stop_event.clear()
            ray.get(coordinator.request_stop.remote())

    return run_beside_main_thread(
        lambda: _fit(trainer, coordinator),
        request_stop=stop_event.set,
        on_poll=pass_on,
        poll_seconds=_POLL_SECONDS,
        name="ray-train",
    )


class _RefusalWatch:
    """Ends a run that a worker has refused to go on with, where the others do not end by themselves."""

    def __init__(self, coordinator: Any) -> None:
        self._refusal = coordinator.wait_for_refusal.remote()
        self._since: float | None = None

    def look(self) -> None:
        """Raise what the refusal stands for, `_REFUSAL_SECONDS` after it; nothing before, or if there is none."""
        if self._since is None:
            if ray.wait([self._refusal], timeout=0)[0]:
                self._since = time.monotonic()
        elif time.monotonic() - self._since > _REFUSAL_SECONDS:
            _read_summary(_refused_outcome(ray.get(self._refusal)))


def _fit(trainer: TorchTrainer, coordinator: Any) -> Record:
    """Train; what rank 0 returned or, if training failed because a worker refused to go on, its refusal."""
    try:
        outcome: Record = trainer.fit().return_value  # type: ignore[attr-defined]
        return outcome
    except Exception as error:
        refusal = None
        with contextlib.suppress(ray.exceptions.RayError):
            refusal = ray.get(coordinator.read_refusal.remote())
        if refusal is not None:
            return _refused_outcome(refusal)
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


def _lost_workers_error(error: ray.train.TrainingFailedError) -> TrainingError:
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
