"""Runs in this process: alone, for debugging and small data, or as one of torchrun's processes."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ali_dist.config import Config, ScaleConfig
from ali_dist.distributed import World, choose_backend, choose_device, waiting_for_ranks
from ali_dist.errors import Stopped, TrainingError
from ali_dist.launchers.builtin_data import prepare_builtin_data
from ali_dist.launchers.rank_watch import LIBRARY_TIMEOUT, STARTING_SECONDS, RankWatch
from ali_dist.launchers.rendezvous import open_part_of_start
from ali_dist.launchers.signals import StoppedAtOnce, end_after_grace, end_process, stop_at_once, stop_on_signals
from ali_dist.runs.trackers import Record
from ali_dist.training.loop import fit

_BEFORE = "Stopped on request before training went on; run the same command to go on."
_SAVED = "Stopped on request with all training saved; run the same command to go on."


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

    def count_leaving_machines(self) -> int:
        """None: nobody says so to a local run."""
        return 0

    def report(self, metrics: dict[str, float]) -> None:
        """Do nothing: nobody manages a local run, and the loop has written the metrics."""

    @contextmanager
    def before_training(self) -> Iterator[None]:
        """Within the block, a request to stop raises Stopped; see `Context`."""
        with stop_at_once(_BEFORE):
            yield

    @contextmanager
    def all_saved(self, is_written: Callable[[], bool]) -> Iterator[None]:
        """Within the block, a request to stop that is not answered soon ends the process; see `Context`."""
        with end_after_grace(self._stop_event, is_written, _SAVED):
            yield


@contextmanager
def open_local_context(scale: ScaleConfig) -> Iterator[LocalContext]:
    """Open the context of this process, alone or as one of torchrun's; join and leave the process group. Collective.

    Each of `STOP_SIGNALS` asks training to save and stop; a second Ctrl-C interrupts at once.

    Args:
        scale: Device, backend, threads and timeout.

    Raises:
        InputError: The device or the backend does not exist here.
    """
    world = World.from_torchrun() or World()
    device = choose_device(scale.device, world.local_rank)
    context = LocalContext(world, device)
    if scale.threads or world.size > 1:
        torch.set_num_threads(scale.threads or _threads_per_rank())
    with ExitStack() as stack:
        if world.size > 1:
            with context.before_training():
                stack.enter_context(_process_group(scale, context))
        stack.enter_context(stop_on_signals(context.request_stop))
        yield context


@contextmanager
def _process_group(scale: ScaleConfig, context: LocalContext) -> Iterator[None]:
    """Within the block, this process is one of torchrun's group, and does not wait for the others in vain."""
    world, device = context.world, context.device
    common_store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=STARTING_SECONDS)))
    store = open_part_of_start(common_store, world, STARTING_SECONDS)
    watch = RankWatch(
        world=world,
        store=store,
        timeout=scale.collective_timeout,
        stop_requested=context.stop_requested,
        request_stop=context.request_stop,
        end=lambda sentence, code: end_process(f"ali_dist.train: {sentence}", code),
    )
    watch.start()
    try:
        with waiting_for_ranks("the start of the process group"):
            dist.init_process_group(
                choose_backend(scale.backend, device),
                store=PrefixStore("default_pg", store),
                rank=world.rank,
                world_size=world.size,
                timeout=LIBRARY_TIMEOUT,
            )
        yield
    finally:
        watch.stop()
        if dist.is_initialized():
            gc.collect()  # what DistributedDataParallel keeps in reference cycles must not outlive the group
            dist.destroy_process_group()


def _threads_per_rank() -> int:
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, (os.cpu_count() or 1) // ranks_here)


def run_local(config: Config) -> Record | None:
    """Train in this process, alone or as one of torchrun's. Collective.

    Returns:
        The summary of the run on rank 0, None on all others.

    Raises:
        InputError: The config cannot work here, or the data are missing or damaged.
        TrainingError, StorageError: Training or the storage failed.
        Stopped: It was asked to stop and has saved a checkpoint.
    """
    with open_local_context(config.scale) as context:
        with context.before_training():
            prepare_builtin_data(config)
        try:
            summary = fit(config, context)
        except StoppedAtOnce:  # it may be raised on this rank alone
            raise
        except Stopped:  # it is raised on all ranks
            _wait_for_all_ranks(context)
            raise
        except RuntimeError as error:
            if context.world.size > 1 and _is_lost_rank(error):
                raise _explain_lost_rank(error, context) from error
            raise
        _wait_for_all_ranks(context)
        return summary


def _wait_for_all_ranks(context: LocalContext) -> None:
    """Leave together: rank 0 evaluates or saves longer, and a rank that left before it might end the whole run."""
    if context.world.size > 1:
        with waiting_for_ranks("the end of the run"):
            dist.barrier()


def _is_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone; gloo has no type for that."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)


def _explain_lost_rank(error: RuntimeError, context: LocalContext) -> Exception:
    reason = " ".join(str(error).split())[:200]
    if context.stop_requested():
        return Stopped(
            f"Stopped on request without another checkpoint, because rank {context.world.rank} lost another rank; run "
            "the same command to go on from the newest one."
        )
    return TrainingError(
        f"Rank {context.world.rank} lost another rank ({reason}); run the same command to go on from the newest "
        "checkpoint."
    )
