"""Small labelled arrays, shards that hold them, and a store that watches or disturbs reading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.index import Index, Shard, load_sidecar
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.writer import SampleFormat, write_index, write_shard
from ali_dist.storage.base import Listing, ObjectInfo, Store
from ali_dist.storage.local import LocalStore

Array = NDArray[Any]
SHAPE = (3, 4, 5)
PER_SHARD = 31


def make_labelled_arrays(n: int, *, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> tuple[Array, Array]:
    """Random uint8 samples [n, *shape] and class numbers [n]; no two samples are equal."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    rows = x.reshape(n, -1)
    rows[:, 0] = np.arange(n) % 256
    rows[:, 1] = np.arange(n) // 256
    return x, rng.integers(0, 10, n)


def write_shards(
    store: Store,
    samples: Iterable[PreparedSample],
    sample_format: SampleFormat,
    *,
    per_shard: int = PER_SHARD,
    classes: Sequence[str] = (),
    extra: dict[str, Any] | None = None,
) -> Index:
    """Write samples as shards of `per_shard` samples each (fewer in the last one), then the index."""
    statistics = Statistics(sample_format.shape, sample_format.dtype)
    shards: list[Shard] = []
    remaining = iter(samples)
    while chunk := list(islice(remaining, per_shard)):
        shard, counted = write_shard(store, len(shards), chunk, sample_format)
        shards.append(shard)
        statistics.merge(counted)
    return write_index(store, sample_format, shards, statistics, classes=classes, extra=extra or {})


def write_arrays(
    folder: Path,
    x: Array,
    y: Array | Sequence[Any] | None,
    *,
    encoding: Literal["raw", "png", "jpg"] = "raw",
    attributes: Sequence[str] = (),
    origins: Sequence[str] | None = None,
    **options: Any,
) -> tuple[LocalStore, Index]:
    """Write arrays as shards into `folder`, named by `origins`; `options` are those of `write_shards`."""
    store = LocalStore(folder)
    labels: Any = [None] * len(x) if y is None else list(y) if np.ndim(y) == 2 else [int(label) for label in y]
    dtype: Any = str(x.dtype)
    sample_format = SampleFormat(encoding=encoding, shape=x.shape[1:], dtype=dtype, attributes=tuple(attributes))
    names = [""] * len(x) if origins is None else origins
    return store, write_shards(store, map(PreparedSample, x, labels, names), sample_format, **options)


def damage_sample(store: LocalStore, index: Index, sample: int) -> tuple[str, int]:
    """Flip one byte in the payload of the sample with this id; returns its shard's key and its number there."""
    number = 0
    while sample >= index.shards[number].samples:
        sample -= index.shards[number].samples
        number += 1
    shard = index.shards[number]
    position = int(load_sidecar(store, index, number).offsets[sample]) + 1
    data = bytearray(store.get(shard.key))
    data[position] ^= 0xFF
    store.put(shard.key, bytes(data))
    return shard.key, sample


@dataclass
class WatchedStore:
    """A store that records range reads, and calls `before` (which may raise or block) ahead of each."""

    inner: Store
    before: Callable[[str, int], None] = lambda key, start: None
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return self.inner.url

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        with self._lock:
            self.reads.append((key, start, length))
        self.before(key, start)
        return self.inner.get_range(key, start, length, etag=etag)

    def list(self, prefix: str = "") -> Listing:
        return self.inner.list(prefix)

    def stat(self, key: str) -> ObjectInfo | None:
        return self.inner.stat(key)

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def put(self, key: str, data: bytes | Path) -> None:
        self.inner.put(key, data)

    def delete(self, keys: Sequence[str]) -> None:
        self.inner.delete(keys)

    def child(self, prefix: str) -> Store:
        return self.inner.child(prefix)
