"""How an update grows with its batch, with the side of pictures, and with ranks; and what it looks like in time.

Each point is measured in processes of its own, so that memory is that of the point alone.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, record_function

from ali_dist.distributed import World
from ali_dist.training.host_allocator import freed_memory_kept
from ali_dist.training.state import TrainState, build_train_state
from ali_dist.training.step import loss_weights_at
from tests.bench.floor_cases import CASES, FloorCase, configure, draw_batch, index_of
from tests.bench.floor_count import count_update
from tests.bench.growth.model import Link, describe_work, update_seconds
from tests.bench.growth.panels import Curve, Panel, Points, Span, Timeline
from tests.helpers.distributed import run_distributed

CPU = torch.device("cpu")
PRESET = "shapes"  # of the batch and the ranks: networks of a usual depth, with a penalty and global batch norm
WIDTH = 0.25  # factor on the channels, so that a point takes some seconds
SIDE_BATCH = 8
RANKS_BATCH = 64
LIMIT = 300.0  # seconds of one point
_BACKWARD, _REDUCE, _DERIVATIVE = "call of backward", "gloo:all_reduce", "autograd::engine::evaluate_function"


@dataclass(frozen=True, slots=True)
class Timing:
    """What one rank took for an update: CPU seconds of all its threads, and seconds on the clock.

    Attributes:
        cpu: The first.
        wall: The second.
        peak_bytes: The most memory that its process has had.
    """

    cpu: float
    wall: float
    peak_bytes: int


# ---- in the processes of the ranks -----------------------------------------------------------------------------------


def make_update(case: FloorCase, batch: int, width: float | None, rank: int) -> tuple[TrainState, Callable[[], object]]:
    """An update of a rank as training does it, on the same drawn samples each time. Collective."""
    ranks = dist.get_world_size()
    config = configure(case, batch=batch, width=width)
    state = build_train_state(config, index_of(case), CPU, World(rank, rank, ranks))
    inputs = draw_batch(configure(case, batch=batch // ranks, width=width), state.ali, state.space, CPU)
    return state, partial(state.update, inputs, loss_weights_at(config.objective, 0, 1.0))


def time_updates(rank: int, case: FloorCase, batch: int, width: float | None, updates: int, rounds: int) -> Timing:
    """Time updates in rounds, after one that is not counted; the median over rounds. Collective."""
    _, update = make_update(case, batch, width, rank)
    cpu, wall = [], []
    with freed_memory_kept():  # as in a run
        update()
        for _ in range(rounds):
            dist.barrier()
            began_cpu, began = time.process_time(), time.perf_counter()
            for _ in range(updates):
                update()
            dist.barrier()
            cpu.append((time.process_time() - began_cpu) / updates)
            wall.append((time.perf_counter() - began) / updates)
    return Timing(median(cpu), median(wall), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def trace_update(rank: int, case: FloorCase, batch: int, width: float | None) -> tuple[Span, list[Span]]:
    """Trace one update: its backward passes (from the first to the end of the last), and each bucket's all-reduce.

    A backward pass ends with its last derivative: the call that makes it then waits for the all-reduces, which does
    not count. The profiler names all-reduces of gradients and of batch norm's sums alike; those of gradients have the
    size of a bucket.
    """
    state, update = make_update(case, batch, width, rank)
    for _ in range(2):
        update()
    sizes = _bucket_bytes(state)
    plain = state.step.backward

    def backward(*args: Any, **options: Any) -> None:
        with record_function(_BACKWARD):
            plain(*args, **options)

    state.step.backward = backward  # type: ignore[method-assign]
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        update()
    calls, derivatives, reductions = [], [], []
    for event in profiler.events() or ():
        begin, end = 1e-6 * event.time_range.start, 1e-6 * event.time_range.end
        if event.name == _BACKWARD:
            calls.append((begin, end))
        elif event.name.startswith(_DERIVATIVE):
            derivatives.append((begin, end))
        elif event.name == _REDUCE and len(event.input_shapes[0]) == 1:
            size = 4 * event.input_shapes[0][0]
            if size in sizes:
                sizes.remove(size)
                reductions.append((begin, end, size))
    start, (_, last) = min(calls)[0], max(calls)
    backward_end = max(end for begin, end in derivatives if begin < last)
    spans = [
        Span(f"{number}: {size / 1e6:.1f} MB", begin - start, end - start)
        for number, (begin, end, size) in enumerate(sorted(reductions), 1)
    ]
    return Span("backward", 0.0, backward_end - start), spans


def _bucket_bytes(state: TrainState) -> list[int]:
    wrappers = [module for module in state.step.networks.modules() if isinstance(module, DistributedDataParallel)]
    texts = [str(wrapper._get_ddp_logging_data()["rebuilt_bucket_sizes"]) for wrapper in wrappers]
    return [int(size) for text in texts for size in text.split(",")]


# ---- parts -----------------------------------------------------------------------------------------------------------


def measure_batch(batches: Sequence[int], rounds: int) -> list[Panel]:
    """Images/s of one update, and memory, over its batch."""
    rates, memory, rate_of_arithmetic = [], [], []
    operations = count_update(CASES[PRESET], batch=batches[0], width=WIDTH).total / batches[0]
    for batch in batches:
        updates = max(1, 1024 // batch)
        (timing,) = run_distributed(time_updates, 1, CASES[PRESET], batch, WIDTH, updates, rounds, timeout=LIMIT)
        rates.append((batch, batch / timing.cpu))
        memory.append((batch, timing.peak_bytes / 1e6))
        rate_of_arithmetic.append((batch, operations * batch / timing.cpu / 1e9))
    return [
        Panel(
            title="Batch",
            x="images of an update",
            y="images per CPU-second",
            curves=(
                Curve("images per CPU-second", tuple(rates), "rate"),
                Curve("GFLOP per CPU-second", tuple(rate_of_arithmetic)),
            ),
            remark=f"preset {PRESET} at {WIDTH:.0%} of its width, one thread",
        ),
        Panel(
            title="Memory",
            x="images of an update",
            y="peak MB of the process",
            curves=(Curve("peak MB of the process", tuple(memory), "memory"),),
            log=True,
            remark="the same runs",
        ),
    ]


def measure_side(sides: Sequence[int], rounds: int) -> list[Panel]:
    """Images/s over the side of pictures, and the arithmetic of an image."""
    rates, operations, per_second = [], [], []
    for side in sides:
        case = FloorCase(preset="images", shape=(3, side, side), sized=True)
        count = count_update(case, batch=SIDE_BATCH, width=WIDTH).total / SIDE_BATCH
        updates = max(1, int(8e9 / count / SIDE_BATCH))
        (timing,) = run_distributed(time_updates, 1, case, SIDE_BATCH, WIDTH, updates, rounds, timeout=LIMIT)
        rates.append((side, SIDE_BATCH / timing.cpu))
        operations.append((side, count / 1e6))
        per_second.append((side, count * SIDE_BATCH / timing.cpu / 1e9))
    return [
        Panel(
            title="Side",
            x="pixels of a side",
            y="rate, arithmetic",
            curves=(
                Curve("images per CPU-second", tuple(rates), "images per CPU-second"),
                Curve("MFLOP an image, counted", tuple(operations), "MFLOP an image"),
                Curve("GFLOP per CPU-second", tuple(per_second)),
            ),
            log=True,
            remark=f"preset images at {WIDTH:.0%} of its width, batch {SIDE_BATCH}, one thread",
        )
    ]


def measure_ranks(ranks: Sequence[int], rounds: int) -> list[Panel]:
    """Images/s of ranks on this machine, at the same global batch."""
    by_clock, by_cpu = [], []
    for number in ranks:
        timings = run_distributed(time_updates, number, CASES[PRESET], RANKS_BATCH, WIDTH, 8, rounds, timeout=LIMIT)
        by_clock.append((number, RANKS_BATCH / max(timing.wall for timing in timings)))
        by_cpu.append((number, RANKS_BATCH / sum(timing.cpu for timing in timings)))
    return [
        Panel(
            title="Ranks here",
            x="ranks",
            y="images",
            curves=(
                Curve("images/s by the clock", tuple(by_clock), "by the clock"),
                Curve("images per CPU-second of all ranks", tuple(by_cpu), "per CPU-second"),
            ),
            remark=f"preset {PRESET} at {WIDTH:.0%} of its width, {RANKS_BATCH} images of all ranks together, gloo",
        )
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledCase:
    """An update whose time on one rank is known.

    Attributes:
        name: Of the row in `CASES`, with the preset's own batch on each rank.
        seconds: Of an update on one rank.
        source: Where that time is from.
    """

    name: str
    seconds: float
    source: str


H100 = ModelledCase(name="celeba", seconds=0.02811, source="28.11 ms on one H100, bf16, from the table *On a GPU*")
GIGABITS = (10, 25, 100)
MODEL_LATENCY = 20e-6  # seconds; of TCP within a data centre


def model_ranks(ranks: Sequence[int], modelled: ModelledCase = H100) -> list[Panel]:
    """Images/s a rank by the model, each rank with the preset's batch."""
    case = CASES[modelled.name]
    count = count_update(case)
    work = describe_work(case, modelled.seconds, count.backward / (count.forward + count.backward))
    silent = replace(work, exchanges=0)
    curves = []
    for gigabits in GIGABITS:
        link = Link(bandwidth=gigabits * 1e9 / 8, latency=MODEL_LATENCY)
        points: Points = tuple((n, count.batch / update_seconds(work, n, link)) for n in ranks)
        curves.append(Curve(f"{gigabits} Gbit/s", points, f"{gigabits} Gbit/s"))
        without: Points = tuple((n, count.batch / update_seconds(silent, n, link)) for n in ranks)
        curves.append(Curve(f"{gigabits} Gbit/s, `scale.batch_norm local`", without))
    remark = (
        f"by the model, not measured: preset {modelled.name}, {count.batch} images on each rank, {modelled.source}; "
        f"{sum(work.buckets) / 1e6:.0f} MB of gradients in {len(work.buckets)} buckets, {work.exchanges} exchanges of "
        f"batch norm, {MODEL_LATENCY * 1e6:.0f} µs a message"
    )
    return [Panel(title="Ranks, modelled", x="ranks", y="images/s of a rank", curves=tuple(curves), remark=remark)]


def hidden_share(backward: Span, reductions: Sequence[Span]) -> float:
    """The share of the all-reduces' time that lies within the backward pass."""
    within = sum(max(0.0, min(span.end, backward.end) - max(span.begin, backward.begin)) for span in reductions)
    return within / sum(span.end - span.begin for span in reductions)


def trace_overlap(name: str, batch: int, width: float | None = None) -> list[Timeline]:
    """The all-reduces of an update of two ranks beside its backward pass, of rank 0."""
    backward, reductions = run_distributed(trace_update, 2, CASES[name], batch, width, timeout=LIMIT)[0]
    share = hidden_share(backward, reductions)
    remark = (
        f"preset {name}, {batch} images on 2 ranks, gloo, one update in torch's profiler, rank 0; "
        f"{share:.0%} of the time of the gradients' all-reduces lies within the backward pass"
    )
    return [Timeline(title="Gradients beside the backward pass", spans=(backward, *reductions), remark=remark)]
