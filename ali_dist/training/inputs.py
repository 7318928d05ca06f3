"""The data of a run: the split that is trained on, and the one that is held out."""

from __future__ import annotations

from dataclasses import dataclass

from ali_dist.config import Config, StorageConfig
from ali_dist.data.index import Index, check_listing, find_split, load_index
from ali_dist.data.storage import Store, open_store
from ali_dist.errors import InputError


@dataclass(frozen=True, slots=True)
class Part:
    """One split: where it lies and what its index says."""

    store: Store
    index: Index


@dataclass(frozen=True, slots=True)
class Inputs:
    """The splits of a run; no holdout where the data have one split only."""

    train: Part
    holdout: Part | None


def open_url(url: str, storage: StorageConfig) -> Store:
    """The store at `url` with the run's storage settings."""
    return open_store(
        url,
        endpoint_url=storage.endpoint_url,
        timeout_seconds=storage.timeout_seconds,
        attempts=storage.attempts,
    )


def run_store(config: Config) -> Store:
    """The run's own folder: run.dir/run.name."""
    return open_url(f"{config.run.dir.rstrip('/')}/{config.run.name}", config.storage)


def open_inputs(config: Config) -> Inputs:
    """Find both splits and check the training split's shards against its index; reads no shard.

    Raises:
        InputError: No such place, no such split, no access, or an index that does not match its shards.
    """
    root = open_url(config.data.url, config.storage)
    train = _open_part(root, config.data.split)
    check_listing(train.store, train.index)
    try:
        holdout = _open_part(root, config.data.holdout)
    except InputError:
        return Inputs(train, None)
    return Inputs(train, None if holdout.index.fingerprint == train.index.fingerprint else holdout)


def _open_part(root: Store, split: str) -> Part:
    store = find_split(root, split)
    return Part(store, load_index(store))
