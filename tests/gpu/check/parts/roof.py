"""The most that the device can do: arithmetic, moving memory, gathering samples, and copying from the host.

All of it is measured on random numbers, because zeros can be faster than real data.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from tests.gpu.check.task import PartTask

WARM_UP_CALLS, TIMED_CALLS = 5, 20
GIB = 2**30


def run_part(task: PartTask) -> None:
    """Measure one limit after the other; one that fails is reported, and the next is measured."""
    limits = {
        "matmul": _measure_matmul,
        "copy": _measure_copy,
        "gather": _measure_gather,
        "from_host": _measure_from_host,
    }
    for name, measure in limits.items():
        try:
            measure(task)
        except Exception as error:
            task.figures.add_failure(name, error)


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Measure the median time of a call, by the device's own clock where it has one."""
    for _ in range(WARM_UP_CALLS):
        call()
    if device.type != "cuda":
        times = []
        for _ in range(TIMED_CALLS):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return statistics.median(times)
    pairs = []
    for _ in range(TIMED_CALLS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) / 1000 for start, end in pairs)


def _measure_matmul(task: PartTask) -> None:
    side = 256 if task.is_tiny else 8192
    a, b = (torch.randn(side, side, device=task.device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    seconds = median_seconds(lambda: torch.matmul(a, b, out=product), task.device)
    task.figures.add("matmul", side=side, dtype="bf16", seconds=seconds, flops=2 * side**3 / seconds)


def _measure_copy(task: PartTask) -> None:
    # Large enough not to stay in the device's cache, small enough for any device.
    size = 2**22 if task.is_tiny else min(2 * GIB, torch.cuda.mem_get_info(task.device)[0] // 4)
    source = _random_bytes(size, device=task.device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), task.device)
    moved = 2 * size  # bytes are read and written
    task.figures.add("copy", bytes=moved, seconds=seconds, bytes_per_second=moved / seconds)


def _measure_gather(task: PartTask) -> None:
    """Gather rows as a resident data set does for every batch, see `ali_dist.data.resident`."""
    rows, width, count = 1024, 3 * 32 * 32, 2_000 if task.is_tiny else 50_000
    samples = _random_bytes(count, width, device=task.device)
    ids = torch.randint(0, count, (rows,), device=task.device)
    seconds = median_seconds(lambda: samples.index_select(0, ids), task.device)
    moved = 2 * rows * width
    task.figures.add("gather", rows=rows, row_bytes=width, seconds=seconds, bytes_per_second=moved / seconds)


def _measure_from_host(task: PartTask) -> None:
    """Copy from pinned memory, as `ali_dist.data.streaming` does; streaming cannot be faster."""
    if task.device.type != "cuda":
        return
    size = GIB // 4
    host = _random_bytes(size, device=torch.device("cpu")).pin_memory()
    on_device = torch.empty_like(host, device=task.device)
    seconds = median_seconds(lambda: on_device.copy_(host, non_blocking=True), task.device)
    task.figures.add("from host", bytes=size, seconds=seconds, bytes_per_second=size / seconds)


def _random_bytes(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randint(0, 256, shape, device=device, dtype=torch.uint8)
