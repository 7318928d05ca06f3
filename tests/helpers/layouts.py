"""Splits of any layout of shards, empty ones too, whose samples say their own ids, in a store of this process."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from itertools import count

import numpy as np

from ali_dist.data.shards.index import Index, Shard
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.writer import SampleFormat, write_index, write_shard
from tests.helpers.memory_store import MemoryStore

_NUMBERS = count()


def write_layout(
    shard_samples: Sequence[int], *, sample_bytes: int = 4, store: MemoryStore | None = None
) -> tuple[MemoryStore, Index]:
    """Write raw samples uint8 [sample_bytes] that begin with their ids; the class of a sample is its id modulo 10."""
    store = MemoryStore(f"memory://layout-{next(_NUMBERS)}") if store is None else store
    sample_format = SampleFormat(encoding="raw", shape=(sample_bytes,), dtype="uint8")
    statistics = Statistics(sample_format.shape, sample_format.dtype)
    shards = []
    first = 0
    for number, samples in enumerate(shard_samples):
        if samples:
            prepared = [
                PreparedSample(make_sample(id_, sample_bytes), id_ % 10) for id_ in range(first, first + samples)
            ]
            shard, counted = write_shard(store, number, prepared, sample_format)
            statistics.merge(counted)
        else:
            shard = _write_empty_shard(store, number)
        shards.append(shard)
        first += samples
    return store, write_index(store, sample_format, shards, statistics, classes=[str(k) for k in range(10)], extra={})


def make_sample(id_: int, sample_bytes: int) -> np.ndarray:
    """The sample of an id: 4 bytes with the id, and what follows from it."""
    x = np.full(sample_bytes, id_ % 251, dtype=np.uint8)
    x[:4] = np.frombuffer(id_.to_bytes(4, "little"), dtype=np.uint8)
    return x


def read_ids(x: np.ndarray) -> list[int]:
    """The ids [n] that samples [n, sample_bytes] say they have."""
    return np.ascontiguousarray(x[:, :4]).view("<i4").ravel().tolist()


def _write_empty_shard(store: MemoryStore, number: int) -> Shard:
    file = io.BytesIO()
    tarfile.open(fileobj=file, mode="w").close()  # noqa: SIM115
    nothing = np.empty(0, dtype=np.int64)
    sidecar = Sidecar(nothing, nothing, np.empty(0, dtype=np.uint32), nothing)
    data = file.getvalue()
    shard = Shard(f"{number:05d}.tar", len(data), 0, hashlib.sha256(data).hexdigest(), sidecar.content_sha256())
    store.put(shard.key, data)
    store.put(shard.sidecar_key, sidecar.to_bytes())
    return shard
