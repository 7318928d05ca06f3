"""Contestants that take turns, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to update, with networks and optimisers of its own."""

    name: str
    update: Callable[[], object]
    networks: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]

    def resident_bytes(self) -> int:
        """Bytes of weights, buffers, gradients and optimiser state, as they are now."""
        tensors: list[Tensor] = [*self.networks.parameters(), *self.networks.buffers()]
        tensors += [p.grad for p in self.networks.parameters() if p.grad is not None]
        tensors += [t for o in self.optimizers for state in o.state.values() for t in state.values()]
        return sum(t.nbytes for t in tensors)


@dataclass(slots=True)
class Measured:
    """Of one contestant: mean seconds of an update in each round, and on CUDA its peak memory."""

    seconds: list[float]
    peak_bytes: int | None = None


def take_turns(
    contestants: Sequence[Contestant],
    rounds: int,
    updates: int,
    device: torch.device,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Measured]:
    """Rounds in which every contestant has one turn; who begins changes from round to round.

    Args:
        contestants: With different names.
        rounds: Turns of each.
        updates: Timed updates in a turn.
        device: Where they compute.
        say: Takes a line about progress.
        clock: Seconds, for the CPU; on CUDA the device's own clock is taken.
    """
    found = {contestant.name: Measured([]) for contestant in contestants}
    warm_up = 3 if device.type == "cuda" else 1  # fills caches; the first turn also compiles and chooses kernels
    for number in range(rounds):
        first = number % len(contestants)
        for contestant in [*contestants[first:], *contestants[:first]]:
            for _ in range(warm_up):
                contestant.update()
            mine = found[contestant.name]
            before, resident = _watch_memory(contestant, device)
            mine.seconds.append(_seconds_per_update(contestant.update, updates, device, clock))
            if device.type == "cuda":
                # What the others keep on the device is not this contestant's.
                peak = torch.cuda.max_memory_allocated(device) - before + resident
                mine.peak_bytes = max(peak, mine.peak_bytes or 0)
        say(f"round {number + 1} of {rounds} done")
    return found


def _watch_memory(contestant: Contestant, device: torch.device) -> tuple[int, int]:
    """Bytes in use on the device, and those of them that are the contestant's; the peak counts from here."""
    if device.type != "cuda":
        return 0, 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device), contestant.resident_bytes()


def _seconds_per_update(
    update: Callable[[], object], updates: int, device: torch.device, clock: Callable[[], float]
) -> float:
    """Mean time of `updates` updates in a row."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(updates):
            update()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / updates
    begin = clock()
    for _ in range(updates):
        update()
    return (clock() - begin) / updates


def summarise(measured: dict[str, Measured], base: str, images: int) -> list[dict[str, Any]]:
    """One JSON-able row for each contestant, in order.

    Args:
        measured: From `take_turns`.
        base: Whose speed is 1; ratios are taken within a round, then their median over rounds.
        images: Of one update.
    """
    rows = []
    for name, one in measured.items():
        ratios = [theirs / own for theirs, own in zip(measured[base].seconds, one.seconds, strict=True)]
        rows.append(
            {
                "step": name,
                "images_per_second": images / median(one.seconds),
                "seconds_per_update": median(one.seconds),
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "peak_bytes": one.peak_bytes,
                "seconds_by_round": one.seconds,
            }
        )
    return rows
