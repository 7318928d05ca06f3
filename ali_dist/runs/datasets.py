"""The data of a run: the split that is trained on, and those that are held out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ali_dist.config import Config, DataConfig, StorageConfig
from ali_dist.data.preparation.advice import find_prepared_split, list_splits
from ali_dist.data.shards.index import INDEX_KEY, Index, check_listing, load_index
from ali_dist.errors import InputError
from ali_dist.storage import open_store
from ali_dist.storage.base import Store
from ali_dist.storage.cached import with_cache

VALID = "valid"
"""Name of the split that evaluations before the end, and sweeps, choose by."""
_USUAL_HOLDOUT = DataConfig().holdout  # data need not have it


@dataclass(frozen=True, slots=True)
class DataSplit:
    """One split of a data set.

    Attributes:
        store: Its own folder.
        index: What its index.json says.
    """

    store: Store
    index: Index

    @property
    def name(self) -> str:
        """Its name: the last part of its folder."""
        return self.store.url.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class RunData:
    """The splits of a run.

    Attributes:
        train: What is trained on.
        holdout: What is reported on at the end: `data.holdout` or, where the data lack the usual `test`, their `valid`.
            None where the data have one split only.
        valid: What is chosen by, before the end; None where the data have no such split.
    """

    train: DataSplit
    holdout: DataSplit | None
    valid: DataSplit | None = None


def open_url(url: str, storage: StorageConfig) -> Store:
    """Open the store at `url` with the run's storage settings."""
    access = dataclasses.asdict(storage)
    del access["outage_minutes"]  # of runs, not of requests
    return open_store(url, **access)


def open_run_store(config: Config) -> Store:
    """Open the run's own folder, run.dir/run.name."""
    return open_url(f"{config.run.dir.rstrip('/')}/{config.run.name}", config.storage)


def open_run_data(config: Config) -> RunData:
    """Find the splits and check the training split's shards against its index; reads no shard.

    Raises:
        InputError: No such place, no such split, no access, an index that does not match its shards, or splits whose
            samples have different shapes.
    """
    root = _open_data(config)
    train = _open_split(root, config.data.split)
    check_listing(train.store, train.index)
    holdout = _open_other_split(root, config.data.holdout, train)
    if holdout is None and config.data.holdout not in (_USUAL_HOLDOUT, train.name):
        raise _no_holdout_error(root, config.data.holdout)
    valid = _open_other_split(root, VALID, train)
    if holdout is None and VALID in holdout_names(config.data):
        holdout = valid
    for other in (holdout, valid):
        if other is not None:
            _require_like_training(other, train, config.data.image_size)
    return RunData(train, holdout, valid)


def open_training_index(config: Config) -> Index:
    """The index of the training split alone, without a look at its shards and at other splits.

    Raises:
        InputError: No such place, no such split, or no access.
    """
    return load_index(find_prepared_split(_open_data(config), config.data.split))


def _open_data(config: Config) -> Store:
    return with_cache(open_url(config.data.url, config.storage), config.data.cache_dir, config.data.cache_gb)


def holdout_names(data: DataConfig) -> tuple[str, ...]:
    """The splits that are reported on, the most wanted first: `valid` stands in for the usual one alone."""
    return (data.holdout, VALID) if data.holdout == _USUAL_HOLDOUT else (data.holdout,)


def _require_like_training(other: DataSplit, train: DataSplit, image_size: int | None) -> None:
    """Refuse a split that the networks could not be measured on.

    Args:
        other: The split.
        train: What is trained on.
        image_size: Side that the images of all splits are resized to, if the user says so.

    Raises:
        InputError: Its samples are of another type, or have another number of channels or another size.
    """
    (shape, dtype), (wanted, wanted_dtype) = ((split.index.shape, split.index.dtype) for split in (other, train))
    is_resized = image_size is not None and len(shape) == len(wanted) == 3 and shape[0] == wanted[0]
    if dtype == wanted_dtype and (shape == wanted or is_resized):
        return
    is_other_size = dtype == wanted_dtype and len(shape) == len(wanted) == 3 and shape[0] == wanted[0]
    advice = "give data.image_size, to which all are resized, or prepare" if is_other_size else "prepare"
    raise InputError(
        f"Samples of the split {other.name!r} are {dtype} {list(shape)}, but those of {train.name!r}, which is trained "
        f"on, are {wanted_dtype} {list(wanted)}: {advice} both in the same way."
    )


def _open_other_split(root: Store, split: str, train: DataSplit) -> DataSplit | None:
    """Open a split that is not the training split; None where the data do not have it, as where they are one split."""
    store = root.child(split)
    if train.store.url == root.url or store.stat(INDEX_KEY) is None:
        return None
    other = DataSplit(store, load_index(store))
    return None if other.index.fingerprint == train.index.fingerprint else other


def _no_holdout_error(root: Store, split: str) -> InputError:
    """The error for a split that was asked for; that the usual one is missing is said when the run starts."""
    existing = list_splits(root)
    have = f"whose splits are {', '.join(existing)}: name one of those, or" if existing else "which is one split:"
    return InputError(f"data.holdout is {split!r}, but there is no such split in {root.url}, {have} leave it out.")


def _open_split(root: Store, split: str) -> DataSplit:
    store = find_prepared_split(root, split)
    return DataSplit(store, load_index(store))
