"""Data that training writes by itself on first use, because it needs no files (`data.source`)."""

from __future__ import annotations

from pathlib import Path

from ali_dist.data.preparation.advice import advise_on_unprepared, holds_foreign_files
from ali_dist.data.shards.index import INDEX_KEY, load_index
from ali_dist.data.sources.base import BUILT_IN_SPLITS, StartTracking, track_nothing
from ali_dist.errors import InputError
from ali_dist.storage import is_local, open_store


def ensure_prepared(
    source: str, url: str, *, samples: int | None = None, start_tracking: StartTracking = track_nothing
) -> bool:
    """Write built-in data into a local folder unless data is there; safe when several processes do it at once.

    The user's own data in that folder is left alone and will be used. Nothing is written to an object store, nor into a
    folder that holds anything else.

    Args:
        source: A value of `data.source`.
        url: The parent folder of the splits.
        samples: Samples to train on, for sources that have that option; by default as the registry says.
        start_tracking: Shows progress, see `track_nothing`.

    Returns:
        Whether anything was written.

    Raises:
        InputError: There is no such built-in source, or the folder holds another one, or other files.
    """
    store = open_store(url)
    splits = [store.child(split) for split in BUILT_IN_SPLITS]
    is_elsewhere = not is_local(url) or store.stat(INDEX_KEY) is not None
    found = [] if is_elsewhere else [split for split in splits if split.stat(INDEX_KEY) is not None]
    present = [load_index(split).extra.get("source", {}) for split in found]
    if len(present) == len(splits) and all(origin.get("name") == source for origin in present):
        return False

    # Here, because a start whose data are there needs none of what writes them.
    from ali_dist.data.preparation.shard_task import UNFINISHED_KEY
    from ali_dist.data.preparation.write_splits import WriteOptions, write_splits
    from ali_dist.data.sources.registry import built_in_sources

    known = built_in_sources()
    if source not in known:
        raise InputError(
            f"There is no built-in data {source!r}: set data.source to one of {', '.join(known)}, or none."
        )
    if is_elsewhere or any(origin.get("name") not in known for origin in present):
        return False
    for origin in present:
        if origin["name"] != source:
            raise InputError(
                f"data.source is {source!r}, but {store.url} holds {origin['name']!r}: choose another data.url, or "
                f"remove that folder."
            )
    if len(present) == len(splits):
        return False
    is_begun = any(split.stat(UNFINISHED_KEY) is not None for split in splits)
    if not present and not is_begun and holds_foreign_files(Path(store.url)):
        raise InputError(
            f"The built-in data {source!r} are not written into {store.url}, which holds other files: choose another "
            f"data.url, or take what is there ({advise_on_unprepared(store.url)})."
        )
    data_source, options = known[source]
    if samples is not None:
        options = {**options, "samples": samples}
    written = write_splits(store, data_source.make_splits(**options), WriteOptions(), start_tracking)
    return any(is_new for _, is_new in written.values())
