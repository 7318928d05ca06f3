"""Shards that are streamed from an S3 endpoint that breaks requests give the same batches as from a folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.shards.writer import SampleFormat
from ali_dist.errors import InputError, StorageError
from ali_dist.storage import open_store
from ali_dist.storage.s3 import S3Store
from tests.helpers.arrays import SHAPE, write_arrays, write_shards
from tests.helpers.batches import STEPS, X, Y, assert_same_batches, drain_batches, open_batch_source, take_batches
from tests.helpers.fault_server import ENV, Fault, FaultServer

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    with FaultServer() as started:
        started.serve_objects({"bucket/other/file": b""})
        yield started


@pytest.fixture
def store(server: FaultServer) -> S3Store:
    opened = open_store("s3://bucket/digits/train", endpoint_url=server.endpoint_url, timeout_seconds=1.0, attempts=4)
    opened = replace(cast(S3Store, opened), wait_seconds=0.001)
    samples = map(PreparedSample, X, (int(label) for label in Y))
    write_shards(opened, samples, SampleFormat(encoding="raw", shape=SHAPE, dtype="uint8"))
    return opened


def test_resets_short_bodies_and_refusals_do_not_change_a_batch(
    tmp_path: Path, server: FaultServer, store: S3Store
) -> None:
    local, index = write_arrays(tmp_path, X, Y)
    assert load_index(store) == index
    faults = [Fault("reset", after=700), Fault("short", after=900), Fault("status"), Fault("stall", after=100)]
    for number, shard in enumerate(index.shards):
        server.inject_faults(f"bucket/digits/train/{shard.key}", faults[number % len(faults)])
    assert_same_batches(
        take_batches(open_batch_source(store, index), 2 * STEPS),
        take_batches(open_batch_source(local, index), 2 * STEPS),
    )


def test_an_outage_is_waited_for_and_changes_no_batch(
    tmp_path: Path, server: FaultServer, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ali_dist.data.streaming._PAUSE_SECONDS", 0.01)
    local, index = write_arrays(tmp_path, X, Y)
    refused: list[str] = []

    def refuse(method: str, name: str) -> bool:
        is_refused = name.endswith(index.shards[0].key) and len(refused) < 20
        if is_refused:
            refused.append(method)
        return is_refused

    server.refuses = refuse
    assert_same_batches(
        take_batches(open_batch_source(store, index, outage_seconds=60.0), STEPS),
        take_batches(open_batch_source(local, index), STEPS),
    )
    assert len(refused) == 20


def test_an_outage_that_lasts_ends_the_batches_in_one_sentence(
    tmp_path: Path, server: FaultServer, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ali_dist.data.streaming._PAUSE_SECONDS", 0.01)
    _, index = write_arrays(tmp_path, X, Y)
    server.refuses = lambda method, name: name.endswith(index.shards[0].key)
    with pytest.raises(StorageError, match="failed 4 times"):
        take_batches(open_batch_source(store, index, outage_seconds=0.1), STEPS)
    began = time.monotonic()
    with open_batch_source(store, index, outage_seconds=60.0):
        time.sleep(0.1)
    assert time.monotonic() - began < 5, "a source that waits for the storage can be closed"


def test_garbage_on_the_way_is_caught_and_fetched_again(tmp_path: Path, server: FaultServer, store: S3Store) -> None:
    local, index = write_arrays(tmp_path, X, Y)
    for shard in index.shards:
        server.inject_faults(f"bucket/digits/train/{shard.key}", Fault("garbage"))
    assert_same_batches(
        take_batches(open_batch_source(store, index), 2 * STEPS),
        take_batches(open_batch_source(local, index), 2 * STEPS),
    )


def test_a_sidecar_that_is_garbage_on_the_way_is_fetched_again(
    tmp_path: Path, server: FaultServer, store: S3Store
) -> None:
    local, index = write_arrays(tmp_path, X, Y)
    for shard in index.shards:
        server.inject_faults(f"bucket/digits/train/{shard.sidecar_key}", Fault("garbage", after=40))
    assert_same_batches(
        take_batches(open_batch_source(store, index), STEPS), take_batches(open_batch_source(local, index), STEPS)
    )


def test_garbage_that_stays_is_damaged_data(server: FaultServer, store: S3Store) -> None:
    index = load_index(store)
    for shard in index.shards:
        server.inject_lasting_fault(f"bucket/digits/train/{shard.key}", Fault("garbage"))
    with (
        open_batch_source(store, index) as source,
        pytest.raises(InputError, match=r"Damaged data in s3://bucket/.*crc32"),
    ):
        drain_batches(source, STEPS)
