"""Read samples from shards: one range request for each run; every payload is checked against its crc32 and decoded."""

from __future__ import annotations

import functools
import random
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.order import Ids, SampleRun
from ali_dist.data.shards.codec import make_decoder
from ali_dist.data.shards.index import Index, check_listing, load_sidecar
from ali_dist.data.shards.location import open_tars
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.errors import InputError
from ali_dist.storage.base import Store
from ali_dist.storage.cached import CachedStore, drop_cached, without_filling

if TYPE_CHECKING:
    from torch import Tensor

READERS = 4  # threads that read and decode: they hide the latency of S3, and keep a few cores decoding
_READS = 3  # of what does not verify: one bad read in a hundred is a bad network, three in a row are bad data
_LOCKED_BYTES = 5 * 1024  # zlib.crc32 keeps the interpreter lock for less
_CACHED_SIDECARS = 64  # sidecars that a reader keeps in memory; about 28 bytes a sample, and its name


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that is not what its index says, and why; with its origin, where the data note it."""

    shard_key: str
    sample_number: int
    reason: str
    origin: str = ""

    def __str__(self) -> str:
        return f"{_describe_place(self.shard_key, self.sample_number, self.origin)} ({self.reason})"


BadSamples = dict[int, BadSample]


def _describe_place(shard_key: str, sample_number: int, origin: str) -> str:
    """What messages call a sample: its place, and what the user knows it by."""
    return f"sample {sample_number} of {shard_key}{f', {origin}' if origin else ''}"


class ShardReader:
    """Reads samples of one split; safe to use from several threads.

    Making one checks the listing: every shard is there and has the size that the index says.

    Raises:
        InputError: The index does not match its shards.
    """

    def __init__(self, store: Store, index: Index) -> None:
        self.store = store
        self.index = index
        self.tars = open_tars(store, index.extra)
        self._etags = check_listing(store, index, self.tars)
        # Small raw samples are checked and copied with the interpreter lock held, which threads side by side would only
        # hand around. Fetching goes on meanwhile, and so does decoding, which releases the lock.
        self._decoding = threading.Lock() if _keeps_lock(index) else nullcontext()
        load = functools.partial(_load_sound_sidecar, store, index)
        self._load_sidecar: Callable[[int], Sidecar] = functools.lru_cache(maxsize=_CACHED_SIDECARS)(load)

    def read_run(self, run: SampleRun, out: NDArray[Any], rows: Ids) -> BadSamples:
        """Fetch the samples of `run` by one range read and decode them into `out[rows]`.

        Args:
            run: At least one sample of a shard.
            out: Where samples go: [m, *shape] in the index's dtype.
            rows: For each sample of the run, its row of `out`.

        Returns:
            The samples that are not what the index says, by row; those rows of `out` must not be used.
        """
        shard = self.index.shards[run.shard]
        sidecar = self._load_sidecar(run.shard)
        start = int(sidecar.offsets[run.start])
        length = int(sidecar.offsets[run.stop - 1] + sidecar.sizes[run.stop - 1]) - start
        for _ in range(_READS):  # again if a sample is bad: it may have been damaged on the way, not in the store
            data = self.tars.get_range(shard.key, start, length, etag=self._etags[shard.key])
            with self._decoding:
                bad = self.decode_run(memoryview(data), start, run, out, rows)
            if not bad:
                break
            drop_cached(self.tars, shard.key, start, length)
        return bad

    def decode_run(self, data: memoryview, start: int, run: SampleRun, out: NDArray[Any], rows: Ids) -> BadSamples:
        """Check and decode the samples of `run` from `data`, which lies at byte `start` of their shard."""
        sidecar = self._load_sidecar(run.shard)
        decode = make_decoder(self.index.encoding, out, self.index.background)
        crc32 = zlib.crc32
        offsets = sidecar.offsets[run.start : run.stop] - start
        ends = offsets + sidecar.sizes[run.start : run.stop]
        crcs = sidecar.crc32[run.start : run.stop]
        bad: BadSamples = {}
        # Plain lists, because this loop is what streaming costs, and a numpy scalar costs more than copying a sample.
        samples = zip(rows.tolist(), offsets.tolist(), ends.tolist(), crcs.tolist(), strict=True)
        for number, (row, begin, end, crc) in enumerate(samples, run.start):
            payload = data[begin:end]
            try:
                if crc32(payload) != crc:
                    raise ValueError("its crc32 differs from the index")
                decode(row, payload)
            except ValueError as error:
                origin = sidecar.origins[number] if sidecar.origins else ""
                bad[row] = BadSample(self.index.shards[run.shard].key, number, str(error), origin)
        return bad

    def read_labels(self, runs: tuple[SampleRun, ...]) -> NDArray[Any] | None:
        """Read the labels of `runs`, run after run: int64 [n], float32 [n, A], or None if the data has none."""
        return join_labels_of_runs([self.read_labels_of_run(run) for run in runs])

    def read_labels_of_run(self, run: SampleRun) -> NDArray[Any] | None:
        """Read the labels of one run; at no cost right after its samples, for which the same sidecar is needed."""
        labels = self._load_sidecar(run.shard).labels
        return None if labels is None else labels[run.start : run.stop]

    def read_origins(self, run: SampleRun) -> tuple[str, ...] | None:
        """What the user knows each sample of `run` by; None where the data do not note it."""
        origins = self._load_sidecar(run.shard).origins
        return None if origins is None else origins[run.start : run.stop]

    def damaged_sample_error(self, bad: BadSample) -> InputError:
        """The error that ends a run at a bad sample."""
        return InputError(
            f"Damaged data in {self.store.url}: {bad}; restore the shard, or set data.bad_samples to "
            f"substitute (the lane's next good sample is used instead, counted and listed)."
        )

    def describe_substitution(self, epoch: int, step: int, bad: BadSample, substitute: tuple[int, int]) -> str:
        """One sentence on a bad sample that has been replaced in a batch by another one, (shard, number in it)."""
        shard, number = substitute
        origin = "".join(self.read_origins(SampleRun(shard, number, number + 1)) or ())
        place = _describe_place(self.index.shards[shard].key, number, origin)
        return f"epoch {epoch}, step {step}: {bad} was replaced by {place}"


def join_labels_of_runs(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """The labels of at least one run, run after run; None if a run has none."""
    labels = [part for part in parts if part is not None]
    return np.concatenate(labels) if len(labels) == len(parts) else None


def _keeps_lock(index: Index) -> bool:
    return index.encoding == "raw" and index.decoded_bytes < _LOCKED_BYTES


def _load_sound_sidecar(store: Store, index: Index, shard_number: int) -> Sidecar:
    """Read a sidecar; again, past any cache, if it is bad: it may have been damaged on the way."""
    for _ in range(_READS - 1):
        try:
            return load_sidecar(store, index, shard_number)
        except InputError:
            drop_cached(store, index.shards[shard_number].sidecar_key)
    return load_sidecar(store, index, shard_number)


def _whole_shards(index: Index) -> tuple[SampleRun, ...]:
    """A run for each shard that is not empty."""
    return tuple(SampleRun(number, 0, shard.samples) for number, shard in enumerate(index.shards) if shard.samples)


def read_all(
    reader: ShardReader, on_samples: Callable[[int], None] | None = None
) -> tuple[NDArray[Any], NDArray[Any] | None, BadSamples]:
    """Read a whole split, several shards at a time.

    Args:
        reader: The reader of the split.
        on_samples: Called with the number of samples that have been read since the last call.

    Returns:
        Samples [N, *shape] as stored, labels (int64 [N], float32 [N, A] or None), and bad samples by sample id.
    """
    index = reader.index
    out = np.empty((index.num_samples, *index.shape), dtype=index.dtype)
    runs = _whole_shards(index)
    starts = np.cumsum([0, *(run.stop for run in runs)]).tolist()

    order = list(range(len(runs)))
    if isinstance(reader.tars, CachedStore):
        # Processes that share a cache take the shards in orders of their own, so that each fetches what the others have
        # not yet. Not by a seeded generator, because it changes nothing but who fetches what.
        random.SystemRandom().shuffle(order)

    labels: list[NDArray[Any] | None] = [None] * len(runs)

    def read_shard(number: int) -> BadSamples:
        run, start = runs[number], starts[number]
        bad = reader.read_run(run, out, np.arange(start, start + run.stop))
        labels[number] = reader.read_labels_of_run(run)  # while the sidecar is in memory: later it is read once more
        return bad

    bad: BadSamples = {}
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="ali-load")
    try:
        for number, bad_of_shard in zip(order, pool.map(read_shard, order), strict=True):
            bad.update(bad_of_shard)
            if on_samples is not None:
                on_samples(runs[number].stop)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return out, join_labels_of_runs(labels), bad


def load_samples(store: Store, index: Index, ids: Ids) -> NDArray[Any]:
    """Read some samples of a split by their ids, which must ascend; returns them as stored, [n, *shape].

    Raises:
        InputError: The index does not match its shards, or a sample is damaged.
    """
    reader = ShardReader(without_filling(store), index)
    out = np.empty((len(ids), *index.shape), dtype=index.dtype)
    starts = np.cumsum([0, *(shard.samples for shard in index.shards)])
    breaks = np.flatnonzero((np.diff(ids) != 1) | np.isin(ids[1:], starts)) + 1  # where a new run begins

    def read_rows(rows: Ids) -> BadSamples:
        shard = int(np.searchsorted(starts, ids[rows[0]], side="right")) - 1
        start = int(ids[rows[0]] - starts[shard])
        return reader.read_run(SampleRun(shard, start, start + len(rows)), out, rows)

    with ThreadPoolExecutor(READERS, thread_name_prefix="ali-load") as pool:
        for bad in pool.map(read_rows, np.split(np.arange(len(ids)), breaks)):
            if bad:
                raise reader.damaged_sample_error(bad[min(bad)])
    return out


def load_labels(store: Store, index: Index) -> NDArray[Any] | None:
    """Read the labels of a whole split in index order, from its sidecars: int64 [N], float32 [N, A], or None."""
    reader = ShardReader(store, index)
    return reader.read_labels(_whole_shards(index))


def load_origins(store: Store, index: Index, ids: Ids) -> list[str | None]:
    """Read what the user knows some samples by, by their ids in any order; None for those that have no name."""
    reader = ShardReader(store, index)
    starts = np.cumsum([0, *(shard.samples for shard in index.shards)])
    shards = np.searchsorted(starts, ids, side="right") - 1
    origins = []
    for shard, sample in zip(shards.tolist(), (np.asarray(ids) - starts[shards]).tolist(), strict=True):
        origin = reader.read_origins(SampleRun(shard, sample, sample + 1))
        origins.append((origin[0] or None) if origin else None)
    return origins


def load_arrays(
    store: Store, index: Index, on_samples: Callable[[int], None] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Read and check a whole split, for evaluation; `on_samples` is told of progress, as by `read_all`.

    Returns:
        x as stored, [N, *shape] (uint8 or float32) in index order, and y: int64 [N], float32 [N, A] or None.

    Raises:
        InputError: The index does not match its shards, or a sample is damaged.
    """
    import torch

    reader = ShardReader(store, index)
    x, y, bad = read_all(reader, on_samples)
    if bad:
        raise reader.damaged_sample_error(bad[min(bad)])
    return torch.from_numpy(x), None if y is None else torch.from_numpy(y)
