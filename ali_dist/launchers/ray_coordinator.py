"""What the driver and the workers of a run on Ray tell each other, through an actor."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import ray

from ali_dist.runs.trackers import Record


@ray.remote(num_cpus=0)
class StopCoordinator:
    """What the driver and the workers tell each other during a run.

    That is the beginning of training, a request to stop, and a refusal to go on.
    """

    def __init__(self) -> None:
        self._begin_event = asyncio.Event()
        self._stop_event = asyncio.Event()
        self._refusal_event = asyncio.Event()
        self._refusal: tuple[str, str] | None = None

    async def begin(self) -> None:
        """Called by a worker that begins to train, and that from now on shows itself how far it is."""
        self._begin_event.set()

    async def wait_for_begin(self) -> None:
        """Return once a worker has begun, and not before."""
        await self._begin_event.wait()

    async def request_stop(self) -> None:
        """Called by the driver when it was asked to stop."""
        self._stop_event.set()

    async def wait_for_stop(self) -> None:
        """Return once a stop is requested, and not before: waiting takes no CPU time, and the answer comes at once."""
        await self._stop_event.wait()

    async def refuse(self, kind: str, message: str) -> None:
        """Called by a worker that found that the run cannot go on, so that restarting would not help.

        Args:
            kind: `input` or `training`: whose fault it is.
            message: One sentence.
        """
        self._refusal = self._refusal or (kind, message)
        self._refusal_event.set()

    async def wait_for_refusal(self) -> tuple[str, str] | None:
        """Kind and message of the first refusal, once there is one."""
        await self._refusal_event.wait()
        return self._refusal

    async def read_refusal(self) -> tuple[str, str] | None:
        """Kind and message of the first refusal; None if no worker has refused."""
        return self._refusal


def watch_for_stop(coordinator: Any) -> threading.Event:
    """An event that is set once the driver asks to save and stop.

    Args:
        coordinator: Handle of the driver's `StopCoordinator`; None if nobody will ask.
    """
    stop_event = threading.Event()

    def wait_for_driver() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the driver is gone, and this process soon will be
            ray.get(coordinator.wait_for_stop.remote())
            stop_event.set()

    if coordinator is not None:
        threading.Thread(target=wait_for_driver, name="stop-watch", daemon=True).start()
    return stop_event


def refused_outcome(refusal: tuple[str, str]) -> Record:
    """What a worker returns that has refused to go on, or that starts again after a refusal."""
    kind, message = refusal
    return {"outcome": kind, "message": message}
