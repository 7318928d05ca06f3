"""Ray Train: N workers run the same loop under DistributedDataParallel.

Checkpoints, metrics and the order of data are ours and the same as in a local run. Ray places the workers, restarts
them all when one is lost (they continue from the newest checkpoint), and carries evaluation metrics to Tune.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping
from ali_dist.distributed import World
from ali_dist.errors import InputError, Stopped, TrainingError
from ali_dist.launchers.local import prepare_builtin_data
from ali_dist.launchers.ray_cluster import (
    alive_nodes,
    choose_workers,
    has_gpus,
    ray_session,
    threads_per_worker,
    use_node_interface,
    wait_for_resources,
)
from ali_dist.launchers.ray_storage import ray_storage, storage_access
from ali_dist.launchers.resources import check_lanes, worker_resources
from ali_dist.launchers.signals import stop_on_signals
from ali_dist.runs.datasets import open_run_data
from ali_dist.runs.trackers import Record
from ali_dist.training.loop import fit

_ELASTIC_START_SECONDS = "30"  # a lost node's reservation lingers; Train waits this long before it starts smaller


@ray.remote(num_cpus=0)
class StopCoordinator:
    """What driver and workers tell each other during a run."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._verdict: tuple[str, str] | None = None

    async def request_stop(self) -> None:
        """The driver was asked to stop."""
        self._stop.set()

    async def wait_for_stop(self) -> None:
        """Returns when it was, and not before: who waits takes no CPU time and learns of it at once."""
        await self._stop.wait()

    async def refuse(self, kind: str, message: str) -> None:
        """A worker found that the run cannot go on: restarting would not help."""
        self._verdict = self._verdict or (kind, message)

    async def verdict(self) -> tuple[str, str] | None:
        """Kind (input or training) and message of the first refusal."""
        return self._verdict


def watch_for_stop(board: Any) -> threading.Event:
    """An event that is set once the driver asks to save and stop.

    Args:
        board: The driver's `Board`; None if nobody will ask.
    """
    asked = threading.Event()

    def wait() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the driver is gone, and this process soon will be
            ray.get(board.wait_for_stop.remote())
            asked.set()

    if board is not None:
        threading.Thread(target=wait, name="stop-watch", daemon=True).start()
    return asked


class RayContext:
    """A Ray Train worker's surroundings.

    Args:
        board: Where rank 0 learns that the driver was asked to stop.
    """

    def __init__(self, board: Any) -> None:
        train = ray.train.get_context()
        self.world = World(train.get_world_rank(), train.get_local_rank(), train.get_world_size())
        self.device: torch.device = ray.train.torch.get_device()
        self._stop = watch_for_stop(board if self.world.is_main else None)

    def stop_requested(self) -> bool:
        """See `Context`."""
        return self._stop.is_set()

    def report(self, metrics: dict[str, float]) -> None:
        """See `Context`. Ray carries it to Tune; checkpoints stay ours."""
        ray.train.report(metrics)


def _train_worker(settings: dict[str, Any]) -> Record:
    """What each worker runs; its one required argument is how Ray hands over `settings`."""
    board = settings["board"]
    verdict = ray.get(board.verdict.remote())
    if verdict is not None:  # this is the restart after a refusal
        return {"outcome": verdict[0], "message": verdict[1]}
    config = from_mapping(settings["config"])
    os.environ.update(settings["access"])
    torch.set_num_threads(config.scale.threads or threads_per_worker())
    try:
        _check_run_dir_visible(config, settings["mark"])
        summary = fit(config, RayContext(board))
    except Stopped as stopped:
        return {"outcome": "stopped", "message": str(stopped)}
    except (InputError, TrainingError) as error:
        # Other ranks may be waiting in a collective: only a failure ends them. The restart will find the verdict.
        ray.get(board.refuse.remote("input" if isinstance(error, InputError) else "training", str(error)))
        raise
    return {"outcome": "finished", "summary": summary}


def _check_run_dir_visible(config: Config, mark: str) -> None:
    """Raise InputError on a machine that does not see the run folder, before training runs into it."""
    if mark and not Path(mark).exists():
        raise InputError(
            f"The machine {ray.util.get_node_ip_address()} does not see {config.run.dir}, the folder of runs: on "
            "several machines --run.dir must be s3://bucket/prefix or a folder that all of them mount."
        )


def _write_probe_file(config: Config) -> str:
    """A file in a local run folder for `_check_sight`; nothing where runs are in S3."""
    if "://" in config.run.dir:
        return ""
    mark = Path(config.run.dir) / config.run.name / "ray" / f"seen-from-{os.uname().nodename}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return str(mark)


class _InterfaceBackend(_TorchBackend):
    """Ray's process group, over the network that Ray itself uses."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_node_interface)
        super().on_start(worker_group, backend_config)


class _InterfaceTorchConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_InterfaceBackend]:
        return _InterfaceBackend


def run_on_ray(config: Config, callbacks: Sequence[Any] = (), asked: threading.Event | None = None) -> Record:
    """Train on Ray workers, on the cluster this process belongs to or on one started here; rank 0's summary.

    `callbacks` (Ray Train's) learn of what the workers report, e.g. to pass it on to Ray Tune. Setting `asked` asks the
    workers to save and stop, as SIGTERM does.

    Raises:
        InputError: The config cannot work, or the workers cannot see the data or the run folder.
        TrainingError: Training diverged, or workers were lost too often.
        Stopped: SIGTERM, Ctrl-C or `asked`; a checkpoint has been saved.
    """
    config = with_absolute_paths(config)
    prepare_builtin_data(config)
    open_run_data(config)  # a missing bucket is answered at once, not after the workers have started
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also the pace of report()
    if ":" in config.scale.workers:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _ELASTIC_START_SECONDS)
    check_lanes(config, (config.scale.worker_range() or (1, 1))[1])
    with ray_session(config):
        # Beside this driver, whose end is the run's end; on another machine it would be lost with that.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = StopCoordinator.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        return _read_outcome(
            _fit_in_thread(_make_trainer(config, board, callbacks), board, asked or threading.Event()), board
        )


def with_absolute_paths(config: Config) -> Config:
    """The config for workers, which run in folders of their own: local places must not depend on the current one."""

    def absolute(url: str) -> str:
        return url if "://" in url else str(Path(url).absolute())

    places = {"run": {"dir": absolute(config.run.dir)}, "data": {"url": absolute(config.data.url)}}
    return from_mapping(config.to_mapping(), places)


def _make_trainer(config: Config, board: Any, callbacks: Sequence[Any]) -> TorchTrainer:
    scale = config.scale
    use_gpu = scale.device == "cuda" or (scale.device == "auto" and has_gpus())
    each = worker_resources(scale.cpus_per_worker, scale.gpus_per_worker if use_gpu else 0.0)
    low, high = choose_workers(config, alive_nodes(), each, _write_line)
    # GPUs talk fastest within a machine; workers on CPUs would share its cores.
    strategy = "PACK" if use_gpu else "SPREAD"
    wait_for_resources(low, each, strategy, _write_line)
    path, filesystem = ray_storage(config)
    return TorchTrainer(
        _train_worker,  # type: ignore[arg-type]
        train_loop_config={
            "config": config.to_mapping(),
            "board": board,
            "mark": _write_probe_file(config),
            "access": storage_access(),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=high if low == high else (low, high),  # type: ignore[arg-type]
            use_gpu=use_gpu,
            resources_per_worker=each,
            placement_strategy=strategy,
        ),
        run_config=ray.train.RunConfig(
            name=f"{config.run.name}-{int(time.time())}",  # our checkpoints continue a run, not Ray's
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
            callbacks=list(callbacks),
        ),
        torch_config=_InterfaceTorchConfig(backend=None if scale.backend == "auto" else scale.backend),
    )


def _write_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _fit_in_thread(trainer: TorchTrainer, board: Any, asked: threading.Event) -> Record | BaseException:
    """`trainer.fit()` beside the main thread, so that signals are ours: the first asks the workers to save and stop."""
    box: list[Record | BaseException] = []

    def run() -> None:
        try:
            box.append(trainer.fit().return_value)  # type: ignore[attr-defined]
        except BaseException as error:  # noqa: BLE001  (handed to the main thread)
            box.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    with stop_on_signals(asked.set):
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if asked.is_set():
                asked.clear()
                ray.get(board.request_stop.remote())
    return box[0]


def _read_outcome(result: Record | BaseException, board: Any) -> Record:
    """The summary, or the exception that says how the run ended."""
    if isinstance(result, BaseException):
        verdict = None
        with contextlib.suppress(ray.exceptions.RayError):
            verdict = ray.get(board.verdict.remote())
        if verdict is None:
            raise _lost_workers_error(result) from result
        result = {"outcome": verdict[0], "message": verdict[1]}
    if result["outcome"] == "input":
        raise InputError(result["message"])
    if result["outcome"] == "training":
        raise TrainingError(result["message"])
    if result["outcome"] == "stopped":
        raise Stopped(result["message"])
    summary: Record = result["summary"]
    return summary


def _lost_workers_error(error: BaseException) -> BaseException:
    """A failure of workers as one sentence; anything else as it is."""
    if not isinstance(error, ray.train.TrainingFailedError):
        return error
    failures = getattr(error, "worker_failures", {}) or {}
    reasons = "; ".join(f"rank {rank}: {' '.join(str(e).split())[:300]}" for rank, e in sorted(failures.items()))
    reasons = reasons or ([line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"])[-1]
    return TrainingError(
        f"Workers failed more often than scale.max_failures allows ({reasons}); checkpoints are kept: "
        "run the same command to go on from the newest."
    )
