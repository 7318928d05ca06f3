"""Runs in this process: alone, for debugging and small data, or as one of torchrun's processes."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ali_dist.config import Config
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.distributed import World, choose_backend, choose_device
from ali_dist.errors import Stopped
from ali_dist.launchers.signals import stop_on_signals
from ali_dist.runs.trackers import Record
from ali_dist.training.loop import fit


class LocalContext:
    """The surroundings of a rank that no cluster manages; see `ali_dist.training.context.Context`.

    `open_local_context` makes the one of this process.

    Args:
        world: This rank among all ranks; more than one under torchrun.
        device: Where this rank computes.
    """

    def __init__(self, world: World, device: torch.device) -> None:
        self.world = world
        self.device = device
        self._stop_event = threading.Event()

    def request_stop(self) -> None:
        """Ask training to save a checkpoint and stop after the current update. Safe in a signal handler."""
        self._stop_event.set()

    def stop_requested(self) -> bool:
        """Whether a signal asked to save and stop; see `Context`."""
        return self._stop_event.is_set()

    def report(self, metrics: dict[str, float]) -> None:
        """Do nothing: nobody manages a local run, and the loop has written the metrics."""


@contextmanager
def open_local_context(
    device: str = "auto", backend: str = "auto", threads: int | None = None
) -> Iterator[LocalContext]:
    """Open the context of this process, alone or as one of torchrun's; join and leave the process group. Collective.

    SIGTERM and the first Ctrl-C ask training to save and stop; a second Ctrl-C interrupts at once.

    Args:
        device: `scale.device`: auto, cpu or cuda.
        backend: `scale.backend`: auto, gloo or nccl.
        threads: CPU threads of this rank; None: torch's own number, or under torchrun the cores shared out.

    Raises:
        InputError: The device or the backend does not exist here.
    """
    world = World.from_torchrun() or World()
    rank_device = choose_device(device, world.local_rank)
    context = LocalContext(world, rank_device)
    if threads or world.size > 1:
        torch.set_num_threads(threads or _threads_per_rank())
    if world.size > 1:
        dist.init_process_group(choose_backend(backend, rank_device))
    with stop_on_signals(context.request_stop):
        try:
            yield context
        finally:
            if world.size > 1:
                gc.collect()  # what DistributedDataParallel keeps in reference cycles must not outlive the group
                dist.destroy_process_group()


def _threads_per_rank() -> int:
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, (os.cpu_count() or 1) // ranks_here)


def prepare_builtin_data(config: Config) -> None:
    """Write a preset's built-in data to data.url if nothing is there yet."""
    if config.data.source is not None:
        ensure_prepared(config.data.source, config.data.url)


def run_local(config: Config) -> Record | None:
    """Train in this process, alone or as one of torchrun's. Collective.

    Returns:
        The summary of the run on rank 0, None on all others.

    Raises:
        InputError: The config cannot work here, or the data are missing or damaged.
        TrainingError, StorageError: Training or the storage failed.
        Stopped: It was asked to stop and has saved a checkpoint.
    """
    with open_local_context(config.scale.device, config.scale.backend, config.scale.threads) as context:
        prepare_builtin_data(config)
        try:
            summary = fit(config, context)
        except Stopped:  # it is raised on all ranks
            _wait_for_all_ranks(context)
            raise
        _wait_for_all_ranks(context)
        return summary


def _wait_for_all_ranks(context: LocalContext) -> None:
    """Leave together: rank 0 evaluates or saves longer, and a rank that left before it might end the whole run."""
    if context.world.size > 1:
        dist.barrier()
