"""Read a split again and check everything that its index and sidecars say about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ali_dist.data.order import SampleRun
from ali_dist.data.shards.index import Index
from ali_dist.data.shards.reader import ShardReader
from ali_dist.errors import InputError
from ali_dist.storage.base import Store


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a check has read, and one sentence for each problem."""

    num_shards: int
    num_samples: int
    problems: tuple[str, ...]


def verify_split(store: Store, index: Index, on_shard: Callable[[int], None] = lambda samples: None) -> VerifyReport:
    """Read and check every shard as a whole: its sha256, its sidecar, and every sample's position, crc32 and decoding.

    Args:
        store: The split's own folder.
        index: The split's index.
        on_shard: Called after each shard with its number of samples.

    Raises:
        InputError: A shard or sidecar is missing, or a shard has another size than the index says.
    """
    reader = ShardReader(store, index)
    problems: list[str] = []
    for number, shard in enumerate(index.shards):
        try:
            problems += _check_shard(reader, number)
        except InputError as error:
            problems.append(str(error))
        on_shard(shard.samples)
    return VerifyReport(len(index.shards), index.num_samples, tuple(problems))


def _check_shard(reader: ShardReader, number: int) -> list[str]:
    index = reader.index
    shard = index.shards[number]
    data = reader.tars.get(shard.key)
    out = np.empty((shard.samples, *index.shape), dtype=index.dtype)
    bad = reader.decode_run(memoryview(data), 0, SampleRun(number, 0, shard.samples), out, np.arange(shard.samples))
    if bad:
        return [f"Damaged in {reader.store.url}: {sample}." for sample in bad.values()]
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        return [f"Damaged in {reader.store.url}: {shard.key} (between its samples; its sha256 differs from the index)."]
    return []
