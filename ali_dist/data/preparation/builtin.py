"""Built-in data: scikit-learn's digits, the mixtures of Gaussians of the GAN literature, and drawn shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from ali_dist.data.preparation.write_splits import WriteOptions, write_splits
from ali_dist.data.shards.index import INDEX_KEY, load_index
from ali_dist.data.sources.base import SourceSplit, StartTracking, track_nothing
from ali_dist.data.sources.digits import digits_splits
from ali_dist.data.sources.mixture import mixture_splits
from ali_dist.data.sources.shapes import shapes_splits
from ali_dist.errors import InputError
from ali_dist.storage import open_store
from ali_dist.storage.base import Store
from ali_dist.storage.local import LocalStore

BuiltInSource = Literal["digits", "mixture-grid", "mixture-ring", "shapes", "shapes-attributes"]
MIXTURE_SAMPLES = 25_000
SPLITS = ("train", "test")  # of every built-in source


def prepare_digits(
    store: Store,
    *,
    encoding: Literal["raw", "png", "jpg"] = "raw",
    shard_mb: float = 32.0,
    track: StartTracking = track_nothing,
) -> bool:
    """Write scikit-learn's handwritten digits, see `digits_splits`.

    Args:
        store: parent folder of the splits `train` and `test`.
        encoding: of the images.
        shard_mb: megabytes of a shard.
        track: shows progress, see `untracked`.

    Returns:
        Whether anything was written; False if all of it was there already.

    Raises:
        InputError: other data is there.
    """
    return _write_builtin(store, digits_splits(), WriteOptions(encoding=encoding, shard_mb=shard_mb), track)


def prepare_mixture(
    store: Store,
    layout: Literal["grid", "ring"] = "grid",
    *,
    samples: int = MIXTURE_SAMPLES,
    shard_mb: float = 32.0,
    track: StartTracking = track_nothing,
) -> bool:
    """Write points of a mixture of equal Gaussians, see `mixture_splits`.

    Args:
        store: parent folder of the splits `train` and `test`.
        layout: see `mixture_means`.
        samples: points to train on; a tenth as many are for testing.
        shard_mb: megabytes of a shard.
        track: shows progress, see `untracked`.

    Returns:
        Whether anything was written; False if all of it was there already.

    Raises:
        InputError: other data is there, or fewer than 10 samples are asked for.
    """
    return _write_builtin(store, mixture_splits(layout, samples), WriteOptions(shard_mb=shard_mb), track)


def ensure_prepared(
    source: BuiltInSource, url: str, *, mixture_samples: int = MIXTURE_SAMPLES, track: StartTracking = track_nothing
) -> bool:
    """Write built-in data into a local folder unless data is there; safe when several processes do it at once.

    Data of one's own that is there is left alone and will be used. Nothing is written to S3.

    Args:
        source: which data.
        url: parent folder of its splits.
        mixture_samples: points to train on, if a mixture has to be written.
        track: shows progress, see `untracked`.

    Returns:
        Whether anything was written.

    Raises:
        InputError: the folder holds other built-in data.
    """
    store = open_store(url)
    if not isinstance(store, LocalStore) or store.stat(INDEX_KEY) is not None:
        return False
    splits = [store.child(split) for split in SPLITS]
    there = [load_index(split).extra.get("source", {}) for split in splits if split.stat(INDEX_KEY) is not None]
    if any(one.get("name") not in get_args(BuiltInSource) for one in there):
        return False
    for one in there:
        if one["name"] != source:
            raise InputError(
                f"data.source is {source!r}, but {store.url} holds {one['name']!r}: choose another data.url, or "
                f"remove that folder."
            )
    if len(there) == len(splits):
        return False
    if source == "digits":
        return prepare_digits(store, track=track)
    if source == "mixture-grid" or source == "mixture-ring":
        layout: Literal["grid", "ring"] = "grid" if source == "mixture-grid" else "ring"
        return prepare_mixture(store, layout, samples=mixture_samples, track=track)
    return _write_builtin(
        store, shapes_splits("classes" if source == "shapes" else "attributes"), WriteOptions(), track
    )


def _write_builtin(store: Store, splits: Iterator[SourceSplit], how: WriteOptions, track: StartTracking) -> bool:
    return any(wrote for _, wrote in write_splits(store, splits, how, track).values())
