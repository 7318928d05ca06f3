"""Trials in a queue: some at a time, the first ones first, and none that would outlast the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from tests.bench.recipes.trial import Result

POLL_SECONDS = 0.2


class RunningTrial(Protocol):
    """A trial in progress."""

    def poll(self) -> Result | None:
        """What has become of it; None as long as it runs."""

    def kill(self) -> None:
        """End it at once; nothing happens if it has ended."""


@dataclass(frozen=True)
class Ended:
    """A trial that is over.

    Attributes:
        number: Its place in the queue.
        result: What has become of it; None if it was never begun, or was ended because the budget was over.
        has_begun: Whether it was begun.
    """

    number: int
    result: Result | None
    has_begun: bool


def has_time(seconds_left: float, durations: Sequence[float]) -> bool:
    """Whether one more trial fits: the longest one so far, ended or still running, says how long it takes."""
    return seconds_left > max(durations, default=0.0)


def run_queue(
    starters: Sequence[Callable[[], RunningTrial]],
    *,
    jobs: int,
    budget: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[], None] = lambda: time.sleep(POLL_SECONDS),
) -> Iterator[Ended]:
    """Run trials in order, and give each as soon as it is over; those that found no time come last.

    Whatever still runs when the caller stops asking is killed.

    Args:
        starters: Start one trial each.
        jobs: Trials at a time.
        budget: Seconds for all of them together, from now on; may be infinite.
        clock: Seconds from any moment on.
        pause: Waits until trials are looked at again.
    """
    deadline = clock() + budget
    waiting = list(range(len(starters)))
    running: dict[int, tuple[RunningTrial, float]] = {}
    durations: list[float] = []
    try:
        while running or waiting:
            for number, (trial, began) in list(running.items()):
                result = trial.poll()
                if result is None and clock() < deadline:
                    continue
                trial.kill()
                del running[number]
                durations.append(clock() - began)
                yield Ended(number, result, has_begun=True)
            now = clock()
            while waiting and len(running) < jobs:
                under_way = [now - began for _, began in running.values()]
                if not has_time(deadline - now, durations + under_way):
                    yield from (Ended(number, None, has_begun=False) for number in waiting)
                    waiting.clear()
                    break
                first = waiting.pop(0)
                running[first] = starters[first](), now
            if running:
                pause()
    finally:
        for trial, _ in running.values():
            with suppress(ProcessLookupError):
                trial.kill()
