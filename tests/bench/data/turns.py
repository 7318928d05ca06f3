"""Turns of readers: CPU time of all threads and of ended child processes, time on the clock, requests and bytes."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.bench.data.readers import Reader
from tests.bench.data.splits import Server

Say = Callable[[str], None]


@dataclass(slots=True)
class Turns:
    """What one reader took in each of its turns; requests and bytes are those of the last one, 0 for a folder."""

    cpu_rates: list[float] = field(default_factory=list)
    wall_rates: list[float] = field(default_factory=list)
    images: int = 0
    requests: int = 0
    sent_bytes: int = 0


def cpu_seconds() -> float:
    """CPU time of this process's threads and of its child processes that have ended and were waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def take_reading_turns(readers: dict[str, Reader], rounds: int, server: Server | None) -> dict[str, Turns]:
    """Let readers take turns, after one that is not counted; each round begins with another reader."""
    turns = {name: Turns() for name in readers}
    names = list(readers)
    for number in range(-1, rounds):
        first = max(0, number) % len(names)
        for name in [*names[first:], *names[:first]]:
            if server is not None:
                server.ask("count")
            cpu, wall = cpu_seconds(), time.perf_counter()
            images = readers[name]()
            cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
            own = turns[name]
            own.images = images
            if number >= 0:
                own.cpu_rates.append(images / cpu)
                own.wall_rates.append(images / wall)
            if server is not None:
                own.requests, own.sent_bytes = server.ask("count")
    return turns


def summarize(turns: dict[str, Turns], base: str, **case: Any) -> list[dict[str, Any]]:
    """Make one JSON-able row for each reader; ratios are of CPU time to `base`, taken within a round."""
    rows = []
    for name, own in turns.items():
        ratios = [rate / other for rate, other in zip(own.cpu_rates, turns[base].cpu_rates, strict=True)]
        rows.append(
            {
                **case,
                "reader": name,
                "images_per_cpu_second": median(own.cpu_rates),
                "images_per_second": median(own.wall_rates),
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "images": own.images,
                "requests": own.requests,
                "sent_bytes": own.sent_bytes,
                "cpu_rates": own.cpu_rates,
            }
        )
    return rows
