"""Exactly once, over shard layouts, world sizes, stops and resumes, within the bytes and memory that are promised."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ali_dist.data.loader import make_order
from ali_dist.data.order import DataOrder, SampleRun, Window
from ali_dist.data.shards.index import Index, load_sidecar
from ali_dist.data.shards.reader import READERS
from tests.helpers.arrays import WatchedStore
from tests.helpers.batches import open_batch_source
from tests.helpers.layouts import read_ids, write_layout

pytestmark = pytest.mark.timeout(120)
SEED = 5
UNEVEN = (1, 19, 2, 0, 5, 3, 0, 11, 1, 1, 7, 2, 4)


def batches_of_all_ranks(
    store: Any, index: Index, residency: str, *, start: int, steps: int, world_size: int, **sizes: Any
) -> list[list[int]]:
    """The ids of some global batches, put together from all ranks, which go on step by step beside each other."""
    with ExitStack() as stack:
        sources = [
            stack.enter_context(
                open_batch_source(
                    store,
                    index,
                    residency=residency,
                    start_step=start,
                    rank=rank,
                    world_size=world_size,
                    prefetch=1,
                    **sizes,
                )
            )
            for rank in range(world_size)
        ]
        together = []
        for _ in range(steps):
            ids: list[int] = []
            for source in sources:
                batch = next(source)
                assert batch.y is not None
                assert len(batch.ids)
                assert read_ids(batch.x.numpy()) == batch.ids.tolist()
                assert batch.y.tolist() == (batch.ids % 10).tolist()
                ids += batch.ids.tolist()
            together.append(ids)
    return together


def check_epochs(batches: list[list[int]], order: DataOrder) -> None:
    """Whole epochs use every sample once, but for the counted tail; a part of one uses none twice."""
    for begin in range(0, len(batches), order.steps_per_epoch):
        epoch = [id_ for batch in batches[begin : begin + order.steps_per_epoch] for id_ in batch]
        assert len(set(epoch)) == len(epoch)
        if len(batches) - begin >= order.steps_per_epoch:
            assert order.num_samples - len(epoch) == order.dropped_per_epoch


def expected_batches(order: DataOrder, steps: int) -> list[list[int]]:
    return [order.batch_ids(*divmod(step, order.steps_per_epoch)).tolist() for step in range(steps)]


@pytest.mark.parametrize("residency", ["stream", "ram"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_layout_is_used_exactly_once_through_any_stops_and_changes_of_world_size(
    residency: str, data: st.DataObject
) -> None:
    shards = data.draw(st.lists(st.integers(0, 23), min_size=1, max_size=13), label="shards")
    lanes = data.draw(st.integers(1, 6), label="lanes")
    sizes: dict[str, Any] = {
        "lanes": lanes,
        "global_batch_size": lanes * data.draw(st.integers(1, 4), label="lane batch"),
        "window_mb": data.draw(st.sampled_from([1e-6, 0.01, 0.03, 1.0]), label="window"),
    }
    assume(sum(shards) >= sizes["global_batch_size"])
    store, index = write_layout(shards)
    order = make_order(index, seed=SEED, **sizes)
    end = min(order.steps_per_epoch + 3, 40)
    stops = sorted(data.draw(st.sets(st.integers(1, end), max_size=2), label="stops") | {0, end})
    batches: list[list[int]] = []
    for start, stop in zip(stops[:-1], stops[1:], strict=True):
        world_size = data.draw(st.integers(1, lanes), label="world size")
        batches += batches_of_all_ranks(
            store, index, residency, start=start, steps=stop - start, world_size=world_size, **sizes
        )
    assert batches == expected_batches(order, end)
    check_epochs(batches, order)


@pytest.mark.parametrize("residency", ["stream", "ram"])
@pytest.mark.parametrize(
    ("shards", "lanes", "batch"),
    [((1,), 1, 1), ((0, 1, 0), 1, 1), ((24,), 4, 4), ((13, 12), 6, 12), (UNEVEN, 4, 8)],
    ids=["one sample", "empty shards", "one shard", "more ranks than shards", "13 uneven shards"],
)
def test_every_stop_point_and_every_world_size(residency: str, shards: tuple[int, ...], lanes: int, batch: int) -> None:
    """Each way through an epoch and a bit stops once, at another step each time, and goes on at another world size."""
    sizes: dict[str, Any] = {"lanes": lanes, "global_batch_size": batch, "window_mb": 0.005}
    store, index = write_layout(shards)
    order = make_order(index, seed=SEED, **sizes)
    end = order.steps_per_epoch + 1
    whole = expected_batches(order, end)
    for stop in range(end + 1):
        before, after = 1 + stop % lanes, 1 + (stop + lanes // 2) % lanes
        broken = [
            *batches_of_all_ranks(store, index, residency, start=0, steps=stop, world_size=before, **sizes),
            *batches_of_all_ranks(store, index, residency, start=stop, steps=end - stop, world_size=after, **sizes),
        ]
        assert broken == whole
    check_epochs(whole, order)


# ---- What is read, and what memory it takes -----------------------------------------------------------------------


def reads_of(store: Any, index: Index, windows: list[Window]) -> Counter[tuple[str, int, int]]:
    """The range reads (key, first byte, length) that bring these windows."""

    def read_of(run: SampleRun) -> tuple[str, int, int]:
        sidecar = load_sidecar(store, index, run.shard)
        start = int(sidecar.offsets[run.start])
        end = int(sidecar.offsets[run.stop - 1] + sidecar.sizes[run.stop - 1])
        return index.shards[run.shard].key, start, end - start

    return Counter(read_of(run) for window in windows for run in window.runs)


def count_bytes(reads: Counter[tuple[str, int, int]]) -> int:
    return sum(length * times for (_, _, length), times in reads.items())


def all_windows(order: DataOrder, epoch: int) -> list[Window]:
    return [window for lane in range(order.lanes) for window in order.windows(epoch, lane)]


LARGER = UNEVEN * 6  # so that what is read ahead lies within one more epoch
SIZES: dict[str, Any] = {"lanes": 4, "global_batch_size": 8, "window_mb": 0.012}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_an_epoch_fetches_each_byte_once_at_any_world_size(world_size: int) -> None:
    store, index = write_layout(LARGER)
    order = make_order(index, seed=SEED, **SIZES)
    watched = WatchedStore(store)
    batches_of_all_ranks(watched, index, "stream", start=0, steps=order.steps_per_epoch, world_size=world_size, **SIZES)
    needed = reads_of(store, index, all_windows(order, 0))
    assert not needed - Counter(watched.reads), "everything was read"
    ahead = Counter(watched.reads) - needed
    assert not ahead - reads_of(store, index, all_windows(order, 1)), "what is read ahead belongs to the next epoch"
    spans = sorted((key, start, start + length) for key, start, length in needed.elements())
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in zip(spans[:-1], spans[1:], strict=True)), "reads overlap"


@pytest.mark.parametrize("stop", [1, 2, 7, 20, 38])
def test_resuming_reads_at_most_one_window_of_each_lane_again(stop: int) -> None:
    store, index = write_layout(LARGER)
    order = make_order(index, seed=SEED, **SIZES)
    watched = WatchedStore(store)
    rest = order.steps_per_epoch - stop
    batches_of_all_ranks(watched, index, "stream", start=stop, steps=rest, world_size=3, **SIZES)
    ahead = reads_of(store, index, all_windows(order, 1))
    position = stop * order.lane_batch_size
    again = [window for window in all_windows(order, 0) if window.start < position < window.stop]
    needed = again + [window for window in all_windows(order, 0) if window.start >= position]
    read = Counter(watched.reads)
    assert max(Counter(window.lane for window in again).values(), default=0) <= 1
    assert not reads_of(store, index, needed) - read
    assert not read - reads_of(store, index, needed) - ahead
    assert count_bytes(read - ahead) <= count_bytes(reads_of(store, index, needed))


@pytest.mark.parametrize("world_size", [1, 2])
def test_memory_stays_within_the_stated_budget(world_size: int) -> None:
    """(lanes of the rank + 2 * READERS) windows and prefetch + 2 batches, and a tenth of that for all the rest."""
    sample_bytes, window_mb, prefetch = 20_000, 0.4, 1
    sizes: dict[str, Any] = {"lanes": 4, "global_batch_size": 8, "window_mb": window_mb}
    store, index = write_layout([97, 3, 200, 50, 350, 100], sample_bytes=sample_bytes)
    order = make_order(index, seed=SEED, **sizes)
    lanes = 4 // world_size
    budget = (lanes + 2 * READERS) * window_mb * 1e6 + (prefetch + 2) * 8 / world_size * sample_bytes
    assert budget * 3 < index.num_samples * 2 * sample_bytes, "the data must not fit"
    options = {"world_size": world_size, "prefetch": prefetch, **sizes}
    tracemalloc.start()
    try:
        with open_batch_source(store, index, **options) as source:
            for step in range(2 * order.steps_per_epoch):
                next(source)
                if step % 40 == 0:
                    time.sleep(0.02)  # so that everything that may be read ahead is there
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.1 * budget < peak < 1.1 * budget


def test_an_epoch_of_ten_million_samples_is_planned_whole() -> None:
    """How long it takes is for `python -m tests.bench.data` to say."""
    order = DataOrder(
        shard_samples=(10_000,) * 1_000,
        sample_bytes=7_682,
        seed=0,
        lanes=64,
        global_batch_size=1024,
        window_bytes=32_000_000,
    )
    windows = all_windows(order, 0)
    assert sum(window.stop - window.start for window in windows) == order.steps_per_epoch * 1024
    assert np.all([len(window.runs) <= 3 for window in windows])
