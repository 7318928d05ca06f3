"""Write a split of shards with its index.

Same samples, same options: same bytes. Tars have fixed times and owners, so their sha256 depends on content only.
"""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.codec import encode
from ali_dist.data.index import (
    INDEX_KEY,
    Index,
    Shard,
    find_split,
    load_index,
    load_sidecar,
)
from ali_dist.data.labels import Label, label_array, label_field
from ali_dist.data.sidecar import Sidecar
from ali_dist.data.storage import Store
from ali_dist.data.tars import scan
from ali_dist.data.verify import Report, verify
from ali_dist.errors import InputError

__all__ = [
    "Index", "Report", "Shard", "Sidecar", "Statistics", "find_split", "load_index", "load_sidecar", "put_if_new",
    "verify", "write_shards",
]  # fmt: skip

MB = 1_000_000
_CHUNK = 256  # samples whose statistics are taken at once: bounds the memory of their float64 copies

Labelled = tuple[NDArray[Any], Label | None]


class Statistics:
    """Mean of every pixel and standard deviation of every channel of the samples it is given.

    Args:
        shape: of a sample.
        dtype: `uint8` samples count in [0, 1], `float32` ones in raw units.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._scale = 1 / 255 if dtype == "uint8" else 1.0
        self._count = 0
        self._sum = np.zeros(shape)
        self._squares = np.zeros(shape)

    def add(self, x: NDArray[Any]) -> None:
        """Count samples [n, *shape]."""
        for start in range(0, len(x), _CHUNK):
            scaled = x[start : start + _CHUNK].astype(np.float64) * self._scale
            self._sum += scaled.sum(axis=0)
            self._squares += np.square(scaled).sum(axis=0)
        self._count += len(x)

    def merge(self, other: Statistics) -> None:
        """Count what another one has counted."""
        self._count += other._count
        self._sum += other._sum
        self._squares += other._squares

    def for_index(self) -> dict[str, Any]:
        """The index's `mean` and `std` (of each channel, axis 0) and `pixel_mean`, to 7 decimals."""
        channels = (len(self._sum), -1)
        mean = (self._sum / self._count).reshape(channels).mean(axis=1)
        square = (self._squares / self._count).reshape(channels).mean(axis=1)
        std = np.sqrt(np.maximum(0.0, square - mean**2))
        return {"mean": _rounded(mean), "std": _rounded(std), "pixel_mean": _rounded(self._sum / self._count)}


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.round(values.ravel(), 7).tolist())


def write_shards(
    store: Store,
    samples: Iterable[Labelled],
    *,
    encoding: Literal["raw", "png", "jpg"],
    shape: tuple[int, ...],
    dtype: Literal["uint8", "float32"],
    classes: Sequence[str] = (),
    attributes: Sequence[str] = (),
    extra: dict[str, Any] | None = None,
    shard_mb: float = 32.0,
) -> Index:
    """Write samples as shards 00000.tar, 00001.tar, ... with sidecars; index.json is written last.

    Shards that are already there with the same bytes are left alone. Give the samples in random order: streaming
    shuffles neighbours within a window of a shard, and mixes shards, but not more.

    Args:
        store: the split's own folder.
        samples: pairs of a sample [*shape] of `dtype`, and a class number, an attribute vector [A], or None.
        encoding: raw (any sample), or png or jpg (uint8 [1 or 3, H, W]).
        shape: of every sample.
        dtype: of every sample.
        classes: names of the class numbers.
        attributes: names of the entries of attribute vectors.
        extra: kept in the index; JSON-able.
        shard_mb: megabytes at which a new shard is begun.

    Raises:
        InputError: no samples, or one of another shape, dtype or kind of label.
    """
    if encoding != "raw" and (dtype != "uint8" or len(shape) != 3 or shape[0] not in (1, 3)):
        raise InputError(f"{dtype} samples of shape {shape} cannot be written as {encoding}: use encoding raw.")
    statistics = Statistics(shape, dtype)
    shards: list[Shard] = []
    with tempfile.TemporaryDirectory(prefix="ali-dist-") as folder:
        tar: _Tar | None = None
        for number, (x, label) in enumerate(samples):
            if x.shape != tuple(shape) or x.dtype != np.dtype(dtype):
                raise InputError(f"Sample {number} is {x.dtype} {x.shape}, but must be {dtype} {tuple(shape)}.")
            tar = tar or _Tar(Path(folder), len(shards), encoding, attributes)
            tar.add(x, label)
            if tar.is_full(shard_mb):
                shards.append(tar.finish(store, statistics))
                tar = None
        if tar is not None:
            shards.append(tar.finish(store, statistics))
    if not shards:
        raise InputError(f"There are no samples to write to {store.url}: check the source.")
    index = Index(
        encoding=encoding, dtype=dtype, shape=tuple(shape), shards=tuple(shards), classes=tuple(classes),
        attributes=tuple(attributes), extra=extra or {}, **statistics.for_index(),
    )  # fmt: skip
    store.put(INDEX_KEY, index.to_json().encode())
    return index


class _Tar:
    """A shard under way: a temporary file until it is finished."""

    def __init__(self, folder: Path, number: int, encoding: str, attributes: Sequence[str]) -> None:
        try:
            from webdataset import TarWriter
        except ImportError as error:
            raise InputError("Writing shards needs the package webdataset: pip install webdataset.") from error
        self._number, self._encoding, self._attributes = number, encoding, attributes
        self._key = f"{number:05d}.tar"
        self._path = folder / self._key
        self._file: IO[bytes] = self._path.open("w+b")
        self._writer = TarWriter(self._file, user="", group="", mtime=0, encoder=False)
        self._samples: list[NDArray[Any]] = []
        self._labels: list[Label | None] = []
        self._crcs: list[int] = []

    def is_full(self, shard_mb: float) -> bool:
        """Whether it has `shard_mb` megabytes."""
        return self._file.tell() >= shard_mb * MB

    def add(self, x: NDArray[Any], label: Label | None) -> None:
        """Append a sample."""
        payload = encode(x, self._encoding)
        key = f"{self._number:05d}-{len(self._samples):07d}"
        self._writer.write({"__key__": key, self._encoding: payload, **label_field(label, self._attributes)})
        self._samples.append(x)
        self._labels.append(label)
        self._crcs.append(zlib.crc32(payload))

    def finish(self, store: Store, statistics: Statistics) -> Shard:
        """Close the tar, store it and its sidecar, and count its samples."""
        self._writer.close()
        self._file.close()
        data = self._path.read_bytes()
        self._path.unlink()
        extents = [record.fields[self._encoding] for record in scan(data, self._key)]
        sidecar = Sidecar(
            offsets=np.array([extent.offset for extent in extents], dtype=np.int64),
            sizes=np.array([extent.size for extent in extents], dtype=np.int64),
            crc32=np.array(self._crcs, dtype=np.uint32),
            labels=label_array(self._labels, self._key),
        )
        statistics.add(np.stack(self._samples))
        shard = Shard(self._key, len(data), len(extents), hashlib.sha256(data).hexdigest(), sidecar.sha256())
        put_if_new(store, shard.key, data)
        put_if_new(store, shard.sidecar_key, sidecar.to_bytes())
        return shard


def put_if_new(store: Store, key: str, data: bytes) -> None:
    """Store `data` unless it is there already: a reader of the same object must not see it change."""
    there = store.stat(key)
    if there is None or there.size != len(data) or store.get(key) != data:
        store.put(key, data)
