"""Streaming: what is read and when, how errors reach the consumer, and how it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ali_dist.data.loader import make_order
from ali_dist.data.order import lanes_of_rank
from ali_dist.data.shards.index import Index, load_sidecar
from ali_dist.data.shards.reader import READERS
from ali_dist.storage.base import ChangedObject
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import WatchedStore, write_arrays
from tests.helpers.batches import LANES, STEPS, B, X, Y, drain_batches, open_batch_source, take_batches

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, Index]:
    store, index = write_arrays(tmp_path_factory.mktemp("shards"), X, Y)
    assert len({shard.samples for shard in index.shards}) > 1, "the shards must be uneven"
    return store, index


def test_an_epoch_reads_each_run_once_and_a_rank_only_its_lanes(data: tuple[LocalStore, Index]) -> None:
    """A rank that stops at the end of an epoch has read its lanes' runs and what is read ahead."""
    store, index = data
    order = make_order(index, seed=5, lanes=LANES, global_batch_size=B, window_mb=0.03)
    own_lanes = lanes_of_rank(LANES, 1, 2)
    own_runs = [run for lane in own_lanes for window in order.windows(0, lane) for run in window.runs]
    watched_store = WatchedStore(store)
    take_batches(open_batch_source(watched_store, index, rank=1, world_size=2, prefetch=1), STEPS)
    assert len(set(watched_store.reads)) == len(watched_store.reads), "no range was read twice"
    ahead = [w for lane in own_lanes for w in order.windows(1, lane)]
    assert len(own_runs) <= len(watched_store.reads) <= len(own_runs) + sum(len(w.runs) for w in ahead)


def test_resuming_does_not_read_windows_that_are_behind(data: tuple[LocalStore, Index]) -> None:
    store, index = data
    order = make_order(index, seed=5, lanes=LANES, global_batch_size=B, window_mb=0.015)
    whole, resumed = WatchedStore(store), WatchedStore(store)
    start = STEPS - 3
    take_batches(open_batch_source(whole, index, window_mb=0.015), STEPS)
    take_batches(open_batch_source(resumed, index, window_mb=0.015, start_step=start), 3)
    behind = [w for lane in range(LANES) for w in order.windows(0, lane) if w.stop <= start * order.lane_batch_size]
    needed = {
        run
        for lane in range(LANES)
        for w in order.windows(0, lane)
        if w.stop > start * order.lane_batch_size
        for run in w.runs
    }
    assert len(behind) > LANES
    passed = {(index.shards[run.shard].key, run.start) for w in behind for run in w.runs}
    first_of = _first_samples(store, index)
    read = {(key, first_of[key][start]) for key, start, _ in resumed.reads[: len(needed)]}
    assert not passed & read
    assert len(resumed.reads) < len(whole.reads)


def _first_samples(store: LocalStore, index: Index) -> dict[str, dict[int, int]]:
    return {
        shard.key: {int(offset): n for n, offset in enumerate(load_sidecar(store, index, number).offsets)}
        for number, shard in enumerate(index.shards)
    }


def test_reading_ahead_stops_at_the_bound_when_nobody_consumes(data: tuple[LocalStore, Index]) -> None:
    """At most the windows that the batches in the queue (and one in hand) need are read, and READERS more."""
    store, index = data
    prefetch = 2
    order = make_order(index, seed=5, lanes=LANES, global_batch_size=B, window_mb=0.005)
    windows = sorted(
        (w for lane in range(LANES) for w in order.windows(0, lane)),
        key=lambda w: (w.start // order.lane_batch_size, w.lane, w.number),
    )
    needed = sum(w.start < (prefetch + 1) * order.lane_batch_size for w in windows)
    bound = sum(len(w.runs) for w in windows[: needed + READERS + 1])
    assert bound < sum(len(w.runs) for w in windows) / 2
    watched_store = WatchedStore(store)
    with open_batch_source(watched_store, index, window_mb=0.005, prefetch=prefetch):
        settled = -1
        while settled != len(watched_store.reads):
            settled = len(watched_store.reads)
            time.sleep(0.2)
        assert 0 < settled <= bound


def test_an_error_of_a_reading_thread_reaches_the_consumer_as_it_is(data: tuple[LocalStore, Index]) -> None:
    problem = OSError("cable pulled")

    def fail_late(key: str, start: int) -> None:
        if len(watched_store.reads) > 12:
            raise problem

    watched_store = WatchedStore(data[0], before=fail_late)
    with open_batch_source(watched_store, data[1]) as source, pytest.raises(OSError, match="cable pulled") as caught:
        drain_batches(source, 10 * STEPS)
    assert caught.value is problem


def test_a_shard_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    store, index = write_arrays(tmp_path, X, Y)
    with open_batch_source(store, index, prefetch=1) as source:
        next(source)
        for shard in index.shards:
            store.put(shard.key, store.get(shard.key))
        with pytest.raises(ChangedObject):
            drain_batches(source, 3 * STEPS)


@pytest.fixture
def own_threads() -> Iterator[set[threading.Thread]]:
    """The threads that exist before the test; afterwards there must be no others, once they had time to end."""
    before = set(threading.enumerate())
    yield before
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize(("consumed", "settle"), [(0, 0.0), (1, 0.0), (1, 0.3), (30, 0.3)])
def test_close_ends_every_thread(
    data: tuple[LocalStore, Index], own_threads: set[threading.Thread], consumed: int, settle: float
) -> None:
    """Close is called while windows are read, and when all threads wait for a consumer that takes no more."""
    source = open_batch_source(*data, prefetch=1)
    drain_batches(source, consumed)
    time.sleep(settle)
    source.close()
    assert not set(threading.enumerate()) - own_threads
    source.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(source)


def test_close_returns_while_a_read_hangs_and_the_thread_ends_with_the_read(
    data: tuple[LocalStore, Index], own_threads: set[threading.Thread]
) -> None:
    release, hanging = threading.Event(), threading.Event()

    def hang(key: str, start: int) -> None:
        hanging.set()
        release.wait()

    with ExitStack() as stack:
        stack.callback(release.set)
        source = open_batch_source(WatchedStore(data[0], before=hang), data[1])
        hanging.wait()
        source.close()  # returns although no read ever does
        assert not release.is_set()


def test_ctrl_c_interrupts_waiting_for_a_batch_and_close_still_works(
    data: tuple[LocalStore, Index], own_threads: set[threading.Thread]
) -> None:
    release = threading.Event()

    def interrupt_and_hang(key: str, start: int) -> None:
        inside.wait()  # earlier there is nothing yet that close() could be called on
        if not interrupted.is_set():
            interrupted.set()
            os.kill(os.getpid(), signal.SIGINT)
        release.wait()

    inside, interrupted = threading.Event(), threading.Event()
    with ExitStack() as stack:
        stack.callback(release.set)
        with pytest.raises(KeyboardInterrupt):
            wait_for_a_batch(WatchedStore(data[0], before=interrupt_and_hang), data[1], inside)


def wait_for_a_batch(store: WatchedStore, index: Index, inside: threading.Event) -> None:
    with open_batch_source(store, index) as source:
        inside.set()
        next(source)


def test_an_exception_in_the_training_loop_ends_the_threads(
    data: tuple[LocalStore, Index], own_threads: set[threading.Thread]
) -> None:
    def loop() -> None:
        with open_batch_source(*data) as source:
            next(source)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert not set(threading.enumerate()) - own_threads
