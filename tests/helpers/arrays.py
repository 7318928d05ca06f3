"""Small labelled arrays, the shards made of them, and stores that watch or disturb reading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.index import Index, load_sidecar
from ali_dist.data.shards.writer import write_shards
from ali_dist.storage.base import Listing, ObjectInfo, Store
from ali_dist.storage.local import LocalStore

Array = NDArray[Any]
SHAPE = (3, 4, 5)


def labelled(n: int, *, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> tuple[Array, Array]:
    """Random uint8 samples [n, *shape] and class numbers [n]; no two samples are equal."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    x.reshape(n, -1)[:, 0], x.reshape(n, -1)[:, 1] = np.arange(n) % 256, np.arange(n) // 256
    return x, rng.integers(0, 10, n)


def write(
    folder: Path,
    x: Array,
    y: Array | Sequence[Any] | None,
    *,
    encoding: Literal["raw", "png", "jpg"] = "raw",
    shard_mb: float = 0.06,
    **options: Any,
) -> tuple[LocalStore, Index]:
    """Write arrays as shards (about 30 samples each by default) into `folder`."""
    store = LocalStore(folder)
    labels: Any = [None] * len(x) if y is None else list(y) if np.ndim(y) == 2 else [int(label) for label in y]
    pairs = zip(x, labels, strict=True)
    dtype: Any = str(x.dtype)
    index = write_shards(store, pairs, encoding=encoding, shape=x.shape[1:], dtype=dtype, shard_mb=shard_mb, **options)
    return store, index


def damage(store: LocalStore, index: Index, sample: int) -> tuple[str, int]:
    """Flip one byte in the payload of a sample (id through the index); returns its (shard key, number)."""
    number = 0
    while sample >= index.shards[number].samples:
        sample -= index.shards[number].samples
        number += 1
    shard = index.shards[number]
    at = int(load_sidecar(store, index, number).offsets[sample]) + 1
    data = bytearray(store.get(shard.key))
    data[at] ^= 0xFF
    store.put(shard.key, bytes(data))
    return shard.key, sample


@dataclass
class WatchedStore:
    """A store that notes range reads, and calls `before` (which may raise or block) ahead of each."""

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
