"""Where the loop meets the outside: which rank this is, where it computes, who listens, and who may stop it.

`LocalContext` serves debug mode (one process, no Ray, pdb works) and torchrun; `RayContext` in `ray_backend.py`
serves Ray Train workers. The loop is the same under all of them and imports none.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

import torch
import torch.distributed as dist

from ali_dist.training.distributed import World, choose_backend, choose_device


class Context(Protocol):
    """What the loop needs to know of its surroundings."""

    @property
    def world(self) -> World:
        """This rank among all ranks."""

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""

    def stop_requested(self) -> bool:
        """Whether this rank was asked to save and stop. Local and cheap: called before every update."""

    def report(self, metrics: dict[str, float]) -> None:
        """Pass evaluation metrics on to whoever manages the run. Every rank must call."""


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
def local_context(device: str = "auto", backend: str = "auto", threads: int | None = None) -> Iterator[LocalContext]:
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


@contextmanager
def stop_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT call `request_stop`; a second SIGINT raises KeyboardInterrupt.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        del frame
        request_stop()
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
