"""Writers of a data set's features: one .npz for all of them, or a folder with one .npz for each shard.

A single .parquet is written by `feature_parquet.py`.

Every .npz holds `features` float32 [n, F], `ids` int64 [n] (places in the index, counted through its shards) and,
where the data have them, `labels` (int64 [n], or float32 [n, A]) and `origins` (text [n]: the file or key of each row).
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ali_dist.config import StorageConfig
from ali_dist.data.shards.index import Index
from ali_dist.errors import InputError
from ali_dist.inference.feature_parquet import ParquetWriter
from ali_dist.inference.features import EncodedShard
from ali_dist.runs.datasets import open_url
from ali_dist.storage.base import Store

NOTE_KEY = "features.json"
"""The file of a folder that says what its features are."""


SINGLE_FILES = (".npz", ".parquet")
"""Endings of what is one file for all shards; anything else is a folder."""


class FeatureWriter(Protocol):
    """Takes the features of shards, each once; a context manager.

    Attributes:
        url: Where the features go.
    """

    url: str

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that have not been written yet."""

    def write_shard(self, encoded: EncodedShard) -> None:
        """Write the features of a shard."""

    def finish(self) -> tuple[int, int] | None:
        """Complete what was written.

        Returns:
            Shape [samples, F] of all features; None where other ranks have not finished.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def open_feature_writer(out: str, index: Index, settings: Mapping[str, Any], storage: StorageConfig) -> FeatureWriter:
    """Open the place for features that a user has named.

    Args:
        out: FILE.npz, FILE.parquet or a folder, on a disk or in S3.
        index: The data's index; says which shards there are.
        settings: What decides the features, JSON-able; a folder holds features of one such mapping only.
        storage: How to reach S3.

    Raises:
        InputError: The place cannot be one, or the folder holds features of other settings.
    """
    if out.endswith(SINGLE_FILES):
        folder, _, name = out.rpartition("/")
        if name in SINGLE_FILES or folder.endswith(":/"):  # the latter: a file without a bucket
            raise InputError(f"--out is {out!r}: give FILE.npz, FILE.parquet, a folder, or s3://bucket/prefix.")
        root = folder or ("/" if out.startswith("/") else ".")
        store = open_url(root, storage)
        if name.endswith(".parquet"):
            return ParquetWriter(store, name, index, settings)
        return SingleFileWriter(store, name, index)
    return ShardFolderWriter(open_url(out, storage), index, settings)


class SingleFileWriter:
    """Writes all shards into one .npz, at the end; until then features wait in a temporary file.

    Args:
        store: The folder of the file.
        name: The file's name.
        index: The data's index.
    """

    def __init__(self, store: Store, name: str, index: Index) -> None:
        self.url = f"{store.url.rstrip('/')}/{name}"
        self._store = store
        self._name = name
        self._index = index
        self._starts = np.cumsum([0, *(shard.samples for shard in index.shards)])
        self._features: NDArray[np.float32] | None = None
        self._labels: NDArray[Any] | None = None
        self._origins: dict[int, tuple[str, ...]] = {}  # by shard
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        self._scratch = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="ali-dist-features-")))
        return self

    def __exit__(self, *error: object) -> None:
        self._features = None
        self._exit.close()

    def missing_shards(self) -> list[int]:
        return _shards_with_samples(self._index)

    def write_shard(self, encoded: EncodedShard) -> None:
        rows = slice(*self._starts[encoded.shard : encoded.shard + 2].tolist())
        total = self._index.num_samples
        if self._features is None:
            shape = (total, encoded.features.shape[1])
            self._features = np.memmap(self._scratch / "features", np.float32, "w+", shape=shape)
            if encoded.labels is not None:
                labels = encoded.labels.numpy()
                self._labels = np.empty((total, *labels.shape[1:]), labels.dtype)
        self._features[rows] = encoded.features.numpy()
        if self._labels is not None and encoded.labels is not None:
            self._labels[rows] = encoded.labels.numpy()
        if encoded.origins is not None:
            self._origins[encoded.shard] = encoded.origins

    def finish(self) -> tuple[int, int]:
        assert self._features is not None, "an index has at least one sample"
        path = self._scratch / "all.npz"
        _write_npz(path, self._features, np.arange(len(self._features)), self._labels, self._all_origins())
        self._store.put(self._name, path)
        return self._features.shape[0], self._features.shape[1]

    def _all_origins(self) -> list[str] | None:
        if not self._origins:
            return None
        shards = enumerate(self._index.shards)
        return [origin for number, shard in shards for origin in self._origins.get(number, ("",) * shard.samples)]


class ShardFolderWriter:
    """Writes one .npz for each shard; completes a folder that was begun with the same settings, from any rank.

    Args:
        store: The folder.
        index: The data's index.
        settings: See `open_feature_writer`.

    Raises:
        InputError: The folder holds features of other settings.
    """

    def __init__(self, store: Store, index: Index, settings: Mapping[str, Any]) -> None:
        self.url = store.url
        self._store = store
        self._index = index
        self._note: dict[str, Any] = {"settings": dict(settings), "complete": False}
        if store.stat(NOTE_KEY) is None:
            store.put(NOTE_KEY, _to_json(self._note))
        else:
            _require_equal_settings(store, settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        del error

    def missing_shards(self) -> list[int]:
        written_keys = {info.key for info in self._store.list()}
        return [number for number in _shards_with_samples(self._index) if self._key(number) not in written_keys]

    def write_shard(self, encoded: EncodedShard) -> None:
        start = sum(shard.samples for shard in self._index.shards[: encoded.shard])
        file = io.BytesIO()
        ids = np.arange(start, start + len(encoded.features))
        labels = None if encoded.labels is None else encoded.labels.numpy()
        _write_npz(file, encoded.features.numpy(), ids, labels, encoded.origins)
        self._store.put(self._key(encoded.shard), file.getvalue())
        self._note["size"] = encoded.features.shape[1]

    def finish(self) -> tuple[int, int] | None:
        if self.missing_shards():
            return None
        shape = (self._index.num_samples, self._size())
        self._store.put(NOTE_KEY, _to_json(self._note | {"complete": True, "samples": shape[0], "size": shape[1]}))
        return shape

    def _key(self, shard: int) -> str:
        return f"features-{shard:05d}.npz"  # unlike a sidecar's name, because the folder may be the data's own

    def _size(self) -> int:
        """The size F of a sample's features, as they were written now or earlier."""
        if "size" in self._note:
            return int(self._note["size"])
        first = _shards_with_samples(self._index)[0]
        with np.load(io.BytesIO(self._store.get(self._key(first))), allow_pickle=False) as file:
            return int(file["features"].shape[1])


def _shards_with_samples(index: Index) -> list[int]:
    return [number for number, shard in enumerate(index.shards) if shard.samples]


def _write_npz(
    target: Path | io.BytesIO,
    features: NDArray[np.float32],
    ids: NDArray[np.int64],
    labels: NDArray[Any] | None,
    origins: Sequence[str] | None,
) -> None:
    arrays: dict[str, NDArray[Any]] = {"features": features, "ids": ids}
    if labels is not None:
        arrays["labels"] = labels
    if origins is not None:
        arrays["origins"] = np.array(origins, dtype=np.str_)
    np.savez(target, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for an array


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _require_equal_settings(store: Store, settings: Mapping[str, Any]) -> None:
    old_settings = _read_settings(store)
    for key, value in settings.items():
        if old_settings.get(key) != value:
            raise InputError(
                f"{store.url} was begun with {key} {old_settings.get(key)!r}, but now it is {value!r}: choose another "
                "--out, or remove that folder."
            )


def _read_settings(store: Store) -> dict[str, Any]:
    try:
        settings = json.loads(store.get(NOTE_KEY))["settings"]
        return dict(settings)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{NOTE_KEY} in {store.url} is damaged: remove that folder, or choose another --out."
        ) from error
