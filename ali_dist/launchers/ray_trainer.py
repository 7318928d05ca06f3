"""Ray's trainer without the actors of which a run has no use: each is a process that starts while the run waits.

What is left out here is left out by overriding methods of Ray's own (2.60); where others have none, nothing changes.
Ray's controller loads this module, which therefore does without PyTorch.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_UNUSED = frozenset({"DatasetsCallback"})  # a run has no datasets of Ray Data
_UNUSED_ON_OWN_CLUSTER = frozenset({"PlacementGroupCleanerCallback"})  # the cluster's end frees what a run has reserved
_REQUESTS = ("after_controller_start", "_maybe_send_resource_request")
"""Methods of a scaling policy of Ray's that ask an autoscaler for machines, by way of an actor."""


class LeanTrainer(DataParallelTrainer):
    """Trains on workers that Ray places.

    Args:
        is_own_cluster: Whether the cluster was started for this run, of one machine, and ends with it.
        options: DataParallelTrainer's.
    """

    def __init__(self, *, is_own_cluster: bool, **options: Any) -> None:
        self._is_own_cluster = is_own_cluster
        super().__init__(**options)

    def _create_default_callbacks(self) -> list[Any]:
        unused = _UNUSED | (_UNUSED_ON_OWN_CLUSTER if self._is_own_cluster else frozenset())
        return [callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in unused]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        policy = options.get("scaling_policy")
        is_settled = self._is_own_cluster and isinstance(self.scaling_config.num_workers, int)
        if is_settled and all(hasattr(policy, name) for name in _REQUESTS):  # the machine is all there will be
            for name in _REQUESTS:
                setattr(policy, name, _ask_for_nothing)
        return super()._initialize_and_run_controller(**options)


def _ask_for_nothing(*_: Any) -> None:
    """In place of what asks an autoscaler for machines; the controller unpickles it by this name."""
