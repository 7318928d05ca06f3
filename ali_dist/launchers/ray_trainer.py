"""Ray's trainer without the processes of which a run has no use: each is a Python that starts while the run waits.

What is left out here is left out by overriding methods of Ray's own (2.60); where others have none, nothing changes.
Ray's controller loads this module, which therefore does without PyTorch.
"""

from __future__ import annotations

import threading
from typing import Any

import ray
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_UNUSED = frozenset({"DatasetsCallback"})  # a run has no datasets of Ray Data
# The end of a run's own cluster frees what the run has reserved, and nobody asks it for metrics.
_UNUSED_ON_OWN_CLUSTER = frozenset(
    {"PlacementGroupCleanerCallback", "ControllerMetricsCallback", "WorkerMetricsCallback"}
)
_REQUESTS = ("after_controller_start", "_maybe_send_resource_request")
"""Methods of a scaling policy of Ray's that ask an autoscaler for machines, by way of an actor."""
_LEAVING_SECONDS = 2.0
_KNOWN_VERSION = "2.60."
"""Of Ray, whose controller can be a part of this process; others start it as they do."""


class LeanTrainer(DataParallelTrainer):
    """Trains on workers that Ray places.

    On a run's own cluster, what controls the workers is not a process of its own, but a part of the process that calls
    `fit`, with which such a cluster ends in any case.

    Args:
        is_own_cluster: Whether the cluster was started for this run, of one machine, and ends with it.
        options: DataParallelTrainer's.
    """

    def __init__(self, *, is_own_cluster: bool, **options: Any) -> None:
        self._is_own_cluster = is_own_cluster
        self._is_abandoned = threading.Event()
        self._is_over = threading.Event()
        super().__init__(**options)

    def fit(self) -> Any:
        """Train; see DataParallelTrainer."""
        try:
            return super().fit()
        finally:
            self._is_over.set()

    def abandon(self) -> None:
        """Let the thread that is in `fit` leave alone a cluster that is about to end; waits a moment for that."""
        self._is_abandoned.set()
        if self._is_own_cluster:
            self._is_over.wait(_LEAVING_SECONDS)

    def _create_default_callbacks(self) -> list[Any]:
        unused = _UNUSED | (_UNUSED_ON_OWN_CLUSTER if self._is_own_cluster else frozenset())
        return [callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in unused]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        if not self._is_own_cluster:
            return super()._initialize_and_run_controller(**options)
        policy = options.get("scaling_policy")
        is_settled = isinstance(self.scaling_config.num_workers, int)
        if is_settled and all(hasattr(policy, name) for name in _REQUESTS):  # the machine is all there will be
            for name in _REQUESTS:
                setattr(policy, name, _ask_for_nothing)
        if not ray.__version__.startswith(_KNOWN_VERSION):
            return super()._initialize_and_run_controller(**options)
        from ali_dist.launchers.ray_controller import run_controller

        return run_controller(self._is_abandoned, **options)


def _ask_for_nothing(*_: Any) -> None:
    """In place of what asks an autoscaler for machines; a controller elsewhere unpickles it by this name."""
