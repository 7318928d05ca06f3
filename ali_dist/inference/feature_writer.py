"""Where features of a data set are written: one .npz of them all, or a folder with one .npz for each shard.

Every .npz holds `features` float32 [n, F], `ids` int64 [n] (places in the index, counted through its shards) and,
where the data have them, `labels` (int64 [n], or float32 [n, A]).
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ali_dist.config import StorageConfig
from ali_dist.data.shards.index import Index
from ali_dist.errors import InputError
from ali_dist.inference.features import EncodedShard
from ali_dist.runs.datasets import open_url
from ali_dist.storage.base import Store

NOTE_KEY = "features.json"


class FeatureWriter(Protocol):
    """Takes the features of shards, each once."""

    url: str

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""

    def put(self, encoded: EncodedShard) -> None:
        """Keep the features of a shard."""

    def finish(self) -> tuple[int, int] | None:
        """Complete what was written; [samples, F], or None where other ranks have not finished."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def open_feature_writer(out: str, index: Index, settings: Mapping[str, Any], storage: StorageConfig) -> FeatureWriter:
    """`out` as FILE.npz, or as a folder; on a disk or in S3.

    Args:
        out: Where.
        index: Of the data; says which shards there are.
        settings: What decides the features, JSON-able; a folder takes no others beside them.
        storage: How to reach S3.

    Raises:
        InputError: The folder holds other features.
    """
    if out.endswith(".npz"):
        folder, _, name = out.rpartition("/")
        if not name.removesuffix(".npz") or folder == "s3:/":
            raise InputError(f"--out is {out!r}: give FILE.npz, a folder, or s3://bucket/prefix.")
        root = folder or ("/" if out.startswith("/") else ".")
        return SingleFileWriter(open_url(root, storage), name, index)
    return ShardFolderWriter(open_url(out, storage), index, settings)


class SingleFileWriter:
    """All shards in one .npz, written at the end; until then features wait on a disk.

    Args:
        store: Where it goes.
        name: Of the file.
        index: Of the data.
    """

    def __init__(self, store: Store, name: str, index: Index) -> None:
        self.url = f"{store.url.rstrip('/')}/{name}"
        self._store, self._name, self._index = store, name, index
        self._starts = np.cumsum([0, *(shard.samples for shard in index.shards)])
        self._features: NDArray[np.float32] | None = None
        self._labels: NDArray[Any] | None = None
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        self._scratch = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="ali-dist-features-")))
        return self

    def __exit__(self, *error: object) -> None:
        self._features = None
        self._exit.close()

    def missing(self) -> list[int]:
        return [number for number, shard in enumerate(self._index.shards) if shard.samples]

    def put(self, encoded: EncodedShard) -> None:
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

    def finish(self) -> tuple[int, int]:
        assert self._features is not None, "an index has at least one sample"
        path = self._scratch / "all.npz"
        _write_npz(path, self._features, np.arange(len(self._features)), self._labels)
        self._store.put(self._name, path)
        return self._features.shape[0], self._features.shape[1]


class ShardFolderWriter:
    """One .npz for each shard; a folder that was begun with the same settings is gone on with, by any ranks.

    Args:
        store: The folder.
        index: Of the data.
        settings: See `open_feature_files`.

    Raises:
        InputError: It holds features of other settings.
    """

    def __init__(self, store: Store, index: Index, settings: Mapping[str, Any]) -> None:
        self.url = store.url
        self._store, self._index = store, index
        self._note: dict[str, Any] = {"settings": dict(settings), "complete": False}
        there = store.stat(NOTE_KEY)
        if there is None:
            store.put(NOTE_KEY, _to_json(self._note))
            return
        old = _read_settings(store)
        for key, value in settings.items():
            if old.get(key) != value:
                raise InputError(
                    f"{store.url} was begun with {key} {old.get(key)!r}, but now it is {value!r}: choose another "
                    "--out, or remove that folder."
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        del error

    def missing(self) -> list[int]:
        there = {info.key for info in self._store.list()}
        wanted = [number for number, shard in enumerate(self._index.shards) if shard.samples]
        return [number for number in wanted if self._key(number) not in there]

    def put(self, encoded: EncodedShard) -> None:
        start = sum(shard.samples for shard in self._index.shards[: encoded.shard])
        file = io.BytesIO()
        ids = np.arange(start, start + len(encoded.features))
        _write_npz(file, encoded.features.numpy(), ids, None if encoded.labels is None else encoded.labels.numpy())
        self._store.put(self._key(encoded.shard), file.getvalue())
        self._note["size"] = encoded.features.shape[1]

    def finish(self) -> tuple[int, int] | None:
        if self.missing():
            return None
        shape = (self._index.num_samples, self._size())
        self._store.put(NOTE_KEY, _to_json(self._note | {"complete": True, "samples": shape[0], "size": shape[1]}))
        return shape

    def _key(self, shard: int) -> str:
        return f"features-{shard:05d}.npz"  # no name of a sidecar: the folder may be the data's own

    def _size(self) -> int:
        """F: of what was written now, else as a written file has it."""
        if "size" in self._note:
            return int(self._note["size"])
        first = next(number for number, shard in enumerate(self._index.shards) if shard.samples)
        with np.load(io.BytesIO(self._store.get(self._key(first))), allow_pickle=False) as file:
            return int(file["features"].shape[1])


def _write_npz(
    target: Path | io.BytesIO, features: NDArray[np.float32], ids: NDArray[np.int64], labels: NDArray[Any] | None
) -> None:
    arrays: dict[str, NDArray[Any]] = {"features": features, "ids": ids}
    if labels is not None:
        arrays["labels"] = labels
    np.savez(target, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for an array


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _read_settings(store: Store) -> dict[str, Any]:
    try:
        settings = json.loads(store.get(NOTE_KEY))["settings"]
        return dict(settings)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{NOTE_KEY} in {store.url} is damaged: remove that folder, or choose another --out."
        ) from error
