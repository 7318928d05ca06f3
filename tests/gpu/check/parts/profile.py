"""Where the time of one update goes: kernels, gaps between them, memory, and the kernels that take longest."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench import step as bench
from tests.gpu.check.parts.roof import median_seconds
from tests.gpu.check.parts.step import TINY_SETTINGS
from tests.gpu.check.task import PartTask

TOP_COUNT = 15
# Categories of a trace in which the device itself is at work. On a CPU these are the operators, which call one another.
ON_DEVICE = {"cuda": ("kernel", "gpu_memcpy", "gpu_memset"), "cpu": ("cpu_op",)}


def run_part(task: PartTask) -> None:
    """Profile the paper's CIFAR10 networks with the rule that a run takes, in bf16 and eager; then a larger batch."""
    for batch in (2,) if task.is_tiny else (100, 1024):
        what = f"cifar10 batch {batch}"
        if not task.figures.has_time_for(what, 3.0 if task.is_tiny else 15.0):
            continue
        try:
            _profile_update(task, batch)
        except Exception as error:
            task.figures.add_failure(what, error)


def _profile_update(task: PartTask, batch: int) -> None:
    device = task.device
    updates = 1 if task.is_tiny else 10
    precision = "fp32" if task.is_tiny else "bf16"
    step = "scaled" + (bench.REPLAYED if device.type == "cuda" else "")
    settings = bench.Settings(preset="cifar10", batch=batch, precision=precision, steps=(step,))
    _, contestant = bench.make_contestants(settings, device, **(TINY_SETTINGS if task.is_tiny else {}))
    for _ in range(5):
        contestant.update()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    # Measured without the profiler, which slows the host down, and in a row, so that the host can run ahead.
    seconds = median_seconds(lambda: [contestant.update() for _ in range(updates)], device) / updates
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as recorded:
        for _ in range(updates):
            contestant.update()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    trace = task.work / f"trace-{batch}.json"
    recorded.export_chrome_trace(str(trace))
    figure = summarize_trace(read_events(trace, ON_DEVICE[device.type]), updates, seconds)
    task.figures.add(
        "profile", preset="cifar10", batch=batch, precision=precision, step=contestant.name, peak_bytes=peak, **figure
    )


def read_events(trace: Path, categories: tuple[str, ...]) -> list[dict[str, Any]]:
    """Read the events of a trace that have a duration and one of these categories: `name`, `ts` and `dur` in µs."""
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and event.get("cat") in categories]


def summarize_trace(events: list[dict[str, Any]], updates: int, seconds: float) -> dict[str, Any]:
    """Summarize what an update consists of.

    Args:
        events: What the device did in `updates` updates.
        updates: The number of updates.
        seconds: The time of one update without the profiler.

    Returns:
        Of one update: `seconds`; `busy`, in which at least one event is in progress; `gaps`, the rest; `events`, their
        number; and `top`, the names that take longest, with their seconds and numbers.
    """
    busy = end = 0.0
    for event in sorted(events, key=lambda event: float(event["ts"])):
        event_start = float(event["ts"])
        event_end = event_start + float(event["dur"])
        busy += max(0.0, event_end - max(event_start, end))  # events overlap where there are several streams
        end = max(end, event_end)
    busy = busy / 1e6 / updates
    times: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for event in events:
        times[event["name"]] += float(event["dur"]) / 1e6 / updates
        counts[event["name"]] += 1
    longest = sorted(times, key=lambda name: -times[name])[:TOP_COUNT]
    return {
        "seconds": seconds,
        "busy": busy,
        "gaps": max(0.0, seconds - busy),
        "events": len(events) / updates,
        "top": [{"name": name, "seconds": times[name], "count": counts[name] / updates} for name in longest],
    }
