"""The order of samples: each is used once, at every world size in the same order, from any step on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ali_dist.data.order import DataOrder, find_substitutes, lanes_of_rank
from ali_dist.errors import InputError

SAMPLE_BYTES = 100

pytestmark = pytest.mark.timeout(60)


@st.composite
def orders(draw: st.DrawFn) -> DataOrder:
    """Orders of uneven, tiny and empty shards, more lanes than shards, and windows from one sample to a whole lane."""
    lanes = draw(st.integers(1, 9))
    batch = lanes * draw(st.integers(1, 5))
    shards = draw(st.lists(st.integers(0, 40), min_size=1, max_size=7))
    assume(sum(shards) >= batch)
    return DataOrder(
        shard_samples=tuple(shards),
        sample_bytes=SAMPLE_BYTES,
        seed=draw(st.integers(0, 2**31 - 1)),
        lanes=lanes,
        global_batch_size=batch,
        window_bytes=draw(st.integers(1, 80 * SAMPLE_BYTES)),
    )


def small_order(**changes: int | tuple[int, ...]) -> DataOrder:
    values = {
        "shard_samples": (37, 5, 64, 20),
        "sample_bytes": SAMPLE_BYTES,
        "seed": 3,
        "lanes": 4,
        "global_batch_size": 12,
        "window_bytes": 9 * SAMPLE_BYTES,
    }
    return DataOrder(**{**values, **changes})  # type: ignore[arg-type]


def epoch_ids(order: DataOrder, epoch: int) -> np.ndarray:
    return np.stack([order.batch_ids(epoch, step) for step in range(order.steps_per_epoch)])


many = settings(max_examples=40, deadline=None, derandomize=True)


@many
@given(orders(), st.integers(0, 3))
def test_an_epoch_uses_each_sample_at_most_once_and_drops_only_the_tail(order: DataOrder, epoch: int) -> None:
    ids = epoch_ids(order, epoch).ravel()
    assert len(ids) == order.steps_per_epoch * order.global_batch_size
    assert len(np.unique(ids)) == len(ids)
    assert ids.min() >= 0
    assert ids.max() < order.num_samples
    assert order.num_samples - len(ids) == order.dropped_per_epoch < order.global_batch_size


@many
@given(orders())
def test_every_world_size_sees_the_same_global_batches(order: DataOrder) -> None:
    for world_size, step in itertools.product(range(1, order.lanes + 1), range(min(3, order.steps_per_epoch))):
        parts = [order.batch_ids(1, step, lanes_of_rank(order.lanes, rank, world_size)) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), order.batch_ids(1, step))


@many
@given(orders())
def test_a_batch_taken_alone_equals_the_one_of_an_unbroken_epoch(order: DataOrder) -> None:
    b = order.lane_batch_size
    for lane in range(order.lanes):
        unbroken = order.lane_ids(2, lane)
        assert len(unbroken) == order.lane_samples
        for step in range(order.steps_per_epoch):
            assert np.array_equal(order.lane_batch_ids(2, step, lane), unbroken[step * b : (step + 1) * b])


@many
@given(orders())
def test_windows_tile_a_lane_and_their_runs_hold_exactly_their_samples_within_the_byte_bound(order: DataOrder) -> None:
    base = np.cumsum([0, *order.shard_samples])
    for lane in range(order.lanes):
        position = 0
        for number, window in enumerate(order.windows(0, lane)):
            assert (window.number, window.start) == (number, position)
            assert (window.stop - window.start) * SAMPLE_BYTES <= max(SAMPLE_BYTES, order.window_bytes)
            stored = [np.arange(run.start, run.stop) + base[run.shard] for run in window.runs]
            assert all(0 <= run.start < run.stop <= order.shard_samples[run.shard] for run in window.runs)
            assert sorted(np.concatenate(stored)) == sorted(order.window_ids(window))
            assert np.array_equal(np.concatenate(stored)[order.window_permutation(window)], order.window_ids(window))
            position = window.stop
        assert position == order.lane_samples


@pytest.mark.parametrize("shards", [(126,), (37, 5, 64, 20), (2,) * 63])
def test_the_dropped_tail_differs_per_epoch_so_that_no_sample_is_left_out_for_ever(shards: tuple[int, ...]) -> None:
    order = small_order(shard_samples=shards)
    dropped = [frozenset(range(126)) - set(epoch_ids(order, epoch).ravel().tolist()) for epoch in range(40)]
    assert {len(tail) for tail in dropped} == {126 % 12}
    assert len(set(dropped)) > 10
    assert not frozenset.intersection(*dropped)


def test_epochs_and_seeds_give_other_orders_and_the_same_ones_again() -> None:
    first, second = epoch_ids(small_order(), 0), epoch_ids(small_order(), 1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, epoch_ids(small_order(seed=4), 0))
    assert np.array_equal(first, epoch_ids(small_order(), 0))


def test_neighbours_in_storage_are_torn_apart() -> None:
    """A window is shuffled; in the order of the file, every step between two uses of a lane would be 1."""
    order = small_order(shard_samples=(1200,), lanes=2, window_bytes=100 * SAMPLE_BYTES)
    steps = np.abs(np.diff(order.lane_ids(0, 0)))
    assert np.mean(steps == 1) < 0.1
    assert np.median(steps) > 10


def test_every_window_of_every_lane_and_epoch_is_shuffled_in_its_own_way() -> None:
    order = small_order(shard_samples=(1200,), window_bytes=50 * SAMPLE_BYTES)
    windows = [w for epoch in range(3) for lane in range(4) for w in order.windows(epoch, lane)]
    full = [tuple(order.window_permutation(w)) for w in windows if w.stop - w.start == 50]
    assert len(full) > 30
    assert len(set(full)) == len(full)


def test_lanes_ask_for_new_windows_in_turn() -> None:
    """Windows are staggered: after the start of an epoch, at most a few lanes begin a window in the same batch."""
    order = small_order(shard_samples=(1000,) * 8, lanes=8, global_batch_size=16, window_bytes=80 * SAMPLE_BYTES)
    starts = [w.start // order.lane_batch_size for lane in range(8) for w in order.windows(0, lane) if w.start]
    assert max(np.bincount(starts)) <= 2


def test_the_order_is_the_one_that_runs_under_way_were_begun_with() -> None:
    """These ids were recorded when the order was fixed. If they change, no older run can be resumed."""
    order = DataOrder(shard_samples=(5, 3, 9), sample_bytes=1, seed=1, lanes=2, global_batch_size=4, window_bytes=3)
    assert epoch_ids(order, 0).tolist() == GOLDEN
    assert order.dropped_per_epoch == 1


GOLDEN = [[8, 7, 15, 16], [9, 12, 1, 2], [11, 10, 0, 4], [14, 13, 5, 3]]


def test_data_smaller_than_a_batch_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(InputError, match=r"9 samples, which is 3 fewer .* \(data.global_batch_size is 12\)"):
        small_order(shard_samples=(4, 5))


def test_lanes_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(InputError, match=r"global_batch_size is 12 and data.lanes is 5"):
        small_order(lanes=5)


@pytest.mark.parametrize("lanes", [1, 2, 7, 32])
def test_ranks_own_all_lanes_in_contiguous_runs_of_nearly_equal_length(lanes: int) -> None:
    for world_size in range(1, lanes + 1):
        runs = [lanes_of_rank(lanes, rank, world_size) for rank in range(world_size)]
        assert list(itertools.chain(*runs)) == list(range(lanes))
        assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_more_ranks_than_lanes_are_refused() -> None:
    with pytest.raises(InputError, match=r"9 workers but only 8 lanes"):
        lanes_of_rank(8, 0, 9)


def test_a_bad_sample_is_replaced_by_the_next_good_one_of_its_window_round_the_end() -> None:
    good = np.array([True, False, False, True, False])
    assert find_substitutes(good).tolist() == [0, 3, 3, 3, 0]
    with pytest.raises(InputError, match="All 2 samples"):
        find_substitutes(np.zeros(2, dtype=bool))


def test_a_sample_id_is_located_in_its_shard_past_empty_shards() -> None:
    order = small_order(shard_samples=(4, 0, 20))
    assert [order.locate_sample(n) for n in (0, 3, 4, 23)] == [(0, 0), (0, 3), (2, 0), (2, 19)]
