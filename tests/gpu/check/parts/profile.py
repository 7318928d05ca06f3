"""Where the time of one update goes: kernels, gaps between them, memory, and the kernels that take longest."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench import step as bench
from tests.gpu.check.parts.roof import seconds_of
from tests.gpu.check.parts.step import TINY
from tests.gpu.check.task import Task

TOP = 15
# Categories of a trace in which the device itself is at work. On a CPU these are the operators, which call one another.
ON_DEVICE = {"cuda": ("kernel", "gpu_memcpy", "gpu_memset"), "cpu": ("cpu_op",)}


def run(task: Task) -> None:
    """The paper's CIFAR10 networks in the way that a run takes, in bf16 and eager; then with a batch of 1,024."""
    for batch in (2,) if task.tiny else (100, 1024):
        what = f"cifar10 batch {batch}"
        if not task.figures.fits(what, 3.0 if task.tiny else 15.0):
            continue
        try:
            _one(task, batch)
        except Exception as error:
            task.figures.fail(what, error)


def _one(task: Task, batch: int) -> None:
    device, updates = task.device, 1 if task.tiny else 10
    precision = "fp32" if task.tiny else "bf16"
    settings = bench.Settings(preset="cifar10", batch=batch, precision=precision, steps=("scaled",))
    _, ours = bench.make_contestants(settings, device, **(TINY if task.tiny else {}))
    for _ in range(3):
        ours.update()
    peak = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        ours.update()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    # Without the profiler, which slows the host down; in a row, so that the host can run ahead of the device.
    seconds = seconds_of(lambda: [ours.update() for _ in range(updates)], device) / updates
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as recorded:
        for _ in range(updates):
            ours.update()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    trace = task.work / f"trace-{batch}.json"
    recorded.export_chrome_trace(str(trace))
    figure = summarise(events_of(trace, ON_DEVICE[device.type]), updates, seconds)
    task.figures.add(
        "profile", preset="cifar10", batch=batch, precision=precision, step=ours.name, peak_bytes=peak, **figure
    )


def events_of(trace: Path, categories: tuple[str, ...]) -> list[dict[str, Any]]:
    """The events of a trace in these categories that last: `name`, `ts` and `dur` in microseconds."""
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and event.get("cat") in categories]


def summarise(events: list[dict[str, Any]], updates: int, seconds: float) -> dict[str, Any]:
    """What an update consists of.

    Args:
        events: What the device did in `updates` updates.
        updates: How many.
        seconds: The time of one update without the profiler.

    Returns:
        `seconds`; `busy`, in which at least one event is at work; `gaps`, the rest; `events`, their number; and `top`,
        the names that take longest, with their seconds and their number in an update.
    """
    busy = end = 0.0
    for event in sorted(events, key=lambda event: float(event["ts"])):
        begin, stop = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        busy += max(0.0, stop - max(begin, end))  # events overlap where there are several streams
        end = max(end, stop)
    busy = busy / 1e6 / updates
    times: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for event in events:
        times[event["name"]] += float(event["dur"]) / 1e6 / updates
        counts[event["name"]] += 1
    longest = sorted(times, key=lambda name: -times[name])[:TOP]
    return {
        "seconds": seconds,
        "busy": busy,
        "gaps": max(0.0, seconds - busy),
        "events": len(events) / updates,
        "top": [{"name": name, "seconds": times[name], "count": counts[name] / updates} for name in longest],
    }
