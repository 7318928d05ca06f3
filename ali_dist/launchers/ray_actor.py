"""The class of a run's workers on its own cluster: Ray Train's, which loads faster by way of this module.

Ray loads it by its name in each worker's process.
"""

from __future__ import annotations

from ali_dist.loading_note import collector_paused

with collector_paused():
    from ray.train.v2._internal.execution.worker_group import worker


class RayTrainWorker(worker.RayTrainWorker):
    """Ray Train's worker, under the name that Ray shows."""
