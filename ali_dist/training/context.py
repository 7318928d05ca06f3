"""Where the loop meets the outside: which rank this is, where it computes, who listens, and who may stop it.

`launchers/local.py` implements it for this process and for torchrun, `launchers/ray_worker.py` for Ray Train workers.
The loop is the same under all of them and imports none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from ali_dist.distributed import World


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

    def count_leaving_machines(self) -> int:
        """How many of the run's machines have been said to leave soon, so far. Local and cheap, as above."""

    def report(self, metrics: dict[str, float]) -> None:
        """Pass evaluation metrics on to whoever manages the run. Every rank must call."""

    def before_training(self) -> AbstractContextManager[None]:
        """Within the block there is nothing to save yet: a request to stop may end it at once, by raising Stopped."""

    def all_saved(self, is_written: Callable[[], bool]) -> AbstractContextManager[None]:
        """Within the block, what training has reached is saved, or being saved by a thread.

        A request to stop that is not answered soon may therefore end the process.

        Args:
            is_written: Whether that thread is done.
        """


class UnhurriedContext:
    """The part of a context whose process is not ended by requests to stop: somebody else hears them, and waits."""

    def count_leaving_machines(self) -> int:
        """None; see `Context`."""
        return 0

    def before_training(self) -> AbstractContextManager[None]:
        """Nothing happens; see `Context`."""
        return nullcontext()

    def all_saved(self, is_written: Callable[[], bool]) -> AbstractContextManager[None]:
        """Nothing happens; see `Context`."""
        return nullcontext()
