"""Contestants that take turns, so that whatever else the machine does slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ali_dist.training.host_allocator import freed_memory_kept


@dataclass(frozen=True, slots=True)
class Contestant:
    """An update that is measured, with networks and optimizers of its own.

    `has_own_pool` says that its memory stays allocated between updates, so that its peak cannot be read.
    """

    name: str
    update: Callable[[], object]
    networks: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    has_own_pool: bool = False

    def resident_bytes(self) -> int:
        """Bytes of weights, buffers, gradients and optimizer state, as they are now."""
        tensors: list[Tensor] = [*self.networks.parameters(), *self.networks.buffers()]
        tensors += [p.grad for p in self.networks.parameters() if p.grad is not None]
        for optimizer in self.optimizers:
            tensors += [t for state in optimizer.state.values() for t in state.values()]
        return sum(t.nbytes for t in tensors)


@dataclass(slots=True)
class TurnTimes:
    """What one contestant took.

    Attributes:
        seconds: Mean time of an update, in each round.
        peak_bytes: Most memory in use on the device; None on a CPU.
    """

    seconds: list[float]
    peak_bytes: int | None = None


def take_turns(
    contestants: Sequence[Contestant],
    rounds: int,
    updates: int,
    device: torch.device,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, TurnTimes]:
    """Measure rounds in which every contestant has one turn; each round begins with another contestant.

    Args:
        contestants: With different names.
        rounds: Turns of each contestant.
        updates: Timed updates in a turn.
        device: Where the contestants compute.
        say: Takes a line about progress.
        clock: Gives seconds, on a CPU; on CUDA the clock of the device is used.

    Returns:
        The times of each contestant, by its name.
    """
    with freed_memory_kept() if device.type == "cpu" else nullcontext():  # as in a run
        return _take_turns(contestants, rounds, updates, device, say, clock)


def _take_turns(
    contestants: Sequence[Contestant],
    rounds: int,
    updates: int,
    device: torch.device,
    say: Callable[[str], None],
    clock: Callable[[], float],
) -> dict[str, TurnTimes]:
    times = {contestant.name: TurnTimes([]) for contestant in contestants}
    # Fills caches; the first turn also compiles, chooses kernels, and records what is replayed.
    warm_up = 5 if device.type == "cuda" else 1
    for number in range(rounds):
        first = number % len(contestants)
        for contestant in [*contestants[first:], *contestants[:first]]:
            for _ in range(warm_up):
                contestant.update()
            own_times = times[contestant.name]
            in_use, resident = _reset_peak_memory(contestant, device)
            own_times.seconds.append(_time_updates(contestant.update, updates, device, clock))
            if device.type == "cuda" and not contestant.has_own_pool:
                # What the other contestants keep on the device does not count.
                peak = torch.cuda.max_memory_allocated(device) - in_use + resident
                own_times.peak_bytes = max(peak, own_times.peak_bytes or 0)
        say(f"round {number + 1} of {rounds} done")
    return times


def _reset_peak_memory(contestant: Contestant, device: torch.device) -> tuple[int, int]:
    """Count peak memory from here on; returns bytes in use on the device, and how many belong to the contestant."""
    if device.type != "cuda":
        return 0, 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device), contestant.resident_bytes()


def _time_updates(
    update: Callable[[], object], updates: int, device: torch.device, clock: Callable[[], float]
) -> float:
    """Measure the mean time of `updates` updates in a row, in seconds."""
    if device.type == "cuda":
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(updates):
            update()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / updates
    began = clock()
    for _ in range(updates):
        update()
    return (clock() - began) / updates


def summarize_turns(times: dict[str, TurnTimes], base: str, images: int) -> list[dict[str, Any]]:
    """Make one JSON-able row for each contestant, in their order.

    Args:
        times: From `take_turns`.
        base: The contestant whose speed is 1; ratios are taken within a round, and then their median over rounds.
        images: In one update.
    """
    rows = []
    for name, own in times.items():
        ratios = [
            base_seconds / seconds for base_seconds, seconds in zip(times[base].seconds, own.seconds, strict=True)
        ]
        rows.append(
            {
                "step": name,
                "images_per_second": images / median(own.seconds),
                "seconds_per_update": median(own.seconds),
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "peak_bytes": own.peak_bytes,
                "seconds_by_round": own.seconds,
            }
        )
    return rows


def format_turns(heading: str, rows: Sequence[dict[str, Any]]) -> str:
    """A heading, and one line for each contestant: images/s, and its ratio with the smallest and largest round.

    Args:
        heading: What was measured.
        rows: From `summarize_turns`.
    """
    lines = [heading]
    for row in rows:
        low, middle, high = row["ratio_min"], row["ratio"], row["ratio_max"]
        lines.append(
            f"  {row['step']:<22}{row['images_per_second']:>10,.1f} images/s  {middle:5.2f} ({low:.2f} to {high:.2f})"
        )
    return "\n".join(lines)
