"""Training batches are the same ones streamed and from memory, at any world size, from any step on."""

from __future__ import annotations

import dataclasses
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ali_dist.data.loader import choose_residency, make_order
from ali_dist.data.shards.index import Index, load_sidecar
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import WatchedStore, damage_sample, write_arrays
from tests.helpers.batches import (
    CPU,
    LANES,
    STEPS,
    B,
    TakenBatch,
    X,
    Y,
    assert_same_batches,
    drain_batches,
    open_batch_source,
    take_batches,
)

MODES = ("stream", "ram")

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, Index]:
    store, index = write_arrays(tmp_path_factory.mktemp("shards"), X, Y)
    assert len({shard.samples for shard in index.shards}) > 1, "the shards must be uneven"
    return store, index


@pytest.mark.parametrize("residency", MODES)
@pytest.mark.parametrize("window_mb", [0.005, 0.03, 32.0])
def test_batches_are_the_orders_samples_with_their_own_pixels_and_labels(
    data: tuple[LocalStore, Index], residency: str, window_mb: float
) -> None:
    """It takes two epochs and a bit, so that the change of epoch is covered."""
    order = make_order(data[1], seed=5, lanes=LANES, global_batch_size=B, window_mb=window_mb)
    batches = take_batches(open_batch_source(*data, residency=residency, window_mb=window_mb), 2 * STEPS + 3)
    for number, (ids, x, y) in enumerate(batches):
        epoch, step = divmod(number, STEPS)
        assert ids == order.batch_ids(epoch, step).tolist()
        assert np.array_equal(x, X[ids])
        assert y == Y[ids].tolist()


@pytest.mark.parametrize("residency", MODES)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_ranks_parts_make_up_the_one_rank_batch(
    data: tuple[LocalStore, Index], residency: str, world_size: int
) -> None:
    whole = take_batches(open_batch_source(*data, residency=residency), 20)
    parts = [
        take_batches(open_batch_source(*data, residency=residency, rank=rank, world_size=world_size), 20)
        for rank in range(world_size)
    ]
    joined: list[TakenBatch] = [
        (sum((p[0] for p in step), []), np.concatenate([p[1] for p in step]), sum((p[2] for p in step), []))
        for step in zip(*parts, strict=True)
    ]
    assert_same_batches(joined, whole)


@pytest.mark.parametrize("residency", MODES)
def test_resuming_at_any_step_equals_the_unbroken_tail(data: tuple[LocalStore, Index], residency: str) -> None:
    unbroken = take_batches(open_batch_source(*data, residency=residency), 2 * STEPS + 4)
    for start in (1, 5, STEPS - 1, STEPS, STEPS + 7, 2 * STEPS):
        resumed = take_batches(open_batch_source(*data, residency=residency, start_step=start), 4)
        assert_same_batches(resumed, unbroken[start : start + 4])


class _SidecarCounter(WatchedStore):
    """Counts what is read of sidecars, too."""

    sidecars = 0

    def get(self, key: str) -> bytes:
        with self._lock:
            self.sidecars += key.endswith(".npz")
        return super().get(key)


@pytest.mark.parametrize("residency", MODES)
def test_labels_cost_no_second_reading_of_sidecars_however_many_shards(tmp_path: Path, residency: str) -> None:
    """Of more shards than a reader keeps sidecars of, each was read for its samples and then for its labels."""
    store, index = write_arrays(tmp_path, X, Y, per_shard=1)
    watched_store = _SidecarCounter(store)
    batches = take_batches(open_batch_source(watched_store, index, residency=residency, window_mb=1.0), STEPS)
    assert all(np.array_equal(Y[ids], y) for ids, _, y in batches)
    # Threads may miss the same one at once; what was read twice came to twice as many.
    assert 0 < watched_store.sidecars < 1.2 * len(watched_store.reads)


@pytest.mark.parametrize("encoding", ["png", "jpg"])
def test_compressed_images_stream_as_they_load(tmp_path: Path, encoding: Any) -> None:
    store, index = write_arrays(tmp_path, X, Y, encoding=encoding)
    streamed = take_batches(open_batch_source(store, index), STEPS + 2)
    assert_same_batches(streamed, take_batches(open_batch_source(store, index, residency="ram"), STEPS + 2))
    if encoding == "png":
        assert all(np.array_equal(x, X[ids]) for ids, x, _ in streamed)


def test_a_damaged_sample_stops_the_stream_at_its_batch_with_shard_and_number(tmp_path: Path) -> None:
    """Batches before the damaged window come out first, and a second `next` raises the same error."""
    store, index = write_arrays(tmp_path, X, Y)
    order = make_order(index, seed=5, lanes=LANES, global_batch_size=B, window_mb=0.015)
    victim = int(order.batch_ids(0, 12)[0])
    key, number = damage_sample(store, index, victim)
    with open_batch_source(store, index, window_mb=0.015) as source:
        batches_before: list[object] = []
        with pytest.raises(InputError, match=f"sample {number} of {key} .*bad_samples") as first:
            drain_batches(source, STEPS, batches_before)
        assert 5 <= len(batches_before) <= 12
        with pytest.raises(InputError) as second:
            next(source)
        assert second.value is first.value
    with pytest.raises(InputError, match=f"sample {number} of {key}"):
        open_batch_source(store, index, residency="ram")


@pytest.mark.parametrize("mode", MODES)
def test_a_damaged_sample_and_what_replaces_it_are_called_by_their_names(tmp_path: Path, mode: Any) -> None:
    origins = [f"photo{sample}.jpg" for sample in range(len(X))]
    store, index = write_arrays(tmp_path, X, Y, origins=origins)
    key, number = damage_sample(store, index, 77)
    with pytest.raises(InputError, match=f"sample {number} of {key}, photo77.jpg \\(its crc32"):
        drain_batches(open_batch_source(store, index, residency=mode), STEPS, [])
    source = open_batch_source(store, index, residency=mode, bad_samples="substitute")
    take_batches(source, STEPS)
    for sentence in source.substituted:
        assert "photo77.jpg (its crc32" in sentence
        replacement = re.search(r"was replaced by sample (\d+) of (\d+)\.tar, photo(\d+)\.jpg$", sentence)
        assert replacement is not None
        place, shard, sample = map(int, replacement.groups())
        assert sample == shard * index.shards[0].samples + place


def test_substituting_is_the_same_streamed_and_resident_and_lists_every_case(tmp_path: Path) -> None:
    store, index = write_arrays(tmp_path, X, Y)
    bad = {3, 4, 5, 77, 150}
    locations = {damage_sample(store, index, sample) for sample in bad}
    sources = [open_batch_source(store, index, residency=mode, bad_samples="substitute") for mode in MODES]
    streamed, resident = (take_batches(source, 2 * STEPS) for source in sources)
    assert_same_batches(streamed, resident)
    assert sources[0].substituted == sources[1].substituted
    order = make_order(index, seed=5, lanes=LANES, global_batch_size=B, window_mb=0.03)
    used = [set(order.batch_ids(*divmod(step, STEPS)).tolist()) for step in range(2 * STEPS)]
    assert len(sources[0].substituted) == sum(len(ids & bad) for ids in used) > 0
    for ids, x, y in streamed:
        assert len(ids) == B
        assert not bad & set(ids)
        assert np.array_equal(x, X[ids])
        assert y == Y[ids].tolist()
    for sentence in sources[0].substituted:
        assert any(f"sample {number} of {key} (its crc32" in sentence for key, number in locations)


def test_only_substitutions_of_batches_given_out_are_listed(tmp_path: Path) -> None:
    """A stream that has read ahead past a bad sample has not used it yet; a resumed one has not used those before."""
    store, index = write_arrays(tmp_path, X, Y)
    order = make_order(index, seed=5, lanes=LANES, global_batch_size=B, window_mb=0.03)
    damage_sample(store, index, int(order.batch_ids(0, 6)[2]))
    for mode in MODES:
        for start, steps, cases in [(0, 6, 0), (0, 7, 1), (7, 3, 0)]:
            source = open_batch_source(store, index, residency=mode, bad_samples="substitute", start_step=start)
            take_batches(source, steps)
            assert len(source.substituted) == cases, (mode, start, steps)


def test_a_payload_that_is_whole_but_no_image_is_a_bad_sample(tmp_path: Path) -> None:
    """The payload's crc32 is right, because the index was made with it, but it cannot be decoded."""
    store, index = write_arrays(tmp_path, X[:40], Y[:40], encoding="png", per_shard=40)
    own = load_sidecar(store, index, 0)
    sizes, crc32 = own.sizes.copy(), own.crc32.copy()
    sizes[7] = 4
    crc32[7] = zlib.crc32(store.get_range("00000.tar", int(own.offsets[7]), 4))
    torn = Sidecar(own.offsets, sizes, crc32, own.labels)
    store.put("00000.npz", torn.to_bytes())
    shard = dataclasses.replace(index.shards[0], sidecar_sha256=torn.content_sha256())
    index = dataclasses.replace(index, shards=(shard,))
    with pytest.raises(InputError, match=r"sample 7 of 00000.tar \(it cannot be decoded"):
        open_batch_source(store, index, residency="ram")


def test_opening_checks_the_listing_before_training(tmp_path: Path) -> None:
    store, index = write_arrays(tmp_path, X, Y)
    store.delete([index.shards[2].key])
    for mode in MODES:
        with pytest.raises(InputError, match="does not match its shards"):
            open_batch_source(store, index, residency=mode)


def test_auto_residency_takes_memory_that_holds_the_data_else_streams() -> None:
    assert choose_residency("auto", 2_000_000, 2, CPU) == "ram"
    assert choose_residency("auto", 2_000_001, 2, CPU) == "stream"
    assert choose_residency("stream", 1, 2, CPU) == "stream"
    assert choose_residency("device", 5_000_000, 2, CPU) == "ram"


def test_sizes_that_do_not_fit_are_refused_before_anything_is_read(data: tuple[LocalStore, Index]) -> None:
    with pytest.raises(InputError, match="5 workers but only 4 lanes"):
        open_batch_source(*data, world_size=5)
    with pytest.raises(InputError, match="203 samples, which is 1 fewer"):
        open_batch_source(*data, global_batch_size=204)


def test_batches_are_stored_values_without_labels_where_there_are_none(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((60, 2)).astype(np.float32)
    store, index = write_arrays(tmp_path, x, None)
    for mode in MODES:
        with open_batch_source(store, index, residency=mode) as source:
            batch = next(source)
        assert batch.y is None
        assert batch.x.dtype == torch.float32
        assert np.array_equal(batch.x.numpy(), x[batch.ids])
        assert source.residency == mode
