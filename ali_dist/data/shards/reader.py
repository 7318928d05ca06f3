"""Samples out of shards: one range request for each run, every payload checked against its crc32, then decoded."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.order import Ids, SampleRun
from ali_dist.data.shards.codec import make_decoder
from ali_dist.data.shards.index import Index, check_listing, load_sidecar
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.errors import InputError
from ali_dist.storage.base import Store

if TYPE_CHECKING:
    from torch import Tensor

READERS = 4  # threads that read and decode: hides the latency of S3, and keeps a few cores decoding
_SIDECARS = 64  # kept in memory by a reader; about 28 bytes a sample


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that is not what its index says, and why."""

    shard: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"sample {self.number} of {self.shard} ({self.reason})"


BadSamples = dict[int, BadSample]


class ShardReader:
    """Reads samples of one split; safe to use from several threads.

    Opening it checks the listing: every shard is there and has the bytes that the index says.

    Raises:
        InputError: the index does not match its shards.
    """

    def __init__(self, store: Store, index: Index) -> None:
        self.store = store
        self.index = index
        self._etags = check_listing(store, index)
        load = functools.partial(load_sidecar, store, index)
        self.sidecar: Callable[[int], Sidecar] = functools.lru_cache(maxsize=_SIDECARS)(load)

    def read(self, run: SampleRun, out: NDArray[Any], rows: Ids) -> BadSamples:
        """Fetch the samples of `run` by one range read and decode them into `out[rows]`.

        Args:
            run: samples [first, last) of a shard, at least one.
            out: [m, *shape] in the index's dtype.
            rows: for each sample of the run, its row of `out`.

        Returns:
            The samples that are not what the index says, by row; these rows of `out` are not to be used.
        """
        shard, sidecar = self.index.shards[run.shard], self.sidecar(run.shard)
        start = int(sidecar.offsets[run.first])
        length = int(sidecar.offsets[run.last - 1] + sidecar.sizes[run.last - 1]) - start
        for _ in range(2):  # once more if a sample is bad: garbage on the way is no damage in the store
            data = self.store.get_range(shard.key, start, length, etag=self._etags[shard.key])
            bad = self.decode(memoryview(data), start, run, out, rows)
            if not bad:
                break
        return bad

    def decode(self, data: memoryview, start: int, run: SampleRun, out: NDArray[Any], rows: Ids) -> BadSamples:
        """Check and decode the samples of `run` from `data`, which lies at byte `start` of their shard."""
        sidecar, decode, crc32 = self.sidecar(run.shard), make_decoder(self.index.encoding, out), zlib.crc32
        offsets = sidecar.offsets[run.first : run.last] - start
        ends = offsets + sidecar.sizes[run.first : run.last]
        crcs = sidecar.crc32[run.first : run.last]
        bad: BadSamples = {}
        # Plain lists: this loop is what streaming costs, and a numpy scalar costs more than the copy of a sample.
        places = zip(rows.tolist(), offsets.tolist(), ends.tolist(), crcs.tolist(), strict=True)
        for number, (row, begin, end, crc) in enumerate(places, run.first):
            payload = data[begin:end]
            try:
                if crc32(payload) != crc:
                    raise ValueError("its crc32 differs from the index")
                decode(row, payload)
            except ValueError as error:
                bad[row] = BadSample(self.index.shards[run.shard].key, number, str(error))
        return bad

    def labels(self, runs: tuple[SampleRun, ...]) -> NDArray[Any] | None:
        """Labels of the samples of `runs`, run after run: int64 [n], float32 [n, A], or None if the data has none."""
        parts = []
        for run in runs:
            labels = self.sidecar(run.shard).labels
            if labels is None:
                return None
            parts.append(labels[run.first : run.last])
        return np.concatenate(parts)

    def stop_for(self, bad: BadSample) -> InputError:
        """The error that ends a run at a bad sample."""
        return InputError(
            f"Damaged data in {self.store.url}: {bad}; restore the shard, or set data.bad_samples to substitute "
            f"(the lane's next good sample is used instead, counted and listed)."
        )

    def replacement(self, epoch: int, step: int, bad: BadSample, stand_in: tuple[int, int]) -> str:
        """One sentence for a bad sample whose place in a batch another one, (shard, number), has taken."""
        shard, number = stand_in
        return f"epoch {epoch}, step {step}: {bad} was replaced by sample {number} of {self.index.shards[shard].key}"


def read_all(reader: ShardReader) -> tuple[NDArray[Any], NDArray[Any] | None, BadSamples]:
    """Read a whole split, several shards at a time.

    Returns:
        Samples [N, *shape] as stored, labels (int64 [N], float32 [N, A] or None), and bad samples by sample id.
    """
    index = reader.index
    out = np.empty((index.num_samples, *index.shape), dtype=index.dtype)
    runs = tuple(SampleRun(number, 0, shard.samples) for number, shard in enumerate(index.shards) if shard.samples)
    starts = np.cumsum([0, *(run.last for run in runs)]).tolist()

    def read(run: SampleRun, start: int) -> BadSamples:
        return reader.read(run, out, np.arange(start, start + run.last))

    bad: BadSamples = {}
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="ali-load")
    try:
        for found in pool.map(read, runs, starts[:-1]):
            bad.update(found)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return out, reader.labels(runs), bad


def load_samples(store: Store, index: Index, ids: Ids) -> NDArray[Any]:
    """Read some samples of a split by id; ids ascend. Returns them as stored, [n, *shape].

    Raises:
        InputError: the index does not match its shards, or a sample is damaged.
    """
    reader = ShardReader(store, index)
    out = np.empty((len(ids), *index.shape), dtype=index.dtype)
    starts = np.cumsum([0, *(shard.samples for shard in index.shards)])
    breaks = np.flatnonzero((np.diff(ids) != 1) | np.isin(ids[1:], starts)) + 1  # where a new run begins

    def read(rows: Ids) -> BadSamples:
        first, last = int(ids[rows[0]]), int(ids[rows[-1]]) + 1
        shard = int(np.searchsorted(starts, first, side="right")) - 1
        return reader.read(SampleRun(shard, first - int(starts[shard]), last - int(starts[shard])), out, rows)

    with ThreadPoolExecutor(READERS, thread_name_prefix="ali-load") as pool:
        for bad in pool.map(read, np.split(np.arange(len(ids)), breaks)):
            if bad:
                raise reader.stop_for(bad[min(bad)])
    return out


def load_labels(store: Store, index: Index) -> NDArray[Any] | None:
    """Labels of a whole split in index order, from its sidecars: int64 [N], float32 [N, A], or None."""
    reader = ShardReader(store, index)
    return reader.labels(tuple(SampleRun(n, 0, shard.samples) for n, shard in enumerate(index.shards) if shard.samples))


def load_arrays(store: Store, index: Index) -> tuple[Tensor, Tensor | None]:
    """Read and check a whole split, for evaluation.

    Returns:
        x as stored [N, *shape] (uint8 or float32) in index order; y int64 [N], float32 [N, A] or None.

    Raises:
        InputError: the index does not match its shards, or a sample is damaged.
    """
    import torch

    reader = ShardReader(store, index)
    x, y, bad = read_all(reader)
    if bad:
        raise reader.stop_for(bad[min(bad)])
    return torch.from_numpy(x), None if y is None else torch.from_numpy(y)
