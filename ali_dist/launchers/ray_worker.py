"""What a worker of Ray Train runs: the same loop as everywhere, in the surroundings that Ray gives it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch.distributed.distributed_c10d import _get_default_store

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping
from ali_dist.distributed import World, waiting_for_ranks
from ali_dist.errors import InputError, OutageError, Stopped, TrainingError
from ali_dist.launchers.rank_watch import RankWatch
from ali_dist.launchers.ray_cluster import threads_per_worker
from ali_dist.launchers.ray_lines import is_lost_peer, silence_training_errors
from ali_dist.launchers.ray_notes import Notes, refused_outcome, watch_for_stop
from ali_dist.runs.trackers import Record
from ali_dist.training.context import UnhurriedContext
from ali_dist.training.loop import fit


class RayContext(UnhurriedContext):
    """The surroundings of a Ray Train worker; see `ali_dist.training.context.Context`.

    Args:
        notes: Where rank 0 learns that the driver was asked to stop.
    """

    def __init__(self, notes: Notes) -> None:
        train_context = ray.train.get_context()
        self.world = World(
            train_context.get_world_rank(), train_context.get_local_rank(), train_context.get_world_size()
        )
        self.device: torch.device = ray.train.torch.get_device()
        self._stop_event = watch_for_stop(notes if self.world.is_main else None)

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


def train_worker(settings: dict[str, Any]) -> Record:
    """What each worker runs.

    Args:
        settings: What the driver's trainer was given for its workers.

    Returns:
        `outcome`, which is finished, stopped, input or training; `summary` if finished, else `message`.
    """
    notes: Notes = settings["notes"]
    refusal = notes.read_refusal()
    if refusal is not None:  # this is the restart after a refusal
        return refused_outcome(refusal)
    config = from_mapping(settings["config"])
    _silence_libraries()
    os.environ.update(settings["access"])
    context = RayContext(notes)
    if context.device.type == "cuda":
        torch.cuda.set_device(context.device)
    torch.set_num_threads(config.scale.threads or threads_per_worker())
    try:
        _check_run_dir_visible(config, settings["probe_file"])
        with _watch_ranks(config, context):
            notes.tell_begin()
            summary = fit(config, context)
    except Stopped as stopped:
        return {"outcome": "stopped", "message": str(stopped)}
    except (InputError, TrainingError, OutageError) as error:
        # Where other ranks wait in a collective, the driver ends them: to raise here would do so, but with a traceback.
        refusal = ("input" if isinstance(error, InputError) else "training", str(error))
        notes.refuse(*refusal)
        return refused_outcome(refusal)
    except Exception as error:
        if is_lost_peer(error):
            silence_training_errors()
        raise
    # As text, some values are of PyTorch's types, for which the driver would load it.
    return {"outcome": "finished", "summary": json.loads(json.dumps(summary))}


@contextlib.contextmanager
def _watch_ranks(config: Config, context: RayContext) -> Iterator[None]:
    """Within the block, this worker does not wait for the others in vain: it ends, and Ray restarts all of them."""
    if context.world.size == 1:
        yield
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
        yield
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
