"""What the device can do at most: arithmetic, moving memory, gathering samples, and copying from the host.

Random numbers throughout, because zeros can be faster than data will be.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from tests.gpu.check.task import Task

WARM_UPS, REPEATS = 5, 20
GIB = 2**30


def run(task: Task) -> None:
    """Measure one after the other; one that fails is said, and the next ones are measured."""
    for measure in (_matmul, _copy, _gather, _from_host):
        try:
            measure(task)
        except Exception as error:
            task.figures.fail(measure.__name__.strip("_"), error)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """The median time of a call, by the device's own clock where it has one."""
    for _ in range(WARM_UPS):
        call()
    if device.type != "cuda":
        times = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    pairs = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) / 1000 for start, end in pairs)


def _matmul(task: Task) -> None:
    side = 256 if task.tiny else 8192
    a, b = (torch.randn(side, side, device=task.device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    seconds = seconds_of(lambda: torch.matmul(a, b, out=product), task.device)
    task.figures.add("matmul", side=side, dtype="bf16", seconds=seconds, flops=2 * side**3 / seconds)


def _copy(task: Task) -> None:
    # Large enough not to stay in the device's cache, small enough for any device.
    size = 2**22 if task.tiny else min(2 * GIB, torch.cuda.mem_get_info(task.device)[0] // 4)
    source = _bytes(size, device=task.device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), task.device)
    moved = 2 * size  # read and written
    task.figures.add("copy", bytes=moved, seconds=seconds, bytes_per_second=moved / seconds)


def _gather(task: Task) -> None:
    """What a resident data set does for every batch, see `ali_dist.data.resident`."""
    rows, width, count = 1024, 3 * 32 * 32, 2_000 if task.tiny else 50_000
    samples = _bytes(count, width, device=task.device)
    ids = torch.randint(0, count, (rows,), device=task.device)
    seconds = seconds_of(lambda: samples.index_select(0, ids), task.device)
    moved = 2 * rows * width
    task.figures.add("gather", rows=rows, row_bytes=width, seconds=seconds, bytes_per_second=moved / seconds)


def _from_host(task: Task) -> None:
    """The floor of streaming: from pinned memory, as `ali_dist.data.streaming` copies."""
    if task.device.type != "cuda":
        return
    size = GIB // 4
    host = _bytes(size, device=torch.device("cpu")).pin_memory()
    there = torch.empty_like(host, device=task.device)
    seconds = seconds_of(lambda: there.copy_(host, non_blocking=True), task.device)
    task.figures.add("from host", bytes=size, seconds=seconds, bytes_per_second=size / seconds)


def _bytes(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randint(0, 256, shape, device=device, dtype=torch.uint8)
