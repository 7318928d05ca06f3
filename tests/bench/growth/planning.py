"""What opening a split and planning an epoch cost, over its shards and samples; and reading ever smaller shards.

To plan, no image need exist: indexes are made up, and their tars are files with holes.
"""

from __future__ import annotations

import gc
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ali_dist.data.loader import make_order, open_batches
from ali_dist.data.order import DataOrder
from ali_dist.data.shards.index import Index, Shard, load_index
from ali_dist.data.shards.reader import ShardReader
from ali_dist.storage.local import LocalStore
from tests.bench.data.turns import cpu_seconds
from tests.bench.growth.panels import Curve, Panel
from tests.helpers.arrays import make_labelled_arrays, write_arrays

SHAPE = (3, 32, 32)
STORED_BYTES = 4608  # of a sample of that shape in a tar: 512 of its header, 1,024 of its label, and padding
LANES, BATCH = 32, 64
SPLIT_SAMPLES = 1_000_000  # over which shards grow
SHARD_SAMPLES = 10_000  # of a shard, where samples grow
READ_SHAPE = (3, 16, 16)
_LOADED, _LISTED, _PLANNED = "index.json read and checked, ms", "shards listed and compared, ms", "epoch planned, ms"
_SHARD_KEYS = {_LOADED: "index.json", _LISTED: "listing", _PLANNED: "plan of an epoch"}
_WINDOWS, _IDS = "windows planned (streaming), ms", "every id listed (RAM), ms"
_SAMPLE_KEYS = {_WINDOWS: "windows", _IDS: "every id"}
_RESIDENCIES = {"stream": "streamed", "ram": "read into RAM"}


def make_index(samples: int, shards: int) -> Index:
    """An index of shards of equal size, without anything in them."""
    each, rest = divmod(samples, shards)
    counts = [each + (number < rest) for number in range(shards)]
    digest = "0" * 64
    listed = (Shard(f"{i:05d}.tar", count * STORED_BYTES, count, digest, digest) for i, count in enumerate(counts))
    per_channel = (0.5,) * SHAPE[0]
    return Index(
        encoding="raw",
        dtype="uint8",
        shape=SHAPE,
        shards=tuple(listed),
        mean=per_channel,
        std=per_channel,
        pixel_mean=(0.5,) * (SHAPE[0] * SHAPE[1] * SHAPE[2]),
    )


def write_hollow(folder: Path, index: Index) -> LocalStore:
    """Write the index, and for each shard files without content."""
    (folder / "index.json").write_text(index.to_json(), encoding="utf-8")
    for shard in index.shards:
        (folder / shard.sidecar_key).touch()
        with (folder / shard.key).open("wb") as file:
            file.truncate(shard.bytes)
    return LocalStore(folder)


def make_bench_order(index: Index) -> DataOrder:
    """The order of a split as a run has it."""
    return make_order(index, seed=0, lanes=LANES, global_batch_size=BATCH)


def plan_epoch(order: DataOrder, epoch: int) -> int:
    """All windows of an epoch, as streaming plans them; returns how many there are."""
    return sum(len(order.windows(epoch, lane)) for lane in range(order.lanes))


def list_ids(order: DataOrder, epoch: int) -> int:
    """The id of every sample in the order of use, as data in memory need it; returns how many there are."""
    return sum(len(ids) for ids in [order.lane_ids(epoch, lane) for lane in range(order.lanes)])


def time_cpu(work: Callable[[int], object], rounds: int) -> float:
    """CPU seconds of this process for `work(number of the round)`; the median over rounds."""
    times = []
    for number in range(rounds):
        gc.collect()
        began = time.process_time()
        work(number)
        times.append(time.process_time() - began)
    return median(times)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that `work` has held at a time, without what was held before."""
    tracemalloc.start()
    try:
        kept = work()
        peak = tracemalloc.get_traced_memory()[1]
        del kept
    finally:
        tracemalloc.stop()
    return peak


# ---- parts -----------------------------------------------------------------------------------------------------------


def measure_shards(shards: Sequence[int], read_shards: Sequence[int], rounds: int) -> list[Panel]:
    """What shards cost before the first batch, and while they are read."""
    points: dict[str, list[tuple[float, float]]] = {}
    for number in shards:
        for name, value in _cost_of_shards(make_index(SPLIT_SAMPLES, number), rounds).items():
            points.setdefault(name, []).append((number, value))
    return [
        Panel(
            title="Shards",
            x="shards",
            y="CPU ms",
            curves=tuple(Curve(name, tuple(own), _SHARD_KEYS.get(name, "")) for name, own in points.items()),
            log=True,
            remark=f"{SPLIT_SAMPLES:,} samples of 32x32 in all, in a folder",
        ),
        _measure_reading(read_shards, rounds),
    ]


def _cost_of_shards(index: Index, rounds: int) -> dict[str, float]:
    order = make_bench_order(index)
    with tempfile.TemporaryDirectory() as folder:
        store = write_hollow(Path(folder), index)
        return {
            _LOADED: 1e3 * time_cpu(lambda _: load_index(store), rounds),
            _LISTED: 1e3 * time_cpu(lambda _: ShardReader(store, index), rounds),
            _PLANNED: 1e3 * time_cpu(lambda epoch: plan_epoch(order, epoch), rounds),
            "index in memory, MB": peak_bytes(lambda: load_index(store)) / 1e6,
        }


def _measure_reading(shards: Sequence[int], rounds: int) -> Panel:
    samples = max(4096, max(shards))
    samples -= samples % max(shards)
    x, y = make_labelled_arrays(samples, shape=READ_SHAPE)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in _RESIDENCIES}
    for number in shards:
        with tempfile.TemporaryDirectory() as folder:
            store, index = write_arrays(Path(folder), x, y, per_shard=-(-samples // number))
            for residency, own in rates.items():
                own.append((len(index.shards), median(_read_rate(store, index, residency) for _ in range(rounds))))
    return Panel(
        title="Reading",
        x="shards",
        y="images per CPU-second",
        curves=tuple(Curve(_RESIDENCIES[name], tuple(own), _RESIDENCIES[name]) for name, own in rates.items()),
        log=True,
        remark=f"{samples:,} raw samples of 16x16 in all, in a folder; opening them and the batches of one epoch",
    )


def _read_rate(store: LocalStore, index: Index, residency: Any) -> float:
    """Images of one epoch per CPU-second."""
    began = cpu_seconds()
    batches = open_batches(
        store,
        index,
        seed=0,
        lanes=LANES,
        global_batch_size=BATCH,
        rank=0,
        world_size=1,
        start_step=0,
        device=torch.device("cpu"),
        residency=residency,
    )
    with batches:
        images = sum(len(next(batches).x) for _ in range(index.num_samples // BATCH))
    return images / (cpu_seconds() - began)


def measure_samples(samples: Sequence[int], rounds: int) -> list[Panel]:
    """What planning an epoch costs over the number of samples."""
    points: dict[str, list[tuple[float, float]]] = {}
    for number in samples:
        order = make_bench_order(make_index(number, -(-number // SHARD_SAMPLES)))
        for name, value in _cost_of_samples(order, rounds).items():
            points.setdefault(name, []).append((number, value))
    return [
        Panel(
            title="Samples",
            x="samples",
            y="CPU ms of an epoch's plan",
            curves=tuple(Curve(name, tuple(own), _SAMPLE_KEYS.get(name, "")) for name, own in points.items()),
            log=True,
            remark=f"32x32, {SHARD_SAMPLES:,} a shard, {LANES} lanes, windows of 32 MB; all ranks' lanes together",
        )
    ]


def _cost_of_samples(order: DataOrder, rounds: int) -> dict[str, float]:
    return {
        _WINDOWS: 1e3 * time_cpu(lambda epoch: plan_epoch(order, epoch), rounds),
        _IDS: 1e3 * time_cpu(lambda epoch: list_ids(order, epoch), rounds),
        "windows": plan_epoch(order, 0),
        "memory of the ids, MB": peak_bytes(lambda: list_ids(order, 0)) / 1e6,
    }
