"""Write the splits of a source as shards: once, in parallel, and continued after whatever ended an earlier try.

Equal sources and settings give equal bytes, however many processes write and however often they were stopped.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ali_dist.data.preparation.shard_task import RECORD_PREFIX, UNFINISHED_KEY, FinishedShard, ShardTask
from ali_dist.data.preparation.workers import write_in_processes
from ali_dist.data.shards.index import INDEX_KEY, check_listing, load_index
from ali_dist.data.shards.labels import Label, encode_label
from ali_dist.data.shards.sample import NamedCounts
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.writer import MB, SampleFormat, write_index
from ali_dist.data.sources.base import SampleNumbers, SourceSplit, StartTracking, track_nothing
from ali_dist.errors import InputError, StorageError
from ali_dist.names import printable_name
from ali_dist.storage.base import Store
from ali_dist.storage.local import LocalStore

_LOG = logging.getLogger(__name__)
_OWN_FILE = re.compile(r"\d{5}\.(tar|npz)")
_BLOCK = 512  # bytes; a member of a tar is a header block and its content in whole blocks
_COMPRESSION = {"raw": 1.0, "png": 0.75, "jpg": 0.35}  # approximate size of a payload relative to the pixels
WrittenSplits = dict[str, tuple[Store, bool]]
"""The store of each split by its name, and whether anything was written to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How splits are written.

    Attributes:
        encoding: Encoding of the images.
        shard_mb: Megabytes of a shard (approximate where images are compressed).
        jobs: Processes at work.
        skip_bad: Whether samples that cannot be read are left out, counted and named in the index's extra.
    """

    encoding: Literal["raw", "png", "jpg"] = "raw"
    shard_mb: float = 32.0
    jobs: int = 1
    skip_bad: bool = False


def write_splits(
    store: Store,
    splits: Iterable[SourceSplit],
    options: WriteOptions,
    start_tracking: StartTracking = track_nothing,
) -> WrittenSplits:
    """Write each split into its folder below `store`, unless it is there already.

    Nothing is made before the first split is known, so that a refused source leaves no folder behind.

    Args:
        store: Parent folder of the splits.
        splits: The splits of a source.
        options: How they are written.
        start_tracking: Shows progress, see `track_nothing`.

    Raises:
        InputError: Other data is in a folder, or a sample cannot be used.
    """
    written = {}
    remaining = iter(splits)
    first = list(itertools.islice(remaining, 1))
    with _lock_folder(store):
        for split in itertools.chain(first, remaining):
            folder = store.child(split.name)
            written[split.name] = (folder, _write_split(folder, split, options, start_tracking))
    return written


def _write_split(store: Store, split: SourceSplit, options: WriteOptions, start_tracking: StartTracking) -> bool:
    """Write one split unless it is there, complete and made with the same settings; returns whether it was written."""
    encoding = {"encoding": options.encoding} if len(split.shape) == 3 else {}  # vectors are always raw
    settings = {**split.settings, **encoding, "shard_mb": options.shard_mb}
    if _is_complete(store, settings):
        return False
    _mark_unfinished(store, settings)
    sample_format = SampleFormat(
        encoding=options.encoding, shape=split.shape, dtype=split.dtype, attributes=split.attributes
    )
    task = ShardTask(store, sample_format, options.skip_bad)
    finished_shards = _write_missing_shards(task, split, options, start_tracking)
    statistics = Statistics(sample_format.shape, sample_format.dtype)
    treatments = NamedCounts()
    for finished in finished_shards:
        statistics.merge(finished.statistics)
        treatments.merge(finished.treatments)
    shards = [finished.shard for finished in finished_shards if finished.shard is not None]
    bad = [sentence for finished in finished_shards for sentence in finished.bad_samples]
    skipped = {"skipped": len(bad), "skipped_samples": bad} if bad else {}
    treated = {"treatments": treatments.to_json()} if treatments.to_json() else {}
    extra = {**split.extra, **skipped, **treated, "source": settings}
    write_index(store, sample_format, shards, statistics, classes=split.classes, extra=extra)
    _remove_leftovers(store, {key for shard in shards for key in (shard.key, shard.sidecar_key)})
    return True


def _is_complete(store: Store, settings: dict[str, Any]) -> bool:
    """Whether the split is complete.

    Raises:
        InputError: The folder is used for anything else.
    """
    if store.stat(INDEX_KEY) is not None:
        index = load_index(store)
        if index.extra.get("source") != settings:
            raise InputError(
                f"{store.url} already holds other data ({_describe_difference(index.extra.get('source'), settings)}): "
                f"choose another folder, or remove that one."
            )
        try:
            check_listing(store, index)
        except InputError:
            _mark_unfinished(store, settings)  # first, so that what is left stays known as ours
            store.delete([INDEX_KEY])  # shards were lost; the same ones are written again
            return False
        _remove_leftovers(store, {key for shard in index.shards for key in (shard.key, shard.sidecar_key)})
        return True
    if store.stat(UNFINISHED_KEY) is None:
        _refuse_foreign_files(store)
    return False


def _refuse_foreign_files(store: Store) -> None:
    """Refuse a folder that has neither an index nor our mark, but files that we would replace or be taken for.

    Raises:
        InputError: There is a tar, or a file with a name of ours.
    """
    keys = [info.key for info in store.list()]
    if tar := next((key for key in keys if key.endswith(".tar")), None):
        raise InputError(
            f"{store.url} holds tars without an index that this program did not write (such as {printable_name(tar)}): "
            f"choose another folder, or index them with `python -m ali_dist.prepare webdataset "
            f"{shlex.quote(store.url)}`."
        )
    if own := next((key for key in keys if _OWN_FILE.fullmatch(key) or key.startswith(RECORD_PREFIX)), None):
        raise InputError(
            f"{store.url} holds {printable_name(own)}, which this program did not write and would replace: choose "
            f"another folder, or move that file."
        )


def _describe_difference(there: object, settings: dict[str, Any]) -> str:
    """What differs between the settings that data was written with and those that are asked for."""
    if not isinstance(there, dict):
        return "which this program did not write"
    if there.get("name") != settings["name"]:
        return f"{there.get('name')}, not {settings['name']}"
    changes = [
        f"{key} {_setting_text(there.get(key))}, not {_setting_text(settings.get(key))}"
        for key in settings | there
        if key != "input" and there.get(key) != settings.get(key)
    ]
    if there.get("input") != settings.get("input"):
        changes.append("made of other files, or with other labels")
    return "; ".join(changes)


def _setting_text(value: object) -> str:
    return "none" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _mark_unfinished(store: Store, settings: dict[str, Any]) -> None:
    """Note that this split is being written; records of an earlier try with other settings are removed."""
    mark = json.dumps({"source": settings}, sort_keys=True).encode()
    if store.stat(UNFINISHED_KEY) is None or store.get(UNFINISHED_KEY) != mark:
        store.delete([info.key for info in store.list(RECORD_PREFIX)])
        store.put(UNFINISHED_KEY, mark)


def _write_missing_shards(
    task: ShardTask, split: SourceSplit, options: WriteOptions, start_tracking: StartTracking
) -> list[FinishedShard]:
    """Return every shard in order, after writing those that an earlier try has not finished."""
    sizes = {info.key: info.size for info in task.store.list()}
    assignment = _assign_samples(split, task.sample_format, options.shard_mb)
    finished = {number: task.find_finished(number, sizes) for number in range(len(assignment))}
    missing = [number for number, shard in finished.items() if shard is None]
    advance = start_tracking(split.name, split.num_samples)
    advance(split.num_samples - sum(len(assignment[number]) for number in missing))
    samples = ((number, split.select_samples(assignment[number])) for number in missing)
    for number, shard in write_in_processes(samples, task, max(1, min(options.jobs, len(missing))), advance):
        finished[number] = shard
    return [shard for shard in finished.values() if shard is not None]


def _assign_samples(split: SourceSplit, sample_format: SampleFormat, shard_mb: float) -> list[SampleNumbers]:
    """Decide beforehand which samples, by number, go into each shard, so that shards do not depend on each other."""
    payload = math.ceil(math.prod(split.shape) * np.dtype(split.dtype).itemsize * _COMPRESSION[sample_format.encoding])
    label: Label | None = [0.0] * len(split.attributes) if split.attributes else 0 if split.classes else None
    field_sizes = [payload, *(len(field) for field in encode_label(label, split.attributes).values())]
    sample_bytes = sum(_BLOCK + math.ceil(size / _BLOCK) * _BLOCK for size in field_sizes)
    per_shard = max(1, int(shard_mb * MB / sample_bytes))
    numbers = np.arange(split.num_samples)
    if not split.is_shuffled:
        # Raw words of Philox: a numpy that shuffles in another way would not change the order.
        numbers = np.argsort(np.random.Philox(key=0).random_raw(split.num_samples), kind="stable")
    return [numbers[start : start + per_shard] for start in range(0, split.num_samples, per_shard)]


def _remove_leftovers(store: Store, keys_to_keep: set[str]) -> None:
    """Remove the records of a split that is complete, and shards of an earlier try with other settings.

    Records and the mark may stay where deleting is not allowed: nobody reads them beside an index. Such shards may not,
    and their deletion fails aloud: whoever reads all tars of the folder would take them for a part of the data.
    """
    if store.stat(UNFINISHED_KEY) is None:
        return
    keys = [info.key for info in store.list()]
    store.delete([key for key in keys if _OWN_FILE.fullmatch(key) and key not in keys_to_keep])
    records = [key for key in keys if key.startswith(RECORD_PREFIX)]
    try:
        store.delete(records)
        store.delete([UNFINISHED_KEY])  # last, because it says that everything else there is ours to remove
    except (InputError, StorageError) as error:
        _LOG.warning(
            "The data in %s are complete, but up to %d working files beside them could not be deleted: %s",
            *(store.url, len(records) + 1, error),
        )


@contextmanager
def _lock_folder(store: Store) -> Iterator[None]:
    """Keep other processes from preparing the same local folder; in an object store, all write equal objects."""
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
