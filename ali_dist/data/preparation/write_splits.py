"""Splits of a source as shards: once, in parallel, and taken up again after whatever ended an earlier try.

Equal sources and settings give equal bytes, however many processes write and however often they were stopped.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ali_dist.data.preparation.shard_task import MARK_KEY, RECORDS, FinishedShard, ShardTask
from ali_dist.data.preparation.workers import write_in_processes
from ali_dist.data.shards.index import INDEX_KEY, check_listing, load_index
from ali_dist.data.shards.labels import Label, label_field
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.writer import MB, SampleFormat, write_index
from ali_dist.data.sources.base import SampleNumbers, SourceSplit, StartTracking, track_nothing
from ali_dist.errors import InputError
from ali_dist.storage.base import Store
from ali_dist.storage.local import LocalStore

_OURS = re.compile(r"\d{5}\.(tar|npz)")
_BLOCK = 512  # of a tar: a member is a header block and its content in whole blocks
_COMPRESSED = {"raw": 1.0, "png": 0.75, "jpg": 0.35}  # bytes of a payload for one of an image, about


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How splits are written.

    Attributes:
        encoding: of the images.
        shard_mb: megabytes of a shard; about, where images are compressed.
        jobs: processes at work.
        skip_bad: leave out what cannot be read, count it and name it in the index's extra.
    """

    encoding: Literal["raw", "png", "jpg"] = "raw"
    shard_mb: float = 32.0
    jobs: int = 1
    skip_bad: bool = False


def write_splits(
    store: Store, splits: Iterable[SourceSplit], how: WriteOptions, track: StartTracking = track_nothing
) -> dict[str, tuple[Store, bool]]:
    """Write each split into its folder below `store`, unless it is there.

    Returns:
        For each split by name its store, and whether anything was written.

    Raises:
        InputError: other data is there, or a sample cannot be used.
    """
    written = {}
    with _lock_folder(store):
        for split in splits:
            folder = store.child(split.name)
            written[split.name] = (folder, _write_split(folder, split, how, track))
    return written


def _write_split(store: Store, split: SourceSplit, how: WriteOptions, track: StartTracking) -> bool:
    """Write one split unless it is there, whole and made with the same settings; returns whether it was written."""
    chosen = {"encoding": how.encoding} if len(split.shape) == 3 else {}  # vectors are always raw
    settings = {**split.settings, **chosen, "shard_mb": how.shard_mb}
    if _is_complete(store, settings):
        return False
    _mark_unfinished(store, settings)
    form = SampleFormat(encoding=how.encoding, shape=split.shape, dtype=split.dtype, attributes=split.attributes)
    done = _write_missing_shards(ShardTask(store, form, how.skip_bad), split, how, track)
    statistics = Statistics(form.shape, form.dtype)
    for one in done:
        statistics.merge(one.statistics)
    shards = [one.shard for one in done if one.shard is not None]
    bad = [reason for one in done for reason in one.bad]
    skipped = {"skipped": len(bad), "skipped_samples": bad} if bad else {}
    extra = {**split.extra, **skipped, "source": settings}
    write_index(store, form, shards, statistics, classes=split.classes, extra=extra)
    _remove_leftovers(store, {key for shard in shards for key in (shard.key, shard.sidecar_key)})
    return True


def _is_complete(store: Store, settings: dict[str, Any]) -> bool:
    """Whether the split is complete; InputError if the folder is used for anything else."""
    if store.stat(INDEX_KEY) is not None:
        index = load_index(store)
        if index.extra.get("source") != settings:
            raise InputError(
                f"{store.url} already holds other data ({json.dumps(index.extra.get('source', 'of your own'))}, not "
                f"{json.dumps(settings)}): choose another folder, or remove that one."
            )
        try:
            check_listing(store, index)
        except InputError:
            store.delete([INDEX_KEY])  # shards were lost: the same ones are written again
            return False
        _remove_leftovers(store, {key for shard in index.shards for key in (shard.key, shard.sidecar_key)})
        return True
    if store.stat(MARK_KEY) is None and any(info.key.endswith(".tar") for info in store.list()):
        raise InputError(
            f"{store.url} holds tars without an index that this program did not write: choose another folder, or "
            f"index them with `python -m ali_dist.prepare webdataset {store.url}`."
        )
    return False


def _mark_unfinished(store: Store, settings: dict[str, Any]) -> None:
    """Note that this split is under way; records of a try with other settings go."""
    mark = json.dumps({"source": settings}, sort_keys=True).encode()
    if store.stat(MARK_KEY) is None or store.get(MARK_KEY) != mark:
        store.delete([info.key for info in store.list(RECORDS)])
        store.put(MARK_KEY, mark)


def _write_missing_shards(
    task: ShardTask, split: SourceSplit, how: WriteOptions, track: StartTracking
) -> list[FinishedShard]:
    """Every shard in order, those that an earlier try has left included."""
    sizes = {info.key: info.size for info in task.store.list()}
    parts = _assign_samples(split, task.form, how.shard_mb)
    done = {number: task.done_before(number, sizes) for number in range(len(parts))}
    todo = [number for number, found in done.items() if found is None]
    count = track(split.name, split.size)
    count(sum(len(numbers) for number, numbers in enumerate(parts) if number not in set(todo)))
    waiting = ((number, split.part(parts[number])) for number in todo)
    for number, found in write_in_processes(waiting, task, max(1, min(how.jobs, len(todo))), count):
        done[number] = found
    return [found for found in done.values() if found is not None]


def _assign_samples(split: SourceSplit, form: SampleFormat, shard_mb: float) -> list[SampleNumbers]:
    """Numbers of the samples of each shard. Decided beforehand, so that shards do not depend on each other."""
    payload = math.ceil(math.prod(split.shape) * np.dtype(split.dtype).itemsize * _COMPRESSED[form.encoding])
    label: Label | None = [0.0] * len(split.attributes) if split.attributes else 0 if split.classes else None
    fields = [payload, *(len(field) for field in label_field(label, split.attributes).values())]
    each = sum(_BLOCK + math.ceil(size / _BLOCK) * _BLOCK for size in fields)
    per_shard = max(1, int(shard_mb * MB / each))
    numbers = np.arange(split.size)
    if not split.mixed:
        # Raw words of Philox: a numpy that shuffles in another way would not change the order.
        numbers = np.argsort(np.random.Philox(key=0).random_raw(split.size), kind="stable")
    return [numbers[start : start + per_shard] for start in range(0, split.size, per_shard)]


def _remove_leftovers(store: Store, keep: set[str]) -> None:
    """Remove the notes of a split that is complete, and shards of an earlier try with other settings."""
    if store.stat(MARK_KEY) is None:
        return
    keys = [info.key for info in store.list()]
    stale = [key for key in keys if key.startswith(RECORDS) or (_OURS.fullmatch(key) and key not in keep)]
    store.delete(stale)
    store.delete([MARK_KEY])  # last: it says that whatever else is there is ours to remove


@contextmanager
def _lock_folder(store: Store) -> Iterator[None]:
    """Keep other processes from preparing the same local folder; on S3 equal writers write equal objects."""
    if not isinstance(store, LocalStore):
        yield
        return
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        folder = os.open(store.root, os.O_RDONLY)
    except OSError as error:
        raise InputError(
            f"{store.url} cannot be used ({str(error.strerror).lower()}): check its permissions, or choose another "
            f"folder."
        ) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
