"""A store whose objects are kept on the local disk while they are read, so that they come over the network once.

What is kept are *blocks*: aligned parts of an object, a 32nd of it (from 64 KiB to 4 MiB). Runs of samples, which are
what streaming reads, would not do: every epoch cuts its shards elsewhere, so that no run is ever asked for again. A
block is the same whoever asks, in any epoch and at any world size. A read fetches all blocks that it lacks side by side
by one request, so there are no more requests than without a cache, and what it fetches beyond its own bytes is what the
runs beside it need. Threads of a process that need a block at once wait for the one that fetches it. Processes do not
wait for each other, so a block that two of them need at the same moment is fetched twice. Streaming ranks read
different parts, and blocks are small, so that this is little; ranks that each read a whole split take its shards in
orders of their own (`read_all`), which helps as long as there are more shards than threads that read.

A block is named by the endpoint, bucket, key, etag and size of its object, as its listing gave them. So an object that
is not in a listing that this store has made, or that has no etag, is passed through, as is a read of whatever is there
(without an etag). Readers verify payloads by crc32; where one is bad they call `drop_cached`, because what was damaged
on its way here would otherwise be damaged for good.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ali_dist.storage import is_local
from ali_dist.storage.base import ChangedObject, Listing, ObjectInfo, Store, truncated_error
from ali_dist.storage.block_files import BlockFiles
from ali_dist.storage.s3 import S3Store

GB = 1_000_000_000
_BLOCKS_OF_AN_OBJECT = 32
_SMALLEST_BLOCK, _LARGEST_BLOCK = 64 * 1024, 4 * 1024 * 1024
Fetch = Callable[[int, int], bytes]


def with_cache(store: Store, folder: str | None, gigabytes: float) -> Store:
    """The same store behind a cache; itself if it is a folder already, or no folder is given for a cache.

    Args:
        store: Where the objects are.
        folder: Where blocks are kept, on a disk of this machine; a leading ~ is the user's home.
        gigabytes: The most that they may occupy.
    """
    if folder is None or is_local(store.url):
        return store
    endpoint = store.access.endpoint_url if isinstance(store, S3Store) else None
    return CachedStore(store, os.path.abspath(os.path.expanduser(folder)), int(gigabytes * GB), endpoint or "")


def without_filling(store: Store) -> Store:
    """The same store for reads here and there: they use what is kept, and fetch no more than they ask for."""
    return dataclasses.replace(store, fills=False, _known={}) if isinstance(store, CachedStore) else store


def drop_cached(store: Store, key: str, start: int = 0, length: int | None = None) -> bool:
    """Forget what is kept of a range of an object, so that the next read fetches it; returns whether anything was."""
    return isinstance(store, CachedStore) and store.drop(key, start, length)


@dataclass(frozen=True)
class CachedStore:
    """A store in front of another one; see the module.

    Attributes:
        inner: Where the objects are.
        folder: Where blocks are kept; it need not exist.
        limit_bytes: The most that they may occupy.
        endpoint: What tells servers with equal buckets apart.
        fills: Whether what is fetched is kept.
    """

    inner: Store
    folder: str
    limit_bytes: int
    endpoint: str = ""
    fills: bool = True
    _known: dict[str, ObjectInfo] = field(default_factory=dict, compare=False, repr=False)  # by the listings so far

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedStore, (self.inner, self.folder, self.limit_bytes, self.endpoint, self.fills)

    @property
    def url(self) -> str:
        return self.inner.url

    def list(self, prefix: str = "") -> Listing:
        listing = self.inner.list(prefix)
        self._known.update({info.key: info for info in listing})
        return listing

    def stat(self, key: str) -> ObjectInfo | None:
        return self.inner.stat(key)

    def get(self, key: str) -> bytes:
        info = self._known.get(key)
        if info is None or not info.etag or not info.size:
            return self.inner.get(key)
        try:
            return self.get_range(key, 0, info.size, etag=info.etag)
        except ChangedObject:
            del self._known[key]
            return self.inner.get(key)

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        info = self._known.get(key)
        if info is None or not etag or etag != info.etag or start < 0 or length <= 0:
            return self.inner.get_range(key, start, length, etag=etag)
        if start + length > info.size:
            raise truncated_error(self.url, key, info.size, start + length)

        def fetch(first: int, count: int) -> bytes:
            return self.inner.get_range(key, first, count, etag=etag)

        cached = _CachedObject(_cache_of(self.folder, self.limit_bytes), self._name(info), info.size)
        return cached.read(start, length, fetch) if self.fills else cached.peek(start, length, fetch)

    def put(self, key: str, data: bytes | Path) -> None:
        self._known.pop(key, None)
        self.inner.put(key, data)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._known.pop(key, None)
        self.inner.delete(keys)

    def child(self, prefix: str) -> CachedStore:
        return dataclasses.replace(self, inner=self.inner.child(prefix), _known={})

    def drop(self, key: str, start: int, length: int | None) -> bool:
        """See `drop_cached`."""
        info = self._known.get(key)
        if info is None or not info.size:
            return False
        cached = _CachedObject(_cache_of(self.folder, self.limit_bytes), self._name(info), info.size)
        return cached.drop(start, info.size - start if length is None else length)

    def _name(self, info: ObjectInfo) -> str:
        identity = "\n".join((self.endpoint, self.url, info.key, info.etag, str(info.size)))
        return hashlib.sha256(identity.encode()).hexdigest()[:40]


class _Cache:
    """What the threads of this process share of one folder."""

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self.files = BlockFiles(Path(folder), limit_bytes)
        self.lock = threading.Lock()
        self.in_flight: dict[str, Future[memoryview]] = {}  # blocks that a thread is reading or fetching


_caches: dict[tuple[int, str, int], _Cache] = {}


def _cache_of(folder: str, limit_bytes: int) -> _Cache:
    """The cache in a folder; a forked child begins with one of its own, whose locks are free."""
    key = (os.getpid(), folder, limit_bytes)
    return _caches.get(key) or _caches.setdefault(key, _Cache(folder, limit_bytes))


@dataclass(frozen=True, slots=True)
class _CachedObject:
    """The blocks of one object.

    Attributes:
        cache: Where they are.
        name: What their names begin with.
        size: Bytes of the object.
    """

    cache: _Cache
    name: str
    size: int

    def read(self, start: int, length: int, fetch: Fetch) -> bytes:
        """Bytes of the object, of which the blocks that are missing are fetched and kept."""
        claimed, awaited = self._claim(self._numbers(start, length))
        try:
            blocks = self._load(list(claimed), fetch)
            for number, future in claimed.items():
                future.set_result(blocks[number])
        except BaseException as error:
            for future in claimed.values():
                if not future.done():
                    future.set_exception(error)
            raise
        finally:
            with self.cache.lock:
                for number in claimed:
                    del self.cache.in_flight[self._block_name(number)]
        for number, future in awaited.items():
            try:
                blocks[number] = future.result()
            except Exception:  # the other thread's failure need not be ours
                blocks |= self._load([number], fetch)
        return self._cut(blocks, start, length)

    def peek(self, start: int, length: int, fetch: Fetch) -> bytes:
        """Bytes of the object, from its blocks if all are here; else fetched, and not kept."""
        blocks = {}
        for number in self._numbers(start, length):
            block = self._read(number)
            if block is None:
                return fetch(start, length)
            blocks[number] = block
        return self._cut(blocks, start, length)

    def drop(self, start: int, length: int) -> bool:
        """Remove the blocks in which these bytes lie; returns whether any was there."""
        return any([self.cache.files.drop(self._block_name(number)) for number in self._numbers(start, length)])

    def _claim(self, numbers: range) -> tuple[dict[int, Future[memoryview]], dict[int, Future[memoryview]]]:
        """Part blocks into those that are this thread's to bring, and those that another one is bringing."""
        claimed, awaited = {}, {}
        with self.cache.lock:
            for number in numbers:
                name = self._block_name(number)
                if name in self.cache.in_flight:
                    awaited[number] = self.cache.in_flight[name]
                else:
                    claimed[number] = self.cache.in_flight[name] = Future()
        return claimed, awaited

    def _load(self, numbers: list[int], fetch: Fetch) -> dict[int, memoryview]:
        """Bring blocks from the disk, or else by one request for those that lie side by side."""
        blocks = {number: block for number in numbers if (block := self._read(number)) is not None}
        missing = [number for number in numbers if number not in blocks]
        breaks = [0, *(i for i, (a, b) in enumerate(pairwise(missing), 1) if b != a + 1), len(missing)]
        for side_by_side in (missing[i:j] for i, j in pairwise(breaks) if i < j):
            first = side_by_side[0] * self._block_size
            fetched = memoryview(fetch(first, self._end(side_by_side[-1]) - first))
            for number in side_by_side:
                begin = number * self._block_size
                blocks[number] = fetched[begin - first : self._end(number) - first]
                self.cache.files.write(self._block_name(number), blocks[number])
        return blocks

    def _read(self, number: int) -> memoryview | None:
        return self.cache.files.read(self._block_name(number), self._end(number) - number * self._block_size)

    def _cut(self, blocks: dict[int, memoryview], start: int, length: int) -> bytes:
        """Join the blocks of a range to its bytes."""
        parts = []
        for number in self._numbers(start, length):
            begin = number * self._block_size
            parts.append(blocks[number][max(start - begin, 0) : start + length - begin])
        return b"".join(parts)

    def _numbers(self, start: int, length: int) -> range:
        return range(start // self._block_size, (start + length - 1) // self._block_size + 1)

    def _end(self, number: int) -> int:
        return min(self.size, (number + 1) * self._block_size)

    def _block_name(self, number: int) -> str:
        return f"{self.name}-{number:06d}"

    @property
    def _block_size(self) -> int:
        """A power of two, the same for all readers because it follows from the object's size."""
        part = max(1, self.size // _BLOCKS_OF_AN_OBJECT)
        return min(max(1 << (part - 1).bit_length(), _SMALLEST_BLOCK), _LARGEST_BLOCK)
