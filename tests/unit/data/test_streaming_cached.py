"""Streaming from S3 behind the disk cache: every byte comes once, and the batches are those of a folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ali_dist.config.loading import from_mapping
from ali_dist.data.shards.index import Index, load_index
from ali_dist.data.shards.reader import ShardReader, load_samples, read_all
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.shards.writer import SampleFormat
from ali_dist.runs.datasets import open_run_data
from ali_dist.storage import open_store
from ali_dist.storage.base import Access, Store
from ali_dist.storage.cached import CachedStore, with_cache
from ali_dist.storage.local import LocalStore
from ali_dist.storage.s3 import S3Store
from tests.helpers.arrays import WatchedStore, make_labelled_arrays, write_shards
from tests.helpers.batches import TakenBatch, assert_same_batches, open_batch_source, take_batches
from tests.helpers.fault_server import ENV, Fault, FaultServer, Request

pytestmark = pytest.mark.timeout(120)
N, B, STEPS = 480, 24, 20  # an epoch uses every sample
SHAPE = (3, 32, 32)
X, Y = make_labelled_arrays(N, shape=SHAPE)


def write(store: Store) -> Index:
    """Four shards of 9 blocks of the cache each."""
    samples = map(PreparedSample, X, (int(label) for label in Y))
    return write_shards(store, samples, SampleFormat(encoding="raw", shape=SHAPE, dtype="uint8"), per_shard=120)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    with FaultServer() as started:
        yield started


@pytest.fixture
def remote(server: FaultServer) -> S3Store:
    opened = open_store("s3://bucket/train", endpoint_url=server.endpoint_url, timeout_seconds=1.0, attempts=4)
    store = replace(cast(S3Store, opened), wait_seconds=0.001)
    write(store)
    server.requests.clear()
    return store


def open_cached(remote: S3Store, tmp_path: Path, gigabytes: float = 1.0) -> Store:
    """The store as a run opens it: it knows nothing yet but the folder of the cache."""
    return with_cache(remote, str(tmp_path / "cache"), gigabytes)


def payload_requests(server: FaultServer) -> list[Request]:
    return [request for request in server.requests if request.name.endswith((".tar", ".npz"))]


def take_epochs(store: Store, index: Index, world_size: int, first_epoch: int, epochs: int) -> list[list[TakenBatch]]:
    """The batches of every rank; the ranks read at once, as they do in training."""

    def take(rank: int) -> list[TakenBatch]:
        options: dict[str, Any] = {"rank": rank, "world_size": world_size, "global_batch_size": B, "window_mb": 0.15}
        source = open_batch_source(store, index, start_step=first_epoch * STEPS, **options)
        return take_batches(source, epochs * STEPS)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(take, range(world_size)))


def test_a_run_opens_its_data_behind_the_cache_that_is_named(tmp_path: Path, remote: S3Store) -> None:
    settings = {"data.url": "s3://bucket", "storage.endpoint_url": remote.access.endpoint_url}
    plain = open_run_data(from_mapping(settings)).train.store
    assert plain == S3Store("bucket", "train", Access(endpoint_url=remote.access.endpoint_url))
    cache = {"data.cache_dir": str(tmp_path / "cache"), "data.cache_gb": 2.0}
    cached = open_run_data(from_mapping({**settings, **cache})).train.store
    assert cached == with_cache(plain, str(tmp_path / "cache"), 2.0) != plain


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_first_epoch_fetches_every_byte_once_and_the_second_fetches_none(
    tmp_path: Path, server: FaultServer, remote: S3Store, world_size: int
) -> None:
    index = load_index(remote)
    everything = sum(len(content) for name, content in server.objects.items() if not name.endswith("index.json"))
    cached = open_cached(remote, tmp_path)
    server.requests.clear()
    first = take_epochs(cached, index, world_size, 0, 1)
    assert sum(shard.bytes for shard in index.shards) <= sum(r.sent for r in payload_requests(server)) <= everything
    server.requests.clear()
    second = take_epochs(cached, index, world_size, 1, 1)
    assert payload_requests(server) == []
    local = LocalStore(tmp_path / "local")
    uncached = take_epochs(local, write(local), world_size, 0, 2)
    for rank in range(world_size):
        assert_same_batches(first[rank] + second[rank], uncached[rank])


def test_a_run_that_is_started_again_fetches_nothing_at_any_world_size(
    tmp_path: Path, server: FaultServer, remote: S3Store
) -> None:
    index = load_index(remote)
    take_epochs(open_cached(remote, tmp_path), index, 2, 0, 1)
    server.requests.clear()
    take_epochs(open_cached(remote, tmp_path), index, 3, 0, 2)
    assert payload_requests(server) == []


def test_data_that_do_not_fit_are_still_right(tmp_path: Path, remote: S3Store) -> None:
    index = load_index(remote)
    cached = open_cached(remote, tmp_path, gigabytes=0.0005)
    local = LocalStore(tmp_path / "local")
    (batches,), (expected,) = take_epochs(cached, index, 1, 0, 2), take_epochs(local, write(local), 1, 0, 2)
    assert_same_batches(batches, expected)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) <= 500_000


def test_garbage_on_the_way_is_not_kept(tmp_path: Path, server: FaultServer, remote: S3Store) -> None:
    index = load_index(remote)
    for shard in index.shards:
        for key in (shard.key, shard.sidecar_key):
            server.inject_faults(f"bucket/train/{key}", Fault("garbage"))
    local = LocalStore(tmp_path / "local")
    (expected,) = take_epochs(local, write(local), 1, 0, 2)
    cached = open_cached(remote, tmp_path)
    (batches,) = take_epochs(cached, index, 1, 0, 2)
    assert_same_batches(batches, expected)
    server.requests.clear()
    (again,) = take_epochs(cached, index, 1, 0, 2)
    assert_same_batches(again, expected)
    assert payload_requests(server) == []


def test_resident_data_are_read_from_the_cache_when_they_are_read_again(
    tmp_path: Path, server: FaultServer, remote: S3Store
) -> None:
    index = load_index(remote)
    for _ in range(2):
        server.requests.clear()
        x, y, bad = read_all(ShardReader(open_cached(remote, tmp_path), index))
        assert (x == X).all()
        assert y is not None
        assert y.tolist() == Y.tolist()
        assert bad == {}
    assert payload_requests(server) == []


def test_processes_that_read_a_whole_split_at_once_share_the_work(tmp_path: Path) -> None:
    """Each bound has a cache of its own in this process, as each process would have, and all have one folder."""
    source = LocalStore(tmp_path / "local")
    samples = map(PreparedSample, X, (int(label) for label in Y))
    index = write_shards(source, samples, SampleFormat(encoding="raw", shape=SHAPE, dtype="uint8"), per_shard=8)
    watched = WatchedStore(source, before=lambda key, start: time.sleep(0.02))

    def read(number: int) -> bool:
        cached = CachedStore(watched, str(tmp_path / "cache"), 10**9 + number)
        return bool((read_all(ShardReader(cached, index))[0] == X).all())

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(read, range(3))) == [True] * 3
    fetched = sum(length for key, _, length in watched.reads if key.endswith(".tar"))
    assert fetched < 2 * sum(shard.bytes for shard in index.shards), "it would be 3 times in one and the same order"


def test_single_samples_do_not_fetch_blocks(tmp_path: Path, server: FaultServer, remote: S3Store) -> None:
    index = load_index(remote)
    cached = open_cached(remote, tmp_path)
    server.requests.clear()
    ids = np.array([3, 200, 201, 477])
    assert (load_samples(cached, index, ids) == X[ids]).all()
    tars = [request for request in server.requests if request.name.endswith(".tar")]
    assert sum(request.sent for request in tars) < 5 * 5_000
