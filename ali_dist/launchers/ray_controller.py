"""What controls the workers of a run on a cluster of its own: Ray's controller, in the process that started it.

Ray makes it an actor, so that it outlives a driver on another machine. A run's own cluster ends with its driver, and a
process more is three seconds of every start. All that is overridden here is private to Ray (2.60).
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import ray
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from ali_dist.launchers.ray_actor import RayTrainWorker
from ali_dist.launchers.ray_own_cluster import without_successor

_POLL_SECONDS = 0.1


def run_controller(is_abandoned: threading.Event, **options: Any) -> Any:
    """Start the workers, watch over them and start them again, until training has ended or cannot go on.

    Args:
        is_abandoned: Ends this soon, whatever the workers do, when it is set.
        options: TrainController's.

    Returns:
        Ray's result of the run, whose `error` says if it failed.

    Raises:
        asyncio.CancelledError: It was abandoned.
    """
    with without_successor():  # a thread that the end of the process leaves behind may still be in here
        controller = _Controller(**options)
        asyncio.run(_run_unless_abandoned(controller, is_abandoned))
        return controller.get_result()


async def _run_unless_abandoned(controller: TrainController, is_abandoned: threading.Event) -> None:
    task = asyncio.ensure_future(controller.run())
    while not task.done():
        if is_abandoned.is_set():
            task.cancel()
        await asyncio.wait([task], timeout=_POLL_SECONDS)
    await task


class _WorkerGroup(WorkerGroup):
    """Workers whose controller is no actor."""

    _worker_cls = RayTrainWorker

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        common = {
            "train_run_context": self._train_run_context,
            "synchronization_actor": sync_actor,
            "storage_context": self._storage_context,
            "worker_callbacks": self._worker_callbacks_to_propagate,
            "controller_actor": None,  # who asks for the checkpoints that Ray knows of; there are none
        }
        begun = [
            worker.actor.init_train_context.remote(
                distributed_context=worker.distributed_context,
                **common,
                **{name: values[rank] for name, values in train_context_args.items()},
            )
            for rank, worker in enumerate(workers)
        ]
        ray.get(begun)
        self._decorate_worker_log_file_paths(workers)

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> dict[str, Any]:
        # Processes of this machine have the variables of this one, from which their cluster was started. With an
        # environment of their own, each would start Python twice, and those that Ray has ready could not be used.
        return dict(custom_runtime_env)


class _Controller(TrainController):
    worker_group_cls = _WorkerGroup
