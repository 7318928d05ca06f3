"""Runs in this process: debug mode, and one of torchrun's processes."""

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
    """Debug mode and torchrun. Make it with `local_context`.

    Args:
        world: This process among all; more than one under torchrun.
        device: Where this rank computes.
    """

    def __init__(self, world: World, device: torch.device) -> None:
        self.world, self.device = world, device
        self._stop = threading.Event()

    def request_stop(self) -> None:
        """Ask training to save a checkpoint and stop after the current update."""
        self._stop.set()

    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def report(self, metrics: dict[str, float]) -> None:
        del metrics  # nobody manages a local run; the loop has written them


@contextmanager
def open_local_context(
    device: str = "auto", backend: str = "auto", threads: int | None = None
) -> Iterator[LocalContext]:
    """A context for this process, alone or as one of torchrun's; joins and leaves the process group.

    SIGTERM and the first Ctrl-C ask training to save and stop; a second Ctrl-C interrupts at once.

    Raises:
        InputError: The device or backend is not there.
    """
    world = World.from_torchrun() or World()
    chosen = choose_device(device, world.local_rank)
    context = LocalContext(world, chosen)
    if threads or world.size > 1:
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if world.size > 1:
        dist.init_process_group(choose_backend(backend, chosen))
    with stop_on_signals(context.request_stop):
        try:
            yield context
        finally:
            if world.size > 1:
                gc.collect()  # what DistributedDataParallel keeps in cycles must not outlive the group
                dist.destroy_process_group()


def prepare_builtin_data(config: Config) -> None:
    """Write a preset's built-in data at data.url if nothing is there yet."""
    if config.data.source is not None:
        ensure_prepared(config.data.source, config.data.url)


def run_local(config: Config) -> Record | None:
    """Train here; the summary on rank 0."""
    with open_local_context(config.scale.device, config.scale.backend, config.scale.threads) as context:
        prepare_builtin_data(config)
        try:
            summary = fit(config, context)
        except Stopped:  # all ranks have
            _wait_for_all_ranks(context)
            raise
        _wait_for_all_ranks(context)
        return summary


def _wait_for_all_ranks(context: LocalContext) -> None:
    """Leave together: rank 0 evaluates or saves longer, and a rank that left before might abort and end the run."""
    if context.world.size > 1:
        dist.barrier()
